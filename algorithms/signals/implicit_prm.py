"""The implicit process reward model: a language model whose log-ratio to a reference is a reward, and its losses.

    q_t = log pi_phi(token t) - log pi_ref(token t);   the reward of a token is beta · q_t, of a turn beta · sum of q_t

No turn is labelled. pi_phi learns only from outcomes, by pairs of attempts (`pairwise_loss`, iStar, arXiv 2509.19199)
or from each attempt separately (`outcome_loss`, PRIME, arXiv 2502.01456); its log-ratio then assigns rewards to tokens.
iStar's reference is the policy that sampled, PRIME's a fixed model; beta is 0.05 in both. The results equal those of
iStar's `dp_rm.py` and `rm_utils.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

from agents.policies.sharded import load_optimizer_state, load_whole_state, optimizer_state, whole_state
from agents.policies.weights import copy_trained, train_in_float32
from algorithms.batches import (
    Batch,
    by_sample,
    make_batch,
    map_samples,
    micro_batches,
    padded_tokens,
    sampled_logprobs,
    turn_of,
)
from algorithms.finite import FiniteSteps, LossPart, first_not_finite
from algorithms.signals.base import Measurement, RolloutBatch, SignalBase, SignalContext, turn_sums
from algorithms.turn_table import Estimate
from envs.core import UnknownNameError

LOSSES = ("pairwise", "outcome")
REFERENCES = ("sampler", "first")
WHEN = ("before", "after")


def turn_rewards(logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor, beta: float = 0.05) -> Tensor:
    """[N] the reward of each turn, from the log-probabilities of its T tokens; all arguments are [N, T]."""
    return beta * (logprobs - ref_logprobs).masked_fill(~mask, 0.0).sum(-1)


def pairwise_loss(rewards: Tensor, episode: Tensor, group: Tensor, success: Tensor) -> Tensor:
    """The mean of -log sigmoid(Q⁺ - Q⁻) over all pairs of a success and a failure at the same task; 0 without pairs.

    `rewards`, `episode`, `group` and `success` are [N], one per turn; Q is the mean of an episode's `rewards`. (The
    paper has the sum, and the docstring of the authors' code describes one-to-one pairs.)
    """
    names, inverse, count = torch.unique(episode, return_inverse=True, return_counts=True)
    q = rewards.new_zeros(len(names)).index_add(0, inverse, rewards) / count
    # All turns of an episode have the same outcome, so any of them will do.
    groups = group.new_zeros(len(names)).index_copy(0, inverse, group)
    won = torch.zeros_like(names, dtype=torch.bool).index_copy(0, inverse, success.bool())
    pairs = (groups[:, None] == groups[None, :]) & won[:, None] & ~won[None, :]
    if not pairs.any():
        return rewards.sum() * 0.0
    return -logsigmoid((q[:, None] - q[None, :])[pairs]).mean()


def outcome_loss(rewards: Tensor, success: Tensor) -> Tensor:
    """PRIME's mean cross-entropy of sigmoid(reward) against success over sequences; both are [N]."""
    return binary_cross_entropy_with_logits(rewards, success.to(rewards.dtype))


class ImplicitPRM(SignalBase):
    """Signals `prm`, for turns and tokens: a copy of the policy, trained to distinguish successes from failures."""

    gives = gives_tokens = ("prm",)

    def __init__(
        self,
        context: SignalContext,
        *,
        loss: str = "pairwise",
        reference: str = "sampler",
        beta: float = 0.05,
        learning_rate: float = 1e-6,
        update: str = "after",
    ) -> None:
        """`loss` is "pairwise" (iStar) or "outcome" (PRIME). `reference` is "sampler", the policy that sampled, or
        "first", the weights at the start of the run. `update` says whether it learns from a batch "before" it measures
        that batch or "after".
        """
        for name, value, known in (
            ("loss", loss, LOSSES),
            ("reference", reference, REFERENCES),
            ("update", update, WHEN),
        ):
            if value not in known:
                raise UnknownNameError(name, value, known)
        self.context, self.loss, self.reference, self.beta, self.update = context, loss, reference, beta, update
        self.model = copy_trained(context.model)
        train_in_float32(self.model)
        self.first = copy_trained(context.model).requires_grad_(False) if reference == "first" else None
        for model in (self.model, self.first):
            if model is not None:
                context.parallel.place(model, context.dtype)
        self.trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        self.optimizer = torch.optim.AdamW(self.trained.values(), lr=learning_rate, weight_decay=0.0)
        self.steps = FiniteSteps("process reward model")

    def measure(self, rollouts: RolloutBatch) -> Measurement:
        reference = self._logprobs(self.first or self.context.model, rollouts)
        metrics = self._learn(rollouts, reference) if self.update == "before" else {}
        tokens = self.beta * (self._logprobs(self.model, rollouts) - reference)
        sums = turn_sums(rollouts.table, tokens)
        won = rollouts.success() > 0
        if won.any() and not won.all():
            metrics["signal/prm_gap"] = float(sums[won].mean() - sums[~won].mean())
        self._reference = reference
        return Measurement({"prm": sums}, {"prm": tokens}, metrics)

    def learn(self, rollouts: RolloutBatch, estimate: NDArray[np.float64] | Estimate) -> dict[str, float]:  # noqa: ARG002
        """Learn from the batch that was measured last, unless this was done before measuring it."""
        return self._learn(rollouts, self._reference) if self.update == "after" else {}

    def _logprobs(self, model: Any, rollouts: RolloutBatch) -> NDArray[np.float64]:
        def compute(batch: Batch) -> Tensor:
            return sampled_logprobs(model, batch, 1.0, self.context.dtype)[0]

        context = self.context
        return map_samples(rollouts.samples, context.micro_batch_tokens, context.device, compute, context.parallel)

    def _learn(self, rollouts: RolloutBatch, reference: NDArray[np.float64]) -> dict[str, float]:
        """One step. The loss is over whole episodes, so it first computes its gradient for each turn's reward. The
        model then gets this as weights of its log-probabilities, in micro-batches. The gradient equals that of the
        loss.

        A step that is not finite is skipped and counted in `signal/prm_skipped_steps`.
        """
        table, context, samples = rollouts.table, self.context, rollouts.samples
        tokens = self.beta * (self._logprobs(self.model, rollouts) - reference)
        place = first_not_finite(tokens)
        if place is not None:
            self.steps.skip(f"the reward of a token is {tokens[place]}", turn_of(samples, table, place))
            return {"signal/prm_skipped_steps": 1.0}
        turns = turn_sums(table, tokens)
        rewards = torch.from_numpy(turns).requires_grad_()
        success, episode = torch.from_numpy(rollouts.success()), torch.from_numpy(table.episode_number)
        if self.loss == "pairwise":
            loss = pairwise_loss(rewards, episode, torch.from_numpy(table.group), success)
        else:
            count = int(episode.max()) + 1
            whole = rewards.new_zeros(count).index_add(0, episode, rewards)
            loss = outcome_loss(whole, success.new_zeros(count).index_copy(0, episode, success))
        (wanted,) = torch.autograd.grad(loss, rewards)
        weights = by_sample(samples, self.beta * table.per_token(wanted.numpy()))

        def weighted(part: Sequence[int]) -> Tensor:
            batch = make_batch([samples[i] for i in part], context.device)
            logprobs, _ = sampled_logprobs(self.model, batch, 1.0, context.dtype)
            return (batch.spread([weights[i] for i in part]) * logprobs).sum()

        parts = micro_batches([len(s.ids) for s in samples], context.micro_batch_tokens)
        costs = padded_tokens([[samples[i] for i in part] for part in parts])
        for part, weight in context.parallel.passes(parts, costs):
            (weight * weighted(part)).backward()  # type: ignore[no-untyped-call]
        trained = list(self.trained.values())
        context.parallel.sum_gradients(trained)
        loss_parts: list[LossPart] = [(sample.origin, partial(weighted, [i])) for i, sample in enumerate(samples)]
        loss_value = float(loss.detach())
        if self.steps.take(trained, [self.optimizer], context.grad_clip, loss_value, loss_parts) is None:
            return {"signal/prm_skipped_steps": 1.0}
        return {"signal/prm_loss": loss_value}

    def state(self) -> dict[str, Any]:
        first = whole_state(self.first) if self.first is not None else {}
        state = optimizer_state(self.optimizer, self.trained)
        return {"model": whole_state(self.model), "first": first, "optimizer": state}

    def load_state(self, state: dict[str, Any]) -> None:
        load_whole_state(self.model, state["model"])
        if self.first is not None:
            load_whole_state(self.first, state["first"])
        load_optimizer_state(self.optimizer, self.trained, state["optimizer"])
