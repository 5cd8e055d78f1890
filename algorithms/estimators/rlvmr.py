"""RLVMR: compare attempts by their outcome, and turns by the rewards of the reasoning that they begin with.

    A_t = F(R - form_penalty · [no form]) + step_weight · F(p_t)        F(x) = (x - mean) / (std + epsilon)

p_t is the signal `tag_reward`, compared with the turns at the task that have the same `tag`: planning with planning,
and so on. A turn that is alone keeps its reward. Answers that do not have the form (`tag_form`) have no tag.

Paper: Zhang et al., *RLVMR: Reinforcement Learning with Verifiable Meta-Reasoning Rewards*, arXiv 2507.22844. The
results equal the authors' `compute_rlvmr_outcome_advantage` (digitalhuman, `RLVMR/code/rlvmr/core_rlvmr.py`). The paper
compares with all turns of the batch instead, and weighs both parts with 0.5.

Published settings: 16 tasks × 8 attempts, 30 turns, step_weight 1, penalty 0.1 with a success of 10, learning rate
1e-6, KL loss 0.01 (k3), after a warm start of 200 annotated episodes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from algorithms.estimators.groups import (
    compares_attempts,
    episode_advantages,
    episode_returns,
    group_numbers,
    relative_values,
)
from algorithms.estimators.steps import Naming, step
from algorithms.turn_table import TurnTable


@compares_attempts
def rlvmr(
    table: TurnTable, *, step_weight: float = 1.0, normalize_by_std: bool = True, statistics: str = "turns",
    form_penalty: float = 0.01, epsilon: float = 1e-6,
) -> NDArray[np.float64]:  # fmt: skip
    """One advantage per turn, [N]. Needs the signals `tag`, `tag_reward` and `tag_form`.

    `statistics` of the outcomes are over "turns" or "episodes". A group of one attempt keeps its raw score.
    """
    scores = step(
        "score", "R - form_penalty * (1 - tag_form)",
        episode_returns(table) - form_penalty * ~table.signal("tag_form").astype(np.bool_), form_penalty=form_penalty,
    )  # fmt: skip
    outcome = episode_advantages(
        table, scores, statistics=statistics, divide_by_std=normalize_by_std, epsilon=epsilon, result="outcome"
    )
    tags = table.signal("tag")
    kinds = group_numbers(table) * (tags.max(initial=0) + 1) + tags
    _, alike = np.unique(kinds, return_inverse=True)
    step("alike", "", alike, meaning="the turns at the task with the same kind of reasoning")
    reasoning = relative_values(
        table.signal("tag_reward"), alike, divide_by_std=normalize_by_std, epsilon=epsilon, keep_single=True,
        named=Naming("reasoning", "tag_reward", over="alike"),
    )  # fmt: skip
    return step(
        "advantage", "outcome + step_weight * reasoning", outcome + step_weight * reasoning, step_weight=step_weight
    )
