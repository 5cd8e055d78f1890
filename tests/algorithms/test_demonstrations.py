"""Demonstrations in a batch: their rows, the statistics that leave them out, and their gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agents.episode import Episode
from agents.masking import MaskedAgent
from agents.record import Record, play_again, read_record, write_record
from algorithms.correction import Correction
from algorithms.estimators.luffy import luffy
from algorithms.filters import Use, faults
from algorithms.learner import Learner
from algorithms.losses import luffy_loss
from algorithms.needs import check_expert
from algorithms.signals.base import RolloutBatch
from algorithms.trainer import Trainer
from algorithms.turn_table import TurnTable
from envs.core import Need
from envs.pool import EnvPool
from tests.agents.corridors import Corridors
from tests.agents.toys import random_policy
from tests.algorithms.test_learner import logprobs_of, moved, off_policy, samples
from tests.algorithms.test_trainer import Untaught, learner_config, make_trainer, without_times
from tests.golden.tables import make_table


@pytest.fixture
def pool():
    with EnvPool(Corridors().make, 16) as pool:
        yield pool


def make(run: Path, pool: EnvPool, updates: int = 1, estimator: Any = luffy, **changes: Any) -> Trainer:
    """Two attempts and a demonstration at each of three tasks; the policy solves almost none."""
    settings = {"groups": 3, "group_size": 2, "demonstrations": 1, "loss": luffy_loss, "minibatches": 1}
    return make_trainer(run, pool, random_policy(), updates, estimator, **{**settings, **changes})


# -- which rows -------------------------------------------------------------------------------------------------------
def test_the_expert_plays_each_task_once_more_and_the_prompter_writes_its_actions(
    tmp_path: Path, pool: EnvPool
) -> None:
    trainer = make(tmp_path / "run", pool)
    done = trainer._roll_out()
    assert [episode.demonstration for episode in done.episodes] == [False] * 6 + [True] * 3
    assert done.learns == [True] * 9
    assert len(done.played) == 6
    shown = done.episodes[6:]
    tokenizer, prompter = trainer.policy.tokenizer, trainer.agent.prompter
    for episode, own in zip(shown, done.episodes[0:6:2], strict=True):
        assert (episode.task, episode.group, episode.seed) == (own.task, own.group, own.seed)
        steps = episode.task.payload["length"] - 1
        assert [turn.action for turn in episode.turns] == ["go right"] * steps + ["open door 1"]
        for turn in episode.turns:
            assert turn.completion_ids == prompter.action_ids(tokenizer, turn.action)
            assert turn.logprobs == [0.0] * len(turn.completion_ids)
    write_record(tmp_path / "update-000001.jsonl.gz", Record(done.episodes))
    kept = read_record(tmp_path / "update-000001.jsonl.gz").episodes
    assert [episode.demonstration for episode in kept] == [False] * 6 + [True] * 3
    again = play_again(kept, trainer.agent, Corridors(), pool)
    assert [[t.prompt_ids for t in e.turns] for e in again] == [[t.prompt_ids for t in e.turns] for e in done.episodes]
    assert [episode.demonstration for episode in again] == [False] * 6 + [True] * 3


def test_several_demonstrations_weigh_more_and_unsolved_ones_are_left_out(tmp_path: Path, pool: EnvPool) -> None:
    trainer = make(tmp_path / "run", pool, groups=6, demonstrations=2)
    trainer.config = replace(trainer.config, max_turns=2)
    done = trainer._roll_out()
    short = sorted({e.group for e in done.played if e.task.payload["length"] == 2})
    assert short
    assert [e.group for e in done.episodes if e.demonstration] == [group for group in short for _ in range(2)]


def test_a_masked_policy_gets_the_demonstrations_that_its_mask_allows(tmp_path: Path, pool: EnvPool) -> None:
    trainer = make(tmp_path / "run", pool, player=MaskedAgent)
    shown = [e for e in trainer._roll_out().episodes if e.demonstration]
    assert len(shown) == 3
    for turn in (turn for episode in shown for turn in episode.turns):
        assert len(turn.nodes) == len(turn.completion_ids)
        for node, token in zip(turn.nodes, turn.completion_ids, strict=True):
            node.follow(token)  # raises for an id that is masked
    trainer.demonstrator.form = None  # its actions have no path
    assert not any(e.demonstration for e in trainer._roll_out().episodes)


def test_filters_judge_the_policys_attempts_alone(tmp_path: Path, pool: EnvPool) -> None:
    judged: list[Episode] = []

    def first_group(episodes: list[Episode]) -> np.ndarray:
        judged.extend(episodes)
        return np.array([Use.DROP if e.group == 0 else Use.LEARN for e in episodes], dtype=np.int64)

    done = make(tmp_path / "run", pool, filters={"faults": faults, "first": first_group})._roll_out()
    assert [(e.group, e.demonstration) for e in done.episodes] == [
        (1, False), (1, False), (2, False), (2, False), (1, True), (2, True),
    ]  # fmt: skip
    assert len(judged) == 6
    assert not any(e.demonstration for e in judged)


# -- what they are kept out of ----------------------------------------------------------------------------------------
def test_the_metrics_are_of_the_policys_attempts_and_the_record_has_both(tmp_path: Path, pool: EnvPool) -> None:
    trainer = make(tmp_path / "run", pool, 2, record_every=1, entropy_coef=1e-3)  # so all tokens are computed
    before = [e for e in trainer._roll_out().episodes if e.demonstration]
    ids = [sample.ids for sample in RolloutBatch.of(before).samples]
    old = sum(float(p.sum()) for p in trainer.policy.score(ids))
    trainer.train()
    assert sum(float(p.sum()) for p in trainer.policy.score(ids)) > old + 1  # they have become likelier
    lines = [line for line in without_times(tmp_path / "run/metrics.jsonl") if "train/loss" in line]
    for line in lines:
        record = read_record(tmp_path / f"run/episodes/update-{line['update']:06d}.jsonl.gz")
        own = [e for e in record.episodes if not e.demonstration]
        turns = [turn for e in own for turn in e.turns]
        assert (line["rollout/episodes"], line["rollout/demonstrations"]) == (len(own), 3) == (6, 3)
        assert line["rollout/env_steps"] == len(turns)
        assert line["tokens/sampled"] == sum(len(turn.completion_ids) for turn in turns)
        assert line["rollout/success"] == np.mean([e.success for e in own])
        assert line["mismatch/max_ratio"] < 1.001
        for number, episode in enumerate(record.episodes):
            assert set(record.of_turns["demonstration"][number]) == {int(episode.demonstration)}
            unknown = {value is None for row in record.of_tokens["mismatch"][number] for value in row}
            assert unknown == {episode.demonstration}
    assert trainer.env_steps == sum(line["rollout/env_steps"] for line in lines)


def test_a_kl_in_the_reward_is_of_the_policys_tokens(tmp_path: Path, pool: EnvPool) -> None:
    tables: list[TurnTable] = []

    def seen(table: TurnTable) -> np.ndarray:
        tables.append(table)
        return luffy(table)

    make(tmp_path / "run", pool, 2, seen, kl_coef=0.5, kl_in="reward", kl_estimator="k1").train()
    cost, own = tables[1].token_signal("token_reward"), tables[1].own_tokens
    assert np.abs(cost[own]).max() > 1e-3
    assert not cost[~own].any()
    measured = [line["train/kl"] for line in without_times(tmp_path / "run/metrics.jsonl") if "train/kl" in line]
    assert measured[1] == pytest.approx(-cost[own].mean() / 0.5)


def test_a_correction_leaves_demonstrations_alone() -> None:
    """Its weights and metrics are those of the batch without them."""
    columns = {"group": [0] * 4, "episode": [0, 0, 1, 2], "turn": [0, 1, 0, 0], "reward": [0] * 4}
    whole = make_table(*columns.values(), tokens=np.array([2, 1, 2, 1]))
    whole = replace(whole, signals={"demonstration": np.array([False, False, True, False])})
    alone = make_table([0] * 3, [0, 0, 2], [0, 1, 0], [0] * 3, tokens=np.array([2, 1, 1]))
    own = np.array([True, True, True, False, False, True])
    engine = np.array([-1.0, -2.0, -0.5, 0.0, 0.0, -3.0])
    trained = engine + np.log([4.0, 1.0, 0.5, 1e-9, 1e-9, 1.5])
    for level in ("token", "turn", "episode", "episode_mean"):
        correction = Correction(level=level, high=1.2, normalize=True, reject={"turn_max_k2": 0.5}, lowest_ratio=1e-4)
        both, expected = correction(trained, engine, whole), correction(trained[own], engine[own], alone)
        np.testing.assert_array_equal(both.weights[own], expected.weights)
        np.testing.assert_array_equal(both.kept[own], expected.kept)
        assert both.weights[~own].tolist() == [1.0, 1.0]
        assert both.kept[~own].all()
        assert not both.kept.all()
        assert both.metrics == expected.metrics


# -- the gradient -----------------------------------------------------------------------------------------------------
Term = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def clipped(logprobs: torch.Tensor, sampler: torch.Tensor, _: torch.Tensor, advantages: torch.Tensor) -> torch.Tensor:
    ratio = (logprobs - sampler).exp()
    return torch.maximum(-advantages * ratio, -advantages * ratio.clamp(0.8, 1.2))


def with_kl(
    logprobs: torch.Tensor, sampler: torch.Tensor, known: torch.Tensor, advantages: torch.Tensor
) -> torch.Tensor:
    return clipped(logprobs, sampler, known, advantages) + 0.1 * (logprobs - known) ** 2 / 2


def weighed(logprobs: torch.Tensor, sampler: torch.Tensor, _: torch.Tensor, advantages: torch.Tensor) -> torch.Tensor:
    weights = (logprobs - sampler).exp().clamp(max=1.1).detach()
    return -weights * advantages * (logprobs - logprobs.detach()).exp()


@pytest.mark.parametrize(
    ("expected", "changes"),
    [
        (clipped, {}),
        (clipped, {"probability_mask": 0.9}),  # a demonstration's tokens were not sampled with probability 1
        (with_kl, {"kl_coef": 0.1, "kl_estimator": "k2"}),
        (weighed, {"correction": Correction(high=1.1)}),
    ],
)
def test_an_update_is_the_gradient_of_luffys_formula(expected: Term, changes: dict[str, Any]) -> None:
    policy = random_policy()
    batch, table, advantages = samples()  # five sequences of two turns of three tokens
    off_policy(batch)
    for sample in batch[3:]:
        sample.logprobs = [0.0] * len(sample.ids)
    table = replace(table, signals={"demonstration": table.episode >= 3})
    config = learner_config(minibatches=1, grad_clip=1e9, micro_batch_tokens=200, loss=luffy_loss, **changes)
    learner = Learner(policy.model, config)
    learner.optimizer = torch.optim.SGD(policy.model.parameters())
    reference = random_policy().model
    moved(policy.model)
    chosen = torch.tensor(table.per_token(advantages).reshape(5, 6), dtype=torch.float32)
    terms, differences, kls = [], [], []
    for number, sample in enumerate(batch):
        logprobs = logprobs_of(policy.model, sample)
        if number >= 3:
            p = logprobs.exp()
            terms.append(-chosen[number] * p / (p + 0.1))
            continue
        sampler = torch.tensor([p for p, on in zip(sample.logprobs, sample.mask, strict=True) if on])
        with torch.no_grad():
            known = logprobs_of(reference, sample)
        terms.append(expected(logprobs, sampler, known, chosen[number]))
        differences.append((logprobs - sampler).detach())
        kls.append((logprobs - known).detach() ** 2 / 2)
    loss = torch.cat(terms).mean()
    gradients = torch.autograd.grad(loss, list(policy.model.parameters()))
    before = [p.detach().clone() for p in policy.model.parameters()]
    metrics = learner.update(batch, table, advantages, np.random.default_rng(0), 1.0)
    assert metrics["train/loss"] == pytest.approx(float(loss.detach()), rel=1e-4, abs=1e-6)
    for old, new, gradient in zip(before, policy.model.parameters(), gradients, strict=True):
        torch.testing.assert_close(old - new.detach(), gradient, atol=1e-5, rtol=1e-3)
    difference = torch.cat(differences)
    assert metrics["mismatch/kl"] == pytest.approx(float(-difference.mean()), rel=1e-3)
    assert metrics["mismatch/max_ratio"] == pytest.approx(float(difference.abs().max().exp()), rel=1e-3)
    if "kl_coef" in changes:
        assert metrics["train/kl"] == pytest.approx(float(torch.cat(kls).mean()), rel=1e-3)


# -- whole runs -------------------------------------------------------------------------------------------------------
def test_a_resumed_run_with_demonstrations_equals_an_uninterrupted_one(tmp_path: Path, pool: EnvPool) -> None:
    whole = make(tmp_path / "whole", pool, 3)
    whole.train()
    killed = make(tmp_path / "parts", pool, 3)
    killed._evaluate()
    killed._save()
    for _ in range(3):
        killed._log(killed._update())
        if killed.update == 2:
            killed._save()
    resumed = make(tmp_path / "parts", pool, 3)
    resumed.resume()
    assert resumed.update == 2
    resumed.train()
    assert without_times(tmp_path / "parts/metrics.jsonl") == without_times(tmp_path / "whole/metrics.jsonl")
    for name, weight in whole.policy.model.state_dict().items():
        assert torch.equal(weight, resumed.policy.model.state_dict()[name]), name


def test_an_environment_without_an_expert_is_refused_by_name() -> None:
    check_expert({Need.EXPERT: "algo.demonstrations"}, Corridors())
    check_expert({}, Untaught())
    with pytest.raises(
        ValueError, match=r"algo\.demonstrations needs actions of an expert, and test/Corridor-v0 has none"
    ):
        check_expert({Need.EXPERT: "algo.demonstrations"}, Untaught())
