"""Recordings of RAGEN: maps and slips of the frozen lake, bandits, grades of Countdown, and its turn protocol."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from envs.core import Task
from envs.ragen_games import bandit, countdown, frozen_lake
from envs.ragen_games.frozen_lake import VIEWS, FrozenLakeEnv, Lake, make_map
from tests.env_replay.kinds import Kind
from tests.recordings import Recorder

LAKE_SIZE, LAKE_FROZEN = 4, 0.9  # RAGEN's, where a recording names none


def _games(data: dict[str, Any], stock: Path, recorder: Recorder) -> None:
    del stock
    for episode in data["frozen_lake"]:
        recorder.cases += 1
        _lake(f"frozen_lake {episode['config']}, seed {episode['seed']}", episode, recorder)
    for episode in data["bandit"]:
        recorder.cases += 1
        _bandit(f"bandit {episode['split']}, seed {episode['seed']}", episode, recorder)
    for case in data["countdown"]["answers"]:
        recorder.cases += 1
        reward = countdown.grade(case["answer"], case["target"], case["nums"])
        recorder.check(f"countdown {case['answer']!r}", reward, case["reward"])
    for numbers, target, has_solution in data["countdown"]["has_solution"]:
        recorder.cases += 1
        recorder.check(f"{target} of {numbers}", countdown.solve(target, numbers) is not None, has_solution)


def _lake(where: str, episode: dict[str, Any], recorder: Recorder) -> None:
    config, seed = dict(episode["config"]), episode["seed"]
    rows = make_map(seed, config.pop("size", LAKE_SIZE), config.pop("p", LAKE_FROZEN))
    recorder.check(f"{where}, map", rows, episode["map"])
    rules = (config.pop("is_slippery", True), config.pop("success_rate", 1 / 3))
    recorder.check(f"{where}, unknown settings", config, {})
    task = Task("a", frozen_lake.ENV_ID, seed=seed, payload={"map": rows})
    env = FrozenLakeEnv(len(episode["steps"]) + 1, "grid", *rules)
    shown = env.reset(options={"task": task})[0]
    recorder.check(f"{where}, reset", shown, episode["reset"])
    before, done, reward, success = shown, False, 0.0, False
    for number, step in enumerate(episode["steps"], start=1):
        if not done:
            shown, _, done, _, info = env.step(step["action"])
            reward, success = info["score"], info["success"]
        else:  # the reference goes on: nothing moves, and nothing is given
            reward = 0.0
        ours = {"observation": shown, "reward": reward, "done": done, "success": success, "effective": shown != before}
        recorder.check_fields(f"{where}, step {number}", ours, {k: v for k, v in step.items() if k != "action"})
        before = shown
    lake = Lake(tuple(rows))
    end = lake.grids.index(shown)
    for name, player in (("coord", lake.start), ("coord_end", end)):
        if episode.get(name) is not None:
            recorder.check(f"{where}, {name}", VIEWS["coord"](lake, player), episode[name])


def _bandit(where: str, episode: dict[str, Any], recorder: Recorder) -> None:
    env = bandit.BanditEnv()
    task = Task("a", bandit.ENV_ID, seed=episode["seed"], payload={"names": episode["split"]})
    shown, info = env.reset(options={"task": task})
    recorder.check(f"{where}, reset", shown, episode["reset"])
    recorder.check(f"{where}, arms", info["admissible"], episode["arms"])
    observation, reward, done, _, info = env.step(episode["action"])
    ours = (observation, reward, done, info["success"])
    recorder.check(f"{where}, step", ours, tuple(episode[k] for k in ("observation", "reward", "done", "success")))


KINDS = [Kind("ragen_games/games", _games, "RAGEN", ("frozen_lake", "bandit", "countdown"))]
