"""Statistics of groups, shared by the estimators that compare attempts with each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from algorithms.estimators.steps import Naming, explaining, step
from algorithms.turn_table import TurnTable
from envs.core import UnknownNameError

RESOLUTION = float(np.finfo(np.float32).eps)  # the relative precision of rewards in float32
STATISTICS = ("turns", "episodes")
SHARED_TURNS = ("each", "once")

Method = TypeVar("Method", bound=Callable[..., Any])


def compares_attempts(estimator: Method) -> Method:
    """Declare that an estimator compares attempts at a task, so groups of one attempt have no gradient."""
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
    named: Naming | None = None,
) -> NDArray[np.float64]:
    """How much better each value is than its group: `v - mean`, or `(v - mean) / (std + epsilon)`. All are [N].

    `groups` numbers the groups. Mean and standard deviation are over the rows in `counted` (default: all), of which
    every group has at least one; `variance_epsilon` is added to the variance before the root. A group with a single
    counted row uses std 1. With `keep_single` it also uses mean 0, so its values stay unchanged; otherwise they become
    differences from the single value.

    A group of equal values (`uniform_groups`) gives exactly 0. Computed naively, the mean of three times 9.9 is not
    9.9, and dividing by epsilon turns the rounding error into an advantage. So every group is first shifted by one of
    its own counted values. (`shift=False` reproduces the rounding of a reference implementation.)

    `named` names the comparison in the steps of an explanation.
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
    if named is not None and explaining():
        means = np.where(single & keep_single, 0.0, origin + mean)
        special = single.any() and keep_single
        formula = f"where(n() > 1, mean({named.of}), 0)" if special else f"mean({named.of})"
        _name_mean(named, formula, means[groups])
    if divide_by_std:
        variance = np.bincount(groups, weights=difference**2 * inside) / np.maximum(count - ddof, 1)
        std = np.where(single, 1.0, np.sqrt(variance + variance_epsilon))
        result = result / (std + epsilon)[groups]
        if named is not None and explaining():
            _name_std(named, ddof, variance_epsilon, bool(single.any()), std[groups])
    if named is not None and explaining():
        _name_result(named, result, epsilon if divide_by_std else None)
    return result


def _name_mean(named: Naming, formula: str, values: NDArray[np.float64]) -> None:
    prefix = named.prefix or named.of
    step(f"{prefix}_mean", formula, named.spread(values), over=named.over, counted=named.counted)


def _name_std(named: Naming, ddof: int, variance_epsilon: float, single: bool, values: NDArray[np.float64]) -> None:
    prefix = named.prefix or named.of
    formula = f"{'std' if ddof else 'pstd'}({named.of})"
    if variance_epsilon:
        formula = f"sqrt({formula}**2 + variance_epsilon)"
    if single:
        formula = f"where(n() > 1, {formula}, 1)"
    step(
        f"{prefix}_std", formula, named.spread(values), over=named.over, counted=named.counted,
        variance_epsilon=variance_epsilon or None,
    )  # fmt: skip


def _name_result(named: Naming, values: NDArray[np.float64], epsilon: float | None) -> None:
    prefix = named.prefix or named.of
    formula = f"{named.of} - {prefix}_mean"
    if epsilon is not None:
        formula = f"({formula}) / ({prefix}_std + epsilon)"
    step(named.result, formula, named.spread(values), epsilon=epsilon)


def episode_returns(table: TurnTable) -> NDArray[np.float64]:
    """[N] `table.episode_rewards()`, named R in the steps."""
    return step("R", f"sum({reward_name(table)})", table.episode_rewards(), over="episode")


def reward_name(table: TurnTable) -> str:
    """The name of `table.total_rewards()` in the steps."""
    if "token_reward" not in table.token_signals:
        return "reward"
    step("paid", "reward + tokens_sum(token_reward)", table.total_rewards())
    return "paid"


def episode_scores(table: TurnTable, invalid_penalty: float) -> NDArray[np.float64]:
    """[N] the episode's total reward, minus `invalid_penalty` on rows whose own action was invalid."""
    scores = episode_returns(table) - invalid_penalty * ~table.valid
    return step("score", "R - invalid_penalty * invalid", scores, invalid_penalty=invalid_penalty)


def binary_scores(table: TurnTable, needs: str, reason: str) -> NDArray[np.float64]:
    """[N] the return of the turn's episode, for methods that need 1 for a success and 0 for a failure.

    Raises `ValueError` for any other return; `needs` says in the message which method needs it, `reason` says why.
    """
    scores = episode_returns(table)
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
    return table.is_first if statistics == "episodes" else np.ones(len(table), dtype=np.bool_)


def counted_name(statistics: str) -> str:
    """The name of `counted_rows` in the steps."""
    return "first" if statistics == "episodes" else ""


def episode_advantages(
    table: TurnTable, scores: NDArray[np.float64], *, statistics: str, divide_by_std: bool, epsilon: float,
    result: str = "advantage", of: str = "score",
) -> NDArray[np.float64]:  # fmt: skip
    """[N] each row's episode score relative to its group, with statistics over `counted_rows`.

    With "episodes", a later row can differ from first rows that are all equal. Dividing by their std of 0 then leaves
    penalty / epsilon, as in the reference implementation; `divide_by_std=False` or a penalty of 0 avoids this. A group
    of one row (of one episode) keeps its raw score. In the steps, `of` is the name of `scores`, and `result` that of
    the values returned.
    """
    return relative_values(
        scores,
        group_numbers(table),
        counted=counted_rows(table, statistics),
        divide_by_std=divide_by_std,
        epsilon=epsilon,
        keep_single=True,
        named=Naming(result, of, counted=counted_name(statistics)),
    )


def leave_one_out(
    values: NDArray[np.float64], groups: NDArray[np.int64], counted: NDArray[np.bool_], *, keep_single: bool,
    named: Naming,
) -> NDArray[np.float64]:  # fmt: skip
    """[N] `n / (n - 1) · (v - mean)`: for a counted row, its difference from the mean of the n - 1 others.

    The value of a group with a single counted row is unchanged with `keep_single`, otherwise 0.
    """
    difference = relative_values(
        values, groups, counted=counted, divide_by_std=False, epsilon=1.0, keep_single=keep_single,
        named=named._replace(result=f"{named.of}_difference"),
    )  # fmt: skip
    count = np.bincount(groups, weights=counted)
    step(f"{named.of}_n", "n()", count[groups], over=named.over, counted=named.counted)
    scaled: NDArray[np.float64] = difference * (count / np.maximum(count - 1, 1))[groups]
    return step(named.result, f"{named.of}_difference * {named.of}_n / max({named.of}_n - 1, 1)", scaled)


def count_shared(
    table: TurnTable,
    advantages: NDArray[np.float64],
    shared_turns: str,
    *,
    result: str = "advantage",
    of: str = "of_node",
) -> NDArray[np.float64]:
    """[N] the advantages for turns that several attempts share, where a turn occurs in n rows.

    `result` is the name of the returned values in the steps, `of` that of `advantages`.
    "each" leaves `advantages` unchanged, so such a turn is trained n times. "once" divides them by n (signal `node`),
    so its gradients add up to that of their mean, as losses are linear in the advantage.
    """
    if shared_turns not in SHARED_TURNS:
        raise UnknownNameError("shared_turns", shared_turns, SHARED_TURNS)
    if shared_turns == "each":
        return step(result, of, advantages)
    _, node, count = np.unique(table.signal("node"), return_inverse=True, return_counts=True)
    once: NDArray[np.float64] = advantages / count[node]
    step("shared", "n()", count[node], over="node")
    return step(result, f"{of} / shared", once)
