"""The games of TextWorldExpress by seed, in the engine's own folds.

tasks = TextWorldExpressTasks()                                # all eight kinds of games
tasks = TextWorldExpressTasks(["coin"], "numLocations=5,numDistractorItems=0")
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from envs.core import Manifest, Task, UnknownNameError, counted, hash_tasks
from envs.gold_path import GoldPath
from envs.jvm import MOST_ENGINES, OVERHEAD_MB, Java, jar_hash, lent
from envs.textworld_express.env import ENV_ID, MAX_TURNS, MEMORY_MB, TextWorldExpressEnv, engine, start

GAMES = ("arithmetic", "coin", "cookingworld", "mapreader", "peckingorder", "simonsays", "sorting", "twc")
FIRST_SEEDS = {"train": 0, "dev": 10_000, "test": 20_000}  # of the folds, as the engine lists them
SEEDS = 1000  # of each fold, for every game
MOST_PATHS = 4_096  # that are kept


class TextWorldExpressTasks:
    """Games as a `TaskSet`: those with the first seeds of each fold. A manifest covers the engine's jar."""

    env_id = ENV_ID
    most_environments = MOST_ENGINES
    splits: Sequence[str] = tuple(FIRST_SEEDS)
    eval_splits: Sequence[str] = ("dev",)

    def __init__(
        self,
        games: Sequence[str] | None = None,
        params: str = "",
        train_tasks: int = SEEDS,
        valid_tasks: int = 100,
        max_turns: int = MAX_TURNS,
        memory_mb: int = MEMORY_MB,
    ) -> None:
        """`games` are of `GAMES`, and None is all; `train_tasks` and `valid_tasks` are seeds of each.

        `params` are the engine's parameters of a game, "numLocations=5,includeDoors=0"; others have their defaults, and
        those that the engine does not know are refused when a game begins. Raises `UnknownNameError`, `ValueError`, and
        `ModuleNotFoundError` without the engine.
        """
        for name in games or ():
            if name not in GAMES:
                raise UnknownNameError("game", name, GAMES)
        self._games = sorted(set(GAMES if games is None else games))
        sizes = {"train_tasks": train_tasks, "valid_tasks": valid_tasks}
        if not all(1 <= size <= SEEDS for size in sizes.values()):
            raise ValueError(f"sizes must be from 1 to {SEEDS}, the seeds of a fold; got {sizes}")
        if max_turns < 1:
            raise ValueError(f"max_turns must be at least 1, got {max_turns}")
        if not self._games or (params and len(self._games) > 1):
            raise ValueError(f"params are those of one game, so games must name one; got games={list(self._games)}")
        self.max_turns, self.params, self._memory_mb = max_turns, params, memory_mb
        self._sizes = {split: train_tasks if split == "train" else valid_tasks for split in FIRST_SEEDS}
        self._java = engine(memory_mb)
        self._manifests: dict[str, Manifest] = {}

    def manifest(self, split: str) -> Manifest:
        """The games of a split, hashed with the engine's jar."""
        if split not in self._manifests:
            payloads = {_id(name, seed): self._payload(split, name, seed) for name, seed in self._each(split)}
            jar = jar_hash(self._java.jar)
            contents = ((task_id, json.dumps([payload, jar]).encode()) for task_id, payload in payloads.items())
            self._manifests[split] = Manifest(ENV_ID, split, tuple(sorted(payloads)), hash_tasks(contents))
        return self._manifests[split]

    def task(self, split: str, task_id: str) -> Task:
        name, _, number = task_id.rpartition("-")
        seed = int(number) if number.isdecimal() else -1
        if (name, seed) not in set(self._each(split)) or task_id != _id(name, seed):
            raise UnknownNameError(f"task of {ENV_ID} {split}", task_id, self.manifest(split).ids)
        return Task(id=task_id, env=ENV_ID, split=split, seed=seed, payload=self._payload(split, name, seed))

    def make(self) -> TextWorldExpressEnv:
        """A new environment, with an engine."""
        return TextWorldExpressEnv(self.max_turns, self._memory_mb)

    def expert(self) -> GoldPath:
        """The engine's gold path, which knows everything; it is computed by an engine of its own."""
        return GoldPath(
            lambda game: gold_path(self._java, *(game[key] for key in ("type", "params", "seed", "fold"))),
            at_the_end="look around",
        )

    def describe(self) -> str:
        counts = ", ".join(f"{counted(len(self._each(split)), 'game')} in {split}" for split in self.splits)
        games = ", ".join(self._games) + (f" with {self.params}" if self.params else "")
        engines = f"an engine of about {self._memory_mb + OVERHEAD_MB} MB for each environment, started in 1 to 3 s"
        engines += f", and at most {MOST_ENGINES} at a time"
        return f"{ENV_ID}: {games}: {counts}; at most {counted(self.max_turns, 'turn')}; {engines}"

    def facts(self) -> dict[str, Any]:
        """See `envs.facts.environment_facts`."""
        return {"jar_sha256": jar_hash(self._java.jar)}

    def _each(self, split: str) -> list[tuple[str, int]]:
        """Game and seed of each task."""
        if split not in FIRST_SEEDS:
            raise UnknownNameError(f"split of {ENV_ID}", split, FIRST_SEEDS)
        first = FIRST_SEEDS[split]
        return [(name, first + number) for name in self._games for number in range(self._sizes[split])]

    def _payload(self, split: str, name: str, seed: int) -> dict[str, Any]:
        return {"type": name, "params": self.params, "seed": seed, "fold": split}


def _id(name: str, seed: int) -> str:
    return f"{name}-{seed:05d}"


@lru_cache(maxsize=MOST_PATHS)
def gold_path(java: Java, name: str, params: str, seed: int, fold: str) -> tuple[str, ...]:
    """The engine's own solution. Raises `EngineError`."""
    game: Mapping[str, Any] = {"type": name, "params": params, "seed": seed, "fold": fold}
    with lent(java) as jvm:
        start(jvm, game, gold=True)
        return tuple(jvm.texts("getGoldActionSequence"))
