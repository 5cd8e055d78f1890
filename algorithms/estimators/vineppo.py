"""VinePPO: estimate the value of a state by fresh attempts from it.

    A = (rewards of the segment) + V(next segment) - V(segment),  V: signal `mc_value`; 0 after the last turn

A segment starts at each turn whose state was measured; its turns share the advantage. If every state is measured, this
is A_t = r_t + V_{t+1} - V_t. Turns before the first measured state of an episode have the advantage 0.

Paper: Kazemnejad et al., arXiv 2410.01679. If every state is measured, the results equal those of the authors'
`_compute_step_advantages`. The authors whiten the advantages over the tokens of a batch (`whiten`), with the same
formula as `algorithms.estimators.timeline.whiten`.

Published settings: 9 fresh attempts per state, gamma 1, whitened, no critic, clip 0.2, KL 1e-4 in the loss. Left out:
nothing.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from algorithms.estimators import timeline
from algorithms.estimators.groups import reward_name
from algorithms.estimators.steps import step
from algorithms.turn_table import TurnTable


def vineppo(table: TurnTable, *, whiten: bool = False) -> NDArray[np.float64]:
    """One advantage per turn, [N]. Needs the signal `mc_value`, and with `whiten` the count of tokens."""
    advantages = timeline.segment_differences(
        timeline.turns(table),
        table.total_rewards(),
        table.signal("mc_value"),
        reward=reward_name(table),
        value="mc_value",
    )
    if not whiten:
        return step("advantage", "zero(difference)", np.nan_to_num(advantages))
    tokens = np.bincount(table.token_rows, minlength=len(table)) * np.isfinite(advantages)
    step("weight", "tokens * measured(difference)", tokens)
    return timeline.whiten(advantages, tokens, of="difference", weight="weight")
