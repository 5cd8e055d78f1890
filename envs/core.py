"""The contract between tasks, environments and agents.

    Task ──► env.reset(options={"task": …}) ──text──► agent ──text──► env.step(action) ──► …

An environment is a Gymnasium environment whose observations and actions are strings. Everything else that it provides
is in `info` (the keys are `INFO_KEYS`). Tasks are data: a split is a *manifest* of sorted ids with a content hash, so
two people who name the same split have played the same games. Nothing here ever draws "the next random task". For a
random order, shuffle the ids with your own seed.

This module imports neither torch nor transformers.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol, SupportsFloat, TypeAlias

import gymnasium as gym
import numpy as np

Info: TypeAlias = dict[str, Any]
# Keys of `info` from `reset` and `step` of every text environment. An action of "admissible" may end with angle
# brackets in brackets, as in "search[<your query>]": this is its slot, where any text may stand.
INFO_KEYS = ("goal", "admissible", "score", "success", "state_key", "answers", "stop_reason")
# Keys that `step` may add: a separate reward for the turn, and whether a tool gave a result.
TURN_KEYS = {"turn_reward": float, "tool_result": bool}
# A key that both may add, for policies that see a whole episode as one text: the new part of an observation, a str.
BRIEF = "brief"


class Need(StrEnum):
    """What an agent or a method may need from an environment, in addition to observations and rewards."""

    ADMISSIBLE = "admissible actions"  # info["admissible"], at every turn
    ANSWERS = "right answers"  # info["answers"]
    EXPERT = "actions of an expert"  # `TaskSet.expert`
    SNAPSHOTS = "snapshots"  # `snapshot` and `restore`
    TURN_REWARDS = "rewards of single turns"  # the keys of `TURN_KEYS`, from every `step`


class StopReason(StrEnum):
    """Why an episode ended. Every ending has a name, and every one of them counts in evaluations."""

    SUCCESS = "success"  # the environment ended the episode and the task is solved
    FAILURE = "failure"  # the environment ended the episode and the task is not solved
    TURN_LIMIT = "turn_limit"  # the episode used all of its turns
    CONTEXT_LIMIT = "context_limit"  # the next prompt does not fit into the policy's context
    REFUSED = "refused"  # the model's server refused this conversation; its message is kept with the episode
    STEP_TIMEOUT = "step_timeout"  # one step of the environment exceeded its time limit
    EPISODE_TIMEOUT = "episode_timeout"  # the environment exceeded the time limit of the episode
    ENV_ERROR = "env_error"  # the environment raised; the traceback is kept with the episode

    @property
    def is_fault(self) -> bool:
        """Whether this ending says something about the environment and nothing about the policy.

        All time limits are faults, since they depend on the speed of the machine. The limit of a policy is its turns.
        """
        return self in (StopReason.STEP_TIMEOUT, StopReason.EPISODE_TIMEOUT, StopReason.ENV_ERROR)


class UnknownNameError(LookupError):
    """A name that does not exist. The message lists the nearest names that do."""

    def __init__(self, kind: str, name: str, known: Iterable[str], hint: str = "") -> None:
        """`kind` is the kind of name ("split", "task", …), `known` are the names that exist."""
        names = sorted(known)
        stems: dict[str, list[str]] = {}
        for known_name in names:
            stems.setdefault(_stem(known_name), []).append(known_name)
        near = [n for stem in difflib.get_close_matches(_stem(name), stems, n=3, cutoff=0.61) for n in stems[stem]][:3]
        parts = [f"unknown {kind} {name!r}"]
        if near:
            parts.append("did you mean " + " or ".join(repr(n) for n in near) + "?")
        shown = ", ".join(names[:12]) + (f", … ({len(names)} in all)" if len(names) > 12 else "")
        parts.append(f"known: {shown or 'none'}")
        if hint:
            parts.append(hint)
        super().__init__("; ".join(parts))


class MissingDataError(FileNotFoundError):
    """A file that a task is played from does not exist. The message names it and says how to get it back.

    It ends the episode; a resumed evaluation plays the episode again.
    """


class NoDataError(MissingDataError):
    """The data of all tasks does not exist. It ends the run, which can be resumed when the data is back."""


def _stem(name: str) -> str:
    """A name without its version: a common "-v0" does not make the ids of two environments similar."""
    return re.sub(r"-v\d+$", "", name)


def counted(number: int, noun: str) -> str:
    """A number with its noun: "1 turn", "2 turns"."""
    return f"{number} {noun}{'s' * (number != 1)}"


class EpisodeOverError(RuntimeError):
    """`step` was called before `reset`, or after the episode had ended."""


class FreeText(gym.Space[str]):
    """Any string. (`gymnasium.spaces.Text` needs a length and an alphabet, and rejects ordinary sentences.)"""

    def __init__(self, seed: int | np.random.Generator | None = None) -> None:
        super().__init__(shape=(), dtype=str, seed=seed)

    def sample(self, mask: Any = None, probability: Any = None) -> str:
        """A short random lower-case word. Text has no useful uniform distribution, so masks are rejected."""
        if mask is not None or probability is not None:
            raise ValueError("FreeText cannot sample under a mask: it has no finite set of values")
        letters = self.np_random.integers(ord("a"), ord("z") + 1, size=int(self.np_random.integers(1, 9)))
        return "".join(chr(c) for c in letters)

    def contains(self, x: Any) -> bool:
        return isinstance(x, str)

    @property
    def is_np_flattenable(self) -> bool:
        return False

    def __repr__(self) -> str:
        return "FreeText()"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FreeText)


@dataclass(frozen=True)
class Task:
    """One task, as data: an equal task with equal actions gives an equal transcript.

    Example: `Task(id="look_at_obj_in_light-Mug-None-DeskLamp-302/trial_T2019", env="polyturn/ALFWorld-v0",
    split="valid_seen", seed=0, payload={"path": "/data/…/game.tw-pddl", "type": "look_at_obj_in_light"})`.
    `payload` is what the environment needs to play it; `payload["type"]`, if present, is the type of task by which
    evaluations report.
    """

    id: str
    env: str
    split: str = ""
    seed: int = 0
    payload: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Manifest:
    """The tasks of a split: sorted unique ids, and a hash of their contents.

    `official_count` is the number of tasks in the published split, if there is one; `describe` says when a split has
    fewer.
    """

    env: str
    split: str
    ids: tuple[str, ...]
    content_hash: str  # hex sha256, see `hash_tasks`
    official_count: int | None = None

    def __post_init__(self) -> None:
        if list(self.ids) != sorted(set(self.ids)):
            raise ValueError(f"manifest {self.env}/{self.split}: ids must be sorted and unique")

    def facts(self) -> dict[str, Any]:
        """What identifies the tasks, as plain data for a run's record."""
        return {"sha256": self.content_hash, "tasks": len(self.ids), "official_tasks": self.official_count}

    def part(self, ids: Iterable[str]) -> Manifest:
        """Some tasks of the split, with their own hash; for all tasks, the manifest itself."""
        chosen = tuple(sorted(ids))
        if chosen == self.ids:
            return self
        digest = hashlib.sha256("\0".join([self.content_hash, *chosen]).encode()).hexdigest()
        return Manifest(self.env, self.split, chosen, digest)

    def describe(self) -> str:
        """One line for people: the count, the official count if it differs, and the hash."""
        count = counted(len(self.ids), "task")
        if self.official_count is not None and self.official_count != len(self.ids):
            count = f"{len(self.ids)} of the official {self.official_count} tasks (incomplete)"
        return f"{self.env} {self.split}: {count}, manifest {self.content_hash[:12]}"


def cache_root() -> Path:
    """The folder for everything that can be made again: `$POLYTURN_CACHE`, otherwise `~/.cache/polyturn`."""
    try:
        return Path(os.environ.get("POLYTURN_CACHE") or "~/.cache/polyturn").expanduser()
    except RuntimeError as error:
        raise ValueError(f"there is no cache folder ({error}); set one: export POLYTURN_CACHE=DIR") from error


def data_root() -> Path:
    """The folder of downloaded data, which may be read-only: `$POLYTURN_DATA`, otherwise `data` in the cache folder."""
    chosen = os.environ.get("POLYTURN_DATA")
    return Path(chosen).expanduser() if chosen else cache_root() / "data"


def find_task(env: str, split: str, task_id: str, payloads: Mapping[str, Mapping[str, Any]]) -> Task:
    """The task of a split whose payloads are known by their ids. Raises `UnknownNameError`."""
    if task_id not in payloads:
        raise UnknownNameError(f"task of {env} {split}", task_id, payloads)
    return Task(id=task_id, env=env, split=split, payload=dict(payloads[task_id]))


def hash_tasks(contents: Iterable[tuple[str, bytes]]) -> str:
    """Hex sha256 over (task id, content) pairs in the order of their ids; it identifies a split."""
    digest = hashlib.sha256()
    for task_id, content_digest in sorted((task_id, hashlib.sha256(content).digest()) for task_id, content in contents):
        digest.update(task_id.encode())
        digest.update(b"\0")
        digest.update(content_digest)
    return digest.hexdigest()


class Expert(Protocol):
    """A scripted player that knows only what an agent could know: the text that it was shown.

    It can be asked at any point of any episode, even one that another agent plays: `observe` takes the action that was
    played, and `act` returns what the expert would do next.
    """

    def reset(self, observation: str, info: Info) -> None:
        """Start a new episode with the first observation of `env.reset`."""

    def act(self) -> str:
        """The next action. Calling it changes nothing: a second call returns the same."""

    def observe(self, action: str, observation: str, info: Info) -> None:
        """`action` was played, by any agent, and `observation` came back."""


class TaskSet(Protocol):
    """An environment's splits, its tasks, and a factory of environments to play them in.

    A Hydra file `conf/env/<name>.yaml` names the class in `_target_`; the other keys are its arguments.
    """

    @property
    def env_id(self) -> str:
        """The Gymnasium id, `polyturn/ALFWorld-v0`; the version changes when prompts, rewards or assets change."""

    @property
    def splits(self) -> Sequence[str]:
        """Names of the splits. The first is the one to train on."""

    @property
    def max_turns(self) -> int:
        """How many turns an episode may take before it is truncated with `turn_limit`."""

    def manifest(self, split: str) -> Manifest:
        """The tasks of a split. Raises `UnknownNameError` for a split that does not exist."""

    def task(self, split: str, task_id: str) -> Task:
        """One task of a split. Raises `UnknownNameError`."""

    def make(self) -> gym.Env[str, str]:
        """A new environment that plays any task of this set: `reset(options={"task": task})`."""

    def expert(self) -> Expert | None:
        """A scripted expert for warm starts and as a baseline; None if there is none."""

    def describe(self) -> str:
        """One line for the start of a run: where the tasks come from, and which defaults were chosen."""


def at_a_time(task_set: TaskSet, wanted: int) -> int:
    """How many environments to make: `wanted`, but at most `task_set.most_environments` where each one is costly."""
    most: int = getattr(task_set, "most_environments", wanted)
    return min(wanted, most)


def evaluation_splits(task_set: TaskSet) -> list[str]:
    """The default splits for evaluation: `task_set.eval_splits`, otherwise all but the training split."""
    return list(getattr(task_set, "eval_splits", None) or task_set.splits[1:] or task_set.splits)


def hold_out(manifest: Manifest, count: int) -> tuple[Manifest, Manifest]:
    """Divide the training split into the tasks to learn from, and `count` tasks that rank the checkpoints of a run.

    The latter are evenly spaced over the sorted ids, so they include all types of tasks and do not depend on the seed.
    Raises `ValueError` for more than a quarter of the split: training must keep most of its tasks.
    """
    total = len(manifest.ids)
    if not isinstance(count, int) or not 0 <= count <= total // 4:
        raise ValueError(
            f"eval.selection_tasks={count} cannot be held out of the {total} tasks of {manifest.split}: expected 0 "
            f"to {total // 4}, a quarter of them; 0 holds out none, and evaluations of the run use the newest one"
        )
    held_out = {manifest.ids[(2 * i + 1) * total // (2 * count)] for i in range(count)}
    return manifest.part(set(manifest.ids) - held_out), manifest.part(held_out)


class TextEnv(gym.Env[str, str], ABC):
    """Base class of polyturn's own environments: it counts turns, names endings, and fills `info`.

    A subclass implements `_begin`, `_act` and, if possible, `_save` and `_load`. These are never called after the end.
    `max_turns` counts calls of `step`; the last one truncates with `turn_limit` unless the task ended there.
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi"]}  # noqa: RUF012 - Gymnasium declares it as an instance variable

    def __init__(self, max_turns: int, render_mode: str | None = None) -> None:
        if max_turns < 1:
            raise ValueError(f"max_turns must be at least 1, got {max_turns}")
        self.observation_space = FreeText()
        self.action_space = FreeText()
        self.max_turns = max_turns
        self.render_mode = render_mode
        self._turns = 0
        self._over = True  # `step` is not allowed before the first reset
        self._last_text = ""

    @abstractmethod
    def _begin(self, task: Any, seed: int | None) -> tuple[str, Info]:
        """Start `task` (`options["task"]`, or None). Returns the first observation and info to add."""

    @abstractmethod
    def _act(self, action: str) -> tuple[str, float, bool, Info]:
        """Play one action. Returns observation, reward, whether the task ended, and info to add."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, Info]:
        """Start the episode of `options={"task": …}`. An unknown option is an error."""
        super().reset(seed=seed)
        unknown = set(options or ()) - {"task"}
        if unknown:
            raise UnknownNameError("reset option", sorted(unknown)[0], ["task"])
        self._over = True  # after a reset that raises, `step` is not allowed
        observation, extra = self._begin((options or {}).get("task"), seed)
        self._turns, self._over, self._last_text = 0, False, observation
        return observation, self._info(observation, extra, None)

    def step(self, action: str) -> tuple[str, SupportsFloat, bool, bool, Info]:
        """Play one action. Raises `EpisodeOverError` after the end and `TypeError` if it is not a string."""
        if self._over:
            raise EpisodeOverError(f"{type(self).__name__}: the episode is over (or never began); call reset() first")
        if not isinstance(action, str):
            raise TypeError(f"an action must be a string, got {type(action).__name__}: {action!r:.80}")
        observation, reward, terminated, extra = self._act(action)
        self._turns += 1
        truncated = not terminated and self._turns >= self.max_turns
        stop = None
        if terminated:
            stop = StopReason.SUCCESS if extra.get("success") else StopReason.FAILURE
        elif truncated:
            stop = StopReason.TURN_LIMIT
        self._over = stop is not None
        self._last_text = observation
        return observation, reward, terminated, truncated, self._info(observation, extra, stop)

    def _info(self, observation: str, extra: Info, stop: StopReason | None) -> Info:
        info: Info = {
            "goal": "",
            "admissible": None,
            "score": 0.0,
            "success": False,
            "state_key": observation,
            "answers": None,
            "stop_reason": stop,
        }
        info.update(extra)
        return info

    def render(self) -> str:
        """The last observation."""
        return self._last_text

    # -- snapshots ------------------------------------------------------------------------------------------------
    def snapshot(self) -> Any:
        """The whole state of the running episode, as an opaque value that later steps do not change."""
        return (self._turns, self._over, self._last_text, self._save())

    def restore(self, state: Any) -> None:
        """Go back to a snapshot, which may come from another instance of the same environment."""
        self._turns, self._over, self._last_text, saved = state
        self._load(saved)

    def _save(self) -> Any:
        raise NotImplementedError(f"{type(self).__name__} cannot take snapshots")

    def _load(self, saved: Any) -> None:
        raise NotImplementedError(f"{type(self).__name__} cannot restore snapshots")
