"""A signal that misbehaves on one rank."""

from __future__ import annotations

import time
from typing import Any

import torch

from algorithms.signals.base import Measurement, UntrainedSignal

save = torch.save


def save_to_full_disk(state: Any, _: Any) -> None:
    with open("/dev/full", "wb") as file:
        save(state, file)


class Fault(UntrainedSignal):
    def __init__(self, context: Any, *, rank: int, kind: str) -> None:
        self.is_faulty, self.kind = context.parallel.ranks > 1 and context.parallel.rank == rank, kind

    def measure(self, rollouts: Any) -> Measurement:
        if self.is_faulty:
            if self.kind == "hangs":
                time.sleep(600)
            if self.kind == "fills the disk":
                torch.save = save_to_full_disk
                return Measurement()
            raise RuntimeError("the signal is out of order")
        return Measurement()
