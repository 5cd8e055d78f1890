"""Number the places at which attempts at a task wrote the same ids so far: a prefix tree over ids."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from agents.episode import Episode, Turn
from algorithms.signals.base import Measurement, RolloutBatch, SignalContext, UntrainedSignal


class Prefixes(UntrainedSignal):
    """Token signals `prefix` and `continuation`: the number of all that the policy read before the token, and with it.

    Equal numbers are equal ids, of attempts at the same task. An action that was chosen as a whole is one token.
    """

    gives = ()
    gives_tokens = ("prefix", "continuation")

    def __init__(self, context: SignalContext) -> None:
        """`context` is not used."""

    def measure(self, rollouts: RolloutBatch) -> Measurement:
        prefix, continuation = prefix_tree(rollouts.episodes)
        shared = np.bincount(prefix)[prefix] > 1
        metrics = {"signal/shared_prefixes": float(shared.mean()) if len(shared) else 0.0}
        return Measurement(token_signals={"prefix": prefix, "continuation": continuation}, metrics=metrics)


def prefix_tree(episodes: Sequence[Episode]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The numbers [M] of the prefixes and of the continuations of all tokens.

    The tokens with the same place in their turns are numbered together. Turns leave once no other has their prefix:
    their later tokens get numbers of their own.
    """
    turns = [turn for episode in episodes for turn in episode.turns]
    groups = [episode.group for episode in episodes for _ in episode.turns]
    counts = np.array([len(turn.logprobs) for turn in turns], dtype=np.int64)
    starts = np.cumsum(counts) - counts
    nodes = _numbers((group, tuple(turn.prompt_ids)) for group, turn in zip(groups, turns, strict=True))
    ids = _ids(turns)
    used = int(nodes.max(initial=-1)) + 1
    own = used + len(ids) + np.arange(len(ids))  # numbers that no prefix in the loop has
    prefix, continuation = own - 1, own.copy()  # the token before is that of the same turn, or one that is overwritten
    prefix[starts[counts > 0]] = nodes[counts > 0]
    rows, place = np.flatnonzero(counts > 0), 0
    while len(rows):
        at = starts[rows] + place
        prefix[at] = nodes[rows]
        pairs = nodes[rows] * (int(ids.max()) + 1) + ids[at]
        _, pair, found = np.unique(pairs, return_inverse=True, return_counts=True)
        nodes[rows] = continuation[at] = used + pair
        used += len(found)
        place += 1
        rows = rows[(found[pair] > 1) & (counts[rows] > place)]
    return prefix, continuation


def _ids(turns: Sequence[Turn]) -> NDArray[np.int64]:
    """[M] the sampled ids; for chosen actions, their number."""
    if any(turn.choice for turn in turns):
        return _numbers(tuple(turn.choice.ids[0]) if turn.choice else () for turn in turns)
    return np.array([i for turn in turns for i in turn.completion_ids], dtype=np.int64)


def _numbers(keys: Iterable[Hashable]) -> NDArray[np.int64]:
    """The keys numbered from 0 in the order in which they first occur."""
    known: dict[Hashable, int] = {}
    return np.array([known.setdefault(key, len(known)) for key in keys], dtype=np.int64)
