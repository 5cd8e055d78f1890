"""TP-GRPO: compare thoughts (runs of turns with the same verdict of a judge), and whole attempts.

    A_t = z(R) + thought_weight · (1 - adapt · q) · z(p)     p: signal `prm` of the thought of turn t
    z(x) = (x - mean(x)) / (std(x) + epsilon)                over the attempts, or the thoughts, at the task

Consecutive turns with equal `prm` are one thought and count once, so that an attempt does not gain by cutting a right
step in two. q is the task's success rate (returns above 0): the thoughts matter more while the policy can do little.

After the abstract of *Good Learners Think Their Thinking*, arXiv 2507.23317: a judge's verdicts on steps, merged to
thoughts, thought-level rewards, and a scale that adapts to what the policy can do. The sum, both weights and the
scale's form are choices of ours; the off-policy part is left out.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from algorithms.estimators.groups import compares_attempts, episode_returns, group_numbers, relative_values
from algorithms.estimators.steps import Naming, step
from algorithms.turn_table import TurnTable


@compares_attempts
def tp_grpo(
    table: TurnTable, *, thought_weight: float = 0.5, adapt: float = 1.0, epsilon: float = 1e-6
) -> NDArray[np.float64]:
    """One advantage per turn, [N]. Needs the signal `prm`. Statistics are over episodes and thoughts."""
    returns, groups, verdict = episode_returns(table), group_numbers(table), table.signal("prm").astype(np.float64)
    first = table.is_first
    outcome = relative_values(
        returns, groups, counted=first, divide_by_std=True, epsilon=epsilon, keep_single=False,
        named=Naming("outcome", "R", counted="first"),
    )  # fmt: skip
    ordered = verdict[table.order]
    begins = np.empty(len(table), dtype=np.bool_)
    begins[table.order] = first[table.order] | (np.diff(ordered, prepend=np.nan) != 0)
    step("begins", "", begins, meaning="whether a thought begins with the turn")
    thought = relative_values(
        verdict, groups, counted=begins, divide_by_std=True, epsilon=epsilon, keep_single=False,
        named=Naming("thought", "prm", counted="begins"),
    )  # fmt: skip
    rate = np.bincount(groups, weights=first * (returns > 0)) / np.maximum(np.bincount(groups, weights=first), 1)
    step("rate", "mean(R > 0)", rate[groups], over="task", counted="first")
    advantages = outcome + thought_weight * (1 - adapt * rate[groups]) * thought
    formula = "outcome + thought_weight * (1 - adapt * rate) * thought"
    return step("advantage", formula, advantages, thought_weight=thought_weight, adapt=adapt)
