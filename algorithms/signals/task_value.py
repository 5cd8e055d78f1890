"""The success rate of each task, from the attempts of earlier updates: a running mean that forgets as the policy moves.

    V = a / (a + b);  after a batch with attempts of returns R at the task:  a ← f a + Σ R,  b ← f b + Σ (1 - R)
    f = 2^(-D / half_life), between `lowest` and `highest`

D is how far the policy has moved on this task: the mean over the tokens of its last attempt of |log p - log p'|, with
p' after the update that learned from that attempt and p after this one. A task that is played for the first time has
D = 0. Before that, a = first_weight · first_value and b = first_weight · (1 - first_value).

Paper: Xu and Ding, *Single-stream Policy Optimization*, arXiv 2509.13232; the results equal `recipe/spo` of verl, where
`half_life` is 0.06, `lowest` 0.875 and `highest` 0.96, and each task has one attempt in a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.samples import Sample
from algorithms.batches import Batch, by_sample, map_samples, sampled_logprobs
from algorithms.signals.base import Measurement, RolloutBatch, SignalBase, SignalContext
from algorithms.stored_samples import load_samples, samples_state
from algorithms.turn_table import Estimate


class Attempt(NamedTuple):
    """The last attempt at a task."""

    samples: Sequence[Sample]
    logprobs: Sequence[NDArray[np.float64]]  # of each sample's sampled ids, after the update that learned from them


class TaskValue(SignalBase):
    """Signal `task_value`: the success rate of the turn's task before this batch, between 0 and 1.

    With `lowest` equal to `highest` the forgetting is constant: no attempts are kept, and no pass is made. Otherwise
    the state holds one attempt at each task that was played.
    """

    gives = ("task_value",)
    gives_tokens = ()

    def __init__(
        self, context: SignalContext, *, half_life: float = 0.06, lowest: float = 0.875, highest: float = 0.96,
        first_value: float = 0.5, first_weight: float = 1.0,
    ) -> None:  # fmt: skip
        """`half_life` is in nats; `first_weight` says how many attempts `first_value` counts for.

        Raises `ValueError` for a `lowest` above `highest`.
        """
        if lowest > highest:
            raise ValueError(f"algo.signals.task_value.lowest={lowest} is above its highest={highest}")
        self.context, self.half_life, self.lowest, self.highest = context, half_life, lowest, highest
        self.first = (first_weight * first_value, first_weight * (1 - first_value))
        self.counts: dict[str, tuple[float, float]] = {}  # by task: a and b
        self.last: dict[str, Attempt] = {}

    def measure(self, rollouts: RolloutBatch) -> Measurement:
        """Raises `ValueError` for an attempt whose return is not between 0 and 1."""
        for episode in rollouts.episodes:
            if not 0 <= episode.total_reward <= 1 and not episode.demonstration:
                raise ValueError(
                    f"an attempt at task {episode.task.id!r} has the return {episode.total_reward:g}; the signal "
                    "task_value is a success rate, and needs returns between 0 and 1"
                )
        counts = np.array([self.counts.get(episode.task.id, self.first) for episode in rollouts.episodes])
        values = counts[:, 0] / counts.sum(1)
        known = [episode.task.id in self.counts for episode in rollouts.episodes]
        metrics = {"signal/task_value": float(values.mean()), "signal/task_known": float(np.mean(known))}
        return Measurement({"task_value": values[rollouts.table.episode]}, metrics=metrics)

    def learn(self, rollouts: RolloutBatch, estimate: NDArray[np.float64] | Estimate) -> dict[str, float]:  # noqa: ARG002
        """Count the attempts of the batch. Demonstrations are left out."""
        attempts: dict[str, list[int]] = {}
        for number, episode in enumerate(rollouts.episodes):
            if episode.turns and not episode.demonstration:
                attempts.setdefault(episode.task.id, []).append(number)
        if not attempts:
            return {}
        moved = self._moved(rollouts, {task: numbers[-1] for task, numbers in attempts.items()})
        kept = np.clip(2.0 ** (-moved / self.half_life), self.lowest, self.highest)
        for (task, numbers), keep in zip(attempts.items(), kept.tolist(), strict=True):
            returns = [rollouts.episodes[number].total_reward for number in numbers]
            a, b = self.counts.get(task, self.first)
            self.counts[task] = keep * a + sum(returns), keep * b + len(returns) - sum(returns)
        return {"signal/task_moved": float(moved.mean()), "signal/task_kept": float(kept.mean())}

    def _moved(self, rollouts: RolloutBatch, last: dict[str, int]) -> NDArray[np.float64]:
        """D of each task of `last`, whose last attempts in the batch, by the episode's number, are kept."""
        if self.lowest == self.highest:
            return np.zeros(len(last))
        tasks = {number: task for task, number in last.items()}
        added: dict[str, list[Sample]] = {task: [] for task in last}
        for sample in rollouts.samples:
            task = tasks.get(int(rollouts.table.episode[max(sample.turn)]))
            if task is not None:
                added[task].append(sample)
        before = {task: self.last[task] for task in last if task in self.last}
        attempts = [*(attempt.samples for attempt in before.values()), *added.values()]
        samples = [sample for attempt in attempts for sample in attempt]
        now = iter(by_sample(samples, self._logprobs(samples)))
        moved = {
            task: float(np.abs(np.concatenate([next(now) - then for then in attempt.logprobs])).mean())
            for task, attempt in before.items()
        }
        self.last |= {task: Attempt(of_task, [next(now) for _ in of_task]) for task, of_task in added.items()}
        return np.array([moved.get(task, 0.0) for task in last])

    def _logprobs(self, samples: Sequence[Sample]) -> NDArray[np.float64]:
        context = self.context

        def compute(batch: Batch) -> Tensor:
            return sampled_logprobs(context.model, batch, context.agent.sampling.temperature, context.dtype)[0]

        return map_samples(samples, context.micro_batch_tokens, context.device, compute, context.parallel)

    def state(self) -> dict[str, Any]:
        logprobs = [values for attempt in self.last.values() for values in attempt.logprobs]
        return {
            "counts": {task: list(counts) for task, counts in self.counts.items()},
            "last": {task: len(attempt.samples) for task, attempt in self.last.items()},
            "samples": samples_state([sample for attempt in self.last.values() for sample in attempt.samples]),
            "logprobs": torch.from_numpy(np.concatenate([np.zeros(0), *logprobs])),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self.counts = {task: (a, b) for task, (a, b) in state["counts"].items()}
        samples = iter(load_samples(state["samples"]))
        logprobs = iter(torch.split(state["logprobs"], state["samples"]["tokens"]))
        self.last = {
            task: Attempt([next(samples) for _ in range(count)], [next(logprobs).numpy() for _ in range(count)])
            for task, count in state["last"].items()
        }
