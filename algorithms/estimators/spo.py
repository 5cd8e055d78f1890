"""SPO: credit to segments between two measurements of the value, along one attempt or in a tree of attempts.

    A = (rewards within the segment) + V(next segment) - V(segment)      `spo_chain`, V: token signal `mc_value`
    A = V(node) - V(parent)                                              `spo_tree`, signal `node`
    A = (V(node) - V(parent)) / (std of the parent's children + epsilon)    with `normalize_by_std`

In a chain a segment starts where `mc_value` is measured, which has to be so at the first token of every episode; after
the last one the value is 0. In a tree a leaf is worth the reward of its episode, and an inner node the mean of its
children, each counted once however many attempts pass through it; the root of a task is the parent of first turns.

Paper: Guo et al., *Segment Policy Optimization*, arXiv 2505.23564. The authors cut a chain every 5 tokens of low
probability, train only tokens below a probability of 0.9 (`algo.probability_mask`), and grow trees of 6, 6 and 6
branches. The std of a node's children is that of the population, epsilon 1e-8.

A turn that n attempts share stands in n rows here and has the same advantage in each; the authors train it once, so
that its advantage is divided by n; with `shared_turns="each"` it is not. Left out: the replay of edges, and cutting
within a turn, since attempts go on from turns.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from algorithms.estimators.groups import count_shared, group_numbers
from algorithms.estimators.timeline import token_rewards, tokens, turns
from algorithms.turn_table import TurnTable

ROUNDING = 1e-4  # what a shared turn was paid may differ by so much: a KL penalty is measured in each row


def spo_chain(table: TurnTable) -> NDArray[np.float64]:
    """One advantage per token, [M]. Needs the token signal `mc_value`.

    Raises `ValueError` for an episode whose first token was not measured.
    """
    line, measured = tokens(table), table.token_signal("mc_value")
    starts = np.isfinite(measured)
    first = line.order[np.flatnonzero(np.append(True, line.closes[:-1]))] if len(measured) else line.order
    missing = first[~starts[first]]
    if len(missing):
        episode = table.episode[table.token_rows[missing[0]]]
        raise ValueError(f"episode {episode}: no mc_value at its first token, where its first segment starts")
    # From each token on: the rewards up to the next segment and that one's value, which cuts the sum off.
    next_starts = line.following(starts.astype(np.float64), after=1.0) == 1.0
    next_value = np.where(next_starts, line.following(np.nan_to_num(measured)), 0.0)
    ahead = line.accumulate(token_rewards(table) + next_value, np.where(next_starts, 0.0, 1.0))
    # Every token of a segment has the advantage of its first one: copied forward in time.
    segment = np.cumsum(starts[line.order]) - 1
    advantages = np.empty(len(measured))
    at = line.order[starts[line.order]]
    advantages[line.order] = (ahead[at] - measured[at])[segment]
    return advantages


def spo_tree(
    table: TurnTable, *, normalize_by_std: bool = False, epsilon: float = 1e-8, shared_turns: str = "once"
) -> NDArray[np.float64]:
    """One advantage per turn, [N]. Needs the signal `node`: its numbers are unique over all tasks.

    `shared_turns` is that of `algorithms.estimators.groups.count_shared`.

    Raises `ValueError` where the attempts that share a node do not share the turn before it, or were not paid the same
    for it.
    """
    line, rows = turns(table), np.arange(len(table))
    nodes, first, node = np.unique(table.signal("node"), return_index=True, return_inverse=True)
    roots = group_numbers(table)
    previous = np.full(len(table), -1)
    inner = np.flatnonzero(~line.closes)
    previous[line.order[inner + 1]] = line.order[inner]
    parent_of_row = np.where(previous >= 0, node[previous], len(nodes) + roots)  # [N] roots come after the nodes
    wrong = rows[parent_of_row != parent_of_row[first][node]]
    if len(wrong):
        raise ValueError(f"row {wrong[0]}: other attempts reach node {nodes[node[wrong[0]]]} from another turn")
    paid = table.paid()
    same = paid[first][node]
    wrong = rows[np.abs(paid - same) > ROUNDING * (1 + np.abs(same))]
    if len(wrong):
        row = wrong[0]
        raise ValueError(f"row {row}: node {nodes[node[row]]} was paid {paid[row]:g}, and {same[row]:g} in another row")
    parent = parent_of_row[first]  # [nodes]
    depth = line.position()[first]
    values = np.zeros(len(nodes) + roots.max(initial=-1) + 1)
    children = np.bincount(parent, minlength=len(values))
    leaves = children[: len(nodes)] == 0
    values[: len(nodes)][leaves] = table.episode_rewards()[first][leaves]
    for level in range(depth.max(initial=-1), -1, -1):
        members = np.flatnonzero(depth == level)
        np.add.at(values, parent[members], values[members] / children[parent[members]])
    difference = values[: len(nodes)] - values[parent]
    if normalize_by_std:
        variance = np.bincount(parent, weights=difference**2, minlength=len(values)) / np.maximum(children, 1)
        difference = difference / (np.sqrt(variance)[parent] + epsilon)
    return count_shared(table, difference[node], shared_turns)
