"""Trees of attempts: some attempts start at the beginning of a task, others branch off from a turn of an attempt.

    task ──► turn ──► turn ──► turn ──► end            `trees` attempts at each task from its beginning; in every
                        └────► turn ──► turn ──► end    round `expand` more from nodes of each of them

Paper: Ji et al., *Tree Search for LLM Agent Reinforcement Learning*, arXiv 2509.21240. A node is a whole turn; an
attempt that expands it starts after that turn. Leaves are not expanded. Attempts that a fault of the environment ended
are not expanded either, so no other attempt shares their turns.

A rule chooses the nodes of a tree: `uniform`, or `where_unsure` (ARPO).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from agents.episode import Episode, Start, Turn
from agents.rollout import Job

Play = Callable[[list[Job]], list[Episode]]  # episodes in the order of the jobs, with the starts of their turns


class Node(NamedTuple):
    """A place in a tree at which other attempts can branch off."""

    start: Start  # the state there
    following: Turn  # what was played there first
    first: Turn  # the first turn of that attempt


# (the nodes of a tree in the order of its attempts and their turns, how many, generator) -> that many of these nodes;
# None for an attempt from the beginning
Choose = Callable[[Sequence[Node], int, np.random.Generator], list[Node | None]]


def uniform(nodes: Sequence[Node], count: int, rng: np.random.Generator) -> list[Node | None]:
    """`count` different nodes, all equally likely. Nodes are repeated only if there are too few."""
    return [nodes[i] for i in rng.choice(len(nodes), size=count, replace=count > len(nodes))]


def where_unsure(
    nodes: Sequence[Node],
    count: int,
    rng: np.random.Generator,
    *,
    weight: float = 0.2,
    threshold: float = 0.5,
    first_ids: int = 20,
) -> list[Node | None]:
    """The first `count` nodes at which a branch is drawn: the likelier, the less sure the policy was there.

        branch where  u - weight (H - H_first) ≤ threshold,  u uniform in [0, 1)

    H is the mean of -log p over the first `first_ids` ids that were sampled at the node, and H_first at the beginning
    of the attempt. Where too few branches are drawn, the other attempts start at the beginning.

    Rule: ARPO (Dong et al., arXiv 2507.19849) with its weight and threshold. ARPO branches while an attempt is played;
    here the attempt is finished first. ARPO's H is the entropy over the ten likeliest ids divided by log(vocabulary);
    this one, in nats, is estimated from the sampled ids.
    """
    chosen: list[Node | None] = []
    for node, drawn in zip(nodes, rng.random(len(nodes)), strict=True):
        rise = _surprise(node.following, first_ids) - _surprise(node.first, first_ids)
        if len(chosen) < count and drawn - weight * rise <= threshold:
            chosen.append(node)
    return chosen + [None] * (count - len(chosen))


def _surprise(turn: Turn, first_ids: int) -> float:
    return -float(np.mean(turn.logprobs[:first_ids])) if turn.logprobs else 0.0


class TreeExpansion:
    """How the attempts at a task are made: in as many rounds as `trainer.group_size` allows.

    (This is not a dataclass, because Hydra would convert a dataclass inside a configuration into configuration.)
    """

    def __init__(self, trees: int, expand: int, choose: Choose = uniform) -> None:
        """`trees` for each task; in each round, `expand` nodes of each tree, which `choose` chooses."""
        if trees < 1 or expand < 1:
            raise ValueError(f"tree_expansion needs trees and expand of at least 1, got {trees} and {expand}")
        self.trees, self.expand, self.choose = trees, expand, choose

    def check(self, group_size: int) -> None:
        """Raise `ValueError` if `group_size` attempts are not a whole number of rounds."""
        if group_size < self.trees or (group_size - self.trees) % (self.trees * self.expand):
            raise ValueError(
                f"trainer.group_size={group_size} does not fit {self.trees} trees and whole rounds of "
                f"{self.trees * self.expand} more attempts; it must be {self.trees} · (1 + {self.expand} · rounds)"
            )

    def play(self, play: Play, jobs: Sequence[Job], rng: np.random.Generator) -> list[Episode]:
        """One episode for each of `jobs`, in order, with a number of jobs per group that passes `check`.

        `rng` draws the nodes. A tree without inner nodes gets an attempt from the beginning instead.
        """
        groups: dict[int, list[int]] = {}
        for number, job in enumerate(jobs):
            groups.setdefault(job.group, []).append(number)
        waiting = {group: iter(numbers) for group, numbers in groups.items()}
        trees = [_Tree(waiting[group]) for group in groups for _ in range(self.trees)]
        rounds = (max(map(len, groups.values()), default=0) - self.trees) // (self.trees * self.expand)
        episodes: dict[int, Episode] = {}
        for size in [1] + [self.expand] * rounds:
            starts = [(tree, start) for tree in trees for start in tree.starts(size, self.choose, rng)]
            attempts = [(tree, next(tree.waiting), start) for tree, start in starts]
            started = [replace(jobs[number], start=start) for _, number, start in attempts]
            for (tree, number, _), episode in zip(attempts, play(started), strict=True):
                episodes[number] = episode
                if not episode.is_faulty:
                    tree.add(episode)
        return [episodes[number] for number in range(len(jobs))]


@dataclass
class _Tree:
    waiting: Iterator[int]  # the remaining jobs of its group, by number
    nodes: dict[int, Node] = field(default_factory=dict)  # by the id() of the turn before

    def add(self, episode: Episode) -> None:
        for node, following in pairwise(episode.turns):
            assert following.start is not None, "tree expansion needs kept starts"
            self.nodes.setdefault(id(node), Node(following.start, following, episode.turns[0]))

    def starts(self, count: int, choose: Choose, rng: np.random.Generator) -> list[Start | None]:
        if not self.nodes:
            return [None] * count
        chosen = choose(list(self.nodes.values()), count, rng)
        return [None if node is None else node.start for node in chosen]
