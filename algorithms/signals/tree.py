"""Number the nodes and trees of attempts that share their first turns."""

from __future__ import annotations

import numpy as np

from algorithms.signals.base import Measurement, RolloutBatch, SignalContext, UntrainedSignal


class Tree(UntrainedSignal):
    """Signals `node` and `tree`: equal for the same turn, and for episodes that begin with the same turn.

    Both are numbered from 0 over all tasks. They work for any attempts; attempts that share nothing are separate trees.
    """

    gives = ("node", "tree")
    gives_tokens = ()

    def __init__(self, context: SignalContext) -> None:
        """`context` is not used."""

    def measure(self, rollouts: RolloutBatch) -> Measurement:
        numbers: dict[int, int] = {}  # a turn that several attempts share is the same object in each
        nodes = [[numbers.setdefault(id(turn), len(numbers)) for turn in e.turns] for e in rollouts.episodes]
        node = np.array([number for path in nodes for number in path], dtype=np.int64)
        roots = np.array([path[0] for path in nodes for _ in path], dtype=np.int64)
        tree = np.unique(roots, return_inverse=True)[1].astype(np.int64)
        shared = 1.0 - len(numbers) / max(len(node), 1)
        return Measurement({"node": node, "tree": tree}, metrics={"signal/shared_turns": shared})
