"""SPA-RL: PPO over tokens, with each turn's part of the return in place of the reward at the end.

    r_t = progress_weight · progress + grounding_weight · [admissible]   at the last token of each turn, + token_reward
    A   = whiten(delta_t + gamma · lam · A_{t+1}),   see `algorithms.estimators.gae`

`progress` is the signal of a model whose sum over an attempt is fitted to its return. A turn is admissible if the
environment could play its action; the last turn of an attempt counts as admissible.

Paper: Wang et al., *SPA-RL: Reinforcing LLM Agents via Stepwise Progress Attribution*, arXiv 2505.20732. Published
settings: weights 1 and 0.5. In the authors' code a turn is admissible if the next observation is not "Nothing happens",
and the released preparation script overwrites the progress by the difference from the mean of other attempts; the first
is ALFWorld's, the second is left out.
"""

from __future__ import annotations

import numpy as np

from algorithms.estimators.fine_grained import earned_gae
from algorithms.estimators.steps import step
from algorithms.estimators.timeline import turns
from algorithms.turn_table import Estimate, TurnTable


def spa_rl(
    table: TurnTable, *, progress_weight: float = 1.0, grounding_weight: float = 0.5, gamma: float = 1.0,
    lam: float = 0.95,
) -> Estimate:  # fmt: skip
    """One advantage and one return per token, [M]. Needs the signal `progress` and the token signal `value`."""
    grounded = (table.valid | turns(table).last()).astype(np.float64)
    step("grounded", "where(end, 1, 1 - invalid)", grounded)
    earned = progress_weight * table.signal("progress") + grounding_weight * grounded
    formula = "progress_weight * progress + grounding_weight * grounded"
    step("earned", formula, earned, progress_weight=progress_weight, grounding_weight=grounding_weight)
    return earned_gae(table, earned, gamma=gamma, lam=lam)
