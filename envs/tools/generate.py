"""Generated questions that need tools.

    arithmetic   How much is this: (47 + 12) * 38?                                                    calculator
    program      How many n in range(12, 184) satisfy n * n % 7 == 2?                                 python
    table        How many kg of tea did Mira order?                                                   sql
    order        What does this order cost: 17 kg tea, 3 kg wool?                                     sql, calculator
    years        How many years lie between The Silent Mill and The Paper Tower?                      search, calculator
    visitors     How many visitors does the birthplace of Maren Holt have?                            search, sql
    note         Write the author of The Silent Mill on the note pad. Where is The Silent Mill set?   search, note

Tables are made for each question. Passages are those of the generated world of `envs.search.generate`. The same version
and sizes give the same questions, and a question is in one split.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from envs.search.generate import PLAIN, RELATIONS, Thing, World, is_held_out
from envs.tools.calculator import calculator

VERSION = 1  # raise it when the same sizes would give other questions

Table = dict[str, Any]  # columns, rows

GOODS = (
    "rice", "flour", "sugar", "salt", "pepper", "tea", "coffee", "cocoa", "honey", "butter", "cheese", "barley",
    "wheat", "garlic", "ginger", "cinnamon", "mustard", "chocolate", "soap", "wax", "wool", "cotton", "silk", "linen",
    "leather", "paper", "glue", "clay", "copper", "tin",
)  # fmt: skip
CUSTOMERS = ("Mira", "Tom", "Lucia", "Ben", "Aisha", "Noor", "Piet", "Sofia", "Jan", "Emil", "Rita", "Otto")


@dataclass(frozen=True)
class Question:
    """A question, and what its payload has. `key` decides whether it is for evaluation."""

    text: str
    answer: str
    key: str
    needed: Sequence[str]  # values that the solution takes from results, see `envs.tools.questions`
    least_calls: int
    tables: Mapping[str, Table] | None = None
    searches: bool = False
    notes: Sequence[str] | None = None


class Surroundings:
    """What questions are made from: a world, and what a search in it finds."""

    def __init__(self, world: World, found: Callable[[str], frozenset[str]]) -> None:
        """`found` gives the ids of the passages for some words."""
        self.world, self.found = world, found
        self._plain: dict[str, list[Thing]] = {}  # things without traps, by kind
        for thing in world.things.values():
            if thing.condition == PLAIN:
                self._plain.setdefault(thing.kind, []).append(thing)

    def pick(self, rng: random.Random, kind: str) -> Thing:
        """A thing that a search for its name finds."""
        while True:
            thing = rng.choice(self._plain[kind])
            if thing.gold in self.found(thing.name):
                return thing


# -- kinds of questions -----------------------------------------------------------------------------------------------
def _arithmetic(rng: random.Random, around: Surroundings, hard: bool) -> Question:
    del around
    a, b, c, d, e, f = (rng.randrange(1000, 10_000) if hard else rng.randrange(11, 100) for _ in range(6))
    easy_forms = (f"{a} * {b} + {c}", f"({a} + {b}) * {c}", f"{a} * {b} - {c} * {d}", f"({a} - {b}) * {c} + {d}")
    hard_forms = (f"({a} + {b}) * ({c} - {d}) * {e} - {f}", f"{a} * {b} * {c} - {d} * ({e} + {f})")
    expression = rng.choice(hard_forms if hard else easy_forms)
    answer = calculator(expression)
    text = f"How much is this: {expression}?"
    return Question(text, answer, text, [answer], 1)


def _program(rng: random.Random, around: Surroundings, hard: bool) -> Question:
    del around
    first, last = rng.randrange(11, 100), rng.randrange(101, 100_000 if hard else 200)
    numbers = range(first, last)
    modulus, other = rng.randrange(3, 30), rng.randrange(31, 60)
    n = rng.choice(numbers)
    if rng.random() < 0.5:
        remainder, second = n * n % modulus, n % other
        also = f" and n % {other} == {second}" if hard else ""
        counted = (m for m in numbers if m * m % modulus == remainder and (not hard or m % other == second))
        text = f"How many n in range({first}, {last}) satisfy n * n % {modulus} == {remainder}{also}?"
        answer = str(sum(1 for _ in counted))
    else:
        text = f"What is the sum of n * n % {modulus} for n in range({first}, {last})?"
        answer = str(sum(m * m % modulus for m in numbers))
    return Question(text, answer, text, [answer], 1)


def _shop(rng: random.Random, hard: bool) -> dict[str, Table]:
    """Items with prices, and orders. Prices are all different."""
    names = rng.sample(GOODS, 20 if hard else 8)
    prices = rng.sample(range(11, 100), len(names))
    items = [[name, price, rng.randrange(11, 100)] for name, price in zip(names, prices, strict=True)]
    customers = rng.sample(CUSTOMERS, 8 if hard else 4)
    pairs = rng.sample([(who, name) for who in customers for name in names], 60 if hard else 14)
    orders = [[who, name, rng.randrange(1, 40)] for who, name in pairs]
    return {
        "items": {"columns": ["name", "price", "stock"], "rows": items},
        "orders": {"columns": ["customer", "item", "amount"], "rows": orders},
    }


def _table(rng: random.Random, around: Surroundings, hard: bool) -> Question:
    del around
    tables = _shop(rng, hard)
    items, orders = tables["items"]["rows"], tables["orders"]["rows"]
    price = {name: price for name, price, _ in items}
    who, what, amount = rng.choice(orders)
    bought = {customer: n for customer, name, n in orders if name == what}
    most = max(bought.values())
    easy = [
        (f"What is the price of {what}?", str(price[what])),
        (f"How many kg of {what} are in stock?", str(next(stock for name, _, stock in items if name == what))),
        (f"How many kg of {what} did {who} order?", str(amount)),
        ("Which item has the highest price?", max(price, key=lambda name: price[name])),
    ]
    joined = [(f"How much does {who} pay for everything?", str(sum(price[i] * n for c, i, n in orders if c == who)))]
    if list(bought.values()).count(most) == 1:
        joined.append((f"Who ordered the most {what}?", max(bought, key=lambda name: bought[name])))
    text, answer = rng.choice(joined if hard else [*easy, *joined])
    return Question(text, answer, f"{text} {tables}", [answer], 1, tables)


def _order(rng: random.Random, around: Surroundings, hard: bool) -> Question:
    del around
    tables = _shop(rng, hard)
    chosen = rng.sample(tables["items"]["rows"], 4 if hard else 2)
    amounts = [rng.randrange(2, 40) for _ in chosen]
    listed = ", ".join(f"{n} kg {name}" for n, (name, _, _) in zip(amounts, chosen, strict=True))
    answer = str(sum(n * price for n, (_, price, _) in zip(amounts, chosen, strict=True)))
    text = f"What does this order cost: {listed}?"
    # One query is enough for who writes the sum into it.
    return Question(text, answer, f"{text} {tables}", [*(str(price) for _, price, _ in chosen), answer], 1, tables)


def _years(rng: random.Random, around: Surroundings, hard: bool) -> Question:
    first = around.pick(rng, "work")
    others = [around.pick(rng, "work") for _ in range(2 if hard else 1)]
    while any(other.name == first.name for other in others) or len({other.name for other in others}) < len(others):
        others = [around.pick(rng, "work") for _ in others]
    years = [int(thing.facts["year"]) for thing in (first, *others)]
    names = [thing.name for thing in (first, *others)]
    if hard:
        text = f"How many years lie between the first and the last of {names[0]}, {names[1]} and {names[2]}?"
    else:
        text = f"How many years lie between {names[0]} and {names[1]}?"
    answer = str(max(years) - min(years))
    gold = {first.gold, *(thing.gold for thing in others)}
    needed = list(dict.fromkeys([*map(str, years), answer]))
    return Question(text, answer, first.name, needed, 1 + _fewest_searches(gold, names, around), searches=True)


def _fewest_searches(gold: set[str], names: Sequence[str], around: Surroundings) -> int:
    """How many searches find all of `gold`, if each asks for one of the names or for several at once."""
    queries = [" ".join(some) for count in range(1, len(names) + 1) for some in combinations(names, count)]
    return next(
        count
        for count in range(1, len(names) + 1)
        if any(gold <= frozenset().union(*map(around.found, some)) for some in combinations(queries, count))
    )


def _visitors(rng: random.Random, around: Surroundings, hard: bool) -> Question:
    while True:
        thing = around.pick(rng, "work" if hard else "person")
        person = around.world.things[thing.facts["author"]] if hard else thing
        if person.condition == PLAIN and person.gold in around.found(person.name):
            break
    town = person.facts["birthplace"]
    names = [name for name, other in around.world.things.items() if other.kind == "town" and name != town]
    rows = [[name, rng.randrange(201, 1000), rng.randrange(1, 30)] for name in (town, *rng.sample(names, 5))]
    answer = str(rows[0][1])
    rng.shuffle(rows)
    of = f"the author of {thing.name}" if hard else thing.name
    text = f"How many visitors does the birthplace of {of} have?"
    tables = {"towns": {"columns": ["name", "visitors", "hotels"], "rows": rows}}
    needed = [*([person.name] if hard else []), town, answer]
    at_once = person.gold in around.found(thing.name)
    return Question(text, answer, thing.name, needed, 2 if at_once else 3, tables, searches=True)


def _note(rng: random.Random, around: Surroundings, hard: bool) -> Question:
    thing = around.pick(rng, rng.choice(("person", "work") if hard else ("person", "town", "work")))
    relations = [name for name, relation in RELATIONS.items() if relation.of == thing.kind]
    noted = rng.sample([name for name in relations if RELATIONS[name].inner], 2 if hard else 1)
    asked = rng.choice([name for name in relations if name not in noted])
    values = [thing.facts[name] for name in noted]
    phrases = [RELATIONS[name].inner.format(thing.name) for name in noted]
    what = f"{phrases[0]} and {phrases[1]}, as two notes," if hard else phrases[0]
    text = f"Write {what} on the note pad. {RELATIONS[asked].ask.format(thing.name)}"
    answer = thing.facts[asked]
    return Question(
        text, answer, thing.name, list(dict.fromkeys([*values, answer])), 1 + len(noted), searches=True, notes=values
    )


KINDS: dict[str, Callable[[random.Random, Surroundings, bool], Question]] = {
    "arithmetic": _arithmetic,
    "program": _program,
    "table": _table,
    "order": _order,
    "years": _years,
    "visitors": _visitors,
    "note": _note,
}
SPLITS = {"train": (False, False), "valid": (True, False), "harder": (True, True)}  # held out, hard


def draw(split: str, count: int, around: Surroundings) -> list[tuple[str, Question]]:
    """`count` questions of a split with their kinds, of each kind equally many. None comes twice."""
    held_out, hard = SPLITS[split]
    drawn: list[tuple[str, Question]] = []
    seen: set[str] = set()
    kinds = list(KINDS)
    rng = random.Random(f"{VERSION} {split}")
    while len(drawn) < count:
        kind = kinds[len(drawn) % len(kinds)]
        question = KINDS[kind](rng, around, hard)
        name = f"{question.text} {question.tables}"
        if is_held_out(question.key) == held_out and name not in seen:
            seen.add(name)
            drawn.append((kind, question))
    return drawn
