"""Agents without a policy: random admissible actions, one text, a scripted expert, a person at the terminal."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import ClassVar

import numpy as np

from agents.agent import Decision, View, without_actions
from agents.parsing import SLOT
from envs.core import Expert, Need

MOST_WORDS = 5  # of the text in a slot


class RandomAgent:
    """Plays a random admissible action, and fills its slot with one to `MOST_WORDS` words of the goal.

    Each episode has its own generator, seeded by its seed and task.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({Need.ADMISSIBLE})

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self._rngs: dict[int, np.random.Generator] = {}

    def act(self, views: Sequence[View]) -> list[Decision]:
        return [without_actions(view) or Decision(self._choose(view)) for view in views]

    def _choose(self, view: View) -> str:
        admissible = view.info["admissible"]
        if view.key not in self._rngs:
            task = view.episode.task
            name = [*task.id.encode(), *view.episode.seed.to_bytes(8, "little", signed=True)]
            self._rngs[view.key] = np.random.default_rng([self.seed, *name])
        rng = self._rngs[view.key]
        action = admissible[int(rng.integers(len(admissible)))]
        return SLOT.sub(lambda slot: self._words(view, rng) or slot[0], action)

    @staticmethod
    def _words(view: View, rng: np.random.Generator) -> str:
        words = re.findall(r"\w+", view.info["goal"])
        return " ".join(rng.permutation(words)[: rng.integers(1, MOST_WORDS + 1)])

    def finish(self, key: int) -> None:
        self._rngs.pop(key, None)


class ConstantAgent:
    """Says the same text at every turn: a floor for environments that reward it now and then."""

    def __init__(self, text: str) -> None:
        self.text = text

    def act(self, views: Sequence[View]) -> list[Decision]:
        return [Decision(self.text) for _ in views]

    def finish(self, key: int) -> None:
        """There is nothing to forget."""


class ExpertAgent:
    """Plays the actions of a scripted expert, which observes every turn."""

    def __init__(self, make_expert: Callable[[], Expert]) -> None:
        self.make_expert = make_expert
        self._experts: dict[int, Expert] = {}

    def act(self, views: Sequence[View]) -> list[Decision]:
        return [Decision(self.follow(view).act()) for view in views]

    def follow(self, view: View) -> Expert:
        """The expert of this episode, up to date. Call it once in every turn, before the action is played."""
        turns = view.episode.turns
        if not turns:
            self._experts[view.key] = self.make_expert()
            self._experts[view.key].reset(view.observation, view.info)
        else:
            self._experts[view.key].observe(turns[-1].action, view.observation, view.info)
        return self._experts[view.key]

    def finish(self, key: int) -> None:
        self._experts.pop(key, None)


class HumanAgent:
    """Asks a person. `ask` gets the view and returns the action; the commands ask at the terminal."""

    def __init__(self, ask: Callable[[View], str]) -> None:
        self.ask = ask

    def act(self, views: Sequence[View]) -> list[Decision]:
        return [Decision(self.ask(view)) for view in views]

    def finish(self, key: int) -> None:
        """A person keeps no state here."""
