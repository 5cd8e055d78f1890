"""Fine-grained RLHF: PPO over tokens, with rewards for single turns beside the environment's.

    r_t = outcome_weight · reward + turn_weight · turn_reward    at the last token of each turn,  + token_reward
    A   = whiten(delta_t + gamma · lam · A_{t+1}),   see `algorithms.estimators.gae`

`turn_reward` is the signal of a rule for turns; a sum of several rules, each with its weight, is a reward of one.

Papers: Wu et al., *Fine-Grained Human Feedback Gives Better Rewards for Language Model Training*, arXiv 2306.01693,
whose rewards are those of models for sentences (weights by hand, gamma 1, lam 0.95, KL in the reward); MT-PPO is the
same with rewards of rules for turns (Zeng et al., arXiv 2505.11821). Left out: models that give the rewards.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from algorithms.estimators.gae import token_gae
from algorithms.estimators.steps import step
from algorithms.estimators.timeline import last_tokens
from algorithms.turn_table import Estimate, TurnTable


def fine_grained_gae(
    table: TurnTable, *, outcome_weight: float = 1.0, turn_weight: float = 1.0, gamma: float = 1.0, lam: float = 0.95
) -> Estimate:
    """One advantage and one return per token, [M]. Needs the signal `turn_reward` and the token signal `value`."""
    earned = outcome_weight * table.reward + turn_weight * table.signal("turn_reward")
    formula = "outcome_weight * reward + turn_weight * turn_reward"
    step("earned", formula, earned, outcome_weight=outcome_weight, turn_weight=turn_weight)
    return earned_gae(table, earned, gamma=gamma, lam=lam)


def earned_gae(table: TurnTable, earned: NDArray[np.float64], *, gamma: float, lam: float) -> Estimate:
    """`token_gae` with `earned` [N], the step of this name, as the rewards of the turns."""
    rewarded, last = replace(table, reward=earned), last_tokens(table)
    paid = table.token_signals.get("token_reward", np.zeros(len(last)))
    formula = "where(last, earned, 0)" + " + token_reward" * ("token_reward" in table.token_signals)
    step("r", formula, np.where(last, earned[table.token_rows], 0.0) + paid)  # before `token_rewards` names it
    return token_gae(rewarded, gamma=gamma, lam=lam)
