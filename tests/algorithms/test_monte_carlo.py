"""Fresh attempts from the states of a batch: their mean return is the value of the state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agents.agent import Decision, View
from agents.rollout import Job, rollout
from algorithms.estimators.spo import spo_chain
from algorithms.estimators.timeline import turns
from algorithms.estimators.vineppo import vineppo
from algorithms.signals.base import Measurement, RolloutBatch, SignalContext
from algorithms.signals.monte_carlo import MonteCarlo
from envs.pool import EnvPool
from tests.agents.corridors import ACTIONS, Corridor, Corridors, corridor
from tests.agents.toys import random_policy
from tests.algorithms.test_trainer import make_trainer

LENGTH, TURNS = 2, 4


class Uniform:
    """Plays any action with equal probability, as a policy that samples one token would."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def act(self, views: Sequence[View]) -> list[Decision]:
        drawn = self.rng.integers(len(ACTIONS), size=len(views)).tolist()
        return [Decision(ACTIONS[i], prompt_ids=[9], completion_ids=[i, 8], logprobs=[-1.1, 0.0]) for i in drawn]

    def finish(self, key: int) -> None: ...


@cache
def success(at: int, left: int) -> float:
    """The probability that `Uniform` opens the door from room `at` with `left` turns."""
    if left == 0:
        return 0.0
    last = LENGTH - 1
    opened = 1.0 if at == last else success(at, left - 1)
    return (opened + success(max(at - 1, 0), left - 1) + success(min(at + 1, last), left - 1)) / len(ACTIONS)


def uniform_context(pool: EnvPool, seed: int = 0) -> SignalContext:
    agent: Any = Uniform(seed)
    return SignalContext(random_policy().model, agent, pool, torch.float32, 512, 1.0, TURNS, seed)


def rollouts_with(context: SignalContext, count: int = 3, length: int = LENGTH) -> RolloutBatch:
    jobs = [Job(corridor(length), group=i % 2, seed=i) for i in range(count)]
    return RolloutBatch.of(rollout(context.agent, context.pool, jobs, max_turns=context.max_turns, keep_starts=True))


@pytest.fixture
def pool():
    with EnvPool(Corridors().make, 32) as made:
        yield made


def room(state: str) -> int:
    return int(state.split("room ")[1][0]) - 1


def test_the_mean_is_the_probability_of_success(pool: EnvPool) -> None:
    context = uniform_context(pool)
    rollouts = rollouts_with(context)
    values = MonteCarlo(context, attempts=1500).measure(rollouts).signals["mc_value"]
    table = rollouts.table
    truth = [success(room(state), TURNS - turn) for state, turn in zip(table.state, table.turn, strict=True)]
    assert max(truth) - min(truth) > 0.3
    np.testing.assert_allclose(values, truth, atol=4 * 0.5 / np.sqrt(1500))


def test_values_stand_where_segments_start(pool: EnvPool) -> None:
    context = uniform_context(pool)
    rollouts = rollouts_with(context)
    measured = MonteCarlo(context, attempts=2, segment_turns=2).measure(rollouts)
    of_turns, of_tokens = measured.signals["mc_value"], measured.token_signals["mc_value"].reshape(-1, 2)
    starts = rollouts.table.turn % 2 == 0
    assert starts.sum() < len(starts)
    np.testing.assert_array_equal(np.isfinite(of_turns), starts)
    np.testing.assert_array_equal(of_tokens[:, 0], of_turns)
    assert np.isnan(of_tokens[:, 1]).all()
    table = rollouts.measured(measured).table
    segments, advantages = spo_chain(table).reshape(-1, 2), vineppo(table)
    np.testing.assert_array_equal(segments[:, 0], segments[:, 1])
    np.testing.assert_allclose(advantages, segments[:, 0], atol=1e-12)
    for before, after in pairwise(range(len(table))):
        if not starts[after]:
            assert advantages[before] == advantages[after]


def test_attempts_steps_and_tokens_are_counted(pool: EnvPool) -> None:
    context = uniform_context(pool)
    rollouts = rollouts_with(
        context, count=1, length=9
    )  # too long for any success, so that all attempts are four turns
    metrics = MonteCarlo(context, attempts=5).measure(rollouts).metrics
    assert metrics == {
        "signal/env_steps": 5 * (4 + 3 + 2 + 1.0),
        "signal/mc_episodes": 20.0,
        "signal/mc_tokens": 5 * 2 * (4 + 3 + 2 + 1.0),
        "signal/mc_value": 0.0,
    }


def test_states_with_equal_keys_may_share_their_attempts(pool: EnvPool) -> None:
    context = uniform_context(pool)
    rollouts = rollouts_with(context)
    measured = MonteCarlo(context, attempts=3, share_states=True).measure(rollouts)
    keys = list(zip(rollouts.table.group.tolist(), rollouts.table.state, strict=True))
    assert measured.metrics["signal/mc_episodes"] == 3 * len(set(keys)) < 3 * len(keys)
    by_key: dict[Any, set[float]] = {}
    for key, value in zip(keys, measured.signals["mc_value"].tolist(), strict=True):
        by_key.setdefault(key, set()).add(value)
    assert all(len(values) == 1 for values in by_key.values())


def test_a_turn_that_attempts_share_is_measured_once(pool: EnvPool) -> None:
    context = uniform_context(pool)
    jobs = [Job(corridor(9))]
    (whole,) = rollout(context.agent, pool, jobs, max_turns=TURNS, keep_starts=True)
    jobs = [Job(whole.task, start=whole.turns[2].start)]
    rollouts = RolloutBatch.of([whole, *rollout(context.agent, pool, jobs, max_turns=TURNS, keep_starts=True)])
    assert len(rollouts.table) == 8
    assert MonteCarlo(context, attempts=1).measure(rollouts).metrics["signal/mc_episodes"] == 6.0


def measured_with(workers: int, seed: int = 0) -> Measurement:
    with EnvPool(Corridors().make, 8, workers) as pool:
        context = uniform_context(pool, seed)
        return MonteCarlo(context, attempts=3).measure(rollouts_with(context))


def test_workers_change_no_value_and_a_seed_fixes_all() -> None:
    once, pooled, other = measured_with(0), measured_with(2), measured_with(0, seed=1)
    np.testing.assert_array_equal(once.signals["mc_value"], pooled.signals["mc_value"])
    assert once.metrics == pooled.metrics != other.metrics
    assert once.metrics["signal/mc_value"] > 0


class Torn(Corridor):
    """A corridor whose first state cannot be restored."""

    def _load(self, saved: Any) -> None:
        if saved[0] == 0:
            raise RuntimeError("the first room is gone")
        super()._load(saved)


def test_episodes_with_faults_give_no_value() -> None:
    with EnvPool(lambda: Torn(8), 8) as pool:
        context = uniform_context(pool)
        rollouts = rollouts_with(context)
        values = MonteCarlo(context, attempts=2).measure(rollouts).signals["mc_value"]
        table = rollouts.table
        broken = np.array([room(state) == 0 for state in table.state])
        assert not broken.all()
        # The last states of an episode are worth what it earned from there, so that their turns gain nothing.
        follows = np.array([
            any(~broken[(table.episode == episode) & (table.turn > turn)])
            for episode, turn in zip(table.episode, table.turn, strict=True)
        ])  # fmt: skip
        assert (broken & follows).any()
        assert (broken & ~follows).any()
        np.testing.assert_array_equal(np.isnan(values), broken & follows)
        earned = turns(table).accumulate(table.reward, 1.0)
        np.testing.assert_array_equal(values[broken & ~follows], earned[broken & ~follows])
        advantages = vineppo(replace(table, signals={"mc_value": values}))
        assert np.all(advantages[broken & ~follows] == 0.0)


def test_numbers_below_one_are_refused(pool: EnvPool) -> None:
    for wrong in ({"attempts": 0}, {"segment_turns": 0}):
        with pytest.raises(ValueError, match=r"must be at least 1, got .*\b0 "):
            MonteCarlo(uniform_context(pool), **wrong)


class Unsaved(Corridor):
    def _save(self) -> Any:
        raise NotImplementedError("Unsaved cannot take snapshots")


def test_a_run_in_an_environment_without_snapshots_names_the_cause(tmp_path: Path) -> None:
    with EnvPool(lambda: Unsaved(8), 8) as pool:
        trainer = make_trainer(tmp_path, pool, random_policy(), 1, vineppo, {"monte_carlo": MonteCarlo})
        with pytest.raises(RuntimeError, match=r"(?s)errors of the environment.*Unsaved cannot take snapshots"):
            trainer.train()
