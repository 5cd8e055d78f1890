"""ResRL: GRPO's advantages, with small weights for successes and for tokens of failures that resemble successes.

    A_t = positive_weight · A     in episodes with a return above 0
    A_t = weight_t · A            in all others,   weight: token signal `residual_weight`

A is GRPO's advantage. A token of a failure whose hidden state lies in the space of the task's successes is probably not
what went wrong, so it is punished less: see `algorithms.signals.residual`.

Lin et al., *ResRL: Boosting LLM Reasoning via Negative Sample Projection Residual Reinforcement Learning* (ICML 2026).
Published settings: positive weight 0.1, rank 64, quantiles 0.2 and 0.8, smallest weight 0.1, no KL, learning rate 1e-6.
Left out: rewards that fall with the length of an answer. The authors measure the weights again in each optimiser step;
here they are measured once per batch.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from algorithms.estimators.groups import compares_attempts, episode_advantages, episode_returns, episode_scores
from algorithms.estimators.steps import step
from algorithms.turn_table import TurnTable


@compares_attempts
def resrl(
    table: TurnTable,
    *,
    positive_weight: float = 0.1,
    normalize_by_std: bool = True,
    statistics: str = "turns",
    invalid_penalty: float = 0.01,
    epsilon: float = 1e-6,
) -> NDArray[np.float64]:
    """One advantage per token, [M]. Needs the token signal `residual_weight`; the other parameters are `grpo`'s."""
    advantages = episode_advantages(
        table, episode_scores(table, invalid_penalty), statistics=statistics, divide_by_std=normalize_by_std,
        epsilon=epsilon, result="of_episode",
    )  # fmt: skip
    rows, won = table.token_rows, episode_returns(table) > 0
    weights = np.where(won[rows], positive_weight, table.token_signal("residual_weight"))
    step("weight", "where(R > 0, positive_weight, residual_weight)", weights, positive_weight=positive_weight)
    return step("advantage", "of_episode * weight", advantages[rows] * weights)
