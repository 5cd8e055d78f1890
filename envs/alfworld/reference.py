"""Plays games with TextWorld itself, set up as in ALFWorld's own text environment: exact by definition, but slow.

It plays the games that the native engine does not support, and the native engine is tested against it
(`benchmarks/alfworld.py`).
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

# TextWorld environments that no engine uses any more, kept for reuse. Each holds a copy of the planner's library, 34 MB
# that cannot be freed safely.
_idle: list[Any] = []


INSTALL = "pip install 'polyturn[alfworld]'"


def check_installed() -> None:
    """Raises `ModuleNotFoundError`, which says what to install, without TextWorld or ALFWorld. Imports neither."""
    for package in ("textworld", "alfworld"):
        if find_spec(package) is None:
            raise ModuleNotFoundError(f"env.engine=textworld needs the package {package}: {INSTALL}")


class ReferenceEngine:
    """The interface of `engine.Engine` for any game file, without snapshots."""

    def __init__(self, path: str) -> None:
        """Load a game. Raises `ModuleNotFoundError`, which says what to install, without TextWorld or ALFWorld."""
        try:
            import textworld
            from alfworld.agents.environment.alfred_tw_env import AlfredDemangler, AlfredInfos
        except ImportError as error:
            raise ModuleNotFoundError(f"TextWorld needs more packages to play ALFWorld ({error}): {INSTALL}") from error
        with _translating():
            if _idle:
                self._game = _idle.pop()
                self._game.load(path)
            else:
                infos = textworld.EnvInfos(won=True, admissible_commands=True, extras=["gamefile"])
                self._game = textworld.start(path, infos, wrappers=[AlfredDemangler(), AlfredInfos])
        weakref.finalize(self, _idle.append, self._game)
        self._state: Any = None

    def reset(self) -> str:
        """Back to the start. Returns the first observation."""
        with _translating():
            self._state = self._game.reset()
        return str(self._state.feedback)

    def step(self, command: str) -> tuple[str, float, bool]:
        """Play a command. Returns feedback, score, and whether TextWorld calls the game done; it may continue."""
        self._state, score, done = self._game.step(command)
        return str(self._state.feedback), float(score), bool(done)

    @property
    def admissible(self) -> list[str]:
        """The commands that have an effect, sorted."""
        return list(self._state.admissible_commands)

    @property
    def won(self) -> bool:
        """Whether the goal is reached now."""
        return bool(self._state.won)


_lock = threading.Lock()


@contextmanager
def _translating() -> Iterator[None]:
    """Runs one at a time: the planner's translator replaces `sys.argv` for good and `sys.stdout` for a while."""
    with _lock:
        arguments = sys.argv
        try:
            yield
        finally:
            sys.argv = arguments
