"""Task sets whose tasks are listed by a server."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from envs.core import Expert, Manifest, Task, UnknownNameError


class ListedTasks(ABC):
    """Tasks that a server lists. The list of a split is fetched when it is needed first."""

    env_id: ClassVar[str]

    def __init__(self, offers: str, splits: Sequence[str], eval_splits: Sequence[str], max_turns: int) -> None:
        """`offers` is the server's name of its environment."""
        self.offers, self.splits, self.eval_splits, self.max_turns = offers, splits, eval_splits, max_turns
        self._fetched: dict[str, tuple[Manifest, dict[str, Task]]] = {}

    @abstractmethod
    def fetch(self, split: str) -> tuple[Manifest, dict[str, Task]]:
        """The manifest of a split, and its tasks by their ids."""

    def manifest(self, split: str) -> Manifest:
        """The tasks of a split. Raises `UnknownNameError`."""
        return self._split(split)[0]

    def task(self, split: str, task_id: str) -> Task:
        """A task by its id. Raises `UnknownNameError`."""
        _, tasks = self._split(split)
        if task_id not in tasks:
            raise UnknownNameError(f"task of {self.env_id} {split}", task_id, tasks)
        return tasks[task_id]

    def expert(self) -> Expert | None:
        """None: there is no expert."""
        return None

    def _split(self, split: str) -> tuple[Manifest, dict[str, Task]]:
        if split not in self.splits:
            raise UnknownNameError(f"split of {self.env_id}", split, self.splits)
        if split not in self._fetched:
            self._fetched[split] = self.fetch(split)
        return self._fetched[split]
