"""ScienceWorld by its real engine: splits, episodes, gold paths, engines that are killed; and recordings.

Starting an engine takes seconds, so nearly all tests take the ones that earlier tests have given back.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from envs import jvm
from envs.conformance import TASK_SET_RULES, Subject, check_env_rule, check_task_set_rule
from envs.core import StopReason, Task, UnknownNameError
from envs.jvm_env import LONGEST_ACTION
from envs.pool import EnvPool
from envs.scienceworld.env import NO_MATCH, ScienceWorldEnv, brief
from envs.scienceworld.tasks import ScienceWorldTasks
from tests.engines import needs_java

pytestmark = needs_java("scienceworld")
EASY = "lifespan-longest-lived"  # two or three actions solve it
WAIT_SECONDS = 60.0


RULES = (  # the others are those of `envs.jvm_env`, which TextWorldExpress is checked with
    "info_is_complete", "success_ends_the_episode", "turn_limit_is_exact", "replay_is_equal", "snapshots_restore",
)  # fmt: skip


@pytest.mark.parametrize("rule", [*RULES, *TASK_SET_RULES])
def test_the_contract_is_kept(rule: str) -> None:
    if rule in TASK_SET_RULES:
        check_task_set_rule(rule, ScienceWorldTasks)
        return
    tasks = ScienceWorldTasks(tasks=[EASY], max_turns=5)
    task = tasks.task("test", f"{EASY}-0093")
    check_env_rule(rule, Subject(tasks.make, [task], tasks.max_turns, tasks.expert))


@contextmanager
def playing(name: str, **settings: Any) -> Iterator[tuple[ScienceWorldEnv, str, dict[str, Any]]]:
    tasks = ScienceWorldTasks(tasks=[name.rpartition("-")[0]], **settings)
    split = next(split for split in tasks.splits if name in tasks.manifest(split).ids)
    env = tasks.make()
    try:
        yield env, *env.reset(options={"task": tasks.task(split, name)})
    finally:
        env.close()


def test_the_splits_are_those_of_the_engine_and_of_papers() -> None:
    sizes = {
        variations: [len(tasks.manifest(split).ids) for split in tasks.splits]
        for variations in ("official", "eto", "epo_l0", "epo_l1", "epo_l2")
        for tasks in [ScienceWorldTasks(variations)]
    }
    assert sizes == {
        "official": [3592, 1796, 1819], "eto": [1483, 194, 211], "epo_l0": [3322, 1661], "epo_l1": [3322, 1684],
        "epo_l2": [2242, 549],
    }  # fmt: skip
    official = ScienceWorldTasks().manifest("dev")
    assert official.official_count == 1796
    assert official.content_hash != ScienceWorldTasks(simplification="easy").manifest("dev").content_hash
    assert ScienceWorldTasks("eto").task("dev", "dev-boil-0014").payload == {
        "type": "boil", "variation": 14, "simplification": "easy",
    }  # fmt: skip
    assert ScienceWorldTasks("epo_l2", ["find-plant"]).splits == ["test"]


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'epo_l1'"):
        ScienceWorldTasks("epo_10")
    with pytest.raises(UnknownNameError, match="did you mean 'find-plant'"):
        ScienceWorldTasks(tasks=["find_plant"])
    with pytest.raises(UnknownNameError, match="did you mean 'openDoors'"):
        ScienceWorldTasks(simplification="opendoors,teleportAction")
    with pytest.raises(ValueError, match="noElectricalAction makes power-component impossible"):
        ScienceWorldTasks(tasks=["power-component"], simplification="noElectricalAction")
    with pytest.raises(ValueError, match="max_turns"):
        ScienceWorldTasks(max_turns=0)
    with playing(f"{EASY}-0093") as (env, *_), pytest.raises(ValueError, match="payload has simplification, type"):
        env.reset(options={"task": Task("a", "b")})


def test_the_configuration_has_the_defaults() -> None:
    ours, default = instantiate(OmegaConf.load("conf/env/scienceworld.yaml")), ScienceWorldTasks()
    assert ours.manifest("dev") == default.manifest("dev")
    assert ours.describe() == default.describe()


def test_the_gold_path_solves_tasks_and_refused_actions_cost_turns() -> None:
    with playing(f"{EASY}-0093") as (env, text, info):
        assert text.startswith(f"{info['goal']}\n\nThis room is called")
        assert info["admissible"] is None
        expert = ScienceWorldTasks().expert()
        expert.reset(text, info)
        text, reward, *_ = env.step("xyzzy")
        expert.observe("xyzzy", text, info)
        assert (text, reward) == (NO_MATCH, 0.0)
        assert env.step("look around " * LONGEST_ACTION)[0] == NO_MATCH
        total, terminated = 0.0, False
        while not terminated:
            action = expert.act()
            text, reward, terminated, _, info = env.step(action)
            expert.observe(action, text, info)
            total += float(reward)
        assert (round(total, 9), info["score"], info["success"], info["stop_reason"]) == (1.0, 1.0, True, "success")
        assert expert.act() == "wait1"


def test_focus_on_the_wrong_thing_ends_an_episode_without_a_score_below_zero() -> None:
    with playing("find-plant-0150", admissible=True) as (env, _, info):
        assert "look around" in info["admissible"]
        assert info["admissible"] == sorted(set(info["admissible"]))
        before = info["points"]
        _, reward, terminated, _, info = env.step("focus on agent")
        assert terminated
        assert float(reward) == (-100 - before) / 100
        assert (info["points"], info["score"], info["stop_reason"]) == (-100, 0.0, "failure")


def test_the_brief_form_has_what_is_seen() -> None:
    text = (
        "This room is called the hallway. In it, you see: \n\tthe agent\n\ta substance called air\n\ta picture\n"
        "You also see:\n\tA door to the art studio (that is closed)\n"
    )
    assert brief(text) == "hallway: picture | to art studio closed"
    assert brief("The door is now open.") == "The door is now open."


def java_processes() -> set[int]:
    """ScienceWorld's, of those that this process has started."""
    children = {int(pid) for path in Path("/proc/self/task").glob("*/children") for pid in path.read_text().split()}
    return {pid for pid in children if b"scienceworld.jar" in Path(f"/proc/{pid}/cmdline").read_bytes()}


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_an_engine_that_is_killed_ends_its_own_episode_only() -> None:
    tasks = ScienceWorldTasks(tasks=[EASY])
    first, second = (tasks.task("test", f"{EASY}-{number:04d}") for number in (93, 94))
    with EnvPool(tasks.make, 2, step_timeout=WAIT_SECONDS) as pool:
        pool.reset({0: first})
        others = java_processes() - {one.process.pid for one in jvm._idle}
        outcomes = pool.reset({1: second})
        assert not outcomes[1].error
        [victim] = java_processes() - {one.process.pid for one in jvm._idle} - others
        os.kill(victim, signal.SIGKILL)
        outcomes = pool.step({0: "look around", 1: "look around"})
        assert outcomes[0].error is None
        assert outcomes[1].error is not None
        assert outcomes[1].error.reason == StopReason.ENV_ERROR
        assert "the Java engine has ended with exit code -9" in outcomes[1].error.text
        assert not pool.reset({1: second})[1].error
        assert not pool.step({1: "look around"})[1].error
    assert len(java_processes()) <= jvm.MOST_IDLE


def test_a_snapshot_is_played_again_and_an_ended_engine_is_replaced() -> None:
    with playing("find-plant-0150") as (env, *_):
        env.step("open cupboard")
        state = env.snapshot()
        looked = env.step("look in cupboard")[0]
        env.jvm.end()
        with pytest.raises(jvm.EngineError, match="the Java engine has"):
            env.step("look around")
        env.restore(state)
        assert env.step("look in cupboard")[0] == looked


ORPHAN = """
import time
from envs.scienceworld.tasks import ScienceWorldTasks
env = ScienceWorldTasks().make()
print(env.jvm.process.pid, flush=True)
time.sleep(1000)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_engine_is_left_when_its_process_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", ORPHAN], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        engine = int(parent.stdout.readline())
        assert is_alive(engine)
        parent.kill()
    end = time.monotonic() + WAIT_SECONDS
    while is_alive(engine) and time.monotonic() < end:
        time.sleep(0.05)
    assert not is_alive(engine)


@pytest.mark.parametrize("absent", ["java", "package"])
def test_a_missing_package_is_named_in_one_line(absent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if absent == "java":
        monkeypatch.setattr(jvm.shutil, "which", lambda _: None)
        expected = "env=scienceworld needs Java 17"
    else:
        monkeypatch.setattr(jvm, "find_spec", lambda _: None)
        expected = r"pip install 'polyturn\[scienceworld\]'"
    with pytest.raises(ModuleNotFoundError, match=expected):
        ScienceWorldTasks()


def test_an_engine_that_cannot_start_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jvm, "_check_memory", lambda _: None)
    with pytest.raises(jvm.EngineError, match="Java did not start"):
        ScienceWorldTasks(memory_mb=100_000_000).make()


def test_a_machine_without_memory_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jvm, "_idle", [])
    with pytest.raises(jvm.EngineError, match=r"no memory for another Java engine.*smaller pool\.size"):
        ScienceWorldTasks(memory_mb=100_000_000).make()
