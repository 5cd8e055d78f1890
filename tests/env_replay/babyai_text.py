"""Recordings of AgentGym's BabyAI: every text with the available actions, and rewards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from envs.babyai.env import ENV_ID, BabyAIEnv
from envs.babyai.tasks import LEVELS
from envs.core import Task
from tests.env_replay.kinds import Kind
from tests.recordings import Recorder


def _episodes(data: dict[str, Any], stock: Path, recorder: Recorder) -> None:
    del stock
    recorder.check("levels", [f"BabyAI-{name}-v0" for name in LEVELS], data["levels"])
    env = BabyAIEnv(1_000_000)
    for episode in data["episodes"]:
        recorder.cases += 1
        where = f"{episode['level']}, seed {episode['seed']}, {episode['policy']}"
        level, seed = f"BabyAI-{LEVELS[episode['data_idx'] % len(LEVELS)]}-v0", episode["data_idx"] // len(LEVELS)
        recorder.check(f"{where}, level", (level, seed), (episode["level"], episode["seed"]))
        shown, _ = env.reset(options={"task": Task(where, ENV_ID, payload={"level": level, "seed": seed})})
        recorder.check(f"{where}, reset", shown, episode["reset"])
        score = 0.0
        for number, step in enumerate(episode["steps"], start=1):
            text, _, over, _, _ = env.step(step["action"])
            score += env.last_reward  # the reference adds the last reward in every step
            ours = {
                "action": step["action"], "observation": text, "reward": env.last_reward, "score": score, "done": over,
            }  # fmt: skip
            recorder.check_fields(f"{where}, step {number}", ours, step)


KINDS = (Kind("babyai_text/episodes", _episodes, "agentenv-babyai", ("levels", "episodes")),)
