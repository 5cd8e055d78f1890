"""SPO: give credit to segments between two value measurements, along one attempt or in a tree of attempts.

    A = (rewards within the segment) + V(next segment) - V(segment)      `spo_chain`, V: token signal `mc_value`
    A = V(node) - V(parent)                                              `spo_tree`, signal `node`
    A = (V(node) - V(parent)) / (std of the parent's children + epsilon)    with `normalize_by_std`

In a chain a segment starts where `mc_value` is measured. After the last segment the value is 0, and tokens before the
first one of an episode have the advantage 0. In a tree, the value of a leaf is the reward of its episode, and that of
an inner node the mean of its children, each counted once however many attempts pass through it. The root of a task is
the parent of first turns.

With `whiten`, advantages are whitened over the trained tokens, those sampled below the probability `probability_mask`.
In a tree, turns whose advantage is 0 are left out and keep it.

Paper: Guo et al., *Segment Policy Optimization*, arXiv 2505.23564. The authors cut a chain every 5 tokens of low
probability, train only tokens below a probability of 0.9 (`algo.probability_mask`), and grow trees of 6, 6 and 6
branches. They use the population std of a node's children with epsilon 1e-8, and whiten in both cases.

A turn that n attempts share occurs in n rows here, with the same advantage in each. The authors train it once, so its
advantage is divided by n, unless `shared_turns="each"`. Left out: the replay of edges; cutting within a turn, since
attempts branch at turns; and that the authors also drop edges of advantage 0 from the divisor of the loss.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from algorithms.estimators import timeline
from algorithms.estimators.groups import RESOLUTION, compares_attempts, count_shared, episode_returns, group_numbers
from algorithms.estimators.steps import explaining, step
from algorithms.turn_table import TurnTable

ROUNDING = 1e-4  # allowed difference between the rewards of a shared turn: a KL penalty is measured in each row


def spo_chain(table: TurnTable, *, whiten: bool = False, probability_mask: float | None = None) -> NDArray[np.float64]:
    """One advantage per token, [M]. Needs the token signal `mc_value`, and `logprob` with a `probability_mask`."""
    rewards, values = timeline.token_rewards(table), table.token_signal("mc_value")
    advantages = timeline.segment_differences(timeline.tokens(table), rewards, values, reward="r", value="mc_value")
    if not whiten:
        return step("advantage", "zero(difference)", np.nan_to_num(advantages))
    weights = timeline.trained_tokens(table, probability_mask) * np.isfinite(advantages)
    step("weight", "trained * measured(difference)", weights)
    return timeline.whiten(advantages, weights, of="difference", weight="weight")


@compares_attempts
def spo_tree(
    table: TurnTable,
    *,
    normalize_by_std: bool = False,
    epsilon: float = 1e-8,
    shared_turns: str = "once",
    whiten: bool = False,
    probability_mask: float | None = None,
) -> NDArray[np.float64]:
    """One advantage per turn, [N]. Needs the signal `node`: its numbers are unique over all tasks.

    For `shared_turns` see `algorithms.estimators.groups.count_shared`. `whiten` needs the count of tokens, and with a
    `probability_mask` their token signal `logprob`.

    Raises `ValueError` if attempts that share a node have different turns before it, or different rewards for it.
    """
    line, rows = timeline.turns(table), np.arange(len(table))
    nodes, first, node = np.unique(table.signal("node"), return_index=True, return_inverse=True)
    roots = group_numbers(table)
    previous = np.full(len(table), -1)
    inner = np.flatnonzero(~line.closes)
    previous[line.order[inner + 1]] = line.order[inner]
    parent_of_row = np.where(previous >= 0, node[previous], len(nodes) + roots)  # [N] roots come after the nodes
    wrong = rows[parent_of_row != parent_of_row[first][node]]
    if len(wrong):
        raise ValueError(f"row {wrong[0]}: other attempts reach node {nodes[node[wrong[0]]]} from another turn")
    rewards = table.total_rewards()
    same = rewards[first][node]
    wrong = rows[np.abs(rewards - same) > ROUNDING * (1 + np.abs(same))]
    if len(wrong):
        row = wrong[0]
        raise ValueError(
            f"row {row}: node {nodes[node[row]]} has the reward {rewards[row]:g}, and {same[row]:g} in another row"
        )
    parent = parent_of_row[first]  # [nodes]
    depth = line.position()[first]
    values = np.zeros(len(nodes) + roots.max(initial=-1) + 1)
    children = np.bincount(parent, minlength=len(values))
    leaves = children[: len(nodes)] == 0
    values[: len(nodes)][leaves] = episode_returns(table)[first][leaves]
    for level in range(depth.max(initial=-1), -1, -1):
        members = np.flatnonzero(depth == level)
        np.add.at(values, parent[members], values[members] / children[parent[members]])
    difference = values[: len(nodes)] - values[parent]
    if explaining():
        step("parent", "", parent[node], meaning="turns that follow the same turn, or that begin attempts at a task")
        once = np.zeros(len(table), dtype=np.bool_)
        once[first] = True
        step("child", "", once, meaning="one turn of each node")
        step("V_parent", "mean(V)", values[parent][node], over="parent", counted="child")
        step("V", "where(end, R, next(V_parent))", values[node])
        step("difference", "V - V_parent", difference[node])
    raw = "difference"
    if normalize_by_std:
        variance = np.bincount(parent, weights=difference**2, minlength=len(values)) / np.maximum(children, 1)
        std, raw = np.sqrt(variance)[parent], "scaled"
        difference = difference / (std + epsilon)
        step("difference_std", "sqrt(mean(difference**2))", std[node], over="parent", counted="child")
        step(raw, "difference / (difference_std + epsilon)", difference[node], epsilon=epsilon)
    advantages = difference[node]
    if whiten:
        trained = timeline.trained_tokens(table, probability_mask)
        tokens = np.bincount(table.token_rows, weights=trained, minlength=len(table)).astype(np.float64)
        differs = ~np.isclose(values[: len(nodes)], values[parent], rtol=RESOLUTION, atol=1e-12)  # but for rounding
        step("tokens_trained", "tokens_sum(trained)", tokens)
        step("differs", "", differs[node], meaning="whether V and V_parent differ by more than rounding")
        weights = count_shared(table, tokens, shared_turns, result="tokens_once", of="tokens_trained") * differs[node]
        step("weight", "tokens_once * differs", weights)
        advantages = timeline.whiten(advantages, weights, result="white", of=raw, weight="weight")
        raw = "white"
    return count_shared(table, advantages, shared_turns, of=raw)
