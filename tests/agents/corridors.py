"""A corridor to walk: a small environment with tasks and an expert. Workers import it without torch."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import gymnasium as gym

from envs.core import Info, Manifest, Task, TextEnv, hash_tasks

ACTIONS = ["go left", "go right", "open door 1"]


class Corridor(TextEnv):
    """Walk right until the door, then open it. `payload["length"]` rooms; a payload may ask for a fault."""

    def _begin(self, task: Any, seed: int | None) -> tuple[str, Info]:
        self.payload = dict(task.payload)
        if self.payload.get("fault") == "reset":
            raise RuntimeError("the corridor is closed today")
        self.at = 0
        return f"You are in room 1 of {self.payload['length']}. Open the door 1.", self._extra()

    def _act(self, action: str) -> tuple[str, float, bool, Info]:
        if self.payload.get("fault") == "step":
            raise RuntimeError("the floor gave way")
        if self.payload.get("fault") == "hang":
            time.sleep(60)
        last = self.payload["length"] - 1
        if action == "open door 1" and self.at == last:
            return "The door 1 is open.", 1.0, True, self._extra(success=True, score=1.0)
        if action not in ACTIONS:
            return "Nothing happens.", 0.0, False, self._extra()
        self.at = min(last, max(0, self.at + {"go left": -1, "go right": 1}.get(action, 0)))
        return f"You are in room {self.at + 1}.", 0.0, False, self._extra()

    def _extra(self, **more: Any) -> Info:
        return {"goal": "open the door", "admissible": list(ACTIONS), **more}

    def _save(self) -> Any:
        return (self.at, dict(self.payload))

    def _load(self, saved: Any) -> None:
        self.at, self.payload = saved[0], dict(saved[1])


class CorridorExpert:
    """Counts the rooms it has seen and walks right."""

    def reset(self, observation: str, info: Info) -> None:
        self.length = int(observation.split(" of ")[1].split(".")[0])
        self.at = 1

    def act(self) -> str:
        return "go right" if self.at < self.length else "open door 1"

    def observe(self, action: str, observation: str, info: Info) -> None:
        if observation.startswith("You are in room"):
            self.at = int(observation.split("room ")[1].rstrip("."))


class Corridors:
    """A task set of corridors of 2 to 4 rooms."""

    env_id = "test/Corridor-v0"
    splits: Sequence[str] = ("train", "valid")
    max_turns = 8

    def manifest(self, split: str) -> Manifest:
        ids = tuple(f"{split}-{i:03d}" for i in range(24 if split == "train" else 6))
        return Manifest(self.env_id, split, ids, hash_tasks((i, b"") for i in ids))

    def task(self, split: str, task_id: str) -> Task:
        length = 2 + int(task_id.rsplit("-", 1)[1]) % 3
        return Task(task_id, self.env_id, split, payload={"length": length, "type": f"{length} rooms"})

    def make(self) -> gym.Env[str, str]:
        return Corridor(self.max_turns)

    def expert(self) -> CorridorExpert:
        return CorridorExpert()

    def describe(self) -> str:
        return "corridors of 2 to 4 rooms"


def corridor(length: int = 3, **payload: Any) -> Task:
    """A task with its own id."""
    return Task(f"corridor-{length}-{payload}", "test/Corridor-v0", payload={"length": length, **payload})
