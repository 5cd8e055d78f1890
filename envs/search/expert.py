"""A scripted player of the generated world that knows only what it was shown."""

from __future__ import annotations

import re

from envs.core import Info
from envs.search.generate import RELATIONS, UNKNOWN


class SearchExpert:
    """Reads a question of the generated world, searches for one name after the other, and answers."""

    def reset(self, observation: str, info: Info) -> None:  # noqa: ARG002
        """A new episode. Raises `ValueError` for a question that `envs.search.generate` does not ask."""
        self.start, self.relations = read_question(observation)
        self.known: dict[str, dict[str, str]] = {}  # facts by name
        self.asked: set[str] = set()

    def act(self) -> str:
        """Search for the next name that is not known, or answer."""
        name = self.start
        for relation in self.relations:
            facts = self.known.get(name)
            if facts is None:
                return f"answer[{UNKNOWN}]" if name in self.asked else f"search[{name}]"
            if relation not in facts:
                return f"answer[{UNKNOWN}]"
            name = facts[relation]
        return f"answer[{name}]"

    def observe(self, action: str, observation: str, info: Info) -> None:  # noqa: ARG002
        """Read what a search found; the latest record of a name counts."""
        if asked := re.fullmatch(r"search\[(.*)\]", action, re.DOTALL):
            self.asked.add(asked[1])
        latest: dict[str, int] = {}
        for line in observation.splitlines():
            title, _, text = line.partition(": ")
            record = re.match(r"In a record of (\d+): ", text)
            year, text = (int(record[1]), text[record.end() :]) if record else (0, text)
            alias = re.match(rf"{re.escape(title)}, called ([^,]+),", text)
            names = [title, *([alias[1]] if alias else [])]
            # Of a name that was not searched for, a later record may not have been found.
            if year >= latest.get(title, 0) and (not record or self.asked.intersection(names)):
                latest[title] = year
                self.known.update(dict.fromkeys(names, read_facts(title, text)))


_FACTS = {  # of a name: how its passage says each
    "occupation": r"{}(?:, called [^,]+,)? is a (\w+), (?:born|married)",
    "birthplace": r"born in ([^,.]+?)(?:,| and |\.)",
    "spouse": r"married to ([^,.]+?)(?:,| and |\.)",
    "teacher": r"taught by ([^,.]+?)\.",
    "region": r"is a town in ([^,.]+?)(?: on the river|\.)",
    "river": r"on the river ([^,.]+?)\.",
    "mayor": r"Its mayor is ([^,.]+?)\.",
    "author": r"is an? \w+ by ([^,.]+?)(?:,| and |\.)",
    "setting": r"set in ([^,.]+?)(?:,| and |\.)",
    "year": r"from (\d+)\.",
}


def read_facts(name: str, text: str) -> dict[str, str]:
    """The facts that a passage of the generated world tells about a name, by relation."""
    return {
        relation: match[1]
        for relation, pattern in _FACTS.items()
        if (match := re.search(pattern.format(re.escape(name)), text))
    }


def read_question(text: str) -> tuple[str, list[str]]:
    """The name that a question begins with, and the relations to follow. Raises `ValueError`."""
    for last, relation in RELATIONS.items():
        before, after = relation.ask.split("{}")
        if text.startswith(before) and text.endswith(after):
            name, relations = text[len(before) : len(text) - len(after)], [last]
            while inner := re.match(r"the (\w+) of ", name):
                relations.insert(0, inner[1])
                name = name[inner.end() :]
            return name, relations
    raise ValueError(f"cannot read the question {text!r}")
