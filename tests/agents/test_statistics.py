"""Intervals and tests: reference values of scipy and statsmodels, known distributions, coverage in simulations."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from agents.statistics import (
    Interval,
    bootstrap_interval,
    detectable_difference,
    holm,
    mcnemar,
    pass_at_k,
    pass_hat_k,
    rank_interval,
    seed_interval,
    sign_permutation,
    stratified_bootstrap,
    stratified_interval,
    t_quantile,
    two_level_interval,
)
from benchmarks.coverage import WORLDS, coverage, errors_and_power

CONTINUOUS = np.array([0.12, 0.57, -0.33, 0.81, 0.05, 0.44, 0.29, -0.1, 0.66, 0.38, 0.21, 0.93])
DISCRETE = np.array([0, 0, 1, 1, 0, 1, -1, 0, 1, 1, 0, 0, 1, -1, 1, 0, 1, 0, 0, 1.0])
THIRDS = np.array(
    [2, 0, 0, 0, -2, 3, 2, 2, -1, 3, -2, 0, -2, 0, 2, 0, -2, -1, 0, 1, 0, 0, 2, 2, 2, 1, 3, 3, 2, 2, 2, 1, 0, 2, -1, 1,
     1, -2, 3, 1]
) / 3  # fmt: skip


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


def test_pairing_cancels_the_common_difficulty_of_tasks() -> None:
    rng = np.random.default_rng(0)
    shared = rng.random((5, 1)) + rng.random((1, 100))
    a, b = shared + 0.05 + 0.001 * rng.random((5, 100)), shared
    paired = two_level_interval(a - b)
    assert paired.excludes_zero
    assert paired.high - paired.low < 0.01
    assert not seed_interval(list(a.mean(1) - b.mean(1)[::-1])).excludes_zero


@pytest.mark.parametrize(("seeds_sd", "tasks_sd", "least"), [(0.2, 0.8, 0.95), (0.0, 1.0, 0.95), (0.6, 0.5, 0.85)])
def test_the_coverage_of_the_interval(seeds_sd: float, tasks_sd: float, least: float) -> None:
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


# -- a bootstrap over tasks -------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("values", "low", "high", "within"),
    [(CONTINUOUS, 0.098333, 0.569167, 0.012), (DISCRETE, 0.05, 0.65, 1e-12)],
)
def test_the_bootstrap_agrees_with_scipy(values: np.ndarray, low: float, high: float, within: float) -> None:
    """scipy.stats.bootstrap((values,), np.mean, method="percentile", n_resamples=10**6).

    Its confidence_level is 1 - 2 norm.cdf(-sqrt(n / (n - 1)) * t.ppf(0.975, n - 1)).
    """
    interval = bootstrap_interval(values)
    assert interval.mean == pytest.approx(values.mean())
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=within)


def test_the_bootstrap_depends_on_the_values_and_the_seed_alone() -> None:
    assert bootstrap_interval(CONTINUOUS) == bootstrap_interval(CONTINUOUS[::-1].copy())
    assert bootstrap_interval(CONTINUOUS, seed=1) != bootstrap_interval(CONTINUOUS)
    groups = [CONTINUOUS, DISCRETE]
    assert stratified_interval(groups, [0.5, 0.5]) == stratified_interval(
        [group.copy() for group in groups], [0.5, 0.5]
    )
    assert stratified_interval(groups[:1], [1.0]) == bootstrap_interval(CONTINUOUS)


@pytest.mark.parametrize("values", [[0.5], [1.0, 1.0, 1.0], [0.3, 0.1 + 0.2]])
def test_equal_values_and_a_single_task_give_no_interval(values: list[float]) -> None:
    assert bootstrap_interval(np.array(values)) == Interval(pytest.approx(values[0]), None, None)
    assert stratified_interval([np.array(values), np.array(values)], [0.5, 0.5]).low is None
    with pytest.raises(ValueError, match=r"\[tasks\]"):
        bootstrap_interval(np.array([]))


def test_groups_have_equal_weight_whatever_their_number_of_tasks() -> None:
    groups = [np.array([0.0, 1.0] * 200), np.array([1.0, 1.0, 0.0, 1.0] * 5)]
    interval = stratified_interval(groups, [0.5, 0.5])
    assert interval.mean == pytest.approx(0.625)
    half = 1.96 * math.sqrt(0.25 / 400 + 0.1875 / 20) / 2
    assert interval.high - interval.low == pytest.approx(2 * half, rel=0.15)


@pytest.mark.parametrize("attempts", [1, 3])
def test_the_paired_interval_is_never_wider_where_outcomes_are_positively_correlated(attempts: int) -> None:
    """The unpaired interval draws the tasks of both agents independently."""
    rng = np.random.default_rng(0)
    for repeat in range(20):
        a, b = rng.binomial(attempts, WORLDS["even"].chances(60, rng)) / attempts
        if np.cov(a, b)[0, 1] <= 0:
            continue
        paired = bootstrap_interval(a - b, 2000, repeat)
        drawn = [stratified_bootstrap([values[None]], [1.0], 2000, repeat + n)[:, 0] for n, values in enumerate((a, b))]
        low, high = np.quantile(drawn[0] - drawn[1], [0.02, 0.98])
        assert paired.high - paired.low <= high - low + 1 / 60


@pytest.mark.parametrize("tasks", [20, 100, 500])
@pytest.mark.parametrize("attempts", [1, 3])
def test_intervals_of_a_difference_cover_the_true_value(tasks: int, attempts: int) -> None:
    """`python -m benchmarks.coverage` has all kinds, with more repeats: 95 ± 1.5 %. Here two standard errors more."""
    held = coverage(WORLDS["even"], tasks, attempts, "difference", repeats=400, resamples=1000)
    assert 0.915 <= held["expanded"] <= 0.985


@pytest.mark.parametrize("tasks", [20, 100, 500])
@pytest.mark.parametrize("kind", ["one agent", "score", "pass^k", "pass@k"])
def test_other_intervals_hold_the_truth(kind: str, tasks: int) -> None:
    held = coverage(WORLDS["even"], tasks, 3, kind, repeats=300, resamples=300)
    assert 0.915 <= held["wilson" if "wilson" in held else "expanded"] <= 0.985


@pytest.mark.parametrize("tasks", [20, 100])
def test_ranks_hold_the_truth(tasks: int) -> None:
    assert coverage(WORLDS["even"], tasks, 3, "rank", repeats=300, resamples=300)["expanded"] >= 0.935


@pytest.mark.parametrize("tasks", [20, 100])
def test_intervals_over_environments_hold_the_truth(tasks: int) -> None:
    held = coverage(WORLDS["even"], tasks, 3, "over environments", repeats=300, resamples=400)
    assert 0.915 <= held["expanded"] <= 0.99  # the percentiles are those of the smallest environment


# -- ranks ------------------------------------------------------------------------------------------------------------
def test_ranks_are_certain_where_means_are_far_apart() -> None:
    rng = np.random.default_rng(0)
    values = (rng.random((3, 100)) < np.array([[0.9], [0.5], [0.5]])).astype(float)
    assert rank_interval(stratified_bootstrap([values], [1.0])) == [(1, 1), (2, 3), (2, 3)]
    assert rank_interval(stratified_bootstrap([np.ones((2, 5))], [1.0])) == [(1, 1), (1, 1)]


# -- tests ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("only_a", "only_b", "p"),  # statsmodels.stats.contingency_tables.mcnemar([[5, b], [c, 5]], exact=True).pvalue
    [(10, 3, 0.09228515625), (0, 6, 0.03125), (7, 7, 1.0), (1, 12, 0.00341796875), (25, 41, 0.0640175), (0, 0, 1.0)],
)
def test_mcnemar_agrees_with_statsmodels(only_a: int, only_b: int, p: float) -> None:
    assert mcnemar(only_a, only_b) == mcnemar(only_b, only_a) == pytest.approx(p, abs=1e-7)
    signs = np.array([1.0] * only_a + [-1.0] * only_b)
    if len(signs) <= 16:  # for differences of one size it is the same test
        assert sign_permutation(signs) == pytest.approx(p)


@pytest.mark.parametrize(
    ("differences", "p"),  # scipy.stats.permutation_test((x, zeros), sum of a - b, permutation_type="samples")
    [([0.5, -0.25, 1, 0.75, 0.25, -0.5, 1, 1], 0.0859375), ([1 / 3, 0, 2 / 3, -1 / 3, 1, 0, 1 / 3], 0.25),
     ([1, 1, 1, 1, 1], 0.0625), ([0, 0], 1.0)],
)  # fmt: skip
def test_sign_permutation_agrees_with_scipy(differences: list[float], p: float) -> None:
    values = np.array(differences, dtype=float)
    assert sign_permutation(values) == sign_permutation(-values) == pytest.approx(p)


def test_drawn_signs_agree_with_scipy_too() -> None:
    """scipy's 10**6 draws for the same 40 differences: 0.00641. The order of the tasks has no effect."""
    p = sign_permutation(THIRDS)
    assert p == pytest.approx(0.00641, abs=0.002)
    assert sign_permutation(THIRDS[::-1].copy()) == p
    assert sign_permutation(np.ones(50)) == 1 / 10_001


def test_holm_agrees_with_statsmodels() -> None:
    """statsmodels.stats.multitest.multipletests(p, method="holm")[1]"""
    assert holm([0.01, 0.04, 0.03, 0.005, 0.2]) == pytest.approx([0.04, 0.09, 0.09, 0.025, 0.2])
    assert holm([0.5, 0.02, 0.02]) == pytest.approx([0.5, 0.06, 0.06])
    assert holm([]) == []


def test_tests_have_5_percent_false_positives_and_80_percent_power() -> None:
    found = errors_and_power(100, 3, repeats=200, resamples=1000)
    assert found["no difference"] <= 0.09
    assert 0.7 <= found["detectable difference"] <= 0.9


def test_a_detectable_difference_shrinks_with_the_root_of_the_number_of_tasks() -> None:
    one = detectable_difference([DISCRETE])
    assert one == pytest.approx((2.0930241 + 0.8416212) * DISCRETE.std(ddof=1) / math.sqrt(20))
    assert detectable_difference([np.tile(DISCRETE, 16)]) == pytest.approx(one / 4, rel=0.08)
    assert detectable_difference([np.zeros(9)]) is None
    assert detectable_difference([np.ones(1)]) is None


# -- several attempts -------------------------------------------------------------------------------------------------
def test_pass_at_k_and_pass_hat_k_are_the_shares_of_all_choices_of_k_attempts() -> None:
    for attempts in range(1, 7):
        for solved in range(attempts + 1):
            outcomes = [1] * solved + [0] * (attempts - solved)
            for k in range(1, attempts + 1):
                choices = list(itertools.combinations(outcomes, k))
                assert pass_at_k(attempts, solved, k) == pytest.approx(np.mean([max(c) for c in choices]))
                assert pass_hat_k(attempts, solved, k) == pytest.approx(np.mean([min(c) for c in choices]))
    with pytest.raises(ValueError, match="k=3"):
        pass_at_k(2, 1, 3)


def test_pass_at_k_and_pass_hat_k_are_unbiased() -> None:
    rng = np.random.default_rng(0)
    solved = rng.binomial(5, 0.4, 20_000)
    assert np.mean([pass_at_k(5, int(c), 3) for c in solved]) == pytest.approx(1 - 0.6**3, abs=0.01)
    assert np.mean([pass_hat_k(5, int(c), 3) for c in solved]) == pytest.approx(0.4**3, abs=0.01)
