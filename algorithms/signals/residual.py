"""Measure how much the tokens of failures differ from those of successes at the same task (ResRL).

    x = state of the layer before the last one that predicts the token, with mean 0 and variance 1 over its E numbers
    d = |(x - m) - V Vᵀ (x - m)|² / E      m: mean of x over the tokens of successes,  V: their `rank` main directions
    weight = lowest + (1 - lowest) clip((d - d_low) / (d_high - d_low), 0, 1)

d_low and d_high are quantiles of d over the tokens of all failures at the task. Tokens of successes have the weight 1,
and so have those of a task without failures, or with fewer than 4 tokens of successes.

Lin et al., *ResRL* (ICML 2026). The weights equal those of the authors' `_compute_svd_token_weights`, with an exact
singular value decomposition in place of their random one, and groups of the whole batch in place of a micro-batch. If
successes have more than `most_tokens` tokens, evenly spaced ones are used; the authors draw them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.policies.models import penultimate_states
from agents.samples import Sample
from algorithms.batches import Batch, make_batch, map_samples, micro_batches
from algorithms.signals.base import Measurement, RolloutBatch, SignalContext, UntrainedSignal

FEWEST = 4  # tokens of successes
SMALL = 1e-6


class SuccessSubspace(NamedTuple):
    """The affine subspace of the states of successes: their mean and their main directions."""

    mean: Tensor  # [E]
    directions: Tensor  # [E, rank]


def success_subspace(states: Tensor, rank: int) -> SuccessSubspace | None:
    """The mean and main directions of the `states` [K, E] of successes; None for too few, or any that is not finite."""
    rank = min(rank, len(states) - 1, states.shape[-1])
    if len(states) < FEWEST or rank < 1 or not states.isfinite().all():
        return None
    scaled = _scaled(states)
    mean = scaled.mean(0)
    return SuccessSubspace(mean, torch.linalg.svd(scaled - mean, full_matrices=False).Vh[:rank].T)


def residuals(states: Tensor, common: SuccessSubspace) -> Tensor:
    """[…] the squared distance d of `states` […, E] from the subspace, divided by E; see the module."""
    difference = _scaled(states) - common.mean
    rest = difference - (difference @ common.directions) @ common.directions.T
    return rest.square().mean(-1)


def residual_weights(
    residual: NDArray[np.float64], *, lowest: float = 0.1, low: float = 0.2, high: float = 0.8
) -> NDArray[np.float64]:
    """[K] the weights of a task's failed tokens from their `residuals` [K]; the middle if these are all alike."""
    if not len(residual):
        return np.zeros(0)
    d_low, d_high = np.quantile(residual, [low, high])
    spread = max(d_high - d_low, SMALL)
    if spread < 10 * SMALL:
        return np.full(len(residual), (lowest + 1) / 2)
    weights: NDArray[np.float64] = lowest + (1 - lowest) * ((residual - d_low) / spread).clip(0, 1)
    return weights


def _scaled(states: Tensor) -> Tensor:
    return torch.nn.functional.layer_norm(states.float(), states.shape[-1:])


class Residual(UntrainedSignal):
    """Token signal `residual_weight`: a forward pass over all tasks with successes and failures.

    An episode is a success if its return is above 0, as in the authors' code.
    """

    gives = ()
    gives_tokens = ("residual_weight",)

    def __init__(
        self, context: SignalContext, *, rank: int = 64, lowest: float = 0.1, low: float = 0.2, high: float = 0.8,
        most_tokens: int = 4096,
    ) -> None:  # fmt: skip
        """`low` and `high` are the quantiles. Raises `ValueError` if `low` is not below `high`."""
        if not low < high:
            raise ValueError(f"algo.signals.residual needs low < high, got {low} and {high}")
        self.context, self.rank, self.most_tokens = context, rank, most_tokens
        self.lowest, self.low, self.high = lowest, low, high

    def measure(self, rollouts: RolloutBatch) -> Measurement:
        """Raises `ValueError` for whole actions that were chosen."""
        table, samples = rollouts.table, rollouts.samples
        if any(sample.choice for sample in samples):
            raise ValueError(
                "the signal residual is for policies that write ids; agent=candidates chooses whole actions"
            )
        counts = np.array([sum(sample.mask) for sample in samples], dtype=np.int64)
        ends = np.cumsum(counts)
        row = np.array([max(sample.turn) for sample in samples], dtype=np.int64)  # of one of its turns
        won, group = (table.episode_rewards() > 0)[row], table.group[row]
        weights = np.ones(len(table.token_rows))
        tasks = 0
        for number in np.unique(group).tolist():
            good, bad = (np.flatnonzero((group == number) & (won == side)).tolist() for side in (True, False))
            common = self._common([samples[i] for i in good]) if good and bad else None
            if common is None:
                continue
            found = residual_weights(
                self._residuals([samples[i] for i in bad], common), lowest=self.lowest, low=self.low, high=self.high
            )
            weights[np.concatenate([np.arange(ends[i] - counts[i], ends[i]) for i in bad])] = found
            tasks += 1
        mean = float(weights.mean()) if len(weights) else 1.0
        return Measurement(
            token_signals={"residual_weight": weights},
            metrics={"signal/residual_weight": mean, "signal/residual_tasks": float(tasks)},
        )

    def _common(self, samples: Sequence[Sample]) -> SuccessSubspace | None:
        counts = [sum(sample.mask) for sample in samples]
        total = sum(counts)
        wanted = np.zeros(total, dtype=np.bool_)
        wanted[np.linspace(0, total - 1, min(total, self.most_tokens)).round().astype(np.int64)] = True
        parts = np.split(wanted, np.cumsum(counts)[:-1])
        chosen: list[Tensor] = []
        for numbers, batch in self._batches(samples):
            states = self._states(batch)[batch.mask]
            chosen.append(states[torch.from_numpy(np.concatenate([parts[i] for i in numbers])).to(states.device)])
        return success_subspace(torch.cat(chosen), self.rank)

    def _residuals(self, samples: Sequence[Sample], common: SuccessSubspace) -> NDArray[np.float64]:
        context = self.context

        def compute(batch: Batch) -> Tensor:
            return residuals(self._states(batch), common)

        return map_samples(samples, context.micro_batch_tokens, context.device, compute, context.parallel)

    def _batches(self, samples: Sequence[Sample]) -> Iterator[tuple[list[int], Batch]]:
        for numbers in micro_batches([len(s.ids) for s in samples], self.context.micro_batch_tokens):
            yield numbers, make_batch([samples[i] for i in numbers], self.context.device)

    @torch.no_grad()
    def _states(self, batch: Batch) -> Tensor:
        """[B, T, E] the states that predict each id after the first."""
        context = self.context
        with torch.autocast(context.device.type, context.dtype, enabled=context.dtype != torch.float32):
            return penultimate_states(context.model, batch.ids[:, :-1])
