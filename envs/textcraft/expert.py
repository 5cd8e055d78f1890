"""A planner that knows what the game shows: its commands, its goal, and the answers to actions.

Which ingredients are tags is not shown. If no command makes "planks", but several make something that ends in that
word, such as "oak planks", the planner takes one of these; if such a craft is refused, it tries the next one, and at
last to get the thing itself.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import inf

from envs.core import Info
from envs.textcraft.recipes import words

FEWEST_OF_A_KIND = 3  # outputs that end alike
_COMMAND = re.compile(r"craft ([0-9]+) (.*) using (.*)")
_COUNTED = re.compile(r"([0-9]+) (.*)")
_IN_INVENTORY = re.compile(r"\[(.*?)\] \(([0-9]+)\)")


@dataclass(frozen=True)
class _Command:
    output: str
    count: int
    inputs: tuple[tuple[str, int], ...]


class TextCraftExpert:
    """Plans anew at each turn, so it can follow any agent."""

    def reset(self, observation: str, info: Info) -> None:  # noqa: ARG002
        commands, _, goal = observation.partition("\n\nGoal: craft ")
        self._goal = goal.removesuffix(".")
        lines = [line for line in commands.splitlines() if _COMMAND.fullmatch(line)]
        self._commands: dict[str, list[_Command]] = {}
        for command in filter(None, map(_read, lines)):
            self._commands.setdefault(command.output, []).append(command)
        self._have: dict[str, int] = {}
        self._wrong: set[tuple[str, str]] = set()  # (ingredient, item that is not of this kind)
        self._costs: dict[tuple[str, frozenset[str]], float] = {}

    def observe(self, action: str, observation: str, info: Info) -> None:  # noqa: ARG002
        if observation.startswith("Inventory:"):
            self._have = {item: int(count) for item, count in _IN_INVENTORY.findall(observation)}
        elif observation.startswith("Got ") and (found := _COUNTED.fullmatch(observation.removeprefix("Got "))):
            self._add(found[2], int(found[1]))
        elif observation.startswith("Crafted ") and (made := _read(action)):
            for item, count in made.inputs:
                self._add(item, -count)
            found = _COUNTED.fullmatch(observation.removeprefix("Crafted "))
            if found:
                self._add(words(found[2]), int(found[1]))
        elif observation.startswith("Could not find a valid recipe") and (made := _read(action)):
            self._learn(made)

    def _add(self, item: str, count: int) -> None:
        left = self._have.get(words(item), 0) + count
        self._have[words(item)] = max(left, 0)

    def _learn(self, made: _Command) -> None:
        """An item that stood for another name is not of this kind."""
        for command in self._commands.get(made.output, ()):
            pairs = zip(command.inputs, made.inputs, strict=False)
            self._wrong |= {(name, item) for (name, _), (item, _) in pairs if name != item}
        self._costs.clear()

    def act(self) -> str:
        return self._towards(self._goal, 1, frozenset()) or "inventory"

    def _towards(self, item: str, count: int, above: frozenset[str]) -> str | None:
        """The first action on the way to having `count` of an item; None if there are as many."""
        if self._have.get(item, 0) >= count:
            return None
        commands = [one for one in self._commands.get(item, ()) if above.isdisjoint(self._names(one))]
        if not commands:
            return f"get {count - self._have.get(item, 0)} {item}"
        best = min(commands, key=self._cost_of)
        inputs = [(self._stand_in(name, number), number) for name, number in best.inputs]
        for name, number in inputs:
            if action := self._towards(name, number, above | {item}):
                return action
        using = ", ".join(f"{number} {name}" for name, number in inputs)
        return f"craft {best.count} {item} using {using}"

    def _names(self, command: _Command) -> set[str]:
        return {name for name, _ in command.inputs}

    def _stand_in(self, name: str, count: int) -> str:
        """The item to use for an ingredient: itself, or one of its kind that is there, or that takes the least."""
        kinds = [kind for kind in self._similar(name) if self._cost(kind, frozenset([name])) < inf]
        there = [kind for kind in kinds if self._have.get(kind, 0) >= count]
        return there[0] if there else min(kinds, key=self._cost, default=name)

    def _similar(self, name: str) -> list[str]:
        """What may be of the kind `name`."""
        if name in self._commands:
            return []
        outputs = [item for item in self._commands if item.endswith(f" {name}")]
        return [item for item in outputs if (name, item) not in self._wrong and len(outputs) >= FEWEST_OF_A_KIND]

    def _cost(self, item: str, above: frozenset[str] = frozenset()) -> float:
        """How many actions an item takes, about; infinite if it takes one of `above`."""
        if item in above:
            return inf
        key = item, above
        if key not in self._costs:
            inside = above | {item}
            if item in self._commands:
                cost = min(self._cost_of(one, inside) for one in self._commands[item])
            else:
                cost = min((self._cost(kind, inside) for kind in self._similar(item)), default=1.0)
                cost = cost if cost < inf else 1.0
            self._costs[key] = cost
        return self._costs[key]

    def _cost_of(self, command: _Command, above: frozenset[str] = frozenset()) -> float:
        return 1 + sum(self._cost(name, above) for name, _ in command.inputs)


def _read(command: str) -> _Command | None:
    found = _COMMAND.match(command)
    parts = [_COUNTED.fullmatch(part.strip()) for part in found[3].split(",")] if found else []
    if not found or not all(parts):
        return None
    inputs = tuple((words(part[2]), int(part[1])) for part in parts if part)
    return _Command(words(found[2]), int(found[1]), inputs)
