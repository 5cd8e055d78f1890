"""NGRPO: GRPO that also learns from a group in which every attempt failed.

    A_i = (R_i - mean(R')) / (std(R') + epsilon),  R' = R and `virtual` attempts with the score `max_reward`; ddof 1

A virtual success in every group makes a group of failures worse than its mean, by the same amount for all attempts,
while a group of successes gets 0. Paper: Nan et al., arXiv 2509.18851. The results equal those of the authors'
`compute_ngrpo_outcome_advantage`.

Published settings: max_reward 1, one virtual attempt, 8 attempts, asymmetric clip 0.16 / 0.24, no KL, groups of
successes dropped.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from algorithms.estimators.groups import (
    compares_attempts,
    counted_name,
    counted_rows,
    episode_scores,
    group_numbers,
    relative_values,
)
from algorithms.estimators.steps import explaining, step
from algorithms.turn_table import TurnTable


@compares_attempts
def ngrpo(
    table: TurnTable,
    *,
    max_reward: float = 1.0,
    virtual: int = 1,
    statistics: str = "episodes",
    invalid_penalty: float = 0.0,
    epsilon: float = 1e-6,
) -> NDArray[np.float64]:
    """One advantage per turn, [N]. `statistics` and `invalid_penalty` as in `grpo`.

    With `statistics="turns"` a virtual attempt counts as one row. A group of one keeps its raw score, as in the
    authors' code, which adds no virtual attempt to it.
    """
    scores, groups = episode_scores(table, invalid_penalty), group_numbers(table)
    counted = counted_rows(table, statistics)
    count = np.bincount(groups, weights=counted)
    imagined = np.repeat(np.flatnonzero(count > 1), virtual)
    advantages = relative_values(
        np.append(scores, np.full(len(imagined), max_reward)),
        np.append(groups, imagined),
        counted=np.append(counted, np.ones(len(imagined), dtype=np.bool_)),
        divide_by_std=True,
        epsilon=epsilon,
        keep_single=True,
    )[: len(table)]
    if explaining():
        name = counted_name(statistics)
        counts = np.where(count > 1, count + virtual, count)
        sums = np.bincount(groups, weights=scores * counted) + np.where(count > 1, virtual * max_reward, 0.0)
        means = np.where(count > 1, sums / counts, 0.0)
        squares = (
            np.bincount(groups, weights=(scores - means[groups]) ** 2 * counted) + virtual * (max_reward - means) ** 2
        )
        stds = np.where(count > 1, np.sqrt(squares / np.maximum(counts - 1, 1)), 1.0)
        formula = "where(n() > 1, (sum(score) + virtual * max_reward) / (n() + virtual), 0)"
        step("score_mean", formula, means[groups], virtual=virtual, max_reward=max_reward, over="task", counted=name)
        squared = "sum((score - score_mean)**2) + virtual * (max_reward - score_mean)**2"
        formula = f"where(n() > 1, sqrt(({squared}) / (n() + virtual - 1)), 1)"
        step("score_std", formula, stds[groups], virtual=virtual, max_reward=max_reward, over="task", counted=name)
    return step("advantage", "(score - score_mean) / (score_std + epsilon)", advantages, epsilon=epsilon)
