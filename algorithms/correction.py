"""Correct a batch for the difference between the policy that is trained and the engine that sampled.

    d = log p_trained - log p_engine            of each sampled token, both with the same weights
    w = exp(d), exp(mean of d), exp(sum of d)   of a token, of a turn or an episode, of an episode

The loss of a token is multiplied by w within bounds (truncated importance sampling), or by 0 outside of them (IcePop).
Tokens, turns or episodes can also be rejected; the loss and its divisor leave them out. Everything is computed for the
whole batch before the first step, so it depends neither on micro-batches nor on how turns are cut into samples.
Demonstrations were not sampled by an engine: they have the weight 1 and are in no statistic.

Sources: verl's `rollout_corr_helper.py` (weights, rejection), slime (IcePop, clipping to an interval), ROLL (the ratio
of a turn). A row of verl is an episode here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from algorithms.turn_table import TurnTable
from envs.core import UnknownNameError

LEVELS = ("token", "turn", "episode", "episode_mean")
OUTSIDE = ("clip", "zero")
LARGEST = 20.0  # log-ratios are clipped to this; larger ones only show that the two models have diverged
MEASURES = tuple(
    f"{unit}_{kl}" if unit == "token" else f"{unit}_{reduced}_{kl}"
    for unit in ("token", "turn", "episode")
    for reduced in ("sum", "mean", "max")
    for kl in ("k1", "k2", "k3")
    if not (unit == "token" and reduced != "sum") and not (reduced == "max" and kl == "k1")
)
Bound = float | Sequence[float]
Floats = NDArray[np.float64]


class Corrected(NamedTuple):
    """The result of a correction for each sampled token, [M], and its metrics."""

    trained: Floats  # log-probabilities under the trained model
    weights: Floats  # of the loss
    kept: NDArray[np.bool_]  # whether the loss counts it
    metrics: dict[str, float]


@dataclass(frozen=True)
class Correction:
    """Weights and rejection. Raises `UnknownNameError` for an unknown name, and `ValueError` for invalid bounds."""

    level: str = "token"  # token; turn, episode_mean: the geometric mean of its tokens; episode: their product
    low: float = 0.0  # bounds of the weight
    high: float = 2.0
    outside: str = "clip"  # clip to the bounds; zero
    normalize: bool = False  # divide by the mean weight of the batch's tokens, turns or episodes
    reject: Mapping[str, Bound] = field(default_factory=dict)
    """Bounds by measure, of which all must hold: `episode_mean_k1: [0.99, 1.01]`. With r = p_engine / p_trained:
    k1 = log r, within two bounds of r (a single x: 1/x and x); k2 = k1² / 2 and k3 = 1/r - 1 + k1, at most the bound.
    For a turn or an episode it is the sum, the mean or the largest over its tokens."""
    lowest_ratio: float = 0.0  # an episode with a token whose 1/r is smaller is rejected; verl: 1e-4

    def __post_init__(self) -> None:
        for name, value, known in (("level", self.level, LEVELS), ("outside", self.outside, OUTSIDE)):
            if value not in known:
                raise UnknownNameError(f"trainer.correction.{name}", value, known)
        if not 0 <= self.low < self.high:
            raise ValueError(f"trainer.correction needs 0 <= low < high, got low={self.low} and high={self.high}")
        for measure, bound in self.reject.items():
            if measure not in MEASURES:
                raise UnknownNameError("trainer.correction.reject", measure, MEASURES)
            _interval(measure, bound)

    def __call__(self, trained: Floats, engine: Floats, table: TurnTable) -> Corrected:
        """The correction of a batch, from the log-probabilities [M] of its sampled tokens, in the order of `table`."""
        own = table.own_tokens
        difference, rows = (trained - engine)[own], table.token_rows[own]
        units = {"token": np.arange(len(difference)), "turn": rows, "episode": table.episode_number[rows]}
        kept = np.ones(len(difference), dtype=np.bool_)
        for measure, bound in self.reject.items():
            kept &= _within(measure, bound, -difference, units)
        if self.lowest_ratio:
            impossible = np.bincount(units["episode"], weights=difference < math.log(self.lowest_ratio))
            kept &= impossible[units["episode"]] == 0
        unit, _, mean = self.level.partition("_")
        exponent = _reduced("mean" if mean or unit == "turn" else "sum", difference, units[unit])
        ratios = np.exp(np.clip(exponent, -LARGEST, LARGEST))  # one for each unit
        weights = ratios.clip(self.low, self.high)
        bounded = ratios != weights
        if self.outside == "zero":
            weights = np.where(bounded, 0.0, weights)
        used = np.bincount(units[unit], minlength=len(weights)) > 0
        if self.normalize and used.any() and weights[used].mean() > 0:
            weights = weights / weights[used].mean()
        metrics = {
            "mismatch/kl": float(-difference.mean()) if len(difference) else 0.0,
            "mismatch/max_ratio": math.exp(min(float(np.abs(difference).max(initial=0.0)), LARGEST)),
            "mismatch/bounded": float(bounded[units[unit]].mean()) if len(difference) else 0.0,
            "mismatch/rejected": float(1 - kept.mean()) if len(difference) else 0.0,
        }
        of_all, all_kept = np.ones(len(own)), np.ones(len(own), dtype=np.bool_)
        of_all[own], all_kept[own] = weights[units[unit]], kept
        return Corrected(trained, of_all, all_kept, metrics)


def _reduced(how: str, values: Floats, unit: NDArray[np.int64]) -> Floats:
    """[U] the sum, the mean or the largest of `values` [M] of each unit; 0 for a unit without tokens."""
    count = int(unit.max(initial=-1)) + 1
    if how == "max":
        largest = np.full(count, -np.inf)
        np.maximum.at(largest, unit, values)
        return np.where(np.isinf(largest), 0.0, largest)
    sums = np.bincount(unit, weights=values, minlength=count).astype(np.float64)
    return sums / np.maximum(np.bincount(unit, minlength=count), 1.0) if how == "mean" else sums


def _within(measure: str, bound: Bound, log_r: Floats, units: Mapping[str, NDArray[np.int64]]) -> NDArray[np.bool_]:
    """[M] whether the token's unit is within the bound; `log_r` [M] is k1."""
    parts = re.split("_", measure)
    unit, reduced, kl = parts[0], parts[1] if len(parts) == 3 else "sum", parts[-1]
    values = {"k1": log_r, "k2": log_r**2 / 2, "k3": np.exp(np.minimum(-log_r, LARGEST)) - 1 + log_r}[kl]
    low, high = _interval(measure, bound)
    value = _reduced(reduced, values, units[unit])
    inside: NDArray[np.bool_] = (low <= value) & (value <= high)
    return inside[units[unit]]


def _interval(measure: str, bound: Bound) -> tuple[float, float]:
    """The bounds of a measure itself: logarithms for k1. Raises `ValueError`."""
    values = [float(bound)] if isinstance(bound, int | float) else [float(value) for value in bound]
    if not measure.endswith("k1"):
        if len(values) == 1 and values[0] > 0:
            return -math.inf, values[0]
        raise ValueError(f"trainer.correction.reject.{measure} must be a number above 0, got {bound}")
    if len(values) == 1 and values[0] > 1:
        return -math.log(values[0]), math.log(values[0])
    if len(values) == 2 and 0 < values[0] < values[1]:
        return math.log(values[0]), math.log(values[1])
    raise ValueError(
        f"trainer.correction.reject.{measure} must be two ratios, as in [0.5, 2.0], or a number x above 1 for "
        f"[1/x, x]; got {bound}"
    )
