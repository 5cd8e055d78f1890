"""One reward at the end, a map that can be solved, and states that repeat."""

import gymnasium as gym
import numpy as np
import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from envs.conformance import TaskSetConformance
from envs.core import StopReason, Task
from envs.key_corridor.env import KeyCorridorEnv, KeyCorridorTasks

# 3 - 1 - 4 with 2 beside 1, and a way round from 3 to 4
TASK = Task(
    "small",
    "polyturn/KeyCorridor-v0",
    payload={"type": "key beside the row", "doors": [[3, 1], [1, 4], [1, 2], [3, 4]], "start": 3, "key": 2, "exit": 4},
)


class TestKeyCorridorTasks(TaskSetConformance):
    def make_task_set(self) -> KeyCorridorTasks:
        return KeyCorridorTasks()


def test_only_unlocking_the_door_has_a_reward() -> None:
    env = KeyCorridorEnv()
    observation, info = env.reset(options={"task": TASK})
    assert observation == "Find the key and unlock the door. You are in room 3. You can go to room 1, room 4."
    assert info["state_key"] == "room 3"
    plan = {
        "go to room 2": "Nothing happens.",
        "go to room 4": "You are in room 4. You can go to room 1, room 3. A locked door is here.",
        "unlock door": "Nothing happens.",
        "go to room 1": "You are in room 1. You can go to room 2, room 3, room 4.",
        "go to room 2 ": "Nothing happens.",
    }
    for action, seen in plan.items():
        assert env.step(action)[:3] == (seen, 0.0, False)
    assert env.step("go to room 2")[0] == "You are in room 2. You can go to room 1. A key lies here."
    observation, _, _, _, info = env.step("take key")
    assert observation == "You are in room 2. You can go to room 1. You hold the key."
    assert info["state_key"] == "room 2 with the key"
    assert info["admissible"] == ["go to room 1"]
    env.step("go to room 1")
    assert env.step("go to room 4")[4]["admissible"] == ["go to room 1", "go to room 3", "unlock door"]
    observation, reward, terminated, _, info = env.step("unlock door")
    assert (observation, reward, terminated) == ("The door opens.", 1.0, True)
    assert (info["success"], info["score"], info["stop_reason"]) == (True, 1.0, StopReason.SUCCESS)


def test_walking_in_a_circle_returns_to_the_same_state() -> None:
    env = KeyCorridorEnv()
    keys = [env.reset(options={"task": TASK})[1]["state_key"]]
    keys += [env.step(f"go to room {room}")[4]["state_key"] for room in (1, 4, 3)]
    assert keys == ["room 3", "room 1", "room 4", "room 3"]


@pytest.mark.parametrize(("rooms", "loops"), [(4, 0), (4, 1), (8, 1), (15, 4)])
def test_the_expert_solves_every_size(rooms: int, loops: int) -> None:
    tasks = KeyCorridorTasks(rooms, loops, max_turns=4 * rooms, train_tasks=50, valid_tasks=10)
    env = tasks.make()
    kinds = set()
    for split in tasks.splits:
        for task_id in tasks.manifest(split).ids:
            task = tasks.task(split, task_id)
            kinds.add(task.payload["type"])
            assert {room for door in task.payload["doors"] for room in door} == set(range(1, rooms + 1))
            expert = tasks.expert()
            observation, info = env.reset(options={"task": task})
            expert.reset(observation, info)
            while not info["stop_reason"]:
                action = expert.act()
                assert action in info["admissible"]
                observation, _, _, _, info = env.step(action)
                expert.observe(action, observation, info)
            assert info["success"], task
    assert kinds == {"key beside the row", "key in the row"}


@pytest.mark.parametrize(("rooms", "loops"), [(0, 0), (2, 0), (3, 0), (4, 2), (8, -1)])
def test_impossible_sizes_are_refused(rooms: int, loops: int) -> None:
    with pytest.raises(ValueError, match=f"got rooms={rooms}, loops={loops}"):
        KeyCorridorTasks(rooms, loops)


def test_gymnasium_makes_a_corridor_from_a_seed() -> None:
    env = gym.make("polyturn/KeyCorridor-v0")
    first, _ = env.reset(seed=3)
    assert env.reset(seed=3)[0] == first
    with pytest.raises(ValueError, match="make_rooms"):
        env.reset(options={"task": "room 1"})


def test_the_configuration_has_the_defaults() -> None:
    tasks = instantiate(OmegaConf.load("conf/env/key_corridor.yaml"))
    assert tasks.manifest("valid") == KeyCorridorTasks().manifest("valid")
    assert tasks.max_turns == KeyCorridorTasks().max_turns


def test_the_expert_returns_for_a_key_that_was_left() -> None:
    """Warm starts play other actions than the expert's now and then."""
    tasks, rng = KeyCorridorTasks(rooms=8, max_turns=200), np.random.default_rng(0)
    for task_id in tasks.manifest("valid").ids[:40]:
        task = tasks.task("valid", task_id)
        env, expert = tasks.make(), tasks.expert()
        observation, info = env.reset(seed=task.seed, options={"task": task})
        expert.reset(observation, info)
        done = False
        while not done:
            action = expert.act()
            if rng.random() < 0.3:
                action = str(rng.choice(info["admissible"]))
            observation, _, terminated, truncated, info = env.step(action)
            expert.observe(action, observation, info)
            done = terminated or truncated
        assert info["success"]
