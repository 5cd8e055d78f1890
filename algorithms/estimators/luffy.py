"""LUFFY's advantages: demonstrations are compared with the policy's own attempts, without changing their advantages.

    A_i = (R_i - mean(R)) / (std(R) + epsilon)     mean and std (ddof 1) over the policy's own attempts at the task

If these have equal scores the std counts as 1, so a demonstration keeps its lead over attempts that all failed. A group
with one attempt of the policy has mean 0 and std 1; in a group without any, the demonstrations are compared.

Paper: Yan et al., *Learning to Reason under Off-Policy Guidance*, arXiv 2504.14945, which takes mean and std over all
attempts (`compare_with="all"`). The results equal those of the authors' `compute_grpo_outcome_advantage_split`. Their
loss is `algorithms.losses.luffy_loss`. Published settings: one demonstration and seven attempts.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from algorithms.estimators.groups import compares_attempts, episode_returns, group_numbers, relative_values
from algorithms.estimators.steps import Naming, step
from algorithms.turn_table import TurnTable
from envs.core import UnknownNameError

COMPARED_WITH = ("own", "all")


@compares_attempts
def luffy(
    table: TurnTable, *, compare_with: str = "own", normalize_by_std: bool = True, epsilon: float = 1e-6
) -> NDArray[np.float64]:
    """One advantage per turn, [N]. Needs the signal `demonstration`. Statistics are over episodes.

    Raises `UnknownNameError` for another `compare_with`.
    """
    return compare_with_own(
        table, compare_with=compare_with, normalize_by_std=normalize_by_std, epsilon=epsilon, result="advantage"
    )


def compare_with_own(
    table: TurnTable, *, compare_with: str, normalize_by_std: bool, epsilon: float, result: str
) -> NDArray[np.float64]:
    """`luffy`, with the name `result` in the steps."""
    if compare_with not in COMPARED_WITH:
        raise UnknownNameError("compare_with", compare_with, COMPARED_WITH)
    scores, groups = episode_returns(table), group_numbers(table)
    own = table.is_first & (~table.signal("demonstration").astype(np.bool_) | (compare_with == "all"))
    without = np.bincount(groups, weights=own) == 0
    counted = step("counted", "", own | (table.is_first & without[groups]), meaning="first turns in mean and std")
    differences = relative_values(
        scores, groups, counted=counted, divide_by_std=False, epsilon=epsilon, keep_single=True,
        named=Naming("difference", "R", counted="counted"),
    )  # fmt: skip
    if not normalize_by_std:
        return step(result, "difference", differences)
    count = np.bincount(groups, weights=counted)
    variance = np.bincount(groups, weights=differences**2 * counted) / np.maximum(count - 1, 1)
    std = np.where((count == 1) | (variance == 0.0), 1.0, np.sqrt(variance))
    step("std_of_task", "", std[groups], meaning="std of R over the compared turns; 1 if it is 0 or there is only one")
    return step(result, "difference / (std_of_task + epsilon)", differences / (std + epsilon)[groups], epsilon=epsilon)
