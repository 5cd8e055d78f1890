"""Conversations of two people: what each is told, the rules of the end, partners, judges, and snapshots."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from envs.conformance import TaskSetConformance
from envs.core import NoDataError, StopReason, UnknownNameError
from envs.partners import Lines
from envs.services import ServiceError
from envs.sotopia.conversation import ACT, GESTURE, LEAVE, NONE, SPEAK, Action, Conversation, read_action
from envs.sotopia.env import SotopiaEnv
from envs.sotopia.judge import DIMENSIONS, Judge, overall, read_scores
from envs.sotopia.profiles import Person, Relationship, Scenario, context, read_stock, scenario
from envs.sotopia.tasks import SotopiaTasks

DATA = Path(os.environ.get("POLYTURN_DATA", "/nowhere")) / "sotopia"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="needs SOTOPIA's scenarios in $POLYTURN_DATA/sotopia")

SCORES = {
    "believability": 9, "relationship": 3, "knowledge": 4, "secret": 0, "social_rules": 0,
    "financial_and_material_benefits": -1, "goal": 8,
}  # fmt: skip
OTHER = {name: dimension.low for name, dimension in DIMENSIONS.items()}


class Rater:
    """A judge's model that remembers what it was asked."""

    name = "rater"

    def __init__(self, *answers: str | None) -> None:
        self.given = list(answers)
        self.prompts: list[str] = []

    def answers(self, prompts: Sequence[str], sampling: Any, seed: int) -> list[str | None]:
        del sampling, seed
        self.prompts += prompts
        return [self.given.pop(0) for _ in prompts]


def rated(first: dict[str, int] = SCORES, second: dict[str, int] = OTHER) -> str:
    both = {"agent_1": first, "agent_2": second}
    forms = {agent: {name: ["because", score] for name, score in scores.items()} for agent, scores in both.items()}
    return f"Here they are: {json.dumps(forms)}"


def begin(place: int, *lines: str, **options: Any) -> tuple[SotopiaEnv, str, dict[str, Any]]:
    tasks = SotopiaTasks("embedded", partner=Lines(lines), **options)
    env = tasks.make()
    text, info = env.reset(options={"task": tasks.task("train", f"scenario0-0-{place + 1}")})
    return env, text, info


class TestConformance(TaskSetConformance):
    def make_task_set(self) -> SotopiaTasks:
        return SotopiaTasks("embedded", max_turns=6)


def test_a_conversation_by_the_first_person() -> None:
    env, text, info = begin(0, "speak[Hello Ada.]", "leave")
    assert text.startswith("Imagine you are Ada Berg, your task is to act/speak as Ada Berg would")
    assert "Ada's secrets: Wants to sell her shop" in text
    assert "Omar Said's background: \n" in text  # a stranger
    assert "Ada Berg's goal: Buy the bicycle for at most 60 dollars\nOmar Said's goal: Unknown" in text
    assert text.endswith("Conversation Starts:\n\nYou are at Turn #0.")
    assert (info["goal"], info["partner"][:6]) == ("Buy the bicycle for at most 60 dollars", "lines ")
    text, reward, over, _, info = env.step("speak[Good morning.]")
    assert (text, reward, over) == ('Turn #1: Omar Said said: "Hello Ada."\n\nYou are at Turn #2.', 0.0, False)
    text, reward, over, _, info = env.step('{"action_type": "action", "argument": "nods"}')
    assert (text, reward, over) == (
        "Turn #3: Omar Said left the conversation\n\nThe conversation is over: one has left.", 0.0, True,
    )  # fmt: skip
    assert info["stop_reason"] is StopReason.FAILURE


def test_a_conversation_by_the_second_person() -> None:
    env, text, _ = begin(1, "none", "non-verbal communication[smiles]")
    assert text.endswith("Conversation Starts:\n\nTurn #0: \n\nYou are at Turn #1.")
    text, *_ = env.step("Good morning.")
    assert text.startswith("That is no action, so you did nothing.")
    assert text.endswith("Turn #2: Ada Berg [non-verbal communication] smiles\n\nYou are at Turn #3.")


@pytest.mark.parametrize(
    ("written", "action"),
    [
        ("speak[Hello [you].]", Action(SPEAK, "Hello [you].")),
        (" leave ", Action(LEAVE)),
        ("none[]", Action(NONE)),
        ("non-verbal communication[ nods ]", Action(GESTURE, "nods")),
        ('Well: {"action_type": "action", "argument": "sits down"} .', Action(ACT, "sits down")),
        ('{"action_type": "leave", "argument": "bye"}', Action(LEAVE)),
        ("speak[]", None),
        ("speak", None),
        ("Speak[Hello.]", None),
        ('{"action_type": "shout", "argument": "a"}', None),
        ('{"action_type": ["speak"], "argument": "a"}', None),
        ('{"action_type": "speak", "argument": 3}', None),
        ("{" * 5000, None),
        ("", None),
    ],
)
def test_actions_are_read(written: str, action: Action | None) -> None:
    assert read_action(written) == action


@pytest.mark.parametrize(
    ("kinds", "why"),
    [
        ([SPEAK, LEAVE], "one has left"),
        ([LEAVE], "one has left"),
        ([SPEAK, NONE, NONE], ""),
        ([NONE, NONE, NONE], "nothing was done for too long"),
        ([SPEAK] * 19, ""),
        ([SPEAK] * 20, "the conversation is too long"),
    ],
)
def test_how_a_conversation_ends(kinds: list[str], why: str) -> None:
    conversation = Conversation(("A", "B"))
    for kind in kinds:
        assert not conversation.why_over
        conversation.add(Action(kind, "x"))
    assert conversation.why_over == why


@pytest.mark.parametrize("place", [0, 1])
def test_twenty_turns_end_a_conversation_of_either_person(place: int) -> None:
    env, _, _ = begin(place, "speak[Well.]")
    for turn in range(1, 11):
        text, _, over, truncated, _ = env.step("speak[And you?]")
        assert (over, truncated) == (turn == 10, False)
    assert text.endswith("The conversation is over: the conversation is too long.")


@pytest.mark.parametrize("place", [0, 1])
def test_a_judge_rates_both_and_the_goal_is_the_reward(place: int) -> None:
    rater = Rater(rated())
    env, _, _ = begin(place, "speak[Hello.]", "none", judge=Judge(rater, None))
    env.step("speak[Good morning.]")
    _, reward, over, _, info = env.step("leave")
    own, other = (SCORES, OTHER) if place == 0 else (OTHER, SCORES)
    assert over
    assert (reward, info["score"], info["success"]) == (own["goal"] / 10, own["goal"] / 10, own["goal"] >= 8)
    assert info["signals"]["scores"] == own
    assert info["signals"]["scores_of_partner"] == other
    assert info["signals"]["overall"] == pytest.approx(sum(own.values()) / 7)
    assert overall(SCORES) == pytest.approx(23 / 7)
    [prompt] = rater.prompts
    assert "Ada's secrets: Wants to sell her shop" in prompt  # the judge is told everything
    assert "Omar's secrets: Failed his first exam" in prompt
    assert "goal: Unknown" not in prompt
    turns = re.findall(r"Turn #(\d+)\n(\w+ \w+) (.*)", prompt)
    first, second = [("Good morning.", "Ada Berg"), ("Hello.", "Omar Said")] if place == 0 else [
        ("Hello.", "Ada Berg"), ("Good morning.", "Omar Said"),
    ]  # fmt: skip
    assert turns[:2] == [("0", first[1], f'said: "{first[0]}"'), ("1", second[1], f'said: "{second[0]}"')]
    assert "did nothing" not in prompt


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (None, "did not finish its answer"),
        ("I like them.", "there is no JSON object in 'I like them.'"),
        ("{}", r"agent_1 has no believability: \[reasoning, score\]"),
        (rated(SCORES | {"secret": 1}), "secret of agent_1 must be an integer from -10 to 0, got 1"),
        (rated(SCORES | {"goal": True}), "goal of agent_1 must be an integer"),
        (rated(SCORES, OTHER | {"goal": 11}), "goal of agent_2 must be an integer from 0 to 10, got 11"),
        ("{" * 100_000 + "}", "scores that cannot be read"),
    ],
)
def test_scores_that_cannot_be_read_are_a_fault_of_the_judge(answer: str | None, said: str) -> None:
    env, _, _ = begin(0, "speak[Hello.]", judge=Judge(Rater(answer), None))
    with pytest.raises(ServiceError, match=said):
        env.step("leave")


def test_scores_may_be_objects() -> None:
    forms = {name: {"reasoning": "x", "score": score} for name, score in SCORES.items()}
    assert read_scores(json.dumps({"agent_1": forms, "agent_2": forms})) == (SCORES, SCORES)


@pytest.mark.parametrize("place", [0, 1])
def test_a_snapshot_continues_with_the_partners_answers(place: int) -> None:
    class Counting:
        name = "counting"
        asked = 0

        def answer(self, instruction: str, said: Sequence[str]) -> str:
            del instruction, said
            Counting.asked += 1
            return f"speak[Answer {Counting.asked}.]"

    tasks = SotopiaTasks("embedded", partner=Counting())
    env, other = tasks.make(), tasks.make()
    env.reset(options={"task": tasks.task("train", f"scenario0-0-{place + 1}")})
    text, *_ = env.step("speak[One.]")
    saved, asked = env.snapshot(), Counting.asked
    other.restore(saved)
    assert Counting.asked == asked  # the known answers are not asked for again
    assert other.render() == text
    text, *_, info = other.step("speak[Two.]")
    assert f"Answer {asked + 1}." in text
    Counting.asked = asked
    again, *_, same = env.step("speak[Two.]")
    assert (again, same["state_key"]) == (text, info["state_key"])


ADA = Person("Ada", "Berg", 34, "Baker", "Woman", "She/her", "Ada bakes.", "Ada is warm.", "Is broke")


@pytest.mark.parametrize(
    ("relationship", "seen"),
    [
        (Relationship.STRANGER, ""),
        (Relationship.KNOW_BY_NAME, "Ada Berg "),
        (Relationship.ACQUAINTANCE, "Ada Berg is a 34-year-old female baker. She/her pronouns. Ada bakes. "),
        (
            Relationship.FAMILY_MEMBER,
            "Ada Berg is a 34-year-old female baker. She/her pronouns. Ada bakes. Personality and values description: "
            "Ada is warm. ",
        ),
    ],
)
def test_what_others_know_depends_on_the_relationship(relationship: Relationship, seen: str) -> None:
    assert ADA.background(relationship, own=False) == seen
    assert ADA.background(relationship, own=True).endswith("Ada is warm. Ada's secrets: Is broke")


def test_hints_are_shown_without_their_tags() -> None:
    row = {"scenario": "A", "relationship": "3", "source": "x", "agent_goals": ["B (<extra_info>C</extra_info>)", "D"]}
    assert scenario(row) == Scenario("A", ("B (C)", "D"), Relationship.FRIEND, "x")


@needs_data
def test_contexts_are_those_of_published_prompts() -> None:
    people = {person.name: person for person in read_stock(str(DATA)).people.values()}
    prompts = [row["input"] for row in json.loads((DATA / "sotopia_rl_sft_example.json").read_text())]
    prompts.append(json.loads((DATA / "example.json").read_text())["prompt"])
    for prompt in prompts:
        [(text, first, second)] = re.findall(r"Scenario: (.*)\nParticipants: (.*) and (.*)\n", prompt)
        goals = re.findall(r"goal: (.*)\n", prompt)
        viewer = int(goals[0] == "Unknown")
        told = context(
            Scenario(text, (goals[0], goals[1]), Relationship.FRIEND, ""), (people[first], people[second]), viewer
        )
        assert f"{told}\nConversation Starts:\n" in prompt


@needs_data
def test_the_official_scenarios() -> None:
    tasks = SotopiaTasks("official")
    counts = {split: len(tasks.manifest(split).ids) for split in tasks.splits}
    assert counts == {"train": 610, "valid": 150, "hard": 140}  # 90 scenarios, 5 pairs each, 2 places
    scenarios = [{task[:-2].split("-")[0] for task in tasks.manifest(split).ids} for split in tasks.splits]
    assert sum(map(len, scenarios)) == len(set.union(*scenarios))


def test_wrong_settings_are_named() -> None:
    with pytest.raises(UnknownNameError, match="official"):
        SotopiaTasks("offical")
    with pytest.raises(ValueError, match="at least 2, since two people act in turn; got 1"):
        SotopiaTasks("embedded", max_turns=1)
    with pytest.raises(NoDataError, match=r"env\.scenarios=embedded needs no data"):
        SotopiaTasks("official", data="/nowhere")
    assert "without a judge, so there is no reward" in SotopiaTasks("embedded").describe()
