"""What rules of the environment paid for single turns, and which turns brought a tool's result back."""

from __future__ import annotations

import numpy as np

from algorithms.signals.base import Measurement, Measures, RolloutBatch, SignalContext
from envs.core import TURN_KEYS, Need


class TurnRewards(Measures):
    """Signals `turn_reward` and `tool_result`: what `step` put into `info` under these names.

    A turn whose step failed (a timeout, an error) has neither, and counts as 0 and no result.
    """

    needs = frozenset({Need.TURN_REWARDS})
    gives = tuple(TURN_KEYS)
    gives_tokens = ()

    def __init__(self, context: SignalContext) -> None:
        """Nothing of the run is needed."""

    def measure(self, rollouts: RolloutBatch) -> Measurement:
        """Raises `ValueError` naming the environment that does not say."""
        columns = {}
        for key, kind in TURN_KEYS.items():
            values = []
            for episode in rollouts.episodes:
                told = [getattr(turn, key) for turn in episode.turns]
                if any(value is None for value in (told[:-1] if episode.error else told)):
                    raise ValueError(
                        f"{episode.task.env} says nothing of single turns: this method needs info[{key!r}] of every "
                        "step, as env=lookup gives it"
                    )
                values += [value or 0 for value in told]
            columns[key] = np.array(values, dtype=kind)
        return Measurement(columns, metrics={f"signal/{key}": float(column.mean()) for key, column in columns.items()})
