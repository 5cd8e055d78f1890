"""One update: the gradient equals that of the formula, however the batch is divided."""

import copy
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from agents.samples import Sample
from algorithms import learner as learner_module
from algorithms.batches import chosen_logprobs
from algorithms.correction import Correction
from algorithms.learner import Learner, check_precision
from algorithms.losses import (
    aepo_loss,
    clip_cov_loss,
    fipo_loss,
    gmpo_loss,
    gspo_loss,
    kl_cov_loss,
    nft_loss,
    opsm_loss,
    reinforce_loss,
    top_entropy_loss,
    topr_loss,
    vespo_loss,
)
from algorithms.turn_table import TurnTable
from tests.agents.toys import random_policy
from tests.algorithms.test_trainer import learner_config


def samples() -> tuple[list[Sample], TurnTable, np.ndarray]:
    """Five sequences of two turns each, with the log-probabilities of the untrained policy; their table; advantages."""
    rng, policy = np.random.default_rng(0), random_policy()
    made = []
    for i in range(5):
        sample = Sample()
        for turn in range(2):
            sample.extend(rng.integers(0, 250, rng.integers(2, 40)).tolist())
            sample.extend(rng.integers(0, 250, 3).tolist(), [0.0] * 3, 2 * i + turn)
        exact = policy.score([sample.ids])[0].tolist()
        sample.logprobs = [exact[j - 1] if on else 0.0 for j, on in enumerate(sample.mask)]
        made.append(sample)
    table = TurnTable(
        group=np.zeros(10, dtype=np.int64),
        episode=np.repeat(np.arange(5), 2),
        turn=np.tile(np.arange(2), 5),
        reward=np.zeros(10),
        state=np.array([str(i) for i in range(10)], dtype=object),
        valid=np.ones(10, dtype=np.bool_),
        tokens=np.full(10, 3),
    )
    return made, table, rng.normal(size=10)


def weights_after(learning_rate: float = 1.0, **changes) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    policy = random_policy()
    batch, table, advantages = samples()
    learner = Learner(policy.model, learner_config(minibatches=1, **changes))
    # Plain steps show the gradient; Adam would blow up the rounding of gradients that are nearly zero.
    learner.optimizer = torch.optim.SGD(policy.model.parameters())
    metrics = learner.update(batch, table, advantages, np.random.default_rng(0), learning_rate)
    return policy.model.state_dict(), metrics


@pytest.mark.parametrize(
    "aggregation", ["token-mean", "seq-mean-token-sum", "seq-mean-token-mean", "turn-mean", "trajectory-mean"]
)
def test_micro_batches_change_nothing(aggregation: str) -> None:
    whole, _ = weights_after(micro_batch_tokens=100_000, aggregation=aggregation)
    parts, _ = weights_after(micro_batch_tokens=1, aggregation=aggregation)
    for name, weight in whole.items():
        torch.testing.assert_close(weight, parts[name], atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "loss", [partial(kl_cov_loss, share=0.2), partial(clip_cov_loss, share=0.2, lowest=-1e9, highest=1e9)]
)
def test_the_tokens_that_a_loss_selects_do_not_depend_on_micro_batches(loss: Any) -> None:
    """It picks among all ids of a minibatch, also those of samples without an advantage."""
    after = []
    for tokens in (100_000, 1):
        policy = random_policy()
        batch, table, advantages = samples()
        advantages[:2] = 0.0  # the first sample
        off_policy(batch)
        learner = Learner(policy.model, learner_config(minibatches=2, micro_batch_tokens=tokens, loss=loss))
        learner.optimizer = torch.optim.SGD(policy.model.parameters())
        metrics = learner.update(batch, table, advantages, np.random.default_rng(0), 1.0)
        after.append((metrics, policy.model.state_dict()))
    (metrics, whole), (other, parts) = after
    assert metrics["train/clip_fraction"] == other["train/clip_fraction"] >= 4 / 30
    for name, weight in whole.items():
        torch.testing.assert_close(weight, parts[name], atol=1e-6, rtol=0)


def test_the_penalty_of_kl_cov_is_in_the_gradient() -> None:
    def expected(logprobs, sampler, reference, advantages):
        return (-(advantages * (logprobs - sampler).exp()) + 0.3 * (logprobs - sampler).abs()).mean()

    # All are picked, also where the advantage is 0.
    advantages = np.array([0.0, 0.0, *range(1, 9)])
    assert_the_update_is(expected, advantages, loss=partial(kl_cov_loss, share=1.0, coef=0.3))


def test_the_learning_rate_is_that_of_the_update() -> None:
    whole, _ = weights_after()
    part, _ = weights_after(learning_rate=0.8)
    for name, weight in random_policy().model.state_dict().items():
        torch.testing.assert_close(part[name] - weight, 0.8 * (whole[name] - weight), atol=1e-6, rtol=1e-4)


def test_the_learning_rate_warms_up_and_goes_to_its_end_in_a_line() -> None:
    config = learner_config(learning_rate=1.0, final_learning_rate=0.2, warmup_updates=0)
    assert [config.rate(update, update / 4) for update in range(4)] == pytest.approx([1.0, 0.8, 0.6, 0.4])
    config = replace(config, warmup_updates=2)
    assert [config.rate(update, update / 4) for update in range(4)] == pytest.approx([0.5, 0.8, 0.6, 0.4])


def moved_by(**changes) -> dict[str, torch.Tensor]:
    """The step that an update of plain gradients takes."""
    start, (weights, _) = random_policy().model.state_dict(), weights_after(**changes)
    return {name: start[name] - weight for name, weight in weights.items()}


def norm_of(tensors: Iterable[torch.Tensor]) -> float:
    return float(torch.cat([tensor.flatten() for tensor in tensors]).norm())


def test_a_large_gradient_is_clipped_to_the_configured_norm() -> None:
    whole = moved_by(grad_clip=1e9)
    norm = norm_of(whole[name] for name, _ in random_policy().model.named_parameters())  # tied weights once
    for clip in (norm / 3, norm * 3):
        for name, step in moved_by(grad_clip=clip).items():
            torch.testing.assert_close(step, whole[name] * min(1.0, clip / norm), atol=1e-6, rtol=1e-3)
        _, metrics = weights_after(grad_clip=clip)
        assert metrics["train/grad_norm"] == pytest.approx(norm, rel=1e-3)  # the norm of the whole batch


def test_a_step_is_adamw_with_decoupled_decay() -> None:
    """Betas 0.9 and 0.999, epsilon 1e-8: its averages after one step, and what the step makes of the weights."""
    rate, decay, policy = 1e-3, 0.5, random_policy()
    batch, table, advantages = samples()
    learner = Learner(policy.model, learner_config(minibatches=1, grad_clip=1e9, weight_decay=decay))
    gradient: dict[str, torch.Tensor] = {}
    for name, parameter in policy.model.named_parameters():
        parameter.register_post_accumulate_grad_hook(lambda p, name=name: gradient.update({name: p.grad.clone()}))
    learner.update(batch, table, advantages, np.random.default_rng(0), rate)
    start = dict(random_policy().model.named_parameters())
    for name, parameter in policy.model.named_parameters():
        g, state = gradient[name], learner.optimizer.state[parameter]
        torch.testing.assert_close(state["exp_avg"], 0.1 * g, atol=0, rtol=1e-4)
        torch.testing.assert_close(state["exp_avg_sq"], 0.001 * g**2, atol=1e-30, rtol=1e-4)
        wanted = start[name].detach() * (1 - rate * decay) - rate * g / (g.abs() + 1e-8)
        torch.testing.assert_close(parameter.detach(), wanted, atol=1e-6, rtol=1e-4)


def test_on_policy_the_ratio_is_one() -> None:
    _, metrics = weights_after()
    assert metrics["mismatch/max_ratio"] == pytest.approx(1.0, abs=1e-4)
    assert metrics["mismatch/kl"] == pytest.approx(0.0, abs=1e-5)
    assert metrics["train/clip_fraction"] == 0.0
    assert 0 < metrics["train/entropy"] <= np.log(random_policy().model.config.vocab_size)


def test_good_actions_become_likelier_and_bad_ones_less() -> None:
    policy = random_policy()
    batch, table, advantages = samples()
    learner = Learner(policy.model, learner_config(minibatches=1))
    before = [policy.score([s.ids])[0] for s in batch]
    learner.update(batch, table, advantages, np.random.default_rng(0), 1e-3)
    gains = []
    for i, sample in enumerate(batch):
        change = policy.score([sample.ids])[0] - before[i]
        for turn in range(2):
            places = [j - 1 for j, row in enumerate(sample.turn) if row == 2 * i + turn]
            gains.append(float(change[places].sum()))
    assert np.corrcoef(gains, advantages)[0, 1] > 0.8


def test_without_advantages_and_kl_the_weights_do_not_change() -> None:
    policy, fresh = random_policy(), random_policy()
    batch, table, advantages = samples()
    metrics = Learner(policy.model, learner_config()).update(
        batch, table, advantages * 0, np.random.default_rng(0), 1.0
    )
    assert metrics == {"train/loss": 0.0, "train/grad_norm": 0.0, "tokens/trained": 0.0}  # no mean over nothing
    for name, weight in policy.model.state_dict().items():
        assert torch.equal(weight, fresh.model.state_dict()[name])


def test_kl_moves_the_policy_towards_the_reference() -> None:
    """After the policy was moved away, updates without advantage but with KL bring it nearer again."""
    policy = random_policy()
    batch, table, advantages = samples()
    learner = Learner(policy.model, learner_config(minibatches=1, kl_coef=1.0))
    with torch.no_grad():
        for p in policy.model.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(1)) * 0.02)
    kls = [learner.update(batch, table, advantages * 0, np.random.default_rng(0), 1e-3)["train/kl"] for _ in range(15)]
    assert kls[0] > 1e-4
    assert kls[-1] < kls[0] / 2


def test_bfloat16_is_refused_where_it_would_be_emulated(monkeypatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    with pytest.raises(ValueError, match="no bfloat16 arithmetic"):
        check_precision("bfloat16", torch.device("cpu"))
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert check_precision("bfloat16", torch.device("cpu")) is torch.bfloat16


# -- what an update minimises ----------------------------------------------------------------------------------------
def logits_of(model, sample: Sample) -> torch.Tensor:
    """[C, V] the logits of the distributions that the ids were sampled from."""
    places = torch.tensor([j - 1 for j, on in enumerate(sample.mask) if on])
    return model(torch.tensor([sample.ids])).logits[0, places]


def logprobs_of(model, sample: Sample) -> torch.Tensor:
    """[C] the log-probabilities of the sampled ids."""
    chosen = torch.tensor([i for i, on in zip(sample.ids, sample.mask, strict=True) if on])
    return logits_of(model, sample).log_softmax(-1).gather(-1, chosen[:, None])[:, 0]


def off_policy(batch: list[Sample], size: float = 0.5) -> None:
    """Samples with slightly different log-probabilities, like those of another engine."""
    rng = np.random.default_rng(5)
    for sample in batch:
        sample.logprobs = [
            p + size * rng.normal() if on else 0.0 for p, on in zip(sample.logprobs, sample.mask, strict=True)
        ]


def moved(model) -> None:
    """A policy whose weights differ from the initial ones."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)


Term = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def assert_the_update_is(expected: Term, advantages=None, prepare=off_policy, **changes) -> dict[str, float]:
    """The step of an update is the gradient of the mean over sequences of `expected`, which gets of each sequence the
    log-probabilities [C], those of the sampler, of the reference, and the advantages.
    """
    policy = random_policy()
    batch, table, drawn = samples()
    prepare(batch)
    learner = Learner(policy.model, learner_config(minibatches=1, grad_clip=1e9, micro_batch_tokens=200, **changes))
    learner.optimizer = torch.optim.SGD(policy.model.parameters())
    reference = random_policy().model  # as it was when the learner was made
    moved(policy.model)
    chosen = table.per_token(drawn if advantages is None else advantages).reshape(5, 6)  # two turns of three tokens
    terms = []
    for sample, of_sample in zip(batch, torch.tensor(chosen, dtype=torch.float32), strict=True):
        sampler = torch.tensor([p for p, on in zip(sample.logprobs, sample.mask, strict=True) if on])
        with torch.no_grad():
            known = logprobs_of(reference, sample)
        terms.append(expected(logprobs_of(policy.model, sample), sampler, known, of_sample))
    loss = torch.stack(terms).mean()
    gradients = torch.autograd.grad(loss, list(policy.model.parameters()))
    before = [p.detach().clone() for p in policy.model.parameters()]
    metrics = learner.update(batch, table, drawn if advantages is None else advantages, np.random.default_rng(0), 1.0)
    assert metrics["train/loss"] == pytest.approx(float(loss.detach()), rel=1e-4, abs=1e-6)
    for old, new, gradient in zip(before, policy.model.parameters(), gradients, strict=True):
        torch.testing.assert_close(old - new.detach(), gradient, atol=1e-5, rtol=1e-3)
    return metrics


def test_the_logged_losses_are_the_objective() -> None:
    successes = np.array([0.75, -0.25] * 5)  # of one success in four

    def nft(logprobs, sampler, _, advantages):
        good = advantages > 0
        ratio = (logprobs - sampler).exp()
        implied = (1 - 0.25 * ratio) / 0.75
        # A share of its gradient passes the floor of 1, at which its logarithm is 0.
        bad = torch.where(implied > 1, implied.log(), implied - implied.detach())
        return -(0.75 * torch.where(good, logprobs - sampler, bad)).mean()

    def gspo(logprobs, sampler, _, advantages):
        return -(advantages * (logprobs - sampler).mean().exp()).mean()

    def topr(logprobs, sampler, _, advantages):
        taper = (logprobs - sampler).sum().detach().exp().clamp(max=1.0)
        return -(torch.where(advantages < 0, taper, 1.0) * advantages * logprobs).mean()

    def imitation(logprobs, _sampler, _reference, advantages):
        return -(advantages * logprobs).mean()

    for mine, loss, advantages in [
        (nft, nft_loss, successes),
        (topr, topr_loss, None),
        (imitation, reinforce_loss, None),
    ]:
        assert_the_update_is(mine, advantages, loss=loss)
    # The gradient of GSPO is a token's own; where all of a sequence share an advantage it is that of the one ratio.
    shared = np.repeat(np.random.default_rng(3).normal(size=5), 2)
    wide = partial(gspo_loss, eps_low=0.999, eps_high=99.0)
    assert_the_update_is(gspo, shared, loss=wide, aggregation="seq-mean-token-mean")


@pytest.mark.parametrize(
    ("estimator", "term"),
    [
        ("k1", lambda d: d),
        ("abs", lambda d: d.abs()),
        ("k2", lambda d: d**2 / 2),
        ("k3", lambda d: (-d).exp() + d - 1),
        ("k3+", lambda d: d**2 / 2 + ((-d).exp() + d - 1 - d**2 / 2).detach()),
        ("k3_ratio", lambda d: (-d).exp() + d - 1),
    ],
)
def test_kl_in_the_loss_is_the_estimator_that_was_chosen(estimator: str, term) -> None:
    def expected(logprobs, sampler, reference, advantages):
        ratio = (logprobs - sampler).exp() if estimator.endswith("ratio") else 1.0
        return (-advantages * logprobs + 0.3 * ratio * term(logprobs - reference)).mean()

    metrics = assert_the_update_is(expected, loss=reinforce_loss, kl_coef=0.3, kl_estimator=estimator)
    assert metrics["train/kl"] != 0.0
    assert "train/kl" not in assert_the_update_is(  # without a reference it is not measured
        lambda logprobs, sampler, reference, advantages: -(advantages * logprobs).mean(), loss=reinforce_loss
    )


def test_kl_in_the_reward_is_not_in_the_loss() -> None:
    def expected(logprobs, sampler, reference, advantages):
        return -(advantages * logprobs).mean()

    options = {"loss": reinforce_loss, "kl_coef": 0.3, "kl_estimator": "k1", "kl_in": "reward"}
    assert "train/kl" not in assert_the_update_is(expected, **options)
    policy = random_policy()
    batch, _, _ = samples()
    learner = Learner(policy.model, learner_config(**options))
    off_policy(batch)
    sampler = np.concatenate([[p for p, on in zip(s.logprobs, s.mask, strict=True) if on] for s in batch])
    exact = torch.cat([logprobs_of(policy.model, sample) for sample in batch]).detach().numpy()
    np.testing.assert_allclose(learner.reference_kl(batch), sampler - exact, atol=1e-5)
    corrected = Learner(policy.model, learner_config(**options, correction=Correction()))
    moved(policy.model)  # the reference does not move; with a correction, KL is that of the trained weights
    now = torch.cat([logprobs_of(policy.model, sample) for sample in batch]).detach().numpy()
    np.testing.assert_allclose(corrected.reference_kl(batch), now - exact, atol=1e-5)


def test_an_entropy_bonus_is_the_gradient_of_the_entropies() -> None:
    policy = random_policy()
    batch, table, advantages = samples()
    moved(policy.model)
    config = learner_config(minibatches=1, grad_clip=1e9, loss=reinforce_loss, entropy_coef=0.4)
    learner = Learner(policy.model, config)
    learner.optimizer = torch.optim.SGD(policy.model.parameters())
    entropies = torch.cat([torch.distributions.Categorical(logits=logits_of(policy.model, s)).entropy() for s in batch])
    gradients = torch.autograd.grad(-0.4 * entropies.mean(), list(policy.model.parameters()))
    before = [p.detach().clone() for p in policy.model.parameters()]
    metrics = learner.update(batch, table, advantages * 0, np.random.default_rng(0), 1.0)
    assert metrics["train/entropy"] == pytest.approx(float(entropies.detach().mean()), rel=1e-5)
    assert metrics["train/loss"] == pytest.approx(-0.4 * metrics["train/entropy"], rel=1e-5)
    for old, new, gradient in zip(before, policy.model.parameters(), gradients, strict=True):
        torch.testing.assert_close(old - new.detach(), gradient, atol=1e-5, rtol=1e-3)


def test_rejected_tokens_are_in_neither_the_loss_nor_its_divisor() -> None:
    limit = 1.05

    def expected(logprobs, sampler, reference, advantages):
        ratio = (logprobs - sampler).detach().exp()
        kept = (ratio < limit) & (ratio > 1 / limit)
        counts.append(int(kept.sum()))
        loss = -(advantages * ratio.clamp(max=2.0) * (logprobs - logprobs.detach()).exp())
        return loss[kept].sum() * 5  # the mean over five sequences is taken outside

    def rejecting(**changes):
        counts.clear()
        return assert_the_update_is(
            expected,
            correction=Correction(reject={"token_k1": limit}),
            aggregation="seq-mean-token-sum-norm",
            **changes,
        )

    counts: list[int] = []
    metrics = rejecting(loss_divisor=1.0)
    assert metrics["mismatch/rejected"] == pytest.approx(1 - sum(counts) / 30)
    assert 0 < sum(counts) < 30


def test_a_bounded_importance_weight_corrects_for_the_sampler() -> None:
    """The ratio begins at 1, from log-probabilities that were computed anew, and the sampler's enter the weight."""
    ratios: list[torch.Tensor] = []

    def expected(logprobs, sampler, reference, advantages):
        ratio = (logprobs - sampler).detach().exp()
        ratios.append(ratio)
        return -(advantages * ratio.clamp(max=1.2) * (logprobs - logprobs.detach()).exp()).mean()

    metrics = assert_the_update_is(expected, correction=Correction(high=1.2))
    seen = torch.cat(ratios)
    assert metrics["train/clip_fraction"] == 0.0
    assert metrics["mismatch/kl"] == pytest.approx(-float(seen.log().mean()), rel=1e-3)
    assert metrics["mismatch/max_ratio"] == pytest.approx(float(seen.log().abs().max().exp()), rel=1e-3)
    assert 0 < metrics["mismatch/bounded"] < 1
    assert metrics["mismatch/bounded"] == pytest.approx(float((seen > 1.2).float().mean()))


@pytest.mark.parametrize("aggregation", ["token-mean", "turn-mean", "trajectory-mean", "seq-mean-token-sum"])
def test_a_probability_mask_leaves_tokens_out_of_sum_and_divisor(aggregation: str) -> None:
    policy = random_policy()
    batch, table, advantages = samples()
    sampler = np.array([p for s in batch for p, on in zip(s.logprobs, s.mask, strict=True) if on]).reshape(5, 2, 3)
    threshold = float(np.exp(np.quantile(sampler, 0.6)))
    config = learner_config(
        minibatches=1, grad_clip=1e9, loss=reinforce_loss, probability_mask=threshold, aggregation=aggregation,
        micro_batch_tokens=200,
    )  # fmt: skip
    learner = Learner(policy.model, config)
    learner.optimizer = torch.optim.SGD(policy.model.parameters())
    kept = torch.tensor(sampler < np.log(threshold))
    assert 0 < kept.sum() < 30
    own = torch.stack([logprobs_of(policy.model, sample) for sample in batch]).reshape(5, 2, 3)
    losses = torch.where(kept, -torch.tensor(advantages.reshape(5, 2, 1), dtype=torch.float32) * own, 0.0)
    loss = {
        "token-mean": losses.sum() / kept.sum(),
        "seq-mean-token-sum": losses.sum() / kept.any(2).any(1).sum(),
        "turn-mean": (losses.sum(2) / kept.sum(2).clamp(min=1)).sum() / kept.any(2).sum(),
        "trajectory-mean": (losses.sum((1, 2)) / kept.sum((1, 2)).clamp(min=1)).sum() / kept.any(2).any(1).sum(),
    }[aggregation]
    gradients = torch.autograd.grad(loss, list(policy.model.parameters()))
    before = [p.detach().clone() for p in policy.model.parameters()]
    metrics = learner.update(batch, table, advantages, np.random.default_rng(0), 1.0)
    assert metrics["train/loss"] == pytest.approx(float(loss.detach()), rel=1e-4)
    assert metrics["mismatch/max_ratio"] == pytest.approx(1.0, abs=1e-4)
    for old, new, gradient in zip(before, policy.model.parameters(), gradients, strict=True):
        torch.testing.assert_close(old - new.detach(), gradient, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"aggregation": "token_mean"}, "did you mean 'token-mean'"),
        ({"kl_estimator": "k4"}, "algo.kl_estimator"),
        ({"kl_in": "rewards"}, "did you mean 'reward'"),
        ({"aggregation": "seq-mean-token-sum-norm"}, "needs a constant"),
        ({"loss_divisor": 10.0}, "no other uses one"),
        ({"probability_mask": 1.5}, "between 0 and 1"),
    ],
)
def test_an_invalid_objective_raises_before_a_run(change: dict, message: str) -> None:
    with pytest.raises((ValueError, LookupError), match=message):
        learner_config(**change)


# -- passes over a batch ----------------------------------------------------------------------------------------------
def test_two_passes_are_two_updates_with_the_log_probabilities_of_the_sampler() -> None:
    batch, table, advantages = samples()
    one, two = random_policy(), random_policy()
    once, twice = (Learner(p.model, learner_config(minibatches=1, epochs=n)) for p, n in ((one, 1), (two, 2)))
    first = [once.update(batch, table, advantages, np.random.default_rng(0), 1e-2) for _ in range(2)]
    metrics = twice.update(batch, table, advantages, np.random.default_rng(0), 1e-2)
    for name, weight in one.model.state_dict().items():
        assert torch.equal(weight, two.model.state_dict()[name]), name
    assert metrics["tokens/trained"] == 2 * first[0]["tokens/trained"]
    assert metrics["train/loss"] == pytest.approx((first[0]["train/loss"] + first[1]["train/loss"]) / 2)
    assert metrics["mismatch/max_ratio"] == first[0]["mismatch/max_ratio"]  # of the first pass, before any step


def test_every_pass_sees_all_samples_in_an_order_of_its_own() -> None:
    batch, table, advantages = samples()
    learner = Learner(random_policy().model, learner_config(minibatches=5, epochs=3))
    seen: list[list[int]] = []
    step = learner._step
    learner._step = lambda portions, *_: (seen.append(portions[0].examples[0].sample.ids), step(portions))[1]
    learner.update(batch, table, advantages, np.random.default_rng(0), 1e-3)
    passes = [seen[i : i + 5] for i in range(0, 15, 5)]
    assert all(sorted(ids) == sorted(sample.ids for sample in batch) for ids in passes)
    assert passes[0] != passes[1] != passes[2]


def test_a_learner_takes_at_least_one_pass() -> None:
    with pytest.raises(ValueError, match=r"trainer\.epochs must be at least 1, got 0"):
        Learner(random_policy().model, learner_config(epochs=0))


# -- what enters the loss ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kl_coef", [0.0, 0.5])
def test_dropped_episodes_leave_the_divisor_and_the_kl(kl_coef: float) -> None:
    """An update of five episodes, of which two are dropped, is that of the other three."""
    batch, table, advantages = samples()
    advantages = np.repeat([1.0, 0.0, -0.5, 0.0, 2.0], 2)
    kept = [0, 2, 4]
    rows = [2 * i + turn for i in kept for turn in range(2)]
    alone = [replace(batch[i], turn=[r if r < 0 else rows.index(r) for r in batch[i].turn]) for i in kept]
    table_of = {name: getattr(table, name)[rows] for name in ("group", "reward", "state", "valid", "tokens")}
    smaller = TurnTable(**table_of, episode=np.repeat(np.arange(3), 2), turn=np.tile(np.arange(2), 3))
    weights = []
    for these, of, values, drop in ((batch, table, advantages, True), (alone, smaller, advantages[rows], False)):
        policy = random_policy()
        config = learner_config(minibatches=2, kl_coef=kl_coef, drop_zero_episodes=drop, loss=reinforce_loss)
        learner = Learner(policy.model, config)
        learner.optimizer = torch.optim.SGD(policy.model.parameters())
        moved(policy.model)
        learner.update(these, of, values, np.random.default_rng(0), 1.0)
        weights.append(policy.model.state_dict())
    for name, weight in weights[0].items():
        torch.testing.assert_close(weight, weights[1][name], atol=1e-6, rtol=1e-5)


def test_dropping_all_episodes_trains_nothing() -> None:
    batch, table, advantages = samples()
    learner = Learner(random_policy().model, learner_config(kl_coef=0.5, drop_zero_episodes=True))
    before = copy.deepcopy(learner.model.state_dict())
    metrics = learner.update(batch, table, advantages * 0, np.random.default_rng(0), 1.0)
    assert metrics == {"train/loss": 0.0, "train/grad_norm": 0.0, "tokens/trained": 0.0}
    assert all(torch.equal(weight, before[name]) for name, weight in learner.model.state_dict().items())


def cut(batch: list[Sample], which: list[int]) -> list[Sample]:
    """The same with the episodes `which` in two samples, one for each turn."""
    out: list[Sample] = []
    for number, sample in enumerate(batch):
        sample.origin = f"episode {number}"
        if number not in which:
            out.append(sample)
            continue
        place = max(i for i, row in enumerate(sample.turn) if row == 2 * number) + 1
        for part in (slice(place), slice(None)):
            mask = [
                on and (row == 2 * number) == (part.stop is not None)
                for on, row in zip(sample.mask, sample.turn, strict=True)
            ]
            made = Sample(sample.ids[part], mask[part], sample.logprobs[part], origin=sample.origin)
            made.turn = [row if on else -1 for on, row in zip(made.mask, sample.turn, strict=False)]
            out.append(made)
    return out


LOSSES = [
    reinforce_loss,
    *(
        partial(loss, unit=unit, **settings)
        for unit in ("turn", "episode")
        for loss, settings in (
            (partial(gspo_loss, eps_low=0.05, eps_high=0.05), {}), (gmpo_loss, {"eps_low": 0.02, "eps_high": 0.02}),
            (vespo_loss, {}), (topr_loss, {}), (opsm_loss, {"delta": 0.01}), (fipo_loss, {"high_only": False}),
        )
    ),
    aepo_loss,
    top_entropy_loss,
]  # fmt: skip


@pytest.mark.parametrize("aggregation", ["seq-mean-token-mean", "seq-mean-token-sum"])
def test_means_over_sequences_are_refused_where_some_are_turns_and_others_are_not(aggregation: str) -> None:
    for layout, which in (("episodes", []), ("mixed", [1, 3]), ("turns", [0, 1, 2, 3, 4])):
        batch, table, advantages = samples()
        learner = Learner(random_policy().model, learner_config(loss=reinforce_loss, aggregation=aggregation))
        update = partial(learner.update, cut(batch, which), table, advantages, np.random.default_rng(0), 1e-3)
        if layout == "mixed":
            with pytest.raises(ValueError, match=f"algo.aggregation={aggregation} is defined where .* this batch"):
                update()
            with pytest.raises(ValueError, match="with this agent some sequences are single turns"):
                learner.objective.check_layout(frozenset({layout}), "this agent")
        else:
            update()
            learner.objective.check_layout(frozenset({layout}), "this agent")


@pytest.mark.parametrize("aggregation", ["token-mean", "turn-mean", "trajectory-mean", "seq-mean-token-sum-norm"])
@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: getattr(loss, "keywords", {}).get("unit", "token"))
def test_no_loss_depends_on_how_turns_are_cut_into_samples(loss: Any, aggregation: str) -> None:
    """Nor on the size of micro-batches, which hold a single sample here."""
    weights = []
    for which in ([], [1, 3], [0, 1, 2, 3, 4]):
        batch, table, advantages = samples()
        advantages = np.where(np.arange(len(table)) % 2, 0.3, -1.0) * advantages  # they differ within an episode
        policy = random_policy()
        config = learner_config(
            minibatches=1, loss=loss, aggregation=aggregation, micro_batch_tokens=4096 if not which else 1,
            loss_divisor=7.0 if aggregation.endswith("norm") else None,
            # At 1, entropies of a random model are nearly equal: scaled to variance 1, they would show their rounding.
            temperature=0.25 if loss in (aepo_loss, top_entropy_loss) else 1.0,
        )  # fmt: skip
        learner = Learner(policy.model, config)
        learner.optimizer = torch.optim.SGD(policy.model.parameters())
        moved(policy.model)
        learner.update(cut(batch, which), table, advantages, np.random.default_rng(0), 1.0)
        weights.append(policy.model.state_dict())
    for other in weights[1:]:
        for name, weight in weights[0].items():
            torch.testing.assert_close(weight, other[name], atol=2e-6, rtol=0)


def test_samples_of_one_episode_stay_in_one_minibatch_if_the_loss_looks_at_episodes() -> None:
    batch, table, advantages = samples()
    pieces = cut(batch, [0, 1, 2, 3, 4])
    learner = Learner(random_policy().model, learner_config(minibatches=3, loss=topr_loss))
    examples = learner.examples(pieces, table, advantages)
    parts = [portion.examples for (portion,) in learner._portions(examples, None, np.random.default_rng(0))]
    assert sorted(id(e) for part in parts for e in part) == sorted(map(id, examples))
    episodes = [{int(e.units[0]) for e in part} for part in parts]
    assert len(parts) == 3
    assert sum(map(len, episodes)) == len(set.union(*episodes))


# -- memory -----------------------------------------------------------------------------------------------------------
def test_log_probabilities_in_parts_are_those_of_the_whole() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(37, 16, generator=generator, requires_grad=True)
    chosen = torch.randint(0, 50, (37,), generator=generator)
    rows: list[int] = []

    class Head(torch.nn.Linear):
        def forward(self, states: torch.Tensor) -> torch.Tensor:
            rows.append(len(states))
            return super().forward(states)

    head = Head(16, 50, bias=False)
    model = random_policy().model
    model.set_output_embeddings(head)
    model.config.vocab_size = 50

    def made(most_logits: int) -> tuple[torch.Tensor, ...]:
        rows.clear()
        logprobs, entropies = chosen_logprobs(model, hidden, chosen, 0.7, most_logits)
        weight = torch.linspace(-1, 1, 37)
        gradients = torch.autograd.grad((logprobs * weight).sum(), [hidden, head.weight])
        return logprobs, entropies, *gradients

    whole = made(10_000)
    assert rows == [37]
    for mine, expected in zip(made(450), whole, strict=True):
        torch.testing.assert_close(mine, expected, atol=1e-5, rtol=1e-5)
    assert max(rows) == 9  # 450 logits are 9 rows of 50
    expected = torch.log_softmax(head(hidden) / 0.7, -1)[torch.arange(37), chosen]
    torch.testing.assert_close(whole[0], expected)


def test_gradient_checkpointing_computes_layers_twice_and_changes_nothing() -> None:
    calls = 0

    def count(*_) -> None:
        nonlocal calls
        calls += 1

    handle = torch.nn.modules.module.register_module_forward_pre_hook(
        lambda module, *_: count() if type(module).__name__.endswith("Attention") else None
    )
    try:
        plain, _ = weights_after(micro_batch_tokens=100_000)
        without, calls = calls, 0
        kept, _ = weights_after(micro_batch_tokens=100_000, gradient_checkpointing=True)
    finally:
        handle.remove()
    assert calls - without == random_policy().model.config.num_hidden_layers
    for name, weight in plain.items():
        torch.testing.assert_close(weight, kept[name], atol=1e-6, rtol=0)


def test_out_of_memory_continues_with_smaller_micro_batches(monkeypatch, caplog) -> None:
    """Whatever was added up before the error is thrown away, and the update is that of the smaller micro-batches."""
    expected, _ = weights_after(micro_batch_tokens=100_000)
    make_batch = learner_module.make_batch

    def greedy(micro_batch, device):
        if len(micro_batch) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return make_batch(micro_batch, device)

    monkeypatch.setattr(learner_module, "make_batch", greedy)
    got, _ = weights_after(micro_batch_tokens=1024)
    assert "micro-batches of 512 tokens" in caplog.text
    for name, weight in expected.items():
        torch.testing.assert_close(weight, got[name], atol=1e-6, rtol=0)


def test_out_of_memory_for_a_single_sample_comes_through(monkeypatch) -> None:
    def never(micro_batch, device):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(learner_module, "make_batch", never)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        weights_after(micro_batch_tokens=100_000)


def test_other_errors_are_not_taken_for_a_lack_of_memory(monkeypatch) -> None:
    calls = []

    def broken(micro_batch, device):
        calls.append(len(micro_batch))
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(learner_module, "make_batch", broken)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        weights_after(micro_batch_tokens=100_000)
    assert len(calls) == 1


# -- means over turns and trajectories --------------------------------------------------------------------------------
@pytest.mark.parametrize("aggregation", ["token-mean", "turn-mean", "trajectory-mean"])
def test_minibatches_do_not_shrink_the_gradient(aggregation: str) -> None:
    """One trajectory in four sequences with the same gradient: four steps of one are as long as four of all."""
    policy = random_policy()
    sample = samples()[0][0]
    row = Sample(sample.ids, sample.mask, sample.logprobs, [-1 if r < 0 else 0 for r in sample.turn])
    batch = [Sample(row.ids, row.mask, row.logprobs, [r if r < 0 else number for r in row.turn]) for number in range(4)]
    table = TurnTable(
        group=np.zeros(4, dtype=np.int64), episode=np.zeros(4, dtype=np.int64), turn=np.arange(4), reward=np.zeros(4),
        state=np.array(list("abcd"), dtype=object), valid=np.ones(4, dtype=np.bool_), tokens=np.full(4, 6),
    )  # fmt: skip
    norms = []
    for minibatches in (1, 2, 4):
        config = learner_config(minibatches=minibatches, aggregation=aggregation, grad_clip=1e9, loss=reinforce_loss)
        learner = Learner(policy.model, config)
        learner.optimizer = torch.optim.SGD(policy.model.parameters())
        metrics = learner.update(batch, table, np.ones(4), np.random.default_rng(0), 0.0)
        norms.append(metrics["train/grad_norm"])
    assert norms == pytest.approx([norms[0]] * 3, rel=1e-4)
