"""TextWorldExpress by its real engine: games by seed, gold paths, and a recording."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from envs.conformance import Subject, TaskSetConformance
from envs.core import Task, UnknownNameError
from envs.jvm_env import LONGEST_ACTION
from envs.textworld_express.env import UNKNOWN, TextWorldExpressEnv, brief
from envs.textworld_express.tasks import GAMES, TextWorldExpressTasks
from tests.engines import needs_java

pytestmark = needs_java("textworld_express")


class TestConformance(TaskSetConformance):
    def make_task_set(self) -> TextWorldExpressTasks:
        return TextWorldExpressTasks(["coin", "simonsays"], train_tasks=3, valid_tasks=2, max_turns=8)

    def subject(self) -> Subject:
        tasks = self.make_task_set()
        played = [tasks.task("train", "coin-00000"), tasks.task("test", "simonsays-20001")]
        return Subject(tasks.make, played, tasks.max_turns, tasks.expert)


@pytest.fixture
def env() -> Iterator[TextWorldExpressEnv]:
    with closing(TextWorldExpressTasks().make()) as made:
        yield made


@pytest.mark.parametrize("name", GAMES)
def test_the_gold_path_solves_every_game(name: str, env: TextWorldExpressEnv) -> None:
    tasks = TextWorldExpressTasks([name])
    task = tasks.task("dev", f"{name}-10000")
    shown, info = env.reset(options={"task": task})
    expert, total = tasks.expert(), 0.0
    expert.reset(shown, info)
    while not info["stop_reason"]:
        action = expert.act()
        shown, reward, _, _, info = env.step(action)
        expert.observe(action, shown, info)
        total += float(reward)
    assert (round(total, 9), info["score"], info["stop_reason"]) == (1.0, 1.0, "success")


def test_a_wrong_move_may_end_a_game_with_a_negative_reward(env: TextWorldExpressEnv) -> None:
    tasks = TextWorldExpressTasks(["simonsays"])
    shown, info = env.reset(options={"task": tasks.task("dev", "simonsays-10000")})
    wrong = next(action for action in info["admissible"] if action not in shown)
    assert env.step("help")[:2] == (info["goal"], 0.0)
    assert env.step("jump " * LONGEST_ACTION)[:2] == (UNKNOWN, 0.0)
    _, reward, terminated, _, info = env.step(wrong)
    assert (reward, terminated, info["score"], info["stop_reason"]) == (-1.0, True, 0.0, "failure")


def test_the_splits_are_the_folds_of_the_engine(env: TextWorldExpressEnv) -> None:
    tasks = TextWorldExpressTasks(valid_tasks=1000)
    assert {split: len(tasks.manifest(split).ids) for split in tasks.splits} == dict.fromkeys(tasks.splits, 8000)
    assert tasks.task("test", "twc-20999").payload == {"type": "twc", "params": "", "seed": 20999, "fold": "test"}
    env.jvm.call("load", "coin", "")
    for split, first in (("Train", 0), ("Dev", 10_000), ("Test", 20_000)):
        seeds = env.jvm.call(f"getSeeds{split}")
        assert (len(seeds), seeds[0], seeds[999]) == (1000, first, first + 999)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"games": ["coins"]}, UnknownNameError, "did you mean 'coin'"),
        ({"games": []}, ValueError, "games must name one"),
        ({"params": "numLocations=5"}, ValueError, "games must name one"),
        ({"valid_tasks": 1001}, ValueError, "from 1 to 1000"),
        ({"max_turns": 0}, ValueError, "max_turns must be at least 1"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        TextWorldExpressTasks(**settings)


def test_parameters_that_the_engine_does_not_know_are_refused(env: TextWorldExpressEnv) -> None:
    task = TextWorldExpressTasks(["coin"], "rooms=5").task("train", "coin-00000")
    with pytest.raises(ValueError, match="refuses coin with 'rooms=5': Unrecognized property name"):
        env.reset(options={"task": task})
    with pytest.raises(ValueError, match="payload has fold, params, seed, type"):
        env.reset(options={"task": Task("a", "b")})


def test_the_brief_form_has_what_is_seen() -> None:
    text = (
        "You are in the kitchen. In one part of the room you see a stove. There is also a counter, that has nothing on "
        "it. \nTo the North you see a closed wood door. Through an open oak door, to the South you see the street. "
    )
    assert brief(text) == "kitchen. stove. counter. North closed. South street."


def test_the_configuration_has_the_defaults() -> None:
    ours, default = instantiate(OmegaConf.load("conf/env/textworld_express.yaml")), TextWorldExpressTasks()
    assert ours.manifest("dev") == default.manifest("dev")
    assert ours.describe() == default.describe()
