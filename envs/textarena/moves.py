"""Moves that a game lists, and an opponent who draws among them."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence

import numpy as np

_LIST = re.compile(r"\b(?:moves|actions|options|hand|cards)\b.*?:(.*)", re.IGNORECASE)
_MOVE = re.compile(r"\[[^\[\]<>\n]+\]")
_FORM = re.compile(r"\bX\b(?=\])")  # as in '[bet X]', which is no move but the form of one


def listed_moves(text: str) -> list[str]:
    """The moves in the last list of a text, as in "Available Moves: '[0]', '[1]'"; empty if there is none."""
    for line in reversed(text.splitlines()):
        if found := _LIST.search(line):
            moves = [move for move in _MOVE.findall(found[1]) if not _FORM.search(move)]
            if moves:
                return list(dict.fromkeys(moves))
    return []


class RandomMoves:
    """Draws among `moves`, or without any among those that the game has listed last.

    The draw depends on what was said alone, so equal games are played equally.
    """

    name = "random moves"

    def __init__(self, moves: Sequence[str] = ()) -> None:
        self.moves = tuple(moves)

    def answer(self, instruction: str, said: Sequence[str]) -> str:  # noqa: ARG002
        """See `envs.partners.Partner`. Raises `ValueError` if no moves are known."""
        known = self.moves or listed_moves("\n".join(said[::2]))
        if not known:
            raise ValueError(f"the game lists no moves in {said[-1][-200:]!r}")
        seed = zlib.crc32("\n".join(said).encode())
        return str(known[int(np.random.default_rng(seed).integers(len(known)))])
