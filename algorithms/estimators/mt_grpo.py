"""MT-GRPO: compare attempts by their outcome and by the rewards of their tool calls.

    A_t = z(R^O) + turn_weight · z(R^T_s)    for the turns up to the s-th result of a tool, after the one before it
    A_t = z(R^O)                             for the turns after the last result
    A_t = z(R^T + R^O)                       for all turns of an attempt without any result
    z(x) = (x - mean) / (std + epsilon)      over the attempts at the same task, ddof 1

R^O is the episode's reward and R^T_s the sum of the signal `turn_reward` over the turns that belong to the s-th result.
The signal `tool_result` marks the turns that brought a result.

Paper: Zeng et al., arXiv 2505.11821. The authors' code has one search and one answer, so s = 1, and it compares R^T_1
over all attempts, including those without a result; the results here equal it. For s > 1, which is new here, only
attempts with an s-th result are compared. Caution: where a policy chooses its
number of turns, subtracting a mean from each turn also rewards or penalises that number (verl issue 7244).

The mixed scales are the authors' own: an attempt without a result is compared by the sum of both rewards, the others by
the parts.

Published settings: turn weight 1, epsilon 1e-4, 21 attempts, 2 turns, two updates per batch, learning rate 1e-6. Left
out: the authors' "cae" variant, and turn rewards after the last result, which count only in R^T + R^O.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from algorithms.estimators.groups import compares_attempts, episode_returns, group_numbers, relative_values
from algorithms.estimators.steps import Naming, step
from algorithms.estimators.timeline import turns
from algorithms.turn_table import TurnTable


@compares_attempts
def mt_grpo(table: TurnTable, *, turn_weight: float = 1.0, epsilon: float = 1e-4) -> NDArray[np.float64]:
    """One advantage per turn, [N]. Needs the signals `turn_reward` and `tool_result`."""
    parts = compared_parts(table, epsilon)
    with_result = table.episode_sums(table.signal("tool_result")) > 0
    step("results", "sum(tool_result)", table.episode_sums(table.signal("tool_result")), over="episode")
    advantages = np.where(with_result, parts.outcome + turn_weight * parts.turn, parts.combined)
    formula = "where(results > 0, z_outcome + turn_weight * where(rewarded, z_turn, 0), z_both)"
    return step("advantage", formula, advantages, turn_weight=turn_weight)


class Parts(NamedTuple):
    """The three comparisons, each [N]."""

    turn: NDArray[np.float64]  # z of R^T_s; 0 after the last result
    outcome: NDArray[np.float64]  # z of R^O
    combined: NDArray[np.float64]  # z of R^T + R^O


def compared_parts(table: TurnTable, epsilon: float) -> Parts:
    """The terms that `mt_grpo` adds, for every turn."""
    result, paid = table.signal("tool_result").astype(np.float64), table.signal("turn_reward")
    groups, outcomes, results = group_numbers(table), episode_returns(table), table.episode_sums(result)
    # The number of results still to come, including the turn's own, identifies the result that a turn belongs to.
    number = (results - turns(table).accumulate(result, 1.0)).astype(np.int64)
    _, first, span = np.unique(table.episode_number * (len(table) + 1) + number, return_index=True, return_inverse=True)
    rewarded = (number < results) | (results == 0)

    def z(
        values: NDArray[np.float64], numbers: NDArray[np.int64], counted: NDArray[np.bool_], named: Naming
    ) -> NDArray[np.float64]:
        return relative_values(
            values, numbers, counted=counted, divide_by_std=True, epsilon=epsilon, keep_single=False, named=named
        )

    counted = np.zeros(len(table), dtype=np.bool_)
    counted[first] = True  # every span of an episode counts once
    # This also compares the turns after the last result with each other; that part is not used.
    rivals = np.unique((groups * (len(table) + 1) + number) * 2 + rewarded, return_inverse=True)[1]
    sums = np.bincount(span, weights=paid).astype(np.float64)
    step("rewarded", "", rewarded, meaning="whether a tool's result follows in the episode, or it has none")
    step("span", "", span, meaning="the turns of an episode that belong to the same result")
    step("rivals", "", rivals, meaning="turns that belong to a result of the same number, in the attempts at a task")
    step("of_span", "", counted, meaning="one turn of each span")
    step("R_turn", "sum(turn_reward)", sums[span], over="span")
    z_turn = z(sums[span], rivals, counted, Naming("z_turn", "R_turn", "rivals", "of_span"))
    turn = np.where(rewarded, z_turn, 0.0)
    step("R_turns", "sum(turn_reward)", table.episode_sums(paid), over="episode")
    combined = step("R_both", "R + R_turns", outcomes + table.episode_sums(paid))
    return Parts(
        turn,
        z(outcomes, groups, table.is_first, Naming("z_outcome", "R", counted="first")),
        z(combined, groups, table.is_first, Naming("z_both", "R_both", counted="first")),
    )
