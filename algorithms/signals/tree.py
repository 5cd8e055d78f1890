"""Where the turns of attempts that branched off from each other stand in their tree."""

from __future__ import annotations

import numpy as np

from algorithms.signals.base import Measurement, Measures, RolloutBatch, SignalContext


class Tree(Measures):
    """Signals `node` and `tree`: which of the turns are the same one, and which episodes began with the same turn.

    Both are numbered from 0 over all tasks. They can be told of any attempts; those that share nothing are a tree each.
    """

    gives = ("node", "tree")
    gives_tokens = ()

    def __init__(self, context: SignalContext) -> None:
        """There is nothing to keep of `context`."""

    def measure(self, rollouts: RolloutBatch) -> Measurement:
        numbers: dict[int, int] = {}  # a turn that attempts share is the same object in each
        nodes = [[numbers.setdefault(id(turn), len(numbers)) for turn in e.turns] for e in rollouts.episodes]
        node = np.array([number for path in nodes for number in path], dtype=np.int64)
        roots = np.array([path[0] for path in nodes for _ in path], dtype=np.int64)
        tree = np.unique(roots, return_inverse=True)[1].astype(np.int64)
        shared = 1.0 - len(numbers) / max(len(node), 1)
        return Measurement({"node": node, "tree": tree}, metrics={"signal/shared_turns": shared})
