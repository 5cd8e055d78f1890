"""Losses, gradients and weights that are not finite are never applied or saved, in any model."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from agents.prompts import Transcript
from algorithms.checkpoint import checkpoints, save_checkpoint
from algorithms.finite import MOST_SKIPPED, NotFiniteError
from algorithms.learner import Learner
from algorithms.losses import clip_loss
from algorithms.signals.base import RolloutBatch
from algorithms.signals.critic import Critic
from algorithms.signals.implicit_prm import ImplicitPRM
from algorithms.turn_table import Estimate
from algorithms.warm_start import WarmStart, warm_start
from envs.pool import EnvPool
from tests.agents.corridors import Corridors, corridor
from tests.agents.toys import random_policy
from tests.algorithms.test_learner import samples
from tests.algorithms.test_signals import context_of, play, won_by_half
from tests.algorithms.test_trainer import Quiet, learner_config, make_trainer


def poisoned(bad: int, value: float, clean: Callable = clip_loss) -> Callable:
    """A loss of which the sequences that hold an advantage of exactly `bad` are `value`."""

    def loss(logprobs, old, advantages, mask):
        per_token, stats = clean(logprobs, old, advantages, mask)
        return per_token * torch.where((advantages == bad).any(-1, keepdim=True), value, 1.0), stats

    return loss


def weights_of(model) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_step_whose_loss_is_not_finite_is_skipped_and_the_others_are_taken(value: float, caplog) -> None:
    """Only the step with episode 2 is lost: weights and moments are those of an update without it."""
    batch, table, advantages = samples()
    for number, sample in enumerate(batch):
        sample.origin = f"episode {number} of task 'task-{number}'"
    advantages[4] = 7.0
    policy, other = random_policy(), random_policy()
    learner = Learner(policy.model, learner_config(minibatches=5, loss=poisoned(7, value)))
    expected = Learner(other.model, learner_config(minibatches=5))
    with caplog.at_level(logging.WARNING):
        metrics = learner.update(batch, table, advantages, np.random.default_rng(0), 1e-3)
    assert metrics["train/skipped_steps"] == 1.0
    assert all(np.isfinite(v) for v in metrics.values())
    assert "skipped a step of the policy" in caplog.text
    assert "from episode 2 of task 'task-2'" in caplog.text
    step, taken = expected._step, []
    expected._step = lambda p, *_: None if 7.0 in p[0].examples[0].advantages else (taken.append(1), step(p))[1]
    without = expected.update(batch, table, advantages, np.random.default_rng(0), 1e-3)
    assert len(taken) == 4
    assert metrics == without
    assert same(weights_of(policy.model), weights_of(other.model))
    mine, theirs = learner.optimizer.state_dict()["state"], expected.optimizer.state_dict()["state"]
    assert all(torch.equal(mine[i][key], theirs[i][key]) for i in mine for key in mine[i])
    assert "train/skipped_steps" not in Learner(random_policy().model, learner_config()).update(
        *samples(), np.random.default_rng(0), 1e-3
    )


def test_a_gradient_that_is_not_finite_is_not_applied() -> None:
    policy = random_policy()
    batch, table, advantages = samples()
    before = weights_of(policy.model)
    learner = Learner(policy.model, learner_config(minibatches=1))
    handle = next(policy.model.parameters()).register_hook(lambda gradient: gradient * torch.inf)
    metrics = learner.update(batch, table, advantages, np.random.default_rng(0), 1e-3)
    assert metrics == {"train/skipped_steps": 1.0, "tokens/trained": 0.0}
    assert same(before, weights_of(policy.model))
    assert not learner.optimizer.state_dict()["state"]
    handle.remove()
    metrics = learner.update(batch, table, advantages, np.random.default_rng(0), 1e-3)
    assert np.isfinite(metrics["train/grad_norm"])
    assert not same(before, weights_of(policy.model))


@pytest.mark.parametrize("what", ["advantage", "log-probability"])
def test_a_batch_that_is_not_finite_is_found_before_training(what: str, caplog) -> None:
    policy = random_policy()
    batch, table, advantages = samples()
    batch[3].origin = "episode 3 of task 'cellar'"
    if what == "advantage":
        advantages[7] = np.inf
    else:
        batch[3].logprobs = [
            -np.inf if row == 7 else p for p, row in zip(batch[3].logprobs, batch[3].turn, strict=True)
        ]
    before = weights_of(policy.model)
    learner = Learner(policy.model, learner_config(minibatches=5))
    for _ in range(MOST_SKIPPED - 1):
        metrics = learner.update(batch, table, advantages, np.random.default_rng(0), 1e-3)
        assert metrics == {"train/skipped_steps": 5.0, "tokens/trained": 0.0}
    assert f"{what} is {'' if what == 'advantage' else '-'}inf (turn 1 of episode 3 of task 'cellar')" in caplog.text
    with pytest.raises(NotFiniteError, match=f"{MOST_SKIPPED} steps of the policy in a row.*task 'cellar'"):
        learner.update(batch, table, advantages, np.random.default_rng(0), 1e-3)
    assert same(before, weights_of(policy.model))


def test_only_steps_in_a_row_end_a_run() -> None:
    policy = random_policy()
    batch, table, advantages = samples()
    learner = Learner(policy.model, learner_config(minibatches=1))
    for _ in range(2):
        for bad in (True, True, False):
            learner.update(batch, table, advantages * (np.nan if bad else 1.0), np.random.default_rng(0), 1e-3)


def test_broken_weights_raise() -> None:
    policy = random_policy()
    learner = Learner(policy.model, learner_config(minibatches=3))
    with torch.no_grad():
        next(policy.model.parameters()).fill_(torch.nan)
    with pytest.raises(NotFiniteError, match="the weights themselves are not finite"):
        learner.update(*samples(), np.random.default_rng(0), 1e-3)


# -- the other models -------------------------------------------------------------------------------------------------
@pytest.fixture
def pool():
    with EnvPool(Corridors().make, 8) as made:
        yield made


@pytest.mark.parametrize("bad", ["return", "gradient"])
def test_a_critic_skips_steps_that_are_not_finite(pool: EnvPool, bad: str, caplog) -> None:
    context = context_of(random_policy(), pool)
    rollouts = RolloutBatch.of(won_by_half(play(context)))
    critic = Critic(context, learning_rate=1e-3, epochs=2)
    rollouts = rollouts.measured(critic.measure(rollouts))
    returns = rollouts.table.discounted_returns(1.0)
    before = weights_of(critic.head) + weights_of(critic.body)
    if bad == "return":
        returns[2] = np.nan
    else:
        critic.head.bias.register_hook(lambda gradient: gradient * torch.nan)
    metrics = critic.learn(rollouts, Estimate(returns, returns))
    assert metrics["signal/value_skipped_steps"] == 2.0
    assert all(np.isfinite(v) for v in metrics.values())
    assert "skipped a step of the critic" in caplog.text
    assert "episode 0 of task 'corridor-2" in caplog.text
    assert same(before, weights_of(critic.head) + weights_of(critic.body))
    assert not critic.optimizer.state_dict()["state"]
    if bad == "return":
        critic.learn(rollouts, Estimate(returns, returns))
    with pytest.raises(NotFiniteError, match="steps of the critic in a row"):
        critic.learn(rollouts, Estimate(returns, returns))


@pytest.mark.parametrize("bad", ["reward", "gradient"])
def test_a_process_reward_model_skips_steps_that_are_not_finite(pool: EnvPool, bad: str, caplog) -> None:
    context = context_of(random_policy(), pool)
    rollouts = RolloutBatch.of(won_by_half(play(context)))
    model = ImplicitPRM(context, learning_rate=1e-3)
    rollouts = rollouts.measured(model.measure(rollouts))
    before = weights_of(model.model)
    if bad == "reward":
        model._reference = model._reference.copy()
        model._reference[-1] = np.inf
    else:
        next(model.model.parameters()).register_hook(lambda gradient: gradient * torch.nan)
    assert model.learn(rollouts, np.zeros(0)) == {"signal/prm_skipped_steps": 1.0}
    assert "skipped a step of the process reward model" in caplog.text
    assert f"episode {len(rollouts.episodes) - 1 if bad == 'reward' else 0} of task 'corridor" in caplog.text
    assert same(before, weights_of(model.model))
    assert not model.optimizer.state_dict()["state"]
    model.learn(rollouts, np.zeros(0))
    with pytest.raises(NotFiniteError, match="steps of the process reward model in a row"):
        model.learn(rollouts, np.zeros(0))


def test_a_warm_start_skips_steps_that_are_not_finite_and_names_the_episode(pool: EnvPool, caplog) -> None:
    policy = random_policy()
    config = WarmStart(episodes=8, noise=0.0, steps=6, tokens_per_step=1024, max_turns=8, matrix_lr=0.02, other_lr=0.01)
    before, calls = weights_of(policy.model), []
    next(policy.model.parameters()).register_hook(lambda g: (calls.append(1), g * torch.nan)[1])
    with pytest.raises(NotFiniteError, match=r"steps of the warm start in a row were not finite.*of task 'corridor-2"):
        warm_start(policy, Transcript(), Corridors(), [corridor(2)], pool, config, 0, Quiet())
    assert caplog.text.count("skipped a step of the warm start") == MOST_SKIPPED - 1
    assert same(before, weights_of(policy.model))


# -- the run ----------------------------------------------------------------------------------------------------------
def test_an_error_names_the_update_and_the_episode(tmp_path: Path, pool: EnvPool) -> None:
    """From its third update on an episode's advantages are infinite: two updates are skipped, a third ends the run."""
    calls = []

    def estimator(table):
        calls.append(1)
        advantages = np.random.default_rng(0).normal(size=len(table))
        if len(calls) > 2:
            advantages[table.episode == 1] = np.inf
        return advantages

    trainer = make_trainer(
        tmp_path / "run", pool, random_policy(), 9, estimator, groups=2, group_size=2, checkpoint_every=1
    )
    with pytest.raises(NotFiniteError, match=r"update 5: 3 steps .*\(turn 0 of episode 1 of task 'train-"):
        trainer.train()
    lines = [json.loads(line) for line in trainer.metrics_file.read_text().splitlines()]
    skipped = [line.get("train/skipped_steps", 0.0) for line in lines if "rollout/success" in line]
    assert skipped == [0.0, 0.0, 2.0, 2.0]
    weights = [torch.load(folder / "trainer.pt")["optimizer"]["state"] for folder in checkpoints(tmp_path / "run")]
    assert weights  # what was saved can be read, and is that of the last update that was taken
    for tensor in torch.utils._pytree.tree_leaves(weights[-1]):
        assert torch.isfinite(tensor).all()


@pytest.mark.parametrize("broken", ["weights", "state"])
def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path, broken: str) -> None:
    policy = random_policy()
    save_checkpoint(tmp_path / "update-000001", policy.model, policy.tokenizer, {"update": 1})
    state = {"update": 2, "signals": {"critic": {"head": {"weight": torch.zeros(3)}}}}
    if broken == "weights":
        with torch.no_grad():
            list(policy.model.parameters())[3].view(-1)[0] = torch.nan
    else:
        state["signals"]["critic"]["head"]["weight"][1] = torch.inf
    name = "layers" if broken == "weights" else r"state\.signals\.critic\.head\.weight"
    with pytest.raises(NotFiniteError, match=f"{name}.* is not finite, so it is not saved"):
        save_checkpoint(tmp_path / "update-000002", policy.model, policy.tokenizer, state)
    assert [path.name for path in tmp_path.iterdir()] == ["update-000001"]
