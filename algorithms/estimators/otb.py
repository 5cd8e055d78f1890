"""OTB: the baseline of each token that minimises the variance of the gradient.

    A_t = G_t - B_t,   B_t = sum_i G_it W_it / (sum_i W_it + epsilon)      over the attempts with a t-th token
    W_t = sum of w up to t,   w = (1 - 2 p + sum over all words v of p_v²) c²

p is the probability that the token was sampled with, so w is the squared length of its gradient at the logits, and W
that of the episode so far. c is the weight of a correction (`algorithms.correction`), or 1. t counts the tokens that
the policy sampled in an episode, over all its turns; G_t is the sum of rewards from there on.

Source: verl's `compute_multi_turn_optimal_token_baseline_advantage`, whose results these are. Needs the token signal
`square_sum`. Left out: nothing.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from algorithms.estimators.groups import compares_attempts, group_numbers
from algorithms.estimators.reinforce_pp import token_returns
from algorithms.estimators.steps import step
from algorithms.estimators.timeline import tokens
from algorithms.turn_table import TurnTable


@compares_attempts
def otb(table: TurnTable, *, zero_tail: bool = True, epsilon: float = 1e-8) -> NDArray[np.float64]:
    """One advantage per token, [M].

    A token that no other attempt has, since its own is the longest, would be compared with itself only. With
    `zero_tail` its baseline is 0, otherwise its advantage is almost 0. A group of one has no baseline.
    """
    size, formula = 1 - 2 * np.exp(table.token_signal("logprob")) + table.token_signal("square_sum"), ""
    if "importance_weight" in table.token_signals:
        size, formula = size * table.token_signals["importance_weight"] ** 2, " * importance_weight**2"
    step("w", f"(1 - 2 * exp(logprob) + square_sum){formula}", size)
    returns = token_returns(table, 1.0, "skip")
    place = _up_to(table, np.ones(len(size))).astype(np.int64) - 1  # of the token in its episode
    group = group_numbers(table)[table.token_rows]
    _, key = np.unique(group * (place.max(initial=0) + 1) + place, return_inverse=True)
    weight = step("W", "w + before(W)", _up_to(table, size))
    baseline = np.bincount(key, returns * weight) / (np.bincount(key, weight) + epsilon)
    attempts = np.bincount(group_numbers(table), table.is_first)[group]
    alone = np.bincount(key)[key] == 1
    without = (attempts == 1) | (alone & zero_tail)
    step("place", "", key, meaning="the tokens at the same place of the attempts at a task")
    step("B", "sum(G * W) / (sum(W) + epsilon)", baseline[key], over="place", epsilon=epsilon)
    step("without", "", without, meaning="whether no other attempt has a token there, so it has no baseline")
    return step("advantage", "G - where(without, 0, B)", returns - np.where(without, 0.0, baseline[key]))


def _up_to(table: TurnTable, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """[M] the sum of `values` [M] over the episode up to each token, including it."""
    rest = tokens(table).accumulate(values, 1.0)
    totals = np.bincount(table.episode_number[table.token_rows], values)
    sums: NDArray[np.float64] = totals[table.episode_number[table.token_rows]] - rest + values
    return sums
