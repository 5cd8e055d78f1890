"""PURE: an attempt is only as good as its worst turn.

    A_t = sum of (p_k - b_k) over the turns k >= t, + outcome_weight · (R - mean of the other R)
    p_k = w_k · r_k,  w = softmax(-r / temperature) over the turns of the episode,  r: signal `prm`
    b_k = tokens_k · (sum of p over all turns of the other attempts) / (their tokens)     `baseline="token"`
    b_k = mean over the other attempts of (sum of p / turns)                              `baseline="turn"`

With a small temperature nearly all weight falls on the turn with the lowest r, so the sum of p is close to the minimum
of r. r is p(good) - p(bad) of a process reward model, in [-1, 1]. A group of one attempt has no baselines.

Paper: Cheng et al., *Stop Summation: Min-Form Credit Assignment*, arXiv 2504.15275. The weights are those of the
authors' `turn_process_reward_logits_to_reward`; everything else follows their `process_experiences`. They recommend the
baseline per token; one per turn favours attempts with few turns (their issue 2).

Published settings: temperature 0.1, outcome 0 or -1 added to the process rewards. Left out: a further whitening.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from algorithms.estimators.groups import compares_attempts, episode_returns, group_numbers, leave_one_out
from algorithms.estimators.steps import Naming, step
from algorithms.estimators.timeline import turns
from algorithms.turn_table import TurnTable
from envs.core import UnknownNameError

BASELINES = ("token", "turn")


@compares_attempts
def pure(
    table: TurnTable, *, temperature: float = 0.1, baseline: str = "token", outcome_weight: float = 1.0
) -> NDArray[np.float64]:
    """One advantage per turn, [N]. Needs the signal `prm` and the count of tokens.

    Raises `UnknownNameError` for another `baseline`.
    """
    if baseline not in BASELINES:
        raise UnknownNameError("baseline", baseline, BASELINES)
    groups = group_numbers(table)

    def of_others(of_episodes: NDArray[np.float64]) -> NDArray[np.float64]:
        """[N] the sum over the other attempts at the task; `of_episodes` has one number per episode."""
        others: NDArray[np.float64] = np.bincount(groups, weights=of_episodes * table.is_first)[groups] - of_episodes
        return others

    weighted = min_form_rewards(table, temperature)
    sums = step("p_episode", "sum(p)", table.episode_sums(weighted), over="episode")
    if baseline == "token":
        count = np.bincount(table.token_rows, minlength=len(table))
        length = step("length", "sum(tokens)", table.episode_sums(count), over="episode")
        others, their_tokens = of_others(sums), of_others(length)
        step("p_task", "sum(p_episode)", sums + others, over="task", counted="first")
        step("length_task", "sum(length)", length + their_tokens, over="task", counted="first")
        expected = count * others / np.maximum(their_tokens, 1)
        step("b", "tokens * (p_task - p_episode) / max(length_task - length, 1)", expected)
    else:
        attempts = np.ones(len(table))
        means = step("p_mean", "mean(p)", sums / table.episode_sums(attempts), over="episode")
        others, rivals = of_others(means), of_others(attempts)
        step("p_task", "sum(p_mean)", means + others, over="task", counted="first")
        step("attempts", "n()", rivals + 1, over="task", counted="first")
        expected = step("b", "(p_task - p_mean) / max(attempts - 1, 1)", others / np.maximum(rivals, 1))
    process = step("process", "p - b + next(process)", turns(table).accumulate(weighted - expected, 1.0))
    named = Naming("outcome", "R", counted="first")
    outcome = leave_one_out(episode_returns(table), groups, table.is_first, keep_single=True, named=named)
    both = process + outcome_weight * outcome
    return step("advantage", "process + outcome_weight * outcome", both, outcome_weight=outcome_weight)


def min_form_rewards(table: TurnTable, temperature: float | None) -> NDArray[np.float64]:
    """[N] softmax(-r / temperature) · r within each episode; without temperature r / turns, whose sum is the mean."""
    scores = table.signal("prm").astype(np.float64)
    lowest = np.full(len(table), np.inf)
    np.minimum.at(lowest, table.episode_number, scores)
    lowest = lowest[table.episode_number]
    weights = np.ones(len(table)) if temperature is None else np.exp((lowest - scores) / temperature)
    step("prm_lowest", "lowest(prm)", lowest, over="episode")
    formula = "1" if temperature is None else "exp((prm_lowest - prm) / temperature)"
    step("w", formula, weights, temperature=temperature)
    step("w_episode", "sum(w)", table.episode_sums(weights), over="episode")
    return step("p", "w / w_episode * prm", weights / table.episode_sums(weights) * scores)
