"""NFT's advantages: the success of an attempt minus the success rate of its group.

    A_i = success_i - q,   q: the success rate of the group

Chen et al., *Bridging Supervised Learning and Reinforcement Learning in Math Reasoning*, arXiv 2505.18116. They equal
Dr.GRPO's for rewards of 1 and 0. `algorithms.losses.nft_loss` derives both the success and q from them, which works for
no other rewards. A group of one has nothing to compare and gets 0.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from algorithms.estimators.groups import binary_scores, compares_attempts, group_numbers, relative_values
from algorithms.estimators.steps import Naming
from algorithms.turn_table import TurnTable


@compares_attempts
def nft(table: TurnTable) -> NDArray[np.float64]:
    """One advantage per turn, [N]. Raises `ValueError` for an episode whose return is neither 1 nor 0."""
    scores = binary_scores(
        table,
        "NFT needs",
        "its loss derives the success rate of the group from the advantage, so penalties and algo.kl_in=reward are not "
        "possible either",
    )
    return relative_values(
        scores, group_numbers(table), counted=table.is_first, divide_by_std=False, epsilon=1.0, keep_single=False,
        named=Naming("advantage", "R", counted="first"),
    )  # fmt: skip
