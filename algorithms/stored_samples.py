"""Samples as plain data and tensors, for the checkpoints of what keeps samples between updates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from agents.episode import Choice
from agents.masking import Node
from agents.samples import Sample

OF_IDS = {"ids": torch.int64, "mask": torch.bool, "logprobs": torch.float64}  # fields of a `Sample`


def samples_state(samples: Sequence[Sample]) -> dict[str, Any]:
    """What `load_samples` needs to make `samples` again, except `turn`, which is of their own batch alone."""
    nodes: dict[int, tuple[int, Node]] = {}  # by id: number and node
    free: dict[int, tuple[int, NDArray[np.bool_]]] = {}
    numbers = [
        -1 if node is None else nodes.setdefault(id(node), (len(nodes), node))[0]
        for sample in samples
        for node, on in zip(sample.nodes or [None] * len(sample.ids), sample.mask, strict=True)
        if on
    ]
    made = [node for _, node in nodes.values()]
    of_free = [-1 if n.free is None else free.setdefault(id(n.free), (len(free), n.free))[0] for n in made]
    return {
        "origins": [sample.origin for sample in samples],
        "choices": [s.choice and [s.choice.ids, s.choice.lengths] for s in samples],
        "masked": [bool(sample.nodes) for sample in samples],
        "lengths": [len(sample.ids) for sample in samples],
        "tokens": [sum(sample.mask) for sample in samples],
        **{name: torch.tensor([v for s in samples for v in getattr(s, name)], dtype=t) for name, t in OF_IDS.items()},
        "nodes": torch.tensor(numbers, dtype=torch.int64),
        "allowed": [node.ids.tolist() for node in made],
        "free_of": of_free,
        "free": [torch.from_numpy(array.copy()) for _, array in free.values()],
    }


def load_samples(state: Mapping[str, Any]) -> list[Sample]:
    """The inverse of `samples_state`; `turn` is -1 everywhere."""
    free = [array.numpy() for array in state["free"]]
    nodes: list[Node] = []
    for allowed, number in zip(state["allowed"], state["free_of"], strict=True):
        node = Node(None if number < 0 else free[number])
        node.children = dict.fromkeys(allowed)
        nodes.append(node)
    of_ids = {name: torch.split(state[name], state["lengths"]) for name in OF_IDS}
    drawn = torch.split(state["nodes"], state["tokens"])
    samples = []
    for number, origin in enumerate(state["origins"]):
        ids, mask, logprobs = (of_ids[name][number].tolist() for name in OF_IDS)
        sample = Sample(ids, mask, logprobs, [-1] * len(ids), origin=origin)
        if (choice := state["choices"][number]) is not None:
            sample.choice = Choice(*choice)
        if state["masked"][number]:
            places = iter(drawn[number].tolist())
            chosen = [next(places) if on else -1 for on in mask]
            sample.nodes = [nodes[place] if place >= 0 else None for place in chosen]
        samples.append(sample)
    return samples
