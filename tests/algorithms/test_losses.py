from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from agents.candidates import candidate_logprobs
from algorithms.losses import (
    AGGREGATIONS,
    Tokens,
    aepo_loss,
    aggregate,
    aggregation_divisor,
    chord_loss,
    cispo_loss,
    clip_cov_loss,
    clip_loss,
    dppo_loss,
    entropy,
    fipo_loss,
    future_log_ratios,
    gmpo_loss,
    gspo_loss,
    kl_cov_loss,
    kl_estimate,
    luffy_loss,
    marker,
    nft_loss,
    opsm_loss,
    probability_loss,
    probability_mask,
    reinforce_loss,
    s_grpo_loss,
    sapo_loss,
    top_entropy_loss,
    topr_loss,
    value_loss,
    vespo_loss,
)
from envs.core import UnknownNameError
from tests.golden.replay import by_rows

TOKEN_LOSSES = [
    clip_loss,
    reinforce_loss,
    probability_loss,
    nft_loss,
    cispo_loss,
    sapo_loss,
    dppo_loss,
    partial(dppo_loss, divergence="kl"),
]


MARKED = [fipo_loss, aepo_loss, top_entropy_loss, s_grpo_loss, kl_cov_loss, clip_cov_loss, luffy_loss, chord_loss]


def tensor(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_the_estimators_average_to_the_kl_of_two_distributions() -> None:
    policy, reference = tensor([0.5, 0.3, 0.2]).log(), tensor([0.4, 0.4, 0.2]).log()
    exact = (policy.exp() * (policy - reference)).sum().item()
    assert (policy.exp() * kl_estimate(policy, reference, "k1")).sum().item() == pytest.approx(exact)
    assert (policy.exp() * kl_estimate(policy, reference, "k3")).sum().item() == pytest.approx(exact)
    assert (policy.exp() * kl_estimate(policy, reference, "k2")).sum().item() == pytest.approx(exact, rel=0.1)


def test_with_the_ratio_the_gradient_is_that_of_the_kl_whoever_sampled() -> None:
    logits, reference = tensor([0.3, -0.4, 1.0]), tensor([0.4, 0.4, 0.2]).log()
    sampler = tensor([0.2, 0.7, 0.1]).log()

    def gradient_of(mean_kl: Any) -> Tensor:
        at = logits.clone().requires_grad_()
        (found,) = torch.autograd.grad(mean_kl(at.log_softmax(-1)), at)
        return found

    exact = gradient_of(lambda policy: (policy.exp() * (policy - reference)).sum())
    estimates = {
        name: gradient_of(lambda p, name=name: (sampler.exp() * kl_estimate(p, reference, name, sampler)).sum())
        for name in ("k3_ratio", "k3")
    }
    torch.testing.assert_close(estimates["k3_ratio"], exact)
    assert (estimates["k3"] - exact).abs().max() > 0.1
    on_policy = gradient_of(lambda p: (p.detach().exp() * kl_estimate(p, reference, "k3_ratio")).sum())
    torch.testing.assert_close(on_policy, exact)


def test_k3_is_clamped_and_stays_finite() -> None:
    far = tensor([-200.0, 0.0, 200.0])
    estimate = kl_estimate(far, tensor([0.0, 0.0, 0.0]))
    assert estimate.tolist() == [10.0, 0.0, 10.0]


def test_the_ratio_is_clamped_and_the_loss_stays_finite() -> None:
    mask = torch.ones(1, 2, dtype=torch.bool)
    loss, _ = clip_loss(tensor([[0.0, 0.0]]), tensor([[-500.0, 500.0]]), tensor([[-1.0, 1.0]]), mask, dual_clip=None)
    assert loss[0].tolist() == pytest.approx([np.exp(20.0), -np.exp(-20.0)])


def test_dual_clip_bounds_the_loss_of_bad_actions_only() -> None:
    logprobs, old = tensor([[0.0, 0.0]]), tensor([[-2.0, -2.0]])
    mask = torch.ones(1, 2, dtype=torch.bool)
    bounded, _ = clip_loss(logprobs, old, tensor([[-1.0, 1.0]]), mask, dual_clip=3.0)
    free, _ = clip_loss(logprobs, old, tensor([[-1.0, 1.0]]), mask, dual_clip=None)
    assert bounded[0].tolist() == pytest.approx([3.0, -1.2])
    assert free[0].tolist() == pytest.approx([np.exp(2.0), -1.2])
    with pytest.raises(ValueError, match=r"dual_clip bounds ratios above 1, got 0\.5"):
        clip_loss(logprobs, old, logprobs, mask, dual_clip=0.5)


@pytest.mark.parametrize(("padding", "advantage"), [(float("nan"), 0.0), (float("-inf"), 1.0), (0.0, float("nan"))])
@pytest.mark.parametrize("loss", [*TOKEN_LOSSES, gspo_loss, topr_loss, gmpo_loss, vespo_loss, opsm_loss, *MARKED])
@pytest.mark.parametrize("aggregation", AGGREGATIONS[:3])
def test_masked_tokens_are_in_neither_loss_nor_gradient(
    loss: Any, padding: float, advantage: float, aggregation: str
) -> None:
    options: Any = {"eps_low": 0.2, "eps_high": 0.2} if loss is gspo_loss else {}
    mask = torch.tensor([[True, True, False]])
    extra = (
        {}
        if loss not in MARKED
        else {"demonstrated": mask & False}
        if loss in (luffy_loss, chord_loss)
        else {"marks": mask * 0.5}
    )
    logprobs = tensor([[-1.0, -2.0, padding]]).requires_grad_()
    old, advantages = tensor([[-1.1, -1.9, padding]]), tensor([[0.5, -0.5, advantage]])
    per_token, stats = by_rows(loss, logprobs, old, advantages, mask, **options, **extra)
    whole = aggregate(per_token, mask, aggregation)
    whole.backward()  # type: ignore[no-untyped-call]
    shorter = {name: values[:, :2] for name, values in extra.items()}
    short, _ = by_rows(loss, *(part[:, :2] for part in (logprobs, old, advantages, mask)), **options, **shorter)
    assert whole.item() == pytest.approx(short.mean().item() * (2 if aggregation == "seq-mean-token-sum" else 1))
    assert logprobs.grad is not None
    assert logprobs.grad[0, 2] == 0
    assert logprobs.grad.isfinite().all()
    assert stats.keys() == {"clip_fraction", "approx_kl"}


@given(
    st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=2, max_size=6),
    st.integers(1, 5),
    st.sampled_from(AGGREGATIONS),
)
def test_micro_batches_add_up_to_the_whole(rows: list[list[bool]], cut: int, aggregation: str) -> None:
    mask = torch.tensor(rows)
    values = torch.randn(mask.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(len(rows)))
    units = torch.full(mask.shape, max(int(mask.sum()), 1))  # one turn over all sequences
    fixed = 7.0 if aggregation == "seq-mean-token-sum-norm" else None
    divisor = fixed or aggregation_divisor(mask, aggregation, units)
    parts = [aggregate(values[s], mask[s], aggregation, divisor, units[s]) for s in (slice(cut), slice(cut, None))]
    whole = aggregate(values, mask, aggregation, fixed, units)
    assert sum(part.item() for part in parts) == pytest.approx(whole.item())
    assert whole.isfinite()


def test_sequences_without_a_token_are_not_counted() -> None:
    values = tensor([[1.0, 3.0], [5.0, 5.0], [4.0, 9.0]])
    mask = torch.tensor([[True, True], [False, False], [True, False]])
    assert aggregate(values, mask, "token-mean").item() == pytest.approx(8 / 3)
    assert aggregate(values, mask, "seq-mean-token-sum").item() == pytest.approx(8 / 2)
    assert aggregate(values, mask, "seq-mean-token-mean").item() == pytest.approx((2 + 4) / 2)
    assert aggregate(values, mask, "seq-mean-token-sum-norm", 100).item() == pytest.approx(0.08)


def test_bad_names_and_a_missing_divisor_raise() -> None:
    values, mask = tensor([[1.0]]), torch.tensor([[True]])
    for divisor in (None, 1.0):
        with pytest.raises(UnknownNameError, match="did you mean 'token-mean'"):
            aggregate(values, mask, "token_mean", divisor)
    with pytest.raises(ValueError, match="'seq-mean-token-sum-norm' needs a fixed divisor"):
        aggregate(values, mask, "seq-mean-token-sum-norm")
    with pytest.raises(UnknownNameError, match=r"unknown KL estimator 'k4'.*known: abs, abs\+, k1, k1\+, k2"):
        kl_estimate(values, values, "k4")


def test_entropy_of_known_distributions() -> None:
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [50.0, 0.0, 0.0, 0.0]])
    assert entropy(logits).tolist() == pytest.approx([np.log(4), 0.0], abs=1e-6)


def gradient(loss: Any, advantages: Tensor, logprobs: Any, old: Any = None, **options: Any) -> Tensor:
    """The gradient of the summed loss by the log-probabilities; on-policy without `old`."""
    new = tensor(logprobs).requires_grad_()
    mask = torch.ones(new.shape, dtype=torch.bool)
    by_rows(loss, new, tensor(old or logprobs), advantages, mask, **options)[0].sum().backward()
    assert new.grad is not None
    return new.grad


SUCCESS_RATE = 0.25
LOGPROBS = [[-1.0, -2.0], [-0.5, -3.0]]
ADVANTAGES = tensor([[1 - SUCCESS_RATE] * 2, [-SUCCESS_RATE] * 2])


@pytest.mark.parametrize("loss", [clip_loss, reinforce_loss, topr_loss, nft_loss])
def test_on_policy_all_losses_have_the_policy_gradient(loss: Any) -> None:
    torch.testing.assert_close(gradient(loss, ADVANTAGES, LOGPROBS), -ADVANTAGES)


@pytest.mark.parametrize(("normalizer", "weight"), [("none", 1.0), ("std", (1 / SUCCESS_RATE - 1) ** 0.5)])
def test_normalizers_of_nft(normalizer: str, weight: float) -> None:
    expected = -ADVANTAGES / (1 - SUCCESS_RATE) * weight
    torch.testing.assert_close(gradient(nft_loss, ADVANTAGES, LOGPROBS, normalizer=normalizer), expected)
    with pytest.raises(UnknownNameError, match="did you mean 'std'"):
        gradient(nft_loss, ADVANTAGES, LOGPROBS, normalizer="sdt")


def test_nft_learns_from_an_unlikelier_failure_with_the_implied_policy() -> None:
    mask = torch.ones(1, 1, dtype=torch.bool)
    loss, _ = nft_loss(tensor([[-2.0]]), tensor([[-1.0]]), tensor([[-0.25]]), mask, normalizer="none")
    rho = np.exp(-1.0)
    assert loss.item() == pytest.approx(-np.log((1 - 0.25 * rho) / 0.75))
    likelier, _ = nft_loss(tensor([[-0.5]]), tensor([[-1.0]]), tensor([[-0.25]]), mask)
    assert likelier.item() == 0.0
    assert gradient(nft_loss, tensor([[-0.25]]), [[-0.5]], [[-1.0]]).item() > 0.25


@pytest.mark.parametrize("advantage", [9.0, -1.5])
def test_nft_refuses_advantages_that_no_success_rate_has(advantage: float) -> None:
    with pytest.raises(ValueError, match=rf"an advantage of {advantage:g}; it needs success - success rate"):
        gradient(nft_loss, tensor([[0.5, advantage]]), [[-1.0, -1.0]])


def test_gspo_clips_whole_sequences() -> None:
    """The first sequence's mean ratio is within the clip though its tokens' are not; the second's is outside."""
    old, new = tensor([[-1.0, -1.0], [-1.0, -1.0]]), [[-0.5, -1.49], [-0.9, -0.9]]
    advantages = tensor([[1.0, 1.0], [1.0, 1.0]])
    grad = gradient(gspo_loss, advantages, new, old.tolist(), eps_low=0.01, eps_high=0.01)
    torch.testing.assert_close(grad, tensor([[-np.exp(0.005)] * 2, [0.0, 0.0]]))


def test_topr_tapers_failures_by_the_ratio_of_the_sequence_or_token() -> None:
    old, new = [[-1.0, -1.0]], [[-1.5, -0.8]]
    bad = tensor([[-1.0, -1.0]])
    torch.testing.assert_close(gradient(topr_loss, bad, new, old), tensor([[np.exp(-0.3)] * 2]))
    by_token = gradient(topr_loss, bad, new, old, ratio="token")
    torch.testing.assert_close(by_token, tensor([[np.exp(-0.5), 1.0]]))
    torch.testing.assert_close(gradient(topr_loss, -bad, new, old), bad)


@pytest.mark.parametrize("estimator", ["k1", "abs", "k3"])
def test_estimators_with_a_plus_have_the_gradient_of_k2(estimator: str) -> None:
    logprobs = tensor([-1.0, -0.3]).requires_grad_()
    reference = tensor([-0.5, -2.0])
    plus = kl_estimate(logprobs, reference, f"{estimator}+")
    torch.testing.assert_close(plus, kl_estimate(logprobs, reference, estimator))
    plus.sum().backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(logprobs.grad, (logprobs - reference).detach())


def test_the_value_loss_is_that_of_the_worse_of_value_and_clipped_value() -> None:
    values, old, returns = tensor([1.0, 3.0, 0.0]), tensor([0.0, 0.0, 0.0]), tensor([2.0, 2.0, 2.0])
    assert value_loss(values, old, returns).tolist() == pytest.approx([1.5**2 / 2, 1.5**2 / 2, 2.0])
    assert value_loss(values, old, returns, clip=None).tolist() == [0.5, 0.5, 2.0]


def test_the_probability_mask_leaves_out_tokens_of_high_probability() -> None:
    mask = torch.tensor([[True, True, False]])
    assert probability_mask(tensor([[0.95, 0.85, 0.1]]).log(), mask).tolist() == [[False, True, False]]


def test_the_policy_over_candidates_evens_out_their_lengths() -> None:
    sums, mask = tensor([[-2.0, -4.0, -1.0]]), torch.tensor([[True, True, False]])
    by_word = candidate_logprobs(sums, tensor([[1.0, 2.0, 1.0]]), mask)
    assert by_word.exp()[0].tolist() == pytest.approx([0.5, 0.5, 0.0])
    whole = candidate_logprobs(sums, torch.ones(1, 3), mask).exp()[0]
    assert (whole[0] / whole[1]).item() == pytest.approx(np.exp(2.0))


def test_means_over_turns_weigh_each_alike() -> None:
    """A turn of one token, and one of three that stands in two sequences."""
    values, mask = tensor([[6.0, 1.0], [2.0, 3.0]]), torch.ones(2, 2, dtype=torch.bool)
    assert aggregate(values, mask, "turn-mean", unit_tokens=torch.tensor([[1, 3], [3, 3]])).item() == 4.0
    with pytest.raises(ValueError, match="needs unit_tokens"):
        aggregate(values, mask, "trajectory-mean")


# -- trust regions ----------------------------------------------------------------------------------------------------
def gradient_at(loss: Any, advantage: float, new: float, old: float, **options: Any) -> float:
    """The gradient at the log-probability of a single token."""
    logprobs, mask = tensor([[new]]).requires_grad_(), torch.ones(1, 1, dtype=torch.bool)
    by_rows(loss, logprobs, tensor([[old]]), tensor([[advantage]]), mask, **options)[0].sum().backward()
    assert logprobs.grad is not None
    return logprobs.grad.item()


@pytest.mark.parametrize("loss", [clip_loss, cispo_loss, sapo_loss, dppo_loss, gmpo_loss, vespo_loss])
@pytest.mark.parametrize("advantage", [0.7, -0.3, 0.0])
def test_on_policy_all_have_the_gradient_of_reinforce(loss: Any, advantage: float) -> None:
    assert gradient_at(loss, advantage, -1.3, -1.3) == pytest.approx(-advantage)


def test_cispo_keeps_the_gradient_where_ppo_clips_it() -> None:
    assert gradient_at(clip_loss, 1.0, -0.5, -1.5) == 0
    assert gradient_at(cispo_loss, 1.0, -0.5, -1.5) == pytest.approx(-1.2)
    assert gradient_at(cispo_loss, -1.0, -3.0, -1.0) == pytest.approx(np.exp(-2))  # no lower bound
    assert gradient_at(cispo_loss, -1.0, -3.0, -1.0, eps_low=0.2) == pytest.approx(0.8)


def test_sapo_fades_out_faster_for_bad_tokens() -> None:
    good, bad = (abs(gradient_at(sapo_loss, a, -0.2, -1.2)) for a in (1.0, -1.0))
    assert 0 < bad < good < np.exp(1.0)
    with pytest.raises(ValueError, match="tau must be positive, got 0"):
        gradient_at(sapo_loss, 1.0, -1.0, -1.0, tau_positive=0.0)


@pytest.mark.parametrize("divergence", ["tv", "kl"])
def test_dppo_lets_a_rare_token_grow_and_holds_a_frequent_one(divergence: str) -> None:
    options = {"divergence": divergence, "delta": 0.02}
    rare, frequent = np.log([0.001, 0.005]), np.log([0.9, 0.6])
    assert gradient_at(dppo_loss, 1.0, rare[1], rare[0], **options) == pytest.approx(-5.0)
    assert gradient_at(clip_loss, 1.0, rare[1], rare[0]) == 0
    assert gradient_at(dppo_loss, -1.0, frequent[1], frequent[0], **options) == 0
    assert gradient_at(dppo_loss, 1.0, frequent[1], frequent[0], **options) != 0  # back towards where it was
    with pytest.raises(UnknownNameError, match="divergence 'TV'"):
        dppo_loss(tensor([[0.0]]), tensor([[0.0]]), tensor([[1.0]]), torch.ones(1, 1).bool(), divergence="TV")


def test_gmpo_clips_the_tokens_of_a_sequence_before_their_mean() -> None:
    mask = torch.ones(1, 2, dtype=torch.bool)
    loss, stats = by_rows(gmpo_loss, tensor([[-0.1, -1.0]]), tensor([[-1.1, -0.9]]), tensor([[2.0, 2.0]]), mask)
    assert loss[0].tolist() == pytest.approx([-2 * np.exp((0.4 - 0.1) / 2)] * 2)
    assert stats["clip_fraction"].tolist() == [[1, 0]]


def test_vespo_weighs_a_sequence_less_the_further_its_ratio_is_from_one() -> None:
    sizes = [-gradient_at(vespo_loss, 1.0, new, -2.0) for new in (-2.0, -1.5, -1.0, -0.5)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == pytest.approx(1.0)
    assert 0 < -gradient_at(vespo_loss, 1.0, -6.0, -2.0) < 0.05


def tokens_of(logprobs: Any, old: Any, advantages: Any, entropies: Any = None, units: Any = None) -> Tokens:
    """The tokens of an optimiser step; by default all of one unit."""
    count = len(logprobs)
    return Tokens(
        *(np.asarray(of, dtype=np.float64) for of in (logprobs, old, advantages)),
        np.zeros(count) if entropies is None else np.asarray(entropies, dtype=np.float64),
        np.zeros(count, dtype=np.int64) if units is None else np.asarray(units),
    )


def test_kl_cov_punishes_the_tokens_with_the_largest_covariance() -> None:
    logprobs, old = np.array([-0.1, -2.0, -0.2, -3.0]), np.array([-0.3, -2.0, -0.1, -3.5])
    advantages = np.array([1.0, 1.0, -1.0, -1.0])
    mark = marker(partial(kl_cov_loss, share=0.5, coef=2.0))
    assert mark is not None
    picked = mark(tokens_of(logprobs, old, advantages), np.random.default_rng(0))
    assert picked.tolist() == [True, False, False, True]  # likely and good, unlikely and bad
    mask = torch.ones(1, 4, dtype=torch.bool)
    arguments = tensor(logprobs[None]), tensor(old[None]), tensor(advantages[None]), mask
    loss, _ = kl_cov_loss(*arguments, torch.from_numpy(picked)[None], coef=2.0)
    plain, _ = clip_loss(*arguments, eps_low=1.0, eps_high=99.0, dual_clip=None)
    np.testing.assert_allclose((loss - plain)[0], [2 * 0.2, 0, 0, 2 * 0.5])


def test_clip_cov_draws_among_the_unclipped_tokens_within_its_limits() -> None:
    rng = np.random.default_rng(0)
    advantages = rng.normal(size=1000)
    logprobs, old = -rng.exponential(size=1000), -rng.exponential(size=1000)
    mark = marker(partial(clip_cov_loss, share=0.01, lowest=0.5, highest=2.0))
    assert mark is not None
    covariances = (advantages - advantages.mean()) * (logprobs - logprobs.mean())
    drawn = [mark(tokens_of(logprobs, old, advantages), np.random.default_rng(seed)) for seed in (1, 1, 2)]
    assert [picked.sum() for picked in drawn] == [10, 10, 10]
    assert (drawn[0] == drawn[1]).all()
    assert (drawn[0] != drawn[2]).any()
    for picked in drawn:
        assert ((covariances[picked] > 0.5) & (covariances[picked] < 2.0)).all()
        ratio = np.exp(logprobs - old)[picked]
        assert np.where(advantages[picked] > 0, ratio <= 1.2, ratio >= 0.8).all()
    with pytest.raises(ValueError, match="share must lie between 0 and 1, got 0"):
        marker(partial(clip_cov_loss, share=0))(tokens_of(logprobs, old, advantages), rng)  # type: ignore[misc]


# -- weights of another loss ------------------------------------------------------------------------------------------
def test_opsm_leaves_out_bad_sequences_that_became_unlikely() -> None:
    mask = torch.ones(3, 2, dtype=torch.bool)
    old = tensor([[-1.0, -1.0]] * 3)
    logprobs = tensor([[-1.3, -1.4], [-1.3, -1.4], [-1.0, -1.4]])  # means of -0.35, -0.35 and -0.2
    advantages = tensor([[-1.0, -1.0], [1.0, 1.0], [-1.0, -1.0]])
    loss, stats = by_rows(opsm_loss, logprobs, old, advantages, mask, of=cispo_loss)
    plain, _ = cispo_loss(logprobs, old, advantages, mask)
    torch.testing.assert_close(loss, plain * tensor([[0.0], [1.0], [1.0]]))
    assert stats["clip_fraction"].tolist() == [[1, 1], [0, 0], [0, 0]]


def test_a_loss_of_sequences_cannot_be_weighed() -> None:
    mask = torch.ones(1, 2, dtype=torch.bool)
    for of, name in ((partial(gspo_loss, eps_low=0.1, eps_high=0.1), "gspo_loss"), (kl_cov_loss, "kl_cov_loss")):
        with pytest.raises(ValueError, match=f"a loss of single tokens, such as clip_loss; got {name}"):
            by_rows(opsm_loss, mask.double(), mask.double(), mask.double(), mask, of=of)


def test_fipo_weighs_a_token_by_what_follows_in_its_unit() -> None:
    ratios, units = np.array([0.4, 0.2, 0.1, 0.3]), np.array([7, 7, 7, 2])
    future = future_log_ratios(ratios, units, np.arange(4), half_life=1.0)
    np.testing.assert_allclose(future, [0.4 + 0.1 + 0.025, 0.2 + 0.05, 0.1, 0.3])
    apart = future_log_ratios(ratios, units, np.array([0, 3, 4, 5]), half_life=1.0)
    np.testing.assert_allclose(apart[:2], [0.4 + 0.2 / 8 + 0.1 / 16, 0.25])
    mark = marker(partial(fipo_loss, half_life=1.0, clip=0.2))
    assert mark is not None
    rng = np.random.default_rng(0)
    tokens = tokens_of(-1 + ratios, np.full(4, -1.0), np.ones(4), units=units)
    np.testing.assert_allclose(mark(tokens, rng), [1.2, 1.2, np.exp(0.1), 1.2])
    np.testing.assert_allclose(mark(tokens._replace(logprobs=tokens.old_logprobs), rng), 1.0)  # on policy


@pytest.mark.parametrize(
    ("ratio", "advantage", "weight"), [(5.0, -1.0, 1.0), (5.0, 1.0, 1.2), (3.0, -1.0, 1.2), (20.0, 1.0, 1.0)]
)
def test_fipo_gives_bad_tokens_with_a_large_ratio_no_more_weight(ratio: float, advantage: float, weight: float) -> None:
    mark = marker(fipo_loss)
    assert mark is not None
    alone = tokens_of([np.log(ratio)], [0.0], [advantage])
    assert mark(alone, np.random.default_rng(0)).tolist() == pytest.approx([weight])  # above delta it does not count


@given(st.lists(st.floats(0, 5), min_size=1, max_size=20), st.floats(0.01, 3))
def test_aepo_scales_entropies_to_mean_0_and_variance_1(entropies: list[float], same: float) -> None:
    mark = marker(aepo_loss)
    assert mark is not None
    count = len(entropies)
    z = mark(tokens_of([0.0] * count, [0.0] * count, [1.0] * count, entropies), np.random.default_rng(0))
    assert np.isfinite(z).all()
    if count > 1 and np.std(entropies) > 1e-3:
        assert z.mean() == pytest.approx(0.0, abs=1e-9)
        assert z.std(ddof=1) == pytest.approx(1.0)
    equal = [same, same + 1e-9 * same] * count  # equal but for rounding
    assert not mark(tokens_of(equal, equal, equal, equal), np.random.default_rng(0)).any()


@pytest.mark.parametrize(("keep", "kept"), [("high", 0), ("low", 1)])
def test_aepo_keeps_the_gradient_of_clipped_tokens_with_high_entropy(keep: str, kept: int) -> None:
    logprobs = tensor([[-0.5, -0.5]]).requires_grad_()
    arguments = tensor([[-1.5, -1.5]]), tensor([[1.0, 1.0]]), torch.ones(1, 2, dtype=torch.bool)
    z = tensor([[1.0, -1.0]])
    loss, _ = aepo_loss(logprobs, *arguments, z, keep_gradient=keep)
    assert loss[0].tolist() == pytest.approx([-1.2 * 1.28, -0.8 * 1.28])
    loss.sum().backward()  # type: ignore[no-untyped-call]
    assert logprobs.grad is not None
    expected = np.where(np.arange(2) == kept, [-1.2 * 1.28, -0.8 * 1.28], 0.0)
    np.testing.assert_allclose(logprobs.grad[0], expected)
    with pytest.raises(UnknownNameError, match="keep_gradient 'hi'; did you mean 'high'"):
        aepo_loss(logprobs, *arguments, z, keep_gradient="hi")


def test_luffy_learns_unlikely_tokens_of_demonstrations_the_most() -> None:
    logprobs = tensor([[0.05, 0.9, 0.9]]).log().requires_grad_()
    old, demonstrated = tensor([[np.nan, np.nan, np.log(0.5)]]), torch.tensor([[True, True, False]])
    mask = torch.ones(1, 3, dtype=torch.bool)
    loss, _ = luffy_loss(logprobs, old, torch.ones(1, 3).double(), mask, demonstrated)
    assert loss[0].tolist() == pytest.approx([-0.05 / 0.15, -0.9, -1.2])
    loss.sum().backward()  # type: ignore[no-untyped-call]
    assert logprobs.grad is not None
    np.testing.assert_allclose(logprobs.grad[0], [-0.05 * 0.1 / 0.15**2, -0.9 * 0.1 / 1.0**2, 0.0])


@pytest.mark.parametrize(("token_weight", "weights"), [(True, [0.05 * 0.95, 0.9 * 0.1]), (False, [1.0, 1.0])])
def test_chord_imitates_with_p_times_one_minus_p(token_weight: bool, weights: list[float]) -> None:
    logprobs = tensor([[0.05, 0.9, 0.9]]).log().requires_grad_()
    old, demonstrated = tensor([[np.nan, np.nan, np.log(0.8)]]), torch.tensor([[True, True, False]])
    mask, advantages = torch.ones(1, 3, dtype=torch.bool), tensor([[1.0, 1.0, 2.0]])
    loss, _ = chord_loss(logprobs, old, advantages, mask, demonstrated, mu=0.25, token_weight=token_weight)
    expected = [-0.25 * w * np.log(p) for w, p in zip(weights, (0.05, 0.9), strict=True)]
    assert loss[0].tolist() == pytest.approx([*expected, -0.75 * 2 * 0.9 / 0.8])
    loss.sum().backward()  # type: ignore[no-untyped-call]
    assert logprobs.grad is not None  # the weight has no gradient
    np.testing.assert_allclose(logprobs.grad[0], [*(-0.25 * w for w in weights), -0.75 * 2 * 0.9 / 0.8])
    with pytest.raises(ValueError, match=r"algo\.loss\.mu must lie between 0 and 1, got 1\.5"):
        chord_loss(logprobs, old, advantages, mask, demonstrated, mu=1.5)


def test_only_the_tokens_with_the_highest_entropies_are_learned_from() -> None:
    mark = marker(partial(top_entropy_loss, share=0.4))
    assert mark is not None
    tokens = tokens_of(*np.zeros((3, 5)), entropies=[0.1, 0.9, 0.2, 0.5, 0.0])
    marks = mark(tokens, np.random.default_rng(0))
    assert marks.tolist() == [0, 1, 0, 1, 0]
    assert mark(tokens._replace(entropies=np.zeros(5)), np.random.default_rng(0)).tolist() == [1] * 5
    mask, logprobs = torch.ones(1, 5, dtype=torch.bool), -torch.rand(1, 5, dtype=torch.float64)
    arguments = logprobs, logprobs - 0.1, torch.ones(1, 5).double(), mask
    loss, _ = top_entropy_loss(*arguments, torch.from_numpy(marks)[None])
    torch.testing.assert_close(loss, clip_loss(*arguments)[0] * torch.from_numpy(marks))


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.integers(0, 4), st.integers(1, 6), st.integers(0, 99))
def test_s_grpo_keeps_the_first_tokens_of_each_unit(units: list[int], first: int, most: int, seed: int) -> None:
    mark = marker(partial(s_grpo_loss, first=first, share=0.5, most=most))
    assert mark is not None
    marks = mark(tokens_of(*np.zeros((3, len(units))), units=units), np.random.default_rng(seed))
    assert marks.mean() == pytest.approx(1.0) or not marks.any()
    assert len(set(marks[marks > 0])) <= 1
    for unit in set(units):
        kept = (marks > 0)[np.array(units) == unit]
        assert kept[: min(first, most)].all()
        assert kept.sum() <= most
