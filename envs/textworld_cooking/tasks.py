"""Cooking games by seed.

tasks = TextWorldCookingTasks()                                       # one ingredient, in one room
tasks = TextWorldCookingTasks(recipe=3, take=3, go=9, open=True, cook=True, cut=True, drop=True)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from envs.core import counted
from envs.gold_path import GoldPath
from envs.seed_tasks import SeedTasks
from envs.textworld_cooking.env import ENV_ID, MAX_TURNS, TextWorldCookingEnv
from envs.textworld_cooking.games import textworld_version, walkthrough

ROOMS = (1, 6, 9, 12)
FOLDS = {"train": "train", "valid": "valid"}  # food and preparations of each split


class TextWorldCookingTasks(SeedTasks):
    """Games as a `TaskSet`. `valid` has food, or ways to prepare it, that `train` does not have."""

    eval_splits: Sequence[str] = ("valid",)

    def __init__(
        self,
        recipe: int = 1,
        take: int = 1,
        go: int = 1,
        open: bool = False,  # noqa: A002
        cook: bool = True,
        cut: bool = False,
        drop: bool = False,
        max_turns: int = MAX_TURNS,
        train_tasks: int = 100,
        valid_tasks: int = 20,
    ) -> None:
        """The settings of `tw-make tw-cooking`.

        Ingredients of the recipe, how many of them have to be found, rooms; whether doors are closed, ingredients have
        to be cooked or cut, and hands are small. Raises `ValueError`, and `ModuleNotFoundError` without TextWorld.
        """
        if go not in ROOMS:
            raise ValueError(f"go must be one of {', '.join(map(str, ROOMS))}, got {go}")
        if not 1 <= take <= recipe <= 5:
            raise ValueError(
                f"take must be from 1 to recipe, and recipe at most 5; got recipe={recipe} and take={take}"
            )
        self._skills: dict[str, Any] = {
            "recipe": recipe, "take": take, "go": go, "open": open, "cook": cook, "cut": cut, "drop": drop,
        }  # fmt: skip
        self._version = textworld_version()
        super().__init__(ENV_ID, max_turns, train_tasks, valid_tasks)

    def payload(self, split: str, seed: int) -> dict[str, Any]:
        return {"skills": {**self._skills, "split": FOLDS[split]}, "seed": seed, "textworld": self._version}

    def make(self) -> TextWorldCookingEnv:
        """A new environment."""
        return TextWorldCookingEnv(self.max_turns)

    def expert(self) -> GoldPath:
        """The generator's walkthrough, which knows everything."""
        return GoldPath(walkthrough, at_the_end="look")

    def describe(self) -> str:
        skills = ", ".join(f"{key}={value}" for key, value in self._skills.items())
        first = f"{counted(4, 'second')} to compile each game, once"
        return f"{super().describe()}; {skills}; {first}"
