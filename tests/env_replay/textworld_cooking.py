"""Recordings of TextWorld's cooking games: the texts of the game, scores and admissible commands."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any

from envs.core import Task
from envs.textworld_cooking.env import ENV_ID, TextWorldCookingEnv
from envs.textworld_cooking.games import walkthrough
from tests.env_replay.kinds import Kind
from tests.recordings import Recorder


def _skills(options: str) -> dict[str, Any]:
    """The settings that `tw-make tw-cooking` reads from its options."""
    parser = argparse.ArgumentParser()
    for name in ("recipe", "take", "go"):
        parser.add_argument(f"--{name}", type=int, default=0 if name == "take" else 1)
    for name in ("open", "cook", "cut", "drop"):
        parser.add_argument(f"--{name}", action="store_true")
    parser.add_argument("--split")
    return vars(parser.parse_args(shlex.split(options)))


def _episodes(data: dict[str, Any], stock: Path, recorder: Recorder) -> None:
    del stock
    for episode in data["episodes"]:
        recorder.cases += 1
        env = TextWorldCookingEnv(len(episode["steps"]) + 1)
        try:
            _episode(env, episode, recorder)
        finally:
            env.close()


def _episode(env: TextWorldCookingEnv, episode: dict[str, Any], recorder: Recorder) -> None:
    where = f"{episode['options']}, seed {episode['seed']}, {episode['policy']}"
    recorder.check(f"{where}, seeds", episode["seed"], episode["recipe_seed"])
    payload = {"skills": _skills(episode["options"]), "seed": episode["seed"]}
    _, info = env.reset(options={"task": Task(where, ENV_ID, payload=payload)})
    recorder.check(f"{where}, objective", info["goal"], episode["objective"])
    recorder.check(f"{where}, max_score", env.state.max_score, episode["max_score"])
    recorder.check(f"{where}, walkthrough", walkthrough(payload), episode["walkthrough"])
    recorder.check_fields(f"{where}, reset", _seen(env), episode["reset"])
    for number, step in enumerate(episode["steps"], start=1):
        over = env.step(step["action"])[2]
        ours = {"action": step["action"], "done": over, **_seen(env)}
        recorder.check_fields(f"{where}, step {number}", ours, step)


def _seen(env: TextWorldCookingEnv) -> dict[str, Any]:
    state = env.state
    return {
        "feedback": state.feedback, "score": state.score, "won": state.won, "lost": state.lost,
        "admissible": state.admissible_commands,
    }  # fmt: skip


KINDS = (Kind("textworld_cooking/episodes", _episodes, "PyPI textworld 1", ("episodes",)),)
