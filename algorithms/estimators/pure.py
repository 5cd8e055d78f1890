"""PURE: an attempt is as good as its worst turn.

    A_t = sum of (p_k - b · tokens_k) over the turns k >= t, + outcome_weight · (R - mean of the other R)
    p_k = w_k · r_k,  w = softmax(-r / temperature) over the turns of the episode,  r: signal `prm`
    b   = mean over the other attempts of (sum of p / tokens)

With a small temperature nearly all weight falls on the turn with the lowest r, so that the sum of p is nearly the
minimum of r. r is p(good) - p(bad) of a process reward model, in [-1, 1]. A group of one attempt has no baselines.

Paper: Cheng et al., *Stop Summation: Min-Form Credit Assignment*, arXiv 2504.15275. The weights are those of the
authors' `turn_process_reward_logits_to_reward`; the baseline, per token, is the one their repository recommends over
one per step, which favours few steps (issue 2), and is written here after its description.

Published settings: temperature 0.1, outcome 0 or -1 beside the process rewards. Left out: a further whitening.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from algorithms.estimators.groups import group_numbers, leave_one_out
from algorithms.estimators.timeline import turns
from algorithms.turn_table import TurnTable


def pure(table: TurnTable, *, temperature: float = 0.1, outcome_weight: float = 1.0) -> NDArray[np.float64]:
    """One advantage per turn, [N]. Needs the signal `prm` and the count of tokens."""
    groups = group_numbers(table)
    episodes = np.unique(table.episode, return_inverse=True)[1]
    count = np.bincount(table.token_rows, minlength=len(table))
    weighted = min_form_rewards(table, temperature)
    per_token = (np.bincount(episodes, weights=weighted) / np.maximum(np.bincount(episodes, weights=count), 1))[
        episodes
    ]
    # What the mean of the others is: the attempt's own value less its difference from them.
    alone = np.bincount(groups, weights=table.opens)[groups] == 1
    baseline = per_token - leave_one_out(per_token, groups, table.opens, keep_single=True)
    process = turns(table).accumulate(weighted - np.where(alone, 0.0, baseline) * count, 1.0)
    return process + outcome_weight * leave_one_out(table.episode_rewards(), groups, table.opens, keep_single=True)


def min_form_rewards(table: TurnTable, temperature: float | None) -> NDArray[np.float64]:
    """[N] softmax(-r / temperature) · r within each episode; without a temperature r / turns, whose sum is the mean."""
    scores = table.signal("prm").astype(np.float64)
    lowest = np.full(len(table), np.inf)
    np.minimum.at(lowest, table.episode_number, scores)
    lowest = lowest[table.episode_number]
    weights = np.ones(len(table)) if temperature is None else np.exp((lowest - scores) / temperature)
    return weights / table.episode_sums(weights) * scores
