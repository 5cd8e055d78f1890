"""Other baselines for the outcome of an attempt than the mean of its group.

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

from algorithms.estimators.groups import compares_attempts, group_numbers, relative_values, uniform_groups
from algorithms.turn_table import TurnTable


@compares_attempts
def opo(table: TurnTable) -> NDArray[np.float64]:
    """One advantage per turn, [N]. The table must count tokens; a group without any is averaged over its turns."""
    scores, groups = table.episode_rewards(), group_numbers(table)
    tokens = np.bincount(table.token_rows, minlength=len(table)).astype(np.float64)
    tokens += (np.bincount(groups, weights=tokens) == 0)[groups]
    origin = np.zeros(groups.max(initial=-1) + 1)
    origin[groups] = scores  # a score of the group: equal scores then differ by exactly 0
    baseline = np.bincount(groups, weights=tokens * (scores - origin[groups])) / np.bincount(groups, weights=tokens)
    advantages: NDArray[np.float64] = scores - origin[groups] - baseline[groups]
    return np.where(_sizes(table, groups)[groups] == 1, scores, np.where(_equal(table)[groups], 0.0, advantages))


@compares_attempts
def maxrl(table: TurnTable, *, epsilon: float = 1e-6) -> NDArray[np.float64]:
    """One advantage per turn, [N]. Raises `ValueError` for a negative score, whose mean may be 0 or less."""
    scores, groups = table.episode_rewards(), group_numbers(table)
    if len(low := np.flatnonzero(scores < 0)):
        raise ValueError(
            f"episode {table.episode[low[0]]} has the return {scores[low[0]]:g}, and MaxRL divides by the mean return "
            "of a task: returns must be 0 or more"
        )
    means = np.bincount(groups, weights=scores * table.opens) / np.maximum(_sizes(table, groups), 1)
    advantages: NDArray[np.float64] = _differences(table, keep_single=False) / (means + epsilon)[groups]
    return advantages


@compares_attempts
def gpg(table: TurnTable) -> NDArray[np.float64]:
    """One advantage per turn, [N]."""
    solved = np.count_nonzero(table.episode_rewards()[table.opens])
    advantages: NDArray[np.float64] = _differences(table, keep_single=True) * table.opens.sum() / max(solved, 1)
    return advantages


@compares_attempts
def pass_at_k(table: TurnTable, *, normalize_by_std: bool = True, epsilon: float = 1e-6) -> NDArray[np.float64]:
    """One advantage per turn, [N]: 0 but for the best attempt of each group. If several are best, it is 0 for all."""
    scores, groups = table.episode_rewards(), group_numbers(table)
    rows = np.flatnonzero(table.opens)
    rows = rows[np.lexsort((table.episode[rows], scores[rows], groups[rows]))]  # by group, the best last
    same = groups[rows][1:] == groups[rows][:-1]
    last = np.append(~same, True)[: len(rows)]  # of its group
    lead = np.append(0.0, np.where(same, np.diff(scores[rows]), 0.0))[: len(rows)]  # over the one before
    gain, best = np.zeros(len(_equal(table))), np.full(len(_equal(table)), -1)
    gain[groups[rows][last]], best[groups[rows][last]] = lead[last], table.episode[rows][last]
    gain[_equal(table)] = 0.0
    if normalize_by_std:
        deviations = _differences(table, keep_single=False) * table.opens
        squares = np.bincount(groups, weights=deviations**2)
        gain /= np.sqrt(squares / np.maximum(_sizes(table, groups) - 1, 1)) + epsilon
    return np.where(table.episode == best[groups], gain[groups], 0.0)


def _sizes(table: TurnTable, groups: NDArray[np.int64]) -> NDArray[np.float64]:
    """[G] episodes in each group."""
    return np.bincount(groups, weights=table.opens).astype(np.float64)


def _equal(table: TurnTable) -> NDArray[np.bool_]:
    """[G] whether all episodes of a group have the same score."""
    return uniform_groups(
        table.episode_rewards(), group_numbers(table), table.episode_sums(np.abs(table.total_rewards()))
    )


def _differences(table: TurnTable, *, keep_single: bool) -> NDArray[np.float64]:
    """[N] the score of the row's episode minus the mean of its group."""
    return relative_values(
        table.episode_rewards(), group_numbers(table), counted=table.opens, divide_by_std=False, epsilon=1.0,
        keep_single=keep_single,
    )  # fmt: skip
