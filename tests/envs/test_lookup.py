"""Questions have the answers that their world gives, in one split each, and an expert finds them."""

from typing import Any

import gymnasium as gym
import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from envs.conformance import TaskSetConformance
from envs.core import StopReason, Task
from envs.lookup.env import LookupEnv, LookupTasks, normalise, questions, read_question

FACTS = {
    "Ostrow": {"baker": "Anna", "smith": "Emil"},
    "Anna": {"trade": "baker", "town": "Ostrow", "house": "green", "pet": "goose", "friend": "Emil"},
    "Emil": {"trade": "smith", "town": "Ostrow", "house": "red", "pet": "cat", "friend": "Anna"},
}
TASK = Task(
    "colour",
    "polyturn/Lookup-v0",
    payload={
        "type": "two hops",
        "question": "Which colour is the house of the baker of Ostrow?",
        "chain": ["Ostrow", "Anna"],
        "answers": ["green"],
        "facts": FACTS,
    },
)


class TestLookupTasks(TaskSetConformance):
    def make_task_set(self) -> LookupTasks:
        return LookupTasks(train_tasks=40, valid_tasks=10)


def play(*actions: str) -> list[tuple[str, float, bool, bool, dict[str, Any]]]:
    env = LookupEnv()
    env.reset(options={"task": TASK})
    return [env.step(action) for action in actions]


def test_a_search_tells_what_is_known_and_turns_that_help_are_paid_once() -> None:
    steps = play("search: Ostrow", "Search:  anna ", "search: Anna", "search: Emil", "search: Rosa", "look")
    said, rewards, _, _, infos = zip(*steps, strict=True)
    assert said[0] == "Ostrow: baker Anna, smith Emil."
    assert said[1] == said[2] == "Anna: trade baker, town Ostrow, house green, pet goose, friend Emil."
    assert said[4:] == ("Nothing found.", "Say search: NAME or answer: TEXT.")
    assert rewards == (0.0,) * 6
    assert [info["turn_reward"] for info in infos] == [1.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    assert [info["tool_result"] for info in infos] == [True] * 5 + [False]
    assert infos[1]["state_key"] == infos[2]["state_key"] == "looked up: Anna, Ostrow"
    assert infos[0]["admissible"] == [
        "search: Ostrow", "search: Anna", "search: Emil", "answer: Anna", "answer: Emil",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("said", "right"),
    [("answer: green", True), ("answer: The Green.", True), ("answer: red", False), ("answer: greenish", False)],
)
def test_an_answer_ends_the_episode_and_is_compared_after_normalisation(said: str, right: bool) -> None:
    (_, reward, terminated, _, info) = play("search: Ostrow", said)[1]
    assert (terminated, reward, info["score"], info["success"]) == (True, float(right), float(right), right)
    assert info["stop_reason"] == (StopReason.SUCCESS if right else StopReason.FAILURE)
    assert (info["turn_reward"], info["tool_result"]) == (0.0, False)
    assert info["answers"] == ["green"]


def test_every_question_leads_to_its_answer_and_can_be_read_back() -> None:
    asked = {question.text: question for question in questions(FACTS)}
    assert asked["Which pet does the friend of Emil keep?"].solve(FACTS) == (["Emil", "Anna"], ["goose"])
    assert asked["Who is the smith of Ostrow?"].solve(FACTS) == (["Ostrow"], ["Emil"])
    assert asked["Who lives in Ostrow?"].solve(FACTS) == (["Ostrow"], ["Anna", "Emil"])
    assert "What is the trade of the baker of Ostrow?" not in asked
    for text, question in asked.items():
        start, relations = read_question(text)
        assert (start, tuple(relations)) == (question.start, question.relations)
    with pytest.raises(ValueError, match="cannot read the question"):
        read_question("What is the capital of France?")


def test_no_question_is_in_both_splits_and_the_expert_answers_all() -> None:
    tasks = LookupTasks(train_tasks=300, valid_tasks=60)
    asked: dict[str, set[str]] = {}
    turns: dict[str, set[int]] = {"one hop": set(), "two hops": set()}
    env = tasks.make()
    for split in tasks.splits:
        for task_id in tasks.manifest(split).ids:
            task = tasks.task(split, task_id)
            asked.setdefault(split, set()).add(task.payload["question"])
            expert = tasks.expert()
            observation, info = env.reset(options={"task": task})
            expert.reset(observation, info)
            played, over, paid = 0, False, 0.0
            while not over:
                action = expert.act()
                assert action in info["admissible"]
                observation, _, over, _, info = env.step(action)
                expert.observe(action, observation, info)
                played, paid = played + 1, paid + info["turn_reward"]
            assert info["success"], task
            assert paid == len(task.payload["chain"]) == played - 1
            turns[task.payload["type"]].add(played)
    assert not asked["train"] & asked["valid"]
    assert turns == {"one hop": {2}, "two hops": {3}}


def test_gymnasium_makes_a_question_from_a_seed() -> None:
    env = gym.make("polyturn/Lookup-v0")
    first, info = env.reset(seed=3)
    assert env.reset(seed=3)[0] == first == info["goal"]
    assert env.reset(seed=4)[0] != first
    with pytest.raises(ValueError, match="make_question"):
        env.reset(options={"task": "Ostrow"})


def test_the_configuration_says_the_defaults() -> None:
    assert instantiate(OmegaConf.load("conf/env/lookup.yaml")).manifest("valid") == LookupTasks().manifest("valid")


def test_normalise_is_that_of_squad() -> None:
    assert normalise("  The quick, brown\tFOX. ") == "quick brown fox"
