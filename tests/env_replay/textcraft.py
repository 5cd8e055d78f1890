"""Recordings of TextCraft: goals in order, the commands that games show, every answer, and every inventory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from envs.core import Task
from envs.textcraft.env import ENV_ID, TextCraftEnv
from envs.textcraft.recipes import RecipeTree
from envs.textcraft.sources import FOLDER, RECIPES, open_source
from envs.textcraft.tasks import AGENTGYM_SEED
from tests.env_replay.kinds import Kind
from tests.recordings import Recorder


def replay_episodes(data: Mapping[str, Any], folder: Path, recorder: Recorder) -> None:
    """Play every episode; goals are compared with the two orders of the references."""
    recipes = str(folder / FOLDER / RECIPES)
    tree = open_source(recipes).tree
    orders = {"agentgym": _goals(tree, 1, deepest_first=False), "adapt": _goals(tree, 2, deepest_first=True)}
    for variant, goals in orders.items():
        if f"goals_{variant}" in data:
            recorder.check(f"goals of {variant}", goals, data[f"goals_{variant}"])
    for episode in data["episodes"]:
        recorder.cases += 1
        adapt = episode["variant"] == "adapt"
        number = episode["seed"] if adapt else episode["data_idx"]
        order = orders[episode["variant"]]
        where = f"{episode['variant']} {number}"
        recorder.check(f"{where}, goal", order[number % len(order)][0], episode["goal"])
        payload = {
            "recipes": recipes, "goal": episode["goal"], "seed": number if adapt else AGENTGYM_SEED,
            "walk": episode["variant"],
        }  # fmt: skip
        env = TextCraftEnv(max_turns=len(episode["steps"]) + 1)
        observation, _ = env.reset(options={"task": Task(where, ENV_ID, payload=payload)})
        recorder.check(f"{where}, reset", observation, episode["reset"])
        for place, step in enumerate(episode["steps"]):
            observation, reward, done, _, _ = env.step(step["action"])
            got = {
                "action": step["action"], "observation": observation, "reward": reward, "done": done,
                "inventory": dict(env.inventory),
            }  # fmt: skip
            recorder.check_fields(f"{where}, step {place}", got, step)
            recorder.check(f"{where}, step {place}, order", list(env.inventory), list(step["inventory"]))


def _goals(tree: RecipeTree, least_depth: int, *, deepest_first: bool) -> list[list[Any]]:
    return [list(goal) for goal in sorted(tree.goals(least_depth), key=lambda g: -g[1] if deepest_first else g[1])]


KINDS = (Kind("textcraft/episodes", replay_episodes, "textcraft", ("episodes",)),)
