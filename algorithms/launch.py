"""Rank and number of the processes that torchrun started, read from its environment variables without torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Launch:
    """The rank of this process and the number of ranks, from the variables that torchrun sets."""

    rank: int = 0
    ranks: int = 1
    local_rank: int = 0
    restarts: int = 0  # how often torchrun has started the ranks again

    @classmethod
    def of_environment(cls, variables: Mapping[str, str] = os.environ) -> Launch | None:
        """None without torchrun."""
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
        if not all(name in variables for name in names):
            return None
        rank, ranks, local = (int(variables[name]) for name in names[:3])
        return cls(rank, ranks, local, int(variables.get("TORCHELASTIC_RESTART_COUNT", 0)))
