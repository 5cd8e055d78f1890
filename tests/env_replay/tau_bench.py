"""Recordings of tau-bench: tools, every call with its observation, hashes of the database, and rewards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from envs.core import Info, Task
from envs.tau_bench.env import TauBenchEnv
from envs.tau_bench.tasks import TauBenchTasks
from envs.tau_bench.users import STOP
from envs.tools.calls import FORMATS
from envs.tools.tool import Call
from tests.env_replay.kinds import Kind
from tests.recordings import Recorder

MOST_CALLS = 1000
RESPOND = "respond"  # a message to the user


class RecordedUser:
    """The user of the recordings: numbers its answers, and stops at a message that begins with "[end]"."""

    name = "recorded"

    def answer(self, instruction: str, said: Sequence[str]) -> str:
        return STOP if said[-1].startswith("[end]") else f"(user) ok {len(said) // 2}"


def replay_episodes(data: Mapping[str, Any], folder: Path, recorder: Recorder) -> None:
    """Play every variant of every episode, and the odd calls on a fresh database."""
    sets = _Sets(folder)
    for split, tools in data.get("tools", {}).items():
        _, info = _begin(sets, split, 0)
        recorder.check(f"{split}, tools", info["tools"], tools)
    for split, digest in data.get("initial_hash", {}).items():
        env, _ = _begin(sets, split, 0)
        recorder.check(f"{split}, first hash", env.database_hash, digest)
    for split, probes in data.get("probes", {}).items():
        recorder.cases += 1
        env, _ = _begin(sets, split, 0)
        for place, probe in enumerate(probes):
            _call(recorder, env, f"{split}, probe {place}", probe)
    for episode in data["episodes"]:
        task = sets.payload(episode["split"], episode["task"])
        where = f"{episode['split']} {episode['task']}"
        recorder.check(f"{where}, outputs", task["outputs"], episode["outputs"])
        for variant, calls in episode["variants"].items():
            recorder.cases += 1
            env, _ = _begin(sets, episode["split"], episode["task"])
            for place, call in enumerate(calls):
                _call(recorder, env, f"{where}, {variant}, call {place}", call)


def replay_hashes(data: Mapping[str, Any], folder: Path, recorder: Recorder) -> None:
    """Play the reference actions of every task, and say the required outputs."""
    sets = _Sets(folder)
    for split, tasks in data["splits"].items():
        for task in tasks:
            recorder.cases += 1
            env, info = _begin(sets, split, task["task"], oracle=True)
            start = env.database_hash
            expert = sets.open(split, oracle=True).expert()
            assert expert is not None
            expert.reset("", info)
            errors: list[str] = []
            while not info["stop_reason"]:
                action = expert.act()
                said = not action.startswith("<tool>")
                observation, reward, _, _, info = env.step(f"[end] {action}" if said else action)
                expert.observe(action, observation, info)
                errors += [call["name"] for call in info["calls"] if call["is_error"]]
            got = {
                "task": task["task"], "gt_hash": env.database_hash, "gold_reward": float(reward),
                "changes": env.database_hash != start,
            } | ({"gold_errors": errors} if errors else {})  # fmt: skip
            recorder.check_fields(f"{split} {task['task']}", got, task)


class _Sets:
    """The task sets of the domains, made once."""

    def __init__(self, folder: Path) -> None:
        self._make = partial(TauBenchTasks, user=RecordedUser(), format="tags", data=str(folder), max_turns=MOST_CALLS)
        self._made: dict[tuple[str, bool], TauBenchTasks] = {}

    def open(self, split: str, oracle: bool = False) -> TauBenchTasks:
        key = split.partition("_")[0], oracle
        if key not in self._made:
            self._made[key] = self._make(key[0], oracle=oracle)
        return self._made[key]

    def task(self, split: str, number: int, oracle: bool = False) -> Task:
        domain, _, name = split.partition("_")
        return self.open(split, oracle).task(name, f"{domain}-{name}-{number:03d}")

    def payload(self, split: str, number: int) -> Mapping[str, Any]:
        return self.task(split, number).payload


def _begin(sets: _Sets, split: str, number: int, oracle: bool = False) -> tuple[TauBenchEnv, Info]:
    env = sets.open(split, oracle).make()
    _, info = env.reset(options={"task": sets.task(split, number)})
    return env, info


def _call(recorder: Recorder, env: TauBenchEnv, where: str, call: Mapping[str, Any]) -> None:
    """Play a call and compare every field of the recording."""
    if call["name"] == RESPOND:
        observation, reward, done, _, info = env.step(call["kwargs"]["content"])
    else:
        action = FORMATS["tags"].write([Call(call["name"], call["kwargs"])], {})
        _, reward, done, _, info = env.step(action)
        observation = info["calls"][0]["text"]
    got = {"name": call["name"], "kwargs": call["kwargs"], "observation": observation, "done": done}
    if "hash" in call:
        got["hash"] = env.database_hash[:16]
    if "reward" in call:
        signals = info["signals"]
        got["reward"] = float(reward)
        outputs = signals["outputs"]
        got["reward_info"] = (
            {"r_outputs": float(all(outputs.values())), "outputs": outputs}
            if outputs
            else {"r_actions": float(signals["database_is_right"]), "gt_data_hash": env.reference_hash}
        )
    recorder.check_fields(where, got, call)


KINDS = (
    Kind("tau_bench/episodes", replay_episodes, "tau-bench", ("episodes",)),
    Kind("tau_bench/gold_hashes", replay_hashes, "tau-bench", ("splits",)),
)
