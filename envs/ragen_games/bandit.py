"""Choose the arm whose name promises more: `polyturn/Bandit-v0`.

An action is the name of one of two arms, in any case, and ends the episode. A low arm always gives 0.1, a high arm 1
with a probability of 0.25, otherwise 0. Success is the choice of the high arm, whatever it gave; any other text is a
turn without a choice.

Names, texts and draws are those of RAGEN (`ragen/env/bandit` of mll-lab-nu/RAGEN @ 20daedc). There, the seed is raised
by the number of such environments made before in the process; here it is not.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.utils import seeding

from envs.core import Info, Task, TextEnv, UnknownNameError
from envs.seed_tasks import SeedTasks

ENV_ID = "polyturn/Bandit-v0"
GOAL = "Choose the arm that gives more on average."
# The low and the high arm of each pair.
PAIRS = {
    "train": (
        ("Teacher", "Trader"), ("Nurse", "StartupFounder"), ("Librarian", "Investor"), ("Accountant", "StockBroker"),
        ("Engineer", "RealEstateAgent"), ("Pharmacist", "Musician"), ("Clerk", "Freelancer"),
        ("Technician", "Youtuber"), ("Planner", "Artist"), ("Postman", "Pilot"), ("Banker", "VentureCapitalist"),
        ("Gardener", "Cryptominer"),
    ),
    "test": (
        ("Receptionist", "Explorer"), ("Archivist", "Filmmaker"), ("Bookkeeper", "Consultant"),
        ("SocialWorker", "Photographer"), ("Mechanic", "GameDesigner"), ("Secretary", "Entrepreneur"),
        ("Cashier", "DataScientist"), ("CivilServant", "StartupAccelerator"),
    ),
}  # fmt: skip
LOW, HIGH, CHANCE = 0.1, 1.0, 0.25
PROMPT = (
    "You are playing a bandit game. Goal: Maximize your total reward by choosing which arm to pull. \n"
    "Game Rules: \n"
    "1. There are 2 arms, named {first} and {second}\n"
    "2. Each arm has its own reward distribution, related to their names. \n"
    "3. Analyze the symbolic meaning of each arm's name to guess how their reward distribution might behave.\n"
    "4. Based on the symbolic meaning of their names, which arm do you think is more likely to give higher rewards on "
    "average? Choose between {first} and {second}, and output like <answer> {first} </answer> or <answer> {second} "
    "</answer>.\n"
)


def draw(names: str, seed: int) -> tuple[list[str], str, np.random.Generator]:
    """The arms in their order, the high one, and the generator that draws what it gives."""
    rng, _ = seeding.np_random(seed)
    low, high = PAIRS[names][int(rng.random() * len(PAIRS[names]))]
    arms = [low, high] if rng.random() < 0.5 else [high, low]
    return arms, high, rng


def prompt(names: str, seed: int) -> str:
    """The text that shows the arms of a seed."""
    first, second = draw(names, seed)[0]
    return PROMPT.format(first=first, second=second)


class BanditEnv(TextEnv):
    """Plays the pair that a task's `names` and seed draw. Without a task, `reset(seed=…)` draws a training pair."""

    def __init__(self, max_turns: int = 1, render_mode: str | None = None) -> None:
        super().__init__(max_turns, render_mode)
        self._task: tuple[str, int] = ("train", 0)

    def _begin(self, task: Any, seed: int | None) -> tuple[str, Info]:
        del seed  # a task's own seed draws
        if task is None:
            task = Task("", ENV_ID, seed=int(self.np_random.integers(2**31)), payload={"names": "train"})
        if not isinstance(task, Task) or "names" not in task.payload:
            raise ValueError(f"{ENV_ID} needs a Task whose payload names the arms, got {task!r:.200}")
        if task.payload["names"] not in PAIRS:
            raise UnknownNameError("set of names", str(task.payload["names"]), PAIRS)
        self._enter(task.payload["names"], task.seed)
        return prompt(*self._task), self._about()

    def _enter(self, names: str, seed: int) -> None:
        self._task = (names, seed)
        self._arms, self._high, self._rng = draw(names, seed)

    def _act(self, action: str) -> tuple[str, float, bool, Info]:
        arm = {name.lower(): name for name in self._arms}.get(action.strip().lower())
        if arm is None:
            return f"There is no such arm. Choose between {' and '.join(self._arms)}.", 0.0, False, self._about()
        won = arm == self._high
        reward = LOW if not won else HIGH if self._rng.random() < CHANCE else 0.0
        return f"{arm}: {reward} points", reward, True, self._about(success=won, score=float(won))

    def _about(self, **more: Any) -> Info:
        key = " or ".join(self._arms)
        return {"goal": GOAL, "admissible": list(self._arms), "state_key": key, **more}

    def _save(self) -> Any:
        return self._task

    def _load(self, saved: Any) -> None:
        self._enter(*saved)  # nothing was drawn before the end


class KnowsNames:
    """Chooses the high arm. It has the list of names, as a stand-in for what the words mean."""

    def reset(self, observation: str, info: Info) -> None:  # noqa: ARG002
        self._arm: str
        high = {high for pairs in PAIRS.values() for _, high in pairs}
        self._arm = next(arm for arm in info["admissible"] if arm in high)

    def observe(self, action: str, observation: str, info: Info) -> None:
        """Nothing changes."""

    def act(self) -> str:
        return self._arm


class BanditTasks(SeedTasks):
    """Pairs drawn by seeds: `valid` has names that `train` does not have."""

    def __init__(self, train_tasks: int = 1000, valid_tasks: int = 200, max_turns: int = 1) -> None:
        super().__init__(ENV_ID, max_turns, train_tasks, valid_tasks)

    def payload(self, split: str, seed: int) -> dict[str, Any]:
        names = "train" if split == "train" else "test"
        return {"names": names, "arms": draw(names, seed)[0]}

    def make(self) -> BanditEnv:
        return BanditEnv(self.max_turns)

    def expert(self) -> KnowsNames:
        return KnowsNames()
