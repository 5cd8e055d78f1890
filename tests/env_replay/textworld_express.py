"""Recordings of TextWorldExpress: every answer, score and list of valid actions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from envs.core import Task
from envs.textworld_express.env import ENV_ID, TextWorldExpressEnv
from tests.env_replay.kinds import Kind
from tests.recordings import Recorder


def _episodes(data: dict[str, Any], stock: Path, recorder: Recorder) -> None:
    del stock
    for episode in data["episodes"]:
        recorder.cases += 1
        env = TextWorldExpressEnv(len(episode["steps"]) + 1)
        try:
            _episode(env, episode, recorder)
        finally:
            env.close()


def _episode(env: TextWorldExpressEnv, episode: dict[str, Any], recorder: Recorder) -> None:
    payload = {"type": episode["game"], **{key: episode[key] for key in ("params", "seed", "fold")}}
    where = f"{episode['game']} {episode['params']} {episode['seed']}, {episode['policy']}"
    shown, info = env.reset(options={"task": Task(where, ENV_ID, payload=payload)})
    recorder.excepted += 1  # the gold path, of which the engine finds another one in another process
    recorder.check(f"{where}, task", info["goal"], episode["task"])
    properties = json.loads(env.jvm.call("getGenerationPropertiesJSON"))
    recorder.check(f"{where}, properties", properties, episode["generation_properties"])
    seen = {**env.seen, "validActions": sorted(env.seen["validActions"])}
    recorder.check(f"{where}, reset, shown", shown.removeprefix(f"{info['goal']}\n\n"), episode["reset"]["observation"])
    recorder.check_fields(f"{where}, reset", seen, _sorted(episode["reset"]))
    for number, step in enumerate(episode["steps"], start=1):
        text, reward, terminated, _, info = env.step(step["action"])
        ours = {
            "action": step["action"], "observation": text, "reward": reward, "done": terminated,
            "score": env.seen["score"], "scoreRaw": env.seen["scoreRaw"], "success": info["success"],
            "failure": env.seen["taskfailure"], "inventory": env.seen["inventory"], "validActions": info["admissible"],
        }  # fmt: skip
        recorder.check_fields(f"{where}, step {number}", ours, _sorted(step))
        if terminated:
            recorder.check(f"{where}, steps", number, len(episode["steps"]))
            break


def _sorted(step: Mapping[str, Any]) -> dict[str, Any]:
    return {**step, "validActions": sorted(step["validActions"])}


KINDS = (Kind("textworld_express/episodes", _episodes, "textworld-express", ("episodes",)),)
