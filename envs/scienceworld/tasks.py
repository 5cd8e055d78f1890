"""The variations of ScienceWorld's tasks, in the engine's own splits and in published ones.

tasks = ScienceWorldTasks()                                    # all variations, as the engine divides them
tasks = ScienceWorldTasks(tasks=["find-plant"])
tasks = ScienceWorldTasks(variations="eto")                    # the variations of ETO, with its simplifications
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

from envs.core import Manifest, Task, UnknownNameError, counted, hash_tasks
from envs.gold_path import GoldPath
from envs.jvm import MOST_ENGINES, OVERHEAD_MB, jar_hash
from envs.scienceworld.env import ENV_ID, MAX_TURNS, MEMORY_MB, ScienceWorldEnv, engine
from envs.scienceworld.expert import expert

OFFICIAL = "official"
SETS = (OFFICIAL, "eto", "epo_l0", "epo_l1", "epo_l2")
EASY = "easy"
SIMPLIFICATIONS = (
    EASY, "noElectricalAction", "openContainers", "openDoors", "selfWateringFlowerPots", "teleportAction"
)  # fmt: skip
ELECTRICAL = ("power-component", "conductivity")  # in the names of tasks that "noElectricalAction" makes impossible
Ranges: TypeAlias = "dict[str, list[tuple[int, int]]]"  # by task: the first and the last number of variations


class ScienceWorldTasks:
    """Variations of tasks as a `TaskSet`. Evaluation is on `dev`, or on `test` where there is none.

    A manifest covers the engine: other jars have other hashes.
    """

    env_id = ENV_ID
    most_environments = MOST_ENGINES

    def __init__(
        self,
        variations: str = OFFICIAL,
        tasks: Sequence[str] | None = None,
        simplification: str | None = None,
        admissible: bool = False,
        max_turns: int = MAX_TURNS,
        memory_mb: int = MEMORY_MB,
    ) -> None:
        """`variations` is one of `SETS`, `tasks` None is all of them.

        `simplification` has one or more of `SIMPLIFICATIONS`, with commas; "" is none, and None what the set was played
        with: "easy" for published ones. Raises `UnknownNameError`, `ValueError`, and `ModuleNotFoundError` without the
        engine.
        """
        if variations not in SETS:
            raise UnknownNameError("set of variations", variations, SETS)
        self._ranges = _published()[variations]
        known = sorted({task for ranges in self._ranges.values() for task in ranges})
        for name in tasks or ():
            if name not in known:
                raise UnknownNameError(f"task of the variations {variations!r}", name, known)
        if tasks is not None and not tasks:
            raise ValueError("tasks is empty, expected names of tasks, or null for all of them")
        if simplification is None:
            simplification = "" if variations == OFFICIAL else EASY
        self._chosen = set(tasks or known)
        _check_simplification(simplification, self._chosen)
        self.variations, self.simplification = variations, simplification
        self.max_turns, self._lists, self._memory_mb = max_turns, admissible, memory_mb
        if max_turns < 1:
            raise ValueError(f"max_turns must be at least 1, got {max_turns}")
        self._java = engine(memory_mb)
        self._numbers = {split: self._numbers_by_id(split) for split in self._ranges}
        self.splits: Sequence[str] = [split for split, numbers in self._numbers.items() if numbers]
        self.eval_splits: Sequence[str] = self.splits[1:2] or self.splits
        self._manifests: dict[str, Manifest] = {}

    def manifest(self, split: str) -> Manifest:
        """The variations of a split, hashed with the engine's jar."""
        if split not in self._manifests:
            numbers = self._split(split)
            about = (self.simplification, jar_hash(self._java.jar))
            contents = ((task_id, json.dumps([*each, *about]).encode()) for task_id, each in numbers.items())
            is_whole = self.variations == OFFICIAL and self._chosen >= set(self._ranges[split])
            count = len(numbers) if is_whole else None
            self._manifests[split] = Manifest(ENV_ID, split, tuple(sorted(numbers)), hash_tasks(contents), count)
        return self._manifests[split]

    def task(self, split: str, task_id: str) -> Task:
        numbers = self._split(split)
        if task_id not in numbers:
            raise UnknownNameError(f"task of {ENV_ID} {split}", task_id, numbers)
        name, variation = numbers[task_id]
        payload = {"type": name, "variation": variation, "simplification": self.simplification}
        return Task(id=task_id, env=ENV_ID, split=split, payload=payload)

    def make(self) -> ScienceWorldEnv:
        """A new environment, with an engine."""
        return ScienceWorldEnv(self.max_turns, self._lists, self._memory_mb)

    def expert(self) -> GoldPath:
        """The engine's gold path, which knows everything."""
        return expert(self._java)

    def describe(self) -> str:
        counts = ", ".join(f"{counted(len(self._numbers[split]), 'variation')} in {split}" for split in self.splits)
        easier = f" with {self.simplification}" if self.simplification else ""
        engines = f"an engine of about {self._memory_mb + OVERHEAD_MB} MB for each environment, started in 1 to 5 s"
        engines += f", and at most {MOST_ENGINES} at a time"
        return f"{ENV_ID}: {self.variations}{easier}: {counts}; at most {counted(self.max_turns, 'turn')}; {engines}"

    def facts(self) -> dict[str, Any]:
        """See `envs.facts.environment_facts`."""
        return {"jar_sha256": jar_hash(self._java.jar)}

    def _split(self, split: str) -> Mapping[str, tuple[str, int]]:
        if split not in self.splits:
            raise UnknownNameError(f"split of {ENV_ID}", split, self.splits)
        return self._numbers[split]

    def _numbers_by_id(self, split: str) -> dict[str, tuple[str, int]]:
        """Task and number of each variation. Published splits share some of them, so their ids begin with the split."""
        begin = "" if self.variations == OFFICIAL else f"{split}-"
        return {
            f"{begin}{task}-{number:04d}": (task, number)
            for task, ranges in self._ranges[split].items()
            if task in self._chosen
            for first, last in ranges
            for number in range(first, last + 1)
        }


def _check_simplification(simplification: str, tasks: Iterable[str]) -> None:
    names = simplification.split(",") if simplification else []
    for name in names:
        if name not in SIMPLIFICATIONS:
            raise UnknownNameError("simplification", name, SIMPLIFICATIONS)
    impossible = sorted(task for task in tasks if any(part in task for part in ELECTRICAL))
    if "noElectricalAction" in names and impossible:
        raise ValueError(
            f"noElectricalAction makes {impossible[0]} impossible; leave out such tasks, or take {EASY!r}, "
            "which leaves them as they are"
        )


@cache
def _published() -> dict[str, dict[str, Ranges]]:
    """By set and split; ranges include their ends."""
    data: dict[str, dict[str, Ranges]] = json.loads(Path(__file__).with_name("splits.json").read_text(encoding="utf-8"))
    return data
