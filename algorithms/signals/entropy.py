"""Measure how unsure the policy was: the mean entropy of the distributions that a turn's tokens were sampled from."""

from __future__ import annotations

import torch
from torch import Tensor

from algorithms.batches import Batch, map_samples, sampled_logprobs
from algorithms.signals.base import Measurement, RolloutBatch, SignalContext, UntrainedSignal, turn_means


class Entropy(UntrainedSignal):
    """Signal `entropy`, in nats: a forward pass over the batch."""

    gives = ("entropy",)
    gives_tokens = ()

    def __init__(self, context: SignalContext) -> None:
        self.context = context

    def measure(self, rollouts: RolloutBatch) -> Measurement:
        context, temperature = self.context, self.context.agent.sampling.temperature

        def entropies(batch: Batch) -> Tensor:
            _, values = sampled_logprobs(context.model, batch, temperature, context.dtype)
            return torch.zeros_like(batch.old_logprobs).masked_scatter(batch.mask, values)

        values = map_samples(rollouts.samples, context.micro_batch_tokens, context.device, entropies, context.parallel)
        means = turn_means(rollouts.table, values)
        return Measurement({"entropy": means}, metrics={"signal/entropy": float(means.mean())})
