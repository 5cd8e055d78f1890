"""An expert that plays a solution which its engine gives away. It knows all, and need not go the shortest way."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from envs.core import Info

GAME = "game"  # of the info of `reset`: the payload of the task


class GoldPath:
    """The rest of the path after what was played of it; other actions are ignored.

    The path is computed when the first action is asked for.
    """

    def __init__(self, solve: Callable[[Mapping[str, Any]], Sequence[str]], at_the_end: str) -> None:
        """`solve` gives the path of the game in `info[GAME]`; `at_the_end` is played when it has ended."""
        self._solve, self._at_the_end = solve, at_the_end
        self._game: Mapping[str, Any] = {}
        self._played: list[str] = []
        self._left: list[str] | None = None

    def reset(self, observation: str, info: Info) -> None:  # noqa: ARG002
        self._game, self._played, self._left = info[GAME], [], None

    def act(self) -> str:
        if self._left is None:
            self._left = list(self._solve(self._game))
            for action in self._played:
                self._pass(action)
        return self._left[0] if self._left else self._at_the_end

    def observe(self, action: str, observation: str, info: Info) -> None:  # noqa: ARG002
        if self._left is None:
            self._played.append(action)
        else:
            self._pass(action)

    def _pass(self, action: str) -> None:
        if self._left and action == self._left[0]:
            self._left.pop(0)
