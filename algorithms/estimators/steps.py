"""Record the steps of an estimator, so that a person can check an advantage by hand.

    with explained() as steps:
        advantages = estimator(table)

Estimators call `step` for each intermediate result, in order; the last one is the advantage. A step has a value for
each turn or each token, and a formula over earlier steps, its constants, and the columns below. Outside of `explained`
nothing is stored. The advantages are the same.

    columns of turns     reward, invalid, tokens (sampled tokens of the turn), and the table's signals
    columns of tokens    logprob, last (whether it is the last token of its turn), the token signals; columns of turns
                         stand for each of their tokens
    end                  whether it is the last turn (token) of its episode

    + - * / ** < > == where min max abs exp log sqrt     for each item
    measured(x), zero(x)                x was measured; x, or 0 where it was not (not_measured is such a value)
    next(x), next(x, after)             x of the next turn or token of the episode; after its end 0, or `after`
    next_where(x, c, after)             x of the next one of the episode that has c
    before(x)                           x of the one before; 0 at the beginning
    tokens_sum(x), tokens_last(x)       of a turn: the sum of its tokens' x, the x of its last token
    n() sum(x) mean(x) std(x) pstd(x) lowest(x) highest(x) second(x) first(x)
                                        of the group that `over` names: std has ddof 1, pstd 0; second is the second
                                        highest (the highest in a group of one); what was not measured is left out

`over` is "batch", "episode", "task" (all attempts at a task) or a column of group numbers. With `counted` only these
items of a group count: "first" (the first turn of each episode), or the name of a column.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

Number = TypeVar("Number", bound=np.generic)


@dataclass(frozen=True, eq=False)
class Step:
    """One step of a computation; see the module.

    Example: `Step("score_mean", "mean(score)", values, over="task")`, then
    `Step("advantage", "score - score_mean", values)`.
    """

    name: str
    formula: str  # "" for numbers of groups
    values: NDArray[Any]  # [N] or [M]; NaN where the step does not apply
    over: str = ""
    counted: str = ""
    constants: dict[str, float] | None = None
    meaning: str = ""  # in words, where the formula does not say it


class Naming(NamedTuple):
    """The names of a comparison in the steps."""

    result: str  # the name of the compared values
    of: str  # the name of the values
    over: str = "task"
    counted: str = ""
    prefix: str = ""  # of the names of mean and standard deviation; "": the name of the values
    at: tuple[NDArray[np.int64], int] | None = None  # the places of the values among all items, and how many there are

    def spread(self, values: NDArray[Any]) -> NDArray[Any]:
        """`values` at their places; NaN elsewhere."""
        if self.at is None:
            return values
        places, count = self.at
        out = np.full(count, np.nan)
        out[places] = values
        return out


_steps: ContextVar[list[Step] | None] = ContextVar("steps", default=None)


@contextmanager
def explained() -> Iterator[list[Step]]:
    """Collect the steps of the estimators that run inside."""
    steps: list[Step] = []
    token = _steps.set(steps)
    try:
        yield steps
    finally:
        _steps.reset(token)


def explaining() -> bool:
    """Whether steps are collected. Values that only steps need are computed only then."""
    return _steps.get() is not None


def step(
    name: str,
    formula: str,
    values: NDArray[Number],
    *,
    over: str = "",
    counted: str = "",
    meaning: str = "",
    **constants: Any,
) -> NDArray[Number]:
    """Name a step, and return its `values`. A name that exists already is the same step.

    `constants` are numbers; None for one that the formula does not have.
    """
    steps = _steps.get()
    if steps is not None and all(one.name != name for one in steps):
        numbers = {key: float(value) for key, value in constants.items() if value is not None}
        steps.append(Step(name, formula, values, over, counted, numbers, meaning))
    return values
