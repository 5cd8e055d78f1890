"""HGPO: compare turns in the same state; the longer their histories agree, the larger is the weight.

    A_i   = sum over k of w_k · a_k,  w_k = (k + 1)^alpha / (sum of them + epsilon)
    a_k   = F(G_i - c·[invalid_i])   over the turns of the same task whose last k states are equal, k = 1 … history + 1
    a_0   = F(R_i - c·[invalid_i])   over the attempts at the same task, only with `base_group`
    F(x)  = (x - mean) / (std + epsilon) (`mode="mean_std_norm"`), or x - mean (`mode="mean_norm"`)

The std of a_k is that of the population; that of a_0 has ddof 1. Only comparisons that are not 0 enter the weights, so
a state seen once does not dilute the others; a turn without any has A = 0.

Paper: He et al., *Hierarchy-of-Groups Policy Optimization* (ICLR 2026). With `precision="float32"` the results equal
those of `recipe/hgpo` in verl-agent. There, rounding can make the mean of three or more equal returns differ from them,
and a std of 0 plus epsilon turns this into an advantage of up to 0.5. With "float64", the default, equal returns get
none, and sizes below 1e-9 count as 0.

Published settings: history 2, alpha 1, mode "mean_std_norm", no base group; the others as GiGPO on ALFWorld. Left out:
the KL penalty in the reward.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from algorithms.estimators.gigpo import MODES, anchor_groups, step_values
from algorithms.estimators.groups import compares_attempts, episode_scores, group_numbers, relative_values
from algorithms.estimators.steps import Naming, step
from algorithms.estimators.timeline import turns
from algorithms.turn_table import TurnTable
from envs.core import UnknownNameError, counted

PRECISIONS = ("float64", "float32")
ROUNDING = 1e-9


@compares_attempts
def hgpo(
    table: TurnTable,
    *,
    gamma: float = 0.95,
    history: int = 2,
    alpha: float = 1.0,
    mode: str = "mean_std_norm",
    base_group: bool = False,
    precision: str = "float64",
    invalid_penalty: float = 0.01,
    epsilon: float = 1e-6,
) -> NDArray[np.float64]:
    """One advantage per turn, [N]. `history` is the number of earlier states that are compared.

    Raises `UnknownNameError` for another `mode` or `precision`.
    """
    if mode not in MODES:
        raise UnknownNameError("mode", mode, MODES)
    return hierarchical_advantages(
        table,
        step_values(table, gamma, invalid_penalty),
        episode_scores(table, invalid_penalty) if base_group else None,
        history=history,
        alpha=alpha,
        divide_by_std=mode == "mean_std_norm",
        precision=precision,
        epsilon=epsilon,
    )


def hierarchical_advantages(
    table: TurnTable,
    values: NDArray[np.float64],
    scores: NDArray[np.float64] | None,
    *,
    history: int,
    alpha: float,
    divide_by_std: bool,
    precision: str,
    epsilon: float,
) -> NDArray[np.float64]:
    """[N] the weighted comparisons of `values` [N] at every depth, and of `scores` [N] if given."""
    if precision not in PRECISIONS:
        raise UnknownNameError("precision", precision, PRECISIONS)
    as_authors = precision == "float32"
    smallest = 0.0 if as_authors else ROUNDING
    total, weights = np.zeros(len(table)), np.zeros(len(table))
    named: list[int] = []  # the depths, for the steps

    def add(k: int, rows: NDArray[np.int64], advantages: NDArray[np.float64]) -> None:
        weight = np.where(np.abs(advantages) > smallest, float(k + 1) ** alpha, 0.0)
        total[rows] += weight * advantages
        weights[rows] += weight
        kept = np.zeros(len(table))
        kept[rows] = weight
        step(f"w{k}", f"where(abs(a{k}) > smallest, {k + 1}**alpha, 0)", kept, smallest=smallest, alpha=alpha)
        named.append(k)

    if scores is not None:
        groups = group_numbers(table)
        base = relative_values(
            scores, groups, divide_by_std=divide_by_std, epsilon=epsilon, keep_single=True, shift=not as_authors,
            named=Naming("a0", "score", prefix="a0"),
        )  # fmt: skip
        add(0, np.arange(len(table)), base)
    for k, (rows, groups) in enumerate(history_groups(table, history), start=1):
        naming = Naming(f"a{k}", "step_score", over=f"last{k}", prefix=f"a{k}", at=(rows, len(table)))
        meaning = f"turns of the same task whose last {counted(k, 'state')} are equal"
        step(naming.over, "", naming.spread(groups.astype(np.float64)), meaning=meaning)
        if as_authors:
            advantages = _relative_in_float32(values[rows], groups, divide_by_std, epsilon)
            step(naming.result, "", naming.spread(advantages), meaning="compared within its group, in float32")
        else:
            advantages = relative_values(
                values[rows], groups, divide_by_std=divide_by_std, epsilon=epsilon, keep_single=False, ddof=0,
                named=naming,
            )  # fmt: skip
        add(k, rows, advantages)
    upper, lower = " + ".join(f"zero(w{k} * a{k})" for k in named), " + ".join(f"w{k}" for k in named)
    return step("advantage", f"({upper}) / ({lower} + epsilon)", total / (weights + epsilon), epsilon=epsilon)


def _relative_in_float32(
    values: NDArray[np.float64], groups: NDArray[np.int64], divide_by_std: bool, epsilon: float
) -> NDArray[np.float64]:
    """[N] `relative_values` with torch's rounding: sums and differences in float32, the deviation in float64."""
    rounded, count = values.astype(np.float32), np.maximum(np.bincount(groups), 1)
    sums = np.zeros(len(count), dtype=np.float32)
    np.add.at(sums, groups, rounded)
    difference = np.where(count[groups] == 1, np.float32(0), rounded - (sums / count.astype(np.float32))[groups])
    if divide_by_std:
        exact = rounded.astype(np.float64)
        mean = np.bincount(groups, weights=exact) / count
        std = np.sqrt(np.bincount(groups, weights=(exact - mean[groups]) ** 2) / count).astype(np.float32)
        difference = difference / (std + np.float32(epsilon))[groups]
    return difference.astype(np.float64)


def history_groups(table: TurnTable, history: int) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """For k = 1 … history + 1: the rows with at least k states behind them, and the number of their last k states.

    The last k states are identified by the pair of the last k - 1 and the state before them.
    """
    anchors = anchor_groups(table)[table.order]
    age = turns(table).position()[table.order]  # [N] in time order: the number of turns before it
    names, levels = anchors, [(table.order, anchors)]
    for k in range(2, history + 2):
        places = np.flatnonzero(age >= k - 1)
        pairs = names[places] * len(table) + anchors[places - k + 1]  # names are below len(table)
        names = np.zeros(len(table), dtype=np.int64)
        names[places] = np.unique(pairs, return_inverse=True)[1]
        levels.append((table.order[places], names[places]))
    return levels
