"""Measure the sum of the squared probabilities of all words at each token."""

from __future__ import annotations

from torch import Tensor

from algorithms.batches import Batch, map_samples, square_sums
from algorithms.signals.base import Measurement, RolloutBatch, SignalContext, UntrainedSignal


class SquareSum(UntrainedSignal):
    """Token signal `square_sum`, between 0 and 1: a forward pass over the batch."""

    gives = ()
    gives_tokens = ("square_sum",)

    def __init__(self, context: SignalContext) -> None:
        self.context = context

    def measure(self, rollouts: RolloutBatch) -> Measurement:
        context, temperature = self.context, self.context.agent.sampling.temperature

        def sums(batch: Batch) -> Tensor:
            return square_sums(context.model, batch, temperature, context.dtype)

        values = map_samples(rollouts.samples, context.micro_batch_tokens, context.device, sums, context.parallel)
        return Measurement(token_signals={"square_sum": values}, metrics={"signal/square_sum": float(values.mean())})
