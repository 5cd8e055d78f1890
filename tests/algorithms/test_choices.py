"""Learning from whole actions: TWOSOME's objective, and that a policy learns by it."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate

from agents.candidates import CandidateAgent, candidate_logprobs
from agents.episode import Episode, Turn
from agents.policies.base import Sampling
from agents.prompts import Transcript
from agents.rollout import Job, rollout
from algorithms.batches import hidden_states, make_batch
from algorithms.learner import Learner
from algorithms.losses import clip_loss
from algorithms.signals.base import RolloutBatch
from envs.pool import EnvPool
from tests.agents.corridors import Corridor, Corridors, corridor
from tests.agents.toys import random_policy
from tests.algorithms.test_algo_conf import whole
from tests.algorithms.test_learner import moved
from tests.algorithms.test_trainer import learner_config, make_trainer, success, without_times


class Changing(Corridor):
    """An environment whose number of admissible actions changes."""

    def _extra(self, **more):
        extra = super()._extra(**more)
        return {
            **extra,
            "admissible": [*extra["admissible"], "open door 1 again", "wait"][: 1 + self.payload["length"]],
        }


@pytest.fixture
def episodes() -> list[Episode]:
    agent = CandidateAgent(random_policy(), Transcript(), Sampling(), torch.Generator().manual_seed(0))
    with EnvPool(lambda: Changing(max_turns=3), 4) as pool:
        return rollout(agent, pool, [Job(corridor(length), length) for length in (3, 4, 4, 2)])


def logprobs_of(model, turn: Turn, temperature: float = 1.0) -> torch.Tensor:
    """[K] by a pass over each candidate."""
    sums = []
    for ids in turn.choice.ids:
        logits = model(torch.tensor([turn.prompt_ids + ids])).logits[0, len(turn.prompt_ids) - 1 : -1]
        sums.append(logits.log_softmax(-1).gather(-1, torch.tensor(ids)[:, None]).sum())
    lengths = torch.tensor(turn.choice.lengths) * temperature
    return candidate_logprobs(torch.stack(sums), lengths, torch.ones(len(sums), dtype=torch.bool))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("micro_batch_tokens", [1, 100_000])
def test_an_update_is_the_gradient_through_all_candidates(
    episodes: list[Episode], temperature: float, micro_batch_tokens: int
) -> None:
    policy = random_policy()
    moved(policy.model)
    rollouts = RolloutBatch.of(episodes)
    turns = [turn for episode in episodes for turn in episode.turns]
    assert len({len(turn.choice.ids) for turn in turns}) > 1
    assert rollouts.table.tokens.tolist() == [1] * len(turns)
    advantages = np.random.default_rng(0).normal(size=len(turns))
    terms = []
    for turn, advantage in zip(turns, advantages, strict=True):
        logprobs = logprobs_of(policy.model, turn, temperature)
        ratio = (logprobs[0] - turn.logprobs[0]).exp()
        surrogate = torch.minimum(advantage * ratio, advantage * ratio.clamp(0.8, 1.2))
        terms.append(-surrogate - 0.3 * torch.distributions.Categorical(logits=logprobs).entropy())
    loss = torch.stack(terms).mean()
    gradients = torch.autograd.grad(loss, list(policy.model.parameters()))
    config = learner_config(
        minibatches=1, grad_clip=1e9, entropy_coef=0.3, temperature=temperature, micro_batch_tokens=micro_batch_tokens,
        loss=partial(clip_loss, dual_clip=None),
    )  # fmt: skip
    learner = Learner(policy.model, config)
    learner.optimizer = torch.optim.SGD(policy.model.parameters())
    before = [p.detach().clone() for p in policy.model.parameters()]
    metrics = learner.update(rollouts.samples, rollouts.table, advantages, np.random.default_rng(0), 1.0)
    assert metrics["train/loss"] == pytest.approx(float(loss.detach()), rel=1e-4)
    for old, new, gradient in zip(before, policy.model.parameters(), gradients, strict=True):
        torch.testing.assert_close(old - new.detach(), gradient, atol=1e-5, rtol=1e-3)


def test_the_sampled_ids_are_trained(episodes: list[Episode]) -> None:
    rollouts, policy = RolloutBatch.of(episodes), random_policy()
    advantages = np.ones(len(rollouts.table))
    metrics = Learner(policy.model, learner_config(minibatches=1)).update(
        rollouts.samples, rollouts.table, advantages, np.random.default_rng(0), 1e-3
    )
    assert metrics["mismatch/max_ratio"] == pytest.approx(1.0, abs=1e-4)
    assert 0 < metrics["train/entropy"] <= np.log(5)


def test_a_critic_sees_the_end_of_the_prompt(episodes: list[Episode]) -> None:
    policy, rollouts = random_policy(), RolloutBatch.of(episodes)
    batch = make_batch(rollouts.samples, torch.device("cpu"))
    with torch.no_grad():
        seen = hidden_states(policy.model, batch, torch.float32)[batch.mask]
        for state, turn in zip(seen, [t for e in episodes for t in e.turns], strict=True):
            alone = policy.model.base_model(torch.tensor([turn.prompt_ids])).last_hidden_state[0, -1]
            torch.testing.assert_close(state, alone, atol=1e-4, rtol=1e-4)


def test_twosome_learns_the_corridor(tmp_path: Path) -> None:
    """From random weights, with no expert to clone: every action can be played from the start."""
    config = whole("twosome")
    algo, player = instantiate(config.algo), instantiate(config.agent.player)
    policy = random_policy()
    with EnvPool(Corridors().make, 16) as pool:
        before = success(policy, pool, player)
        make_trainer(
            tmp_path / "run", pool, policy, 24, algo.estimator, algo.signals, player, groups=6, group_size=8,
            loss=algo.loss, entropy_coef=algo.entropy_coef,
        ).train()  # fmt: skip
        assert success(policy, pool, player) > max(0.9, before + 0.3)
    lines = [line for line in without_times(tmp_path / "run/metrics.jsonl") if "rollout/invalid" in line]
    assert {line["rollout/invalid"] for line in lines} == {0.0}


@pytest.mark.parametrize("within", [True, False])
def test_turns_that_chose_and_turns_that_wrote_are_not_mixed(episodes: list[Episode], within: bool) -> None:
    """Neither in an episode nor in a batch: what was learned would go to other turns."""
    wrote = replace(episodes[1].turns[1], choice=None, logprobs=[-1.0] * len(episodes[1].turns[1].completion_ids))
    episodes[1].turns = [episodes[1].turns[0], wrote, episodes[1].turns[2]] if within else [wrote]
    with pytest.raises(ValueError, match=r"episode 1 of task 'corridor-4.*sampled ids.*chose among candidates"):
        RolloutBatch.of(episodes)
