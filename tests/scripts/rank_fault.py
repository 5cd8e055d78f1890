"""A signal that misbehaves on one rank."""

from __future__ import annotations

import time
from typing import Any

from algorithms.signals.base import Measurement, UntrainedSignal


class Fault(UntrainedSignal):
    def __init__(self, context: Any, *, rank: int, kind: str) -> None:
        self.is_faulty, self.kind = context.parallel.ranks > 1 and context.parallel.rank == rank, kind

    def measure(self, rollouts: Any) -> Measurement:
        if self.is_faulty:
            if self.kind == "hangs":
                time.sleep(600)
            raise RuntimeError("the signal is out of order")
        return Measurement()
