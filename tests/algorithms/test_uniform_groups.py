"""Returns that differ only by rounding are equal, for all estimators and the trainer."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from algorithms.estimators.dapo import dapo
from algorithms.estimators.gigpo import gigpo
from algorithms.estimators.groups import uniform_groups
from algorithms.estimators.grpo import grpo
from algorithms.estimators.hgpo import hgpo
from algorithms.estimators.rloo import rloo
from algorithms.filters import uniform_groups as drop_uniform
from algorithms.trainer import _uniform_groups
from algorithms.turn_table import TurnTable
from tests.algorithms.test_faults import attempt

ESTIMATORS = [
    partial(grpo, epsilon=1e-12),
    partial(grpo, statistics="episodes", epsilon=1e-12),
    partial(dapo, epsilon=1e-12, buffer=10, limit=100),
    partial(gigpo, mode="mean_std_norm", gamma=1.0, epsilon=1e-12),
    partial(hgpo, gamma=1.0, epsilon=1e-12),
    rloo,
]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([0.3], [0.1, 0.2]),
        ([-0.3], [-0.1, -0.2]),
        ([3e8], [1e8, 2e8 + 1e-7]),
        ([0.0], [0.1, 0.2, -0.3]),
        ([float(np.float32(0.3))], [float(np.float32(0.1)), float(np.float32(0.2))]),
        ([1.0], [0.1] * 10),
        ([3e-9], [1e-9, 2e-9]),
    ],
)
def test_returns_that_differ_by_rounding_are_equal(one: list[float], other: list[float]) -> None:
    episodes = [attempt(0, *one), attempt(0, *other), attempt(1, *one), attempt(1, *one, 1.0 + abs(one[0]))]
    assert drop_uniform(episodes).tolist() == [0, 0, 2, 2]
    assert _uniform_groups(episodes) == 0.5


@pytest.mark.parametrize("pair", [(1_000_000.0, 1_000_001.0), (0.0, 1e-9), (1.0, 1.0 + 1e-6), (-1.0, 1.0)])
def test_returns_that_differ_are_not_equal(pair: tuple[float, float]) -> None:
    assert drop_uniform([attempt(0, reward) for reward in pair]).tolist() == [2, 2]


def test_the_tolerance_of_sums_is_that_of_their_addends() -> None:
    values, groups = np.array([0.0, 0.1 + 0.2 - 0.3]), np.zeros(2, dtype=np.int64)
    assert uniform_groups(values, groups).tolist() == [False]
    assert uniform_groups(values, groups, np.array([0.0, 0.6])).tolist() == [True]


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("scale", [1.0, 1e9])
def test_rounding_errors_do_not_become_advantages(estimator: partial, scale: float) -> None:
    """However small epsilon is beside the rewards."""
    paid = ([0.0, 0.3], [0.0, 0.1 + 0.2], [0.0, 0.3])
    episodes = [attempt(0, *(scale * reward for reward in rewards)) for rewards in paid]
    table = TurnTable.from_episodes(episodes)
    np.testing.assert_array_equal(estimator(table), 0.0)
