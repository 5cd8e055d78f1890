"""GiGPO: compare whole attempts with each other, and actions taken in the same state with each other.

    A_i   = A^E_i + step_weight · A^S_i
    A^E_i = F(R_i - c·[invalid_i])   over the attempts at the same task
    A^S_i = F(G_i - c·[invalid_i])   over the turns in the same state of the same task
    G_t   = r_t + gamma · G_{t+1}    from the raw rewards: the penalty c is not discounted backwards
    F(x)  = (x - mean) / (std + epsilon), ddof 1 (`mode="mean_std_norm"`), or x - mean (`mode="mean_norm"`)

Turns with equal state keys form one anchor group, whatever their attempt and time, so a state visited twice in one
attempt is compared with itself. A state visited once has A^S = 0; a task attempted in a single row keeps its raw score
as A^E. Both are as in the authors' code.

Paper: Feng et al., arXiv 2505.10978 (NeurIPS 2025). The results equal those of verl-agent's `gigpo/core_gigpo.py`, with
returns in float64 instead of float32. The paper's equation 3 takes the statistics of A^E over attempts
(`statistics="episodes"`); the authors' code takes them over rows (`statistics="turns"`).

Published settings: gamma 0.95, step weight 1, 16 tasks × 8 attempts, learning rate 1e-6, KL loss 0.01 (k3), clip 0.2;
entropy bonus 0.001; ALFWorld: "mean_std_norm", 50 turns, penalty 0.1 beside a success of 10; WebShop: "mean_norm", 15
turns, penalty 0.1 beside 10; search: "mean_std_norm", 4 turns, penalty 0.01 beside 1, similarity 0.9, no entropy bonus.

A KL penalty in the reward affects only R, as in the authors' code. Left out: the duplicated rows with which their
trainer fills its last batch, and which then count in the statistics.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable
from difflib import SequenceMatcher

import numpy as np
from numpy.typing import NDArray

from algorithms.estimators.groups import compares_attempts, episode_advantages, episode_scores, relative_values
from algorithms.estimators.steps import Naming, step
from algorithms.turn_table import TurnTable
from envs.core import UnknownNameError

MODES = ("mean_std_norm", "mean_norm")


@compares_attempts
def gigpo(
    table: TurnTable,
    *,
    gamma: float = 0.95,
    step_weight: float = 1.0,
    mode: str = "mean_norm",
    statistics: str = "turns",
    invalid_penalty: float = 0.01,
    similarity: float | None = None,
    epsilon: float = 1e-6,
) -> NDArray[np.float64]:
    """One advantage per turn, [N].

    `statistics` is "turns" or "episodes", `mode` "mean_std_norm" or "mean_norm", `invalid_penalty` in units of reward.
    With `similarity` in (0, 1), states with texts this similar share an anchor group (`anchor_groups`).

    Raises `UnknownNameError` for another `mode` or `statistics`, `ValueError` for numbers out of range.
    """
    if mode not in MODES:
        raise UnknownNameError("mode", mode, MODES)
    divide_by_std = mode == "mean_std_norm"
    episode_part = episode_advantages(
        table,
        episode_scores(table, invalid_penalty),
        statistics=statistics,
        divide_by_std=divide_by_std,
        epsilon=epsilon,
        result="of_episode",
    )
    step_part = relative_values(
        step_values(table, gamma, invalid_penalty),
        step("state", "", anchor_groups(table, similarity), meaning="turns in the same state of the same task"),
        divide_by_std=divide_by_std,
        epsilon=epsilon,
        keep_single=False,
        named=Naming("of_step", "step_score", over="state"),
    )
    both = episode_part + step_weight * step_part
    return step("advantage", "of_episode + step_weight * of_step", both, step_weight=step_weight)


def step_values(table: TurnTable, gamma: float, invalid_penalty: float) -> NDArray[np.float64]:
    """[N] the discounted return from each turn on, minus the penalty if the turn's own action was invalid."""
    returns = step("G", "reward + gamma * next(G)", table.discounted_returns(gamma), gamma=gamma)
    values = returns - invalid_penalty * ~table.valid
    return step("step_score", "G - invalid_penalty * invalid", values, invalid_penalty=invalid_penalty)


def anchor_groups(table: TurnTable, similarity: float | None = None) -> NDArray[np.int64]:
    """[N] the number of each row's anchor group: the rows of one group with equal states.

    With `similarity` a state joins the first anchor, in row order, whose first text is at least this similar (`difflib`
    ratio); if there is none, it becomes an anchor. The cost is the number of different states times the number of
    anchors of a group, and the result depends on the order of the rows.
    """
    if similarity is not None and not 0 < similarity < 1:
        raise ValueError(f"similarity must be between 0 and 1, got {similarity}")
    known: dict[int, dict[Hashable, int]] = defaultdict(dict)  # of each group: state -> anchor
    texts: dict[int, list[tuple[int, SequenceMatcher[str]]]] = defaultdict(list)
    numbers = []
    count = 0
    for group, state in zip(table.group.tolist(), table.state.tolist(), strict=True):
        anchors = known[group]
        number = anchors.get(state)
        if number is None:
            # A repeated state would match the same anchor again, so its result is final.
            number = count if similarity is None else _join(texts[group], state, similarity, count)
            count += number == count
            anchors[state] = number
        numbers.append(number)
    return np.array(numbers, dtype=np.int64)


def _join(texts: list[tuple[int, SequenceMatcher[str]]], text: str, similarity: float, number: int) -> int:
    """The number of the first anchor that `text` resembles. If there is none, `text` becomes anchor `number`."""
    for anchor, matcher in texts:
        matcher.set_seq1(text)
        # The quick ratios are upper bounds of the exact one, whose cost is quadratic in the length.
        if all(r() >= similarity for r in (matcher.real_quick_ratio, matcher.quick_ratio, matcher.ratio)):
            return anchor
    texts.append((number, SequenceMatcher(None, "", text)))
    return number
