"""Estimate the value of a state as the mean return of new attempts from it with the current policy.

VinePPO: Kazemnejad et al., arXiv 2410.01679; SPO: Guo et al., arXiv 2505.23564. Both play 9 attempts from each state.
"""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np
from numpy.typing import NDArray

from agents.episode import Episode, Start
from agents.rollout import Job, rollout
from algorithms.estimators.timeline import turns
from algorithms.signals.base import Measurement, RolloutBatch, SignalContext, UntrainedSignal
from algorithms.turn_table import TurnTable
from envs.core import Need


class MonteCarlo(UntrainedSignal):
    """Signals `mc_value`, for turns and for tokens (there at the first token of a turn).

    Attempts start from the snapshot before the turn. The run's own agent plays them under the turn limit of training,
    and their return is counted from the snapshot on. Attempts ended by a fault of the environment are left out. The
    value is NaN if none is left, and between segments. If none is left for the last states of an episode, their value
    is the episode's own return from there (`fill_ends`).
    """

    needs = frozenset({Need.SNAPSHOTS})
    gives = gives_tokens = ("mc_value",)
    by_first_rank = True

    def __init__(
        self, context: SignalContext, *, attempts: int = 9, segment_turns: int = 1, share_states: bool = False
    ) -> None:
        """`segment_turns` is the number of turns between measurements, starting at the first turn of an episode.

        `share_states` plays from only one of the states of a task that have the same key and uses the value for all of
        them. This is cheaper, but ignores how the value depends on the turns left and on what the policy remembers.
        """
        if attempts < 1 or segment_turns < 1:
            raise ValueError(
                f"attempts and segment_turns must be at least 1, got {attempts} attempts and segments of "
                f"{segment_turns} turns"
            )
        self.context, self.attempts = context, attempts
        self.segment_turns, self.share_states = segment_turns, share_states

    def measure(self, rollouts: RolloutBatch) -> Measurement:
        table = rollouts.table
        states = self._states(rollouts)
        jobs = [
            Job(episode.task, episode.group, episode.seed, start)
            for episode, start, _ in states.values()
            for _ in range(self.attempts)
        ]
        attempts = rollout(self.context.agent, self.context.pool, jobs, max_turns=self.context.max_turns)
        values = np.full(len(table), np.nan)
        steps = sampled = 0
        for number, (_, start, rows) in enumerate(states.values()):
            since = len(start.turns)
            those = attempts[number * self.attempts : (number + 1) * self.attempts]
            continued = [attempt.turns[since:] for attempt in those]
            steps += sum(map(len, continued))
            sampled += sum(len(turn.completion_ids) for turns in continued for turn in turns)
            returns = [
                sum(turn.reward for turn in turns)
                for attempt, turns in zip(those, continued, strict=True)
                if not attempt.is_faulty
            ]
            if returns:
                values[rows] = np.mean(returns)
        metrics = {
            "signal/env_steps": float(steps),
            "signal/mc_episodes": float(len(jobs)),
            "signal/mc_tokens": float(sampled),
        }
        if np.isfinite(values).any():
            metrics["signal/mc_value"] = float(np.nanmean(values))
        starts = np.zeros(len(table), dtype=np.bool_)
        starts[[row for _, _, rows in states.values() for row in rows]] = True
        values = fill_ends(table, values, starts)
        return Measurement({"mc_value": values}, {"mc_value": self._at_first_tokens(rollouts, values)}, metrics)

    def _states(self, rollouts: RolloutBatch) -> dict[Hashable, tuple[Episode, Start, list[int]]]:
        """The states to play from, each with an episode that passed through it and all rows that share its value."""
        states: dict[Hashable, tuple[Episode, Start, list[int]]] = {}
        row = 0
        for episode in rollouts.episodes:
            for number, turn in enumerate(episode.turns):
                if number % self.segment_turns == 0:
                    assert turn.start is not None, "the trainer keeps starts for signals that need them"
                    # A turn that several attempts share is the same object in each.
                    key: Hashable = (episode.group, turn.state_key) if self.share_states else id(turn)
                    states.setdefault(key, (episode, turn.start, []))[2].append(row)
                row += 1
        return states

    @staticmethod
    def _at_first_tokens(rollouts: RolloutBatch, values: NDArray[np.float64]) -> NDArray[np.float64]:
        table = rollouts.table
        assert table.tokens is not None
        tokens = np.full(len(table.token_rows), np.nan)
        tokens[np.cumsum(table.tokens) - table.tokens] = values
        return tokens


def fill_ends(table: TurnTable, values: NDArray[np.float64], starts: NDArray[np.bool_]) -> NDArray[np.float64]:
    """[N] `values`, where unmeasured states in `starts` [N] at the end of an episode get the episode's own return.

    V_k = r_k + V_{k+1}, as in VinePPO's `_compute_step_advantages`, so the advantages of their turns are 0.
    """
    line = turns(table)
    at_end = line.accumulate(np.isfinite(values).astype(np.float64), 1.0) == 0
    filled: NDArray[np.float64] = np.where(starts & at_end, line.accumulate(table.total_rewards(), 1.0), values)
    return filled
