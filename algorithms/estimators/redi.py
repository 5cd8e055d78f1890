"""REDI: imitate the successes at a task and move away from its failures, without a reference and without a ratio.

    L = -mean over pairs (y⁺, y⁻) of  positive_weight · m(y⁺) - negative_weight · m(y⁻)
    m(y): mean log-probability of an attempt's tokens

A pair is a success and a failure at the same task; each task with both counts once. As advantages: positive_weight / n⁺
for each of n⁺ successes, -negative_weight / n⁻ for each of n⁻ failures, times episodes / tasks with both. They belong
to `reinforce_loss` and the aggregation "trajectory-mean".

Paper: Xu et al., *Harnessing Negative Signals: Reinforcement Distillation from Teacher Data*, arXiv 2505.24850, second
stage. Published settings: weights 1 and 0.8, 32 pairs in a step, learning rate 1e-6, one epoch, after imitation. There
the pairs are a teacher's answers, stored before; here they are the policy's own attempts of the batch.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from algorithms.estimators.groups import compares_attempts, episode_returns, group_numbers
from algorithms.estimators.steps import step
from algorithms.turn_table import TurnTable


@compares_attempts
def redi(
    table: TurnTable, *, positive_weight: float = 1.0, negative_weight: float = 0.8, threshold: float = 0.0
) -> NDArray[np.float64]:
    """One advantage per turn, [N]. A return above `threshold` is a success. Tasks without both kinds have 0."""
    won, groups, first = episode_returns(table) > threshold, group_numbers(table), table.is_first
    step("won", "R > threshold", won.astype(np.float64), threshold=threshold)
    attempts = np.bincount(groups, weights=first)
    wins = np.bincount(groups, weights=first * won)
    losses = attempts - wins
    both = (wins > 0) & (losses > 0)
    step("wins", "sum(won)", wins[groups], over="task", counted="first")
    step("losses", "n() - wins", losses[groups], over="task", counted="first")
    step("both", "where(wins * losses > 0, 1, 0)", both[groups].astype(np.float64))
    scale = attempts.sum() / max(both.sum(), 1)
    step("of_tasks", "1 / (wins + losses)", 1 / np.maximum(attempts, 1)[groups])
    step("episodes_n", "n()", np.full(len(table), attempts.sum()), over="batch", counted="first")
    step("tasks_n", "sum(both * of_tasks)", np.full(len(table), float(both.sum())), over="batch", counted="first")
    one = np.where(won, positive_weight / np.maximum(wins, 1)[groups], -negative_weight / np.maximum(losses, 1)[groups])
    advantages = np.where(both[groups], one * scale, 0.0)
    formula = (
        "both * where(won, positive_weight / max(wins, 1), -negative_weight / max(losses, 1)) * episodes_n"
        " / max(tasks_n, 1)"
    )
    return step("advantage", formula, advantages, positive_weight=positive_weight, negative_weight=negative_weight)
