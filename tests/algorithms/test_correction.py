"""Weights and rejection by the mismatch of trained model and engine."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from algorithms.correction import Correction
from algorithms.turn_table import TurnTable
from envs.core import UnknownNameError
from tests.golden.tables import make_table

# Two episodes; the first has two turns.
TABLE = make_table([0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 0, 0], tokens=np.array([2, 1, 2]))
RATIOS = np.array([4.0, 1.0, 0.5, 0.1, 1.0])
ENGINE = np.array([-1.0, -2.0, -0.5, -1.5, -3.0])


def corrected(ratios: Any = RATIOS, table: TurnTable = TABLE, **settings: Any) -> Any:
    return Correction(**settings)(ENGINE[: len(ratios)] + np.log(ratios), ENGINE[: len(ratios)], table)


@pytest.mark.parametrize(
    ("settings", "weights"),
    [
        ({}, [2, 1, 0.5, 0.1, 1]),
        ({"low": 0.2, "high": 3}, [3, 1, 0.5, 0.2, 1]),
        ({"low": 0.2, "outside": "zero"}, [0, 1, 0.5, 0, 1]),
        ({"level": "turn", "high": 9}, [2, 2, 0.5, 0.1**0.5, 0.1**0.5]),
        ({"level": "episode", "high": 9}, [2, 2, 2, 0.1, 0.1]),
        ({"level": "episode_mean", "high": 9}, [2 ** (1 / 3)] * 3 + [0.1**0.5] * 2),
        ({"level": "episode", "high": 9, "normalize": True}, np.array([2, 2, 2, 0.1, 0.1]) / 1.05),
    ],
)
def test_weights_of_each_level(settings: dict[str, Any], weights: list[float]) -> None:
    result = corrected(**settings)
    np.testing.assert_allclose(result.weights, weights)
    assert result.kept.all()


@pytest.mark.parametrize(
    ("reject", "kept"),
    [
        ({"token_k1": 3.0}, [0, 1, 1, 0, 1]),  # the engine's probability / the model's between 1/3 and 3
        ({"token_k1": [0.2, 20.0]}, [1, 1, 1, 1, 1]),
        ({"turn_sum_k1": [0.3, 20.0]}, [0, 0, 1, 1, 1]),
        ({"episode_mean_k1": [0.1, 2.0]}, [1, 1, 1, 0, 0]),
        ({"episode_max_k2": 1.0}, [1, 1, 1, 0, 0]),
        ({"token_k3": 1.0, "turn_mean_k1": 2.5}, [0, 1, 1, 0, 0]),
    ],
)
def test_all_bounds_must_hold(reject: dict[str, Any], kept: list[int]) -> None:
    assert corrected(reject=reject).kept.tolist() == [bool(value) for value in kept]


def test_a_token_that_the_model_would_never_say_rejects_its_episode() -> None:
    assert corrected(np.array([1.0, 1.0, 1e-5, 1.0, 1.0]), lowest_ratio=1e-4).kept.tolist() == [False] * 3 + [True] * 2


def test_metrics_of_a_correction() -> None:
    metrics = corrected(reject={"token_k1": 3.0}).metrics
    assert metrics["mismatch/bounded"] == pytest.approx(1 / 5)
    assert metrics["mismatch/rejected"] == pytest.approx(2 / 5)
    assert metrics["mismatch/max_ratio"] == pytest.approx(10.0)
    assert metrics["mismatch/kl"] == pytest.approx(-np.log(RATIOS).mean())


@given(st.lists(st.floats(-700, 0), min_size=5, max_size=5), st.lists(st.floats(-700, 0), min_size=5, max_size=5))
def test_a_correction_is_finite_for_all_log_probabilities(trained: list[float], engine: list[float]) -> None:
    for level in ("token", "turn", "episode", "episode_mean"):
        correction = Correction(level, normalize=True, reject={"episode_sum_k3": 1.0, "turn_max_k2": 1.0})
        result = correction(np.array(trained), np.array(engine), TABLE)
        assert np.isfinite(result.weights).all()
        assert all(np.isfinite(value) for value in result.metrics.values())


def test_the_order_of_rows_does_not_matter_and_turns_may_have_no_tokens() -> None:
    other = make_table([0, 0, 0, 0], [1, 0, 0, 0], [0, 1, 0, 2], [0, 0, 0, 0], tokens=np.array([2, 1, 2, 0]))
    order = [3, 4, 2, 0, 1]
    trained = ENGINE + np.log(RATIOS)
    for level in ("turn", "episode", "episode_mean"):
        correction = Correction(level, normalize=True, reject={"episode_mean_k1": 1.2})
        one, two = correction(trained, ENGINE, TABLE), correction(trained[order], ENGINE[order], other)
        np.testing.assert_allclose(two.weights, one.weights[order])
        assert (two.kept == one.kept[order]).all()


def test_a_batch_without_tokens() -> None:
    empty = make_table([], [], [], [], tokens=np.zeros(0, dtype=np.int64))
    result = Correction(normalize=True, reject={"token_k1": 2.0})(np.zeros(0), np.zeros(0), empty)
    assert len(result.weights) == len(result.kept) == 0


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"level": "turns"}, UnknownNameError, "did you mean 'turn'"),
        ({"outside": "drop"}, UnknownNameError, "'drop'"),
        ({"low": 3.0}, ValueError, "0 <= low < high, got low=3.0 and high=2.0"),
        ({"reject": {"turn_k1": 2.0}}, UnknownNameError, "turn_k1"),
        ({"reject": {"episode_max_k1": 2.0}}, UnknownNameError, "episode_max_k1"),
        ({"reject": {"token_k1": 0.5}}, ValueError, "must be two ratios"),
        ({"reject": {"token_k1": [2.0, 0.5]}}, ValueError, "must be two ratios"),
        ({"reject": {"token_k2": [0.1, 0.2]}}, ValueError, "a number above 0"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        Correction(**settings)
