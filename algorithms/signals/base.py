"""The contract of a signal: it measures the turns of a batch before an estimator assigns credit, and may learn from it.

A method lists its signals in its configuration, `signals: {critic: {_target_: …, _partial_: true, …}}`. Each is created
once with the `SignalContext` of the run. `algorithms.turn_table.SIGNALS` lists what it may add to the `TurnTable`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from agents.agent import PolicyAgent
from agents.episode import Episode
from agents.samples import Sample, build_samples
from algorithms.parallel import ONE_PROCESS, Parallel
from algorithms.turn_table import Estimate, TurnTable
from envs.core import Need
from envs.pool import EnvPool

if TYPE_CHECKING:  # what a signal needs is asked before torch is imported, which takes seconds
    import torch


@dataclass(frozen=True)
class SignalContext:
    """The parts of the run that signals work with."""

    model: Any  # the trained model
    agent: PolicyAgent  # the agent of the rollouts
    pool: EnvPool
    dtype: torch.dtype  # for computations
    micro_batch_tokens: int
    grad_clip: float
    max_turns: int
    seed: int
    parallel: Parallel = ONE_PROCESS

    @property
    def device(self) -> torch.device:
        """The device of the trained model."""
        device: torch.device = next(self.model.parameters()).device
        return device


@dataclass(frozen=True)
class RolloutBatch:
    """A batch of episodes, their turns as a table, and their training samples."""

    episodes: Sequence[Episode]
    table: TurnTable
    samples: Sequence[Sample]

    @classmethod
    def of(cls, episodes: Sequence[Episode]) -> RolloutBatch:
        """The table and samples of `episodes`."""
        return cls(episodes, TurnTable.from_episodes(episodes), build_samples(episodes))

    def success(self) -> NDArray[np.float64]:
        """[N] 1 if the turn's episode solved its task, else 0."""
        return np.array([float(e.success) for e in self.episodes for _ in e.turns])

    def measured(self, measurement: Measurement) -> RolloutBatch:
        """The same batch with the measured columns added to its table."""
        table = replace(
            self.table,
            signals={**self.table.signals, **measurement.signals},
            token_signals={**self.table.token_signals, **measurement.token_signals},
        )
        return replace(self, table=table)


@dataclass(frozen=True)
class Measurement:
    """The result of a signal: columns for the table, and numbers for the logs."""

    signals: dict[str, NDArray[Any]] = field(default_factory=dict)  # each [N, …]
    token_signals: dict[str, NDArray[Any]] = field(default_factory=dict)  # each [M, …]
    metrics: dict[str, float] = field(default_factory=dict)


class Signal(Protocol):
    """One signal of a run."""

    needs: frozenset[Need]  # from the environment; with `Need.SNAPSHOTS` each turn of a batch has its `start`
    gives: Sequence[str] | None  # names of the signals of turns that it measures
    gives_tokens: Sequence[str] | None  # and of tokens; None: unknown before it has measured
    learns_returns: bool  # whether it learns from the returns of an `Estimate`
    by_first_rank: bool  # whether only rank 0 measures, because the signal plays episodes or calls a service

    @classmethod
    def check(cls, settings: Mapping[str, Any]) -> None:
        """Raise if a service in the signal's `settings` cannot be reached. Called once, before the signal is made."""

    def measure(self, rollouts: RolloutBatch) -> Measurement:
        """Measure a batch. Its table has the columns of all signals that are listed earlier."""

    def learn(self, rollouts: RolloutBatch, estimate: NDArray[np.float64] | Estimate) -> dict[str, float]:
        """Learn from the batch, after the estimator; returns metrics."""

    def state(self) -> dict[str, Any]:
        """Tensors and plain data for a checkpoint."""

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""


class SignalBase:
    """Defaults of most signals: they need nothing from the environment and no service."""

    needs: frozenset[Need] = frozenset()
    gives: Sequence[str] | None = None
    gives_tokens: Sequence[str] | None = None
    learns_returns = False
    by_first_rank = False

    @classmethod
    def check(cls, settings: Mapping[str, Any]) -> None:
        """Nothing to check."""


class UntrainedSignal(SignalBase):
    """A `Signal` that learns nothing and has no state."""

    def learn(self, rollouts: RolloutBatch, estimate: NDArray[np.float64] | Estimate) -> dict[str, float]:  # noqa: ARG002
        return {}

    def state(self) -> dict[str, Any]:
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """There is no state."""


MakeSignal = Callable[[SignalContext], Signal]


def make_signals(signals: Mapping[str, MakeSignal], context: SignalContext) -> dict[str, Signal]:
    """The signals of a run. They copy the model, so they are made before the learner, which may divide its weights."""
    return {name: make(context) for name, make in signals.items()}


def turn_means(table: TurnTable, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """[N] the mean of token `values` [M] over each turn."""
    count = np.bincount(table.token_rows, minlength=len(table))
    means: NDArray[np.float64] = turn_sums(table, values) / np.maximum(count, 1)
    return means


def turn_sums(table: TurnTable, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """[N] the sum of token `values` [M] over each turn."""
    return np.bincount(table.token_rows, weights=values, minlength=len(table)).astype(np.float64)


def first_tokens(table: TurnTable, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """[N] the token `values` [M] at the first token of each turn."""
    assert table.tokens is not None
    first: NDArray[np.float64] = values[np.cumsum(table.tokens) - table.tokens]
    return first
