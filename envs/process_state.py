"""What all environments of a process share, and how to put it back after one of them has changed it."""

from __future__ import annotations

import builtins
import contextlib
import locale
import os
import random
import sys
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

STREAMS = (0, 1, 2)  # stdin, stdout and stderr
BUILTINS = vars(builtins)


@dataclass(frozen=True)
class ProcessState:
    """Working directory, environment variables, locale, recursion limit, warning filters, random states, builtins."""

    names: dict[str, Any]  # of the builtins
    recursion_limit: int
    folder: str  # "" if it does not exist
    variables: dict[str, str]
    locale: str
    filters: list[Any]
    random: Any
    numpy_random: Any
    bit_generator: Any  # of numpy's global generator, which an environment may replace by one of another kind

    @classmethod
    def now(cls) -> ProcessState:
        """The state at this time."""
        folder = ""
        with contextlib.suppress(OSError):
            folder = os.getcwd()
        return cls(
            BUILTINS.copy(), sys.getrecursionlimit(), folder, dict(os.environ), locale.setlocale(locale.LC_ALL),
            list(warnings.filters), random.getstate(), np.random.get_state(legacy=False),  # noqa: NPY002
            np.random.get_bit_generator(),  # type: ignore[attr-defined]
        )  # fmt: skip

    def generators(self) -> dict[str, Any]:
        """The states of the global random generators, by field."""
        return {"random": self.random, "numpy_random": self.numpy_random, "bit_generator": self.bit_generator}

    def restore(self, now: ProcessState) -> None:
        """Put everything back that differs from this state in `now`, the state at this time.

        What cannot be put back stays: a removed folder, say.
        """
        self.restore_builtins()  # first, since the rest needs them
        if now.recursion_limit != self.recursion_limit:
            sys.setrecursionlimit(self.recursion_limit)
        if now.folder != self.folder:
            with contextlib.suppress(OSError):
                os.chdir(self.folder)
        for name in now.variables.keys() - self.variables.keys():
            del os.environ[name]
        if now.variables != self.variables:
            os.environ.update(self.variables)
        if now.locale != self.locale:
            with contextlib.suppress(locale.Error):
                locale.setlocale(locale.LC_ALL, self.locale)
        if now.filters != self.filters:
            warnings.resetwarnings()  # so that what was decided by the old filters is forgotten
            warnings.filters[:] = self.filters  # type: ignore[index]
        if now.random != self.random:
            random.setstate(self.random)
        is_another = now.bit_generator is not self.bit_generator
        if is_another:
            np.random.set_bit_generator(self.bit_generator)  # type: ignore[attr-defined]
        if is_another or not _equal(now.numpy_random, self.numpy_random):  # setting it costs as much as the rest
            np.random.set_state(self.numpy_random)  # noqa: NPY002

    def restore_builtins(self) -> None:
        """Put the builtins back, without use of any."""
        for name in BUILTINS.copy():
            if name not in self.names:
                del BUILTINS[name]
        for name in self.names:
            BUILTINS[name] = self.names[name]


def _equal(a: Any, b: Any) -> bool:
    """Whether two states of numpy's generator are equal: nested dicts of numbers, texts and arrays."""
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    return bool(np.array_equal(a, b))


class Streams:
    """Copies of the descriptors of stdin, stdout and stderr, to be put back where one was closed or replaced."""

    def __init__(self) -> None:
        self._copies = {stream: os.dup(stream) for stream in STREAMS if _identity(stream)}
        self._identities = {stream: _identity(stream) for stream in self._copies}

    def restore(self) -> None:
        """Put back what was changed."""
        for stream, copy in self._copies.items():
            if _identity(stream) != self._identities[stream]:
                with contextlib.suppress(OSError):  # the copy is closed, too
                    os.dup2(copy, stream)


def _identity(descriptor: int) -> tuple[int, int] | None:
    """What a descriptor is open for; None if it is closed."""
    try:
        status = os.fstat(descriptor)
    except OSError:
        return None
    return status.st_dev, status.st_ino
