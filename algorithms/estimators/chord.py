"""CHORD's advantages: GRPO over the policy's own attempts, and 1 for demonstrations, which are imitated, not compared.

    A_i = (R_i - mean(R)) / (std(R) + epsilon)     mean and std (ddof 1) over the policy's own attempts at the task
    A_i = 1                                        for a demonstration

After a third party's description of Zhang et al., *On-Policy RL Meets Off-Policy Experts*, arXiv 2508.11408. Their loss
is `algorithms.losses.chord_loss`, which does not scale demonstrations by what they earned.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from algorithms.estimators.groups import compares_attempts
from algorithms.estimators.luffy import compare_with_own
from algorithms.estimators.steps import step
from algorithms.turn_table import TurnTable


@compares_attempts
def chord(table: TurnTable, *, normalize_by_std: bool = True, epsilon: float = 1e-6) -> NDArray[np.float64]:
    """One advantage per turn, [N]. Needs the signal `demonstration`. Statistics are over episodes."""
    compared = compare_with_own(
        table, compare_with="own", normalize_by_std=normalize_by_std, epsilon=epsilon, result="compared"
    )
    shown = step("shown", "", table.signal("demonstration").astype(np.bool_), meaning="turns of a demonstration")
    return step("advantage", "where(shown, 1, compared)", np.where(shown, 1.0, compared))
