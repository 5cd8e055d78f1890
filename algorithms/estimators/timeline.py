"""Recursions over the turns or the sampled tokens of each episode, segments, and whitening.

Observations are not items of a timeline: a recursion over tokens continues from the first token of a turn to the last
token of the previous turn, without decay for the observation in between.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from algorithms.estimators.steps import explaining, step
from algorithms.turn_table import TurnTable


@dataclass(frozen=True, eq=False)
class Timeline:
    """The K items of all episodes in time order. Columns of items are in table order, not in time order.

    Three turns of episode 0 in rows 2, 0, 1 and one of episode 1 in row 3: `order=[2, 0, 1, 3]`,
    `closes=[F, F, T, T]`.
    """

    order: NDArray[np.int64]  # [K] the items in time order, episode after episode
    closes: NDArray[np.bool_]  # [K] in that order: whether the item is the last one of its episode

    @classmethod
    def of(cls, order: NDArray[np.int64], episode: NDArray[np.int64]) -> Timeline:
        """`episode` [K] holds the episode of each item in `order`."""
        return cls(order, np.diff(episode, append=episode[-1:] + 1) != 0)

    @cached_property
    def in_order(self) -> bool:
        """Whether the items are in time order already, which saves indexing."""
        return bool(np.all(self.order == np.arange(len(self.order))))

    def last(self) -> NDArray[np.bool_]:
        """[K] whether an item is the last one of its episode."""
        last = np.empty(len(self.order), dtype=np.bool_)
        last[self.order] = self.closes
        return last

    def position(self) -> NDArray[np.int64]:
        """[K] how many items of its episode come before an item."""
        ends = np.flatnonzero(self.closes)
        lengths = np.diff(ends, prepend=-1)
        position = np.empty(len(self.order), dtype=np.int64)
        position[self.order] = np.arange(len(self.order)) - np.repeat(ends - lengths + 1, lengths)
        return position

    def following(self, values: NDArray[np.float64], after: NDArray[np.float64] | float = 0.0) -> NDArray[np.float64]:
        """[K] the value of the next item in the episode; for the last item, its own `after`."""
        closing = self.order[self.closes]
        if self.in_order:
            out = np.append(values[1:], values[:1]).astype(np.float64)
        else:
            out = np.empty(len(self.order))
            out[self.order] = values[np.roll(self.order, -1)]
        out[closing] = np.broadcast_to(np.asarray(after, dtype=np.float64), len(out))[closing]
        return out

    def accumulate(self, values: NDArray[np.float64], decay: NDArray[np.float64] | float) -> NDArray[np.float64]:
        """[K] x_i = values_i + decay_i · x_next, where x_next is 0 after the last item of an episode.

        The k-th items from the end of all episodes are processed together, so the cost is that of one pass.
        """
        ends = np.flatnonzero(self.closes)
        lengths = np.diff(ends, prepend=-1)
        by_length = np.argsort(-lengths, kind="stable")
        ends, lengths = ends[by_length], lengths[by_length]
        active = np.searchsorted(-lengths, -np.arange(lengths.max(initial=0)))  # [longest] episodes longer than k
        x = np.zeros(len(ends))
        out = np.empty(len(self.order))
        for k, count in enumerate(active.tolist()):
            places = ends[:count] - k
            items = places if self.in_order else self.order[places]
            x = values[items] + (decay[items] if isinstance(decay, np.ndarray) else decay) * x[:count]
            out[items] = x
        return out


def turns(table: TurnTable) -> Timeline:
    """The timeline of the table's N rows."""
    return Timeline.of(table.order, table.episode[table.order])


def tokens(table: TurnTable) -> Timeline:
    """The timeline of the table's M tokens."""
    rows = table.token_rows
    count = np.bincount(rows, minlength=len(table))
    first = np.cumsum(count) - count  # [N] the first token of each row
    later = count[table.order]
    order = np.arange(len(rows)) + np.repeat(first[table.order] - (np.cumsum(later) - later), later)
    return Timeline.of(order, table.episode[rows[order]])


def segment_differences(
    line: Timeline, rewards: NDArray[np.float64], values: NDArray[np.float64], *, reward: str, value: str
) -> NDArray[np.float64]:
    """[K] the advantage of each item's segment: its rewards + V(the next segment) - V(the segment).

    A segment starts at each item whose value was measured. It ends before the next such item of the episode, or with
    the episode, after which the value is 0. All its items share the advantage. NaN before the first measured item of an
    episode, since the value at that segment's start is unknown. In the steps, `reward` and `value` are the names of
    `rewards` and `values`, and the result is called difference.
    """
    starts = step("starts", f"measured({value})", np.isfinite(values))
    next_starts = line.following(starts.astype(np.float64), after=1.0) == 1.0
    next_value = np.where(next_starts, line.following(np.where(starts, values, 0.0)), 0.0)
    # From each item on: the sum of rewards up to the next segment, plus that segment's value, which ends the sum.
    ahead = line.accumulate(rewards + next_value, np.where(next_starts, 0.0, 1.0))
    step("ahead", f"{reward} + where(next(starts, 1), next({value}), next(ahead))", ahead)
    heads = (starts | (line.position() == 0))[line.order]
    differences = np.empty(len(values))
    at = line.order[heads]
    number = np.cumsum(heads) - 1
    differences[line.order] = (ahead[at] - values[at])[number]  # copied forward in time
    segment = np.empty(len(values), dtype=np.int64)
    segment[line.order] = number
    step("segment", "", segment, meaning="turns or tokens between two measured values")
    return step("difference", f"first(ahead - {value})", differences, over="segment")


def last_tokens(table: TurnTable) -> NDArray[np.bool_]:
    """[M] whether a token is the last one of its turn."""
    rows = table.token_rows
    last: NDArray[np.bool_] = np.diff(rows, append=rows[-1:] + 1) != 0
    return last


def token_rewards(table: TurnTable) -> NDArray[np.float64]:
    """[M] the reward of each turn on its last token, plus the signal `token_reward` if it was measured.

    Raises `ValueError` for a turn with a reward but without a token.
    """
    rows, last = table.token_rows, last_tokens(table)
    silent = np.flatnonzero((table.reward != 0) & (np.bincount(rows, minlength=len(table)) == 0))
    if len(silent):
        raise ValueError(f"row {silent[0]} has the reward {table.reward[silent[0]]} and no sampled token to carry it")
    rewards, formula = np.where(last, table.reward[rows], 0.0), "where(last, reward, 0)"
    if "token_reward" in table.token_signals:
        rewards, formula = rewards + table.token_signal("token_reward"), f"{formula} + token_reward"
    return step("r", formula, rewards)


def whiten(
    values: NDArray[np.float64],
    weights: NDArray[np.int64] | NDArray[np.float64] | None = None,
    *,
    result: str = "advantage",
    of: str = "raw",
    weight: str = "1",
) -> NDArray[np.float64]:
    """Shift and scale `values` [K] to mean 0 and variance 1 (ddof 1); `weights` [K] is how many tokens each stands for.

    Like verl's `masked_whiten`, with 1e-8 added to the count and to the variance: equal values give 0 up to 1e-4 of
    their size. A single value, for which verl fails, gives 0. Values of weight 0, which may be NaN, become 0.

    In the steps, `result`, `of` and `weight` are the names of the whitened values, of `values` and of `weights`.
    """
    count = np.ones(len(values)) if weights is None else weights.astype(np.float64)
    total = count.sum()
    if total <= 1:
        return step(result, "0", np.zeros(len(values)), meaning="there is nothing to compare with")
    known = np.where(count > 0, values, 0.0)
    mean = (known * count).sum() / (total + 1e-8)
    difference = known - mean
    variance = (difference**2 * count).sum() / (total + 1e-8) * total / (total - 1)
    white = np.where(count > 0, difference / np.sqrt(variance + 1e-8), 0.0)
    if explaining():
        of_all = f"{of}_batch"
        step(f"{of_all}_n", f"sum({weight})", np.full(len(values), total), over="batch")
        formula = f"sum({of} * {weight}) / ({of_all}_n + 1e-8)"
        step(f"{of_all}_mean", formula, np.full(len(values), mean), over="batch")
        formula = f"sum(({of} - {of_all}_mean)**2 * {weight}) / ({of_all}_n + 1e-8) * {of_all}_n / ({of_all}_n - 1)"
        step(f"{of_all}_std", f"sqrt({formula} + 1e-8)", np.full(len(values), np.sqrt(variance + 1e-8)), over="batch")
        formula = f"({of} - {of_all}_mean) / {of_all}_std"
        step(result, formula if weight == "1" else f"where({weight} > 0, {formula}, 0)", white)
    return white


def trained_tokens(table: TurnTable, probability_mask: float | None) -> NDArray[np.float64]:
    """[M] 1 for a token that was sampled below the probability `probability_mask`, else 0; None: 1 for all."""
    if probability_mask is None:
        return step("trained", "1", np.ones(len(table.token_rows)))
    trained: NDArray[np.float64] = (table.token_signal("logprob") < np.log(probability_mask)).astype(np.float64)
    return step("trained", "logprob < log(probability_mask)", trained, probability_mask=probability_mask)
