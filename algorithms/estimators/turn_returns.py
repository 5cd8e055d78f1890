"""Compare the returns of turns (rewards from the turn on) instead of the returns of whole attempts.

    step_grpo   A_t = (G_t - mean(G)) / (std(G) + epsilon)   over all turns of the attempts at a task, or of the batch
    turn_rloo   A_t = G_t - sum of the other attempts' G_t / (n - 1)
    G_t = r_t + gamma · G_{t+1},   minus `invalid_penalty` on a turn whose own action was invalid

In `turn_rloo`, t is the number of the turn in its attempt, n is the number of attempts, and an attempt that ended
before turn t counts as 0. A baseline that depends on how many turns an attempt took itself would be biased where the
policy chooses when to stop (verl issue 7244); this one depends on the others alone. `step_grpo` compares early turns
with late ones, so its baseline has that bias: it is as published.

`step_grpo` is ROLL's `step_reinforce` with `mean_std` or (`normalize_by_std=False`) `mean`; similar in Kevin (Baronio
et al., arXiv 2507.11948), with gamma 0.4. ROLL gives 0 where the std is at most 1e-6 or there is a single turn; here
where the values are equal up to rounding. `turn_rloo` follows that issue. A group of one attempt keeps G in
`turn_rloo`. Left out: ROLL's clip of the result to [-1, 3].
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from algorithms.estimators.gigpo import step_values
from algorithms.estimators.groups import RESOLUTION, compares_attempts, group_numbers, relative_values
from algorithms.estimators.steps import Naming, step
from algorithms.estimators.timeline import turns
from algorithms.turn_table import TurnTable
from envs.core import UnknownNameError

POOLS = ("task", "batch")


def step_grpo(
    table: TurnTable, *, gamma: float = 0.95, pool: str = "task", normalize_by_std: bool = True,
    invalid_penalty: float = 0.01, epsilon: float = 1e-6,
) -> NDArray[np.float64]:  # fmt: skip
    """One advantage per turn, [N]. Turns are compared with all turns of the `pool`, "task" or "batch".

    Raises `UnknownNameError` for another `pool`.
    """
    if pool not in POOLS:
        raise UnknownNameError("pool", pool, POOLS)
    groups = group_numbers(table) if pool == "task" else np.zeros(len(table), dtype=np.int64)
    return relative_values(
        step_values(table, gamma, invalid_penalty), groups, divide_by_std=normalize_by_std, epsilon=epsilon,
        keep_single=False, named=Naming("advantage", "step_score", pool),
    )  # fmt: skip


@compares_attempts
def turn_rloo(table: TurnTable, *, gamma: float = 1.0, invalid_penalty: float = 0.01) -> NDArray[np.float64]:
    """One advantage per turn, [N]."""
    values, groups, number = step_values(table, gamma, invalid_penalty), group_numbers(table), turns(table).position()
    _, place = np.unique(groups * (number.max(initial=0) + 1) + number, return_inverse=True)
    attempts = np.bincount(groups, weights=table.is_first)[groups]
    sums, size = np.bincount(place, values)[place], np.bincount(place, np.abs(values))[place]
    step("place", "", place, meaning="the turns with the same number, of the attempts at a task")
    step("attempts", "n()", attempts, over="task", counted="first")
    baseline = (sums - values) / np.maximum(attempts - 1, 1)
    step("place_sum", "sum(step_score)", sums, over="place")
    step("baseline", "(place_sum - step_score) / max(attempts - 1, 1)", baseline)
    difference = values - baseline
    exact = np.where(np.abs(difference) <= RESOLUTION * size, 0.0, difference)  # equal up to rounding
    return step("advantage", "step_score - baseline", exact)
