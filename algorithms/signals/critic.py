"""A learned value of the state before each turn and each token, trained by regression to the returns.

PPO: Schulman et al., arXiv 1707.06347; the value loss is clipped as in verl (`algorithms.losses.value_loss`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from agents.samples import Sample
from algorithms.batches import (
    by_sample,
    make_batch,
    map_samples,
    micro_batches,
    padded_tokens,
    turn_of,
)
from algorithms.finite import FiniteSteps, LossPart, first_not_finite
from algorithms.losses import value_loss
from algorithms.signals.base import Measurement, RolloutBatch, SignalContext, first_tokens
from algorithms.signals.headed import Headed
from algorithms.turn_table import Estimate, TurnTable
from envs.core import StopReason


class ValueTarget(NamedTuple):
    """A sample, and for each of its sampled ids the target of its value (NaN: none) and the old value."""

    sample: Sample
    targets: NDArray[np.float64]
    old: NDArray[np.float64]


class Critic(Headed):
    """Signals `value`, for turns and tokens: the expected return from here on, before the turn or token is known."""

    gives = ("value", "next_value")
    gives_tokens = ("value",)
    learns_returns = True

    def __init__(
        self,
        context: SignalContext,
        *,
        body: str = "separate",
        learning_rate: float = 1e-5,
        epochs: int = 1,
        minibatches: int = 1,
        clip: float | None = 0.5,
    ) -> None:
        """An update makes `epochs` passes over a batch, each with `minibatches` optimiser steps over disjoint parts.
        `clip`, in units of value, limits the change of a value.
        """
        if epochs < 1 or minibatches < 1:
            raise ValueError(f"a critic's epochs and minibatches must be at least 1, got {epochs} and {minibatches}")
        super().__init__(context, body, learning_rate)
        self.epochs, self.minibatches, self.clip = epochs, minibatches, clip
        self.rng = np.random.default_rng(context.seed)  # for the order of samples in a pass
        self.steps = FiniteSteps("critic")

    def measure(self, rollouts: RolloutBatch) -> Measurement:
        values = self._all_values(rollouts.samples)
        by_turn = first_tokens(rollouts.table, values)
        after, metrics = self._next_values(rollouts), {"signal/value": float(by_turn.mean())}
        return Measurement({"value": by_turn, "next_value": after}, {"value": values}, metrics)

    def _all_values(self, samples: Sequence[Sample]) -> NDArray[np.float64]:
        context = self.context
        return map_samples(samples, context.micro_batch_tokens, context.device, self._values, context.parallel)

    def _next_values(self, rollouts: RolloutBatch) -> NDArray[np.float64]:
        """[N] for the last turn of an episode that the turn limit cut off, the value of the next state; otherwise 0.

        Also 0 if the next prompt would not fit, since the episode would end there. After a fault, the next state is
        unknown.
        """
        agent = self.context.agent
        prompts, rows = [], []
        row = -1
        for episode in rollouts.episodes:
            row += len(episode.turns)
            if episode.turns and episode.stop_reason is StopReason.TURN_LIMIT:
                prompt = agent.prompt(episode.turns, episode.final_observation, episode.final_info)
                if prompt is not None:
                    prompts.append(Sample())
                    prompts[-1].extend(prompt)
                    prompts[-1].extend(prompt[-1:], [0.0])  # the value before this id does not depend on the id
                    rows.append(row)
        values = np.zeros(len(rollouts.table))
        values[rows] = self._all_values(prompts)
        return values

    def learn(self, rollouts: RolloutBatch, estimate: NDArray[np.float64] | Estimate) -> dict[str, float]:
        """Fit the values to the estimate's returns; returns of turns are fitted at the first token of each turn.

        Steps that are not finite are skipped and counted in `signal/value_skipped_steps`. If a return is not finite,
        all steps are skipped. Raises `NotFiniteError` after too many in a row.
        """
        if not isinstance(estimate, Estimate):
            raise TypeError("a critic learns from returns, but this estimator returns only advantages; see `Estimate`")
        table, samples = rollouts.table, rollouts.samples
        minibatches = min(self.minibatches, len(samples))
        returns = table.per_token(estimate.returns)
        place = first_not_finite(returns)
        if place is not None:
            self.steps.skip(f"a return is {returns[place]}", turn_of(samples, table, place))
            return {"signal/value_skipped_steps": float(self.epochs * minibatches)}
        targets, old = per_token_targets(table, estimate.returns), table.token_signal("value")
        targets_of_samples = [
            ValueTarget(*row) for row in zip(samples, by_sample(samples, targets), by_sample(samples, old), strict=True)
        ]
        losses: list[float | None] = []  # one per step
        for _ in range(self.epochs):
            order = self.rng.permutation(len(targets_of_samples))
            losses += [
                self._step([targets_of_samples[i] for i in np.sort(part)])
                for part in np.array_split(order, minibatches)
            ]
        known = np.isfinite(targets)
        unexplained = float(np.var((targets - old)[known])) / max(float(np.var(targets[known])), 1e-12)
        metrics = {"signal/explained_variance": 1.0 - unexplained}
        taken = [loss for loss in losses[-minibatches:] if loss is not None]
        if taken:
            metrics["signal/value_loss"] = float(np.mean(taken))
        if None in losses:
            metrics["signal/value_skipped_steps"] = float(losses.count(None))
        return metrics

    def _step(self, targets_of_samples: Sequence[ValueTarget]) -> float | None:
        """One optimiser step. Returns its loss, or None if it was skipped."""
        known = sum(int(np.isfinite(target.targets).sum()) for target in targets_of_samples)
        parallel, samples = self.context.parallel, [target.sample for target in targets_of_samples]
        parts = micro_batches([len(sample.ids) for sample in samples], self.context.micro_batch_tokens)
        costs = padded_tokens([[samples[i] for i in part] for part in parts])
        total = 0.0
        for part, weight in parallel.passes(parts, costs):
            loss = weight * self._loss([targets_of_samples[i] for i in part], known)
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        trained = list(self.trained.values())
        parallel.sum_gradients(trained)
        total = float(parallel.sum(np.array([total]))[0])
        loss_parts: list[LossPart] = [
            (target.sample.origin, partial(self._loss, [target], known)) for target in targets_of_samples
        ]
        norm = self.steps.take(trained, [self.optimizer], self.context.grad_clip, total, loss_parts)
        return None if norm is None else total

    def _loss(self, targets_of_samples: Sequence[ValueTarget], known: int) -> Tensor:
        batch = make_batch([target.sample for target in targets_of_samples], self.context.device)
        target, before = (
            batch.spread([target.targets for target in targets_of_samples]),
            batch.spread([target.old for target in targets_of_samples]),
        )
        at = batch.mask & target.isfinite()
        return value_loss(self._values(batch)[at], before[at], target[at], clip=self.clip).sum() / max(known, 1)

    def state(self) -> dict[str, Any]:
        return {**super().state(), "order_rng": json.dumps(self.rng.bit_generator.state)}

    def load_state(self, state: dict[str, Any]) -> None:
        super().load_state(state)
        self.rng.bit_generator.state = json.loads(state["order_rng"])


def per_token_targets(table: TurnTable, returns: NDArray[np.float64]) -> NDArray[np.float64]:
    """[M] the target of each token's value: its own return, or the turn's at its first token and NaN elsewhere."""
    if len(returns) == len(table.token_rows):
        return returns
    assert table.tokens is not None
    targets = np.full(len(table.token_rows), np.nan)
    targets[np.cumsum(table.tokens) - table.tokens] = returns
    return targets
