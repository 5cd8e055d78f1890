"""IGPO: reward a turn by how much likelier it made the right answer, and the last turn by the answer's score.

    A_t = z_t + gamma · A_{t+1}
    z   = (r - mean(r)) / (std(r) + epsilon)    std = sqrt(population variance + 1e-8)
    r_t = v_{t+1} - v_t                         for all turns but the last, which has the episode's reward
    v_t = l_t ("log_prob_diff") or exp(l_t) ("prob_diff"),  l_t: signal `answer_logprob`

The statistics of a group are over outcomes and gains separately (`normalization="separate"`) or together ("joint"). The
gains of an episode add up to v_T - v_1.

Paper: Wang et al., *Information Gain-based Policy Optimization*, arXiv 2510.14967 (ICLR 2026), which uses the gain of
probabilities. The results equal those of the authors' code of February 2026, which finds the ends of turns where z is
not 0: a turn whose z is exactly 0 becomes part of the next one and gets its advantage without the discount
(`turn_ends="nonzero"`). Here every turn counts (`turn_ends="explicit"`). A turn without `answer_logprob` (NaN, before
or after it) has no reward, and in both cases gets the advantage of the next turn that has one.

Published settings: log_prob_diff, separate, gamma 1, 16 attempts, 10 turns, learning rate 1e-6, KL loss 0.001 (k3),
an outcome in [0, 1] or -2 for a malformed answer. Left out: weights that shift from gains to outcomes during training;
`outcome_weight` and `gain_weight` set them by hand. They apply before the normalisation, which undoes them unless it is
joint or without the std.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from algorithms.estimators.groups import compares_attempts, episode_returns, group_numbers, relative_values
from algorithms.estimators.steps import Naming, step
from algorithms.estimators.timeline import turns
from algorithms.turn_table import TurnTable
from envs.core import UnknownNameError

GAINS = ("log_prob_diff", "prob_diff")
NORMALIZATIONS = ("separate", "joint")
TURN_ENDS = ("explicit", "nonzero")
VARIANCE_EPSILON = 1e-8
STORED_ZERO = 1e-10  # the authors store a gain of 0 as this, since 0 would not count as a reward


@compares_attempts
def igpo(
    table: TurnTable,
    *,
    gamma: float = 1.0,
    gain: str = "log_prob_diff",
    normalization: str = "separate",
    normalize_by_std: bool = True,
    turn_ends: str = "explicit",
    outcome_weight: float = 1.0,
    gain_weight: float = 1.0,
    epsilon: float = 1e-6,
) -> NDArray[np.float64]:
    """One advantage per turn, [N]. Needs the signal `answer_logprob`.

    Raises `UnknownNameError` for another `gain`, `normalization` or `turn_ends`.
    """
    if normalization not in NORMALIZATIONS:
        raise UnknownNameError("normalization", normalization, NORMALIZATIONS)
    if turn_ends not in TURN_ENDS:
        raise UnknownNameError("turn_ends", turn_ends, TURN_ENDS)
    line = turns(table)
    last = line.last()
    rewards = np.where(last, outcome_weight * episode_returns(table), gain_weight * answer_gains(table, gain))
    formula = "where(end, outcome_weight * R, gain_weight * gain)"
    step("gain_or_outcome", formula, rewards, gain_weight=gain_weight, outcome_weight=outcome_weight)
    as_authors = turn_ends == "nonzero"
    if as_authors:
        rewards = np.where(~last & (rewards == 0.0), gain_weight * STORED_ZERO, rewards)
        step("stored", "", rewards, meaning="gains of exactly 0 are stored as a tiny number")
    ends = np.isfinite(rewards) & (last | (rewards != 0.0) | (not as_authors))
    pools = group_numbers(table) * 2 + (last & (normalization == "separate"))
    z = np.zeros(len(table))
    step("pool", "", np.where(ends, pools, np.nan), meaning="gains, or outcomes, of the attempts at a task")
    z[ends] = relative_values(
        rewards[ends],
        np.unique(pools[ends], return_inverse=True)[1],
        divide_by_std=normalize_by_std,
        epsilon=epsilon,
        keep_single=False,
        ddof=0,
        variance_epsilon=VARIANCE_EPSILON,
        shift=not as_authors,  # there, the rounding of a mean of equal gains decides where a turn ends
        named=Naming("z", "stored" if as_authors else "gain_or_outcome", "pool", at=(np.flatnonzero(ends), len(table))),
    )
    if as_authors:
        ends = z != 0.0
    advantages = line.accumulate(z, np.where(ends, gamma, 1.0))
    step("ends", "abs(zero(z)) > 0" if as_authors else "measured(z)", ends)
    return step("advantage", "zero(z) + where(ends, gamma, 1) * next(advantage)", advantages, gamma=gamma)


def answer_gains(table: TurnTable, gain: str) -> NDArray[np.float64]:
    """[N] how much the belief in the right answer grew during each turn; NaN for the last turn."""
    if gain not in GAINS:
        raise UnknownNameError("gain", gain, GAINS)
    belief = table.signal("answer_logprob")
    values = step("belief", "exp(answer_logprob)", np.exp(belief)) if gain == "prob_diff" else belief
    gains: NDArray[np.float64] = turns(table).following(values, after=np.nan) - values
    before = "belief" if gain == "prob_diff" else "answer_logprob"
    return step("gain", f"next({before}, not_measured) - {before}", gains)
