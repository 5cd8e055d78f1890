"""Questions about a small world of people and towns, and a tool that looks up names: `polyturn/Lookup-v0`.

    Which colour is the house of the baker of Ostrow?
    > search: Ostrow
    Ostrow: baker Anna, smith Emil, weaver Rosa.
    > search: Anna
    Anna: trade baker, town Ostrow, house green, pet goose, friend Emil.
    > answer: green

Every task has its own world, so only a search can reveal its answer. A question with two hops needs two searches, and
the second depends on the result of the first. `answer` ends the episode; the reward is 1.0 if the text is right after
`normalise`, and 0.0 otherwise.

Rules reward turns: `info["turn_reward"]` is 1.0 for a search that found the next needed fact for the first time, and
`info["tool_result"]` says whether a search was made, whatever it found. `info["admissible"]` lists the searches and
answers that the text so far suggests; others can be played too.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

from envs.core import Info, Task, TextEnv
from envs.seed_tasks import SeedTasks

ENV_ID = "polyturn/Lookup-v0"
TOWNS = (
    "Altdorf", "Brask", "Corvo", "Dunmore", "Elster", "Ferrol", "Gimli", "Halden",
    "Isola", "Jelling", "Kirkby", "Lovran", "Morlaix", "Narva", "Ostrow", "Pinsk",
)  # fmt: skip
PEOPLE = (
    "Anna", "Bruno", "Clara", "Dario", "Emil", "Flora", "Greta", "Hugo", "Irene", "Jonas", "Karin",
    "Leo", "Marta", "Nils", "Olga", "Pablo", "Rosa", "Sven", "Tilda", "Ugo", "Vera", "Wanda",
)  # fmt: skip
TRADES = ("baker", "cooper", "glazier", "miller", "potter", "smith", "tailor", "weaver")
COLOURS = ("black", "blue", "brown", "green", "grey", "red", "white", "yellow")
PETS = ("canary", "cat", "dog", "goat", "goose", "hen", "pony", "rabbit")
TOWNS_OF_A_WORLD, TRADES_OF_A_TOWN = 3, 3
HELD_OUT = 8  # one of this many questions is for validation

# Questions about a person, by the name of the relation in search results.
ASKS = {
    "house": "Which colour is the house of {}?",
    "pet": "Which pet does {} keep?",
    "trade": "What is the trade of {}?",
    "town": "In which town does {} live?",
}
WHO = "Who is {}?"
ANYBODY = "Who lives in {}?"
ANY = "anything"  # stands for any relation

Facts: TypeAlias = dict[str, dict[str, str]]  # name -> relation -> its value, a name or another word


class Question(NamedTuple):
    """`text` asks for what `relations` lead to from `start`: from Ostrow by "baker" and "house" to a colour."""

    text: str
    start: str
    relations: tuple[str, ...]

    def solve(self, facts: Facts) -> tuple[list[str], list[str]]:
        """The names to look up, in order, and the right answers."""
        chain = [self.start]
        for relation in self.relations[:-1]:
            chain.append(facts[chain[-1]][relation])
        known, last = facts[chain[-1]], self.relations[-1]
        return chain, list(known.values()) if last == ANY else [known[last]]


def normalise(text: str) -> str:
    """Text for comparing answers: lower case, without punctuation, articles and extra blanks (as in SQuAD)."""
    return " ".join(word for word in re.findall(r"\w+", text.lower()) if word not in ("a", "an", "the"))


# -- worlds and questions ---------------------------------------------------------------------------------------------
def make_world(rng: random.Random) -> Facts:
    """Towns with their craftsmen, who are friends in a circle."""
    people = rng.sample(PEOPLE, TOWNS_OF_A_WORLD * TRADES_OF_A_TOWN)
    towns = rng.sample(TOWNS, TOWNS_OF_A_WORLD)
    friends = dict(zip(people, [*people[1:], people[0]], strict=True))
    facts: Facts = {town: {} for town in towns}
    for number, person in enumerate(rng.sample(people, len(people))):
        town = towns[number % TOWNS_OF_A_WORLD]
        trade = rng.choice([trade for trade in TRADES if trade not in facts[town]])
        facts[town][trade] = person
        facts[person] = {
            "trade": trade,
            "town": town,
            "house": rng.choice(COLOURS),
            "pet": rng.choice(PETS),
            "friend": friends[person],
        }
    return facts


def questions(facts: Facts) -> Iterator[Question]:
    """All questions about a world, with one hop or two."""
    for name, known in facts.items():
        if name in TOWNS:
            yield Question(ANYBODY.format(name), name, (ANY,))
        for relation, value in known.items():
            if relation in ASKS:
                yield Question(ASKS[relation].format(name), name, (relation,))
                continue
            someone = f"the {relation} of {name}"  # "the baker of Ostrow", "the friend of Anna"
            yield Question(WHO.format(someone), name, (relation,))
            for asked, template in ASKS.items():
                if facts[value][asked] not in (relation, name):  # the trade of the baker needs no search
                    yield Question(template.format(someone), name, (relation, asked))


def is_held_out(question: str) -> bool:
    """Whether a question is for validation. This depends only on its words, so it is in one split in every world."""
    return hashlib.sha256(question.encode()).digest()[0] % HELD_OUT == 0


def make_question(seed: int, held_out: bool) -> dict[str, Any]:
    """The payload of a task. Questions with one hop and with two are equally likely."""
    rng = random.Random(seed)
    hops = rng.choice((1, 2))
    while True:
        facts = make_world(rng)
        fitting = [q for q in questions(facts) if len(q.relations) == hops and is_held_out(q.text) == held_out]
        if fitting:  # some worlds have no held-out question with two hops
            break
    question = rng.choice(fitting)
    chain, answers = question.solve(facts)
    kind = "one hop" if hops == 1 else "two hops"
    return {"type": kind, "question": question.text, "chain": chain, "answers": answers, "facts": facts}


# -- playing ----------------------------------------------------------------------------------------------------------
class LookupEnv(TextEnv):
    """Answers searches from the task's facts. Without a task, `reset(seed=…)` makes a training question."""

    def __init__(self, max_turns: int = 8, render_mode: str | None = None) -> None:
        super().__init__(max_turns, render_mode)
        self._task: dict[str, Any] = {}  # the payload, which is never changed
        self._found: list[str] = []  # names looked up, in order

    def _begin(self, task: Any, seed: int | None) -> tuple[str, Info]:
        del seed  # it is in `np_random`
        if task is None:
            task = Task("", ENV_ID, payload=make_question(int(self.np_random.integers(2**31)), held_out=False))
        if not isinstance(task, Task) or "facts" not in task.payload:
            raise ValueError(f"{ENV_ID} needs a Task with the payload of envs.lookup.env.make_question, got {task!r}")
        self._task, self._found = dict(task.payload), []
        return self._task["question"], self._make_info()

    def _act(self, action: str) -> tuple[str, float, bool, Info]:
        tool, _, argument = action.partition(":")
        match tool.strip().lower():
            case "search":
                return self._search(normalise(argument))
            case "answer":
                right = normalise(argument) in map(normalise, self._task["answers"])
                told = self._make_info(score=float(right), success=right, turn_reward=0.0, tool_result=False)
                return "Right." if right else "Wrong.", float(right), True, told
        return "Say search: NAME or answer: TEXT.", 0.0, False, self._make_info(turn_reward=0.0, tool_result=False)

    def _search(self, wanted: str) -> tuple[str, float, bool, Info]:
        name = next((name for name in self._task["facts"] if normalise(name) == wanted), None)
        if name is None:
            return "Nothing found.", 0.0, False, self._make_info(turn_reward=0.0, tool_result=True)
        needed = name in self._task["chain"] and name not in self._found
        if name not in self._found:
            self._found.append(name)
        facts = ", ".join(f"{relation} {value}" for relation, value in self._task["facts"][name].items())
        return f"{name}: {facts}.", 0.0, False, self._make_info(turn_reward=float(needed), tool_result=True)

    def _make_info(self, **more: Any) -> Info:
        facts = self._task["facts"]
        found = [word for name in self._found for word in facts[name].values()]
        names = [word for word in [*re.findall(r"\w+", self._task["question"]), *found] if word in facts]
        return {
            "goal": self._task["question"],
            "type": self._task["type"],
            "admissible": [f"search: {name}" for name in dict.fromkeys(names)]
            + [f"answer: {word}" for word in dict.fromkeys(found)],
            "answers": list(self._task["answers"]),
            "state_key": f"looked up: {', '.join(sorted(self._found))}",
            **more,
        }

    def _save(self) -> Any:
        return self._task, list(self._found)

    def _load(self, saved: Any) -> None:
        self._task, self._found = saved[0], list(saved[1])


class LookupExpert:
    """Reads the question, looks up one name after the other, and answers."""

    def reset(self, observation: str, info: Info) -> None:  # noqa: ARG002
        self.start, self.relations = read_question(observation)
        self.facts: Facts = {}

    def act(self) -> str:
        name = self.start
        for relation in self.relations:
            if name not in self.facts:
                return f"search: {name}"
            known = self.facts[name]
            name = next(iter(known.values())) if relation == ANY else known[relation]
        return f"answer: {name}"

    def observe(self, action: str, observation: str, info: Info) -> None:  # noqa: ARG002
        if found := re.fullmatch(r"(\w+): (.+)\.", observation):
            self.facts[found[1]] = dict(fact.split(" ") for fact in found[2].split(", "))


def read_question(text: str) -> tuple[str, Sequence[str]]:
    """The start and the relations of a question. Raises `ValueError` for one that `questions` does not ask."""
    for asked, template in {**ASKS, "": WHO, ANY: ANYBODY}.items():
        before, after = template.split("{}")
        if text.startswith(before) and text.endswith(after):
            whom = text[len(before) : len(text) - len(after)]
            last = [asked] if asked else []
            if someone := re.fullmatch(r"the (\w+) of (\w+)", whom):
                return someone[2], [someone[1], *last]
            return whom, last
    raise ValueError(f"cannot read the question {text!r}")


class LookupTasks(SeedTasks):
    """Questions made from seeds. No question is in both splits, in any world."""

    def __init__(self, max_turns: int = 8, train_tasks: int = 1000, valid_tasks: int = 100) -> None:
        super().__init__(ENV_ID, max_turns, train_tasks, valid_tasks)

    def payload(self, split: str, seed: int) -> dict[str, Any]:
        return make_question(seed, held_out=split == "valid")

    def make(self) -> LookupEnv:
        return LookupEnv(self.max_turns)

    def expert(self) -> LookupExpert:
        return LookupExpert()
