"""EMPG: larger advantages for turns of low entropy, and a bonus for turns that lead to turns of low entropy.

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

from algorithms.estimators.groups import compares_attempts, episode_advantages, episode_scores
from algorithms.estimators.steps import step
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
    low, high = entropy.min(), entropy.max()
    step("entropy_low", "lowest(entropy)", np.full(len(entropy), low), over="batch")
    step("entropy_high", "highest(entropy)", np.full(len(entropy), high), over="batch")
    h = step(
        "h", "(entropy - entropy_low) / (entropy_high - entropy_low + 1e-8)", (entropy - low) / (high - low + 1e-8)
    )
    certainty = step("certainty", "exp(-scale * h)", np.exp(-scale * h), scale=scale)
    usual = certainty.mean()
    step("certainty_mean", "mean(certainty)", np.full(len(h), usual), over="batch")
    clarity = turns(table).following(np.exp(-clarity_scale * h))
    step("sure", "exp(-clarity_scale * h)", np.exp(-clarity_scale * h), clarity_scale=clarity_scale)
    step("clarity", "next(sure)", clarity)
    advantages = episode_advantages(
        table, episode_scores(table, invalid_penalty), statistics=statistics, divide_by_std=True, epsilon=epsilon,
        result="of_episode",
    )  # fmt: skip
    modulated = advantages * certainty / (usual + 1e-8) + clarity_weight * clarity
    formula = "of_episode * certainty / (certainty_mean + 1e-8) + clarity_weight * clarity"
    step("modulated", formula, modulated, clarity_weight=clarity_weight)
    step("modulated_mean", "mean(modulated)", np.full(len(h), modulated.mean()), over="batch")
    return step("advantage", "modulated - modulated_mean", modulated - modulated.mean())
