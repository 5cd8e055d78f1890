"""A conversation of two people who act in turn, by SOTOPIA's rules (sotopia-lab/sotopia @ a0aaafb, MIT)."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

NONE, SPEAK, GESTURE, ACT, LEAVE = "none", "speak", "non-verbal communication", "action", "leave"
WITH_TEXT = {SPEAK: "what you say", GESTURE: "expression or gesture", ACT: "physical action"}
KINDS = (NONE, *WITH_TEXT, LEAVE)
# As they are listed for a policy that writes one of them.
ACTIONS = (*(f"{kind}[<{text}>]" for kind, text in WITH_TEXT.items()), NONE, LEAVE)
MAX_TURNS = 20  # of both people
MOST_STALE = 2  # turns of both in a row in which nothing is done
_BRACKETS = re.compile(rf"({'|'.join(map(re.escape, KINDS))})\s*(?:\[(.*)\])?", re.DOTALL)


@dataclass(frozen=True)
class Action:
    """What a person does in a turn."""

    kind: str
    argument: str = ""

    def told(self) -> str:
        """As the reference writes it after the person's name."""
        if self.kind == SPEAK:
            return f'said: "{self.argument}"'
        return {NONE: "did nothing", LEAVE: "left the conversation"}.get(self.kind, f"[{self.kind}] {self.argument}")


def read_action(text: str) -> Action | None:
    """The action in a text: `speak[Hello.]`, or the reference's JSON; None if there is none."""
    text = text.strip()
    if found := _BRACKETS.fullmatch(text):
        return _action(found[1], found[2] or "")
    start, end = text.find("{"), text.rfind("}")
    try:
        read = json.loads(text[start : end + 1])
        return _action(read["action_type"], read.get("argument", ""))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _action(kind: object, argument: object) -> Action | None:
    if kind not in KINDS or not isinstance(argument, str) or (kind in WITH_TEXT and not argument.strip()):
        return None
    return Action(str(kind), argument.strip() if kind in WITH_TEXT else "")


class Conversation:
    """The turns so far."""

    def __init__(self, names: tuple[str, str], max_turns: int = MAX_TURNS) -> None:
        self.names, self.max_turns = names, max_turns
        self.turns: list[Action] = []

    @property
    def next(self) -> int:
        """Whose turn it is: 0 or 1."""
        return len(self.turns) % 2

    def add(self, action: Action) -> None:
        """The next person acts."""
        self.turns.append(action)

    @property
    def why_over(self) -> str:
        """Why the conversation is over; empty if it is not."""
        if any(action.kind == LEAVE for action in self.turns[-2:]):
            return "one has left"
        if len(self.turns) > MOST_STALE and all(action.kind == NONE for action in self.turns[-MOST_STALE - 1 :]):
            return "nothing was done for too long"
        return "the conversation is too long" if len(self.turns) >= self.max_turns else ""

    def told(self, first: int = 0) -> str:
        """The turns from `first` on, as people read them; a turn without an action is empty."""
        lines = []
        for number, action in enumerate(self.turns[first:], start=first):
            done = f"{self.names[number % 2]} {action.told()}" if action.kind != NONE else ""
            lines.append(f"Turn #{number}: {done}")
        return "\n\n".join(lines)

    def history(self) -> str:
        """The turns as the judge reads them: without those in which nothing was done."""
        return "\n".join(
            f"Turn #{number}\n{self.names[number % 2]} {action.told()}"
            for number, action in enumerate(self.turns)
            if action.kind != NONE
        )
