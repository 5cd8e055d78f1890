"""People and scenarios of SOTOPIA, and what each of two people is told about them.

The texts are those of `ScriptBackground` and of the bios in `sotopia/envs/parallel.py`, as in the prompts that were
published with the data (sotopia-lab/sotopia @ a0aaafb, MIT).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from pathlib import Path
from typing import Any

from envs.core import NoDataError

FILES = ("environment_profiles.jsonl", "agent_profiles.jsonl", "env_agent_combo_storages.jsonl")
USED = "sotopia_pi_used_env.json"  # lists the hard scenarios
HARD = "sotopia_hard_env"
_GENDERS = {"Man": "male", "Woman": "female", "Nonbinary": "nonbinary"}
_TAG = re.compile(r"</?(extra_info|strategy_hint|clarification_hint)>")


class Relationship(IntEnum):
    """How well two people know each other."""

    STRANGER = 0
    KNOW_BY_NAME = 1
    ACQUAINTANCE = 2
    FRIEND = 3
    ROMANTIC_RELATIONSHIP = 4
    FAMILY_MEMBER = 5


@dataclass(frozen=True)
class Person:
    """A person, whom others see in part."""

    first_name: str
    last_name: str
    age: int
    occupation: str
    gender: str
    pronouns: str
    public_info: str
    personality: str
    secret: str

    @property
    def name(self) -> str:
        """First and last name."""
        return f"{self.first_name} {self.last_name}"

    def background(self, relationship: Relationship, own: bool) -> str:
        """What is known about the person: all of it with `own`, otherwise what the relationship lets the other know."""
        who = f"is a {self.age}-year-old {_GENDERS.get(self.gender, '')} {self.occupation.lower()}. "
        who += f"{self.pronouns} pronouns. {self.public_info} "
        character = f"Personality and values description: {self.personality} "
        secret = f"{self.first_name}'s secrets: {self.secret}"
        if own:
            return f"{self.name} {who}{character}{secret}"
        if relationship == Relationship.STRANGER:
            return ""
        if relationship == Relationship.KNOW_BY_NAME:
            return f"{self.name} "
        if relationship == Relationship.ACQUAINTANCE:
            return f"{self.name} {who}"
        return f"{self.name} {who}{character}"


@dataclass(frozen=True)
class Scenario:
    """A situation of two people, with a goal for each."""

    text: str
    goals: tuple[str, str]
    relationship: Relationship
    kind: str  # the source of the scenario, as in the data


def person(row: Mapping[str, Any]) -> Person:
    """A row of `agent_profiles.jsonl`."""
    return Person(
        row["first_name"], row["last_name"], int(row["age"]), row["occupation"], row["gender"], row["gender_pronoun"],
        row["public_info"], row["personality_and_values"], row["secret"],
    )  # fmt: skip


def scenario(row: Mapping[str, Any]) -> Scenario:
    """A row of `environment_profiles.jsonl`. Hints in tags are shown, as in the reference."""
    first, second = (_TAG.sub("", goal) for goal in row["agent_goals"])
    relationship = Relationship(int(row["relationship"]))
    return Scenario(_TAG.sub("", row["scenario"]), (first, second), relationship, row["source"])


def context(scenario: Scenario, people: Sequence[Person], viewer: int | None) -> str:
    """What a person is told before the conversation, by its place; everything with None."""
    lines = ["Here is the context of this interaction:", f"Scenario: {scenario.text}"]
    lines.append(f"Participants: {people[0].name} and {people[1].name}")
    for place, who in enumerate(people):
        known = who.background(scenario.relationship, own=viewer in (None, place))
        lines.append(f"{who.name}'s background: {known}")
    for place, who in enumerate(people):
        goal = scenario.goals[place] if viewer in (None, place) else "Unknown"
        lines.append(f"{who.name}'s goal: {goal}")
    return "\n".join(lines)


@dataclass(frozen=True)
class Stock:
    """All people and scenarios, and who meets in which: a scenario's id and the ids of two people."""

    scenarios: Mapping[str, Scenario]
    people: Mapping[str, Person]
    combinations: Mapping[str, tuple[str, str, str]]
    hard: frozenset[str]  # ids of scenarios


@lru_cache(maxsize=4)
def read_stock(folder: str) -> Stock:
    """The files of SOTOPIA. Raises `NoDataError` for a file that is missing or cannot be read."""
    try:
        scenarios, people, combinations = ([*_rows(Path(folder) / name)] for name in FILES)
        hard = json.loads((Path(folder) / USED).read_text(encoding="utf-8"))[HARD]
        return Stock(
            {row["env_id"]: scenario(row) for row in scenarios},
            {row["agent_id"]: person(row) for row in people},
            {row["combo_id"]: (row["env_id"], *row["agent_ids"]) for row in combinations},
            frozenset(hard),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise NoDataError(
            f"{folder} has no data of SOTOPIA ({error}); it needs {', '.join((*FILES, USED))}. env.scenarios=embedded "
            "needs no data"
        ) from error


def _rows(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines if line.strip()]
