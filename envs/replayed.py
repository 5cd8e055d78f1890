"""Base class of environments whose engine keeps no states: a snapshot is the actions since the start."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from envs.core import TextEnv


class ReplayedEnv(TextEnv):
    """Restores a snapshot by playing its actions again.

    A subclass implements `_enter` and `_play`, and starts and acts with `_start` and `_do`.
    """

    def __init__(self, max_turns: int, render_mode: str | None = None) -> None:
        super().__init__(max_turns, render_mode)
        self._payload: Any = None  # of the task
        self._actions: list[str] = []  # since the start

    @abstractmethod
    def _enter(self, payload: Any) -> Any:
        """Start the game of a payload."""

    @abstractmethod
    def _play(self, action: str) -> Any:
        """Play an action."""

    def _start(self, payload: Any) -> Any:
        """`_enter`, remembered for snapshots."""
        entered = self._enter(payload)
        self._payload, self._actions = payload, []
        return entered

    def _do(self, action: str) -> Any:
        """`_play`, remembered for snapshots."""
        self._actions.append(action)
        return self._play(action)

    def _save(self) -> Any:
        return self._payload, tuple(self._actions)

    def _load(self, saved: Any) -> None:
        payload, actions = saved
        self._start(payload)
        for action in actions:
            self._do(action)
