"""PSR, NSR and W-REINFORCE: learn only from successes, only from failures, or from both with unequal weights.

    A_t = G_t                                              `learn_from="positive"`: 1 for a success, 0 for a failure
    A_t = G_t - 1                                          `learn_from="negative"`: 0 and -1
    A_t = positive_weight · G_t, or G_t - 1 for a failure  `learn_from="weighted"`: positive_weight and -1
    G_t = r_t + gamma · G_{t+1}                            over the sampled tokens of an episode

Rewards are 1 for a success and 0 for a failure; nothing is normalised. Paper: Zhu et al., *The Surprising
Effectiveness of Negative Reinforcement*, arXiv 2506.01347 (NeurIPS 2025). The results equal those of the authors'
`compute_psr_nsr_outcome_advantage`. As in `reinforce_pp`, `observations="reset"` is their recursion, which restarts at
every observation.

Published settings: gamma 1, positive weight 0.1. The authors' trainer drops the attempts that do not teach anything
before the loss counts its tokens; use `algo.drop_zero_episodes` for this.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from algorithms.estimators.groups import binary_scores
from algorithms.estimators.reinforce_pp import token_returns
from algorithms.estimators.steps import step
from algorithms.turn_table import TurnTable
from envs.core import UnknownNameError

CHOICES = ("positive", "negative", "weighted")


def psr_nsr(
    table: TurnTable,
    *,
    learn_from: str = "weighted",
    positive_weight: float = 0.1,
    gamma: float = 1.0,
    observations: str = "skip",
) -> NDArray[np.float64]:
    """One advantage per token, [M].

    Raises `ValueError` for an episode whose rewards do not add up to 1 or 0.
    """
    if learn_from not in CHOICES:
        raise UnknownNameError("learn_from", learn_from, CHOICES)
    scores = binary_scores(
        table, "PSR and NSR need", "with a reward of -1 for a failure, PSR would learn from it, and NSR twice as much"
    )
    returns = token_returns(table, gamma, observations)
    if learn_from == "positive":
        return step("advantage", "G", returns)
    if learn_from == "negative":
        return step("advantage", "G - 1", returns - 1.0)
    weighted = np.where((scores == 1.0)[table.token_rows], positive_weight * returns, returns - 1.0)
    return step("advantage", "where(R == 1, positive_weight * G, G - 1)", weighted, positive_weight=positive_weight)
