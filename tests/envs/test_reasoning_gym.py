"""Questions of reasoning-gym: by seed, graded by the package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from envs.conformance import TaskSetConformance
from envs.core import Task, UnknownNameError
from envs.reasoning_gym.tasks import REFUSED, ReasoningGymTasks
from tests.engines import needs_package

pytestmark = needs_package("reasoning_gym", "reasoning_gym")


class TestConformance(TaskSetConformance):
    def make_task_set(self) -> ReasoningGymTasks:
        return ReasoningGymTasks("pool_matrix", train_tasks=2, valid_tasks=2)  # it seeds numpy's global generator


def ask(tasks: ReasoningGymTasks, split: str, number: int, answer: str) -> Any:
    env = tasks.make()
    question, info = env.reset(options={"task": tasks.task(split, tasks.manifest(split).ids[number])})
    return question, info, env.step(answer)


def test_the_questions_are_those_of_the_package() -> None:
    import reasoning_gym

    entries = reasoning_gym.create_dataset("leg_counting", seed=1_000_000, size=10)
    tasks = ReasoningGymTasks("leg_counting", valid_tasks=10)
    for number, entry in enumerate(entries):
        question, info, (text, reward, terminated, _, last) = ask(tasks, "valid", number, f" {entry['answer']}\n")
        assert (question, info["goal"], info["answers"]) == (entry["question"], entry["question"], [entry["answer"]])
        assert (text, reward, terminated, last["stop_reason"]) == ("Score: 1", 1.0, True, "success")


def test_the_page_shows_an_episode() -> None:
    page = Path("docs/environments/reasoning_gym.md").read_text(encoding="utf-8")
    question, _, (text, *_) = ask(ReasoningGymTasks("leg_counting"), "valid", 0, "134")
    shown = "".join(f"    {line}\n" if line else "\n" for line in [*question.splitlines(), "> 134", text])
    assert shown in page


def test_a_part_of_the_score_is_no_success() -> None:
    entry = ReasoningGymTasks("chain_sum")
    _, info, (_, reward, _, _, last) = ask(entry, "train", 3, "")
    _, _, (_, more, _, _, other) = ask(entry, "train", 3, f"It is {info['answers'][0]}")
    assert (reward, last["score"], last["stop_reason"]) == (0.0, 0.0, "failure")
    assert 0 < more < 1
    assert (other["success"], other["stop_reason"]) == (False, "failure")


def test_a_grader_that_raises_gives_a_score_of_0(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = ReasoningGymTasks("leg_counting")
    env = tasks.make()
    env.reset(options={"task": tasks.task("train", "seed-0000000")})
    for score in (float("nan"), "much"):
        monkeypatch.setattr(env._dataset, "score_answer", lambda *_, given=score: given)
        assert env._grade("7") == 0.0


def test_settings_reach_the_dataset() -> None:
    tasks = ReasoningGymTasks("chain_sum", {"min_terms": 9, "max_terms": 9})
    question, _, _ = ask(tasks, "train", 0, "")
    assert question.count(" + ") + question.count(" - ") == 8
    assert tasks.manifest("train") != ReasoningGymTasks("chain_sum").manifest("train")


@pytest.mark.parametrize("name", REFUSED)
def test_datasets_that_execute_the_answer_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"env.dataset={name} is refused: "):
        ReasoningGymTasks(name)


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'leg_counting'"):
        ReasoningGymTasks("leg_countin")
    with pytest.raises(UnknownNameError, match="unknown setting of chain_sum 'seed'"):
        ReasoningGymTasks("chain_sum", {"seed": 3})
    with pytest.raises(ValueError, match="chain_sum refuses env"):
        ReasoningGymTasks("chain_sum", {"min_terms": 0})
    with pytest.raises(ValueError, match="needs a Task with the payload of ReasoningGymTasks"):
        ReasoningGymTasks("chain_sum").make().reset(options={"task": Task("a", "b")})


def test_the_configuration_has_the_defaults() -> None:
    cfg = OmegaConf.merge(OmegaConf.load("conf/env/reasoning_gym.yaml"), {"dataset": "chain_sum"})
    assert instantiate(cfg).manifest("valid") == ReasoningGymTasks("chain_sum").manifest("valid")
