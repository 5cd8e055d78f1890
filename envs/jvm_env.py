"""Base class of environments that a Java engine plays."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from envs.core import Info, Task
from envs.gold_path import GAME
from envs.jvm import Java, Jvm, give_back, lend
from envs.replayed import ReplayedEnv

LONGEST_ACTION = 1_000  # characters; engines take long over a million, and their own actions have about a hundred


class JavaEnv(ReplayedEnv):
    """An engine is started when the environment is made, and kept over games; when closed, the next one takes it.

    A subclass implements `_enter`, `_play` and `_act`, and names in `NEEDS` what the payload of its tasks has.
    """

    NEEDS: frozenset[str]

    def __init__(self, java: Java, max_turns: int, render_mode: str | None = None) -> None:
        """Raises `EngineError` if the engine does not start."""
        super().__init__(max_turns, render_mode)
        self._java = java
        self._jvm: Jvm | None = lend(java)

    @property
    def jvm(self) -> Jvm:
        """The engine; another one if it has ended or its last call was interrupted."""
        if self._jvm is None:
            self._jvm = lend(self._java)
        return self._jvm

    @abstractmethod
    def _enter(self, payload: Mapping[str, Any]) -> str:
        """Start the game of a payload. Returns what is seen first."""

    @abstractmethod
    def _play(self, action: str) -> str:
        """Play an action. Returns what is seen then."""

    def _begin(self, task: Any, seed: int | None) -> tuple[str, Info]:
        del seed  # a task says everything
        if not isinstance(task, Task) or not set(task.payload) >= self.NEEDS:
            needed = ", ".join(sorted(self.NEEDS))
            raise ValueError(f"{type(self).__name__} needs a Task whose payload has {needed}; got {task!r:.200}")
        return self._start(task.payload), {GAME: dict(task.payload)}

    def _start(self, payload: Mapping[str, Any]) -> str:
        if self._jvm is not None and not self._jvm.is_usable:
            self._leave()
        seen: str = super()._start(payload)
        return seen

    def close(self) -> None:
        """Leave the engine to the next environment."""
        self._over = True
        self._leave()

    def _leave(self) -> None:
        jvm, self._jvm = self._jvm, None
        if jvm is not None:
            give_back(jvm)
