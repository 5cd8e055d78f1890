"""Recordings of ScienceWorld: its splits, and episodes with every answer, score and list of valid actions.

The engine lists the same things in another order now and then, so texts are compared by their words. Steps that came
out differently when the reference itself was played again are marked in a recording; what is marked is counted as
excepted, and not compared.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from envs.core import Task
from envs.jvm import Jvm
from envs.scienceworld.env import ENV_ID, FULL, ScienceWorldEnv, engine
from envs.scienceworld.expert import gold_path
from envs.scienceworld.tasks import OFFICIAL, SIMPLIFICATIONS, ScienceWorldTasks
from tests.env_replay.kinds import Kind
from tests.recordings import Recorder

OF_LISTS = ("n_valid", "n_unique_valid", "valid_sha256")  # of a step: what `valid_varies` is about
MEMORY_MB = 400


def _splits(data: dict[str, Any], stock: Path, recorder: Recorder) -> None:
    del stock
    recorder.check("simplifications", sorted(SIMPLIFICATIONS[1:]), sorted(data["simplifications"]))
    tasks = ScienceWorldTasks()
    for split, total in data["totals"].items():
        recorder.check(f"{split}, variations", len(tasks.manifest(split).ids), total)
        for name, about in data["tasks"].items():
            recorder.cases += 1
            _check_numbers(f"{split}, {name}", tasks, split, name, about[split], recorder)


def _published_splits(data: dict[str, Any], stock: Path, recorder: Recorder) -> None:
    del stock
    sets = {"eto": data["eto"]["splits"]}
    for name, ranges in data["epo"].items():
        level, _, split = name.partition("_")
        sets.setdefault(f"epo_{level.lower()}", {})[split] = ranges
    for variations, splits in sets.items():
        tasks = ScienceWorldTasks(variations)
        for split, ranges in splits.items():
            where = f"{variations} {split}"
            recorder.check(f"{where}, variations", len(tasks.manifest(split).ids), ranges["count"])
            for name, expected in ranges["tasks"].items():
                recorder.cases += 1
                _check_numbers(f"{where}, {name}", tasks, split, name, expected, recorder)


def _check_numbers(
    where: str, tasks: ScienceWorldTasks, split: str, name: str, ranges: list[list[int]], recorder: Recorder
) -> None:
    begin = "" if tasks.variations == OFFICIAL else f"{split}-"
    found = re.compile(rf"{re.escape(begin + name)}-(\d+)")
    ours = [int(match[1]) for task_id in tasks.manifest(split).ids if (match := found.fullmatch(task_id))]
    recorder.check(where, ours, [number for first, last in ranges for number in range(first, last + 1)])


def _episodes(data: dict[str, Any], stock: Path, recorder: Recorder) -> None:
    del stock
    for episode in data["episodes"]:
        recorder.cases += 1
        env = ScienceWorldEnv(len(episode["steps"]) + 1, memory_mb=MEMORY_MB)
        try:
            _episode(env, episode, recorder)
        finally:
            env.close()


def _episode(env: ScienceWorldEnv, episode: dict[str, Any], recorder: Recorder) -> None:
    task, variation, simplification = episode["task"], episode["variation"], episode["simplification"]
    where = f"{task} {variation}, {episode['policy']}"
    payload = {"type": task, "variation": variation, "simplification": simplification}
    shown, info = env.reset(options={"task": Task(where, ENV_ID, payload=payload)})
    recorder.check(f"{where}, task", info["goal"], episode["task_description"])
    start = env.jvm.call("getNumMoves")
    look, points = shown.removeprefix(f"{info['goal']}\n\n"), info["points"]
    ours = {"observation": look, "reward": 0, "score": points, "done": False, "moves": 0}
    _compare(f"{where}, reset", env.jvm, ours, episode["reset"], recorder)
    done, score = False, points
    for number, step in enumerate(episode["steps"], start=1):
        if not done:
            text, reward, done, _, info = env.step(step["action"])
            gain, score = round(FULL * float(reward)), info["points"]
        else:  # the reference goes on
            text = env.jvm.call("step", step["action"])
            points = round(100 * env.jvm.call("getScore"))
            gain, score = points - score, points
        moves = env.jvm.call("getNumMoves") - start
        over = done or moves > episode["env_step_limit"]
        ours = {"observation": text, "reward": gain, "score": score, "done": over, "moves": moves}
        _compare(f"{where}, step {number}", env.jvm, {"action": step["action"], **ours}, step, recorder)
    progress = env.jvm.call("getGoalProgressStr")
    if any("varies" in step for step in episode["steps"]):
        recorder.excepted += 1
    else:
        recorder.check(f"{where}, progress", _words(progress), _words(episode["goal_progress_end"]))
    if episode.get("gold_varies"):
        recorder.excepted += 1
    elif "gold" in episode:
        path = gold_path(engine(MEMORY_MB), task, variation, simplification)
        recorder.check(f"{where}, gold", list(path), episode["gold"])


def _compare(where: str, jvm: Jvm, ours: dict[str, Any], step: Mapping[str, Any], recorder: Recorder) -> None:
    """Compare the result of a step and the state after it."""
    marks = {key for key in step if key.endswith("varies")}
    valid = jvm.texts("getValidActionObjectCombinations")
    ours |= {
        "n_valid": len(valid),
        "n_unique_valid": len(set(valid)),
        "valid_sha256": hashlib.sha256("\n".join(sorted(valid)).encode()).hexdigest(),
    }
    look, inventory = jvm.call("freeActionLook"), jvm.call("freeActionInventory")
    texts = {"observation": ours.pop("observation"), "inv": inventory}
    given = set(ours) | set(texts) | marks | {"look_sha256", "look", "valid"}
    recorder.check(f"{where}, unknown fields", sorted(set(step) - given), [])
    for name, value in ours.items():
        if ("valid_varies" in marks and name in OF_LISTS) or f"{name}_varies" in marks:
            recorder.excepted += 1
        else:
            recorder.check(f"{where}, {name}", value, step[name])
    for name, value in texts.items():
        if "varies" in marks:
            recorder.excepted += 1
        else:
            recorder.check(f"{where}, {name}", _words(value), _words(step[name]))
    if "look" in step:
        recorder.check(f"{where}, look", _words(look), _words(step["look"]))
    if "valid" in step and "valid_varies" not in marks:
        recorder.check(f"{where}, valid", sorted(valid), sorted(step["valid"]))


def _words(text: str) -> list[str]:
    """What a text says, without the order of lists."""
    return sorted(re.findall(r"[^\s,.:;()]+", text))


KINDS = (
    Kind("scienceworld/splits", _splits, "scienceworld", ("totals", "tasks")),
    Kind("scienceworld/published_splits", _published_splits, "", ("eto", "epo")),
    Kind("scienceworld/episodes", _episodes, "scienceworld", ("episodes",)),
)
