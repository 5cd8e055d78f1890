"""On-policy distillation: a token is as good as the teacher finds it likelier than the policy does.

    A_t = token_reward_t + outcome_weight · A_GRPO     token_reward_t = -(log pi_t - log teacher_t)

The policy plays, and the teacher only reads what it wrote, so it learns in the states that it meets itself. The token
reward is the KL to the reference in the reward (`algo.kl_in=reward`, `algo.kl_estimator=k1`, `algo.kl_coef=1`), and
the reference is the teacher (`algo.reference=MODEL`). Later tokens do not change the advantage of an earlier one. With
`outcome_weight` GRPO's advantage of the environment's rewards is added; 0: the teacher alone.

As in prime-rl, ROLL and slime.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from algorithms.estimators.groups import episode_advantages, episode_scores
from algorithms.estimators.steps import step
from algorithms.turn_table import TurnTable


def opd(
    table: TurnTable, *, outcome_weight: float = 0.0, normalize_by_std: bool = True, statistics: str = "turns"
) -> NDArray[np.float64]:
    """One advantage per token, [M]. Needs the token signal `token_reward`. The last two settings are GRPO's."""
    taught = table.token_signal("token_reward").astype(np.float64)
    if not outcome_weight:
        return step("advantage", "token_reward", taught)
    others = {name: values for name, values in table.token_signals.items() if name != "token_reward"}
    alone = replace(table, token_signals=others)
    of_outcome = episode_advantages(
        alone, episode_scores(alone, 0.0), statistics=statistics, divide_by_std=normalize_by_std, epsilon=1e-6,
        result="of_outcome",
    )  # fmt: skip
    advantages = taught + outcome_weight * table.per_token(of_outcome)
    formula = "token_reward + outcome_weight * of_outcome"
    return step("advantage", formula, advantages, outcome_weight=outcome_weight)
