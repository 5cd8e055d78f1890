from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from algorithms.estimators.grpo import grpo
from algorithms.turn_table import TurnTable
from envs.core import UnknownNameError
from tests.algorithms.tables import SCORES, tables, take, with_scores
from tests.golden.tables import single_turns

STATISTICS = st.sampled_from(["turns", "episodes"])


@given(tables(), SCORES, st.booleans(), STATISTICS)
def test_equal_scores_give_exactly_zero(table: TurnTable, score: float, by_std: bool, statistics: str) -> None:
    table = with_scores(table, np.full(len(table), score))
    of_group = np.array([len(set(table.episode[table.group == g])) for g in table.group])
    advantages = grpo(table, normalize_by_std=by_std, statistics=statistics, invalid_penalty=0.0)
    assert np.all(advantages[of_group > 1] == 0.0)


@given(SCORES, st.booleans(), STATISTICS)
def test_a_group_of_one_keeps_its_raw_score(score: float, by_std: bool, statistics: str) -> None:
    advantages = grpo(single_turns([0, 1, 1], [score, 1.0, 3.0]), normalize_by_std=by_std, statistics=statistics)
    assert advantages[0] == (score / (1 + 1e-6) if by_std else score)
    assert advantages[1] == -advantages[2] < 0


@given(tables(), st.data(), st.booleans(), STATISTICS)
def test_permuted_rows_permute_the_advantages(table: TurnTable, data: Any, by_std: bool, statistics: str) -> None:
    rows = np.array(data.draw(st.permutations(range(len(table)))))
    before = grpo(table, normalize_by_std=by_std, statistics=statistics)
    after = grpo(take(table, rows), normalize_by_std=by_std, statistics=statistics)
    np.testing.assert_allclose(after, before[rows], rtol=1e-6, atol=1e-6)


@given(tables(), st.floats(-50, 50), STATISTICS)
def test_a_constant_added_to_every_score_changes_nothing(table: TurnTable, shift: float, statistics: str) -> None:
    scores = table.reward.round(1)
    several = np.array([len(set(table.episode[table.group == g])) > 1 for g in table.group])
    before = grpo(with_scores(table, scores), statistics=statistics, normalize_by_std=False)
    after = grpo(with_scores(table, scores + shift), statistics=statistics, normalize_by_std=False)
    np.testing.assert_allclose(after[several], before[several], atol=1e-9)


@given(tables(), st.floats(0.5, 20), STATISTICS)
def test_scale_passes_without_the_std_and_drops_out_with_it(table: TurnTable, scale: float, statistics: str) -> None:
    scores = table.reward.round(1)  # no spread so small that epsilon is felt
    one, other = with_scores(table, scores), with_scores(table, scale * scores)
    raw = grpo(one, normalize_by_std=False, statistics=statistics, invalid_penalty=0.0)
    raw_scaled = grpo(other, normalize_by_std=False, statistics=statistics, invalid_penalty=0.0)
    np.testing.assert_allclose(raw_scaled, scale * raw, atol=1e-9)
    several = np.array([len(set(table.episode[table.group == g])) > 1 for g in table.group])
    assume(several.any())
    normal = grpo(one, statistics=statistics, invalid_penalty=0.0)
    normal_scaled = grpo(other, statistics=statistics, invalid_penalty=0.0)
    np.testing.assert_allclose(normal_scaled[several], normal[several], rtol=1e-4, atol=1e-4)


@given(tables(), st.booleans(), STATISTICS)
def test_advantages_are_finite(table: TurnTable, by_std: bool, statistics: str) -> None:
    assert np.isfinite(grpo(table, normalize_by_std=by_std, statistics=statistics)).all()


def test_long_episodes_weigh_more_over_turns_than_over_episodes() -> None:
    table = TurnTable(
        group=np.zeros(4, dtype=np.int64),
        episode=np.array([0, 1, 1, 1]),
        turn=np.array([0, 0, 1, 2]),
        reward=np.array([8.0, 0.0, 0.0, 0.0]),
        state=np.full(4, "start", dtype=object),
        valid=np.ones(4, dtype=np.bool_),
    )
    assert grpo(table, normalize_by_std=False, statistics="turns").tolist() == [6, -2, -2, -2]
    assert grpo(table, normalize_by_std=False, statistics="episodes").tolist() == [4, -4, -4, -4]
    penalised = replace(table, valid=np.array([True, True, False, True]))
    advantages = grpo(penalised, normalize_by_std=False, statistics="episodes", invalid_penalty=0.5)
    assert advantages.tolist() == [4, -4, -4.5, -4]


def test_an_empty_table_has_no_advantages() -> None:
    assert grpo(single_turns(np.zeros(0, dtype=np.int64), [])).shape == (0,)


def test_bad_parameters_are_named() -> None:
    table = single_turns([0, 0], [0.0, 1.0])
    with pytest.raises(UnknownNameError, match=r"'turn'; did you mean 'turns'"):
        grpo(table, statistics="turn")
    with pytest.raises(ValueError, match="epsilon must be positive, got 0"):
        grpo(table, epsilon=0)
