"""A scripted player of the generated questions that knows only what it was shown."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from envs.core import Info
from envs.search.expert import read_facts, read_question
from envs.search.generate import RELATIONS
from envs.tools.calls import FORMATS
from envs.tools.tool import Call, Tool

Results = Mapping[tuple[str, str], str]  # by tool and its argument
Move = tuple[str, str]  # a tool and its argument; "answer" ends the task


class ToolsExpert:
    """Reads the question, calls the tools that it needs, and answers, in any format of calls."""

    def __init__(self, format: str = "brackets") -> None:  # noqa: A002
        self._format = FORMATS[format]

    def reset(self, observation: str, info: Info) -> None:
        """A new episode. `act` raises `ValueError` for a question that `envs.tools.generate` does not ask."""
        self._question = observation.splitlines()[-1]
        self._tools: dict[str, Tool] = {}
        for schema in info["tools"]:
            about = schema["function"]
            self._tools[about["name"]] = Tool(about["name"], about["description"], about["parameters"], run=print)
        self._results: dict[tuple[str, str], str] = {}

    def act(self) -> str:
        """The next message."""
        name, text = next_move(self._question, self._results)
        if name == "answer":
            return f"answer[{text}]" if self._format.lists_actions else f"<answer>{text}</answer>"
        [argument] = self._tools[name].parameters["properties"]
        return self._format.write([Call(name, {argument: text})], self._tools)

    def observe(self, action: str, observation: str, info: Info) -> None:  # noqa: ARG002
        """Keep the results of the calls."""
        calls = self._format.parse(action, self._tools).calls
        for call, text in zip(calls, self._format.results_in(observation), strict=False):
            if isinstance(call, Call):
                self._results[call.name, "".join(map(str, call.arguments.values()))] = text


def next_move(question: str, results: Results) -> Move:
    """What to do next about a question, given the results so far. Raises `ValueError` for an unknown question."""
    for pattern, plan in _PLANS.items():
        if found := re.fullmatch(pattern, question):
            return plan(results, *found.groups())
    raise ValueError(f"cannot read the question {question!r}")


def _calculate(results: Results, expression: str) -> Move:
    return _answer_with(results, "calculator", expression)


def _count(results: Results, first: str, last: str, condition: str) -> Move:
    return _answer_with(results, "python", f"sum({condition} for n in range({first}, {last}))")


def _sum(results: Results, term: str, first: str, last: str) -> Move:
    return _answer_with(results, "python", f"sum({term} for n in range({first}, {last}))")


def _price(results: Results, item: str) -> Move:
    return _ask(results, f"SELECT price FROM items WHERE name = '{item}'")


def _stock(results: Results, item: str) -> Move:
    return _ask(results, f"SELECT stock FROM items WHERE name = '{item}'")


def _ordered(results: Results, item: str, customer: str) -> Move:
    return _ask(results, f"SELECT amount FROM orders WHERE customer = '{customer}' AND item = '{item}'")


def _dearest(results: Results) -> Move:
    return _ask(results, "SELECT name FROM items ORDER BY price DESC LIMIT 1")


def _pays(results: Results, customer: str) -> Move:
    joined = f"items JOIN orders ON name = item WHERE customer = '{customer}'"
    return _ask(results, f"SELECT sum(price * amount) FROM {joined}")


def _best_customer(results: Results, item: str) -> Move:
    return _ask(results, f"SELECT customer FROM orders WHERE item = '{item}' ORDER BY amount DESC LIMIT 1")


def _order(results: Results, listed: str) -> Move:
    amounts = {name: amount for amount, name in (part.split(" kg ") for part in listed.split(", "))}
    query = "SELECT name, price FROM items WHERE name IN ({})".format(", ".join(f"'{name}'" for name in amounts))
    rows = results.get(("sql", query))
    if rows is None:
        return "sql", query
    prices = dict(row.split(" | ") for row in rows.splitlines()[1:])
    terms = [f"{amount} * {prices.get(name, '0')}" for name, amount in amounts.items()]
    return _answer_with(results, "calculator", " + ".join(terms))


def _years(results: Results, first: str, second: str) -> Move:
    return _between(results, first, second)


def _years_of_three(results: Results, first: str, second: str, third: str) -> Move:
    return _between(results, first, second, third)


def _between(results: Results, *names: str) -> Move:
    years = []
    for name in names:
        year = _facts(results, name).get("year")
        if year is None:
            return "search", name
        years.append(year)
    if len(years) == 2:
        return _answer_with(results, "calculator", f"abs({years[0]} - {years[1]})")
    listed = ", ".join(years)
    return _answer_with(results, "calculator", f"max({listed}) - min({listed})")


def _visitors(results: Results, of: str) -> Move:
    name, relations = read_question(f"Where was {of} born?")
    for relation in relations:
        value = _facts(results, name).get(relation)
        if value is None:
            return "search", name
        name = value
    return _ask(results, f"SELECT visitors FROM towns WHERE name = '{name}'")


def _note(results: Results, noted: str, question: str) -> Move:
    name, [asked] = read_question(question)
    facts = _facts(results, name)
    if asked not in facts:
        return "search", name
    for phrase in noted.split(" and "):
        for relation, about in RELATIONS.items():
            if about.inner and phrase == about.inner.format(name) and ("note", facts[relation]) not in results:
                return "note", facts[relation]
    return "answer", facts[asked]


def _answer_with(results: Results, tool: str, text: str) -> Move:
    """Call a tool, and answer with what it gives."""
    result = results.get((tool, text))
    return (tool, text) if result is None else ("answer", result)


def _ask(results: Results, query: str) -> Move:
    """Answer with the only value of a query."""
    result = results.get(("sql", query))
    return ("sql", query) if result is None else ("answer", result.splitlines()[-1])


def _facts(results: Results, name: str) -> dict[str, str]:
    """What passages say of a name."""
    facts: dict[str, str] = {}
    for (tool, _), text in results.items():
        for line in text.splitlines() if tool == "search" else ():
            title, _, said = line.partition(": ")
            if title == name:
                facts |= read_facts(name, said)
    return facts


_PLANS: dict[str, Callable[..., Move]] = {
    r"How much is this: (.+)\?": _calculate,
    r"How many n in range\((\d+), (\d+)\) satisfy (.+)\?": _count,
    r"What is the sum of (.+) for n in range\((\d+), (\d+)\)\?": _sum,
    r"What is the price of (\w+)\?": _price,
    r"How many kg of (\w+) are in stock\?": _stock,
    r"How many kg of (\w+) did (\w+) order\?": _ordered,
    r"Which item has the highest price\?": _dearest,
    r"How much does (\w+) pay for everything\?": _pays,
    r"Who ordered the most (\w+)\?": _best_customer,
    r"What does this order cost: (.+)\?": _order,
    r"How many years lie between the first and the last of (.+), (.+) and (.+)\?": _years_of_three,
    r"How many years lie between (.+) and (.+)\?": _years,
    r"How many visitors does the birthplace of (.+) have\?": _visitors,
    r"Write (.+?)(?:, as two notes,)? on the note pad\. (.+)": _note,
}
