"""Tasks made from seeds: training seeds start at 0, validation seeds at 1,000,000."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import gymnasium as gym

from envs.checks import plain
from envs.core import Expert, Manifest, Task, UnknownNameError, counted, hash_tasks

FIRST_SEEDS = {"train": 0, "valid": 1_000_000}


class SeedTasks(ABC):
    """A `TaskSet` whose tasks are seeds with their `payload`. Ids are `seed-0000000` and so on."""

    splits: Sequence[str] = tuple(FIRST_SEEDS)

    def __init__(self, env_id: str, max_turns: int, train_tasks: int, valid_tasks: int) -> None:
        """Raises `ValueError` for an impossible limit or size."""
        if not 0 < train_tasks <= FIRST_SEEDS["valid"] or valid_tasks < 1:
            raise ValueError(
                f"train_tasks must be in 1 to {FIRST_SEEDS['valid']}, where the seeds of valid begin, and valid_tasks "
                f"at least 1; got {train_tasks} and {valid_tasks}"
            )
        if max_turns < 1:
            raise ValueError(f"max_turns must be at least 1, got {max_turns}")
        self.env_id, self.max_turns = env_id, max_turns
        self.sizes = {"train": train_tasks, "valid": valid_tasks}
        self._manifests: dict[str, Manifest] = {}

    def payload(self, split: str, seed: int) -> dict[str, Any]:  # noqa: ARG002
        """What the environment needs besides the seed, as plain data; the same for the same arguments."""
        return {}

    @abstractmethod
    def make(self) -> gym.Env[str, str]:
        """A new environment that plays any of these tasks."""

    def expert(self) -> Expert | None:
        """None: there is no expert."""
        return None

    def manifest(self, split: str) -> Manifest:
        """Hashed over the payloads. Raises `UnknownNameError`, and `TypeError` for a payload that is not plain data."""
        if split not in self._manifests:
            ids = self.ids(split)
            payloads = (plain(self.payload(split, seed), "payload") for seed in self.seeds(split))
            contents = (json.dumps(payload, sort_keys=True).encode() for payload in payloads)
            self._manifests[split] = Manifest(self.env_id, split, ids, hash_tasks(zip(ids, contents, strict=True)))
        return self._manifests[split]

    def task(self, split: str, task_id: str) -> Task:
        seeds = self.seeds(split)
        number = task_id.removeprefix("seed-")
        seed = int(number) if number.isdecimal() else -1
        if seed not in seeds or task_id != _task_id(seed):
            ends = [_task_id(seeds[0]), _task_id(seeds[-1])]
            raise UnknownNameError(f"task of {self.env_id} {split}", task_id, ends, "the first and the last are shown")
        return Task(id=task_id, env=self.env_id, split=split, seed=seed, payload=self.payload(split, seed))

    def describe(self) -> str:
        splits = ", ".join(
            f"{counted(size, f'{name} seed')} from {FIRST_SEEDS[name]}" for name, size in self.sizes.items()
        )
        return f"{self.env_id}: {splits}; at most {counted(self.max_turns, 'turn')}"

    def facts(self) -> dict[str, Any]:
        """See `envs.facts.environment_facts`."""
        return {f"{name}_tasks": size for name, size in self.sizes.items()}

    def ids(self, split: str) -> tuple[str, ...]:
        """The ids of a split's seeds, in order."""
        return tuple(_task_id(seed) for seed in self.seeds(split))

    def seeds(self, split: str) -> range:
        """The seeds of a split. Raises `UnknownNameError`."""
        if split not in FIRST_SEEDS:
            raise UnknownNameError(f"split of {self.env_id}", split, FIRST_SEEDS)
        return range(FIRST_SEEDS[split], FIRST_SEEDS[split] + self.sizes[split])


def _task_id(seed: int) -> str:
    return f"seed-{seed:07d}"
