"""Truncated sampling: what is kept, and that training knows the distribution that was really sampled from."""

import copy

import numpy as np
import pytest
import torch
from transformers.generation import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from agents.agent import PolicyAgent
from agents.candidates import CandidateAgent
from agents.masking import Kept, MaskedAgent
from agents.policies.base import Completion, Request, Sampling
from agents.policies.models import masked_logits, truncated
from agents.prompts import Transcript
from agents.rollout import Job, rollout
from algorithms.batches import make_batch, sampled_logprobs
from algorithms.learner import Learner
from algorithms.signals.base import RolloutBatch
from envs.pool import EnvPool
from tests.agents.corridors import Corridors, corridor
from tests.agents.toys import random_policy
from tests.algorithms.test_choices import logprobs_of
from tests.algorithms.test_learner import moved
from tests.algorithms.test_trainer import learner_config

CPU = torch.device("cpu")
TRUNCATED = [{"top_p": 0.6}, {"top_k": 3}, {"min_p": 0.2}, {"top_p": 0.8, "top_k": 40, "min_p": 0.05}]


def kept(probabilities: list[float], temperature: float = 1.0, **settings: float) -> list[int]:
    (node,) = truncated(torch.tensor([probabilities]).log(), Sampling(temperature, **settings))
    return sorted(node.ids.tolist())


HALVES = [0.0625, 0.5, 0.0625, 0.25, 0.125]  # exact in floats


@pytest.mark.parametrize(
    ("settings", "ids"),
    [
        ({"top_k": 1}, [1]),
        ({"top_k": 3}, [1, 3, 4]),
        ({"top_k": 4}, [0, 1, 3, 4]),  # of two equal ones the first
        ({"top_k": 99}, [0, 1, 2, 3, 4]),
        ({"top_p": 1e-9}, [1]),
        ({"top_p": 0.5}, [1]),
        ({"top_p": 0.51}, [1, 3]),
        ({"top_p": 0.9}, [0, 1, 3, 4]),
        ({"min_p": 0.25}, [1, 3, 4]),
        ({"min_p": 1.0}, [1]),
        ({"top_k": 2, "top_p": 0.7}, [1, 3]),  # of what top_k kept, 0.5 is two thirds
        ({"min_p": 0.5, "top_p": 0.7}, [1, 3]),
        ({"top_p": 0.7, "temperature": 0.5}, [1]),  # 0.74 of the probability after the temperature
        ({"top_p": 0.7, "temperature": 2.0}, [1, 3, 4]),
    ],
)
def test_the_likeliest_are_kept(settings: dict[str, float], ids: list[int]) -> None:
    assert kept(HALVES, **settings) == ids


def test_equal_and_masked_ids() -> None:
    assert kept([0.25] * 4, top_p=0.5) == [0, 1]
    assert kept([0.25] * 4, min_p=1.0) == [0, 1, 2, 3]
    assert kept([0.0, 0.5, 0.0, 0.5], top_k=4) == [1, 3]  # probability 0 is a mask's
    assert kept([0.0, 0.5, 0.0, 0.5], top_p=0.99) == [1, 3]


def test_what_is_kept_is_what_transformers_keeps() -> None:
    logits = torch.randn(50, 300, generator=torch.Generator().manual_seed(0)) * 3
    expected = logits / 0.7
    for warper in (MinPLogitsWarper(0.02), TopKLogitsWarper(20), TopPLogitsWarper(0.9)):  # in vLLM's order
        expected = warper(None, expected)
    nodes = truncated(logits, Sampling(0.7, min_p=0.02, top_k=20, top_p=0.9))
    assert [sorted(n.ids.tolist()) for n in nodes] == [row.isfinite().nonzero()[:, 0].tolist() for row in expected]
    assert len({len(node.ids) for node in nodes}) > 5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"top_p": 0.0}, "top_p must be above 0"),
        ({"top_p": 1.1}, "top_p must be above 0 and at most 1"),
        ({"top_k": -1}, "top_k must be a number of ids"),
        ({"top_k": 2.5}, "top_k must be a number of ids"),
        ({"min_p": -0.1}, "min_p must lie between 0"),
        ({"min_p": 2}, "min_p must lie between 0"),
        ({"min_p": float("nan")}, "min_p must lie between 0"),
    ],
)
def test_values_that_cannot_be_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sampling(**settings)


def test_without_settings_and_greedily_nothing_is_left_out() -> None:
    assert not Sampling().truncation
    assert not Sampling(0.0, top_k=3, top_p=0.5).truncation
    requests = [Request(i, [3, 4 + i]) for i in range(4)]

    def played(sampling: Sampling) -> list[Completion]:
        return random_policy().generate(requests, sampling, torch.Generator().manual_seed(0))

    assert played(Sampling(0.0, 5)) == played(Sampling(0.0, 5, top_k=2, min_p=0.3))
    assert all(not done.nodes for done in played(Sampling(1.0, 5)))
    everything = played(Sampling(1.0, 5, top_k=10_000))  # the same draws, from what is the same distribution
    assert [done.ids for done in everything] == [done.ids for done in played(Sampling(1.0, 5))]


def agent(kind: type[PolicyAgent], settings: dict[str, float], temperature: float = 0.8) -> PolicyAgent:
    policy = random_policy()
    policy.model.get_output_embeddings().weight.data.mul_(3)  # far from flat
    return kind(policy, Transcript(), Sampling(temperature, 6, **settings), torch.Generator().manual_seed(0))


def played(player: PolicyAgent) -> RolloutBatch:
    """Episodes of several turns, with keys and values kept between them."""
    with EnvPool(lambda: Corridors().make(), 5) as pool:
        return RolloutBatch.of(rollout(player, pool, [Job(corridor(4), i // 2, seed=i) for i in range(6)], max_turns=4))


@pytest.mark.parametrize("settings", TRUNCATED, ids=str)
@pytest.mark.parametrize("kind", [PolicyAgent, MaskedAgent])
def test_sampler_and_learner_agree(kind: type[PolicyAgent], settings: dict[str, float]) -> None:
    player = agent(kind, settings)
    rollouts = played(player)
    batch = make_batch(rollouts.samples, CPU)
    model = player.policy.model
    with torch.no_grad():
        trained, entropies = sampled_logprobs(model, batch, 0.8, torch.float32)
    torch.testing.assert_close(trained[batch.mask], batch.old_logprobs[batch.mask], atol=1e-5, rtol=0)
    assert any(isinstance(node, Kept) for node in batch.nodes)
    assert len(batch.nodes) == int(batch.mask.sum())

    # The same by hand, from a pass over the whole sequence.
    with torch.no_grad():
        logits = model(batch.ids[:, :-1]).logits[batch.mask] / 0.8
    places = zip(logits, batch.nodes, batch.ids[:, 1:][batch.mask], trained[batch.mask], entropies, strict=True)
    sizes = set()
    for row, node, token, logprob, entropy in places:
        allowed = masked_logits(row[None], [node])[0].log_softmax(-1)
        assert float(allowed.exp().sum()) == pytest.approx(1, abs=1e-5)
        assert float(allowed[token]) == pytest.approx(float(logprob), abs=1e-5)
        some = allowed[allowed.isfinite()]
        assert float(entropy) == pytest.approx(float(-(some.exp() * some).sum()), abs=1e-5)
        if isinstance(node, Kept):
            sizes.add(len(some))
            assert token in node.ids
            if kind is PolicyAgent:  # under a mask, more than the truncation is left out
                assert sorted(truncated(row[None] * 0.8, player.sampling)[0].ids) == sorted(node.ids)
    assert len(sizes) > 1 or kind is MaskedAgent or settings == {"top_k": 3}


def test_truncation_acts_on_what_a_mask_allows() -> None:
    whole = played(agent(MaskedAgent, {}))
    cut = played(agent(MaskedAgent, {"top_k": 1}))
    first = next(node for turn in whole.episodes[0].turns for node in turn.nodes if node.forced is None)
    choices = [
        (turn.nodes[place], turn.completion_ids[place])
        for turn in cut.episodes[0].turns
        for place in range(len(turn.nodes))
        if isinstance(turn.nodes[place], Kept)
    ]
    assert choices
    assert choices[0][0].ids.tolist() == [choices[0][1]]  # the likeliest of the allowed ids
    assert choices[0][1] in first.ids
    assert all(logprob == 0 for episode in cut.episodes for turn in episode.turns for logprob in turn.logprobs)


def test_gradients_are_those_of_the_truncated_distribution() -> None:
    """Of log-probabilities and entropies, against finite differences."""
    player = agent(PolicyAgent, {"top_p": 0.8}, 1.0)
    batch = make_batch(played(player).samples[:1], CPU)
    model = copy.deepcopy(player.policy.model).double()

    def objective() -> torch.Tensor:
        logprobs, entropies = sampled_logprobs(model, batch, 1.0, torch.float32, entropy_gradient=True)
        return logprobs.double().sum() + 0.3 * entropies.double().sum()

    objective().backward()
    rng = np.random.default_rng(0)
    for weight in [model.get_input_embeddings().weight, model.model.layers[1].mlp.up_proj.weight]:
        for _ in range(5):
            place = tuple(int(rng.integers(size)) for size in weight.shape)
            with torch.no_grad():
                values = []
                for step in (5e-3, -5e-3):
                    weight[place] += step
                    values.append(float(objective()))
                    weight[place] -= step
            assert (values[0] - values[1]) / 1e-2 == pytest.approx(float(weight.grad[place]), abs=2e-3)


def test_an_update_and_its_kl_are_over_the_kept_ids() -> None:
    player = agent(PolicyAgent, {"top_p": 0.8}, 1.0)
    rollouts, model = played(player), player.policy.model
    learner = Learner(model, learner_config(minibatches=1, kl_coef=0.1, kl_estimator="k1"))
    moved(learner.reference)
    kl = learner.reference_kl(rollouts.samples)
    place = 0
    for sample in rollouts.samples:
        batch = make_batch([sample], CPU)
        with torch.no_grad():
            logits = learner.reference(batch.ids[:, :-1]).logits[batch.mask]
        allowed = masked_logits(logits, batch.nodes).log_softmax(-1)
        reference = allowed.gather(-1, batch.ids[:, 1:][batch.mask][:, None])[:, 0]
        expected = batch.old_logprobs[batch.mask] - reference
        np.testing.assert_allclose(kl[place : place + len(expected)], expected.numpy(), atol=1e-4)
        place += len(expected)
    assert kl.any()
    metrics = learner.update(
        rollouts.samples, rollouts.table, np.ones(len(rollouts.table)), np.random.default_rng(0), 1e-3
    )
    assert metrics["mismatch/max_ratio"] == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("settings", TRUNCATED, ids=str)
def test_candidates_that_are_left_out_are_none(settings: dict[str, float]) -> None:
    player = agent(CandidateAgent, settings, 0.5)
    turns = [turn for episode in played(player).episodes for turn in episode.turns]
    for turn in turns:
        assert turn.logprobs[0] == pytest.approx(logprobs_of(player.policy.model, turn, 0.5)[0].item(), abs=1e-5)
    assert min(len(turn.choice.ids) for turn in turns) < 4  # the corridor has four or more
