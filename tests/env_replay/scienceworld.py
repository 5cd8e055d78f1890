"""Recordings of ScienceWorld: its splits, and episodes with every answer, score and list of valid actions.

The engine lists the same things in another order now and then, so texts are compared by their words. Steps that came
out differently when the reference itself was played again are marked in a recording; what is marked is counted as
excepted, and not compared.

A recording has not tried all its steps again. Where one differs, the episode is played by the engine as it is, which
lists and updates things in the order of Java's random numbers. If both values come out, the step is excepted too.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from envs.core import Task
from envs.jvm import Java, Jvm
from envs.scienceworld.env import ENV_ID, FULL, ScienceWorldEnv, engine
from envs.scienceworld.expert import gold_path
from envs.scienceworld.tasks import OFFICIAL, SIMPLIFICATIONS, ScienceWorldTasks
from tests.env_replay.kinds import Kind
from tests.recordings import Recorder

OF_LISTS = ("n_valid", "n_unique_valid", "valid_sha256", "valid")  # of a step: what `valid_varies` is about
OF_TEXTS = ("observation", "inv")  # what `varies` is about
IN_SOME = ("look", "valid")  # that not all steps have
MEMORY_MB = 400
PLAYS = 8  # of an episode by the engine as it is


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
        _episode(episode, recorder)


def _episode(episode: dict[str, Any], recorder: Recorder) -> None:
    where = f"{episode['task']} {episode['variation']}, {episode['policy']}"
    ours, plays = _play(episode, engine(MEMORY_MB)), _Plays(episode)
    recorder.check(f"{where}, task", ours[0].pop("goal"), episode["task_description"])
    progress = ours[-1].pop("progress")
    for number, (seen, step) in enumerate(zip(ours, [episode["reset"], *episode["steps"]], strict=True)):
        _compare(f"{where}, step {number}", number, seen, step, plays, recorder)
    if any("varies" in step for step in episode["steps"]):
        recorder.excepted += 1
    else:
        expected = _words(episode["goal_progress_end"])
        plays.check(f"{where}, progress", len(episode["steps"]), "progress", progress, expected, recorder)
    if episode.get("gold_varies"):
        recorder.excepted += 1
    elif "gold" in episode:
        payload = _payload(episode)
        path = gold_path(engine(MEMORY_MB), payload["type"], payload["variation"], payload["simplification"])
        recorder.check(f"{where}, gold", list(path), episode["gold"])


def _payload(episode: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": episode["task"], "variation": episode["variation"], "simplification": episode["simplification"]}


def _play(episode: dict[str, Any], java: Java) -> list[dict[str, Any]]:
    """What a recording has of the reset and of each step; the goal at the reset, and the progress after the last."""
    env = ScienceWorldEnv(len(episode["steps"]) + 1, memory_mb=MEMORY_MB)
    env.close()
    env._java = java
    try:
        shown, info = env.reset(options={"task": Task("one", ENV_ID, payload=_payload(episode))})
        jvm = env.jvm
        start, score, done = jvm.call("getNumMoves"), info["points"], False
        look = shown.removeprefix(f"{info['goal']}\n\n")
        seen = [{"reward": 0, "score": score, "done": False, "moves": 0, **_around(jvm, look), "goal": info["goal"]}]
        for step in episode["steps"]:
            before = score
            if not done:
                text, _, done, _, info = env.step(step["action"])
                score = info["points"]
            else:  # the reference goes on
                text = jvm.call("step", step["action"])
                score = round(FULL * jvm.call("getScore"))
            moves = jvm.call("getNumMoves") - start
            over = done or moves > episode["env_step_limit"]
            turn = {"action": step["action"], "reward": score - before, "score": score, "done": over, "moves": moves}
            seen.append({**turn, **_around(jvm, text)})
        seen[-1]["progress"] = _words(jvm.call("getGoalProgressStr"))
    finally:
        env.close()
    return seen


def _around(jvm: Jvm, text: str) -> dict[str, Any]:
    """What was answered, and what can be seen then."""
    valid = sorted(jvm.texts("getValidActionObjectCombinations"))
    return {
        "n_valid": len(valid), "n_unique_valid": len(set(valid)), "valid": valid,
        "valid_sha256": hashlib.sha256("\n".join(valid).encode()).hexdigest(),
        "observation": _words(text), "inv": _words(jvm.call("freeActionInventory")),
        "look": _words(jvm.call("freeActionLook")),
    }  # fmt: skip


class _Plays:
    """An episode played by the engine as it is, where Java numbers objects at random; only if something differs."""

    def __init__(self, episode: dict[str, Any]) -> None:
        self._episode = episode

    @cached_property
    def _seen(self) -> list[list[dict[str, Any]]]:
        java = replace(engine(MEMORY_MB), options=())
        return [_play(self._episode, java) for _ in range(PLAYS)]

    def check(self, where: str, number: int, name: str, got: Any, expected: Any, recorder: Recorder) -> None:
        """Compare a value of a step; a difference is excepted where the engine gives now one and now the other."""
        if got != expected:
            found = [play[number].get(name) for play in self._seen]
            if got in found and expected in found:
                recorder.excepted += 1
                return
        recorder.check(where, got, expected)


def _compare(
    where: str, number: int, ours: dict[str, Any], step: Mapping[str, Any], plays: _Plays, recorder: Recorder
) -> None:
    marks = {key for key in step if key.endswith("varies")}
    recorder.check(f"{where}, unknown fields", sorted(set(step) - set(ours) - marks - {"look_sha256"}), [])
    for name, value in ours.items():
        of_texts = name in OF_TEXTS and "varies" in marks
        if of_texts or ("valid_varies" in marks and name in OF_LISTS) or f"{name}_varies" in marks:
            recorder.excepted += 1
        elif name in step or name not in IN_SOME:
            expected = step[name]
            expected = (
                _words(expected) if name in (*OF_TEXTS, "look") else sorted(expected) if name == "valid" else expected
            )
            plays.check(f"{where}, {name}", number, name, value, expected, recorder)


def _words(text: str) -> list[str]:
    """What a text says, without the order of lists."""
    return sorted(re.findall(r"[^\s,.:;()]+", text))


KINDS = (
    Kind("scienceworld/splits", _splits, "scienceworld", ("totals", "tasks")),
    Kind("scienceworld/published_splits", _published_splits, "", ("eto", "epo")),
    Kind("scienceworld/episodes", _episodes, "scienceworld", ("episodes",)),
)
