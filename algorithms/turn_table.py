"""The table that estimators read: one row for every turn of every episode, and the signals of its turns and tokens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

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

# The signals that estimators can use: shape (N turns, M sampled tokens), meaning, and the file of algorithms/signals
# that measures them.
SIGNALS = {
    "answer_logprob": "[N] mean log-probability of the right answer before the turn, NaN unmeasured (answer_gain)",
    "demonstration": "[N] whether the turn is one of a demonstration, not the policy's own (algo.demonstrations)",
    "entropy": "[N] mean entropy of the policy over the turn's tokens, in nats (entropy)",
    "mc_value": "[N] mean return of fresh attempts from before the turn, NaN unmeasured (monte_carlo)",
    "next_value": "[N] value of the state after an episode that was cut off, on its last turn, 0 elsewhere (critic)",
    "node": "[N] the turn's node in the tree of attempts at a task, equal for all attempts that share it (tree)",
    "prm": "[N] score of the turn by a process reward model (implicit_prm, judge)",
    "progress": "[N] the turn's part of its attempt's return, in units of reward (progress)",
    "tag": "[N] number of the kind of reasoning that the turn begins with, 0 for none (meta_reasoning)",
    "tag_form": "[N] whether the answer is one kind of reasoning and an action (meta_reasoning)",
    "tag_reward": "[N] reward of the turn's reasoning by a rule (meta_reasoning)",
    "task_value": "[N] success rate of the turn's task in earlier updates (task_value)",
    "tool_result": "[N] whether a tool's result came back after the turn (turn_rewards)",
    "tree": "[N] the tree that the turn's episode belongs to (tree)",
    "turn_reward": "[N] a rule's reward for the turn, separate from the environment's reward (turn_rewards)",
    "value": "[N] value of the state before the turn (critic)",
}
TOKEN_SIGNALS = {
    "entropy": "[M] entropy of the policy at the token, in nats (token_entropy)",
    "continuation": "[M] number of the token's prefix with the token (prefixes)",
    "importance_weight": "[M] weight of the token's loss for the engine's mismatch (trainer.correction)",
    "logprob": "[M] log-probability that the token was sampled with (TurnTable.from_episodes)",
    "mc_value": "[M] mean return of fresh attempts from before the token where a segment starts, NaN elsewhere"
    " (monte_carlo)",
    "planning": "[M] whether the token is of a phrase that plans, 1 or 0 (phrases)",
    "prefix": "[M] number of all that the policy read before it drew the token, within its task (prefixes)",
    "prm": "[M] score of the token by a process reward model (implicit_prm)",
    "residual_weight": "[M] how little a failure's token resembles those of successes at its task, from the smallest"
    " weight to 1; 1 elsewhere (residual)",
    "square_sum": "[M] sum of the squared probabilities of all words at the token's place (square_sum)",
    "token_reward": "[M] added to the reward of the token's turn, such as a KL penalty (algo.kl_in=reward)",
    "value": "[M] value before the token (critic)",
}


class MissingSignalError(ValueError):
    """An estimator needs a signal that was not measured."""


class Estimate(NamedTuple):
    """The result of an estimator with a critic: advantages, and the returns that the critic's values are fitted to."""

    advantages: NDArray[np.float64]  # [N] or [M]
    returns: NDArray[np.float64]  # of the same shape


@dataclass(frozen=True, eq=False)  # arrays cannot be compared to a single bool
class TurnTable:
    """Columns over N turns. An estimator is a pure function of it: `(table, *, parameters) -> advantages`.

    Advantages are one per turn, [N], or one per sampled token, [M]: the tokens of row 0, then those of row 1, and so
    on; `tokens` counts them. Observations have no tokens here, so they cannot be credited. An estimator whose critic is
    trained as well returns an `Estimate` of advantages and returns.

    Two attempts (episodes 0 and 1) at one task (group 0); the second types an unknown command, then solves it:

        group    episode  turn  reward  state            valid
        0        0        0     0.0     "in the hall"    True
        0        0        1     0.0     "at the desk"    True
        0        1        0     0.0     "in the hall"    False
        0        1        1     10.0    "in the hall"    True

    Rows may be in any order: `turn` gives the time inside an episode, not the row's position (rows made by
    `from_episodes` are in time order, episode after episode). An (episode, turn) pair appears once, because a row
    duplicated to fill a batch would count twice in every statistic.

    Raises `ValueError` for a column of another shape or dtype, a reward that is not finite, an (episode, turn) pair
    that appears twice, and an episode in two groups.
    """

    group: NDArray[np.int64]  # [N] attempts that share a task and a start, and are compared with each other
    episode: NDArray[np.int64]  # [N] unique over all groups
    turn: NDArray[np.int64]  # [N] increases with time inside an episode
    reward: NDArray[np.float64]  # [N] the environment's reward for the turn's action, before any penalty
    state: NDArray[np.object_]  # [N] hashable key of the state before the action; equal keys = equal states
    valid: NDArray[np.bool_]  # [N] whether the environment could play the policy's answer
    signals: dict[str, NDArray[Any]] = field(default_factory=dict)  # [N, …] measured signals, see SIGNALS
    tokens: NDArray[np.int64] | None = None  # [N] number of sampled tokens (or whole actions); None: not counted
    token_signals: dict[str, NDArray[Any]] = field(default_factory=dict)  # [M, …] the same for tokens

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
        if self.tokens is not None and (self.tokens.shape != shape or self.tokens.dtype != np.int64):
            raise ValueError(f"tokens are {self.tokens.dtype} of shape {self.tokens.shape}, expected int64 of {shape}")
        for name, signal in self.token_signals.items():
            if signal.shape[:1] != (len(self.token_rows),):
                count = len(self.token_rows)
                raise ValueError(
                    f"token signal {name!r} has shape {signal.shape}, expected one entry for {count} tokens"
                )
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
        """One row per turn, in the order of `episodes`; the episode's number is its index in that sequence.

        A turn is valid if its status is `ok`: malformed, illegal and truncated answers all leave the environment
        unchanged. (For completions with reasoning around the action, methods of the verl-agent family call only a wrong
        format invalid.) An episode that ended before its first turn has no rows.
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
            tokens=np.array([len(turn.logprobs) for turn in turns], dtype=np.int64),
            token_signals={"logprob": np.array([p for turn in turns for p in turn.logprobs], dtype=np.float64)},
        )

    # -- signals ------------------------------------------------------------------------------------------------------
    def signal(self, name: str) -> NDArray[Any]:
        """[N, …] the signal `name` of each turn. Raises `MissingSignalError`."""
        if name not in self.signals:
            raise _missing("signal", name, SIGNALS, self.signals)
        return self.signals[name]

    def token_signal(self, name: str) -> NDArray[Any]:
        """[M, …] the signal `name` of each token. Raises `MissingSignalError`."""
        if name not in self.token_signals:
            raise _missing("token signal", name, TOKEN_SIGNALS, self.token_signals)
        return self.token_signals[name]

    @cached_property
    def token_rows(self) -> NDArray[np.int64]:
        """[M] the row of each token's turn. Raises `ValueError` if tokens were not counted."""
        if self.tokens is None:
            raise ValueError(
                "this table has no count of sampled tokens (`tokens`), which an estimator over tokens needs"
            )
        return np.repeat(np.arange(len(self)), self.tokens)

    def per_token(self, values: NDArray[Any]) -> NDArray[Any]:
        """[M] `values` as they are if there is one per token, [M]; if one per turn, [N], each of its tokens gets it."""
        if len(values) == len(self.token_rows):
            return values
        if len(values) != len(self):
            raise ValueError(f"{len(values)} values for {len(self)} turns of {len(self.token_rows)} tokens")
        shared: NDArray[Any] = values[self.token_rows]
        return shared

    @cached_property
    def own_tokens(self) -> NDArray[np.bool_]:
        """[M] whether the policy sampled the token: false for those of demonstrations."""
        shown = self.signals.get("demonstration", np.zeros(len(self)))
        own: NDArray[np.bool_] = ~shown.astype(np.bool_)[self.token_rows]
        return own

    # -- time ---------------------------------------------------------------------------------------------------------

    @cached_property
    def order(self) -> NDArray[np.int64]:
        """[N] the rows by episode, then by turn."""
        step = np.diff(self.episode)
        if np.all((step > 0) | ((step == 0) & (np.diff(self.turn) > 0))):
            return np.arange(len(self))  # already in order, as from `from_episodes`: sorting a million rows is slow
        order: NDArray[np.int64] = np.lexsort((self.turn, self.episode))
        return order

    @cached_property
    def is_first(self) -> NDArray[np.bool_]:
        """[N] whether the row is the first turn of its episode."""
        first = np.empty(len(self), dtype=np.bool_)
        first[self.order] = np.diff(self.episode[self.order], prepend=self.episode[self.order[:1]] - 1) != 0
        return first

    @cached_property
    def _place(self) -> NDArray[np.int64]:
        """[N] in `order`: the number of the episode, counted from 0 without gaps."""
        place: NDArray[np.int64] = np.cumsum(self.is_first[self.order]) - 1
        return place

    @cached_property
    def episode_number(self) -> NDArray[np.int64]:
        """[N] the episodes, numbered from 0 without gaps."""
        number = np.empty(len(self), dtype=np.int64)
        number[self.order] = self._place
        return number

    def episode_sums(self, values: NDArray[Any]) -> NDArray[np.float64]:
        """[N] the sum of `values` [N] over the row's episode."""
        sums = np.bincount(self._place, weights=values[self.order])  # in time order: all row orders round alike
        return sums.astype(np.float64)[self.episode_number]

    def total_rewards(self) -> NDArray[np.float64]:
        """[N] the reward of each turn, plus the signal `token_reward` of its tokens if it was measured."""
        if "token_reward" not in self.token_signals:
            return self.reward
        of_tokens = np.bincount(self.token_rows, weights=self.token_signals["token_reward"], minlength=len(self))
        paid: NDArray[np.float64] = self.reward + of_tokens
        return paid

    def episode_rewards(self) -> NDArray[np.float64]:
        """[N] the sum of `total_rewards` over the row's episode, undiscounted."""
        return self.episode_sums(self.total_rewards())

    def discounted_returns(self, gamma: float) -> NDArray[np.float64]:
        """[N] G_t = r_t + gamma · G_{t+1} within the episode, from the environment's rewards only.

        After the pass with stride s, every row holds the discounted sum of its next 2s rewards. An episode of T turns
        therefore takes log2(T) passes over the whole table.
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


def _missing(kind: str, name: str, known: Mapping[str, str], there: Iterable[str]) -> MissingSignalError:
    measured = ", ".join(sorted(there)) or "none"
    meaning = known.get(name, "one that algorithms.turn_table does not list")
    return MissingSignalError(f"this estimator needs the {kind} {name!r}: {meaning}; measured were: {measured}")
