"""The table that estimators read: one row for every turn of every episode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.episode import Episode, ParseStatus

COLUMNS = {
    "group": np.int64,
    "episode": np.int64,
    "turn": np.int64,
    "reward": np.float64,
    "state": np.object_,
    "valid": np.bool_,
}


@dataclass(frozen=True, eq=False)  # arrays have no single truth to compare by
class TurnTable:
    """Columns over N turns. An estimator is a pure function of it: `(table, *, parameters) -> advantages [N]`.

    Two attempts (episodes 0 and 1) at one task (group 0); the second types an unknown command, then solves it:

        group    episode  turn  reward  state            valid
        0        0        0     0.0     "in the hall"    True
        0        0        1     0.0     "at the desk"    True
        0        1        0     0.0     "in the hall"    False
        0        1        1     10.0    "in the hall"    True

    Rows may stand in any order: `turn` tells the time inside an episode, never the position of the row (rows made by
    `from_episodes` do stand in time order, episode after episode). An (episode, turn) pair appears once, because a
    row that was duplicated to fill a batch would count twice in every statistic.

    Raises `ValueError` for a column of another shape or dtype, a reward that is not finite, an (episode, turn) pair
    that appears twice, and an episode in two groups.
    """

    group: NDArray[np.int64]  # [N] attempts that share a task and a start, and are compared with each other
    episode: NDArray[np.int64]  # [N] unique over all groups
    turn: NDArray[np.int64]  # [N] rises with time inside an episode
    reward: NDArray[np.float64]  # [N] what the environment paid for the turn's action, before any penalty
    state: NDArray[np.object_]  # [N] hashable key of the state the action was chosen in; equal keys = equal states
    valid: NDArray[np.bool_]  # [N] whether the environment could play what the policy wrote
    signals: dict[str, NDArray[Any]] = field(default_factory=dict)  # [N, …] what signals measured, by name

    def __post_init__(self) -> None:
        shape = (len(self.group),)
        for name, dtype in COLUMNS.items():
            column = getattr(self, name)
            if column.shape != shape:
                raise ValueError(f"column {name!r} has shape {column.shape}, expected {shape}, one entry per turn")
            if column.dtype != dtype:
                raise ValueError(f"column {name!r} holds {column.dtype}, expected {np.dtype(dtype)}")
        for name, signal in self.signals.items():
            if signal.shape[:1] != shape:
                raise ValueError(f"signal {name!r} has shape {signal.shape}, expected one entry for each of {shape[0]}")
        bad = np.flatnonzero(~np.isfinite(self.reward))
        if len(bad):
            raise ValueError(f"{self._where(bad[0])}: the reward is {self.reward[bad[0]]}, expected a finite number")
        before, after = self.order[:-1], self.order[1:]
        same = self.episode[before] == self.episode[after]
        twice = np.flatnonzero(same & (self.turn[before] == self.turn[after]))
        if len(twice):
            raise ValueError(f"{self._where(after[twice[0]])} appears twice")
        split = np.flatnonzero(same & (self.group[before] != self.group[after]))
        if len(split):
            row = split[0]
            groups = f"{self.group[before[row]]} and {self.group[after[row]]}"
            raise ValueError(f"{self._where(after[row])}: the episode is in groups {groups}, expected one")

    def _where(self, row: np.int64) -> str:
        return f"row {row} (episode {self.episode[row]}, turn {self.turn[row]})"

    def __len__(self) -> int:
        return len(self.group)

    @classmethod
    def from_episodes(cls, episodes: Sequence[Episode]) -> TurnTable:
        """One row per turn, in the order of `episodes`; the episode's number is its place in that sequence.

        A turn is valid exactly when its status is `ok`: malformed, illegal and truncated answers all leave the
        environment where it was. (Where a completion holds reasoning around the action, methods of the verl-agent
        family call it invalid for its format only.) An episode that ended before its first turn has no rows.
        """
        turns = [turn for episode in episodes for turn in episode.turns]
        lengths = np.array([len(episode.turns) for episode in episodes], dtype=np.int64)
        state = np.empty(len(turns), dtype=object)
        state[:] = [turn.state_key for turn in turns]
        starts = np.cumsum(lengths) - lengths
        return cls(
            group=np.repeat(np.array([episode.group for episode in episodes], dtype=np.int64), lengths),
            episode=np.repeat(np.arange(len(episodes)), lengths),
            turn=np.arange(len(turns)) - np.repeat(starts, lengths),
            reward=np.array([turn.reward for turn in turns], dtype=np.float64),
            state=state,
            valid=np.array([turn.status == ParseStatus.OK for turn in turns], dtype=np.bool_),
        )

    @cached_property
    def order(self) -> NDArray[np.int64]:
        """[N] the rows by episode, then by turn."""
        step = np.diff(self.episode)
        if np.all((step > 0) | ((step == 0) & (np.diff(self.turn) > 0))):
            return np.arange(len(self))  # as `from_episodes` leaves them: sorting a million rows takes a while
        order: NDArray[np.int64] = np.lexsort((self.turn, self.episode))
        return order

    @cached_property
    def opens(self) -> NDArray[np.bool_]:
        """[N] whether the row is the first turn of its episode."""
        opens = np.empty(len(self), dtype=np.bool_)
        opens[self.order] = np.diff(self.episode[self.order], prepend=self.episode[self.order[:1]] - 1) != 0
        return opens

    @cached_property
    def _place(self) -> NDArray[np.int64]:
        """[N] in `order`: the number of the episode, counted from 0 without gaps."""
        place: NDArray[np.int64] = np.cumsum(self.opens[self.order]) - 1
        return place

    def episode_rewards(self) -> NDArray[np.float64]:
        """[N] the sum of the rewards of the row's episode, undiscounted."""
        totals = np.bincount(self._place, weights=self.reward[self.order])
        rewards = np.empty(len(self))
        rewards[self.order] = totals[self._place]
        return rewards

    def discounted_returns(self, gamma: float) -> NDArray[np.float64]:
        """[N] G_t = r_t + gamma · G_{t+1} within the episode, from the raw rewards.

        After the pass with stride s every row holds the discounted sum of its next 2s rewards, so that an episode of
        T turns takes log2(T) passes over the whole table.
        """
        returns = self.reward[self.order]
        place = self._place
        remaining = np.cumsum(np.bincount(place))[place] - np.arange(len(self)) - 1  # [N] turns still to come
        longest = remaining.max(initial=0)
        stride = 1
        while stride <= longest:
            rows = np.flatnonzero(remaining >= stride)
            returns[rows] += gamma**stride * returns[rows + stride]  # the right side is read before it is written
            stride *= 2
        out = np.empty(len(self))
        out[self.order] = returns
        return out
