"""What all environments of a process share, and how to put it back after one of them has changed it."""

from __future__ import annotations

import builtins
import contextlib
import ctypes
import locale
import os
import random
import resource
import sys
import warnings
from dataclasses import dataclass
from operator import is_
from typing import Any

import numpy as np

STREAMS = (0, 1, 2)  # stdin, stdout and stderr
BUILTINS = vars(builtins)
LIMITS = (
    resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_DATA, resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE,
    resource.RLIMIT_STACK,
)  # fmt: skip
_all, _map = all, map  # an environment may replace the builtins
_MT19937_BYTES = 625 * 4  # 624 words and a position


@dataclass(frozen=True, eq=False)
class ProcessState:
    """Working directory, variables, locale, recursion limit, warning filters, random states, builtins, limits, umask.

    Workers look at it after every command, and most commands change nothing. So it is read in the cheapest way: a
    tenth of the time that the public functions take, most of which build a dict of the variables and numpy's state.
    """

    names: dict[str, Any]  # of the builtins
    recursion_limit: int
    folder: str  # "" if it does not exist
    variables: dict[bytes, bytes]
    locale: str
    filters: list[Any]
    random: Any
    numpy_random: Any
    bit_generator: Any  # of numpy's global generator, which an environment may replace by one of another kind
    words: bytes  # of the bit generator's state; empty for kinds other than numpy's default
    limits: list[tuple[int, int]]  # of `LIMITS`: soft, which can be put back, and hard
    umask: int

    @classmethod
    def now(cls, names: dict[str, Any] | None = None, before: ProcessState | None = None) -> ProcessState:
        """The state at this time, with other `names` if they are given; `before` itself if nothing has changed."""
        folder = ""
        with contextlib.suppress(OSError):
            folder = os.getcwd()
        bit_generator = np.random.get_bit_generator()  # type: ignore[attr-defined]
        words = _words(bit_generator)
        if before and words and words == before.words and not before.numpy_random["has_gauss"]:
            numpy_random = before.numpy_random  # a normal variate that is kept for later would change without the words
        else:
            numpy_random = np.random.get_state(legacy=False)  # noqa: NPY002
        umask = os.umask(0)  # there is no other way to read it
        os.umask(umask)
        state = cls(
            BUILTINS.copy() if names is None else names, sys.getrecursionlimit(), folder,
            os.environ._data.copy(),  # type: ignore[attr-defined]
            locale.setlocale(locale.LC_ALL), list(warnings.filters), random.getstate(), numpy_random, bit_generator,
            words, [resource.getrlimit(limit) for limit in LIMITS], umask,
        )  # fmt: skip
        return before if before and state._equals(before) else state

    def _equals(self, other: ProcessState) -> bool:
        return (
            _same(self.names, other.names)
            and self.recursion_limit == other.recursion_limit
            and self.folder == other.folder
            and self.variables == other.variables
            and self.locale == other.locale
            and self.filters == other.filters
            and self.limits == other.limits
            and self.umask == other.umask
            and self.random == other.random
            and self.bit_generator is other.bit_generator
            and (self.numpy_random is other.numpy_random or _equal(self.numpy_random, other.numpy_random))
        )

    def generators(self) -> dict[str, Any]:
        """The states of the global random generators, by field."""
        numpy = {"numpy_random": self.numpy_random, "bit_generator": self.bit_generator, "words": self.words}
        return {"random": self.random, **numpy}

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
        if now.variables != self.variables:
            for name in now.variables.keys() - self.variables.keys():
                del os.environb[name]
            os.environb.update(self.variables)
        if now.locale != self.locale:
            with contextlib.suppress(locale.Error):
                locale.setlocale(locale.LC_ALL, self.locale)
        if now.filters != self.filters:
            warnings.resetwarnings()  # so that what was decided by the old filters is forgotten
            warnings.filters[:] = self.filters  # type: ignore[index]
        for limit, (soft, _), (soft_now, hard_now) in zip(LIMITS, self.limits, now.limits, strict=True):
            if soft_now != soft:
                with contextlib.suppress(ValueError):  # the hard limit is lower
                    resource.setrlimit(limit, (soft, hard_now))
        os.umask(self.umask)
        if now.random != self.random:
            random.setstate(self.random)
        is_another = now.bit_generator is not self.bit_generator
        if is_another:
            np.random.set_bit_generator(self.bit_generator)  # type: ignore[attr-defined]
        if is_another or not (now.numpy_random is self.numpy_random or _equal(now.numpy_random, self.numpy_random)):
            np.random.set_state(self.numpy_random)  # noqa: NPY002

    def restore_builtins(self) -> None:
        """Put the builtins back, without use of any."""
        if _same(BUILTINS, self.names):
            return
        for name in BUILTINS.copy():
            if name not in self.names:
                del BUILTINS[name]
        for name in self.names:
            BUILTINS[name] = self.names[name]


def _same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Whether two dicts have the same names, in one order, and the same objects. Uses no builtins."""
    return [*a] == [*b] and _all(_map(is_, a.values(), b.values()))


def _words(bit_generator: Any) -> bytes:
    """The state of a Mersenne Twister, from memory: reading it through numpy takes as long as all other states."""
    if not isinstance(bit_generator, np.random.MT19937):
        return b""
    return ctypes.string_at(bit_generator.ctypes.state_address, _MT19937_BYTES)


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
