"""GTPO and GRPO-S: more reward at high entropy in a success, more penalty at low entropy in a failure.

    gtpo     r_it = outcome_weight + entropy_weight · n_t H_it / sum_k H_kt               in a success
             r_it = -outcome_weight - entropy_weight · n_t (1 / H_it) / sum_k (1 / H_kt)  in a failure
    grpo_s   the same with one H for an attempt, the mean entropy of its tokens, and n attempts
    A = (r - mean(r)) / (std(r) + epsilon)

The sums are over the successes (failures) among the attempts at the task that have a t-th token, n_t of them; t counts
the tokens that the policy sampled. A success is an attempt with a return above `threshold`. If all entropies are
equal, r is ±(outcome_weight + entropy_weight). Entropies count as at least `lowest_entropy`, or a token of which the
policy was sure would take all of the punishment.

After the abstract of Tan et al., *GTPO and GRPO-S*, arXiv 2508.04349, and a third party's port
(teilomillet/textpolicy), which gives the equations of the rewards. Choices of ours: `compare`, over what mean and std
are taken: "all" tokens of the attempts at a task (as the abstract's group), or "apart", successes and failures
separately (as in the port, where the mean advantage of a success is 0); the lowest entropy; weights that add up to 1,
which keep the size of the reward.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from algorithms.estimators.groups import compares_attempts, episode_returns, group_numbers, relative_values
from algorithms.estimators.steps import Naming, step
from algorithms.estimators.timeline import tokens
from algorithms.turn_table import TurnTable
from envs.core import UnknownNameError

COMPARED = ("all", "apart")


@compares_attempts
def gtpo(
    table: TurnTable, *, outcome_weight: float = 0.9, entropy_weight: float = 0.1, compare: str = "all",
    threshold: float = 0.0, lowest_entropy: float = 0.01, epsilon: float = 1e-6,
) -> NDArray[np.float64]:  # fmt: skip
    """One advantage per token, [M]. Needs the token signal `entropy`. Raises `UnknownNameError` for other `compare`."""
    rows = table.token_rows
    won = (episode_returns(table) > threshold)[rows]
    place = tokens(table).position()
    kind = group_numbers(table)[rows] * 2 + won
    alike = _without_gaps(kind * (place.max(initial=0) + 1) + place)
    entropy = np.maximum(table.token_signal("entropy"), lowest_entropy)
    shaped = _shaped(won, entropy, alike, outcome_weight, entropy_weight)
    return _compared(shaped, kind, compare, epsilon)


@compares_attempts
def grpo_s(
    table: TurnTable, *, outcome_weight: float = 0.9, entropy_weight: float = 0.1, compare: str = "all",
    threshold: float = 0.0, lowest_entropy: float = 0.01, epsilon: float = 1e-6,
) -> NDArray[np.float64]:  # fmt: skip
    """One advantage per turn, [N]; mean and std are over attempts. Needs the token signal `entropy`."""
    count = len(table)
    sums = table.episode_sums(np.bincount(table.token_rows, table.token_signal("entropy"), minlength=count))
    sizes = table.episode_sums(np.bincount(table.token_rows, minlength=count))
    entropy = np.maximum(sums / np.maximum(sizes, 1), lowest_entropy)
    won = episode_returns(table) > threshold
    kind = group_numbers(table) * 2 + won
    alike, first = _without_gaps(kind), table.is_first
    of_attempt = _shaped(won[first], entropy[first], alike[first], outcome_weight, entropy_weight)
    shaped = of_attempt[_first_row_numbers(table)]
    return _compared(shaped, kind, compare, epsilon, first)


def _first_row_numbers(table: TurnTable) -> NDArray[np.int64]:
    """[N] the place of the episode's first row among all first rows."""
    places = np.empty(table.is_first.sum(), dtype=np.int64)
    places[table.episode_number[table.is_first]] = np.arange(len(places))
    numbers: NDArray[np.int64] = places[table.episode_number]
    return numbers


def _without_gaps(numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """[K] the `numbers` [K], counted from 0 without gaps; without sorting where they are small enough to be counted."""
    if numbers.max(initial=0) > 8 * len(numbers):
        return np.unique(numbers, return_inverse=True)[1]
    compact: NDArray[np.int64] = (np.cumsum(np.bincount(numbers) > 0) - 1)[numbers]
    return compact


def _shaped(
    won: NDArray[np.bool_], entropy: NDArray[np.float64], alike: NDArray[np.int64], outcome_weight: float,
    entropy_weight: float,
) -> NDArray[np.float64]:  # fmt: skip
    """[K] the rewards r; `alike` [K] numbers what is compared with each other."""
    share = np.where(won, entropy, 1 / entropy)
    relative = share * np.bincount(alike)[alike] / np.bincount(alike, share)[alike]
    shaped: NDArray[np.float64] = np.where(won, 1.0, -1.0) * (outcome_weight + entropy_weight * relative)
    return shaped


def _compared(
    shaped: NDArray[np.float64], kind: NDArray[np.int64], compare: str, epsilon: float,
    counted: NDArray[np.bool_] | None = None,
) -> NDArray[np.float64]:  # fmt: skip
    if compare not in COMPARED:
        raise UnknownNameError("compare", compare, COMPARED)
    groups = _without_gaps(kind if compare == "apart" else kind // 2)
    step("shaped", "", shaped, meaning="the reward of the outcome, more or less of it by entropy")
    step("compared_with", "", groups, meaning="what mean and std are taken over")
    return relative_values(
        shaped, groups, counted=counted, divide_by_std=True, epsilon=epsilon, keep_single=False,
        named=Naming("advantage", "shaped", "compared_with", "first" if counted is not None else ""),
    )  # fmt: skip
