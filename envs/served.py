"""The environment of one client of a server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from envs.checks import plain
from envs.core import Info, Task, TaskSet, evaluation_splits
from envs.pool import EnvPool, Outcome
from envs.pool_env import error_line

INFO = "polyturn/info"  # metadata of an answer: further keys of `info`
PUBLIC = ("goal", "admissible", "score", "success", "stop_reason")  # of `info`: what a model may see


@dataclass(frozen=True)
class ServerLimits:
    """What clients may use."""

    sessions: int = 64  # over HTTP, at a time
    idle: float = 1800.0  # seconds without a request, after which a session over HTTP ends
    step: float = 60.0  # seconds for a reset or a step


class NoEpisodeError(RuntimeError):
    """There is no episode in which a step could be played."""


class EnvironmentFailedError(RuntimeError):
    """The environment raised, or exceeded its deadline. Its episode is over."""


class Served:
    """An environment, and the episode that is played in it.

    Its methods block. They are called one at a time, also those of other environments of the process.
    """

    def __init__(self, task_set: TaskSet, limits: ServerLimits) -> None:
        self.task_set = task_set
        self._pool = EnvPool(task_set.make, size=1, step_timeout=limits.step)
        self.last: Outcome | None = None  # None: there is no episode

    def reset(self, task: str | int, split: str | None, seed: int | None) -> Outcome:
        """Start the episode of a task, by its id or its number. Without a split, the first one for evaluation.

        Raises `UnknownNameError`, `ValueError`, `EnvironmentFailedError`.
        """
        self.last = None
        chosen = find_task(self.task_set, task, split or evaluation_splits(self.task_set)[0])
        return self._played(self._pool.reset({0: chosen}, {} if seed is None else {0: seed})[0])

    def step(self, action: str) -> Outcome:
        """Play one action. Raises `NoEpisodeError`, `EnvironmentFailedError`."""
        if self.last is None:
            raise NoEpisodeError("there is no episode: call reset first")
        if self.last.over:
            raise NoEpisodeError("the episode is over: call reset to start another one")
        return self._played(self._pool.step({0: action})[0])

    def close(self) -> None:
        """Close the environment."""
        self._pool.close()

    def _played(self, outcome: Outcome) -> Outcome:
        if outcome.error:
            self.last = None
            why = error_line(outcome.error.text)
            raise EnvironmentFailedError(
                f"the environment failed ({outcome.error.reason}), and its episode is over: {why}"
            )
        self.last = outcome
        return outcome


def find_task(task_set: TaskSet, name: str | int, split: str) -> Task:
    """A task of a split by its id or its number. Raises `UnknownNameError`, `ValueError`."""
    ids = task_set.manifest(split).ids
    if isinstance(name, str) and name.isdecimal() and name not in ids:
        name = int(name)  # as models write numbers
    if isinstance(name, str):
        return task_set.task(split, name)
    if not 0 <= name < len(ids):
        raise ValueError(f"{split} has tasks 0 to {len(ids) - 1}, got {name}")
    return task_set.task(split, ids[name])


def sendable(info: Info) -> dict[str, Any]:
    """What of `info` is not public and is plain data."""
    found = {}
    for key in info.keys() - set(PUBLIC):
        try:
            found[str(key)] = plain(info[key], str(key))
        except (TypeError, ValueError):  # an environment of others may put objects there
            continue
    return found
