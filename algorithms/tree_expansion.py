"""Trees of attempts: some from the beginning of a task, and more from the middle of those.

    task ──► turn ──► turn ──► turn ──► end            `trees` attempts at each task from its beginning, and in every
                        └────► turn ──► turn ──► end    round `expand` more from nodes of each of them

Paper: Ji et al., *Tree Search for LLM Agent Reinforcement Learning*, arXiv 2509.21240. A node is a whole turn, and an
attempt that expands it goes on after it. Leaves are not expanded, nor is anything of an attempt that a fault of the
environment ended, so that no attempt shares its turns.
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
    """How the attempts at a task come about: in as many rounds as use up `trainer.group_size`.

    (No dataclass: Hydra would take one that stands inside of a configuration for more configuration.)
    """

    def __init__(self, trees: int, expand: int) -> None:
        """`trees` at each task, and in a round `expand` nodes of each tree."""
        if trees < 1 or expand < 1:
            raise ValueError(f"tree_expansion needs trees and expand of at least 1, got {trees} and {expand}")
        self.trees, self.expand = trees, expand

    def check(self, group_size: int) -> None:
        """Raise `ValueError` where `group_size` attempts are no whole number of rounds."""
        if group_size < self.trees or (group_size - self.trees) % (self.trees * self.expand):
            raise ValueError(
                f"trainer.group_size={group_size} attempts are not {self.trees} trees and whole rounds of "
                f"{self.trees * self.expand} more; group_size is {self.trees} · (1 + {self.expand} · rounds)"
            )

    def play(self, play: Play, jobs: Sequence[Job], rng: np.random.Generator) -> list[Episode]:
        """One episode for each of `jobs`, in their order: as many for each group as `check` has let pass.

        `rng` chooses the nodes, a round's nodes of a tree without repeating one where there are enough. A tree that
        has no inner node yet takes an attempt from the beginning instead.
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
    waiting: Iterator[int]  # the numbers of the jobs that its group has left
    nodes: dict[int, Start] = field(default_factory=dict)  # the states after its inner nodes, by the turn's identity

    def add(self, episode: Episode) -> None:
        for node, following in pairwise(episode.turns):
            assert following.start is not None, "trees grow from kept starts"
            self.nodes[id(node)] = following.start

    def choose(self, count: int, rng: np.random.Generator) -> list[Start | None]:
        if not self.nodes:
            return [None] * count
        starts = list(self.nodes.values())
        return [starts[i] for i in rng.choice(len(starts), size=count, replace=count > len(starts))]
