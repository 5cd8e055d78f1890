"""Environments over OpenEnv, by the real package: served by a process, and played in."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from random import Random
from typing import Any

import pytest

from envs.conformance import TaskSetConformance
from envs.core import INFO_KEYS, NoDataError, TaskSet, UnknownNameError
from envs.key_corridor.env import KeyCorridorTasks
from envs.openenv.env import OpenEnvEnv, OpenEnvError
from envs.openenv.tasks import OfferedTasks, SeededTasks, Server, _text_field, openenv_tasks
from envs.services import ServiceError
from tests.engines import needs_package

pytestmark = needs_package("openenv", "openenv")
SESSIONS = 32
WAIT_SECONDS = 120.0


@contextmanager
def serving(*arguments: str) -> Iterator[str]:
    """The URL of a server in a process of its own."""
    command = [sys.executable, "-m", "scripts.serve", "openenv", "--port", "0", *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            for line in process.stderr:
                if line.startswith("serving "):
                    yield line.split()[-1]
                    break
        finally:
            process.send_signal(signal.SIGTERM)
            process.stderr.read()


@pytest.fixture(scope="module")
def corridor() -> Iterator[str]:
    with serving(f"--sessions={SESSIONS}", "env=key_corridor", "env.train_tasks=40", "env.valid_tasks=3") as url:
        yield url


def play(tasks: TaskSet, split: str, number: int, turns: int = 30) -> list[Any]:
    """What is seen when a task of `split` is played at random, by its place in the manifest."""
    rng = Random(number)
    env = tasks.make()
    with closing(env):
        task = tasks.task(split, tasks.manifest(split).ids[number])
        text, info = env.reset(options={"task": task})
        seen: list[Any] = [(text, *(info[key] for key in INFO_KEYS))]
        for _ in range(turns):
            action = rng.choice(info["admissible"] or ["look"])
            text, reward, terminated, truncated, info = env.step(action)
            seen.append((action, text, reward, terminated, truncated, *(info[key] for key in INFO_KEYS)))
            if info["stop_reason"]:
                break
    return seen


class TestConformance(TaskSetConformance):
    @pytest.fixture(autouse=True)
    def _server(self, corridor: str) -> None:
        self.url = corridor

    def make_task_set(self) -> OfferedTasks | SeededTasks:
        return openenv_tasks(self.url)


def test_a_served_environment_is_the_same(corridor: str) -> None:
    served, local = openenv_tasks(corridor), KeyCorridorTasks(train_tasks=40, valid_tasks=3)
    assert (served.splits, served.max_turns) == (list(local.splits), local.max_turns)
    for split in local.splits:
        assert served.manifest(split).facts() == local.manifest(split).facts()
        assert play(served, split, 0) == play(local, split, 0)


def test_sessions_are_not_mixed_up_and_are_limited(corridor: str) -> None:
    served, local = openenv_tasks(corridor), KeyCorridorTasks(train_tasks=40, valid_tasks=3)
    with ThreadPoolExecutor(SESSIONS) as threads:
        found = list(threads.map(lambda number: play(served, "train", number, turns=8), range(SESSIONS)))
    assert found == [play(local, "train", number, turns=8) for number in range(SESSIONS)]

    others = [served.make() for _ in range(SESSIONS)]
    for env in others:
        env.reset()
    with closing(served.make()) as late, pytest.raises(OpenEnvError, match="at capacity: 32/32"):
        late.reset()
    for env in others:
        env.close()
    assert play(served, "valid", 0) == play(local, "valid", 0)


CLIENT = """
import sys, time
from envs.openenv.tasks import openenv_tasks
env = openenv_tasks(sys.argv[1]).make()
env.reset()
print("ready", flush=True)
time.sleep(1000)
"""


def test_a_client_that_is_killed_frees_its_session() -> None:
    with serving("--sessions=1", "env=key_corridor", "env.valid_tasks=1") as url:
        command = [sys.executable, "-c", CLIENT, url]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as client:
            assert client.stdout is not None
            assert client.stdout.readline() == "ready\n"
            with closing(openenv_tasks(url).make()) as env, pytest.raises(OpenEnvError, match="at capacity"):
                env.reset()
            client.kill()
        end = time.monotonic() + WAIT_SECONDS
        while True:
            with closing(openenv_tasks(url).make()) as env:
                try:
                    assert "Find the key" in env.reset()[0]
                    break
                except OpenEnvError:
                    assert time.monotonic() < end
                    time.sleep(0.1)


def test_what_the_server_refuses_is_said(corridor: str) -> None:
    with closing(OpenEnvEnv(corridor, "message", "text")) as env:
        env._client = None
        with pytest.raises(OpenEnvError, match="there is no episode: call reset first"):
            env._ask("step", {"message": "look"})
        with pytest.raises(OpenEnvError, match="did you mean 'valid'"):
            env._ask("reset", split="valide")
        with pytest.raises(OpenEnvError, match="reset has no 'tsk'"):
            env._ask("reset", tsk=1)
    with closing(OpenEnvEnv(corridor, "message", "txt")) as env, pytest.raises(OpenEnvError, match="its fields: adm"):
        env.reset()
    with pytest.raises(UnknownNameError, match="did you mean 'text'"):
        openenv_tasks(corridor, observation="txt")


def test_a_server_that_is_lost_ends_the_episode_and_one_that_is_not_there_the_run() -> None:
    with serving("env=key_corridor") as url:
        env = openenv_tasks(url).make()
        env.reset()
    with pytest.raises(ServiceError, match=f"{url}, step"):
        env.step("look")
    with pytest.raises(NoDataError, match="no server of OpenEnv"):
        env.reset()
    with pytest.raises(NoDataError, match="no server of OpenEnv"):
        openenv_tasks(url)


FOREIGN = """
import sys
import uvicorn
from openenv.core.env_server import Action, Environment, Observation, State, create_fastapi_app

class Guess(Action):
    guess: str
    comment: str = ""

class Seen(Observation):
    prompt: str
    guesses: list[str] = []

class Game(Environment):
    def reset(self, seed=None, episode_id=None, **kwargs):
        self.seed, self.guesses = seed, []
        return Seen(prompt=f"Guess {seed}.")
    def step(self, action, timeout_s=None, **kwargs):
        self.guesses.append(action.guess)
        won = action.guess == str(self.seed)
        over = won or len(self.guesses) == 2
        return Seen(prompt="Yes." if won else "No.", guesses=self.guesses, done=over, reward=won)
    @property
    def state(self):
        return State()

uvicorn.run(create_fastapi_app(Game, Guess, Seen), port=int(sys.argv[1]), log_level="error")
"""


def test_a_server_of_others_is_played_by_seeds() -> None:
    from tests.envs.mcp_servers import free_port

    port = free_port()
    with subprocess.Popen([sys.executable, "-c", FOREIGN, str(port)]) as process:
        try:
            server = Server(f"http://127.0.0.1:{port}", WAIT_SECONDS)
            while process.poll() is None:
                try:
                    server.get("health")
                    break
                except NoDataError:
                    time.sleep(0.1)
            tasks = openenv_tasks(server.url)
            assert tasks.describe().endswith("which lists no tasks")
            with closing(tasks.make()) as env:
                options = {"task": tasks.task("train", "seed-0000007")}
                text, info = env.reset(options=options)
                assert (text, info["goal"], info["admissible"]) == ("Guess 7.", "Guess 7.", None)
                assert env.step("8")[:4] == ("No.", 0.0, False, False)
                text, reward, terminated, _, info = env.step("7")
                assert (text, reward, terminated, info["success"], info["score"]) == ("Yes.", 1.0, True, True, 1.0)
                env.reset(options=options)
                env.step("1")
                assert env.step("2")[4]["stop_reason"] == "failure"
        finally:
            process.kill()


def test_the_field_of_the_text_is_found() -> None:
    text = {"type": "string"}
    assert _text_field("url", "action", None, {"properties": {"say": text, "n": {"type": "integer"}}}) == "say"
    two = {"properties": {"say": text, "why": text}, "required": ["say"]}
    assert _text_field("url", "action", None, two) == "say"
    assert _text_field("url", "action", "why", two) == "why"
    with pytest.raises(ValueError, match=r"2 fields of text \(say, why\).*env\.action=NAME"):
        _text_field("url", "action", None, {"properties": {"say": text, "why": text}})
