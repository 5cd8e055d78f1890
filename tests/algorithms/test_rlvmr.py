"""RLVMR: which reasoning a turn begins with, what it earns, and how turns with the same kind are compared."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from agents.agent import PolicyAgent
from agents.candidates import CandidateAgent
from agents.episode import Episode, ParseStatus, Turn
from agents.parsing import REASONING, MetaReasoning
from algorithms.estimators.rlvmr import rlvmr
from algorithms.signals.base import RolloutBatch
from algorithms.signals.meta_reasoning import MetaReasoning as Signal
from algorithms.signals.meta_reasoning import reasoning_of, tagged_turns
from envs.core import Task
from envs.pool import EnvPool
from tests.agents.corridors import Corridors
from tests.agents.toys import random_policy
from tests.algorithms.test_signals import context_of, play
from tests.golden.tables import make_table


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("<planning> Step 1: go. </planning> <action>go</action>", "planning"),
        ("I say <Explore>a\nb</EXPLORE>\n<ACTION>go</ACTION>", "explore"),
        ("<monitor>on the way</monitor><action>go</action>", "monitor"),
        ("<reflection>it is shut</reflection> go", "reflection"),  # a form of actions without tags
        ("<action>go</action> <planning>late</planning>", ""),
        ("<planning> </planning> <action>go</action>", ""),
        ("<planning>a <action>go</action>", ""),
        ("<planning>a</planning> <explore>b</explore> <action>go</action>", ""),
        ("<planning>a <explore>b</explore> </planning> <action>go</action>", ""),
        ("<planning>a</planning> <planning>b</planning> <action>go</action>", ""),
        ("<planning>a</planning> <action>go</action> <action>look</action>", ""),
        ("<action>go</action>", ""),
        ("", ""),
    ],
)
def test_an_answer_has_exactly_one_kind_of_reasoning_before_its_action(text: str, name: str) -> None:
    assert reasoning_of(text) == name


def attempt(*turns: tuple[str, str, ParseStatus], success: bool = False) -> tuple[Episode, list[str]]:
    """An episode and its answers; each turn has a kind of reasoning, an action, and a status."""
    made = [Turn("o", action, 0.0, "s", status) for _, action, status in turns]
    texts = [f"<{kind}>because</{kind}><action>{action}</action>" for kind, action, _ in turns]
    return Episode(Task("a", "toy"), 0, made, success=success), texts


OK, ILLEGAL, MALFORMED, TRUNCATED = ParseStatus.OK, ParseStatus.ILLEGAL, ParseStatus.MALFORMED, ParseStatus.TRUNCATED


@pytest.mark.parametrize(
    ("turns", "success", "expected"),
    [
        ([("planning", "go", OK), ("monitor", "look", OK)], True, [("planning", 1), ("monitor", 0)]),
        ([("planning", "go", OK)], False, [("planning", 0)]),
        (
            [("monitor", "go", OK), ("explore", "go", OK), ("explore", "look", ILLEGAL), ("explore", "look", OK)],
            True,
            [("monitor", 0), ("explore", 0), ("explore", 1), ("explore", 0)],
        ),
        ([("thought", "go", OK), ("explore", "go", OK)], True, [("", 0), ("explore", 1)]),
        ([("reflection", "go", OK), ("reflection", "look", OK)], True, [("reflection", 1), ("reflection", 0)]),
        ([("monitor", "up", ILLEGAL), ("reflection", "go", OK)], False, [("monitor", 0), ("reflection", 1)]),
        ([("monitor", "up", ILLEGAL), ("reflection", "up", ILLEGAL)], True, [("monitor", 0), ("reflection", 0)]),
        ([("thought", "go", OK), ("reflection", "up", OK)], True, [("", 0), ("reflection", 1)]),
        ([("planning", "go", MALFORMED), ("planning", "go", TRUNCATED)], True, [("", 0), ("", 0)]),
    ],
)
def test_reasoning_is_rewarded_by_rules(
    turns: list[tuple[str, str, ParseStatus]], success: bool, expected: list[tuple[str, float]]
) -> None:
    assert tagged_turns(*attempt(*turns, success=success)) == expected


def test_the_signal_reads_what_the_policy_wrote() -> None:
    policy = random_policy()
    texts = ["<planning>one</planning><action>go</action>", "<explore>two</explore><action>look</action>", "go"]
    turns = [
        Turn("o", action, 0.0, "s", OK, [1], ids, [0.0] * len(ids))
        for text, action in zip(texts, ["go", "look", "go"], strict=True)
        for ids in [policy.tokenizer(text, add_special_tokens=False)["input_ids"]]
    ]
    with EnvPool(Corridors().make, 2) as pool:
        context = context_of(policy, pool)
        measured = Signal(context, planning=0.5, explore=0.25).measure(
            RolloutBatch.of([Episode(Task("a", "toy"), 0, turns, success=True)])
        )
        assert {name: column.tolist() for name, column in measured.signals.items()} == {
            "tag": [1, 2, 0], "tag_reward": [0.5, 0.25, 0.0], "tag_form": [True, True, False]
        }  # fmt: skip
        assert measured.metrics == {
            "signal/tag_planning": pytest.approx(1 / 3), "signal/tag_explore": pytest.approx(1 / 3),
            "signal/tag_reflection": 0.0, "signal/tag_monitor": 0.0, "signal/tag_reward": 0.25,
        }  # fmt: skip
        chooser = replace(context, agent=CandidateAgent(policy, context.agent.prompter, *_sampling(context.agent)))
        with pytest.raises(ValueError, match="agent=candidates chooses whole actions"):
            Signal(context).measure(RolloutBatch.of(play(chooser, 2)))


def _sampling(agent: PolicyAgent) -> tuple[object, object]:
    return agent.sampling, agent.generator


def test_a_model_is_asked_for_the_form_that_is_rewarded() -> None:
    parser = MetaReasoning()
    assert all(f"<{name}>…</{name}>" in parser.request for name in REASONING)
    assert parser.request.endswith("<action>…</action>")
    assert parser.parse("<planning>go</planning> <action>look</action>") == "look"


def test_turns_are_compared_with_those_of_the_same_kind_at_their_task() -> None:
    """Task 0 has two attempts of two turns, and task 1 one attempt of one turn, which keeps its raw values."""
    table = make_table(
        [0, 0, 0, 0, 1], [0, 0, 1, 1, 2], [0, 1, 0, 1, 0], [0.0, 1.0, 0.0, 0.0, 1.0],
        signals={
            "tag": np.array([1, 2, 1, 0, 1]), "tag_reward": np.array([1.0, 1.0, 0.0, 0.0, 1.0]),
            "tag_form": np.array([True, True, True, False, True]),
        },
    )  # fmt: skip
    scores = np.array([1.0, 1.0, 0.0, -0.1])
    outcome = (scores - scores.mean()) / np.std(scores, ddof=1)
    half = np.sqrt(0.5)  # std of 1 and 0
    reasoning = np.array([0.5 / half, 1.0, -0.5 / half, 0.0])
    expected = [*(outcome + 0.5 * reasoning), 1.5]
    np.testing.assert_allclose(rlvmr(table, step_weight=0.5, form_penalty=0.1), expected, rtol=1e-5)
    means = [*(scores - scores.mean() + [0.5, 1.0, -0.5, 0.0]), 2.0]
    np.testing.assert_allclose(rlvmr(table, normalize_by_std=False, form_penalty=0.1), means, rtol=1e-12)


def test_it_equals_the_authors_loops() -> None:
    """Groups of `uid` for outcomes, and of `(uid, tag)` for rewards; one alone has mean 0 and std 1."""
    rng = np.random.default_rng(0)
    episode = np.repeat(np.arange(9), rng.integers(1, 6, 9))
    n = len(episode)
    turn = np.concatenate([np.arange(c) for c in np.bincount(episode)])
    group, tag = (episode // 4), rng.integers(0, 4, n)
    paid = rng.integers(0, 2, n).astype(float)
    reward = np.where(np.append(np.diff(episode) != 0, True), rng.integers(0, 2, n), 0).astype(float)
    signals = {"tag": tag, "tag_reward": paid, "tag_form": tag > 0}
    table = make_table(group, episode, turn, reward, signals=signals)
    scores = np.bincount(episode, reward)[episode] - 0.01 * (tag == 0)
    expected = np.zeros(n)
    for values, keys in ((scores, [(g,) for g in group]), (paid, list(zip(group, tag, strict=True)))):
        for row in range(n):
            alike = [values[other] for other in range(n) if keys[other] == keys[row]]
            mean, std = (np.mean(alike), np.std(alike, ddof=1)) if len(alike) > 1 else (0.0, 1.0)
            expected[row] += (values[row] - mean) / (std + 1e-6)
    np.testing.assert_allclose(rlvmr(table), expected, rtol=1e-9, atol=1e-9)
