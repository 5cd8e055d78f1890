"""Serves the environments of a task set to clients of OpenEnv.

Each session, which is a connection to `/ws`, has an environment of its own until its client leaves:

    reset(split=, index=)     start the episode of a task by its number in the sorted ids of a split
    reset(task=, split=)      the same by its id
    step({"message": …})      play one action

Without a split, the first one for evaluation is played; `seed` is that of an episode. An observation has `text`, the
public keys of `info` and `truncated`; the other keys, among them the right answers and the true state, are in its
metadata `polyturn/info`. Splits are listed by the routes of OpenEnv's Task API. Needs the extra `openenv`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from envs.checks import clean_text, plain
from envs.core import TaskSet, evaluation_splits
from envs.openenv.env import NEEDED
from envs.pool import Outcome
from envs.served import INFO, PUBLIC, Served, ServerLimits, sendable

try:
    from fastapi import FastAPI
    from openenv.core.env_server import Action, ConcurrencyConfig, Environment, Observation, State, create_fastapi_app
    from openenv.core.env_server.types import EnvironmentMetadata
except ImportError as error:
    raise ModuleNotFoundError(f"{NEEDED} ({error})") from error


class TextAction(Action):
    """What an agent says."""

    message: str


class TextObservation(Observation):
    """What an agent sees, and the public keys of `info`. The text is the only field that a schema calls required."""

    text: str
    goal: str = ""
    admissible: list[str] | None = None
    score: float = 0.0
    success: bool = False
    truncated: bool = False
    stop_reason: str | None = None


class ServedEnvironment(Environment[TextAction, TextObservation, State]):
    """The environment of a session. It is made at the first reset: OpenEnv also makes one to ask for its tasks."""

    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self, task_set: TaskSet, limits: ServerLimits, playing: threading.Lock) -> None:
        """`playing` is shared by all of a process, whose environments never run at the same time."""
        super().__init__()
        self._task_set, self._limits, self._playing = task_set, limits, playing
        self._served: Served | None = None
        self._state = State()

    def reset(
        self,
        seed: int | None = None,
        episode_id: str | None = None,
        split: str | None = None,
        index: int | None = None,
        task: str | None = None,
        **unknown: Any,
    ) -> TextObservation:
        """Start an episode. Raises `ValueError` for an unknown argument or for both `task` and `index`."""
        if unknown:
            raise ValueError(f"reset has no {sorted(unknown)[0]!r}; it has split, index, task and seed")
        if task is not None and index is not None:
            raise ValueError("a task is named by its id or by its index, and both are given")
        with self._playing:
            if self._served is None:
                self._served = Served(self._task_set, self._limits)
            outcome = self._served.reset(index or 0 if task is None else task, split, seed)
        self._state = State(episode_id=episode_id)
        return _observed(outcome, first=True)

    def step(self, action: TextAction, timeout_s: float | None = None, **_: Any) -> TextObservation:
        """Play one action. `timeout_s` is not read: the server has a deadline."""
        del timeout_s
        if self._served is None:
            raise RuntimeError("there is no episode: call reset first")
        with self._playing:
            outcome = self._served.step(clean_text(action.message))
        self._state.step_count += 1
        return _observed(outcome, first=False)

    @property
    def state(self) -> State:
        return self._state

    def get_metadata(self) -> EnvironmentMetadata:
        return EnvironmentMetadata(name=self._task_set.env_id, description=self._task_set.describe())

    def close(self) -> None:
        """Close the environment."""
        with self._playing:
            if self._served is not None:
                self._served.close()
                self._served = None

    # -- OpenEnv's Task API: all numbers are places in the sorted ids of a split ---------------------------------------
    def list_splits(self) -> list[dict[str, Any]]:
        """The splits, with what identifies their tasks."""
        manifests = [self._task_set.manifest(split) for split in self._task_set.splits]
        evaluated = evaluation_splits(self._task_set)
        return [
            {
                "name": manifest.split,
                "type": _kind(manifest.split, self._task_set.splits),
                "evaluation": manifest.split in evaluated,
                "max_turns": self._task_set.max_turns,
                **manifest.facts(),
            }
            for manifest in manifests
        ]

    def num_tasks(self, split: str) -> int:
        """How many there are."""
        return len(self._task_set.manifest(split).ids)

    def get_task(self, split: str, index: int) -> dict[str, Any]:
        """A task, without what it hides. Raises `IndexError`."""
        if not 0 <= index < self.num_tasks(split):
            raise IndexError(f"{split} has tasks 0 to {self.num_tasks(split) - 1}, got {index}")
        task = self._task_set.task(split, self._task_set.manifest(split).ids[index])
        shown = {"id": task.id, "index": index, "seed": task.seed, "type": task.payload.get("type", "")}
        listed: dict[str, Any] = plain(shown, "task")
        return listed

    def get_task_range(self, split: str, start: int | None = None, stop: int | None = None) -> list[dict[str, Any]]:
        """Tasks by the rules of a slice."""
        return [self.get_task(split, index) for index in range(self.num_tasks(split))[start:stop]]

    def list_tasks(self, split: str) -> list[dict[str, Any]]:
        """All of them."""
        return self.get_task_range(split)


def _kind(split: str, splits: Sequence[str]) -> str:
    """One of the three kinds of OpenEnv: the first split is the one to train on."""
    return "train" if split == splits[0] and len(splits) > 1 else "test" if split.startswith("test") else "validation"


def _observed(outcome: Outcome, *, first: bool) -> TextObservation:
    public = {key: plain(outcome.info[key], key) for key in PUBLIC}
    return TextObservation(
        text=clean_text(outcome.observation), **public, truncated=outcome.truncated,
        reward=None if first else outcome.reward, done=outcome.over, metadata={INFO: sendable(outcome.info)},
    )  # fmt: skip


def make_app(task_set: TaskSet, limits: ServerLimits) -> FastAPI:
    """The application: routes of OpenEnv under `/`, sessions at `/ws`. A client beyond `limits.sessions` is refused."""
    playing = threading.Lock()
    make: Callable[[], ServedEnvironment] = lambda: ServedEnvironment(task_set, limits, playing)  # noqa: E731
    sessions = ConcurrencyConfig(max_concurrent_envs=limits.sessions, session_timeout=limits.idle)
    name = task_set.env_id.rpartition("/")[2]
    return create_fastapi_app(make, TextAction, TextObservation, concurrency_config=sessions, env_name=name)
