"""Signals measure what the model computes, and learn by the gradient of their loss."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from agents.agent import PolicyAgent
from agents.candidates import CandidateAgent
from agents.episode import Episode, read_episodes, write_episodes
from agents.masking import MaskedAgent
from agents.policies.base import Sampling
from agents.policies.local import LocalPolicy
from agents.prompts import Transcript
from agents.rollout import Job, rollout
from algorithms.estimators.gae import turn_gae
from algorithms.estimators.istar import istar
from algorithms.signals.base import RolloutBatch, SignalContext, turn_means, turn_sums
from algorithms.signals.critic import Critic
from algorithms.signals.entropy import Entropy, TokenEntropy
from algorithms.signals.implicit_prm import ImplicitPRM, outcome_loss, pairwise_loss
from algorithms.signals.phrases import Phrases, planning_tokens
from algorithms.signals.residual import Residual, residual_weights, success_subspace
from algorithms.signals.square_sum import SquareSum
from algorithms.turn_table import Estimate
from envs.core import StopReason
from envs.pool import EnvPool
from tests.agents.corridors import Corridor, Corridors, corridor
from tests.agents.toys import random_policy
from tests.algorithms.test_trainer import SAMPLING, make_trainer


def context_of(policy: LocalPolicy, pool: EnvPool, seed: int = 0) -> SignalContext:
    agent = PolicyAgent(policy, Transcript(), SAMPLING, torch.Generator().manual_seed(seed))
    return SignalContext(policy.model, agent, pool, torch.float32, 512, 1.0, 8, seed)


def play(context: SignalContext, count: int = 8) -> list[Episode]:
    jobs = [Job(corridor(2 + i % 2), group=i % 2, seed=0) for i in range(count)]
    return rollout(context.agent, context.pool, jobs, max_turns=3)


@pytest.fixture
def pool():
    with EnvPool(Corridors().make, 8) as made:
        yield made


def won_by_half(episodes: list[Episode]) -> list[Episode]:
    """Episodes of which half are marked as solved, since an untrained policy solves none."""
    for number, episode in enumerate(episodes):
        episode.success = number // 2 % 2 == 0
        episode.turns[-1].reward = float(episode.success)
    return episodes


def test_entropy_is_that_of_the_distributions_that_were_sampled_from(pool: EnvPool) -> None:
    context = context_of(random_policy(), pool)
    rollouts = RolloutBatch.of(play(context))
    entropy = Entropy(context).measure(rollouts).signals["entropy"]
    turn = rollouts.episodes[0].turns[1]
    ids = torch.tensor([turn.prompt_ids + turn.completion_ids])
    with torch.no_grad():
        logprobs = context.model(ids[:, :-1]).logits[0, len(turn.prompt_ids) - 1 :].log_softmax(-1)
    np.testing.assert_allclose(entropy[1], float(-(logprobs.exp() * logprobs).sum(-1).mean()), rtol=1e-5)


def test_the_entropies_of_tokens_have_the_mean_of_their_turn(pool: EnvPool) -> None:
    context = context_of(random_policy(), pool)
    rollouts = RolloutBatch.of(play(context))
    turns, tokens = (signal(context).measure(rollouts) for signal in (Entropy, TokenEntropy))
    np.testing.assert_allclose(turn_means(rollouts.table, tokens.token_signals["entropy"]), turns.signals["entropy"])
    assert tokens.metrics == turns.metrics


@pytest.mark.parametrize(
    ("text", "phrases", "found"),
    [
        ("Let me check. now", ["let me check"], "Let me check"),
        ("go é go", ["é"], "é"),
        ("aaa", ["aa"], "aaa"),
        ("no plan", ["let me check"], ""),
        ("", ["x"], ""),
    ],
)
def test_the_tokens_of_phrases_are_found(text: str, phrases: list[str], found: str) -> None:
    tokenizer = random_policy().tokenizer
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    marks = planning_tokens(tokenizer, ids, phrases)
    assert len(marks) == len(ids)
    assert tokenizer.decode([i for i, on in zip(ids, marks, strict=True) if on]) == found


def test_the_signal_of_phrases_is_their_share(pool: EnvPool) -> None:
    context = context_of(random_policy(), pool)
    rollouts = RolloutBatch.of(play(context))
    action = rollouts.episodes[0].turns[0].action
    measured = Phrases(context, phrases=[action[:1] or "x"]).measure(rollouts)
    values = measured.token_signals["planning"]
    assert len(values) == len(rollouts.table.token_rows)
    assert measured.metrics["signal/planning"] == values.mean()
    with pytest.raises(ValueError, match=r"needs one or more phrases, got \[' '\]"):
        Phrases(context, phrases=[" "])


@pytest.mark.parametrize("most_logits", [1, 1 << 20])
def test_square_sums_are_those_of_the_distributions_that_were_sampled_from(
    pool: EnvPool, most_logits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("algorithms.batches.MOST_LOGITS", most_logits)
    context = context_of(random_policy(), pool)
    rollouts = RolloutBatch.of(play(context))
    measured = SquareSum(context).measure(rollouts)
    first, turn = rollouts.episodes[0].turns[:2]
    ids = torch.tensor([turn.prompt_ids + turn.completion_ids])
    with torch.no_grad():
        logits = context.model(ids[:, :-1]).logits[0, len(turn.prompt_ids) - 1 :]
    begin = len(first.completion_ids)
    values = measured.token_signals["square_sum"]
    np.testing.assert_allclose(
        values[begin : begin + len(turn.completion_ids)], logits.softmax(-1).square().sum(-1).numpy(), rtol=1e-5
    )
    assert len(values) == len(rollouts.table.token_rows)
    assert measured.metrics["signal/square_sum"] == pytest.approx(values.mean())


def test_residual_weights_are_low_where_failures_resemble_successes(pool: EnvPool) -> None:
    """By the states of the model's own output, one group after the other, whatever the size of micro-batches."""
    context = context_of(random_policy(), pool)
    rollouts = RolloutBatch.of(won_by_half(play(context)))
    measured = Residual(context, rank=2).measure(rollouts)
    weights, table = measured.token_signals["residual_weight"], rollouts.table
    won = (table.episode_rewards() > 0)[table.token_rows]
    assert (weights[won] == 1).all()
    assert 0.1 == weights[~won].min() < weights[~won].max() == 1
    assert measured.metrics["signal/residual_tasks"] == 2
    states = []  # of the tokens of group 0, by another way
    for sample in rollouts.samples:
        with torch.no_grad():
            hidden = context.model(torch.tensor([sample.ids]), output_hidden_states=True).hidden_states[-2][0]
        states.append(hidden[[i - 1 for i, on in enumerate(sample.mask) if on]])
    ours = table.group[table.token_rows] == 0
    x = torch.cat(states).double()[ours]
    x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    good, bad = x[won[ours]], x[~won[ours]]
    _, _, rows = torch.linalg.svd(good - good.mean(0))
    rest = (bad - good.mean(0)) @ (torch.eye(x.shape[1], dtype=x.dtype) - rows[:2].T @ rows[:2])
    distance = rest.square().mean(-1)
    low, high = distance.quantile(0.2), distance.quantile(0.8)
    expected = 0.1 + 0.9 * ((distance - low) / (high - low)).clamp(0, 1)
    np.testing.assert_allclose(weights[ours & ~won], expected, atol=1e-3)
    small = Residual(replace(context, micro_batch_tokens=1), rank=2).measure(rollouts)
    np.testing.assert_allclose(small.token_signals["residual_weight"], weights, atol=1e-3)
    for episode in rollouts.episodes:
        episode.turns[-1].reward = 1.0
    assert (Residual(context).measure(RolloutBatch.of(rollouts.episodes)).token_signals["residual_weight"] == 1).all()


def test_residual_weights_of_equal_distances_are_the_middle() -> None:
    assert residual_weights(np.full(5, 0.3)).tolist() == [0.55] * 5
    assert success_subspace(torch.zeros(3, 8), 2) is None
    assert success_subspace(torch.full((9, 8), np.nan), 2) is None
    assert residual_weights(np.zeros(0)).shape == (0,)
    with pytest.raises(ValueError, match=r"low < high, got 0\.8 and 0\.2"):
        Residual(None, low=0.8, high=0.2)  # type: ignore[arg-type]


def test_under_a_mask_square_sums_are_over_what_it_allows(pool: EnvPool) -> None:
    policy = random_policy()
    agent = MaskedAgent(policy, Transcript(), SAMPLING, torch.Generator().manual_seed(0))
    context = SignalContext(policy.model, agent, pool, torch.float32, 512, 1.0, 8, 0)
    rollouts = RolloutBatch.of(play(context))
    values = SquareSum(context).measure(rollouts).token_signals["square_sum"]
    logprobs = rollouts.table.token_signals["logprob"]
    forced = logprobs == 0
    assert forced.any()
    assert not forced.all()
    assert (values[forced] == 1).all()
    # The probability of what was drawn, and at most all the rest in one other word.
    drawn = np.exp(logprobs[~forced])
    assert (values[~forced] >= drawn**2 - 1e-6).all()
    assert (values[~forced] <= drawn**2 + (1 - drawn) ** 2 + 1e-6).all()


@pytest.mark.parametrize("body", ["separate", "policy"])
@pytest.mark.parametrize("of", ["turns", "tokens"])
def test_a_critic_learns_the_returns(pool: EnvPool, body: str, of: str) -> None:
    context = context_of(random_policy(), pool)
    rollouts = RolloutBatch.of(won_by_half(play(context)))
    before = {name: tensor.clone() for name, tensor in context.model.state_dict().items()}
    critic = Critic(context, body=body, learning_rate=3e-3, clip=None)
    first = critic.measure(rollouts)
    assert np.all(first.signals["value"] == 0.0)  # it starts from knowing nothing
    returns = rollouts.table.discounted_returns(1.0)
    wanted = returns if of == "turns" else rollouts.table.per_token(returns)
    losses = []
    for _ in range(60):
        seen = rollouts.measured(critic.measure(rollouts))
        losses.append(critic.learn(seen, Estimate(wanted, wanted))["signal/value_loss"])
    assert losses[-1] < losses[0] / (4 if body == "separate" else 1.2)
    values = critic.measure(rollouts)
    np.testing.assert_allclose(  # the value of a turn is that before its first token
        values.signals["value"], values.token_signals["value"][np.cumsum(rollouts.table.tokens) - rollouts.table.tokens]
    )
    for name, tensor in context.model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)  # the policy is not trained by it


def test_a_critic_without_returns_raises(pool: EnvPool) -> None:
    context = context_of(random_policy(), pool)
    rollouts = RolloutBatch.of(play(context))
    critic = Critic(context)
    with pytest.raises(TypeError, match="returns only advantages"):
        critic.learn(rollouts.measured(critic.measure(rollouts)), np.zeros(len(rollouts.table)))


def test_a_critic_takes_the_configured_number_of_steps(pool: EnvPool) -> None:
    """Over all samples in each pass, in another order, and on the returns of all."""
    context = context_of(random_policy(), pool)
    rollouts = RolloutBatch.of(won_by_half(play(context)))
    critic = Critic(context, learning_rate=1e-3, epochs=3, minibatches=2)
    steps: list[list[int]] = []
    step = critic._step
    critic._step = lambda goals: (steps.append([id(goal.sample) for goal in goals]), step(goals))[1]  # type: ignore[method-assign]
    returns = rollouts.table.discounted_returns(1.0)
    metrics = critic.learn(rollouts.measured(critic.measure(rollouts)), Estimate(returns, returns))
    assert len(steps) == 6
    for first, second in zip(steps[::2], steps[1::2], strict=True):
        assert sorted(first + second) == sorted(id(sample) for sample in rollouts.samples)
    assert len({tuple(sorted(part)) for part in steps}) > 2
    assert all(state["step"] == 6 for state in critic.optimizer.state_dict()["state"].values())
    assert metrics["signal/value_loss"] > 0
    with pytest.raises(ValueError, match="epochs and minibatches must be at least 1, got 1 and 0"):
        Critic(context, minibatches=0)


@pytest.mark.parametrize("player", [PolicyAgent, CandidateAgent])
@pytest.mark.parametrize("limit", ["of the rollout", "of the environment"])
def test_an_episode_that_is_cut_off_has_the_value_of_its_next_state(player, limit: str) -> None:
    """The value of the state after the last turn, which one more turn would have begun in."""
    max_turns, environment = (2, 8) if limit == "of the rollout" else (None, 2)
    jobs = [Job(corridor(4), seed=0), Job(corridor(1, fault="step"), seed=0), Job(corridor(3), seed=0)]
    policy = random_policy()
    with EnvPool(lambda: Corridor(environment), 3) as pool, EnvPool(lambda: Corridor(3), 3) as longer:
        agent = player(policy, Transcript(), SAMPLING, torch.Generator().manual_seed(0))
        context = SignalContext(policy.model, agent, pool, torch.float32, 512, 1.0, 8, 0)
        critic = Critic(context)
        torch.nn.init.normal_(critic.head.weight, generator=torch.Generator().manual_seed(1))
        episodes = rollout(agent, pool, jobs, max_turns=max_turns)
        agent.generator.manual_seed(0)
        further = rollout(agent, longer, jobs, max_turns=3)
    assert [str(e.stop_reason) for e in episodes] == ["turn_limit", "env_error", "turn_limit"]
    measured = critic.measure(RolloutBatch.of(episodes)).signals
    after = critic.measure(RolloutBatch.of(further)).signals["value"]
    rows = np.cumsum([len(e.turns) for e in episodes]) - 1
    assert measured["next_value"][rows[0]] == pytest.approx(after[2], rel=1e-4)
    assert measured["next_value"][rows[2]] == pytest.approx(after[-1], rel=1e-4)
    assert np.flatnonzero(measured["next_value"]).tolist() == [rows[0], rows[2]]
    table = RolloutBatch.of(episodes).measured(critic.measure(RolloutBatch.of(episodes))).table
    estimate = turn_gae(table, gamma=0.5, lam=0.0, whiten_turns=False)
    assert estimate.returns[rows[0]] == pytest.approx(0.5 * after[2], rel=1e-4)


def test_an_ended_episode_has_next_value_zero(pool: EnvPool) -> None:
    context = context_of(random_policy(), pool)
    critic = Critic(context)
    torch.nn.init.ones_(critic.head.bias)
    episodes = play(context, 4)
    for episode, reason in zip(episodes, ("success", "failure", "context_limit", "turn_limit"), strict=True):
        episode.stop_reason = StopReason(reason)
    values = critic.measure(RolloutBatch.of(episodes)).signals["next_value"]
    assert np.count_nonzero(values) == 1
    context.agent.prompter.max_prompt_tokens = len(episodes[-1].turns[-1].prompt_ids)  # one more does not fit
    assert not critic.measure(RolloutBatch.of(episodes)).signals["next_value"].any()


def test_final_infos_are_not_written(pool: EnvPool, tmp_path: Path) -> None:
    episodes = play(context_of(random_policy(), pool), 1)
    assert episodes[0].final_info["goal"] == "open the door"
    write_episodes(tmp_path / "episodes.jsonl", episodes)
    assert "final_info" not in (tmp_path / "episodes.jsonl").read_text()
    assert list(read_episodes(tmp_path / "episodes.jsonl")) == episodes


@pytest.mark.parametrize("loss", ["pairwise", "outcome"])
def test_the_reward_model_takes_the_gradient_of_its_loss(pool: EnvPool, loss: str) -> None:
    """In two passes and micro-batches it is the gradient that one pass over everything would give."""
    context = context_of(random_policy(), pool)
    rollouts = RolloutBatch.of(won_by_half(play(context)))
    prm = ImplicitPRM(context, loss=loss, beta=0.5)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in prm.model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.02)
    measured = prm.measure(rollouts)
    gradients: list[torch.Tensor] = []
    prm.optimizer.step = lambda: gradients.extend(p.grad.clone() for p in prm.model.parameters())  # type: ignore[method-assign]
    prm.context = SignalContext(**{**prm.context.__dict__, "grad_clip": 1e9})
    metrics = prm.learn(rollouts.measured(measured), np.zeros(0))

    policy = LocalPolicy(prm.model, context.agent.policy.tokenizer)
    rewards = []
    for sample in rollouts.samples:
        ids = torch.tensor([sample.ids])
        logprobs = prm.model(ids[:, :-1]).logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[0, :, 0]
        with torch.no_grad():
            ours = context.model(ids[:, :-1]).logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[0, :, 0]
        rows = torch.tensor(sample.turn[1:])
        rewards += [0.5 * (logprobs - ours)[rows == row].sum() for row in sorted(set(sample.turn) - {-1})]
    turns, table = torch.stack(rewards), rollouts.table
    np.testing.assert_allclose(measured.signals["prm"], turns.detach(), atol=1e-5)
    np.testing.assert_allclose(turn_sums(table, measured.token_signals["prm"]), measured.signals["prm"])
    success, episode = torch.from_numpy(rollouts.success()), torch.from_numpy(table.episode_number)
    if loss == "pairwise":
        whole = pairwise_loss(turns, episode, torch.from_numpy(table.group), success)
    else:
        sums = torch.zeros(len(rollouts.episodes)).index_add(0, episode, turns)
        whole = outcome_loss(sums, torch.tensor([e.success for e in rollouts.episodes]))
    assert metrics["signal/prm_loss"] == pytest.approx(whole.item(), rel=1e-4)
    for mine, direct in zip(gradients, torch.autograd.grad(whole, list(policy.model.parameters())), strict=True):
        torch.testing.assert_close(mine, direct, atol=1e-6, rtol=1e-3)


def test_the_reward_model_learns_to_distinguish_successes(pool: EnvPool) -> None:
    context = context_of(random_policy(), pool)
    rollouts = RolloutBatch.of(won_by_half(play(context)))
    prm = ImplicitPRM(context, learning_rate=1e-3, update="before")
    first = prm.measure(rollouts).metrics
    for _ in range(20):
        last = prm.measure(rollouts).metrics
    assert last["signal/prm_loss"] < first["signal/prm_loss"]
    assert last["signal/prm_gap"] > first["signal/prm_gap"]


@pytest.mark.parametrize(
    ("name", "signal", "estimator"),
    [
        ("critic", partial(Critic, learning_rate=1e-3, minibatches=2), turn_gae),
        ("implicit_prm", partial(ImplicitPRM, learning_rate=1e-3), istar),
    ],
)
def test_a_run_with_a_signal_that_learns_resumes_bit_for_bit(
    tmp_path: Path, pool: EnvPool, name, signal, estimator
) -> None:
    def trained(run: Path, updates: list[int]) -> list[torch.Tensor]:
        for until in updates:
            trainer = make_trainer(
                run, pool, random_policy(), 4, estimator, {name: signal},
                checkpoint_every=1, groups=2, group_size=2, epochs=2,
            )  # fmt: skip
            if until != updates[0]:
                trainer.resume()
            trainer.config = type(trainer.config)(**{**trainer.config.__dict__, "updates": until})
            trainer.train()
        state = trainer.signals[name].state()
        return [
            *trainer.learner.model.state_dict().values(),
            *next(v for k, v in state.items() if v and k != "optimizer").values(),
        ]

    whole, parts = trained(tmp_path / "whole", [4]), trained(tmp_path / "parts", [2, 4])
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_sampling_of_the_toys_is_at_temperature_one() -> None:
    """The entropies and reward models above are compared at it."""
    assert Sampling(1.0, SAMPLING.max_tokens) == SAMPLING
