"""RAFT: imitate the attempts with a positive return.

    A_i = max(R_i, 0)

With `reinforce_loss` this is fine-tuning on the policy's own successes (RAFT, Dong et al., arXiv 2304.06767); with
`clip_loss` it is RAFT++ (Xiong et al., *A Minimalist Approach to LLM Reasoning*, arXiv 2504.11343), as in its
repository Minimal-RL. Nothing is compared within a group, and failures teach nothing.

Published settings (RAFT++): clip 0.2, no KL. Left out: keeping only the best attempt at each task, as the first RAFT
does.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from algorithms.estimators.groups import episode_returns
from algorithms.estimators.steps import step
from algorithms.turn_table import TurnTable


def raft(table: TurnTable) -> NDArray[np.float64]:
    """One advantage per turn, [N]: the return of its episode, or 0 if the return is negative."""
    return step("advantage", "max(R, 0)", np.maximum(episode_returns(table), 0.0))
