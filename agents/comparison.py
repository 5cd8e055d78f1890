"""Compare training methods by the results of several runs on the same tasks.

The outcomes of a method are an array [S, T]: S training seeds, each with its own policy, and T tasks, the same for all
seeds. A training seed is the unit of replication: five policies that play 274 tasks are five measurements of the
method, not 1,370. There are two intervals, both at 95 %:

*Over seeds* (`seed_interval`): the results of other seeds on these tasks. Student's interval of the S means.

*Over seeds and tasks* (`two_level_interval`): the results of other seeds on other tasks like these. The bootstrap on
both levels (Owen, *The pigeonhole bootstrap*, Annals of Applied Statistics 2007): draw S of the seeds, then T of the
tasks, each with replacement, the same tasks for all seeds, and take the percentiles of the means. It is wide if a
task's outcomes are mostly chance. With five seeds that differ much more than chance, it covers the true value in 90 %
of the cases instead of 95 %, so look at both intervals.

The intervals of a difference are those of `a - b` for the same seeds at the same tasks: effects of a seed (the order of
its tasks) or of a task (its difficulty) are in both, and cancel.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
RESAMPLES = 10_000


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % interval, which is None for a single seed."""

    mean: float
    low: float | None
    high: float | None

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval is on one side of 0."""
        return self.low is not None and self.high is not None and self.low * self.high > 0


def seed_interval(values: Sequence[float]) -> Interval:
    """Student's interval of the mean of `values`, one per seed. Raises `ValueError` for an empty sequence."""
    if len(values) == 0:
        raise ValueError("expected at least one seed, got none")
    mean = statistics.fmean(values)
    if len(values) == 1:
        return Interval(mean, None, None)
    half = t_quantile(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half)


def two_level_interval(values: NDArray[np.float64], resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """The bootstrap interval of the mean of `values` [S, T] over seeds and tasks; see the module.

    `seed` is for drawing the resamples. Raises `ValueError` for an empty array.
    """
    if values.ndim != 2 or values.size == 0:
        raise ValueError(f"expected an array [seeds, tasks] that is not empty, got the shape {values.shape}")
    seeds, tasks = values.shape
    mean = float(values.mean())
    if seeds == 1:
        return Interval(mean, None, None)
    rng = np.random.default_rng(seed)
    by_seed = rng.multinomial(seeds, np.full(seeds, 1 / seeds), resamples)  # [R, S] how many times each is drawn
    by_task = rng.multinomial(tasks, np.full(tasks, 1 / tasks), resamples)  # [R, T]
    means = ((by_seed @ values) * by_task).sum(1) / values.size
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(mean, float(low), float(high))


def t_quantile(freedom: int) -> float:
    """The t with 95 % of Student's distribution between -t and t, for `freedom` degrees of freedom."""
    if freedom < 1:
        raise ValueError(f"expected at least one degree of freedom, got {freedom}")
    low, high = 0.0, 20.0  # for one degree it is 12.7
    while high - low > 1e-12:
        middle = (low + high) / 2
        low, high = (middle, high) if _t_within(middle, freedom) < LEVEL else (low, middle)
    return (low + high) / 2


def _t_within(t: float, freedom: int) -> float:
    """The probability of -t … t under Student's distribution (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(freedom))
    odd = freedom % 2
    term = math.cos(angle) if odd else 1.0
    total = 0.0
    for k in range(odd, freedom - 1, 2):  # terms cos^k, of which each is the last times (k + 1) / (k + 2) cos²
        total += term
        term *= (k + 1) / (k + 2) * math.cos(angle) ** 2
    if odd:
        return 2 / math.pi * (angle + math.sin(angle) * total)
    return math.sin(angle) * total
