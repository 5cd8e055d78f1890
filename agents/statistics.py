"""The statistics of evaluations and of comparisons: intervals, tests, and what a number of tasks can show.

All intervals are at 95 %. The unit is a task: several attempts at one task resemble each other, so a task counts with
its mean over the attempts (a *cluster* of the attempts). Functions take values by task, [T], or by training seed and
task, [S, T].

*A share of solved tasks* has Wilson's interval at an effective number of trials (`wilson`, `effective_trials`).

*A mean over tasks, or a mean difference of two agents on the same tasks* has the expanded percentile interval of a
bootstrap over tasks (`bootstrap_interval`). The differences are taken task by task, so the difficulty of a task, which
both agents share, cancels. `python -m benchmarks.coverage` simulates how often it holds the true value.

*Whether two agents differ at all*: McNemar's exact test for one attempt at each task (`mcnemar`), and otherwise a
permutation of the signs of the differences (`sign_permutation`). `holm` corrects for several pairs.

*Training seeds* are a level above tasks. A training seed is the unit of replication of a method: five policies that
play 274 tasks are five measurements, not 1,370. There are two intervals:

`seed_interval`: the results of other seeds on these tasks. Student's interval of the S means.

`two_level_interval`: the results of other seeds on other tasks like these. The bootstrap on both levels (Owen, *The
pigeonhole bootstrap*, Annals of Applied Statistics 2007): draw S of the seeds, then T of the tasks, each with
replacement, the same tasks for all seeds, and take the percentiles of the means. It is wide if a task's outcomes are
mostly chance. With five seeds that differ much more than chance, it covers the true value in 90 % of the cases instead
of 95 %, so look at both intervals.

The intervals of a difference of methods are those of `a - b` for the same seeds at the same tasks: effects of a seed
(the order of its tasks) or of a task (its difficulty) are in both, and cancel.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

LEVEL = 0.95
RESAMPLES = 10_000
Z95 = 1.959963984540054  # the normal distribution holds 95 % within this many standard deviations
Z80 = 0.8416212335729143  # and 80 % below this many
EXACT = 16  # up to so many differences, all 2^n signs are tried


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % interval, which is None if the data give none: a single task or seed, or equal values."""

    mean: float
    low: float | None
    high: float | None

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval is on one side of 0."""
        return self.low is not None and self.high is not None and self.low * self.high > 0


# -- shares -----------------------------------------------------------------------------------------------------------
def wilson(p: float, n: float, z: float = Z95) -> tuple[float, float]:
    """The 95 % Wilson score interval of a share `p` of `n` trials (E. B. Wilson, JASA 22, 1927), or at quantile `z`."""
    centre = p + z**2 / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    scale = 1 + z**2 / n
    low, high = (centre - half) / scale, (centre + half) / scale
    return max(0.0, min(low, p)), min(1.0, max(high, p))  # at 0 and 1, rounding could exclude p


def effective_trials(counts: Sequence[tuple[int, int]]) -> float:
    """The number of independent trials that carry as much evidence as clusters with (successes, trials) each.

    p (1 - p) over the linearised variance of the ratio estimate, limited to between C, the number of clusters, and n
    (the design effect of cluster sampling, Kish 1965). If nothing varies (p is 0 or 1) it is C.
    """
    clusters, n = len(counts), sum(trials for _, trials in counts)
    p = sum(successes for successes, _ in counts) / n
    if clusters == 1 or p in (0.0, 1.0):
        return float(clusters)
    variance = ratio_variance(counts)
    if variance == 0.0:
        return float(n)
    return min(max(p * (1 - p) / variance, float(clusters)), float(n))


def ratio_variance(counts: Sequence[tuple[float, int]]) -> float:
    """Of the mean over all trials of at least two clusters (total, trials): C / (C - 1) Σ (kᵢ - p nᵢ)² / n²."""
    clusters, n = len(counts), sum(trials for _, trials in counts)
    mean = sum(total for total, _ in counts) / n
    return clusters / (clusters - 1) * sum((total - mean * trials) ** 2 for total, trials in counts) / n**2


def share_interval(counts: Sequence[tuple[float, int]]) -> tuple[float, float] | None:
    """95 % interval of the mean of values in [0, 1], from clusters of (total, trials); None if all means are equal.

    It is Wilson's interval for the number of trials whose share of successes would have the linearised variance, so it
    stays in [0, 1]. (The normal interval, mean ± 1.96 standard errors, does not.) The variance is estimated from few
    clusters, so the quantile is Student's (Korn and Graubard, Survey Methodology 24, 1998).
    """
    means = [total / trials for total, trials in counts]
    if math.isclose(min(means), max(means)):  # equal up to rounding
        return None
    mean = math.fsum(total for total, _ in counts) / sum(n for _, n in counts)
    return wilson(mean, mean * (1 - mean) / ratio_variance(counts), t_quantile(len(counts) - 1))


def pass_at_k(attempts: int, solved: int, k: int) -> float:
    """The unbiased estimate of pass@k of one task: at least one of `k` attempts solves it, 1 - C(n-c, k) / C(n, k).

    Chen et al., *Evaluating Large Language Models Trained on Code*, arXiv 2107.03374, equation 1.
    """
    _check_attempts(attempts, solved, k)
    return 1.0 - math.comb(attempts - solved, k) / math.comb(attempts, k)


def pass_hat_k(attempts: int, solved: int, k: int) -> float:
    """The unbiased estimate of pass^k of one task: all of `k` attempts solve it, C(c, k) / C(n, k).

    Yao et al., *τ-bench*, arXiv 2406.12045, section 3.
    """
    _check_attempts(attempts, solved, k)
    return math.comb(solved, k) / math.comb(attempts, k)


def _check_attempts(attempts: int, solved: int, k: int) -> None:
    if not (1 <= k <= attempts and 0 <= solved <= attempts):
        raise ValueError(f"expected 1 <= k <= attempts and 0 <= solved <= attempts; got {k=}, {attempts=}, {solved=}")


# -- a bootstrap over tasks -------------------------------------------------------------------------------------------
def bootstrap_interval(values: Floats, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """The mean of `values` [T], one for each task, and its expanded percentile interval.

    Draw T of the tasks with replacement, and take percentiles of the means (Efron 1979). They are slightly further out
    than 2.5 % and 97.5 %, because the bootstrap's spread is too small by (T - 1) / T and a normal quantile is smaller
    than Student's (Hesterberg, *What Teachers Should Know About the Bootstrap*, The American Statistician 2015, section
    3.2). If all values are equal there is no interval. `seed` is for drawing. Raises `ValueError` if `values` is empty.
    """
    mean = _mean(values)
    if len(values) < 2 or math.isclose(values.min(), values.max(), abs_tol=1e-12):
        return Interval(mean, None, None)
    # Tasks with the same value are drawn together: the order of tasks has no effect, and few numbers are drawn.
    distinct, counts = np.unique(values, return_counts=True)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(values), counts / len(values), resamples)  # [R, distinct values]
    return _percentiles(mean, drawn @ distinct / len(values), len(values))


def stratified_bootstrap(
    groups: Sequence[Floats], weights: Sequence[float], resamples: int = RESAMPLES, seed: int = 0
) -> Floats:
    """[R, A] resampled means of A agents over several groups of tasks, [A, T] each, with the groups' `weights`.

    The tasks of each group are drawn by themselves, the same for all agents. The weights sum to 1.
    """
    rng = np.random.default_rng(seed)
    total = np.zeros((resamples, groups[0].shape[0]))
    for values, weight in zip(groups, weights, strict=True):
        tasks = values.shape[1]
        drawn = rng.multinomial(tasks, np.full(tasks, 1 / tasks), resamples)  # [R, T]
        total += weight * (drawn @ values.T) / tasks
    return total


def stratified_interval(
    groups: Sequence[Floats], weights: Sequence[float], resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """The weighted mean over groups of the means of their values, [T] each, with its interval.

    It is that of `bootstrap_interval`, with the tasks of each group drawn by themselves. The percentiles are those for
    the smallest group, which is cautious.
    """
    if len(groups) == 1:
        return bootstrap_interval(groups[0], resamples, seed)
    mean = math.fsum(weight * _mean(values) for values, weight in zip(groups, weights, strict=True))
    smallest = min(len(values) for values in groups)
    if smallest < 2 or all(math.isclose(values.min(), values.max(), abs_tol=1e-12) for values in groups):
        return Interval(mean, None, None)
    resampled = stratified_bootstrap([values[None] for values in groups], weights, resamples, seed)[:, 0]
    return _percentiles(mean, resampled, smallest)


def _mean(values: Floats) -> float:
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"expected an array [tasks] that is not empty, got the shape {values.shape}")
    return statistics.fmean(values.tolist())


def _percentiles(mean: float, resampled: Floats, tasks: int) -> Interval:
    tail = _normal_below(-math.sqrt(tasks / (tasks - 1)) * t_quantile(tasks - 1))
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return Interval(mean, float(low), float(high))


def _normal_below(z: float) -> float:
    return math.erfc(-z / math.sqrt(2)) / 2


def rank_interval(resampled: Floats) -> list[tuple[int, int]]:
    """For each of A agents the 95 % interval of its rank, from resampled means [R, A] of `stratified_bootstrap`.

    Rank 1 has the highest mean; agents with equal means share a rank. Goldstein and Spiegelhalter, *League Tables and
    Their Limitations*, Journal of the Royal Statistical Society A, 1996.
    """
    agents = resampled.shape[1]
    ranks = 1 + np.array([(resampled > resampled[:, [a]] + 1e-12).sum(1) for a in range(agents)])  # [A, R]
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(ranks, [tail, 1 - tail], axis=1, method="inverted_cdf")
    return [(int(a), int(b)) for a, b in zip(low, high, strict=True)]


# -- tests ------------------------------------------------------------------------------------------------------------
def mcnemar(only_a: int, only_b: int) -> float:
    """The two-sided p-value of McNemar's exact test: `only_a` tasks were solved by a alone, `only_b` by b alone.

    Under the null hypothesis each of these tasks is as likely to be a's as b's (McNemar, Psychometrika 1947; the exact
    binomial form, Fagerland et al., BMC Medical Research Methodology 2013).
    """
    if only_a < 0 or only_b < 0:
        raise ValueError(f"expected numbers of tasks, got {only_a} and {only_b}")
    n, fewer = only_a + only_b, min(only_a, only_b)
    tail = sum(math.comb(n, k) for k in range(fewer + 1))
    return min(1.0, float(Fraction(2 * tail, 2**n)))


def sign_permutation(differences: Floats, resamples: int = RESAMPLES, seed: int = 0) -> float:
    """The two-sided p-value of the hypothesis that `differences` [T] are as likely as their negatives.

    The share of all signs with a sum at least as far from 0 (Fisher, *The Design of Experiments*, 1935). With more than
    16 differences that are not 0, signs are drawn, and p is (1 + so many as far) / (1 + resamples), which keeps the
    level of the test (Phipson and Smyth, Statistical Applications in Genetics and Molecular Biology 2010).
    """
    sizes = np.abs(differences[np.abs(differences) > 1e-12])
    observed = abs(math.fsum(differences))
    least = observed - 1e-9 * max(observed, 1e-300)  # equal up to rounding counts as equal
    if sizes.size == 0:
        return 1.0
    if sizes.size <= EXACT:
        bits = np.arange(2**sizes.size)[:, None] >> np.arange(sizes.size) & 1  # [2^n, n]
        return float((np.abs((2 * bits - 1) @ sizes) >= least).mean())
    # Differences of one size: their sum of signs is binomial.
    distinct, counts = np.unique(sizes, return_counts=True)
    rng = np.random.default_rng(seed)
    positive = rng.binomial(counts, 0.5, (resamples, len(counts)))  # [R, sizes]
    far = int((np.abs((2 * positive - counts) @ distinct) >= least).sum())
    return (1 + far) / (1 + resamples)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values adjusted for their number (Holm, Scandinavian Journal of Statistics 1979), in the same order.

    Of all those below 0.05, none is by chance in 95 % of the cases.
    """
    adjusted, highest = [0.0] * len(p_values), 0.0
    for place, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, (len(p_values) - place) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def detectable_difference(groups: Sequence[Floats], weights: Sequence[float] = (1.0,)) -> float | None:
    """The smallest true mean difference that a test at 5 % finds with 80 % power on as many tasks.

    (t + 0.84) s / √T, with the standard deviation s of the differences [T] (Miller, *Adding Error Bars to Evals*,
    arXiv 2411.00640, section 5; Student's t in place of 1.96); for several groups of tasks with their weights, that of
    the weighted mean. None if a group has fewer than two tasks, and if no task differs.
    """
    if (smallest := min(len(values) for values in groups)) < 2:
        return None
    of_groups = zip(groups, weights, strict=True)
    error = math.sqrt(math.fsum((w * statistics.stdev(d.tolist())) ** 2 / len(d) for d, w in of_groups))
    return (t_quantile(smallest - 1) + Z80) * error if error > 1e-12 else None


# -- training seeds ---------------------------------------------------------------------------------------------------
def seed_interval(values: Sequence[float]) -> Interval:
    """Student's interval of the mean of `values`, one per seed. Raises `ValueError` for an empty sequence."""
    if len(values) == 0:
        raise ValueError("expected at least one seed, got none")
    mean = statistics.fmean(values)
    if len(values) == 1:
        return Interval(mean, None, None)
    half = t_quantile(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half)


def two_level_interval(values: Floats, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
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


@cache
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
