"""PRIME: token rewards of an implicit process reward model and the outcome, each minus a baseline of other attempts.

    A_t = whiten(G_t),  G_t = sum of r from token t of the episode on
    r_t = prm_weight · (n / (n - 1) · p_t - sum over attempts of mean(p) / (n - 1)),   p: token signal `prm`
        + outcome_weight · n / (n - 1) · (R - mean(R))      on the last token

Paper: Cui et al., arXiv 2502.01456. The results equal those of `recipe/prime/prime_core_algos.py`. The baseline of p is
made of means over tokens, and is subtracted from every token, so long attempts get larger sums. A group of one attempt
has no baseline and keeps its raw rewards; the authors' code divides by zero there.

Published settings: both weights 5, beta 0.05 in p = beta · log(pi_phi / pi_ref), the reward model trained on the
outcome before it is used. Left out: the filter of tasks by accuracy.
"""

from __future__ import annotations

import numpy as np

from algorithms.estimators.groups import compares_attempts, episode_returns, group_numbers, leave_one_out
from algorithms.estimators.steps import Naming, step
from algorithms.estimators.timeline import tokens, whiten
from algorithms.turn_table import Estimate, TurnTable


@compares_attempts
def prime(table: TurnTable, *, prm_weight: float = 5.0, outcome_weight: float = 5.0) -> Estimate:
    """One advantage and one return per token, [M]. Needs the token signal `prm`."""
    rows, line = table.token_rows, tokens(table)
    rewards = table.token_signal("prm").astype(np.float64)
    groups = group_numbers(table)
    count = np.bincount(rows, minlength=len(table))
    sums = table.episode_sums(np.bincount(rows, weights=rewards, minlength=len(table)))
    means = sums / np.maximum(table.episode_sums(count), 1)  # [N] over the tokens of the episode
    attempts = np.bincount(groups, weights=table.is_first)[groups]  # [N]
    others = np.maximum(attempts - 1, 1)
    baseline = np.bincount(groups, weights=means * table.is_first)[groups] / others
    dense = rewards * (attempts / others)[rows] - np.where(attempts > 1, baseline, 0.0)[rows]
    step("prm_of_turn", "tokens_sum(prm)", np.bincount(rows, weights=rewards, minlength=len(table)))
    step("prm_mean", "sum(prm_of_turn) / max(sum(tokens), 1)", means, over="episode")
    step("attempts", "n()", attempts, over="task", counted="first")
    formula = "where(n() > 1, sum(prm_mean) / max(n() - 1, 1), 0)"
    step("baseline", formula, np.where(attempts > 1, baseline, 0.0), over="task", counted="first")
    step("dense", "prm * attempts / max(attempts - 1, 1) - baseline", dense)
    named = Naming("outcome", "R", counted="first")
    outcome = leave_one_out(episode_returns(table), groups, table.is_first, keep_single=True, named=named)
    returns = line.accumulate(prm_weight * dense + outcome_weight * outcome[rows] * line.last(), 1.0)
    formula = "prm_weight * dense + where(end, outcome_weight * outcome, 0) + next(G)"
    step("G", formula, returns, prm_weight=prm_weight, outcome_weight=outcome_weight)
    return Estimate(whiten(returns, of="G"), returns)
