"""Baselines for the outcome of an attempt, instead of the mean of its group.

    opo         A_i = R_i - sum_j n_j R_j / sum_j n_j             n: tokens of the attempt
    maxrl       A_i = (R_i - mean(R)) / (mean(R) + epsilon)       for rewards of 0 or more
    gpg         A_i = (R_i - mean(R)) · B / B'                    B episodes in the batch, B' with a score that is not 0
    pass_at_k   A_i = (R_i - second) / (std(R) + epsilon)         for the best attempt; 0 for all others

Every turn of an episode gets the episode's advantage. A group of one keeps its raw score in `opo` and `gpg`, and gets 0
in the other two.

OPO: Hao et al., arXiv 2505.23585; the baseline minimises the variance of the gradient if all tokens have gradients of
equal size. MaxRL: as in SkyRL; rare successes weigh more, as the gradient of log(mean(R)) would weigh them. GPG: Chu et
al., arXiv 2504.02546. Pass@k: Walder and Karkhanis, arXiv 2503.19595: only an attempt that is better than all others
raises the best of k. The results equal those of verl's `core_algos.py`, and of SkyRL's `compute_maxrl_advantage`.

Left out: nothing. Statistics are over episodes, each counted once.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from algorithms.estimators.groups import (
    compares_attempts,
    episode_returns,
    group_numbers,
    relative_values,
    uniform_groups,
)
from algorithms.estimators.steps import Naming, step
from algorithms.turn_table import TurnTable


@compares_attempts
def opo(table: TurnTable) -> NDArray[np.float64]:
    """One advantage per turn, [N]. The table must count tokens; a group without any is averaged over its turns."""
    scores, groups = episode_returns(table), group_numbers(table)
    tokens = np.bincount(table.token_rows, minlength=len(table)).astype(np.float64)
    tokens += (np.bincount(groups, weights=tokens) == 0)[groups]
    origin = np.zeros(groups.max(initial=-1) + 1)
    origin[groups] = scores  # a score of the group: equal scores then differ by exactly 0
    baseline = np.bincount(groups, weights=tokens * (scores - origin[groups])) / np.bincount(groups, weights=tokens)
    alone = _sizes(table, groups)[groups] == 1
    step("weight", "", tokens, meaning="tokens of the turn; 1 for each turn if its task has no tokens")
    step("attempts", "n()", _sizes(table, groups)[groups], over="task", counted="first")
    step("baseline", "sum(weight * R) / sum(weight)", (origin + baseline)[groups], over="task")
    advantages: NDArray[np.float64] = scores - origin[groups] - baseline[groups]
    chosen = np.where(alone, scores, np.where(_equal(table)[groups], 0.0, advantages))
    return step("advantage", "where(attempts == 1, R, R - baseline)", chosen)


@compares_attempts
def maxrl(table: TurnTable, *, epsilon: float = 1e-6) -> NDArray[np.float64]:
    """One advantage per turn, [N]. Raises `ValueError` for a negative score, whose mean may be 0 or less."""
    scores, groups = episode_returns(table), group_numbers(table)
    if len(low := np.flatnonzero(scores < 0)):
        raise ValueError(
            f"episode {table.episode[low[0]]} has the return {scores[low[0]]:g}, and MaxRL divides by the mean return "
            "of a task: returns must be 0 or more"
        )
    means = np.bincount(groups, weights=scores * table.is_first) / np.maximum(_sizes(table, groups), 1)
    advantages: NDArray[np.float64] = _differences(table, keep_single=False) / (means + epsilon)[groups]
    return step("advantage", "difference / (R_mean + epsilon)", advantages, epsilon=epsilon)


@compares_attempts
def gpg(table: TurnTable) -> NDArray[np.float64]:
    """One advantage per turn, [N]."""
    solved = np.count_nonzero(episode_returns(table)[table.is_first])
    advantages: NDArray[np.float64] = _differences(table, keep_single=True) * table.is_first.sum() / max(solved, 1)
    formula = "difference * episodes / max(not_zero, 1)"
    return step("advantage", formula, advantages, episodes=table.is_first.sum(), not_zero=solved)


@compares_attempts
def pass_at_k(table: TurnTable, *, normalize_by_std: bool = True, epsilon: float = 1e-6) -> NDArray[np.float64]:
    """One advantage per turn, [N]: 0 but for the best attempt of each group. If several are best, it is 0 for all."""
    scores, groups = episode_returns(table), group_numbers(table)
    rows = np.flatnonzero(table.is_first)
    rows = rows[np.lexsort((table.episode[rows], scores[rows], groups[rows]))]  # by group, the best last
    same = groups[rows][1:] == groups[rows][:-1]
    last = np.append(~same, True)[: len(rows)]  # of its group
    lead = np.append(0.0, np.where(same, np.diff(scores[rows]), 0.0))[: len(rows)]  # over the one before
    gain, best = np.zeros(len(_equal(table))), np.full(len(_equal(table)), -1)
    gain[groups[rows][last]], best[groups[rows][last]] = lead[last], table.episode[rows][last]
    gain[_equal(table)] = 0.0
    is_best = table.episode == best[groups]
    step("is_best", "", is_best, meaning="whether no attempt at the task is better; of equal ones, one")
    lead_of = step("lead", "highest(R) - second(R)", gain[groups], over="task", counted="first")
    if not normalize_by_std:
        return step("advantage", "where(is_best, lead, 0)", np.where(is_best, lead_of, 0.0))
    deviations = _differences(table, keep_single=False) * table.is_first
    squares = np.bincount(groups, weights=deviations**2)
    std = np.sqrt(squares / np.maximum(_sizes(table, groups) - 1, 1))[groups]
    step("R_std", "where(n() > 1, std(R), 0)", std, over="task", counted="first")
    advantages = np.where(is_best, lead_of / (std + epsilon), 0.0)
    return step("advantage", "where(is_best, lead / (R_std + epsilon), 0)", advantages, epsilon=epsilon)


def _sizes(table: TurnTable, groups: NDArray[np.int64]) -> NDArray[np.float64]:
    """[G] episodes in each group."""
    return np.bincount(groups, weights=table.is_first).astype(np.float64)


def _equal(table: TurnTable) -> NDArray[np.bool_]:
    """[G] whether all episodes of a group have the same score."""
    return uniform_groups(
        table.episode_rewards(), group_numbers(table), table.episode_sums(np.abs(table.total_rewards()))
    )


def _differences(table: TurnTable, *, keep_single: bool) -> NDArray[np.float64]:
    """[N] the score of the row's episode minus the mean of its group."""
    return relative_values(
        table.episode_rewards(), group_numbers(table), counted=table.is_first, divide_by_std=False, epsilon=1.0,
        keep_single=keep_single, named=Naming("difference", "R", counted="first"),
    )  # fmt: skip
