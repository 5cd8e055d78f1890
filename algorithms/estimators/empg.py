"""EMPG: learn more from turns that the policy was sure of, and reward turns that lead to such turns.

    A'_t = A · g(h_t) + clarity_weight · f(h_{t+1}),  less the mean of A' over all turns of the batch
    g(h) = exp(-scale · h) / mean(exp(-scale · h)),  f(h) = exp(-clarity_scale · h)
    h    = (H - min(H)) / (max(H) - min(H) + 1e-8)   over the batch,  H: signal `entropy`

A is GRPO's advantage. The last turn of an episode has no bonus.

Paper: Wang et al., *Harnessing Uncertainty: Entropy-Modulated Policy Gradients*, arXiv 2509.09265. The formula is the
authors' listing, as ARLArena runs it on turns; the listing also takes the mean over turns.

Published settings: both scales 1, clarity weight 0.05 (0.1 for search). Left out: nothing.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from algorithms.estimators.groups import compares_attempts
from algorithms.estimators.grpo import grpo
from algorithms.estimators.timeline import turns
from algorithms.turn_table import TurnTable


@compares_attempts
def empg(
    table: TurnTable,
    *,
    scale: float = 1.0,
    clarity_scale: float = 1.0,
    clarity_weight: float = 0.05,
    statistics: str = "turns",
    invalid_penalty: float = 0.01,
    epsilon: float = 1e-6,
) -> NDArray[np.float64]:
    """One advantage per turn, [N]. Needs the signal `entropy`; for the last three parameters see `grpo`."""
    entropy = table.signal("entropy").astype(np.float64)
    if not len(entropy):
        return np.zeros(0)
    h = (entropy - entropy.min()) / (entropy.max() - entropy.min() + 1e-8)
    certainty = np.exp(-scale * h)
    clarity = turns(table).following(np.exp(-clarity_scale * h))
    advantages = grpo(table, statistics=statistics, invalid_penalty=invalid_penalty, epsilon=epsilon)
    modulated = advantages * certainty / (certainty.mean() + 1e-8) + clarity_weight * clarity
    centred: NDArray[np.float64] = modulated - modulated.mean()
    return centred
