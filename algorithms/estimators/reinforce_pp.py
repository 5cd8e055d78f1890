"""REINFORCE++: returns of tokens, normalised over the whole batch instead of within a group.

    A_t = whiten(G_t),  G_t = r_t + gamma · G_{t+1}             over the sampled tokens of an episode
    A_i = whiten(R_i - mean of its group)                       `reinforce_pp_baseline`

`whiten` takes mean and standard deviation over all tokens of the batch, so long turns weigh more. Paper: Hu et al.,
arXiv 2501.03262. The results equal those of verl's `compute_reinforce_plus_plus_outcome_advantage` and
`…_baseline_…`, and over turns those of verl-agent.

verl's code of 2025 restarts the return at every observation (issue 7278), so only the last turn learns from a reward at
the end: `observations="reset"`. The fix carries the return over an observation without decay: `observations="skip"`.

Published settings: gamma 1; the KL (k1) in the reward, 1e-3 to 1e-2, for the first, and in the loss for the second.
Left out: OpenRLHF's version, which whitens with the population variance.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from algorithms.estimators.groups import (
    compares_attempts,
    counted_name,
    counted_rows,
    episode_scores,
    group_numbers,
    relative_values,
)
from algorithms.estimators.steps import Naming, step
from algorithms.estimators.timeline import last_tokens, token_rewards, tokens, whiten
from algorithms.turn_table import TurnTable
from envs.core import UnknownNameError

OBSERVATIONS = ("skip", "reset")


def reinforce_pp(table: TurnTable, *, gamma: float = 1.0, observations: str = "skip") -> NDArray[np.float64]:
    """One advantage per token, [M]. Raises `UnknownNameError` for other `observations`."""
    return whiten(token_returns(table, gamma, observations), of="G")


def token_returns(table: TurnTable, gamma: float, observations: str) -> NDArray[np.float64]:
    """[M] the discounted sum of rewards from each token on, within its episode ("skip") or its turn ("reset")."""
    if observations not in OBSERVATIONS:
        raise UnknownNameError("observations", observations, OBSERVATIONS)
    decay = np.where(last_tokens(table), 0.0, gamma) if observations == "reset" else gamma
    returns = tokens(table).accumulate(token_rewards(table), decay)
    formula = "r + gamma * next(G)" if observations == "skip" else "r + where(last, 0, gamma * next(G))"
    return step("G", formula, returns, gamma=gamma)


@compares_attempts
def reinforce_pp_baseline(
    table: TurnTable, *, statistics: str = "turns", invalid_penalty: float = 0.01
) -> NDArray[np.float64]:
    """One advantage per turn, [N]; a group of one keeps its raw score before the whitening.

    `statistics` is "turns" (the mean of a group is over its rows) or "episodes" (over its episodes, each by its first
    row). `invalid_penalty` is subtracted from the score of a row whose own action was invalid.
    """
    scores = relative_values(
        episode_scores(table, invalid_penalty),
        group_numbers(table),
        counted=counted_rows(table, statistics),
        divide_by_std=False,
        epsilon=1.0,
        keep_single=True,
        named=Naming("difference", "score", counted=counted_name(statistics)),
    )
    count = np.bincount(table.token_rows, minlength=len(table))
    return whiten(scores, count, of="difference", weight="tokens")
