"""Speed of steps and resets of environments, compared with their references if these are installed.

    python -m benchmarks.environments [--seconds 2] [--reference PYTHON]

`--reference` is the Python of a virtual environment with the references, apart from the project's own:

    python -m venv DIR && DIR/bin/pip install gym-sokoban 'numpy<2'

A step of RAGEN's and gym-sokoban's Sokoban draws a picture. RAGEN discards it and makes the text from the room. Both
are measured with their own code of a step, including the drawing. Actions are random. When an episode ends, the next
one begins; the time of a step does not include resets. Seconds are CPU seconds of the process, so other processes do
not matter. The last line of the output is JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
from rich.console import Console
from rich.table import Table

from envs.babyai.tasks import BabyAITasks
from envs.core import NoDataError, TaskSet
from envs.ragen_games.bandit import BanditTasks
from envs.ragen_games.countdown import CountdownTasks
from envs.ragen_games.frozen_lake import FrozenLakeTasks, make_map
from envs.scienceworld.tasks import ScienceWorldTasks
from envs.sokoban.tasks import SokobanTasks
from envs.tau_bench.tasks import TauBenchTasks
from envs.textcraft.tasks import TextCraftTasks
from envs.textworld_express.tasks import TextWorldExpressTasks

TASKS = 200  # tasks that are played one after the other

# With gym-sokoban's Python: steps and resets for 6x6 rooms, with the picture that RAGEN's step draws.
_GYM_SOKOBAN = """
import json, random, sys, time
import numpy as np
from gym_sokoban.envs.sokoban_env import SokobanEnv
seconds = float(sys.argv[1])
random.seed(0)
np.random.seed(0)
sys.stdout = open("/dev/null", "w")  # it tells of retries
env = SokobanEnv(dim_room=(6, 6), max_steps=100, num_boxes=1)
resets, steps, in_resets, in_steps = 0, 0, 0.0, 0.0
while in_steps < seconds:
    began = time.process_time()
    env.reset()
    in_resets += time.process_time() - began
    resets += 1
    began, done = time.process_time(), False
    while not done:
        _, _, done, _ = env.step(random.randint(1, 4))
        steps += 1
    in_steps += time.process_time() - began
sys.__stdout__.write(json.dumps({"steps_per_s": steps / in_steps, "reset_ms": 1000 * in_resets / resets}))
"""


@dataclass(frozen=True)
class Speed:
    """What was measured."""

    steps_per_s: float
    reset_ms: float


@dataclass(frozen=True)
class Case:
    """An environment, and its reference if there is one."""

    name: str
    tasks: Callable[[], TaskSet]
    split: str
    reference: str = ""  # what it is
    measure: Callable[[TaskSet, str, float], Speed] = field(default_factory=lambda: measure)
    measure_reference: Callable[[float, Path | None], Speed | None] = lambda seconds, python: None  # noqa: ARG005


def measure(tasks: TaskSet, split: str, seconds: float) -> Speed:
    """Random play of the tasks of a split, one after the other, until the steps have taken `seconds`."""
    ids = tasks.manifest(split).ids[:TASKS]
    options = [{"task": tasks.task(split, task_id)} for task_id in ids]
    env = tasks.make()
    _, info = env.reset(options=options[0])
    names = info.get("actions") or info["admissible"] or ["1 + 2"]
    rng = random.Random(0)
    actions = [rng.choice(names) for _ in range(10_000)]
    steps, resets, in_steps, in_resets = 0, 0, 0.0, 0.0
    while in_steps < seconds:
        began = time.process_time()
        for option in options:
            env.reset(options=option)
        in_resets += time.process_time() - began
        resets += len(options)
        for option in options:
            env.reset(options=option)
            began, over = time.process_time(), False
            while not over:
                _, _, terminated, truncated, info = env.step(actions[steps % len(actions)])
                over = terminated or truncated
                steps += 1
            in_steps += time.process_time() - began
    return Speed(steps / in_steps, 1000 * in_resets / resets)


def measure_expert(tasks: TaskSet, split: str, seconds: float) -> Speed:
    """The same with the expert's actions, for environments that refuse most random actions."""
    env, plays = tasks.make(), []
    for task_id in tasks.manifest(split).ids[:TASKS]:
        option, expert, actions = {"task": tasks.task(split, task_id)}, tasks.expert(), []
        assert expert is not None, "a case has one"
        observation, info = env.reset(options=option)
        expert.reset(observation, info)
        while not info["stop_reason"]:
            actions.append(expert.act())
            observation, _, _, _, info = env.step(actions[-1])
            expert.observe(actions[-1], observation, info)
        plays.append((option, actions))
    steps, resets, in_steps, in_resets = 0, 0, 0.0, 0.0
    while in_steps < seconds:
        for option, actions in plays:
            began = time.process_time()
            env.reset(options=option)
            ready = time.process_time()
            for action in actions:
                env.step(action)
            in_resets += ready - began
            in_steps += time.process_time() - ready
            resets += 1
            steps += len(actions)
    return Speed(steps / in_steps, 1000 * in_resets / resets)


def scienceworld(seconds: float, python: Path | None) -> Speed | None:
    """The engine alone with the same actions: steps with their scores and ends, and loading of variations."""
    del python
    from envs.jvm import lent
    from envs.scienceworld.env import engine, load

    tasks = ScienceWorldTasks(**SCIENCE)
    steps, in_steps, resets, in_resets = 0, 0.0, 0, 0.0
    with lent(engine()) as jvm:
        while in_steps < seconds:
            for task_id in tasks.manifest("dev").ids[:10]:
                began = time.perf_counter()
                load(jvm, tasks.task("dev", task_id).payload)
                jvm.call("step", "look around")
                in_resets += time.perf_counter() - began
                resets += 1
                began = time.perf_counter()
                for number in range(100):
                    jvm.call("step", LOOKS[number % len(LOOKS)])
                    jvm.call("getScore")
                    jvm.call("getCompleted")
                steps += 100
                in_steps += time.perf_counter() - began
    return Speed(steps / in_steps, 1000 * in_resets / resets)


def measure_scienceworld(tasks: TaskSet, split: str, seconds: float) -> Speed:
    """The same actions in the environment, in wall-clock seconds, most of which are the engine's."""
    env = tasks.make()
    steps, in_steps, resets, in_resets = 0, 0.0, 0, 0.0
    while in_steps < seconds:
        for task_id in tasks.manifest(split).ids[:10]:
            began = time.perf_counter()
            env.reset(options={"task": tasks.task(split, task_id)})
            in_resets += time.perf_counter() - began
            resets += 1
            began = time.perf_counter()
            for number in range(100):
                env.step(LOOKS[number % len(LOOKS)])
            steps += 100
            in_steps += time.perf_counter() - began
    env.close()
    return Speed(steps / in_steps, 1000 * in_resets / resets)


def gym_sokoban(seconds: float, python: Path | None) -> Speed | None:
    """gym-sokoban in its own Python; None without one."""
    if python is None:
        return None
    command = [str(python), "-W", "ignore", "-c", _GYM_SOKOBAN, str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return Speed(**json.loads(done.stdout))


def gymnasium_lake(seconds: float, python: Path | None) -> Speed | None:
    """Gymnasium's FrozenLake on the same maps, which gives numbers of cells and no text."""
    del python
    rng = random.Random(0)
    steps, in_steps, resets, in_resets = 0, 0.0, 0, 0.0
    while in_steps < seconds:
        for seed in range(TASKS):
            began = time.process_time()
            env: Any = gym.make("FrozenLake-v1", desc=make_map(seed, 4, 0.9), success_rate=0.8).unwrapped
            env.reset(seed=seed)
            in_resets += time.process_time() - began
            resets += 1
            moves = [rng.randrange(4) for _ in range(20)]
            began = time.process_time()
            for move in moves:
                over = env.step(move)[2]
                steps += 1
                if over:
                    break
            in_steps += time.process_time() - began
    return Speed(steps / in_steps, 1000 * in_resets / resets)


SCIENCE: dict[str, Any] = {"tasks": ["find-plant"], "max_turns": 1000}
LOOKS = ("look around", "inventory", "open door to hallway", "close door to hallway", "wait1")

CASES = (
    Case(
        "sokoban 6x6",
        lambda: SokobanTasks(train_tasks=1),
        "valid",
        "gym-sokoban 0.0.6, drawing as in RAGEN",
        measure_reference=gym_sokoban,
    ),
    Case("boxoban", lambda: SokobanTasks(levels="boxoban"), "unfiltered_test"),
    Case("frozen_lake", FrozenLakeTasks, "valid", "Gymnasium, without text", measure_reference=gymnasium_lake),
    Case("bandit", BanditTasks, "valid"),
    Case("countdown", CountdownTasks, "valid"),
    Case("textcraft", lambda: TextCraftTasks("embedded"), "valid", measure=measure_expert),
    Case("textcraft, 544 goals", lambda: TextCraftTasks("official"), "agentgym", measure=measure_expert),
    Case(
        "scienceworld",
        lambda: ScienceWorldTasks(**SCIENCE),
        "dev",
        "the bare engine",
        measure=measure_scienceworld,
        measure_reference=scienceworld,
    ),
    Case("textworld_express", lambda: TextWorldExpressTasks(["coin"]), "dev", measure=measure_expert),
    Case("babyai", lambda: BabyAITasks(["GoToRedBall"]), "valid"),
    Case("tau_bench retail", lambda: TauBenchTasks("retail", oracle=True), "test", measure=measure_expert),
    Case("tau_bench airline", lambda: TauBenchTasks("airline", oracle=True), "test", measure=measure_expert),
)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and tell."""
    parser = argparse.ArgumentParser(prog="benchmarks.environments", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=2.0, help="of steps, for each (%(default)s)")
    parser.add_argument("--reference", type=Path, help="a Python that has gym-sokoban")
    options = parser.parse_args(argv)
    table = Table("environment", "steps/s", "reset, ms", "reference", "its steps/s", "its reset, ms", "times", box=None)
    results: dict[str, Any] = {}
    for case in CASES:
        try:
            ours = case.measure(case.tasks(), case.split, options.seconds)
        except (NoDataError, ModuleNotFoundError) as error:
            table.add_row(case.name, "", "", f"no data: {error}")
            continue
        theirs = case.measure_reference(options.seconds, options.reference)
        results[case.name] = {"ours": vars(ours), "reference": vars(theirs) if theirs else None}
        shown = [f"{ours.steps_per_s:,.0f}", f"{ours.reset_ms:.3f}"]
        if theirs:
            times = ours.steps_per_s / theirs.steps_per_s
            shown += [case.reference, f"{theirs.steps_per_s:,.0f}", f"{theirs.reset_ms:.3f}", f"{times:.1f}"]
        table.add_row(case.name, *shown)
    Console(width=140).print(table)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
