"""Make a target from numbers: `polyturn/Countdown-v0`.

    Target: 24, nums: [3, 8, 13]
    > 3 + 8 + 13

An action is an expression, which ends the episode. It gives 1 if it uses every number once and is the target, 0.1 if it
only uses every number once, else 0. Numbers are the runs of digits in its text, and it is evaluated as Python does, by
a parser of its own: `envs.ragen_games.arithmetic`. These are the grades of RAGEN (`ragen/env/countdown` of
mll-lab-nu/RAGEN @ 20daedc), whose problems come from a hub; here they are drawn by seeds, and like theirs each can be
solved with + and -.
"""

from __future__ import annotations

import random
import re
from itertools import product
from typing import Any

from envs.core import Info, Task, TextEnv
from envs.ragen_games.arithmetic import evaluate
from envs.seed_tasks import SeedTasks

ENV_ID = "polyturn/Countdown-v0"
GOAL = "Write an expression that uses each number once and is equal to the target."
TOLERANCE = 1e-5
MOST_DIGITS = 100  # of a number; Python refuses to read some thousands
USED = 0.1  # the reward of an expression of the right numbers with another value


def grade(answer: str, target: int, numbers: list[int]) -> float:
    """1, 0.1 or 0."""
    runs = re.findall(r"\d+", answer)
    if max(map(len, runs), default=0) > MOST_DIGITS or sorted(map(int, runs)) != sorted(numbers):
        return 0.0
    value = evaluate(answer)
    return 1.0 if value is not None and abs(value - target) < TOLERANCE else USED


def solve(target: int, numbers: list[int]) -> str | None:
    """An expression with + and - in the order of the numbers, or None if there is none."""
    for signs in product("+-", repeat=len(numbers)):
        if sum(number if sign == "+" else -number for sign, number in zip(signs, numbers, strict=True)) == target:
            text = " ".join(f"{sign} {number}" for sign, number in zip(signs, numbers, strict=True))
            return text.removeprefix("+ ") if text[0] == "+" else f"-{text[2:]}"
    return None


def make_problem(seed: int, count: int, largest: int) -> dict[str, Any]:
    """The payload of a seed: `count` numbers up to `largest`, and a target that signs before them give."""
    rng = random.Random(seed)
    numbers = [rng.randint(1, largest) for _ in range(count)]
    signs = [1] + [rng.choice((1, -1)) for _ in range(count - 1)]
    target = abs(sum(sign * number for sign, number in zip(signs, numbers, strict=True)))
    return {"target": target, "numbers": numbers}


class CountdownEnv(TextEnv):
    """Grades one expression. Without a task, `reset(seed=…)` makes a problem of the default size."""

    def __init__(self, max_turns: int = 1, render_mode: str | None = None) -> None:
        super().__init__(max_turns, render_mode)

    def _begin(self, task: Any, seed: int | None) -> tuple[str, Info]:
        del seed  # it is in `np_random`
        if task is None:
            task = Task("", ENV_ID, payload=make_problem(int(self.np_random.integers(2**31)), 3, 50))
        if not isinstance(task, Task) or not {"target", "numbers"} <= set(task.payload):
            raise ValueError(f"{ENV_ID} needs a Task with a target and numbers in its payload, got {task!r:.200}")
        self._target, self._numbers = int(task.payload["target"]), [int(n) for n in task.payload["numbers"]]
        return self._shown, self._about(0.0)

    @property
    def _shown(self) -> str:
        return f"Target: {self._target}, nums: {self._numbers}"

    def _act(self, action: str) -> tuple[str, float, bool, Info]:
        reward = grade(action, self._target, self._numbers)
        said = {1.0: "Right.", USED: "The numbers are right, the value is not."}.get(reward, "Not with these numbers.")
        return said, reward, True, self._about(reward)

    def _about(self, reward: float) -> Info:
        return {"goal": GOAL, "score": reward, "success": reward == 1.0, "state_key": self._shown}

    def _save(self) -> Any:
        return self._target, self._numbers

    def _load(self, saved: Any) -> None:
        self._target, self._numbers = saved


class SignSearch:
    """Tries all signs before the numbers that are shown."""

    def reset(self, observation: str, info: Info) -> None:  # noqa: ARG002
        target, *numbers = map(int, re.findall(r"-?\d+", observation))
        self._answer = solve(target, numbers) or ""

    def observe(self, action: str, observation: str, info: Info) -> None:
        """There is one turn."""

    def act(self) -> str:
        return self._answer


class CountdownTasks(SeedTasks):
    """Problems drawn by seeds."""

    def __init__(
        self,
        numbers: int = 3,
        largest: int = 50,
        max_turns: int = 1,
        train_tasks: int = 1000,
        valid_tasks: int = 200,
    ) -> None:
        """`numbers` is how many there are, `largest` the largest of them. Raises `ValueError` for impossible sizes."""
        super().__init__(ENV_ID, max_turns, train_tasks, valid_tasks)
        if not 2 <= numbers <= 12 or largest < 1:
            raise ValueError(f"numbers must be in 2 to 12 and largest at least 1, got {numbers} and {largest}")
        self.numbers, self.largest = numbers, largest

    def payload(self, split: str, seed: int) -> dict[str, Any]:  # noqa: ARG002
        return make_problem(seed, self.numbers, self.largest)

    def make(self) -> CountdownEnv:
        return CountdownEnv(self.max_turns)

    def expert(self) -> SignSearch:
        return SignSearch()
