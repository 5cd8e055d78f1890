from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from algorithms.estimators.gigpo import anchor_groups, gigpo, step_values
from algorithms.estimators.grpo import grpo
from algorithms.turn_table import TurnTable
from envs.core import UnknownNameError
from tests.algorithms.tables import SCORES, tables, take, with_scores
from tests.golden.compare import load
from tests.golden.tables import numbered, table_of_rows

MODES = ("mean_norm", "mean_std_norm")


@given(st.lists(SCORES, min_size=1, max_size=6), st.integers(2, 5), st.sampled_from(MODES))
def test_equal_attempts_give_exactly_zero(rewards: list[float], attempts: int, mode: str) -> None:
    """Every comparison, of episodes and of turns in the same state, is between equal values."""
    turns = len(rewards)
    state = np.empty(attempts * turns, dtype=object)
    state[:] = [f"state {t}" for _ in range(attempts) for t in range(turns)]
    table = TurnTable(
        group=np.zeros(attempts * turns, dtype=np.int64),
        episode=np.repeat(np.arange(attempts), turns),
        turn=np.tile(np.arange(turns), attempts),
        reward=np.tile(rewards, attempts),
        state=state,
        valid=np.ones(attempts * turns, dtype=np.bool_),
    )
    assert np.all(gigpo(table, mode=mode) == 0.0)


@given(tables(), st.floats(0, 1), st.sampled_from(MODES))
def test_states_visited_once_have_only_the_episode_advantage(table: TurnTable, gamma: float, mode: str) -> None:
    table = replace(table, state=np.array([f"state {i}" for i in range(len(table))], dtype=object))
    advantages = gigpo(table, mode=mode, gamma=gamma, invalid_penalty=0.1)
    np.testing.assert_array_equal(
        advantages, grpo(table, normalize_by_std=mode == "mean_std_norm", invalid_penalty=0.1)
    )


@given(tables(), st.data(), st.sampled_from(MODES), st.sampled_from(["turns", "episodes"]))
def test_permuted_rows_permute_the_advantages(table: TurnTable, data: Any, mode: str, statistics: str) -> None:
    table = replace(table, reward=table.reward.round(1))
    rows = np.array(data.draw(st.permutations(range(len(table)))))
    before = gigpo(table, mode=mode, statistics=statistics)
    after = gigpo(take(table, rows), mode=mode, statistics=statistics)
    np.testing.assert_allclose(after, before[rows], rtol=1e-6, atol=1e-6)


@given(tables(), st.floats(-50, 50))
def test_comparisons_of_turns_ignore_a_constant_added_to_every_return(table: TurnTable, shift: float) -> None:
    """Undiscounted, a constant on every last turn shifts all returns alike."""
    scores = table.reward.round(1)
    shifted = with_scores(table, scores + shift)
    table = with_scores(table, scores)

    def step_part(table: TurnTable) -> Any:
        return gigpo(table, mode="mean_norm", gamma=1.0) - gigpo(table, mode="mean_norm", gamma=1.0, step_weight=0.0)

    np.testing.assert_allclose(step_part(shifted), step_part(table), atol=1e-9)


@given(tables(), st.floats(0.5, 20))
def test_mean_norm_keeps_the_scale(table: TurnTable, scale: float) -> None:
    scaled = replace(table, reward=scale * table.reward)
    before = gigpo(table, mode="mean_norm", invalid_penalty=0.0)
    after = gigpo(scaled, mode="mean_norm", invalid_penalty=0.0)
    np.testing.assert_allclose(after, scale * before, rtol=1e-9, atol=1e-8)


@given(tables(), st.floats(0, 1), st.sampled_from(MODES), st.sampled_from(["turns", "episodes"]))
def test_advantages_are_finite(table: TurnTable, gamma: float, mode: str, statistics: str) -> None:
    assert np.isfinite(gigpo(table, gamma=gamma, mode=mode, statistics=statistics)).all()


def test_the_same_state_of_another_task_is_another_anchor() -> None:
    table = table_of_rows(
        [
            {"uid": g, "traj_uid": f"{g}{t}", "step": 0, "anchor_obs": "hall", "reward": r, "is_action_valid": True}
            for g, t, r in [("a", 0, 0.0), ("b", 0, 5.0), ("a", 1, 2.0), ("b", 1, 9.0)]
        ]
    )
    assert numbered(anchor_groups(table).tolist()).tolist() == [0, 1, 0, 1]
    assert gigpo(table, mode="mean_norm").tolist() == [-2, -4, 2, 4]


def test_the_penalty_stays_on_its_own_turn() -> None:
    rows = [
        {"uid": 0, "traj_uid": e, "step": t, "anchor_obs": f"s{t}", "reward": 0.0, "is_action_valid": (e, t) != (1, 1)}
        for e in range(2)
        for t in range(3)
    ]
    steps = step_values(table_of_rows(rows), gamma=0.5, invalid_penalty=0.25)
    assert steps.tolist() == [0, 0, 0, 0, -0.25, 0]


def test_states_of_any_hashable_kind_are_anchors() -> None:
    state = np.empty(4, dtype=object)
    state[:] = [("hall", 1), frozenset({"mug"}), ("hall", 1), 7]
    table = TurnTable(
        group=np.zeros(4, dtype=np.int64),
        episode=np.arange(4),
        turn=np.zeros(4, dtype=np.int64),
        reward=np.zeros(4),
        state=state,
        valid=np.ones(4, dtype=np.bool_),
    )
    assert numbered(anchor_groups(table).tolist()).tolist() == [0, 1, 0, 2]


def test_bad_parameters_are_named() -> None:
    table = table_of_rows(load("gigpo")[0][0]["inputs"]["rows"])
    with pytest.raises(UnknownNameError, match="unknown mode 'mean_std'; did you mean 'mean_std_norm'"):
        gigpo(table, mode="mean_std")
    with pytest.raises(UnknownNameError, match="unknown statistics 'rows'"):
        gigpo(table, statistics="rows")
    with pytest.raises(ValueError, match=r"similarity must be between 0 and 1, got 1\.5"):
        gigpo(table, similarity=1.5)
