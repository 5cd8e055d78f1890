"""Replay: turns of earlier updates that an update learns from once more, beside its own batch.

    rollout ──► filters ──► correction ──► signals ──► estimator ──► replay ──► loss

After the estimator, the turns of the batch with a positive advantage go into a buffer, with what the loss needs of
them: their log-probabilities when they were played, their advantage, the return of their episode, and the number of
the update. Once the buffer holds more than `threshold` turns, all of them are replayed in one update, and it is empty:

    loss = loss of the batch + c · loss of the replayed turns
    A = R - median(B)        R: return of the turn's episode, B: mean returns of the last groups; only A >= 0 is kept
    c = (1 - cos(pi t / T)) / 2, and 1 from t = T on        t: updates done, T: `warmup_updates`

So what the policy did well while it succeeded rarely counts less once it succeeds often. Each loss is a mean of its
own. A row of SPEAR's code is a turn here, so nothing depends on where prompts break.

Paper: SPEAR, Qin et al., arXiv 2509.22601. Published settings: a threshold of 1.5 · 2048 rows, at most 5 updates old
(ALFWorld), the last 10,240 groups, T from 100 to 200.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from algorithms.learner import Example, PolicyLoss, Replayed
from algorithms.stored_samples import load_samples, samples_state
from algorithms.turn_table import TurnTable

OF_TOKENS = ("advantages", "old_logprobs", "weights", "trained", "unit_tokens", "units")  # fields of an `Example`


class Row(NamedTuple):
    """A training sequence in the buffer. Only its kept turns are in the loss."""

    example: Example
    turns: int  # that are kept
    total: float  # return of its episode
    update: int  # in which it was played


class Replay:
    """The buffer of a run.

    (This is not a dataclass, because Hydra would convert a dataclass inside a configuration into configuration.)
    """

    def __init__(
        self, *, loss: PolicyLoss | None = None, threshold: int = 3072, age: int = 5, size: int = 8192,
        baselines: int = 10_240, decay: float | None = None, warmup_updates: int = 200,
    ) -> None:  # fmt: skip
        """`loss` is that of replayed turns; None: the loss of the batch.

        Turns that are older than `age` updates are dropped, and so are the oldest ones beyond `size`. `baselines` is
        how many means of groups the median is over. With `decay` the advantage is `decay` times the one that the turn
        had, and no median is used. Raises `ValueError` for a setting out of range.
        """
        least = {"threshold": 0, "age": 1, "baselines": 1, "warmup_updates": 0}
        for name, value in {"threshold": threshold, "age": age, "baselines": baselines}.items():
            if value < least[name]:
                raise ValueError(f"algo.replay.{name} must be at least {least[name]}, got {value}")
        if size <= threshold:
            raise ValueError(f"algo.replay.size={size} holds never more than algo.replay.threshold={threshold} turns")
        self.loss, self.threshold, self.age, self.size = loss, threshold, age, size
        self.baselines, self.decay, self.warmup_updates = baselines, decay, warmup_updates
        self.rows: list[Row] = []  # oldest first
        self.means: NDArray[np.float64] = np.zeros(0)  # of the last groups, oldest first
        self.units = 0  # numbers of units that are used up

    @property
    def held(self) -> int:
        """The number of turns in the buffer."""
        return sum(row.turns for row in self.rows)

    def weight(self, update: int) -> float:
        """c after `update` updates."""
        share = min(update / self.warmup_updates, 1.0) if self.warmup_updates else 1.0
        return (1 - math.cos(math.pi * share)) / 2

    def exchange(
        self, update: int, table: TurnTable, examples: Sequence[Example]
    ) -> tuple[Replayed | None, dict[str, float]]:
        """What update number `update` replays, if anything, and metrics. Then the examples of its batch are added.

        `examples` are those of `table`, whose turns are numbered by `Sample.turn`. The turns before, plus those that
        were added, are those that are held, replayed, rejected, expired and dropped. A batch that is not finite, whose
        update is skipped, exchanges nothing.
        """
        if not all(np.isfinite(e.advantages).all() and np.isfinite(e.old_logprobs).all() for e in examples):
            return None, {"replay/held": float(self.held)}
        counts = dict.fromkeys(("added", "replayed", "rejected", "expired", "dropped"), 0)
        returns = table.episode_sums(table.reward)
        self._remember(table, returns)
        young = [row for row in self.rows if update - row.update <= self.age]
        counts["expired"] = self.held - sum(row.turns for row in young)
        self.rows = young
        replayed = None
        if self.held > self.threshold:
            taken = self._estimated()
            counts["replayed"] = sum(row.turns for row in taken)
            counts["rejected"] = self.held - counts["replayed"]
            self.rows = []
            if taken:
                replayed = Replayed([row.example for row in taken], self.loss, self.weight(update))
        counts["added"] = self._add(update, returns, examples)
        while self.held > self.size:
            counts["dropped"] += self.rows.pop(0).turns
        metrics = {f"replay/{name}": float(count) for name, count in counts.items()}
        return replayed, metrics | {"replay/held": float(self.held), "replay/weight": self.weight(update)}

    def _remember(self, table: TurnTable, returns: NDArray[np.float64]) -> None:
        """Add the mean returns of the groups, over the policy's own attempts."""
        shown = table.signals.get("demonstration", np.zeros(len(table))).astype(np.bool_)
        first = table.is_first & ~shown
        _, group = np.unique(table.group[first], return_inverse=True)
        means = np.bincount(group, weights=returns[first]) / np.maximum(np.bincount(group), 1)
        self.means = np.concatenate([self.means, means])[-self.baselines :]

    def _estimated(self) -> list[Row]:
        """The rows with their new advantages, without those that are now worse than the median."""
        if self.decay is not None:
            return [
                row._replace(example=row.example._replace(advantages=self.decay * row.example.advantages))
                for row in self.rows
            ]
        median = float(np.median(self.means))
        return [
            row._replace(example=row.example._replace(advantages=np.full(len(row.example.trained), row.total - median)))
            for row in self.rows
            if row.total >= median
        ]

    def _add(self, update: int, returns: NDArray[np.float64], examples: Sequence[Example]) -> int:
        """Add the turns with a positive mean advantage; returns their number."""
        added, offset = 0, self.units
        for example in examples:
            self.units = max(self.units, offset + int(example.units.max(initial=-1)) + 1)
            if example.demonstrated.any():
                continue
            sample = example.sample
            turn = np.array([row for row, on in zip(sample.turn, sample.mask, strict=True) if on])
            good = [
                row
                for row in np.unique(turn[example.trained])
                if example.advantages[(turn == row) & example.trained].mean() > 0
            ]
            if not good:
                continue
            added += len(good)
            stored = replace(sample, origin=f"{sample.origin}, replayed from update {update + 1}")
            kept = example._replace(
                sample=stored, trained=example.trained & np.isin(turn, good), units=example.units + offset
            )
            self.rows.append(Row(kept, len(good), float(returns[turn[0]]), update))
        return added

    # -- checkpoints --------------------------------------------------------------------------------------------------
    def state(self) -> dict[str, Any]:
        """Tensors and plain data for a checkpoint."""
        examples = [row.example for row in self.rows]
        return {
            "means": torch.from_numpy(self.means.copy()),
            "used_units": self.units,
            "turns": [row.turns for row in self.rows],
            "totals": [row.total for row in self.rows],
            "updates": [row.update for row in self.rows],
            **samples_state([example.sample for example in examples]),
            **{name: torch.from_numpy(_joined([getattr(e, name) for e in examples])) for name in OF_TOKENS},
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned."""
        of_tokens = {name: torch.split(state[name], state["tokens"]) for name in OF_TOKENS}
        self.means, self.units, self.rows = state["means"].numpy(), int(state["used_units"]), []
        for number, sample in enumerate(load_samples(state)):
            columns = {name: of_tokens[name][number].numpy() for name in OF_TOKENS}
            example = Example(sample=sample, demonstrated=np.zeros(len(columns["trained"]), dtype=np.bool_), **columns)
            self.rows.append(Row(example, state["turns"][number], state["totals"][number], state["updates"][number]))


def _joined(values: Sequence[NDArray[Any]]) -> NDArray[Any]:
    return np.concatenate(values) if values else np.zeros(0)
