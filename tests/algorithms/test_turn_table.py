from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.episode import Episode, ParseStatus, Turn
from algorithms.turn_table import COLUMNS, TurnTable
from envs.core import StopReason, Task
from tests.algorithms.tables import tables, take

TASK = Task(id="t", env="e")
# The example of the docstring of TurnTable.
EXAMPLE = TurnTable(
    group=np.array([0, 0, 0, 0]),
    episode=np.array([0, 0, 1, 1]),
    turn=np.array([0, 1, 0, 1]),
    reward=np.array([0.0, 0.0, 0.0, 10.0]),
    state=np.array(["in the hall", "at the desk", "in the hall", "in the hall"], dtype=object),
    valid=np.array([True, True, False, True]),
)


def test_rows_of_episodes_stand_in_time_order() -> None:
    def turn(state: str, status: ParseStatus = ParseStatus.OK, reward: float = 0.0) -> Turn:
        return Turn(observation="", action="", reward=reward, state_key=state, status=status)

    episodes = [
        Episode(TASK, group=0, turns=[turn("in the hall"), turn("at the desk")]),
        Episode(TASK, group=7, stop_reason=StopReason.ENV_ERROR),
        Episode(TASK, group=0, turns=[turn("in the hall", ParseStatus.ILLEGAL), turn("in the hall", reward=10.0)]),
    ]
    table = TurnTable.from_episodes(episodes)
    for name in COLUMNS.keys() - {"episode"}:
        np.testing.assert_array_equal(getattr(table, name), getattr(EXAMPLE, name))
    assert table.episode.tolist() == [0, 0, 2, 2]  # places in the list: the one without turns has no rows


def test_only_the_status_ok_is_valid() -> None:
    turns = [Turn(observation="", action="", reward=0.0, state_key="", status=status) for status in ParseStatus]
    valid = TurnTable.from_episodes([Episode(TASK, group=0, turns=turns)]).valid
    assert dict(zip(ParseStatus, valid.tolist(), strict=True)) == {
        ParseStatus.OK: True,
        ParseStatus.MALFORMED: False,
        ParseStatus.ILLEGAL: False,
        ParseStatus.TRUNCATED: False,
    }


def test_no_episodes_make_an_empty_table() -> None:
    table = TurnTable.from_episodes([])
    assert len(table) == 0
    assert table.episode_rewards().shape == table.discounted_returns(0.9).shape == table.is_first.shape == (0,)


def test_returns_of_the_example() -> None:
    assert EXAMPLE.episode_rewards().tolist() == [0, 0, 10, 10]
    assert EXAMPLE.discounted_returns(0.5).tolist() == [0, 0, 5, 10]
    assert EXAMPLE.is_first.tolist() == [True, False, True, False]


@given(tables(), st.sampled_from([0.0, 0.5, 0.95, 1.0]))
def test_returns_follow_their_recursion(table: TurnTable, gamma: float) -> None:
    expected = np.zeros(len(table))
    for row in reversed(range(len(table))):
        follows = row + 1 < len(table) and table.episode[row + 1] == table.episode[row]
        expected[row] = table.reward[row] + (gamma * expected[row + 1] if follows else 0.0)
    np.testing.assert_allclose(table.discounted_returns(gamma), expected, atol=1e-9)


@given(tables(), st.data())
def test_the_order_of_the_rows_does_not_matter(table: TurnTable, data: Any) -> None:
    rows = np.array(data.draw(st.permutations(range(len(table)))))
    mixed = take(table, rows)
    assert mixed.order.tolist() == np.argsort(rows).tolist()
    np.testing.assert_array_equal(mixed.is_first, table.is_first[rows])
    np.testing.assert_array_equal(mixed.episode_rewards(), table.episode_rewards()[rows])
    np.testing.assert_array_equal(mixed.discounted_returns(0.9), table.discounted_returns(0.9)[rows])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reward": np.zeros(3)}, r"column 'reward' has shape \(3,\), expected \(4,\)"),
        ({"valid": np.ones(4, dtype=np.int64)}, "column 'valid' holds int64, expected bool"),
        ({"reward": np.zeros(4, dtype=np.float32)}, "column 'reward' holds float32, expected float64"),
        ({"signals": {"gain": np.zeros((3, 2))}}, r"signal 'gain' has shape \(3, 2\)"),
        ({"reward": np.array([0, 0, np.nan, 0])}, r"row 2 \(episode 1, turn 0\): the reward is nan"),
        ({"turn": np.array([0, 1, 1, 1])}, r"row 3 \(episode 1, turn 1\) appears twice"),
        ({"group": np.array([0, 0, 0, 1])}, r"row 3 \(episode 1, turn 1\): the episode is in groups 0 and 1"),
    ],
)
def test_an_invalid_table_raises(changes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(EXAMPLE, **changes)


def test_token_rewards_count_in_turns_and_episodes() -> None:
    table = replace(
        EXAMPLE,
        tokens=np.array([2, 1, 1, 1]),
        token_signals={"token_reward": np.array([-1.0, -2.0, -4.0, -8.0, -16.0])},
    )
    np.testing.assert_array_equal(table.total_rewards(), [-3.0, -4.0, -8.0, -6.0])
    np.testing.assert_array_equal(table.episode_rewards(), [-7.0, -7.0, -14.0, -14.0])
    np.testing.assert_array_equal(table.discounted_returns(0.5), EXAMPLE.discounted_returns(0.5))
