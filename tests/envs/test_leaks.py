"""Environments, pools and sessions that were closed, or dropped without being closed, leave nothing open."""

from __future__ import annotations

import gc
import os
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest

from envs.alfworld.tasks import ALFWorldTasks
from envs.core import Task, TaskSet
from envs.gym_tasks import GymTasks
from envs.key_corridor.env import KeyCorridorTasks
from envs.mcp.env import McpEnv
from envs.pool import EnvPool
from envs.search.tasks import SearchTasks
from envs.tools.mcp_client import SessionLimits
from envs.tools.tasks import ToolTasks
from envs.webshop.tasks import WebShopTasks
from tests.envs.mcp_servers import FOLDER

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="counts in /proc")
EPISODES = 6
TASK_SETS: dict[str, Callable[[], TaskSet]] = {
    "key_corridor": KeyCorridorTasks,
    "alfworld": partial(ALFWorldTasks, games="embedded", embedded_train=6, embedded_valid_seen=6),
    "webshop": partial(WebShopTasks, catalogue="embedded", embedded_products=60),
    "search": partial(SearchTasks, embedded_people=24, train_tasks=4, valid_tasks=4),
    "tools": partial(ToolTasks, embedded_people=120, train_tasks=14, valid_tasks=7),
    "gym": partial(GymTasks, "examples.light_switches:LightSwitches-v0"),
}


class Open(NamedTuple):
    """The files, threads and processes that this process has open."""

    descriptors: int
    threads: int
    processes: int

    @classmethod
    def now(cls) -> Open:
        gc.collect()
        children = (path.read_text().split() for path in Path("/proc/self/task").glob("*/children"))
        return cls(len(os.listdir("/proc/self/fd")), threading.active_count(), sum(map(len, children)))


def check_nothing_stays_open(play: Callable[[], None]) -> None:
    """Play twice: once for what a process opens only once, such as an index, and once to compare."""
    play()
    before = wait_until_stable()
    play()
    for _ in range(200):
        if all(now <= then for now, then in zip(Open.now(), before, strict=True)):
            return
        time.sleep(0.05)
    raise AssertionError(f"{before} became {Open.now()}")


def wait_until_stable() -> Open:
    """Everything that is open after background cleanup has finished."""
    last, same = Open.now(), 0
    while same < 4:
        time.sleep(0.05)
        now = Open.now()
        last, same = now, same + 1 if now == last else 0
    return last


@pytest.fixture(scope="module", params=TASK_SETS)
def task_set(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TaskSet:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POLYTURN_CACHE", str(tmp_path_factory.mktemp("cache")))
        made = TASK_SETS[request.param]()
        made.manifest(made.splits[0])
    return made


def tasks_of(task_set: TaskSet) -> list[Task]:
    split = task_set.splits[0]
    ids = task_set.manifest(split).ids
    return [task_set.task(split, ids[number % len(ids)]) for number in range(EPISODES)]


def test_environments_and_pools_leave_nothing_open(task_set: TaskSet) -> None:
    """Closed or dropped: all in one test, since looking at what is open takes most of the time."""

    def play_alone(closed: bool) -> None:
        for task in tasks_of(task_set):
            env = task_set.make()
            _, info = env.reset(seed=0, options={"task": task})
            env.step((info["admissible"] or ["python[1 + 1]"])[0])
            if closed:
                env.close()

    def play_in_a_pool(closed: bool) -> None:
        pool = EnvPool(task_set.make, EPISODES, step_timeout=60.0)
        outcomes = pool.reset(dict(enumerate(tasks_of(task_set))))
        assert not any(outcome.error for outcome in outcomes.values())
        if closed:
            pool.close()

    def play() -> None:
        for closed in (True, False):
            play_alone(closed)
            play_in_a_pool(closed)

    check_nothing_stays_open(play)


@pytest.mark.parametrize("closed", [True, False], ids=["closed", "dropped"])
def test_workers_leave_nothing_open(closed: bool) -> None:
    tasks = KeyCorridorTasks()

    def play() -> None:
        pool = EnvPool(tasks.make, 2, workers=1)
        pool.reset({0: tasks.task("valid", tasks.manifest("valid").ids[0])})
        if closed:
            pool.close()

    check_nothing_stays_open(play)


@pytest.mark.parametrize("closed", [True, False], ids=["closed", "dropped"])
def test_servers_leave_nothing_open(closed: bool) -> None:
    def play() -> None:
        env = McpEnv([sys.executable, str(FOLDER / "foreign.py")], limits=SessionLimits(start=60.0, close=0.5))
        env.reset(seed=0)
        if closed:
            env.close()

    check_nothing_stays_open(play)


def test_a_worker_that_cannot_be_started_says_why_and_leaves_nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no more processes")

    def play() -> None:
        with pytest.raises(OSError, match="no more processes"):
            EnvPool(KeyCorridorTasks().make, 2, workers=1)

    monkeypatch.setattr("multiprocessing.popen_spawn_posix.Popen.__init__", refuse)
    check_nothing_stays_open(play)
