r"""Pairs of tags in a text that a policy wrote, found in time linear in its length.

    ANSWER = PairedTags("answer")
    ANSWER.search("<answer>1</answer> <answer>2</answer>")       # Pair("answer", "1")
    ANSWER.findall("<answer>1</answer> <answer>2</answer>")      # both

The pairs are those of the pattern `<(a|b)>(.*?)</\1>` with DOTALL. Python's `re` looks for the end of every opening tag
again: a megabyte of opening tags without an end takes it minutes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple


class Pair(NamedTuple):
    """What stands between two tags, and their name as the first one has it."""

    name: str
    content: str


class PairedTags:
    """One or several tags. A pair holds no pair: the tags inside it are text."""

    def __init__(self, *names: str, ignore_case: bool = False) -> None:
        flags = re.IGNORECASE if ignore_case else re.NOFLAG
        either = "|".join(map(re.escape, names))
        self._opening = re.compile(f"<({either})>", flags)
        self._closing = re.compile(f"</({either})>", flags)
        self._several = len(names) > 1

    def search(self, text: str) -> Pair | None:
        """The first pair."""
        return next(self._pairs(text), None)

    def findall(self, text: str) -> list[Pair]:
        """All pairs, from left to right."""
        return list(self._pairs(text))

    def _pairs(self, text: str) -> Iterator[Pair]:
        unclosed = set[str]()  # names without a closing tag in the rest of the text
        place = 0
        while opening := self._opening.search(text, place):
            place = opening.end()
            name = opening[1].lower()
            if name in unclosed:
                continue
            closing = self._end(text, place, name)
            if closing is not None:
                yield Pair(opening[1], text[place : closing.start()])
                place = closing.end()
            elif self._several:
                unclosed.add(name)
            else:
                return

    def _end(self, text: str, place: int, name: str) -> re.Match[str] | None:
        closings = self._closing.finditer(text, place)
        # With one name any closing tag ends it: where case is ignored, "ſ" is an "s" in a pattern, but not in `lower`.
        return next((found for found in closings if not self._several or found[1].lower() == name), None)
