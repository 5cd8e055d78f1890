"""Plays random actions in environments, and counts what raises.

    python -m tests.random_actions sokoban textcraft --actions 100000

Actions are admissible ones, words of what was seen, and nonsense with characters that break parsers. A line says how
many were played in how many episodes, and how these ended; an exception is printed with what was played last. The exit
status is 1 after one. Seconds are of the CPU, without that of engines.
"""

from __future__ import annotations

import argparse
import random
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console

from envs.alfworld.tasks import ALFWorldTasks
from envs.babyai.tasks import BabyAITasks
from envs.core import Info, NoDataError, Task, TaskSet
from envs.gem.tasks import GemTasks
from envs.key_corridor.env import KeyCorridorTasks
from envs.ragen_games.bandit import BanditTasks
from envs.ragen_games.countdown import CountdownTasks
from envs.ragen_games.frozen_lake import FrozenLakeTasks
from envs.reasoning_gym.tasks import ReasoningGymTasks
from envs.scienceworld.tasks import ScienceWorldTasks
from envs.search.tasks import SearchTasks
from envs.sokoban.tasks import SokobanTasks
from envs.sotopia.tasks import SotopiaTasks
from envs.tau_bench.tasks import TauBenchTasks
from envs.textarena.tasks import TextArenaTasks
from envs.textcraft.tasks import TextCraftTasks
from envs.textworld_express.tasks import TextWorldExpressTasks
from envs.tools.tasks import ToolTasks
from envs.webshop.tasks import WebShopTasks

TASKS = 50  # of each split, that are played in turn
NONSENSE = (
    "", " ", "\0", "\n\n", "\\", "[", "]", "{}", "<think>", "</answer>", '{"name": "x", "arguments": [1e999]}', "é√😀",
    "\ud800", "-1", "1/0", "9" * 400, "a" * 3000, "craft 0 x using -1 y", "get 99999999999999999999 coal", "%s %d {0}",
    "'; DROP TABLE", "../..",
)  # fmt: skip
ENVIRONMENTS: dict[str, Callable[[], TaskSet]] = {
    "alfworld": lambda: ALFWorldTasks(
        games="embedded", embedded_train=8, embedded_valid_seen=4, embedded_valid_unseen=4
    ),
    "babyai": BabyAITasks,
    "bandit": BanditTasks,
    "boxoban": lambda: SokobanTasks(levels="boxoban"),
    "countdown": CountdownTasks,
    "frozen_lake": FrozenLakeTasks,
    "gem": lambda: GemTasks("game:Game2048-v0-easy"),
    "key_corridor": KeyCorridorTasks,
    "reasoning_gym": lambda: ReasoningGymTasks("chain_sum"),
    "scienceworld": lambda: ScienceWorldTasks(tasks=["find-plant"]),
    "search": lambda: SearchTasks(embedded_people=48, train_tasks=50, valid_tasks=20),
    "sokoban": lambda: SokobanTasks(train_tasks=50),
    "sotopia": SotopiaTasks,
    "tau_airline": lambda: TauBenchTasks("airline"),
    "tau_retail": lambda: TauBenchTasks("retail"),
    "textarena": lambda: TextArenaTasks("Mastermind-v0"),
    "textarena_two": lambda: TextArenaTasks("TicTacToe-v0"),
    "textcraft": TextCraftTasks,
    "textworld_express": lambda: TextWorldExpressTasks(["coin"]),
    "tools": lambda: ToolTasks(embedded_people=48, train_tasks=50, valid_tasks=20),
    "webshop": lambda: WebShopTasks(catalogue="embedded", embedded_products=60),
}


def choose(rng: random.Random, seen: str, info: Info) -> str:
    """The next action."""
    draw, words = rng.random(), seen.split() or ["x"]
    names = info["admissible"] or info.get("actions")
    if names and draw < 0.6:
        return str(rng.choice(names))
    if draw < 0.8:
        return " ".join(rng.choices(words, k=rng.randint(1, 8)))
    return rng.choice(NONSENSE) + (rng.choice(words) if draw < 0.9 else "")


def play(tasks: TaskSet, wanted: int) -> Counter[str]:
    """How often what happened. Raises what an environment raises."""
    rng, count = random.Random(0), Counter[str]()
    played = [tasks.task(split, name) for split in tasks.splits for name in tasks.manifest(split).ids[:TASKS]]
    rng.shuffle(played)
    env: Any = tasks.make()
    action = ""
    try:
        while count["actions"] < wanted:
            task: Task = played[count["episodes"] % len(played)]
            seen, info = env.reset(options={"task": task})
            count["episodes"] += 1
            while not info["stop_reason"] and count["actions"] < wanted:
                action = choose(rng, seen, info)
                seen, _, _, _, info = env.step(action)
                count["actions"] += 1
            count[str(info["stop_reason"] or "unfinished")] += 1
    except Exception as error:
        error.add_note(f"{task.split} {task.id}, action {count['actions']}: {action!r}")
        raise
    finally:
        env.close()
    return count


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status: 1 after an exception."""
    parser = argparse.ArgumentParser(prog="tests.random_actions", description="random actions in environments")
    parser.add_argument("names", nargs="*", choices=[*ENVIRONMENTS, []], help="without one, all")
    parser.add_argument("--actions", type=int, default=100_000, help="in each (%(default)s)")
    options = parser.parse_args(argv)
    console, status = Console(soft_wrap=True), 0
    for name in options.names or ENVIRONMENTS:
        began = time.process_time()
        try:
            count = play(ENVIRONMENTS[name](), options.actions)
        except (NoDataError, ModuleNotFoundError) as error:
            console.print(f"{name}: not there: {error}", markup=False)
        except Exception:
            console.print(f"{name}: raised\n{traceback.format_exc()}", markup=False)
            status = 1
        else:
            actions, episodes = count.pop("actions"), count.pop("episodes")
            ends = ", ".join(f"{key} {number:,}" for key, number in sorted(count.items()))
            seconds = time.process_time() - began
            console.print(f"{name}: {actions:,} actions, {episodes:,} episodes: {ends}; {seconds:.0f} s", markup=False)
    return status


if __name__ == "__main__":
    raise SystemExit(main())
