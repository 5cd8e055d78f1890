"""Detect a rank that does not answer, and name it. Without this, the other ranks wait until a collective times out.

Each rank writes heartbeats into the store that connects the ranks, with what it is doing. A thread watches the
heartbeats of the others. A process that is stopped or lost writes none for `SILENCE` seconds. A rank that hangs still
writes them, but the others wait for it longer than the timeout. In both cases the thread prints a line and ends its
process, since the main thread cannot be interrupted in a collective. All files are written under a temporary name
first, so none is left incomplete.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

EVERY = 2.0  # seconds between heartbeats
SILENCE = 20.0  # seconds without a heartbeat after which a rank counts as lost
EXIT_CODE = 2


class RankError(OSError):
    """Another rank has failed, or does not answer."""


class Liveness:
    """Writes heartbeats of this rank and watches those of the others, while the context is open."""

    def __init__(self, store: Any, rank: int, ranks: int, timeout: float) -> None:
        self._store = store.clone() if hasattr(store, "clone") else store  # the main thread blocks its own connection
        self.rank, self.ranks, self.timeout = rank, ranks, timeout
        self.doing = "the start"
        self._since: float | None = None  # when the wait in a collective began
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="liveness")

    def __enter__(self) -> Liveness:
        self._send_heartbeat(0)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._closed.set()
        self._thread.join(timeout=2 * EVERY)

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """A context in which this rank waits for the others, in the collective `what`."""
        self.doing, self._since = what, time.monotonic()
        yield
        self._since = None

    def _send_heartbeat(self, number: int) -> None:
        waits = f"waits in {self.doing!r}" if self._since is not None else f"is busy after {self.doing!r}"
        self._store.set(f"life/{self.rank}", f"{number}|{waits}")

    def _watch(self) -> None:
        heard: dict[int, tuple[str, float]] = {}
        number = 0
        while not self._closed.wait(EVERY):
            number += 1
            try:
                self._send_heartbeat(number)
                signs = {
                    rank: self._store.get(f"life/{rank}").decode()
                    for rank in range(self.ranks)
                    if rank != self.rank and self._store.check([f"life/{rank}"])
                }
            except Exception as error:  # the process that holds the store has ended
                if not self._closed.wait(2 * EVERY):  # the main thread may know more
                    self._end(
                        f"lost the store that connects the ranks ({type(error).__name__}): rank 0 or torchrun has ended"
                    )
                return
            now = time.monotonic()
            for rank, sign in signs.items():
                if heard.get(rank, ("", 0.0))[0] != sign:
                    heard[rank] = sign, now
                sign, at = heard[rank]
                if now - at > SILENCE:
                    self._end(f"gets no answer from rank {rank} for {now - at:.0f} s; it {sign.partition('|')[2]}")
            since = self._since
            if since is not None and now - since > self.timeout:
                busy = [
                    f"rank {rank}, which {sign.partition('|')[2]}"
                    for rank, (sign, _) in heard.items()
                    if "|waits" not in sign
                ]
                self._end(f"has waited {now - since:.0f} s for {' and '.join(busy) or 'the others'}")

    def _end(self, why: str) -> None:
        print(f"error: rank {self.rank}, in {self.doing!r}, {why}", file=sys.stderr, flush=True)  # noqa: T201
        os._exit(EXIT_CODE)
