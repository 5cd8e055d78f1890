"""Read the environment's rewards for single turns, and which turns returned a tool's result."""

from __future__ import annotations

import numpy as np

from algorithms.signals.base import Measurement, RolloutBatch, SignalContext, UntrainedSignal
from envs.core import TURN_KEYS, Need


class TurnRewards(UntrainedSignal):
    """Signals `turn_reward` and `tool_result`: the entries of `info` with these names.

    A turn whose step failed (a timeout, an error) has neither, and counts as 0 and no result.
    """

    needs = frozenset({Need.TURN_REWARDS})
    gives = tuple(TURN_KEYS)
    gives_tokens = ()

    def __init__(self, context: SignalContext) -> None:
        """`context` is not used."""

    def measure(self, rollouts: RolloutBatch) -> Measurement:
        """Raises `ValueError` naming the environment if it has no such entries."""
        columns = {}
        for key, kind in TURN_KEYS.items():
            values = []
            for episode in rollouts.episodes:
                entries = [getattr(turn, key) for turn in episode.turns]
                if any(value is None for value in (entries[:-1] if episode.error else entries)):
                    raise ValueError(
                        f"{episode.task.env} has no rewards for single turns: this method needs info[{key!r}] in every "
                        "step, as in env=search"
                    )
                values += [value or 0 for value in entries]
            columns[key] = np.array(values, dtype=kind)
        return Measurement(columns, metrics={f"signal/{key}": float(column.mean()) for key, column in columns.items()})
