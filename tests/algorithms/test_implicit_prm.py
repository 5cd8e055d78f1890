from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from agents.policies.lora import Lora, add_adapters
from algorithms.signals.base import SignalContext
from algorithms.signals.critic import Critic
from algorithms.signals.implicit_prm import ImplicitPRM, outcome_loss, pairwise_loss, turn_rewards
from tests.agents.toys import random_policy


def test_a_turn_is_rewarded_by_its_own_tokens() -> None:
    mask = torch.tensor([[True, True], [True, False]])
    logprobs = torch.tensor([[-1.0, -2.0], [-1.0, float("nan")]])
    rewards = turn_rewards(logprobs, torch.tensor([[-2.0, -2.5], [-0.5, 0.0]]), mask, beta=0.1)
    assert rewards.tolist() == pytest.approx([0.15, -0.05])


def test_every_success_is_paired_with_every_failure_at_the_same_task() -> None:
    """Task 0: episodes 0 (won, mean 2) and 1, 2 (lost, 0 and 1); task 1: one episode, won."""
    rewards = torch.tensor([1.0, 3.0, 0.0, 1.0, -9.0])
    episode, group = torch.tensor([0, 0, 1, 2, 3]), torch.tensor([0, 0, 0, 0, 1])
    success = torch.tensor([1, 1, 0, 0, 1])
    expected = np.mean([np.log1p(np.exp(-2.0)), np.log1p(np.exp(-1.0))])
    assert pairwise_loss(rewards, episode, group, success).item() == pytest.approx(expected)


def test_without_a_pair_there_is_nothing_to_learn() -> None:
    rewards = torch.tensor([1.0, 2.0]).requires_grad_()
    loss = pairwise_loss(rewards, torch.tensor([0, 1]), torch.tensor([0, 0]), torch.tensor([1, 1]))
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == 0.0
    assert rewards.grad is not None
    assert rewards.grad.tolist() == [0, 0]


def test_the_outcome_loss_is_the_cross_entropy() -> None:
    loss = outcome_loss(torch.tensor([0.0, 2.0]), torch.tensor([1, 0]))
    assert loss.item() == pytest.approx((np.log(2) + np.log1p(np.exp(2.0))) / 2, rel=1e-5)


@pytest.mark.parametrize("make", [ImplicitPRM, partial(ImplicitPRM, reference="first"), Critic])
def test_models_that_are_trained_along_are_float32_and_share_what_is_frozen(make) -> None:
    pytest.importorskip("peft")
    model = random_policy().model.to(torch.bfloat16)
    context = SignalContext(model, None, None, torch.float32, 2048, 1.0, 8, 0)  # type: ignore[arg-type]
    signal = make(context)
    own = signal.body if isinstance(signal, Critic) else signal.model
    assert {p.dtype for p in own.parameters()} == {torch.float32}

    add_adapters(model, Lora(rank=2), "model")
    signal = make(context)
    copies = [signal.body] if isinstance(signal, Critic) else [m for m in (signal.model, signal.first) if m is not None]
    for copied in copies:
        for (name, own), other in zip(model.named_parameters(), copied.parameters(), strict=True):
            assert (own is other) == (".lora_" not in name)
            assert other.dtype == (torch.float32 if ".lora_" in name else torch.bfloat16)
