"""The record of a training batch: its table, the statistics of its tokens, and the steps of its advantages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.episode import Episode
from agents.record import TRAINING, Record
from algorithms.estimators.steps import Step
from algorithms.signals.base import RolloutBatch, turn_means

DIGITS = 7  # of numbers that float32 models computed and no step uses
LEFT_OUT = ("logprob",)  # it is in the turns


def recorded_batch(
    update: int,
    split: str,
    batch: RolloutBatch,
    advantages: NDArray[np.float64],
    steps: Sequence[Step],
    of_tokens: Mapping[str, NDArray[np.float64]],
    others: Sequence[Episode] = (),
) -> Record:
    """The record of the batch that an update learned from.

    `advantages` are [N] or [M], `of_tokens` each [M]. The columns are the signals of the table, the steps, `advantage`
    and `of_tokens`. The episodes `others` come last and have none.
    """
    table = batch.table
    means = iter(turn_means(table, table.per_token(advantages)).tolist())
    episodes = [replace(e, turns=[replace(turn, advantage=next(means)) for turn in e.turns]) for e in batch.episodes]
    computed = {**{one.name: one.values for one in steps}, "advantage": advantages}
    turns = {**table.signals, **{name: values for name, values in computed.items() if len(values) == len(table)}}
    tokens = {name: values for name, values in table.token_signals.items() if name not in LEFT_OUT}
    tokens |= {name: values for name, values in computed.items() if name not in turns}
    cuts = np.cumsum([len(e.turns) for e in episodes])[:-1]
    of_rows = {name: _rounded(values) for name, values in of_tokens.items()} | {k: plain(v) for k, v in tokens.items()}
    return Record(
        [*episodes, *others],
        TRAINING,
        split,
        update,
        [_step(one, len(table)) for one in steps],
        {name: _cut(plain(values), cuts) for name, values in turns.items()},
        {name: _cut(_by_turn(batch, values), cuts) for name, values in of_rows.items()},
    )


def _step(one: Step, turns: int) -> dict[str, Any]:
    """A step without its values, which are a column."""
    row: dict[str, Any] = {"name": one.name, "formula": one.formula}
    row |= {name: value for name in ("over", "counted", "meaning", "constants") if (value := getattr(one, name))}
    return row | {"of": "turns" if len(one.values) == turns else "tokens"}


def plain(values: NDArray[Any]) -> list[Any]:
    """The values as numbers of JSON; None for NaN."""
    if values.dtype == np.bool_:
        values = values.astype(np.int64)
    listed: list[Any] = values.tolist()
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        return [value if finite else None for value, finite in zip(listed, np.isfinite(values).tolist(), strict=True)]
    return listed


def _rounded(values: NDArray[np.float64]) -> list[Any]:
    return plain(np.round(values, DIGITS))


def _by_turn(batch: RolloutBatch, values: list[Any]) -> list[list[Any]]:
    """The values [M] in a list for each of the N turns."""
    assert batch.table.tokens is not None, "tables of episodes count tokens"
    ends = np.cumsum(batch.table.tokens)
    return [values[end - count : end] for end, count in zip(ends.tolist(), batch.table.tokens.tolist(), strict=True)]


def _cut(rows: list[Any], cuts: NDArray[np.int64]) -> list[list[Any]]:
    """The rows [N] in a list for each episode."""
    bounds = [0, *cuts.tolist(), len(rows)]
    return [rows[start:end] for start, end in pairwise(bounds)]
