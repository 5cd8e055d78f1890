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

from algorithms.estimators.groups import compares_attempts, counted_rows, episode_scores, group_numbers, relative_values
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
    return relative_values(
        np.append(scores, np.full(len(imagined), max_reward)),
        np.append(groups, imagined),
        counted=np.append(counted, np.ones(len(imagined), dtype=np.bool_)),
        divide_by_std=True,
        epsilon=epsilon,
        keep_single=True,
    )[: len(table)]
