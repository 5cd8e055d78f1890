"""Divide the return of an attempt among its turns: a model learns what each turn adds, so that the sum is the return.

    loss = mean over attempts of (sum of p_t - R)²        p_t: a linear map of the state after the turn's last id

No turn is labelled. Paper: SPA-RL, Wang et al., arXiv 2505.20732. There the map is one of the model's logits, and the
model learns before the policy does, from stored attempts; here it learns from each batch, after that was measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from agents.samples import Sample
from algorithms.batches import by_sample, make_batch, map_samples, micro_batches, padded_tokens
from algorithms.finite import FiniteSteps, LossPart, first_not_finite
from algorithms.signals.base import Measurement, RolloutBatch, SignalContext
from algorithms.signals.headed import Headed
from algorithms.turn_table import Estimate


class Progress(Headed):
    """Signal `progress`, [N]: the turn's part of the return, in units of reward. It starts at 0."""

    gives = ("progress",)
    gives_tokens = ()

    def __init__(
        self, context: SignalContext, *, body: str = "separate", learning_rate: float = 1e-5, steps: int = 1
    ) -> None:
        """`steps` are optimiser steps in an update, each over the whole batch."""
        if steps < 1:
            raise ValueError(f"algo.signals.progress.steps must be at least 1, got {steps}")
        super().__init__(context, body, learning_rate)
        self.count, self.steps = steps, FiniteSteps("model of progress")

    def measure(self, rollouts: RolloutBatch) -> Measurement:
        """Raises `ValueError` for whole actions that were chosen: their states are those before the choice."""
        progress = self._progress(turn_ends(rollouts.samples))
        errors = _errors(rollouts, progress)[rollouts.table.is_first]
        metrics = {"signal/progress": float(progress.mean()), "signal/progress_error": float(np.square(errors).mean())}
        return Measurement({"progress": progress}, metrics=metrics)

    def learn(self, rollouts: RolloutBatch, estimate: NDArray[np.float64] | Estimate) -> dict[str, float]:  # noqa: ARG002
        """Fit the sums to the returns. Steps that are not finite are skipped, see `FiniteSteps`."""
        ends = turn_ends(rollouts.samples)
        skipped = sum(not self._step(rollouts, ends) for _ in range(self.count))
        return {"signal/progress_skipped_steps": float(skipped)} if skipped else {}

    def _step(self, rollouts: RolloutBatch, ends: Sequence[Sample]) -> bool:
        """One optimiser step. It first computes the loss's gradient for each turn, whose episode may be many samples;
        the model then gets this as weights of its outputs. Returns whether the step was taken.
        """
        context, progress = self.context, self._progress(ends)
        place = first_not_finite(progress)
        if place is not None:
            self.steps.skip(f"the progress of a turn is {progress[place]}", f"row {place}")
            return False
        errors, first = _errors(rollouts, progress), rollouts.table.is_first
        weights = by_sample(ends, 2 * errors / first.sum())

        def weighted(part: Sequence[int]) -> Tensor:
            batch = make_batch([ends[i] for i in part], context.device)
            return (batch.spread([weights[i] for i in part]) * self._values(batch)).sum()

        parts = micro_batches([len(sample.ids) for sample in ends], context.micro_batch_tokens)
        for part, weight in context.parallel.passes(parts, padded_tokens([[ends[i] for i in part] for part in parts])):
            (weight * weighted(part)).backward()  # type: ignore[no-untyped-call]
        trained = list(self.trained.values())
        context.parallel.sum_gradients(trained)
        loss_parts: list[LossPart] = [(sample.origin, partial(weighted, [i])) for i, sample in enumerate(ends)]
        loss = float(np.square(errors[first]).mean())
        return self.steps.take(trained, [self.optimizer], context.grad_clip, loss, loss_parts) is not None

    def _progress(self, ends: Sequence[Sample]) -> NDArray[np.float64]:
        context = self.context
        return map_samples(ends, context.micro_batch_tokens, context.device, self._values, context.parallel)


def turn_ends(samples: Sequence[Sample]) -> list[Sample]:
    """The samples with one more id, of which those after the last id of each turn are marked: there the state is that
    after the turn. One is marked for each turn, in the order of a `TurnTable`.
    """
    ends = []
    for sample in samples:
        if sample.choice is not None:
            raise ValueError(
                "the signal progress is for policies that write ids; agent=candidates chooses whole actions"
            )
        last = [row >= 0 and row != after for row, after in zip(sample.turn, [*sample.turn[1:], -1], strict=True)]
        ids, turn = [*sample.ids, sample.ids[-1]], [-1, *sample.turn]
        ends.append(Sample(ids, [False, *last], [0.0] * len(ids), turn, origin=sample.origin))
    return ends


def _errors(rollouts: RolloutBatch, progress: NDArray[np.float64]) -> NDArray[np.float64]:
    """[N] the sum over the turn's episode minus its return."""
    return rollouts.table.episode_sums(progress) - rollouts.table.episode_sums(rollouts.table.reward)
