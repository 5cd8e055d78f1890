"""The generated questions, their expert, and `ToolTasks`."""

from __future__ import annotations

import json
import pickle
import random
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from agents.parsing import fits
from envs.conformance import TaskSetConformance
from envs.core import Info, Task, UnknownNameError, evaluation_splits
from envs.search.generate import is_held_out
from envs.search.retrieval import open_retriever
from envs.tools.calls import FORMATS
from envs.tools.expert import ToolsExpert, next_move
from envs.tools.generate import KINDS
from envs.tools.questions import is_right
from envs.tools.tasks import ToolTasks

SIZES = {"embedded_people": 120, "train_tasks": 70, "valid_tasks": 28}


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POLYTURN_CACHE", str(tmp_path_factory.mktemp("cache")))
        open_retriever.cache_clear()
        yield


def test_without_the_sandbox_no_tasks_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "envs.tools.sandbox", raising=False)
    monkeypatch.setitem(sys.modules, "pydantic_monty", None)
    with pytest.raises(ImportError, match=r"the Python tool needs the extra: pip install 'polyturn\[tools\]'"):
        ToolTasks(**SIZES)


def all_tasks(tasks: ToolTasks) -> list[Task]:
    return [tasks.task(split, name) for split in tasks.splits for name in tasks.manifest(split).ids]


def solve(tasks: ToolTasks, task: Task) -> tuple[Info, list[str]]:
    """The final `info`, and the messages of the expert."""
    env, expert = tasks.make(), tasks.expert()
    assert expert is not None
    observation, info = env.reset(options={"task": task})
    expert.reset(observation, info)
    messages: list[str] = []
    over = False
    while not over:
        messages.append(expert.act())
        assert expert.act() == messages[-1]
        assert info["admissible"] is None or fits(messages[-1], info["admissible"])
        observation, _, terminated, truncated, info = env.step(messages[-1])
        expert.observe(messages[-1], observation, info)
        over = terminated or truncated
    env.close()
    return info, messages


class TestConformance(TaskSetConformance):
    def make_task_set(self) -> ToolTasks:
        return ToolTasks(embedded_people=120, train_tasks=14, valid_tasks=7)


@pytest.mark.parametrize("name", FORMATS)
def test_expert_solves_every_question_in_every_format(name: str) -> None:
    tasks = ToolTasks(format=name, **SIZES)
    for task in all_tasks(tasks):
        info, messages = solve(tasks, task)
        assert info["success"], (task.payload["question"], messages)
        assert info["least_calls"] <= info["calls_made"] == len(messages) - 1


def test_a_split_has_every_kind_equally_often() -> None:
    tasks = ToolTasks(**SIZES)
    for split in tasks.splits:
        kinds = Counter(tasks.task(split, name).payload["type"] for name in tasks.manifest(split).ids)
        assert set(kinds) == set(KINDS)
        assert max(kinds.values()) == min(kinds.values())


def test_questions_of_evaluations_are_not_trained_on() -> None:
    tasks = ToolTasks(**SIZES)
    asked: dict[str, set[str]] = {}
    for task in all_tasks(tasks):
        asked.setdefault(task.split, set()).add(json.dumps([task.payload["question"], task.payload.get("tables")]))
        if task.payload["type"] == "arithmetic":
            assert is_held_out(task.payload["question"]) == (task.split != "train")
    assert not asked["train"] & (asked["valid"] | asked["harder"])
    assert evaluation_splits(tasks) == ["valid"]


def test_the_answer_needs_a_tool() -> None:
    """No answer stands in the first observation, but for a small number by chance."""
    tasks = ToolTasks(**SIZES)
    env = tasks.make()
    for task in all_tasks(tasks):
        observation, info = env.reset(options={"task": task})
        [answer] = info["answers"]
        if task.payload["type"] != "program":
            assert not any(is_right(word.strip("?:,()."), answer) for word in observation.split()), observation
        assert not [action for action in info["admissible"] if action.startswith("answer[")]


def test_every_turn_of_the_expert_that_brings_a_needed_value_is_rewarded() -> None:
    tasks = ToolTasks(**SIZES)
    env = tasks.make()
    for task in all_tasks(tasks)[:28]:
        observation, info = env.reset(options={"task": task})
        expert = tasks.expert()
        assert expert is not None
        expert.reset(observation, info)
        rewards = []
        over = False
        while not over:
            action = expert.act()
            observation, _, over, _, info = env.step(action)
            expert.observe(action, observation, info)
            rewards.append(info["turn_reward"])
        assert rewards[0] == 1
        assert rewards[-1] == 0
        assert env.reset(options={"task": task})[1]["calls_made"] == 0


def test_what_manifests_depend_on() -> None:
    first = ToolTasks(**SIZES).manifest("valid")
    assert first == ToolTasks(**SIZES).manifest("valid")
    for change in ({"format": "tags"}, {"call_seconds": 1.0}, {"embedded_people": 96}, {"valid_tasks": 35}):
        assert ToolTasks(**{**SIZES, **change}).manifest("valid").content_hash != first.content_hash  # type: ignore[arg-type]


def test_the_world_is_not_sent_to_workers() -> None:
    tasks = ToolTasks(**SIZES)
    whole = tasks.manifest("train")
    sent = pickle.dumps(tasks)
    assert len(sent) < 50_000
    assert pickle.loads(sent).manifest("train") == whole


def test_errors_of_options_name_the_mistake() -> None:
    with pytest.raises(UnknownNameError, match="unknown format 'tag'; did you mean 'tags'"):
        ToolTasks(format="tag")
    with pytest.raises(UnknownNameError, match="unknown set of questions 'embeded'; did you mean 'embedded'"):
        ToolTasks(questions="embeded")
    with pytest.raises(ValueError, match="must be at least 1"):
        ToolTasks(train_tasks=0)
    with pytest.raises(ValueError, match="24 to 576 people"):
        ToolTasks(embedded_people=3).manifest("train")
    with pytest.raises(ValueError, match="cannot read the question"):
        next_move("Why?", {})


def test_the_configuration_is_that_of_the_class() -> None:
    conf = OmegaConf.load(Path(__file__).parents[2] / "conf" / "env" / "tools.yaml")
    tasks = instantiate(conf, **SIZES)
    assert tasks.describe() == ToolTasks(**SIZES).describe()
    assert "at most 10 turns" in tasks.describe()
    for split in tasks.splits:  # it counts without drawing the questions, which takes seconds
        assert f"{len(tasks.manifest(split).ids)} questions in {split}" in tasks.describe()


def test_the_expert_goes_on_from_any_point() -> None:
    tasks = ToolTasks(**SIZES)
    env, rng = tasks.make(), random.Random(0)
    solved = []
    for task in all_tasks(tasks)[:40]:
        expert = ToolsExpert()
        observation, info = env.reset(options={"task": task})
        expert.reset(observation, info)
        over = False
        while not over:
            others = [a for a in info["admissible"] if not a.startswith(("answer", "note"))]
            action = rng.choice(others) if rng.random() < 0.3 else expert.act()
            observation, _, terminated, truncated, info = env.step(action)
            expert.observe(action, observation, info)
            over = terminated or truncated
        solved.append(info["success"])
    assert sum(solved) >= 38
