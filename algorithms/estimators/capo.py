"""CAPO: a token gets the outcome of its episode, reduced in wrong turns, and is compared with all tokens of the task.

    A_t = (r_t - mean(r)) / (std(r) + epsilon)    over all sampled tokens of the attempts at a task, std with ddof 1
    r_t = outcome_weight · R + process_weight · p,   p: signal `prm` of the token's turn, 0 or -1

If outcome_weight is above process_weight, the outcome comes first: a wrong turn of a success is still worth more than a
right turn of a failure. Mean and std are over tokens, so long turns and long episodes weigh more.

Paper: Xie et al., *CAPO: Towards Enhancing LLM Reasoning through Generative Credit Assignment*, arXiv 2508.02298. Its
code was not published, so this follows the description; the weights 2 and 1 are a choice within its rule that the
outcome weighs more. `algorithms.signals.judge` finds the wrong turns. Left out: nothing that is known.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from algorithms.estimators.groups import compares_attempts, episode_returns, group_numbers, relative_values
from algorithms.estimators.steps import Naming, step
from algorithms.turn_table import TurnTable


@compares_attempts
def capo(
    table: TurnTable, *, outcome_weight: float = 2.0, process_weight: float = 1.0, epsilon: float = 1e-6
) -> NDArray[np.float64]:
    """One advantage per token, [M]. Needs the signal `prm` and the count of tokens.

    If all attempts of a group have the same reward and no turn is wrong, all advantages are exactly 0.
    """
    earned = outcome_weight * episode_returns(table) + process_weight * table.signal("prm")
    formula = "outcome_weight * R + process_weight * prm"
    step("earned", formula, earned, outcome_weight=outcome_weight, process_weight=process_weight)
    # Rows without tokens belong to no group here.
    groups = np.unique(group_numbers(table)[table.token_rows], return_inverse=True)[1]
    return relative_values(
        earned[table.token_rows], groups, divide_by_std=True, epsilon=epsilon, keep_single=True,
        named=Naming("advantage", "earned"),
    )  # fmt: skip
