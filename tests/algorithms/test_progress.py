"""SPA-RL: the model that divides returns among turns, its gradient, and the rewards that PPO gets."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from agents.episode import Choice
from agents.samples import Sample
from algorithms.estimators.spa_rl import spa_rl
from algorithms.signals.base import RolloutBatch
from algorithms.signals.critic import Critic
from algorithms.signals.progress import Progress, turn_ends
from envs.pool import EnvPool
from tests.agents.corridors import Corridors
from tests.agents.toys import random_policy
from tests.algorithms.test_algo_conf import Generous
from tests.algorithms.test_signals import context_of, play, won_by_half
from tests.algorithms.test_trainer import make_trainer, without_times
from tests.golden.tables import make_table


@pytest.fixture
def pool():
    with EnvPool(Corridors().make, 8) as made:
        yield made


def test_the_state_after_each_turn_is_marked() -> None:
    """Two turns with an observation between them, and a turn that follows without one."""
    sample = Sample([7, 1, 2, 8, 3, 4], [False, True, True, False, True, True], [0.0] * 6, [-1, 0, 0, -1, 1, 2])
    (ends,) = turn_ends([sample])
    assert ends.ids == [7, 1, 2, 8, 3, 4, 4]
    assert ends.mask == [False, False, False, True, False, True, True]
    sample.choice = Choice([[1]], [1])
    with pytest.raises(ValueError, match="agent=candidates chooses whole actions"):
        turn_ends([sample])


@pytest.mark.parametrize("body", ["separate", "policy"])
def test_progress_is_that_after_the_turn_and_learns_by_the_gradient_of_its_loss(pool: EnvPool, body: str) -> None:
    context = context_of(random_policy(), pool)
    rollouts = RolloutBatch.of(won_by_half(play(context)))
    signal = Progress(replace(context, micro_batch_tokens=1, grad_clip=1e9), body=body)
    assert not signal.measure(rollouts).signals["progress"].any()  # it starts from knowing nothing
    torch.nn.init.normal_(signal.head.weight, generator=torch.Generator().manual_seed(1))
    gradients: list[torch.Tensor] = []
    signal.optimizer.step = lambda: gradients.extend(p.grad.clone() for p in signal.trained.values())  # type: ignore[method-assign]
    signal.learn(rollouts, np.zeros(0))

    progress, table = [], rollouts.table
    for sample in rollouts.samples:
        states = signal.body.base_model(torch.tensor([sample.ids])).last_hidden_state[0]
        rows = np.array(sample.turn)
        lasts = [int(np.flatnonzero(rows == row)[-1]) for row in sorted(set(sample.turn) - {-1})]
        progress += [signal.head(states[last])[0] for last in lasts]
    found = torch.stack(progress)
    measured = signal.measure(rollouts)
    np.testing.assert_allclose(measured.signals["progress"], found.detach(), atol=1e-5)
    sums = torch.zeros(len(rollouts.episodes)).index_add(0, torch.from_numpy(table.episode), found)
    loss = (sums - torch.tensor([float(episode.total_reward) for episode in rollouts.episodes])).square().mean()
    assert measured.metrics["signal/progress_error"] == pytest.approx(loss.item(), rel=1e-4)
    for mine, direct in zip(gradients, torch.autograd.grad(loss, list(signal.trained.values())), strict=True):
        torch.testing.assert_close(mine, direct, atol=1e-5, rtol=1e-3)


def test_the_sums_learn_the_returns_and_the_policy_is_not_trained_by_it(pool: EnvPool) -> None:
    context = context_of(random_policy(), pool)
    rollouts = RolloutBatch.of(won_by_half(play(context)))
    before = {name: tensor.clone() for name, tensor in context.model.state_dict().items()}
    signal = Progress(context, learning_rate=3e-3, steps=30)
    assert signal.learn(rollouts, np.zeros(0)) == {}
    errors = [Progress(context).measure(rollouts), signal.measure(rollouts)]
    first, last = (measured.metrics["signal/progress_error"] for measured in errors)
    assert last < first / 4
    assert all(torch.equal(tensor, before[name]) for name, tensor in context.model.state_dict().items())
    with pytest.raises(ValueError, match=r"algo\.signals\.progress\.steps must be at least 1, got 0"):
        Progress(context, steps=0)


def test_a_progress_that_is_not_finite_skips_the_step(pool: EnvPool) -> None:
    context = context_of(random_policy(), pool)
    rollouts = RolloutBatch.of(won_by_half(play(context)))
    signal = Progress(context, steps=2)
    torch.nn.init.constant_(signal.head.bias, float("nan"))
    assert signal.learn(rollouts, np.zeros(0)) == {"signal/progress_skipped_steps": 2.0}


def test_turns_are_paid_their_progress_and_for_being_admissible() -> None:
    """Two turns of one token, and one of two; the second turn was not admissible, and neither was the last."""
    table = make_table(
        [0, 0, 0], [0, 0, 0], [0, 1, 2], [0.0, 0.0, 1.0], valid=[True, False, False], tokens=np.array([1, 1, 2]),
        signals={"progress": np.array([0.25, 0.5, 0.125])}, token_signals={"value": np.zeros(4)},
    )  # fmt: skip
    returns = spa_rl(table, progress_weight=2.0, grounding_weight=0.5, lam=1.0).returns
    assert returns.tolist() == pytest.approx([1.0 + 1.0 + 0.75, 1.0 + 0.75, 0.75, 0.75])


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    signals = {"progress": partial(Progress, learning_rate=1e-2), "critic": Critic}
    with EnvPool(lambda: Generous(max_turns=3), 8) as pool:
        make = partial(
            make_trainer, pool=pool, estimator=spa_rl, signals=signals, groups=2, group_size=4, final_learning_rate=2e-3
        )
        whole = make(tmp_path / "whole", policy=random_policy(), updates=4)
        whole.train()
        make(tmp_path / "parts", policy=random_policy(), updates=2).train()
        resumed = make(tmp_path / "parts", policy=random_policy(), updates=4)
        resumed.resume()
        resumed.train()
    lines, others = (
        [line for line in without_times(tmp_path / name / "metrics.jsonl") if "rollout/success" in line]
        for name in ("whole", "parts")
    )
    assert len(lines) == 4
    assert others == lines
    assert lines[-1]["signal/progress"] != 0
    for name, weight in whole.policy.model.state_dict().items():
        assert torch.equal(weight, resumed.policy.model.state_dict()[name]), name
