"""Trees of attempts: some attempts start at the beginning of a task, others branch off from a turn of an attempt.

    task ──► turn ──► turn ──► turn ──► end            `trees` attempts at each task from its beginning; in every
                        └────► turn ──► turn ──► end    round `expand` more from nodes of each of them

Paper: Ji et al., *Tree Search for LLM Agent Reinforcement Learning*, arXiv 2509.21240. A node is a whole turn; an
attempt that expands it starts after that turn. Leaves are not expanded. Attempts that a fault of the environment ended
are not expanded either, so no other attempt shares their turns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np

from agents.episode import Episode, Start
from agents.rollout import Job

Play = Callable[[list[Job]], list[Episode]]  # episodes in the order of the jobs, with the starts of their turns


class TreeExpansion:
    """How the attempts at a task are made: in as many rounds as `trainer.group_size` allows.

    (This is not a dataclass, because Hydra would convert a dataclass inside a configuration into configuration.)
    """

    def __init__(self, trees: int, expand: int) -> None:
        """`trees` for each task; in each round, `expand` nodes of each tree."""
        if trees < 1 or expand < 1:
            raise ValueError(f"tree_expansion needs trees and expand of at least 1, got {trees} and {expand}")
        self.trees, self.expand = trees, expand

    def check(self, group_size: int) -> None:
        """Raise `ValueError` if `group_size` attempts are not a whole number of rounds."""
        if group_size < self.trees or (group_size - self.trees) % (self.trees * self.expand):
            raise ValueError(
                f"trainer.group_size={group_size} does not fit {self.trees} trees and whole rounds of "
                f"{self.trees * self.expand} more attempts; it must be {self.trees} · (1 + {self.expand} · rounds)"
            )

    def play(self, play: Play, jobs: Sequence[Job], rng: np.random.Generator) -> list[Episode]:
        """One episode for each of `jobs`, in order, with a number of jobs per group that passes `check`.

        `rng` chooses the nodes; a round repeats a node only if there are too few. A tree without inner nodes
        gets an attempt from the beginning instead.
        """
        groups: dict[int, list[int]] = {}
        for number, job in enumerate(jobs):
            groups.setdefault(job.group, []).append(number)
        waiting = {group: iter(numbers) for group, numbers in groups.items()}
        trees = [_Tree(waiting[group]) for group in groups for _ in range(self.trees)]
        rounds = (max(map(len, groups.values()), default=0) - self.trees) // (self.trees * self.expand)
        episodes: dict[int, Episode] = {}
        for size in [1] + [self.expand] * rounds:
            attempts = [(tree, next(tree.waiting), start) for tree in trees for start in tree.choose(size, rng)]
            started = [replace(jobs[number], start=start) for _, number, start in attempts]
            for (tree, number, _), episode in zip(attempts, play(started), strict=True):
                episodes[number] = episode
                if not episode.is_faulty:
                    tree.add(episode)
        return [episodes[number] for number in range(len(jobs))]


@dataclass
class _Tree:
    waiting: Iterator[int]  # the remaining jobs of its group, by number
    nodes: dict[int, Start] = field(default_factory=dict)  # the states after its inner nodes, by the turn's id()

    def add(self, episode: Episode) -> None:
        for node, following in pairwise(episode.turns):
            assert following.start is not None, "tree expansion needs kept starts"
            self.nodes[id(node)] = following.start

    def choose(self, count: int, rng: np.random.Generator) -> list[Start | None]:
        if not self.nodes:
            return [None] * count
        starts = list(self.nodes.values())
        return [starts[i] for i in rng.choice(len(starts), size=count, replace=count > len(starts))]
