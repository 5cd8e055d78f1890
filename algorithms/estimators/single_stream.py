"""Single-stream policy optimisation: compare an attempt with its task's success rate in earlier updates.

    A_i = (x_i - mean(x)) / (std(x) + epsilon),  x_i = R_i - V_i        over the attempts of the batch, std with ddof 1

V is the signal `task_value`, a running mean. So a task needs one attempt in a batch, and groups in which all attempts
succeed or fail are no loss. Every turn of an episode gets the episode's advantage.

Paper: Xu and Ding, *Single-stream Policy Optimization*, arXiv 2509.13232. The results equal `recipe/spo` of verl.
Published settings: 768 tasks with one attempt each, 8 minibatches, learning rate 1e-6, clip 0.2 and 0.28, dual clip 10.
Left out: drawing tasks by their value, and first values from attempts before the run.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from algorithms.estimators.groups import episode_returns, relative_values
from algorithms.estimators.steps import Naming, step
from algorithms.turn_table import TurnTable


def single_stream(table: TurnTable, *, normalize: bool = True, epsilon: float = 1e-8) -> NDArray[np.float64]:
    """One advantage per turn, [N]. Needs the signal `task_value`. Without `normalize`, A = R - V.

    Differences that are all equal give 0, also that of a single attempt.
    """
    difference = episode_returns(table) - table.signal("task_value")
    if not normalize:
        return step("advantage", "R - task_value", difference)
    return relative_values(
        step("difference", "R - task_value", difference), np.zeros(len(table), dtype=np.int64), counted=table.is_first,
        divide_by_std=True, epsilon=epsilon, keep_single=False,
        named=Naming("advantage", "difference", over="batch", counted="first"),
    )  # fmt: skip
