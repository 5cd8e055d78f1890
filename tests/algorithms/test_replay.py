"""Replay: which turns are kept and for how long, the gradient that they give, and what a resumed run goes on with."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.agent import PolicyAgent
from agents.candidates import CandidateAgent
from agents.masking import Kept, MaskedAgent
from agents.samples import Sample
from algorithms.learner import Learner, Replayed
from algorithms.losses import clip_cov_loss, gspo_loss
from algorithms.replay import Replay
from algorithms.trainer import Trainer
from algorithms.turn_table import TurnTable
from envs.pool import EnvPool
from tests.agents.corridors import Corridors
from tests.agents.toys import random_policy
from tests.algorithms.rank_cases import played
from tests.algorithms.test_learner import logprobs_of, moved, off_policy, samples
from tests.algorithms.test_trainer import learner_config, make_trainer, without_times
from tests.golden.tables import make_table


@pytest.fixture
def pool():
    with EnvPool(Corridors().make, 16) as pool:
        yield pool


def batch_of(advantages: list[float], returns: list[float], layout: str) -> tuple[list[Sample], TurnTable, Any]:
    """Episodes of two turns with two tokens each, which have these advantages; the returns are of their last turns."""
    count = len(returns)
    rewards = np.stack([np.zeros(count), returns], axis=1).ravel()
    table = make_table(
        np.arange(2 * count) // 4, np.repeat(np.arange(count), 2), np.tile([0, 1], count), rewards,
        tokens=np.full(2 * count, 2),
    )  # fmt: skip
    made = []
    for turn in range(2 * count):
        if layout == "turns" or turn % 2 == 0:
            made.append(Sample(origin=f"episode {turn // 2}"))
        made[-1].extend([3, 4])
        made[-1].extend([5, 6], [-1.0, -2.0], turn)
    return made, table, np.array(advantages)


def exchange(replay: Replay, update: int, batch: Any) -> tuple[Replayed | None, dict[str, float]]:
    learner = Learner(random_policy(width=8, layers=1).model, learner_config())
    return replay.exchange(update, batch[1], learner.examples(*batch))


# -- which turns ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("layout", ["turns", "episodes"])
def test_good_turns_are_kept_and_replayed_once_with_what_they_earned_beyond_the_median(layout: str) -> None:
    replay = Replay(threshold=4, warmup_updates=4)
    first = batch_of([1.0, -1.0, 0.5, 0.0, -2.0, 3.0, 1.0, 2.0], [1.0, 0.0, 0.0, 2.0], layout)
    assert exchange(replay, 0, first) == (
        None,
        {"replay/added": 5, "replay/replayed": 0, "replay/rejected": 0, "replay/expired": 0, "replay/dropped": 0,
         "replay/held": 5, "replay/weight": 0.0},
    )  # fmt: skip
    second = batch_of([-1.0] * 7 + [1.0], [4.0, 0.0, 0.0, 0.0], layout)
    replayed, metrics = exchange(replay, 1, second)
    assert replayed is not None
    median = np.median([0.5, 1.0, 2.0, 0.0])  # the mean returns of the four groups, those of this batch included
    assert median == 0.75
    of_episodes: dict[str, list[float]] = {}
    for example in replayed.examples:
        of_episodes.setdefault(example.sample.origin, []).extend(example.advantages[example.trained])
    assert of_episodes == {
        "episode 0, replayed from update 1": [0.25] * 2,  # its first turn alone
        "episode 3, replayed from update 1": [1.25] * 4,
    }
    assert replayed.weight == pytest.approx((1 - np.cos(np.pi / 4)) / 2)
    assert (metrics["replay/replayed"], metrics["replay/rejected"]) == (3, 2)
    assert (metrics["replay/added"], metrics["replay/held"]) == (1, 1)
    assert exchange(replay, 2, second)[0] is None


@given(
    data=st.data(), threshold=st.integers(0, 12), age=st.integers(1, 3), more=st.integers(1, 8),
    decay=st.sampled_from([None, 0.9]), layout=st.sampled_from(["turns", "episodes"]),
)  # fmt: skip
@settings(max_examples=20, deadline=None)
def test_no_turn_is_lost_or_replayed_twice(
    data: Any, threshold: int, age: int, more: int, decay: float | None, layout: str
) -> None:
    replay, held = Replay(threshold=threshold, age=age, size=threshold + more, decay=decay), 0.0
    learner = Learner(random_policy(width=8, layers=1).model, learner_config())
    seen: list[Sample] = []
    for update in range(6):
        advantages = data.draw(st.lists(st.sampled_from([-1.0, 0.0, 1.0]), min_size=8, max_size=8))
        returns = data.draw(st.lists(st.sampled_from([0.0, 1.0, 2.0]), min_size=4, max_size=4))
        batch = batch_of(advantages, returns, layout)
        replayed, metrics = replay.exchange(update, batch[1], learner.examples(*batch))
        left = sum(metrics[f"replay/{name}"] for name in ("held", "replayed", "rejected", "expired", "dropped"))
        assert held + metrics["replay/added"] == left
        assert metrics["replay/added"] == sum(a > 0 for a in advantages)
        held = metrics["replay/held"]
        assert held <= replay.size
        for example in replayed.examples if replayed else ():
            assert all(example.sample is not sample for sample in seen)
            seen.append(example.sample)
            assert update - age <= int(example.sample.origin.rpartition(" ")[2]) - 1 < update
            assert (example.advantages[example.trained] >= 0).all()  # the others are not in the loss
            assert example.trained.any()


def test_a_batch_that_is_not_finite_takes_nothing_out() -> None:
    replay = Replay(threshold=1)
    exchange(replay, 0, batch_of([1.0] * 4, [1.0, 0.0], "turns"))
    assert exchange(replay, 1, batch_of([1.0] * 3 + [np.nan], [1.0, 0.0], "turns")) == (None, {"replay/held": 4.0})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"age": 0}, r"algo\.replay\.age must be at least 1, got 0"),
        ({"size": 3072}, r"algo\.replay\.size=3072 holds never more than algo\.replay\.threshold=3072 turns"),
    ],
)
def test_a_setting_out_of_range_is_named(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Replay(**changes)  # type: ignore[arg-type]


# -- the gradient -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("micro_batch_tokens", [1, 200, 10_000])
def test_the_gradient_is_that_of_both_mean_losses(micro_batch_tokens: int) -> None:
    """The KL is of the batch alone, and so are all metrics of tokens."""
    policy = random_policy()
    batch, table, advantages = samples()  # five sequences of two turns of three tokens
    off_policy(batch)
    changes = {"minibatches": 1, "grad_clip": 1e9, "kl_coef": 0.1, "kl_estimator": "k2"}
    learner = Learner(policy.model, learner_config(micro_batch_tokens=micro_batch_tokens, **changes))
    learner.optimizer = torch.optim.SGD(policy.model.parameters())
    old = learner.examples(batch, table, advantages)[1:4]
    reference = random_policy().model
    moved(policy.model)
    fresh = batch[:2] + batch[4:]
    rows = np.isin(table.episode, [0, 1, 4])
    part = make_table(*(getattr(table, c)[rows] for c in ("group", "episode", "turn", "reward")), tokens=np.full(6, 3))
    for number, sample in enumerate(fresh):
        sample.turn = [2 * number + (turn % 2) if turn >= 0 else -1 for turn in sample.turn]

    def of(sample: Sample, chosen: np.ndarray, kl: float) -> torch.Tensor:
        logprobs = logprobs_of(policy.model, sample)
        sampler = torch.tensor([p for p, on in zip(sample.logprobs, sample.mask, strict=True) if on])
        ratio, credit = (logprobs - sampler).exp(), torch.tensor(chosen, dtype=torch.float32)
        loss = torch.maximum(-credit * ratio, -credit * ratio.clamp(0.8, 1.2))
        loss = torch.where(credit < 0, torch.minimum(loss, -credit * 3.0), loss)
        with torch.no_grad():
            known = logprobs_of(reference, sample)
        return loss + kl * (logprobs - known) ** 2 / 2

    chosen = np.repeat(advantages[rows].reshape(3, 2), 3, axis=1)
    mean = torch.cat([of(sample, a, 0.1) for sample, a in zip(fresh, chosen, strict=True)]).mean()
    again = torch.cat([of(example.sample, example.advantages, 0.0) for example in old]).mean()
    gradients = torch.autograd.grad(mean + 0.3 * again, list(policy.model.parameters()))
    before = [p.detach().clone() for p in policy.model.parameters()]
    alone = Learner(random_policy().model, learner_config(**changes))
    moved(alone.model)
    expected = alone.update(fresh, part, advantages[rows], np.random.default_rng(0), 0.0)
    metrics = learner.update(
        fresh, part, advantages[rows], np.random.default_rng(0), 1.0, replayed=Replayed(old, None, 0.3)
    )
    for was, new, gradient in zip(before, policy.model.parameters(), gradients, strict=True):
        torch.testing.assert_close(was - new.detach(), gradient, atol=1e-5, rtol=1e-3)
    assert metrics["train/loss"] == pytest.approx(float((mean + 0.3 * again).detach()), rel=1e-4)
    assert metrics["replay/loss"] == pytest.approx(0.3 * float(again.detach()), rel=1e-4)
    assert metrics["tokens/trained"] > expected["tokens/trained"]
    for name in ("train/clip_fraction", "train/entropy", "train/kl", "mismatch/kl", "mismatch/max_ratio"):
        assert metrics[name] == pytest.approx(expected[name], rel=1e-4), name


def test_replayed_turns_are_learned_even_if_the_batch_has_none() -> None:
    policy = random_policy()
    batch, table, advantages = samples()
    learner = Learner(policy.model, learner_config(drop_zero_episodes=True))
    old = learner.examples(batch, table, advantages)
    before = [p.detach().clone() for p in policy.model.parameters()]
    replayed = Replayed(old, None, 1.0)
    learner.update(batch, table, 0 * advantages, np.random.default_rng(0), 1e-3, replayed=replayed)
    assert any(not torch.equal(a, b) for a, b in zip(before, policy.model.parameters(), strict=True))


# -- runs -------------------------------------------------------------------------------------------------------------
def by_number(table: TurnTable) -> np.ndarray:
    """Advantages that differ, whatever was played."""
    return np.random.default_rng(len(table)).normal(size=len(table))


def make(run: Path, pool: EnvPool, player: Any, **changes: Any) -> Trainer:
    replay = Replay(threshold=6, age=3, size=20, baselines=5, warmup_updates=3, loss=changes.pop("replay_loss", None))
    sizes = {"groups": 2, "group_size": 2, "checkpoint_every": 100}
    return make_trainer(run, pool, random_policy(), 5, by_number, None, player, replay=replay, **sizes, **changes)


@pytest.mark.parametrize(
    ("player", "changes"),
    [
        (MaskedAgent, {"loss": partial(clip_cov_loss, share=0.1), "replay_loss": partial(clip_cov_loss, share=0.2)}),
        (CandidateAgent, {}),
        (PolicyAgent, {"loss": partial(gspo_loss, eps_low=0.1, eps_high=0.1)}),
    ],
)
def test_a_resumed_run_with_replay_equals_an_uninterrupted_one(
    tmp_path: Path, pool: EnvPool, player: Any, changes: dict[str, Any]
) -> None:
    whole = make(tmp_path / "whole", pool, player, **changes)
    whole.train()
    lines = without_times(tmp_path / "whole/metrics.jsonl")
    assert sum(line.get("replay/replayed", 0) > 0 for line in lines) > 1
    killed = make(tmp_path / "parts", pool, player, **changes)
    killed._evaluate()
    killed._save()
    while not killed.replay.rows or killed.update < 2:
        killed._log(killed._update())
    killed._save()
    killed._log(killed._update())
    resumed = make(tmp_path / "parts", pool, player, **changes)
    resumed.resume()
    assert resumed.replay.held > 0
    resumed.train()
    assert without_times(tmp_path / "parts/metrics.jsonl") == lines
    for name, weight in whole.policy.model.state_dict().items():
        assert torch.equal(weight, resumed.policy.model.state_dict()[name]), name


@pytest.mark.parametrize("player", [PolicyAgent, MaskedAgent, CandidateAgent])
def test_the_state_holds_all_that_the_loss_reads(player: Callable[..., Any]) -> None:
    """Also after a file that may hold no code, and for a buffer without a row."""
    batch, learner = played(player), Learner(random_policy().model, learner_config(minibatches=1))
    full, empty = Replay(threshold=10_000, size=10_001), Replay()
    full.exchange(0, batch.table, learner.examples(batch.samples, batch.table, by_number(batch.table)))
    assert full.rows
    for replay in (full, empty):
        file = io.BytesIO()
        torch.save(replay.state(), file)
        file.seek(0)
        restored = Replay()
        restored.load_state(torch.load(file, weights_only=True))
        assert str(restored.state()) == str(replay.state())
        np.testing.assert_array_equal(restored.means, replay.means)
    before = {name: tensor.clone() for name, tensor in learner.model.state_dict().items()}
    results = []
    for replay in (full, restored_from(full)):
        learner.model.load_state_dict(before)
        learner.optimizer = torch.optim.SGD(learner.model.parameters())
        replayed = Replayed([row.example for row in replay.rows], None, 1.0)
        table = replace(batch.table, reward=0 * batch.table.reward)
        learner.update(batch.samples, table, 0 * batch.table.reward, np.random.default_rng(0), 1.0, replayed=replayed)
        results.append({name: tensor.clone() for name, tensor in learner.model.state_dict().items()})
    assert all(torch.equal(results[0][name], results[1][name]) for name in before)
    assert not all(torch.equal(results[0][name], before[name]) for name in before)


def test_the_state_holds_the_ids_that_truncated_sampling_kept() -> None:
    batch, learner = played(MaskedAgent), Learner(random_policy().model, learner_config(minibatches=1))
    for sample in batch.samples:
        sample.nodes = [
            Kept(np.array([i, i + 1])) if on else None for i, on in zip(sample.ids, sample.mask, strict=True)
        ]
    replay = Replay(threshold=10_000, size=10_001)
    replay.exchange(0, batch.table, learner.examples(batch.samples, batch.table, by_number(batch.table)))
    assert replay.rows
    for row, other in zip(replay.rows, restored_from(replay).rows, strict=True):
        kept, restored = ([n and n.ids.tolist() for n in r.example.sample.nodes] for r in (row, other))
        assert any(kept)
        assert restored == kept


def restored_from(replay: Replay) -> Replay:
    restored = Replay()
    restored.load_state(replay.state())
    return restored
