"""Calls into packages that draw from the global generators and print."""

from __future__ import annotations

import contextlib
import io
import random
from types import TracebackType
from typing import Any

import numpy as np


class Apart:
    """Within `with`, the generators of `random` and `numpy.random` are this object's, and nothing is printed.

    The next `with` goes on with the generators where the last one left them.
    """

    def __init__(self, seed: int) -> None:
        """`seed` may be any int that is not negative."""
        self._own: Any = (random.Random(seed).getstate(), np.random.RandomState(seed % 2**32).get_state())
        self._others: Any = None
        self._quiet = contextlib.redirect_stdout(io.StringIO())

    def __enter__(self) -> None:
        self._others = _swapped(self._own)
        self._quiet.__enter__()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._quiet.__exit__(kind, error, at)
        self._own = _swapped(self._others)


def _swapped(states: Any) -> Any:
    """Set both states and return those from before."""
    before = (random.getstate(), np.random.get_state())  # noqa: NPY002
    random.setstate(states[0])
    np.random.set_state(states[1])  # noqa: NPY002
    return before
