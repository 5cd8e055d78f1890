"""A tenth of the tasks misbehaves in every way; the results of the others do not change."""

import builtins
import contextlib
import ctypes
import json
import locale
import multiprocessing
import os
import random
import resource
import signal
import stat
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from agents.episode import Episode, read_episodes, write_episodes
from agents.evaluation import evaluate, summarise
from agents.rollout import Job, rollout
from agents.scripted import RandomAgent
from algorithms.turn_table import TurnTable
from envs.core import StopReason
from envs.gym_tasks import GymTasks
from envs.pool import EnvPool

NAN = float("nan")

NONSENSE: dict[str, Any] = {  # what a last step returns
    "nothing": None,
    "four values": ("You win.", 1.0, True, {}),
    "no observation": (None, 1.0, True, False, {}),
    "an array": (np.zeros(3), 1.0, True, False, {}),
    "no number": ("You win.", NAN, True, False, {}),
    "infinity": ("You win.", np.float32("inf"), True, False, {}),
    "too much": ("You win.", 1e308, True, False, {}),
    "a score of no number": ("You win.", 1.0, True, False, {"success": False, "score": NAN}),
    "a success in words": ("You win.", 1.0, True, False, {"success": "no"}),
    "answers in lists": ("You win.", 1.0, True, False, {"answers": [["Paris"]]}),
    "a state with an address": ("You win.", 1.0, True, False, {"state_key": object()}),
    "a list for an info": ("You win.", 1.0, True, False, []),
    "a turn reward in words": ("You win.", 1.0, True, False, {"turn_reward": "high"}),
}
ODD: dict[str, Any] = {  # … and what has a plain meaning
    "numpy": (np.str_("You win."), np.array([1]), np.True_, np.False_, {"score": np.float32(1), "success": np.True_}),
    "bytes": (b"You win.", 1, True, False, {"goal": b"g", "state_key": b"\xff"}),
    "half a pair": ("You win, caf\udce9.", 1.0, True, False, {"goal": "caf\udce9", "state_key": "caf\udce9"}),
    "tuples and sets": ("You win.", 1.0, True, False, {"admissible": {"a"}, "state_key": (np.int64(1), frozenset())}),
    "one answer": ("You win.", 1.0, True, False, {"answers": "Paris"}),
    "numbers as answers": ("You win.", 1.0, True, False, {"answers": [np.int64(3)]}),
    "keys that are no text": ("You win.", 1.0, True, False, {1: 2, None: object()}),
    "nothing said of a turn": ("You win.", 1.0, True, False, {"turn_reward": None, "tool_result": None}),
}  # fmt: skip


RAISED: dict[str, BaseException] = {
    "raise": ValueError("no more doors"),
    "raise at length": ValueError("x" * 1_000_000 + "\udce9"),
    "exit": SystemExit(3),
    "KeyboardInterrupt": KeyboardInterrupt(),
    "GeneratorExit": GeneratorExit(),
    "MemoryError": MemoryError(),
    "RecursionError": RecursionError(),
}
CHANGES: dict[str, Callable[[], Any]] = {  # of what all environments of a process share
    "folder": lambda: os.chdir("/"),
    "variables": lambda: os.environ.update(HOME="elsewhere", DOORS="open"),
    "locale": lambda: locale.setlocale(locale.LC_ALL, "C.UTF-8" if locale.setlocale(locale.LC_ALL) == "C" else "C"),
    "recursion limit": lambda: sys.setrecursionlimit(200),
    "warnings": lambda: warnings.simplefilter("error"),
    "random": lambda: random.seed(1),
    "numpy's random": lambda: np.random.seed(1),  # noqa: NPY002
    "numpy's generator": lambda: np.random.set_bit_generator(np.random.PCG64(1)),
    "builtins": lambda: setattr(builtins, "len", lambda _: 1 / 0),
    "descriptors": lambda: os.closerange(0, 3),
    "limits": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.getrlimit(resource.RLIMIT_FSIZE)[1])),
    "rights of files": lambda: os.umask(0o777),
}


def umask() -> int:
    now = os.umask(0)
    os.umask(now)
    return now


def surroundings() -> list[Any]:
    return [
        os.getcwd(), dict(os.environ), locale.setlocale(locale.LC_ALL), sys.getrecursionlimit(),
        list(warnings.filters), builtins.len, [os.fstat(stream).st_ino for stream in range(3)],
        resource.getrlimit(resource.RLIMIT_FSIZE), umask(),
    ]  # fmt: skip


def generators() -> tuple[Any, list[Any]]:
    """The global ones, whose states are an environment's own in a worker."""
    state = np.random.get_state(legacy=False)["state"]  # noqa: NPY002
    return random.getstate(), [np.asarray(part).tolist() for part in state.values()]


def check_surroundings() -> None:
    """Raise where another environment has changed them, in a worker."""
    if multiprocessing.parent_process() is not None:
        first = FIRST.setdefault(os.getpid(), surroundings())
        for was, now in zip(first, surroundings(), strict=True):
            assert now == was, f"{str(now)[:300]} instead of {str(was)[:300]}"


FIRST: dict[int, list[Any]] = {}  # what was found by the first environment of a process


def write_to_sockets(data: bytes) -> None:
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                os.write(int(name), data)


class Staying:
    """An object whose deletion takes a minute."""

    def __del__(self) -> None:
        time.sleep(60)


class Doors(gym.Env[Any, Any]):
    """Behind one of three doors is the next of 2 to 5 rooms. With `kinds`, one seed of ten misbehaves in turn 2."""

    action_space = observation_space = gym.spaces.Text(max_length=80)

    def __init__(self, kinds: Sequence[str] = ()) -> None:
        self.kinds = kinds

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        assert seed is not None
        self.kind = self.kinds[seed % 1000 // 10 % len(self.kinds)] if self.kinds and seed % 10 == 3 else ""
        self.rooms = int(self.np_random.integers(2, 6))
        self.tries = 0
        return self.say(), self.info()

    def step(self, action: str) -> Any:
        if multiprocessing.parent_process() is not None:
            assert generators() == self.generators, "another environment has drawn from the global generators"
        self.tries += 1
        if self.tries == 2 and self.kind:
            return self.misbehave()
        if action == self.door:
            self.rooms -= 1
        over = self.rooms == 0 or self.tries == 8
        return self.say(), float(self.rooms == 0), over, False, self.info()

    def misbehave(self) -> Any:
        match self.kind:
            case "hang":
                time.sleep(60)
            case "spin":
                while True:
                    pass
            case "print":
                for _ in range(10):
                    sys.stdout.write("x" * 1_000_000)
                return self.say(), 0.0, True, False, self.info()
            case "exit the process":
                os._exit(3)
            case "be killed":
                os.kill(os.getpid(), signal.SIGKILL)
            case "crash":
                ctypes.string_at(0)
            case "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
                time.sleep(60)
            case _:
                return self.misbehave_more()
        raise AssertionError("unreachable")

    def misbehave_more(self) -> Any:
        match self.kind:
            case "write a length":  # to whoever reads
                write_to_sockets(b"\x7f\xff\xff\xff")
                time.sleep(60)
            case "refuse to go":
                self.stays = Staying()
                raise ValueError("and it stays")
            case "tell at length":
                return self.say(), 0.0, True, False, {**self.info(), "more": "x" * 10_000_000}
            case kind if kind in RAISED:
                raise RAISED[kind]
            case kind if kind in CHANGES:
                CHANGES[kind]()
                return self.say(), 0.0, True, False, self.info()
        return (NONSENSE | ODD)[self.kind]

    def say(self) -> str:
        if not self.kind:
            check_surroundings()
        self.door = ("left", "middle", "right")[int(self.np_random.integers(3))]
        self.generators = generators()
        return f"{self.rooms} rooms to go. A draught comes from the {self.door} door."

    def info(self) -> dict[str, Any]:
        return {"admissible": ["left", "middle", "right"], "goal": "Get out."}


gym.register("Doors-v0", f"{__name__}:Doors")


def play(kinds: Sequence[str], tasks: int, workers: int = 0, file: Path | None = None) -> list[Episode]:
    """The episodes of an evaluation, in the order of its tasks."""
    task_set = GymTasks(f"{__name__}:Doors-v0", {"kinds": list(kinds)}, valid_tasks=tasks)
    played: list[Episode] = []

    def keep(episode: Episode) -> None:
        played.append(episode)
        if file:
            write_episodes(file, [episode], append=True)

    with EnvPool(task_set.make, 8, workers, step_timeout=1) as pool:
        evaluation = evaluate(RandomAgent(0), task_set, "valid", pool, on_episode=keep)
    json.dumps(evaluation.to_json(), allow_nan=False)
    return sorted(played, key=lambda episode: episode.task.id)


def innocent(episodes: Sequence[Episode]) -> list[Episode]:
    return [episode for episode in episodes if episode.task.seed % 10 != 3]


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


@pytest.mark.parametrize("kinds", [NONSENSE, ODD], ids=["nonsense", "odd"])
def test_invalid_values_of_an_environment_end_only_its_own_episode(tmp_path: Path, kinds: dict[str, Any]) -> None:
    size = 10 * len(kinds)
    good, bad = play([], size), play(list(kinds), size, file=tmp_path / "episodes.jsonl")
    assert innocent(bad) == innocent(good)
    assert summarise(innocent(bad)) == summarise(innocent(good))
    expected = StopReason.ENV_ERROR if kinds is NONSENSE else StopReason.SUCCESS
    ended = dict(zip(kinds, bad[3::10], strict=True))
    assert {kind: episode.stop_reason for kind, episode in ended.items()} == dict.fromkeys(kinds, expected)
    assert all("envs/checks.py" in episode.error for episode in ended.values() if episode.error)
    text = (tmp_path / "episodes.jsonl").read_text(encoding="utf-8")
    assert all(json.loads(line, parse_constant=refuse) for line in text.splitlines())
    read = sorted(read_episodes(tmp_path / "episodes.jsonl"), key=lambda episode: episode.task.id)
    assert read == bad
    assert len(TurnTable.from_episodes(read)) == sum(len(episode.turns) for episode in read)


FAULTS = {
    "hang": StopReason.STEP_TIMEOUT,
    "spin": StopReason.STEP_TIMEOUT,
    "print": StopReason.FAILURE,
    "no number": StopReason.ENV_ERROR,
    "one answer": StopReason.SUCCESS,
    "tell at length": StopReason.FAILURE,
    "refuse to go": StopReason.STEP_TIMEOUT,
    **dict.fromkeys(RAISED, StopReason.ENV_ERROR),
}
OF_PROCESSES = {
    **dict.fromkeys(("exit the process", "be killed", "crash", "write a length"), StopReason.ENV_ERROR),
    "stop": StopReason.STEP_TIMEOUT,
    **dict.fromkeys(CHANGES, StopReason.FAILURE),
    "builtins": StopReason.ENV_ERROR,
}


@pytest.mark.parametrize("workers", [0, 2])
def test_failures_of_a_tenth_of_the_tasks_do_not_change_the_results_of_the_others(
    tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it does; only what ends or changes a whole process cannot be had without workers."""
    monkeypatch.setattr("envs.pool_worker.GRACE_SECONDS", 1.0)
    faults = {**FAULTS, **OF_PROCESSES} if workers else FAULTS
    size = 10 * len(faults)
    good, bad = play([], size), play(list(faults), size, workers, tmp_path / "episodes.jsonl")
    assert innocent(bad) == innocent(good)
    assert summarise(innocent(bad)) == summarise(innocent(good))
    ended = {kind: episode.stop_reason for kind, episode in zip(faults, bad[3::10], strict=True)}
    assert ended == faults
    read = sorted(read_episodes(tmp_path / "episodes.jsonl"), key=lambda episode: episode.task.id)
    assert read == bad


class Fickle(Doors):
    """Gives another text in each process, so it cannot be restored by replaying its actions."""

    def say(self) -> str:
        return f"{super().say()} This is process {os.getpid()}."


gym.register("Fickle-v0", f"{__name__}:Fickle")


def test_an_episode_that_cannot_be_restored_is_played_again_from_its_beginning() -> None:
    task_set = GymTasks(f"{__name__}:Fickle-v0", {"kinds": ["exit the process"]}, valid_tasks=8)
    ended: list[Episode] = []
    agent = RandomAgent(0)
    with EnvPool(task_set.make, 8, workers=1) as pool:
        jobs = [Job(task_set.task("valid", task_id), group) for group, task_id in enumerate(task_set.ids("valid"))]
        episodes = rollout(agent, pool, jobs, on_episode=ended.append)
    good = play([], 8)
    assert [e.stop_reason for e in innocent(episodes)] == [e.stop_reason for e in innocent(good)]
    for episode, other in zip(innocent(episodes), innocent(good), strict=True):
        assert [turn.action for turn in episode.turns] == [turn.action for turn in other.turns]
        assert len({turn.observation.rpartition(" ")[2] for turn in episode.turns}) == 1, "all of it is of one process"
    assert episodes[3].stop_reason is StopReason.ENV_ERROR
    assert len(ended) == len(episodes)
    assert {id(episode) for episode in ended} == {id(episode) for episode in episodes}


def test_an_episode_is_replayed_a_limited_number_of_times() -> None:
    """All tasks end their process: none of them is tried more than a few times."""
    task_set = GymTasks(f"{__name__}:Always-v0", valid_tasks=4)
    with EnvPool(task_set.make, 4, workers=1) as pool:
        jobs = [Job(task_set.task("valid", task_id)) for task_id in task_set.ids("valid")]
        episodes = rollout(RandomAgent(0), pool, jobs)
    assert [episode.stop_reason for episode in episodes] == [StopReason.ENV_ERROR] * 4


class Always(Fickle):
    """Ends its process in the second turn."""

    def step(self, action: str) -> Any:
        if self.tries == 1:
            os._exit(3)
        return super().step(action)


gym.register("Always-v0", f"{__name__}:Always")
