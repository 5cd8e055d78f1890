from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from algorithms.losses import (
    AGGREGATIONS,
    aggregate,
    aggregation_divisor,
    clip_loss,
    entropy,
    kl_estimate,
    spo_loss,
)
from envs.core import UnknownNameError


def tensor(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_the_estimators_average_to_the_kl_of_two_distributions() -> None:
    policy, reference = tensor([0.5, 0.3, 0.2]).log(), tensor([0.4, 0.4, 0.2]).log()
    exact = (policy.exp() * (policy - reference)).sum().item()
    assert (policy.exp() * kl_estimate(policy, reference, "k1")).sum().item() == pytest.approx(exact)
    assert (policy.exp() * kl_estimate(policy, reference, "k3")).sum().item() == pytest.approx(exact)
    assert (policy.exp() * kl_estimate(policy, reference, "k2")).sum().item() == pytest.approx(exact, rel=0.1)


def test_k3_is_clamped_and_stays_finite() -> None:
    far = tensor([-200.0, 0.0, 200.0])
    estimate = kl_estimate(far, tensor([0.0, 0.0, 0.0]))
    assert estimate.tolist() == [10.0, 0.0, 10.0]


def test_the_ratio_is_clamped_and_the_loss_stays_finite() -> None:
    mask = torch.ones(1, 2, dtype=torch.bool)
    loss, _ = clip_loss(tensor([[0.0, 0.0]]), tensor([[-500.0, 500.0]]), tensor([[-1.0, 1.0]]), mask, dual_clip=None)
    assert loss[0].tolist() == pytest.approx([np.exp(20.0), -np.exp(-20.0)])


def test_spo_trains_the_tokens_that_were_unsure() -> None:
    old = tensor([[0.95, 0.9, 0.5, 0.89, 0.5]]).log()
    new = tensor([[0.9, 0.5, 0.7, 0.8, 0.5]]).log().requires_grad_()
    advantages, mask = tensor([[1.0, 1.0, -1.0, 2.0, 1.0]]), torch.tensor([[True, True, True, True, False]])
    loss, stats = spo_loss(new, old, advantages, mask)
    plain, same_stats = clip_loss(new, old, advantages, mask, dual_clip=None)
    assert loss[0, :2].tolist() == [0.0, 0.0]
    assert loss[0, 2:4].tolist() == plain[0, 2:4].tolist()
    (gradient,) = torch.autograd.grad(loss[mask].sum(), new)
    assert (gradient != 0)[0].tolist() == [False, False, True, True, False]
    torch.testing.assert_close(stats["approx_kl"], same_stats["approx_kl"])
    assert spo_loss(new, old, advantages, mask, threshold=0.99)[0][0, 0] != 0


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
@pytest.mark.parametrize("aggregation", AGGREGATIONS[:3])
def test_what_the_mask_hides_reaches_neither_loss_nor_gradient(
    padding: float, advantage: float, aggregation: str
) -> None:
    mask = torch.tensor([[True, True, False]])
    logprobs = tensor([[-1.0, -2.0, padding]]).requires_grad_()
    old = tensor([[-1.1, -1.9, padding]])
    per_token, _ = clip_loss(logprobs, old, tensor([[1.0, -1.0, advantage]]), mask)
    loss = aggregate(per_token, mask, aggregation)
    loss.backward()  # type: ignore[no-untyped-call]
    short = aggregate(clip_loss(logprobs[:, :2], old[:, :2], tensor([[1.0, -1.0]]), mask[:, :2])[0], mask[:, :2])
    assert loss.item() == pytest.approx(short.item() * (2 if aggregation == "seq-mean-token-sum" else 1))
    assert logprobs.grad is not None
    assert logprobs.grad[0, 2] == 0
    assert logprobs.grad.isfinite().all()


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


def test_bad_names_and_a_missing_divisor_are_told() -> None:
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
