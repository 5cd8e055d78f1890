"""HICRA: larger advantages for planning tokens.

    A'_t = A + alpha |A|  at planning tokens,   A'_t = A  elsewhere

A is GRPO's advantage. So a plan gets more credit in a success, and less blame in a failure.

After the abstract of Wang et al., *Emergent Hierarchical Reasoning in LLMs through Reinforcement Learning*, arXiv
2509.03646. Its planning tokens are those of strategic grams: sequences of 3 to 5 words that are frequent in many
clusters of answers. How they are mined is left out: `algorithms.signals.phrases` finds those that are given. alpha 0.2
is not confirmed.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from algorithms.estimators.groups import compares_attempts, episode_advantages, episode_scores
from algorithms.estimators.steps import step
from algorithms.turn_table import TurnTable


@compares_attempts
def hicra(
    table: TurnTable, *, alpha: float = 0.2, normalize_by_std: bool = True, statistics: str = "turns",
    invalid_penalty: float = 0.01, epsilon: float = 1e-6,
) -> NDArray[np.float64]:  # fmt: skip
    """One advantage per token, [M]. Needs the token signal `planning`; the other parameters are `grpo`'s."""
    advantages = episode_advantages(
        table, episode_scores(table, invalid_penalty), statistics=statistics, divide_by_std=normalize_by_std,
        epsilon=epsilon, result="of_episode",
    )[table.token_rows]  # fmt: skip
    more = alpha * np.abs(advantages) * table.token_signal("planning")
    return step("advantage", "of_episode + alpha * abs(of_episode) * planning", advantages + more, alpha=alpha)
