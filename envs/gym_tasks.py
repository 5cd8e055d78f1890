"""Use any Gymnasium environment with text observations and actions as a set of tasks. It need not know polyturn.

    python -m scripts.train env=gym env.id=their_module:TheirEnv-v0

A task is a seed; `reset(seed=…)` makes its episode. `TextAdapter` supplies what the contract of `envs.core` needs
besides the text. An environment can provide more by putting the keys of `INFO_KEYS` and `TURN_KEYS` into its `info`.
"""

from __future__ import annotations

import importlib
import inspect
import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, SupportsFloat

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec, load_env_creator

import envs
from envs.checks import checked_reset, checked_step
from envs.core import (
    TURN_KEYS,
    EpisodeOverError,
    FreeText,
    Info,
    Manifest,
    NoDataError,
    StopReason,
    Task,
    UnknownNameError,
    hash_tasks,
)
from envs.seed_tasks import SeedTasks

DEFAULT_MAX_TURNS = 50


class TextAdapter(gym.Wrapper[str, str, str, str]):
    """Adds the info, the endings and the turn limit of `envs.core` to a Gymnasium environment of strings.

    Keys of `INFO_KEYS` and `TURN_KEYS` in the environment's `info` are passed on, other keys are not. Defaults of
    missing `INFO_KEYS`:

    - `goal`: the first observation; `state_key`: the observation; `admissible` and `answers`: None;
    - `success`: the environment terminated with a positive reward. A success ends the episode with the score 1;
    - `score`: 0 until then. The environment's own score is clipped to [0, 1].

    `envs.checks` reads what the environment returns, and raises `TypeError` or `ValueError` if it cannot. If the
    environment truncates, this counts as its turn limit.
    """

    def __init__(self, env: gym.Env[str, str], max_turns: int) -> None:
        super().__init__(env)
        if env.action_space is not None and not _takes_text(env.action_space):
            raise TypeError(
                f"{env.unwrapped}: expected an environment with text actions, got the action space {env.action_space}"
            )
        self.observation_space = FreeText()
        self.action_space = FreeText()
        self.max_turns = max_turns
        self._goal = ""
        self._turns = 0
        self._over = True

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, Info]:
        """Start the episode of `options["task"]`, with the task's seed; without a task, that of `seed`."""
        unknown = set(options or ()) - {"task"}
        if unknown:
            raise UnknownNameError("reset option", sorted(unknown)[0], ["task"])
        task: Task | None = (options or {}).get("task")
        self._over = True
        observation, info = checked_reset(self.env.reset(seed=task.seed if task else seed))
        self._goal = info.get("goal", observation)
        self._turns, self._over = 0, False
        return observation, self._info(observation, info, success=False, stop=None)

    def step(self, action: str) -> tuple[str, SupportsFloat, bool, bool, Info]:
        """Play one action. Raises `EpisodeOverError` after the end and `TypeError` if it is not a string."""
        if self._over:
            raise EpisodeOverError(f"{self.unwrapped}: the episode is over (or never began); call reset() first")
        if not isinstance(action, str):
            raise TypeError(f"an action must be a string, got {type(action).__name__}: {action!r:.80}")
        observation, reward, terminated, truncated, info = checked_step(self.env.step(action))
        self._turns += 1
        success: bool = info.get("success", terminated and reward > 0)
        terminated = terminated or success
        truncated = not terminated and (truncated or self._turns >= self.max_turns)
        stop = None
        if terminated:
            stop = StopReason.SUCCESS if success else StopReason.FAILURE
        elif truncated:
            stop = StopReason.TURN_LIMIT
        self._over = stop is not None
        return observation, reward, terminated, truncated, self._info(observation, info, success, stop)

    def snapshot(self) -> Any:
        """The state of the running episode, if the environment has `snapshot` and `restore`."""
        return self._goal, self._turns, self._over, self._own("snapshot")()

    def restore(self, state: Any) -> None:
        """Go back to a snapshot."""
        self._goal, self._turns, self._over, inner = state
        self._own("restore")(inner)

    def _own(self, method: str) -> Any:
        if not self.env.has_wrapper_attr(method):
            raise NotImplementedError(f"{self.unwrapped} has no {method}()")
        return self.env.get_wrapper_attr(method)

    def _info(self, observation: str, info: Info, success: bool, stop: StopReason | None) -> Info:
        return {
            "goal": info.get("goal", self._goal),
            "admissible": info.get("admissible"),
            "score": 1.0 if success else min(max(info.get("score", 0.0), 0.0), 1.0),
            "success": success,
            "state_key": info.get("state_key", observation),
            "answers": info.get("answers"),
            "stop_reason": stop,
            **{key: info[key] for key in TURN_KEYS if key in info},
        }


def _takes_text(space: gym.Space[Any]) -> bool:
    return isinstance(space, gym.spaces.Text) or space.contains("a")


class GymTasks(SeedTasks):
    """Seeds of a Gymnasium environment as tasks.

    `id` is a Gymnasium id, `Env-v0`. If it is not registered yet, its module comes first: `their_module:Env-v0`.
    `kwargs` are the arguments of the environment. With `max_turns` None, the id's `max_episode_steps` is used. Raises
    `UnknownNameError` for an id that is not registered.
    """

    def __init__(
        self,
        id: str,  # noqa: A002 - Gymnasium's name for it
        kwargs: Mapping[str, Any] | None = None,
        max_turns: int | None = None,
        train_tasks: int = 1000,
        valid_tasks: int = 100,
    ) -> None:
        self._spec = _find_spec(id)
        self._kwargs = dict(kwargs or {})
        limits = {
            "as was asked": max_turns,
            "its max_episode_steps": self._spec.max_episode_steps,
            "by default, as it has no max_episode_steps": DEFAULT_MAX_TURNS,
        }
        self._limit_from, limit = next((why, n) for why, n in limits.items() if n is not None)
        super().__init__(self._spec.id, limit, train_tasks, valid_tasks)

    def manifest(self, split: str) -> Manifest:
        """The hash is over the ids and everything that the environment is made from."""
        kwargs = json.dumps(self._spec.kwargs | self._kwargs, sort_keys=True, default=_type_name)
        made_from = f"{self.env_id} {kwargs}\n{self._source()}".encode()
        ids = self.ids(split)
        return Manifest(self.env_id, split, ids, hash_tasks((task_id, made_from) for task_id in ids))

    def _source(self) -> str:
        """The source code of the environment, since authors change it more often than its version.

        Only its name if Python has no source, as for a class typed into an interpreter.
        """
        entry = self._spec.entry_point
        creator = load_env_creator(entry) if isinstance(entry, str) else entry
        try:
            module = inspect.getmodule(creator)
            source = inspect.getsource(module) if module else ""
        except (OSError, TypeError):
            source = ""
        return f"{_type_name(creator)}\n{source}"

    def make(self) -> gym.Env[str, str]:
        """A new environment, without Gymnasium's wrappers: the adapter checks the order of calls and counts turns."""
        bare = replace(self._spec, max_episode_steps=None, order_enforce=False, disable_env_checker=True)
        made = gym.make(bare, **self._kwargs)
        try:
            return TextAdapter(made, self.max_turns)
        except TypeError as error:  # no task of it can be played
            raise NoDataError(str(error)) from error

    def describe(self) -> str:
        """Includes the environment's arguments, and where the turn limit comes from."""
        kwargs = f" with {self._kwargs}" if self._kwargs else ""
        return f"{super().describe()} ({self._limit_from}){kwargs}"

    def facts(self) -> dict[str, Any]:
        """See `envs.facts.environment_facts`; the manifest's hash covers the environment's code."""
        kwargs = json.dumps(self._spec.kwargs | self._kwargs, sort_keys=True, default=_type_name)
        return {**super().facts(), "kwargs": json.loads(kwargs)}


def _type_name(value: Any) -> str:
    kind = value if hasattr(value, "__qualname__") else type(value)
    return f"{kind.__module__}:{kind.__qualname__}"


def _find_spec(env_id: str) -> EnvSpec:
    module, _, name = env_id.rpartition(":")
    if ":" in env_id:
        if not all(part.isidentifier() for part in module.split(".")):
            raise ValueError(f"env.id={env_id}: expected a module before ':', as in folder.their_module:TheirEnv-v0")
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            if not f"{module}.".startswith(f"{error.name}."):
                raise  # the module exists, but an import inside it fails
            raise ModuleNotFoundError(
                f"the module {module!r}, which should register {env_id!r}, was not found; "
                f"looked in {', '.join(repr(folder) for folder in sys.path)}",
                name=error.name,
            ) from error
    errors = envs.plugin_errors()
    if name not in gym.registry:
        hint = "write an id that is not registered yet with its module, as in their_module:TheirEnv-v0"
        raise UnknownNameError("environment", name, gym.registry, "\n".join([hint, *errors]))
    return gym.spec(name)
