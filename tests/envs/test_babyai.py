"""BabyAI in words: levels by seed, actions, and what ends an episode. Recordings are in test_env_replay."""

from __future__ import annotations

import random

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from envs.babyai.env import UNCHANGED, UNKNOWN
from envs.babyai.tasks import LEVELS, BabyAITasks
from envs.conformance import Subject, TaskSetConformance
from envs.core import Task, UnknownNameError
from tests.engines import needs_package

pytestmark = needs_package("minigrid", "babyai")


class TestConformance(TaskSetConformance):
    def make_task_set(self) -> BabyAITasks:
        return BabyAITasks(["GoToRedBall", "Unlock"], train_tasks=2, valid_tasks=2, max_turns=6)

    def subject(self) -> Subject:
        tasks = self.make_task_set()
        return Subject(tasks.make, [tasks.task("valid", "seed-1000001")], tasks.max_turns)


def test_the_tasks_are_those_of_agentgym() -> None:
    tasks = BabyAITasks(train_tasks=81)
    ids = tasks.manifest("train").ids
    played = [tasks.task("train", ids[number]).payload for number in (0, 39, 40, 80)]
    assert [(one["type"], one["seed"]) for one in played] == [
        (LEVELS[0], 0), (LEVELS[39], 0), (LEVELS[0], 1), (LEVELS[0], 2),
    ]  # fmt: skip
    assert tasks.task("valid", tasks.manifest("valid").ids[41]).payload["seed"] == 1_000_001


def test_an_action_of_several_moves_reaches_the_ball() -> None:
    tasks = BabyAITasks(["GoToRedBallNoDists"])
    env = tasks.make()
    text, info = env.reset(options={"task": tasks.task("train", "seed-0000000")})
    assert text.startswith("Your goal: go to the red ball\nIn front of you in this room")
    assert "check available actions" not in info["admissible"]
    assert env.step("Go To Red Ball 7 ")[0].startswith(UNKNOWN)
    assert env.step("")[0].startswith(UNCHANGED)
    assert env.step("please check")[0].startswith("You can take the following actions: turn left, ")
    while not any(action.startswith("go to red ball") for action in info["admissible"]):
        info = env.step("turn left")[4]
    text, reward, terminated, _, info = env.step("go to red ball 1")
    assert "The task is completed." in text
    assert (terminated, info["score"], info["stop_reason"]) == (True, 1.0, "success")
    assert 0.5 < reward < 1


@pytest.mark.parametrize("level", LEVELS)
def test_every_level_can_be_played(level: str) -> None:
    tasks, rng = BabyAITasks([level], max_turns=30), random.Random(level)
    env = tasks.make()
    _, info = env.reset(options={"task": tasks.task("valid", "seed-1000000")})
    while not info["stop_reason"]:
        info = env.step(rng.choice(info["admissible"]))[4]


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'GoToRedBall'"):
        BabyAITasks(["GoToRedball"])
    with pytest.raises(ValueError, match="levels is empty"):
        BabyAITasks([])
    with pytest.raises(ValueError, match="needs a Task with the payload of BabyAITasks"):
        BabyAITasks().make().reset(options={"task": Task("a", "b")})


def test_the_configuration_has_the_defaults() -> None:
    assert instantiate(OmegaConf.load("conf/env/babyai.yaml")).manifest("valid") == BabyAITasks().manifest("valid")
