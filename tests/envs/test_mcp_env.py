"""Environments over the Model Context Protocol: offered by a server, and played in one. All servers are processes."""

from __future__ import annotations

import json
import pickle
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path

import gymnasium as gym
import pytest

from envs.conformance import TaskSetConformance
from envs.core import INFO_KEYS, NoDataError, StopReason, Task, UnknownNameError
from envs.mcp.env import McpEnv
from envs.mcp.server import INFO
from envs.mcp.tasks import NumberedTasks, OfferedTasks, ToolkitTasks, mcp_tasks
from envs.pool import EnvPool
from envs.services import ServiceError
from envs.tools.mcp_client import McpError, McpServer, McpSession, SessionLimits
from tests.envs.mcp_servers import FOLDER, ODD, free_port, over_http
from tests.envs.mcp_servers.suite import task_set

HEADERS = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
FOREIGN = [sys.executable, str(FOLDER / "foreign.py")]
LIMITS = SessionLimits(start=60.0, tools_seconds=60.0, call=60.0, close=0.5)
tasks_of = partial(mcp_tasks, start_timeout=60.0, call_timeout=60.0)


def suite(name: str, *arguments: object) -> list[str]:
    return [sys.executable, "-m", "tests.envs.mcp_servers.suite", name, *map(str, arguments)]


@pytest.fixture(scope="module")
def corridor() -> Iterator[str]:
    """The URL of a server of key corridors."""
    port = free_port()
    with over_http(suite("key_corridor", "--http", port), port) as url:
        yield url


@pytest.fixture(scope="module")
def failing() -> Iterator[str]:
    """The URL of a server whose environment fails, with short limits."""
    port = free_port()
    with over_http(suite("failing", "--http", port, "--sessions", 2, "--step", 1.0), port) as url:
        yield url


# -- our environments through a server --------------------------------------------------------------------------------
class TestCorridorOverHTTP(TaskSetConformance):
    @pytest.fixture(autouse=True)
    def _server(self, corridor: str) -> None:
        self.url = corridor

    def make_task_set(self) -> OfferedTasks | NumberedTasks | ToolkitTasks:
        return tasks_of(url=self.url)


@pytest.fixture
def url_of(corridor: str) -> Iterator[Callable[[str], str]]:
    """Starts a server of an environment by its name; gives its URL."""
    with ExitStack() as servers:

        def start(name: str) -> str:
            port = free_port()
            return servers.enter_context(over_http(suite(name, "--http", port), port))

        yield lambda name: corridor if name == "key_corridor" else start(name)


@pytest.mark.parametrize("name", ["key_corridor", "alfworld", "search"])
def test_playing_through_a_server_gives_the_same_transcript(name: str, url_of: Callable[[str], str]) -> None:
    direct, served = task_set(name), tasks_of(url=url_of(name))
    assert isinstance(served, OfferedTasks)
    assert (served.offers, served.splits, served.max_turns) == (direct.env_id, list(direct.splits), direct.max_turns)
    rng = random.Random(0)
    with closing(served.make()) as env, closing(direct.make()) as same:
        for split in direct.splits[:2]:
            manifest = direct.manifest(split)
            assert served.manifest(split).facts() == manifest.facts()
            assert served.manifest(split).ids == manifest.ids
            for task_id in manifest.ids[:2]:
                mine, theirs = served.task(split, task_id), direct.task(split, task_id)
                assert mine.seed == theirs.seed
                assert mine.payload["type"] == theirs.payload.get("type", "")
                got = env.reset(seed=3, options={"task": mine})
                expected = same.reset(seed=3, options={"task": theirs})
                assert got == expected
                for _ in range(12):
                    if got[-1]["stop_reason"]:
                        break
                    action = rng.choice([*(got[-1]["admissible"] or []), "dance", "search[Ä <b>]"])
                    got, expected = env.step(action), same.step(action)
                    assert got == expected


def test_a_task_of_its_own_seed_is_the_default(corridor: str) -> None:
    env = gym.make("polyturn/MCP-v0", url=corridor, limits=LIMITS)
    with closing(env):
        observation, info = env.reset()
        assert (
            observation
            == task_set("key_corridor")
            .make()
            .reset(options={"task": task_set("key_corridor").task("valid", "seed-1000000")})[0]
        )
        assert set(INFO_KEYS) <= set(info)


def test_environments_can_be_sent_to_workers(corridor: str) -> None:
    served = pickle.loads(pickle.dumps(tasks_of(url=corridor)))
    task = served.task("valid", "seed-1000001")
    with EnvPool(served.make, size=2, workers=1) as pool:
        outcomes = pool.reset({0: task, 1: task})
        assert outcomes[0].error is None
        assert outcomes[0] == outcomes[1]
        assert not pool.step({0: "look"})[0].error


# -- the server's tools -----------------------------------------------------------------------------------------------
def ask(session: McpSession, tool: str, **arguments: object) -> str:
    answer = session.call(tool, arguments)
    return f"Error: {answer.text}" if answer.is_error else answer.text


def test_tools_of_the_server_and_their_errors(corridor: str) -> None:
    with McpSession(McpServer(url=corridor), LIMITS) as session:
        assert [tool.name for tool in session.tools()] == ["tasks", "reset", "step", "admissible_actions"]
        assert ask(session, "step", action="look") == "Error: there is no episode: call reset first"
        assert ask(session, "admissible_actions") == "Error: there is no episode: call reset first"
        assert "5 tasks" in ask(session, "tasks")
        assert ask(session, "tasks", split="train", first=18).splitlines()[1:] == ["seed-0000018", "seed-0000019"]
        first = ask(session, "reset")
        assert first.startswith("Find the key")
        assert ask(session, "reset", task=0, split="valid") == ask(session, "reset", task="seed-1000000") == first
        assert ask(session, "reset", task="3") == ask(session, "reset", task=3)
        assert "go to room" in ask(session, "admissible_actions")
        assert ask(session, "reset", task=5) == "Error: valid has tasks 0 to 4, got 5"
        assert "unknown task" in ask(session, "reset", task="seed-5")
        assert "did you mean 'train'" in ask(session, "reset", split="tran")
        assert "count in 0 to 5000" in ask(session, "tasks", count=10**9)
        assert "'tusk' was unexpected" in ask(session, "reset", tusk=1)
        assert "do not fit" in ask(session, "step", action=3)
        assert "did you mean 'reset'" in ask(session, "rest")
        ask(session, "reset")
        texts = [ask(session, "step", action="look") for _ in range(12)]
        assert texts == [*["Nothing happens."] * 11, "Nothing happens.\n\nThe episode is over: turn_limit."]
        assert ask(session, "step", action="look").startswith("Error: the episode is over")
        assert ask(session, "admissible_actions") == "the episode is over"


def test_right_answers_are_not_in_what_models_see(failing: str) -> None:
    with McpSession(McpServer(url=failing), LIMITS) as session:
        answer = session.call("reset", {"seed": 7})
    assert "right answer" not in answer.text + json.dumps(answer.structured)
    assert answer.text == "seed 7"
    assert answer.meta[INFO]["answers"] == ["the right answer"]
    assert "object" not in answer.meta[INFO]


def test_each_client_has_its_own_environment(corridor: str) -> None:
    def played(task: int, others: list[McpSession]) -> list[str]:
        with McpSession(McpServer(url=corridor), LIMITS) as session:
            texts = [ask(session, "reset", task=task)]
            for turn in range(6):
                for other in others:
                    ask(other, "step", action="look")
                actions = ask(session, "admissible_actions").splitlines()
                action = actions[turn % len(actions)]
                texts.append(ask(session, "step", action=action))
        return texts

    with McpSession(McpServer(url=corridor), LIMITS) as other:
        alone = played(1, [])
        ask(other, "reset", task=2)
        assert played(1, [other]) == alone


def test_bad_requests_and_clients_that_leave_do_not_disturb_a_server(tmp_path: Path) -> None:
    port, log = free_port(), tmp_path / "stderr.txt"
    command = [sys.executable, "-m", "scripts.serve", "mcp", "--http", "--port", str(port), "env=key_corridor"]
    with (
        log.open("w") as stderr,
        over_http(command, port, stderr.fileno()) as url,
        McpSession(McpServer(url=url), LIMITS) as session,
    ):
        before = ask(session, "reset", task=3)
        for body, status in ((b"\xff", 400), (b"[" * 100_000, 400), (b"[]", 400)):
            request = urllib.request.Request(url, body, HEADERS)
            with pytest.raises(urllib.error.HTTPError, match=str(status)):
                urllib.request.urlopen(request, timeout=60)
        lines = ["POST /mcp HTTP/1.1", f"Host: 127.0.0.1:{port}", "Content-Length: 500"]
        lines += [f"{name}: {value}" for name, value in HEADERS.items()]
        for _ in range(3):
            with socket.create_connection(("127.0.0.1", port)) as leaving:
                leaving.sendall("\r\n".join([*lines, "", "{"]).encode())
        assert ask(session, "reset", task=3) == before
    assert "serving polyturn/KeyCorridor-v0" in log.read_text()
    assert "Traceback" not in log.read_text()


def test_a_server_refuses_clients_beyond_its_limit(failing: str) -> None:
    sessions = [McpSession(McpServer(url=failing), LIMITS) for _ in range(2)]
    with pytest.raises(McpError, match="Too many open sessions"):
        McpSession(McpServer(url=failing), LIMITS)
    assert [ask(session, "reset", seed=1) for session in sessions] == ["seed 1", "seed 1"]
    sessions[0].close()
    with McpSession(McpServer(url=failing), LIMITS) as session:  # the place of the one that has left
        assert ask(session, "reset", seed=2) == "seed 2"
    sessions[1].close()


def test_a_session_ends_when_its_client_is_idle() -> None:
    port = free_port()
    with over_http(suite("failing", "--http", port, "--sessions", 1, "--idle", 0.5), port) as url:
        idle = McpSession(McpServer(url=url), LIMITS)
        for _ in range(600):
            try:
                with McpSession(McpServer(url=url), LIMITS) as session:
                    assert ask(session, "reset", seed=1) == "seed 1"
                break
            except McpError:
                time.sleep(0.1)
        else:
            raise AssertionError("the idle session was kept")
        with pytest.raises(McpError, match="Session not found"):
            ask(idle, "reset")
        idle.close()


def test_a_reset_opens_a_new_session_when_the_old_one_is_lost() -> None:
    port = free_port()
    command = suite("failing", "--http", port)
    with over_http(command, port) as url:
        env, other = McpEnv(url=url, limits=LIMITS), McpEnv(url=url, limits=LIMITS)
        assert (env.reset(seed=1)[0], other.reset(seed=1)[0]) == ("seed 1", "seed 1")
    with over_http(command, port):  # it knows nothing of the first server's sessions
        assert env.reset(seed=2)[0] == "seed 2"
        with pytest.raises(ServiceError, match=f"{url}: the server refused: Session not found"):
            other.step("anything")
    with pytest.raises(ServiceError, match=f"{url}: the server did not answer a call of step: "):
        env.step("anything")
    with pytest.raises(NoDataError, match="connection attempts failed"):
        env.reset()
    env.close()
    other.close()


def test_an_environment_that_fails_ends_its_episode_alone(failing: str) -> None:
    with closing(McpEnv(url=failing, limits=LIMITS)) as env, closing(McpEnv(url=failing, limits=LIMITS)) as other:
        other.reset()
        for action, reason in (
            ("raise", r"env_error.*RuntimeError: out of order"),
            ("hang", r"step_timeout.*step of env 0: no answer in 1 s"),
        ):
            env.reset(seed=1)
            with pytest.raises(McpError, match=f"the environment failed .{reason}"):
                env.step(action)
            assert other.step("anything")[0] == "fine"
        assert env.reset(seed=2)[0] == "seed 2"


def test_a_server_that_dies_ends_the_episode_and_starts_again() -> None:
    with closing(McpEnv(suite("failing"), limits=LIMITS)) as env:
        env.reset(seed=1)
        assert env.step("print")[0] == "fine"  # what an environment prints does not reach the protocol
        with pytest.raises(ServiceError, match="it ended with exit status 7"):
            env.step("exit")
        assert env.reset(seed=2)[0] == "seed 2"
    env.close()


# -- servers of others ------------------------------------------------------------------------------------------------
def test_a_server_of_others_is_played_with_defaults() -> None:
    served = tasks_of(command=FOREIGN)
    assert isinstance(served, NumberedTasks)
    assert served.max_turns == 50
    with closing(served.make()) as env:
        task = served.task("valid", "seed-1000002")
        observation, info = env.reset(options={"task": task})
        assert observation == info["goal"] == "Count to three. Seed 1000002."
        assert info["score"] == 0.0
        assert env.step("one")[0].endswith("say a number")  # an error of `step` is an observation
        assert env.step("1")[4]["admissible"] == ["1", "2"]
        env.step("2")
        _, reward, terminated, truncated, info = env.step("3")
        assert (reward, terminated, truncated) == (1.0, True, False)
        assert (info["success"], info["score"], info["stop_reason"]) == (True, 1.0, StopReason.SUCCESS)
        env.reset(options={"task": task})
        _, _, terminated, truncated, info = env.step("stop")
        assert (terminated, truncated, info["stop_reason"]) == (False, True, StopReason.TURN_LIMIT)
        env.reset(options={"task": task})
        with pytest.raises(McpError, match="expected structured content with observation"):
            env.step("text")
        with pytest.raises(ServiceError, match="exit status 1"):
            env.step("die")
        assert env.reset(options={"task": task})[0] == observation


def test_the_description_of_a_reset_without_a_seed() -> None:
    served = tasks_of(command=[*FOREIGN, "--without-seed"])
    assert "its tool reset takes no seed" in served.describe()
    with closing(served.make()) as env:
        assert env.reset(seed=5, options={"task": served.task("train", "seed-0000005")})[0].endswith("Seed 0.")


def test_servers_that_cannot_be_played() -> None:
    with pytest.raises(NoDataError, match="was not found"):
        tasks_of(command=["no-such-command"])
    with pytest.raises(NoDataError, match="cannot be used"):
        tasks_of(command=["true"])
    with pytest.raises(ValueError, match=r"no tool reset or step; its tools: add, .*env\.questions=FILE"):
        tasks_of(command=ODD)
    with pytest.raises(ValueError, match="neither is given"):
        tasks_of()


# -- tools of others --------------------------------------------------------------------------------------------------
@pytest.fixture
def questions(tmp_path: Path) -> Path:
    rows = [{"question": "How much is 2 + 3?", "answers": ["5"]}, {"question": "Who?", "answers": ["Ä", "B"]}]
    (tmp_path / "questions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path / "questions.jsonl"


def call(name: str, **arguments: object) -> str:
    return f"<tool>{json.dumps({'name': name, 'arguments': arguments})}</tool>"


def test_questions_are_answered_with_the_tools_of_a_server(questions: Path) -> None:
    served = tasks_of(command=ODD, questions=str(questions), only=["add", "count", "die", "echo"])
    assert isinstance(served, ToolkitTasks)
    assert served.splits == ["test"]
    with closing(served.make()) as env:
        first, second = (served.task("test", task_id) for task_id in served.manifest("test").ids)
        text, info = env.reset(options={"task": first})
        assert text.endswith("How much is 2 + 3?")
        assert [tool["function"]["name"] for tool in info["tools"]] == ["echo", "add", "count", "die"]
        observation, _, _, _, info = env.step(call("add", a=2, b=3) + call("count"))
        assert (observation, info["tool_result"]) == ("<result>5.0</result>\n<result>1</result>", True)
        assert "do not fit" in env.step(call("add", a="two"))[0]
        _, reward, terminated, _, info = env.step("<answer>5</answer>")
        assert (reward, terminated, info["success"]) == (1.0, True, True)
        env.reset(options={"task": second})
        assert env.step(call("count"))[0] == "<result>1</result>"  # in a server of its own
        assert env.step(call("echo", text="I see ä."))[4]["signals"]["answer_found"]
        assert "exit status 3" in env.step(call("die"))[0]
        assert "the server is gone" in env.step(call("count"))[0]
        assert env.step("<answer>C</answer>")[4]["stop_reason"] == StopReason.FAILURE


def test_the_server_of_the_examples_offers_its_tool(questions: Path) -> None:
    example = str(Path(__file__).parents[2] / "examples" / "mcp_server.py")
    served = tasks_of(command=[sys.executable, example], questions=str(questions), only=["add"])
    with closing(served.make()) as env:
        env.reset(options={"task": served.task("test", served.manifest("test").ids[0])})
        assert env.step(call("add", a=2, b=3))[0] == "<result>5.0</result>"


def test_questions_and_tools_that_do_not_exist(questions: Path, tmp_path: Path) -> None:
    with pytest.raises(NoDataError, match=r"nothing\.jsonl does not exist"):
        tasks_of(command=ODD, questions=str(tmp_path / "nothing.jsonl"))
    with pytest.raises(UnknownNameError, match="did you mean 'add'"):
        tasks_of(command=ODD, questions=str(questions), only=["ad"])


# -- the command ------------------------------------------------------------------------------------------------------
def serve(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "scripts.serve", "mcp", *arguments]


def test_the_command_serves_over_stdio() -> None:
    served = tasks_of(command=serve("env=key_corridor", "env.rooms=5", "env.valid_tasks=3"))
    assert len(served.manifest("valid").ids) == 3
    with closing(served.make()) as env:
        task = served.task("valid", "seed-1000000")
        assert isinstance(task, Task)
        assert "Find the key" in env.reset(options={"task": task})[0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("transport", [(), ("--http", "--port", "0")])
def test_the_command_ends_when_it_is_interrupted(transport: tuple[str, ...], number: signal.Signals) -> None:
    process = subprocess.Popen(
        serve(*transport, "env=key_corridor"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    assert process.stderr.readline().startswith(b"polyturn/KeyCorridor-v0")
    if transport:
        line = process.stderr.readline().decode()
        url = line.split()[-1]
        assert line == f"serving polyturn/KeyCorridor-v0 at {url}\n"
        with McpSession(McpServer(url=url), LIMITS) as session:
            assert ask(session, "reset").startswith("Find the key")
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert output == b""
    assert process.returncode in (128 + number, -number)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["env=key_corridr"], "did you mean 'key_corridor'"),
        (["env=key_corridor", "env.rums=3"], "did you mean 'rooms'"),
        (["--http", "--sessions", "0", "env=key_corridor"], "--sessions must be at least 1"),
        (["--http", "--host", "256.0.0.1", "env=key_corridor"], "256.0.0.1"),
    ],
)
def test_errors_of_the_command(arguments: list[str], words: str) -> None:
    result = subprocess.run(serve(*arguments), capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)
    assert result.returncode == 2
    assert result.stdout == ""
    assert words in result.stderr
