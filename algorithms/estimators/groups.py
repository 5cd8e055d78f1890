"""Statistics of groups, shared by the estimators that compare attempts with each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from algorithms.turn_table import TurnTable
from envs.core import UnknownNameError

RESOLUTION = float(np.finfo(np.float32).eps)  # the relative precision of rewards in float32
STATISTICS = ("turns", "episodes")
SHARED_TURNS = ("each", "once")

Method = TypeVar("Method", bound=Callable[..., Any])


def compares_attempts(estimator: Method) -> Method:
    """Declare that an estimator compares attempts at a task, so it learns nothing from groups of one attempt."""
    vars(estimator)["compares_attempts"] = True
    return estimator


def uniform_groups(
    values: NDArray[np.float64], groups: NDArray[np.int64], sizes: NDArray[np.float64] | None = None
) -> NDArray[np.bool_]:
    """[G] whether the `values` [N] of each group are equal up to rounding, as 0.3 and 0.1 + 0.2 are.

    `groups` [N] numbers the groups from 0. Values are equal if they differ by at most `RESOLUTION` times the largest of
    their `sizes` [N], by default their own. For sums, pass the size of the addends, since 0.1 + 0.2 - 0.3 is not
    exactly 0.
    """
    count = int(groups.max(initial=-1)) + 1
    lowest, highest, size = np.full(count, np.inf), np.full(count, -np.inf), np.zeros(count)
    np.minimum.at(lowest, groups, values)
    np.maximum.at(highest, groups, values)
    np.maximum.at(size, groups, np.abs(values if sizes is None else sizes))
    uniform: NDArray[np.bool_] = highest - lowest <= RESOLUTION * size
    return uniform


def relative_values(
    values: NDArray[np.float64],
    groups: NDArray[np.int64],
    *,
    counted: NDArray[np.bool_] | None = None,
    divide_by_std: bool,
    epsilon: float,
    keep_single: bool,
    ddof: int = 1,
    variance_epsilon: float = 0.0,
    shift: bool = True,
) -> NDArray[np.float64]:
    """How much better each value is than its group: `v - mean`, or `(v - mean) / (std + epsilon)`. All are [N].

    `groups` numbers the groups. Mean and standard deviation are over the rows in `counted` (default: all), of which
    every group has at least one; `variance_epsilon` is added to the variance before the root. A group with a single
    counted row uses std 1. With `keep_single` it also uses mean 0, so its values stay unchanged; otherwise they become
    differences from the single value.

    A group of equal values (`uniform_groups`) gives exactly 0. Computed naively, the mean of three times 9.9 is not
    9.9, and dividing by epsilon turns the rounding error into an advantage. So every group is first shifted by one of
    its own counted values. (`shift=False` reproduces the rounding of a reference implementation.)
    """
    if epsilon <= 0:
        raise ValueError(f"epsilon must be positive, got {epsilon}: a group of equal values has a std of 0")
    inside = np.ones(len(values)) if counted is None else counted.astype(np.float64)
    rows = np.flatnonzero(inside)
    count = np.bincount(groups, weights=inside)
    origin = np.zeros(len(count))
    if shift:
        origin[groups[rows]] = values[rows]  # any counted value of the group works
    shifted = values - origin[groups]
    if shift:
        equal = uniform_groups(values[rows], groups[rows])[groups]
        close = np.abs(shifted) <= RESOLUTION * np.abs(origin)[groups]  # rows that are not counted may differ
        shifted[equal & (close | (inside > 0))] = 0.0
    mean = np.bincount(groups, weights=shifted * inside) / count
    difference = shifted - mean[groups]
    single = count == 1
    result = np.where(single[groups], values, difference) if keep_single else difference
    if divide_by_std:
        variance = np.bincount(groups, weights=difference**2 * inside) / np.maximum(count - ddof, 1)
        std = np.where(single, 1.0, np.sqrt(variance + variance_epsilon))
        result = result / (std + epsilon)[groups]
    return result


def episode_scores(table: TurnTable, invalid_penalty: float) -> NDArray[np.float64]:
    """[N] the episode's total reward, minus `invalid_penalty` on rows whose own action was invalid."""
    return table.episode_rewards() - invalid_penalty * ~table.valid


def binary_scores(table: TurnTable, needs: str, reason: str) -> NDArray[np.float64]:
    """[N] the return of the turn's episode, for methods that need 1 for a success and 0 for a failure.

    Raises `ValueError` for any other return; `needs` says in the message which method needs it, `reason` says why.
    """
    scores = table.episode_rewards()
    if len(odd := np.flatnonzero(~np.isin(scores, (0.0, 1.0)))):
        raise ValueError(
            f"episode {table.episode[odd[0]]} has the return {scores[odd[0]]:g}, and {needs} 1 for a success and 0 for "
            f"a failure: {reason}. Let the environment reward a success with 1 and give no other reward (for example "
            "with a gymnasium.RewardWrapper)"
        )
    return scores


def group_numbers(table: TurnTable) -> NDArray[np.int64]:
    """[N] the groups, numbered from 0 without gaps."""
    return np.unique(table.group, return_inverse=True)[1]


def counted_rows(table: TurnTable, statistics: str) -> NDArray[np.bool_]:
    """[N] the rows that a group's statistics run over.

    "turns": all of them, so that long episodes weigh more; "episodes": the first row of each episode.
    """
    if statistics not in STATISTICS:
        raise UnknownNameError("statistics", statistics, STATISTICS)
    return table.opens if statistics == "episodes" else np.ones(len(table), dtype=np.bool_)


def episode_advantages(
    table: TurnTable, scores: NDArray[np.float64], *, statistics: str, divide_by_std: bool, epsilon: float
) -> NDArray[np.float64]:
    """[N] each row's episode score relative to its group, with statistics over `counted_rows`.

    With "episodes", a later row can differ from first rows that are all equal. Dividing by their std of 0 then leaves
    penalty / epsilon, as in the reference implementation; `divide_by_std=False` or a penalty of 0 avoids this. A group
    of one row (of one episode) keeps its raw score.
    """
    return relative_values(
        scores,
        group_numbers(table),
        counted=counted_rows(table, statistics),
        divide_by_std=divide_by_std,
        epsilon=epsilon,
        keep_single=True,
    )


def leave_one_out(
    values: NDArray[np.float64], groups: NDArray[np.int64], counted: NDArray[np.bool_], *, keep_single: bool
) -> NDArray[np.float64]:
    """[N] `n / (n - 1) · (v - mean)`: for a counted row, its difference from the mean of the n - 1 others.

    The value of a group with a single counted row is unchanged with `keep_single`, otherwise 0.
    """
    difference = relative_values(
        values, groups, counted=counted, divide_by_std=False, epsilon=1.0, keep_single=keep_single
    )
    count = np.bincount(groups, weights=counted)
    scaled: NDArray[np.float64] = difference * (count / np.maximum(count - 1, 1))[groups]
    return scaled


def count_shared(table: TurnTable, advantages: NDArray[np.float64], shared_turns: str) -> NDArray[np.float64]:
    """[N] the advantages for turns that several attempts share, where a turn occurs in n rows.

    "each" leaves `advantages` unchanged, so such a turn is trained n times. "once" divides them by n (signal `node`),
    so its gradients add up to that of their mean, as losses are linear in the advantage.
    """
    if shared_turns not in SHARED_TURNS:
        raise UnknownNameError("shared_turns", shared_turns, SHARED_TURNS)
    if shared_turns == "each":
        return advantages
    _, node, count = np.unique(table.signal("node"), return_inverse=True, return_counts=True)
    once: NDArray[np.float64] = advantages / count[node]
    return once
