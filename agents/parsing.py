"""Read an action from the text that a policy wrote. The parse status is kept apart from rewards.

A parser has two sides: `parse` reads an action, and `request` is the sentence that asks a model for this form.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from agents.episode import ParseStatus
from envs.core import Info
from envs.tags import PairedTags


class Parser(Protocol):
    """A text form of actions."""

    request: str  # asks for this form, in a system prompt

    def parse(self, text: str) -> str | None:
        """The action in `text`, without surrounding blanks; None if there is none."""

    def write(self, action: str) -> str:
        """`action` in this form: `parse` returns it again."""


@dataclass(frozen=True)
class Tagged:
    """`<action>go to desk 1</action>`: the last one counts, as text before it may discuss others."""

    tag: str = "action"

    @property
    def request(self) -> str:
        return f"End your answer with the action between tags: <{self.tag}>…</{self.tag}>"

    def parse(self, text: str) -> str | None:
        found = PairedTags(self.tag, ignore_case=True).findall(text)
        return (found[-1].content.strip() or None) if found else None

    def write(self, action: str) -> str:
        return f"<{self.tag}>{action}</{self.tag}>"


# Kinds of reasoning, and when a turn begins with them; as in RLVMR (arXiv 2507.22844), in our words.
REASONING = {
    "planning": "the steps of the whole task, at its beginning or when the plan was wrong",
    "explore": "what else could be tried, when something is missing or unexpected",
    "reflection": "why the last action failed, and what to do instead",
    "monitor": "what of the plan is done, and what comes next",
}


@dataclass(frozen=True)
class MetaReasoning(Tagged):
    """`Tagged` after one sentence of reasoning in the tags of its kind, for `algo=rlvmr`."""

    @property
    def request(self) -> str:
        kinds = "; ".join(f"<{name}>…</{name}>: {when}" for name, when in REASONING.items())
        return f"Begin your answer with one sentence in exactly one of these pairs of tags. {kinds}. {super().request}"


@dataclass(frozen=True)
class Line:
    """The last line that is not blank."""

    request: str = "Answer with the action alone, on one line."

    def parse(self, text: str) -> str | None:
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return lines[-1] if lines else None

    def write(self, action: str) -> str:
        return action


@dataclass
class Whole:
    """The whole answer, for environments that read calls and text in it themselves."""

    request: str = ""

    def parse(self, text: str) -> str | None:
        return text.strip()

    def write(self, action: str) -> str:
        return action


@dataclass(frozen=True)
class Json:
    """The last JSON object with the key, alone or as the arguments of a tool call.

    `{"action": "look"}`, `{"name": "act", "arguments": {"action": "look"}}`, and both in a sentence or in tags such as
    `<tool_call>`; arguments may be JSON in a string, as OpenAI's are.
    """

    key: str = "action"

    @property
    def request(self) -> str:
        return f'End your answer with the action as JSON: {{"{self.key}": "…"}}'

    def parse(self, text: str) -> str | None:
        found = None
        for value in json_objects(text):
            found = self._action(value) or found
        return found

    def _action(self, value: dict[str, Any]) -> str | None:
        arguments = value.get("arguments", value)
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments)
            except (ValueError, RecursionError):
                return None
        action = arguments.get(self.key) if isinstance(arguments, dict) else None
        return action.strip() or None if isinstance(action, str) else None

    def write(self, action: str) -> str:
        return json.dumps({self.key: action}, ensure_ascii=False)


MOST_BROKEN = 1000  # objects
_OBJECT = re.compile(r"\{(?=[ \t\n\r]*[\"}])")  # one may begin here


def json_objects(text: str) -> Iterator[dict[str, Any]]:
    """The JSON objects in a text, in order; anything between them is skipped.

    The text behind `MOST_BROKEN` beginnings of objects that cannot be read is not looked at: each may take as long as
    reading all of the text.
    """
    decoder = json.JSONDecoder()
    place = broken = 0
    while (found := _OBJECT.search(text, place)) and broken < MOST_BROKEN:
        try:
            value, place = decoder.raw_decode(text, found.start())
        except (ValueError, RecursionError):  # also numbers and depths that Python refuses
            place = found.start() + 1
            broken += 1
        else:
            yield value


THINK_OPEN, THINK_CLOSE = "<think>", "</think>"


def answer_part(text: str, prefilled: bool = False) -> str | None:
    """The text after the reasoning: all of `text` if there is no reasoning, None if the reasoning has no end.

    With `prefilled` the prompt has already opened the reasoning, so `text` starts inside it.
    """
    _, closed, after = text.rpartition(THINK_CLOSE)
    if closed:
        return after
    return None if prefilled or THINK_OPEN in text else text


def check_action(text: str, action: str | None, finished: bool, info: Info) -> tuple[str, ParseStatus]:
    """The action to send to the environment and the parse status, for a text in which `action` was read."""
    if not finished:
        status = ParseStatus.TRUNCATED
    elif action is None:
        status = ParseStatus.MALFORMED
    else:
        admissible = info["admissible"]
        status = ParseStatus.OK if admissible is None or fits(action, admissible) else ParseStatus.ILLEGAL
    # Without an action, the environment gets the raw text and answers it like any invalid action.
    return text if action is None else action, status


# A slot for free text: `<…>` in the brackets at the end of an admissible action. `<…>` anywhere else is text.
SLOT = re.compile(r"(?<=\[)<[^<>]+>(?=\]\Z)")


def has_slot(action: str) -> bool:
    """Whether an admissible action has a slot for free text, as `search[<your query>]` has."""
    return SLOT.search(action) is not None


def fits(action: str, admissible: Sequence[str]) -> bool:
    """Whether `action` is one of the admissible actions; any text may stand in their slots.

    `search[red shoes]` fits `search[<your query>]`.
    """
    if action in admissible:
        return True
    slots = (SLOT.split(pattern) for pattern in admissible if pattern.endswith(">]"))
    return any(len(parts) == 2 and action.startswith(parts[0]) and action.endswith("]") for parts in slots)


_CHINESE = re.compile(r"[\u4e00-\u9fff]")
_LAST_CHARACTERS = 20  # of a text without tags, which is played nevertheless


def project_webshop(text: str) -> tuple[str, bool]:
    """The action that verl-agent plays for an answer in WebShop, and whether it counts as valid.

    The text between the first `<action>` and the first `</action>`, in lower case. Whether the action is admissible
    does not matter; tags of reasoning do. As `webshop_projection` of `langfengQ/verl-agent`, where a closing tag
    before the opening one gives a valid empty action.
    """
    lowered = text.lower()
    start, end = lowered.find("<action>"), lowered.find("</action>")
    if start < 0 or end < 0:
        return lowered[-_LAST_CHARACTERS:], False
    valid = "<think>" in text and "</think>" in text and not _CHINESE.search(text)
    return lowered[start + len("<action>") : end].strip(), valid


SOKOBAN_ACTIONS = ("up", "down", "left", "right", "still")


def project_sokoban(text: str) -> tuple[str, bool]:
    """The action that verl-agent plays for an answer in Sokoban, and whether it counts as valid.

    The first of `SOKOBAN_ACTIONS`, in this order, that the text between the first `<action>` and the first `</action>`
    contains, in any case; "still" if there is none, which is invalid. As verl-agent's `sokoban_projection`.
    """
    lowered = text.lower()
    start, end = lowered.find("<action>"), lowered.find("</action>")
    said = "" if start < 0 or end < 0 else lowered[start + len("<action>") : end]
    action = next((name for name in SOKOBAN_ACTIONS if name in said), None)
    return action or "still", action is not None and "<think>" in text and "</think>" in text
