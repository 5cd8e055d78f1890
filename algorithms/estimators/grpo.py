"""GRPO: compare the score of an attempt with the other attempts at the same task.

    A_i = (R_i - mean(R)) / (std(R) + epsilon)        R: scores of the group, std with ddof 1
    A_i = R_i - mean(R)                               Dr.GRPO (`normalize_by_std=False`)

Every turn of an episode gets the episode's advantage. Papers: GRPO, Shao et al., arXiv 2402.03300; Dr.GRPO, Liu et
al., arXiv 2503.20783. The results equal those of verl's `compute_grpo_outcome_advantage` and, over turns, verl-agent's.

Published settings for ALFWorld (verl-agent): 16 tasks × 8 attempts, 50 turns, invalid penalty 0.1, statistics over
turns, learning rate 1e-6, KL loss 0.01 (k3). Dr.GRPO goes with the aggregation "seq-mean-token-sum-norm" and no KL.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from algorithms.estimators.groups import compares_attempts, episode_advantages, episode_scores
from algorithms.turn_table import TurnTable


@compares_attempts
def grpo(
    table: TurnTable,
    *,
    normalize_by_std: bool = True,
    statistics: str = "turns",
    invalid_penalty: float = 0.01,
    epsilon: float = 1e-6,
) -> NDArray[np.float64]:
    """One advantage per turn, [N].

    `statistics` is "turns" (mean and std of a group are over all its rows) or "episodes" (over its episodes, each by
    its first row). `invalid_penalty`, in units of reward, is subtracted from the score of a row whose own action was
    invalid. A group of one keeps its raw score; a group of equal scores gets exactly 0.

    Raises `UnknownNameError` for another `statistics`, `ValueError` for an `epsilon` that is not positive.
    """
    return episode_advantages(
        table,
        episode_scores(table, invalid_penalty),
        statistics=statistics,
        divide_by_std=normalize_by_std,
        epsilon=epsilon,
    )
