"""Tree-GRPO: compare the attempts at a task, then those of the same tree.

    A_i = F(z_i) within the tree,  z_i = F(R_i) within the group,  F(x) = (x - mean(x)) / (std(x) + epsilon), ddof 1

The signal `tree` identifies the tree of an episode, numbered over all tasks. A tree with a single branch keeps z, a
group with a single attempt its raw score.

Paper: Ji et al., *Tree Search for LLM Agent Reinforcement Learning*, arXiv 2509.21240. The paper adds the two
comparisons (`combine="add"`, each of the rewards). The released code composes them (`combine="compose"`), and the
results equal it.

A turn that n attempts share occurs in n rows with n advantages, and is trained n times, as in the authors' code. With
`shared_turns="once"` it is trained with their mean.

Published settings: epsilon 1e-6, trees of turns that are expanded at random nodes for some rounds
(`algorithms.tree_expansion`). Left out: nothing.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from algorithms.estimators.groups import (
    compares_attempts,
    count_shared,
    episode_returns,
    group_numbers,
    relative_values,
)
from algorithms.estimators.steps import Naming, step
from algorithms.turn_table import TurnTable
from envs.core import UnknownNameError

COMBINATIONS = ("compose", "add")


@compares_attempts
def tree_grpo(
    table: TurnTable, *, combine: str = "compose", epsilon: float = 1e-6, shared_turns: str = "each"
) -> NDArray[np.float64]:
    """One advantage per turn, [N]. Needs the signal `tree`, and with `shared_turns="once"` also `node`.

    Raises `UnknownNameError` for another `combine`.
    """
    if combine not in COMBINATIONS:
        raise UnknownNameError("combine", combine, COMBINATIONS)
    trees = np.unique(table.signal("tree"), return_inverse=True)[1]

    def compare(
        values: NDArray[np.float64], numbers: NDArray[np.int64], keep_single: bool, named: Naming
    ) -> NDArray[np.float64]:
        return relative_values(
            values, numbers, counted=table.is_first, divide_by_std=True, epsilon=epsilon, keep_single=keep_single,
            named=named._replace(counted="first"),
        )  # fmt: skip

    scores = episode_returns(table)
    across = compare(scores, group_numbers(table), True, Naming("in_task", "R"))
    if combine == "compose":
        both = compare(across, trees, True, Naming("in_tree", "in_task", "tree"))
    else:
        both = across + compare(scores, trees, False, Naming("in_tree", "R", "tree", prefix="R_tree"))
        step("both", "in_task + in_tree", both)
    return count_shared(table, both, shared_turns, of="in_tree" if combine == "compose" else "both")
