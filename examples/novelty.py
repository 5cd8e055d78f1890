"""A method of your own: GRPO with a bonus for turns in states that the run has rarely visited.

    A_t = (R − mean R) / (std R + epsilon) + bonus · (n_t − mean n),  n_t = 1 / sqrt(visits of the turn's state)

R: return of the episode, compared within its group. n: novelty, compared within the batch. Bonuses by counts of visits:
Strehl and Littman, *An analysis of model-based Interval Estimation for Markov Decision Processes*, 2008.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from algorithms.estimators.grpo import grpo
from algorithms.signals.base import Measurement, RolloutBatch, SignalContext, UntrainedSignal
from algorithms.turn_table import TurnTable


class Novelty(UntrainedSignal):
    """Signal `novelty`, [N]: 1 / sqrt(visits) of the state before the turn, including those in this batch."""

    def __init__(self, context: SignalContext) -> None:
        """Needs nothing from the context."""
        self.visits: Counter[str] = Counter()

    def measure(self, rollouts: RolloutBatch) -> Measurement:
        states = rollouts.table.state
        self.visits.update(states)
        novelty = np.array([self.visits[state] ** -0.5 for state in states])
        return Measurement({"novelty": novelty}, metrics={"signal/novelty": float(novelty.mean())})

    def state(self) -> dict[str, Any]:
        return {"visits": dict(self.visits)}

    def load_state(self, state: dict[str, Any]) -> None:
        self.visits = Counter(state["visits"])


def novelty_grpo(table: TurnTable, *, bonus: float) -> NDArray[np.float64]:
    """One advantage per turn, [N]."""
    novelty = table.signal("novelty")
    return grpo(table) + bonus * (novelty - novelty.mean())
