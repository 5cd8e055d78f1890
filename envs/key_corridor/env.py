"""Find the key, then the locked door: `polyturn/KeyCorridor-v0`.

Rooms form a row from the start to the room with the locked door. Others are dead ends beside it, and some doors make
shortcuts. The key lies in one of the rooms between. The only reward, 1.0, is for unlocking the door. Rooms are numbered
anew for each task, and an observation shows only the current room.

`info["state_key"]` is the true state: the room, and whether the key is held. States repeat, within an attempt that
walks in circles and across attempts at the same task; anchor-state methods learn from this.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

from envs.core import Info, Task, TextEnv, counted
from envs.seed_tasks import SeedTasks

ENV_ID = "polyturn/KeyCorridor-v0"
GOAL = "Find the key and unlock the door."
KEY_HERE, DOOR_HERE, HOLDING = "A key lies here.", "A locked door is here.", "You hold the key."
TAKE, UNLOCK = "take key", "unlock door"
FEWEST_ROOMS = 4


def make_rooms(seed: int, rooms: int, loops: int) -> dict[str, Any]:
    """The payload of a task: `doors` are pairs of rooms; `start`, `key` and `exit` are rooms. Two thirds of the rooms
    form the row. Raises `ValueError` for impossible sizes.
    """
    row_length = rooms - rooms // 3
    most_loops = (row_length - 1) * (row_length - 2) // 2
    if rooms < FEWEST_ROOMS or not 0 <= loops <= most_loops:
        most = f", and loops in 0 to {most_loops}" if rooms >= FEWEST_ROOMS else ""
        raise ValueError(f"rooms must be at least {FEWEST_ROOMS}{most}; got rooms={rooms}, loops={loops}")
    rng = random.Random(seed)
    places = rng.sample(range(1, rooms + 1), rooms)
    row, beside = places[:row_length], places[row_length:]
    doors = list(pairwise(row)) + [(rng.choice(row), room) for room in beside]
    ways_round = [(a, b) for i, a in enumerate(row) for b in row[i + 2 :]]
    doors += rng.sample(ways_round, loops)
    key = rng.choice([*row[1:-1], *beside])
    kind = "key beside the row" if key in beside else "key in the row"
    return {"type": kind, "doors": [list(door) for door in doors], "start": row[0], "key": key, "exit": row[-1]}


class KeyCorridorEnv(TextEnv):
    """Walks between rooms. Without a task, `reset(seed=…)` makes one of the default size."""

    def __init__(self, max_turns: int = 30, render_mode: str | None = None) -> None:
        super().__init__(max_turns, render_mode)
        self._task: dict[str, Any] = {}  # the payload, which is never changed
        self._room, self._holding = 0, False

    def _begin(self, task: Any, seed: int | None) -> tuple[str, Info]:
        del seed  # it is in `np_random`
        if task is None:
            task = Task("", ENV_ID, payload=make_rooms(int(self.np_random.integers(2**31)), rooms=8, loops=1))
        if not isinstance(task, Task) or "doors" not in task.payload:
            raise ValueError(
                f"{ENV_ID} needs a Task with the payload of envs.key_corridor.env.make_rooms, got {task!r}"
            )
        self._task = dict(task.payload)
        self._room, self._holding = self._task["start"], False
        return f"{GOAL} {self._look()}", self._make_info()

    def _act(self, action: str) -> tuple[str, float, bool, Info]:
        if action not in self._admissible():
            return "Nothing happens.", 0.0, False, self._make_info()
        if action == UNLOCK:
            return "The door opens.", 1.0, True, self._make_info(score=1.0, success=True)
        if action == TAKE:
            self._holding = True
        else:
            self._room = int(action.rpartition(" ")[2])
        return self._look(), 0.0, False, self._make_info()

    def _look(self) -> str:
        parts = [
            f"You are in room {self._room}.",
            f"You can go to {', '.join(f'room {room}' for room in self._next_rooms())}.",
            KEY_HERE if self._room == self._task["key"] and not self._holding else "",
            DOOR_HERE if self._room == self._task["exit"] else "",
            HOLDING if self._holding else "",
        ]
        return " ".join(filter(None, parts))

    def _next_rooms(self) -> list[int]:
        doors = self._task["doors"]
        return sorted(a + b - self._room for a, b in doors if self._room in (a, b))

    def _admissible(self) -> list[str]:
        actions = [f"go to room {room}" for room in self._next_rooms()]
        if self._room == self._task["key"] and not self._holding:
            actions.append(TAKE)
        if self._room == self._task["exit"] and self._holding:
            actions.append(UNLOCK)
        return actions

    def _make_info(self, **more: Any) -> Info:
        return {
            "goal": GOAL,
            "type": self._task["type"],
            "admissible": self._admissible(),
            "state_key": f"room {self._room}{' with the key' if self._holding else ''}",
            **more,
        }

    def _save(self) -> Any:
        return self._task, self._room, self._holding

    def _load(self, saved: Any) -> None:
        self._task, self._room, self._holding = saved


class KeyCorridorExpert:
    """Walks to the nearest unseen room until it has the key, then to the door."""

    def reset(self, observation: str, info: Info) -> None:  # noqa: ARG002
        self.exits: dict[str, list[str]] = {}  # of each room seen so far
        self.door: str | None = None
        self.key: str | None = None  # where it was seen: an action other than the expert's may have left it there
        self._see(observation)

    def observe(self, action: str, observation: str, info: Info) -> None:  # noqa: ARG002
        self._see(observation)

    def _see(self, observation: str) -> None:
        if rooms := re.findall(r"room \d+", observation):
            self.here, self.exits[rooms[0]] = rooms[0], rooms[1:]
            self.key_here, self.holding = KEY_HERE in observation, HOLDING in observation
            if DOOR_HERE in observation:
                self.door = self.here
            if self.key_here:
                self.key = self.here

    def act(self) -> str:
        if self.key_here:
            return TAKE
        if self.holding and self.here == self.door:
            return UNLOCK
        target = self.door if self.holding else self.key
        return f"go to {self._step_towards([target] if target else None)}"

    def _step_towards(self, targets: Iterable[str] | None) -> str:
        """The first room on a shortest path to one of `targets`, or to any unseen room."""
        first = {room: room for room in self.exits[self.here]}
        for room in (queue := list(first)):
            if room in targets if targets else room not in self.exits:
                return first[room]
            for beyond in self.exits.get(room, ()):
                if beyond not in first and beyond != self.here:
                    first[beyond] = first[room]
                    queue.append(beyond)
        raise AssertionError("every room was seen, but there was no key or no door")


class KeyCorridorTasks(SeedTasks):
    """Corridors made from seeds; `loops` is the number of doors that make shortcuts."""

    def __init__(
        self, rooms: int = 8, loops: int = 1, max_turns: int = 30, train_tasks: int = 1000, valid_tasks: int = 100
    ) -> None:
        super().__init__(ENV_ID, max_turns, train_tasks, valid_tasks)
        self.rooms, self.loops = rooms, loops
        make_rooms(0, rooms, loops)  # raises for impossible sizes

    def payload(self, split: str, seed: int) -> dict[str, Any]:  # noqa: ARG002
        return make_rooms(seed, self.rooms, self.loops)

    def make(self) -> KeyCorridorEnv:
        return KeyCorridorEnv(self.max_turns)

    def describe(self) -> str:
        return f"{super().describe()}; {counted(self.rooms, 'room')}, {counted(self.loops, 'loop')}"

    def facts(self) -> dict[str, Any]:
        """See `envs.facts.environment_facts`."""
        return {**super().facts(), "rooms": self.rooms, "loops": self.loops}

    def expert(self) -> KeyCorridorExpert:
        return KeyCorridorExpert()
