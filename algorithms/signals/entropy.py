"""How unsure the policy was: the entropy of the distributions that a turn's tokens were sampled from, its mean."""

from __future__ import annotations

import torch
from torch import Tensor

from algorithms.batches import Batch, read, sampled_logprobs
from algorithms.signals.base import Bench, Measurement, Measures, Played, turn_means


class Entropy(Measures):
    """Signal `entropy`, in nats: a forward pass over the batch."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench

    def measure(self, played: Played) -> Measurement:
        bench, temperature = self.bench, self.bench.agent.sampling.temperature

        def entropies(batch: Batch) -> Tensor:
            _, values = sampled_logprobs(bench.model, batch, temperature, bench.dtype)
            return torch.zeros_like(batch.old_logprobs).masked_scatter(batch.mask, values)

        values = read(played.samples, bench.micro_batch_tokens, bench.device, entropies)
        means = turn_means(played.table, values)
        return Measurement({"entropy": means}, metrics={"signal/entropy": float(means.mean())})
