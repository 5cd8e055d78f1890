"""The tasks of Sokoban.

tasks = SokobanTasks()                   # generated rooms, without any data
tasks = SokobanTasks(levels="boxoban")    # the levels in the data folder
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from envs.core import Expert, Manifest, Task, UnknownNameError, counted, hash_tasks
from envs.sokoban.boxoban import SETS, Boxoban
from envs.sokoban.env import DEAD_ENDS, ENV_ID, SokobanEnv, Solver
from envs.sokoban.generate import RoomSize, make_room
from envs.sokoban.views import VIEWS

LEVELS = ("generated", "boxoban")
FIRST_SEEDS = {"train": 0, "valid": 1_000_000}
MOST_REPEATED = 500  # rooms in a row that are known already; then there are no more new ones
TURNS_PER_BOX = 15  # of generated rooms; verl-agent gives one box 15 turns
BOXOBAN_TURNS = 120  # of gym-sokoban


class SokobanTasks:
    """Sokoban as a `TaskSet`. Rooms are generated, and levels read, when the first task is requested."""

    def __init__(
        self,
        levels: str = "generated",
        observation: str = "grid",
        dead_ends: str = "ignore",
        max_turns: int | None = None,
        rows: int = 6,
        columns: int = 6,
        boxes: int = 1,
        depth: int = 30,
        train_tasks: int = 2000,
        valid_tasks: int = 200,
        data: str | os.PathLike[str] | None = None,
    ) -> None:
        """`levels` is one of `LEVELS`, `observation` one of `VIEWS`, `dead_ends` one of `DEAD_ENDS`.

        Rows to `valid_tasks` are those of generated rooms. `data` is the folder above `boxoban` (None:
        `envs.core.data_root()`). Raises `UnknownNameError`, `ValueError`, and `NoDataError` where there are no levels.
        """
        for kind, name, known in (
            ("kind of levels", levels, LEVELS),
            ("observation", observation, VIEWS),
            ("dead_ends", dead_ends, DEAD_ENDS),
        ):
            if name not in known:
                raise UnknownNameError(kind, name, known)
        self._size = RoomSize(rows, columns, boxes, depth)
        if not 0 < train_tasks <= FIRST_SEEDS["valid"] or valid_tasks < 1 or (max_turns is not None and max_turns < 1):
            raise ValueError(
                f"train_tasks must be in 1 to {FIRST_SEEDS['valid']}, where the seeds of valid begin, valid_tasks and "
                f"max_turns at least 1; got {train_tasks}, {valid_tasks} and {max_turns}"
            )
        self._counts = {"train": train_tasks, "valid": valid_tasks}
        self._observation, self._dead_ends = observation, dead_ends
        self._boxoban = Boxoban(None if data is None else Path(data).expanduser()) if levels == "boxoban" else None
        self._max_turns = max_turns or (BOXOBAN_TURNS if self._boxoban else TURNS_PER_BOX * boxes)
        self._manifests: dict[str, Manifest] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Without the rooms, which tasks carry to workers."""
        return {name: value for name, value in self.__dict__.items() if name != "_generated"} | {"_manifests": {}}

    @property
    def env_id(self) -> str:
        return ENV_ID

    @property
    def splits(self) -> Sequence[str]:
        return tuple(self._boxoban.files if self._boxoban else FIRST_SEEDS)

    @property
    def eval_splits(self) -> Sequence[str]:
        """Of Boxoban the unfiltered test levels, if they are there."""
        return [split for split in self.splits if split in ("valid", "unfiltered_test")] or self.splits[1:]

    @property
    def max_turns(self) -> int:
        return self._max_turns

    def manifest(self, split: str) -> Manifest:
        """The rooms of a split; the hash covers them."""
        self._check_split(split)
        if split not in self._manifests:
            ids = self._boxoban.ids(split) if self._boxoban else sorted(self._generated[split])
            contents = ((name, self._room(split, name).encode()) for name in ids)
            official = SETS[split][1] if self._boxoban else None
            self._manifests[split] = Manifest(ENV_ID, split, tuple(ids), hash_tasks(contents), official)
        return self._manifests[split]

    def task(self, split: str, task_id: str) -> Task:
        self._check_split(split)
        try:
            room = self._room(split, task_id)
        except KeyError:
            raise UnknownNameError(f"task of {ENV_ID} {split}", task_id, self.manifest(split).ids) from None
        return Task(id=task_id, env=ENV_ID, split=split, payload={"room": room})

    def make(self) -> SokobanEnv:
        """A new environment."""
        return SokobanEnv(self.max_turns, self._observation, self._dead_ends)

    def expert(self) -> Expert:
        """A solver, which sees the whole state also where the observation leaves out the walls."""
        return Solver()

    def describe(self) -> str:
        if self._boxoban:
            kinds = "Boxoban's levels, of the splits " + ", ".join(self.splits)
        else:
            size = self._size
            boxes = f"{size.boxes} box{'es' * (size.boxes != 1)}"
            counts = ", ".join(f"{counted(count, 'room')} in {split}" for split, count in self._counts.items())
            kinds = f"generated: {counts}, of {size.rows}x{size.columns} with {boxes}"
        return f"{ENV_ID}: {kinds}; shown as {self._observation}, at most {counted(self.max_turns, 'turn')}"

    def facts(self) -> dict[str, Any]:
        """See `envs.facts.environment_facts`."""
        return {"splits": list(self.splits)}

    def _check_split(self, split: str) -> None:
        if split not in self.splits:
            raise UnknownNameError(f"split of {ENV_ID}", split, self.splits)

    def _room(self, split: str, task_id: str) -> str:
        return self._boxoban.room(split, task_id) if self._boxoban else self._generated[split][task_id]

    @cached_property
    def _generated(self) -> Mapping[str, Mapping[str, str]]:
        """Rooms by split and id. No room is in both splits, and none is twice in `valid`."""
        first = FIRST_SEEDS["train"]
        train = {_task_id(seed): make_room(seed, self._size)[0] for seed in range(first, first + self._counts["train"])}
        known = set(train.values())
        valid: dict[str, str] = {}
        seed, repeated = FIRST_SEEDS["valid"], 0
        while len(valid) < self._counts["valid"] and repeated < MOST_REPEATED:
            room, _ = make_room(seed, self._size)
            repeated = repeated + 1 if room in known else 0
            if room not in known:
                valid[_task_id(seed)] = room
                known.add(room)
            seed += 1
        if len(valid) < self._counts["valid"]:
            raise ValueError(
                f"there are no more rooms of {self._size} for valid: {MOST_REPEATED} in a row were in train or in "
                f"valid already, and {len(valid)} of {self._counts['valid']} were found; use fewer tasks, or more space"
            )
        return {"train": train, "valid": valid}


def _task_id(seed: int) -> str:
    return f"seed-{seed:07d}"
