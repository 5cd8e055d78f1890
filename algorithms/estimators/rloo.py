"""RLOO: the baseline of an attempt is the mean of the other attempts at the same task.

    A_i = R_i - mean of the other R_j = n / (n - 1) · (R_i - mean(R))

Every turn of an episode gets the episode's advantage. Paper: Ahmadian et al., arXiv 2402.14740. The results equal those
of verl's `compute_rloo_outcome_advantage` and, over turns, verl-agent's.

verl has two versions, which differ for a group of one: the plain one keeps its raw score (`single="score"`), the
vectorised one gives 0 (`single="zero"`).

Published settings for ALFWorld (verl-agent): as GRPO. The paper puts the KL into the reward. Left out: the ratio of
whole sequences that the paper uses.
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
    leave_one_out,
)
from algorithms.estimators.steps import Naming
from algorithms.turn_table import TurnTable
from envs.core import UnknownNameError

SINGLES = ("score", "zero")


@compares_attempts
def rloo(
    table: TurnTable, *, statistics: str = "turns", single: str = "score", invalid_penalty: float = 0.01
) -> NDArray[np.float64]:
    """One advantage per turn, [N].

    `statistics` is "turns" (n counts the rows of the group, as in verl-agent) or "episodes" (its episodes, each by its
    first row). `invalid_penalty`, in units of reward, is subtracted from the score of a row whose own action was
    invalid.

    Raises `UnknownNameError` for another `statistics` or `single`.
    """
    if single not in SINGLES:
        raise UnknownNameError("single", single, SINGLES)
    scores, groups = episode_scores(table, invalid_penalty), group_numbers(table)
    named = Naming("advantage", "score", counted=counted_name(statistics))
    return leave_one_out(scores, groups, counted_rows(table, statistics), keep_single=single == "score", named=named)
