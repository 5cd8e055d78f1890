"""A task set whose episodes take a second, and which starts without torch."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from envs.core import Info, Manifest, Task, TextEnv, hash_tasks


class Wait(TextEnv):
    """An environment whose only action is to wait."""

    def _begin(self, task: Any, seed: int | None) -> tuple[str, Info]:
        return "Wait.", {"goal": "wait", "admissible": ["wait"]}

    def _act(self, action: str) -> tuple[str, float, bool, Info]:
        time.sleep(0.02)
        return "You wait.", 0.0, False, {"admissible": ["wait"]}


class Waits:
    """Six tasks."""

    env_id = "test/Wait-v0"
    splits: Sequence[str] = ("valid_seen",)
    max_turns = 2

    def manifest(self, split: str) -> Manifest:
        ids = tuple(f"wait-{i}" for i in range(6))
        return Manifest(self.env_id, split, ids, hash_tasks((i, b"") for i in ids))

    def task(self, split: str, task_id: str) -> Task:
        return Task(task_id, self.env_id, split)

    def make(self) -> Wait:
        return Wait(self.max_turns)

    def expert(self) -> None:
        return None

    def describe(self) -> str:
        return "six times waiting"
