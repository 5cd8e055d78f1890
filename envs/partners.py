"""A second player, who plays beside the policy: a customer, the other person of a conversation, an opponent.

An environment with a second player has one policy that is trained or evaluated, and a `Partner`. A step plays the
policy's action and then the partner's, until it is the policy's turn again. docs/environments/partners.md shows
partners of your own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol


class Partner(Protocol):
    """A function of what the partner has seen, so an episode can be continued from any turn."""

    name: str  # in manifests and in `info["partner"]`

    def answer(self, instruction: str, said: Sequence[str]) -> str:
        """The partner's next action.

        `instruction` is the partner's own: who it is, what it wants, how its actions are written. `said` is what the
        partner has read and written, in turn: it begins and ends with a text that it read.
        """


class Lines:
    """Says the same lines in every episode, and the last one again when there are no more."""

    def __init__(self, lines: Sequence[str]) -> None:
        """Raises `ValueError` without lines."""
        if isinstance(lines, str) or not lines:
            raise ValueError(f"lines must be a list of at least one text, got {lines!r}")
        self.lines = tuple(map(str, lines))
        self.name = f"lines {hashlib.sha256(repr(self.lines).encode()).hexdigest()[:8]}"

    def answer(self, instruction: str, said: Sequence[str]) -> str:  # noqa: ARG002
        """See `Partner`."""
        return self.lines[min(len(said) // 2, len(self.lines) - 1)]


class Dialogue:
    """What a partner has read and written in an episode.

    Answers of an episode that is continued from a snapshot are not asked for again: a model would answer differently.
    """

    def __init__(self, partner: Partner, instruction: str, known: Sequence[str] = ()) -> None:
        """`known` are the partner's first answers, of the episode that is continued."""
        self._partner, self._instruction, self._known = partner, instruction, list(known)
        self._said: list[str] = []

    def answer(self, read: str) -> str:
        """The answer to a text. Raises `TypeError` if the partner's answer is no text, and the partner's own errors."""
        self._said.append(read)
        if self._known:
            answer = self._known.pop(0)
        else:
            answer = self._partner.answer(self._instruction, tuple(self._said))
            if not isinstance(answer, str):
                raise TypeError(f"the partner {self._partner.name} must answer with a str, got {answer!r:.80}")
        self._said.append(answer)
        return answer

    @property
    def answers(self) -> tuple[str, ...]:
        """The partner's answers so far."""
        return tuple(self._said[1::2])
