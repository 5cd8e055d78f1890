"""Measure the entropy of the distributions that tokens were sampled from."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from algorithms.batches import Batch, map_samples, sampled_logprobs
from algorithms.signals.base import Measurement, RolloutBatch, SignalContext, UntrainedSignal, turn_means


class Entropy(UntrainedSignal):
    """Signal `entropy`, in nats, the mean over a turn's tokens: a forward pass over the batch."""

    gives = ("entropy",)
    gives_tokens = ()

    def __init__(self, context: SignalContext) -> None:
        self.context = context

    def measure(self, rollouts: RolloutBatch) -> Measurement:
        means = turn_means(rollouts.table, _entropies(self.context, rollouts))
        return Measurement({"entropy": means}, metrics={"signal/entropy": float(means.mean())})


class TokenEntropy(UntrainedSignal):
    """Token signal `entropy`, in nats: a forward pass over the batch."""

    gives = ()
    gives_tokens = ("entropy",)

    def __init__(self, context: SignalContext) -> None:
        self.context = context

    def measure(self, rollouts: RolloutBatch) -> Measurement:
        values = _entropies(self.context, rollouts)
        mean = float(turn_means(rollouts.table, values).mean())
        return Measurement(token_signals={"entropy": values}, metrics={"signal/entropy": mean})


def _entropies(context: SignalContext, rollouts: RolloutBatch) -> NDArray[np.float64]:
    """[M] the entropy at each sampled id."""
    temperature = context.agent.sampling.temperature

    def entropies(batch: Batch) -> Tensor:
        _, values = sampled_logprobs(context.model, batch, temperature, context.dtype)
        return torch.zeros_like(batch.old_logprobs).masked_scatter(batch.mask, values)

    return map_samples(rollouts.samples, context.micro_batch_tokens, context.device, entropies, context.parallel)
