"""Intervals over training seeds and tasks: known values, known distributions, coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest

from agents.comparison import Interval, seed_interval, t_quantile, two_level_interval


@pytest.mark.parametrize(
    ("freedom", "expected"),  # scipy.stats.t.ppf(0.975, freedom)
    [(1, 12.706204736), (2, 4.30265273), (3, 3.182446305), (4, 2.776445105), (5, 2.570581836), (9, 2.262157163),
     (30, 2.042272456), (1000, 1.962339081)],
)  # fmt: skip
def test_students_quantile(freedom: int, expected: float) -> None:
    assert t_quantile(freedom) == pytest.approx(expected, abs=1e-8)


def test_the_interval_over_seeds_is_students() -> None:
    interval = seed_interval([0.5, 0.6, 0.55, 0.7, 0.65])
    # scipy.stats.t.interval(0.95, 4, loc=0.6, scale=scipy.stats.sem(values))
    assert (interval.mean, interval.low, interval.high) == pytest.approx((0.6, 0.5018378, 0.6981622), abs=1e-6)
    assert seed_interval([0.5]) == Interval(0.5, None, None)
    with pytest.raises(ValueError, match="at least one seed"):
        seed_interval([])


def test_seeds_are_the_unit_of_replication() -> None:
    """Five seeds, of which each solves all 274 tasks or none, are five measurements and not 1,370."""
    values = np.repeat([[0.0], [0.0], [1.0], [1.0], [1.0]], 274, axis=1)
    interval = two_level_interval(values)
    # Binomial(5, 0.6) / 5 is 0.2 or less with probability 0.087, and 0 with 0.010.
    assert (interval.mean, interval.low, interval.high) == (pytest.approx(0.6), 0.2, 1.0)
    pooled = 1.96 * math.sqrt(0.6 * 0.4 / values.size)
    assert interval.high - interval.low > 10 * pooled


def test_tasks_are_drawn_for_all_seeds_together() -> None:
    """Seeds that agree on every task are no more evidence than one: the interval is that of T trials."""
    row = np.arange(400) % 4 == 0
    interval = two_level_interval(np.repeat(row[None].astype(float), 5, axis=0))
    half = 1.96 * math.sqrt(0.25 * 0.75 / 400)
    assert interval.low == pytest.approx(0.25 - half, abs=0.005)
    assert interval.high == pytest.approx(0.25 + half, abs=0.005)


def test_the_same_seed_draws_the_same_resamples() -> None:
    values = np.random.default_rng(0).random((5, 40))
    assert two_level_interval(values) == two_level_interval(values.copy())
    assert two_level_interval(values, seed=1) != two_level_interval(values)
    assert two_level_interval(values[:1]).low is None
    with pytest.raises(ValueError, match=r"\[seeds, tasks\]"):
        two_level_interval(values[0])


def test_pairing_cancels_what_both_methods_share() -> None:
    rng = np.random.default_rng(0)
    shared = rng.random((5, 1)) + rng.random((1, 100))
    a, b = shared + 0.05 + 0.001 * rng.random((5, 100)), shared
    paired = two_level_interval(a - b)
    assert paired.excludes_zero
    assert paired.high - paired.low < 0.01
    assert not seed_interval(list(a.mean(1) - b.mean(1)[::-1])).excludes_zero


@pytest.mark.parametrize(("seeds_sd", "tasks_sd", "least"), [(0.2, 0.8, 0.95), (0.0, 1.0, 0.95), (0.6, 0.5, 0.85)])
def test_how_often_the_interval_holds_the_truth(seeds_sd: float, tasks_sd: float, least: float) -> None:
    """Two methods on a population of seeds and tasks, with the logits of success drawn by seed, task and both."""
    rng = np.random.default_rng(1)

    def outcomes(seeds: int, tasks: int, hard: np.ndarray, better: float) -> np.ndarray:
        logits = hard + better + rng.normal(0, seeds_sd, (seeds, 1)) + rng.normal(0, tasks_sd, (1, tasks))
        return (rng.random((seeds, tasks)) < 1 / (1 + np.exp(-logits))).astype(float)

    def difference(seeds: int, tasks: int) -> np.ndarray:
        hard = rng.normal(0, 1.2, (1, tasks))
        return outcomes(seeds, tasks, hard, 0.4) - outcomes(seeds, tasks, hard, 0.0)

    truth = difference(1500, 1500).mean()
    held = 0
    for _ in range(200):
        interval = two_level_interval(difference(5, 80), resamples=400)
        held += interval.low <= truth <= interval.high
    assert held / 200 >= least
