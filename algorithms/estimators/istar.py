"""iStar (OPRL): compare attempts by their outcomes, and turns by implicit rewards of a process reward model.

    A_i = episode_weight · F(R_i - c·[invalid_i]) + step_weight · F(s_i),  s: signal `prm`
    F(x) = n / (n - 1) · (x - mean)         `mode="rloo"`, the authors' choice
           x - mean, (x - mean) / (std + epsilon)    `mode="mean_norm"`, `mode="mean_std_norm"`; ddof 1
           whiten(x - mean)                 `mode="reinforce_pp_baseline"`, whitened over all tokens of the batch
    A_i = F(R_i - c·[invalid_i] + step_weight · s_i)    with `merged`, the authors' ablation

s is beta · sum of log(pi_phi / pi_old) over the tokens of a turn; the model pi_phi is trained together with the policy
(`algorithms.signals.implicit_prm`). s is divided by its largest size in the batch, as in the authors' scripts
(`scale_steps="batch"`), or used unchanged ("none"). Step rewards are not summed over time.

Paper: Liu et al., arXiv 2509.19199 (ICLR 2026), first called OPRL. The results equal those of the authors'
`istar/core_istar.py`. For step rewards, too, mean and n are over the first turn of each attempt
(`baseline="first_turns"`), and a group of one attempt keeps its raw values. Paper and docstring say all turns of the
group (`baseline="all_turns"`); a group of one turn then has a step part of 0.

Published settings (WebShop): rloo, step weight 1 and penalty 0.1 with a success of 10, beta 0.05, 16 tasks × 8
attempts, no KL, learning rates 5e-7 (policy) and 1e-6 (reward model). Left out: the paper's ratio of whole steps, which
the authors' code also lacks.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from algorithms.estimators.groups import (
    compares_attempts,
    episode_scores,
    group_numbers,
    leave_one_out,
    relative_values,
)
from algorithms.estimators.steps import Naming, step
from algorithms.estimators.timeline import whiten
from algorithms.turn_table import TurnTable
from envs.core import UnknownNameError

MODES = ("rloo", "mean_norm", "mean_std_norm", "reinforce_pp_baseline")
BASELINES = ("first_turns", "all_turns")
SCALES = ("batch", "none")


@compares_attempts
def istar(
    table: TurnTable,
    *,
    mode: str = "rloo",
    step_weight: float = 1.0,
    episode_weight: float = 1.0,
    merged: bool = False,
    baseline: str = "first_turns",
    scale_steps: str = "batch",
    invalid_penalty: float = 0.01,
    epsilon: float = 1e-6,
) -> NDArray[np.float64]:
    """One advantage per turn, [N]. Needs the signal `prm`; `mode="reinforce_pp_baseline"` also counts tokens.

    With `episode_weight=0` only the process rewards count. Raises `UnknownNameError` for another `mode`, `baseline` or
    `scale_steps`.
    """
    for name, value, known in [("mode", mode, MODES), ("baseline", baseline, BASELINES)]:
        if value not in known:
            raise UnknownNameError(name, value, known)
    scores, steps = episode_scores(table, invalid_penalty), step_rewards(table, scale_steps)
    if merged:
        values = step("merged", "score + step_weight * s", scores + step_weight * steps, step_weight=step_weight)
        return _compare(table, values, table.is_first, mode, epsilon, Naming("advantage", "merged", counted="first"))
    counted = table.is_first if baseline == "first_turns" else np.ones(len(table), dtype=np.bool_)
    first_only = baseline == "first_turns"
    named = Naming("of_step", "s", counted="first" if first_only else "")
    episode_named = Naming("of_episode", "score", counted="first")
    episode_part = _compare(table, scores, table.is_first, mode, epsilon, episode_named)
    step_part = _compare(table, steps, counted, mode, epsilon, named, keep_single=first_only)
    both = episode_weight * episode_part + step_weight * step_part
    formula = "episode_weight * of_episode + step_weight * of_step"
    return step("advantage", formula, both, episode_weight=episode_weight, step_weight=step_weight)


def step_rewards(table: TurnTable, scale: str) -> NDArray[np.float64]:
    """[N] the signal `prm`; with `scale="batch"` its size is at most 1."""
    if scale not in SCALES:
        raise UnknownNameError("scale_steps", scale, SCALES)
    steps: NDArray[np.float64] = table.signal("prm")
    if scale == "none":
        return step("s", "prm", steps)
    largest = np.abs(steps).max(initial=0.0)
    step("prm_largest", "highest(abs(prm))", np.full(len(steps), largest), over="batch")
    return step("s", "prm / (prm_largest + 1e-6)", steps / (largest + 1e-6))


def _compare(
    table: TurnTable,
    values: NDArray[np.float64],
    counted: NDArray[np.bool_],
    mode: str,
    epsilon: float,
    named: Naming,
    keep_single: bool = True,
) -> NDArray[np.float64]:
    groups = group_numbers(table)
    if mode == "rloo":
        return leave_one_out(values, groups, counted, keep_single=keep_single, named=named)
    by_std, whitened = mode == "mean_std_norm", mode == "reinforce_pp_baseline"
    difference = relative_values(
        values, groups, counted=counted, divide_by_std=by_std, epsilon=epsilon, keep_single=keep_single,
        named=named._replace(result=f"{named.of}_difference") if whitened else named,
    )  # fmt: skip
    if whitened:
        tokens = np.bincount(table.token_rows, minlength=len(table))
        return whiten(difference, tokens, result=named.result, of=f"{named.of}_difference", weight="tokens")
    return difference
