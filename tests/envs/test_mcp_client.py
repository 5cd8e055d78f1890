"""Sessions with servers of tools, each a real process: a call always ends as a result."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from envs.tools.mcp_client import McpError, McpServer, McpSession, SessionLimits
from envs.tools.tool import Call, Limits, Result, execute
from tests.envs.mcp_servers import ODD, free_port, over_http, raw, wait_until_gone
from tests.envs.mcp_servers.raw_http import breaking

LONG = SessionLimits(start=60.0, tools_seconds=60.0, call=60.0, close=0.3)  # for servers that answer, on a busy machine
SHORT = SessionLimits(start=60.0, tools_seconds=60.0, call=0.3, close=0.3)  # for calls that never end


@pytest.fixture(params=["stdio", "http"])
def server(request: pytest.FixtureRequest) -> Iterator[McpServer]:
    if request.param == "stdio":
        yield McpServer(command=ODD)
    else:
        port = free_port()
        with over_http([*ODD, "--http", str(port)], port) as url:
            yield McpServer(url=url)


def call(session: McpSession, name: str, **arguments: object) -> Result:
    tools = {tool.name: tool for tool in session.tools()}
    return execute(tools, Call(name, arguments), Limits())


def result_of(mode: str, limits: SessionLimits = LONG, **arguments: object) -> Result:
    with McpSession(McpServer(command=raw(mode)), limits) as session:
        return call(session, "echo", **{"text": "hello", **arguments})


# -- both transports --------------------------------------------------------------------------------------------------
def test_calls_and_their_errors(server: McpServer) -> None:
    with McpSession(server, LONG) as session:
        tools = {tool.name: tool for tool in session.tools()}
        assert tools["add"].description == "The sum of two numbers."

        def run(name: str, **arguments: object) -> tuple[str, bool]:
            result = execute(tools, Call(name, arguments), Limits())
            return result.text, result.is_error

        assert run("echo", text="naïve \ud800 \0 \n") == ("naïve � \0 \n", False)
        assert run("add", a=1) == ("2.0", False)
        assert run("picture") == ("[image image/png, 3 bytes]\na dot", False)
        for wrong in ({}, {"a": "x"}, {"a": 1, "c": 2}):  # refused here: the server itself ignores the unknown `c`
            text, is_error = run("add", **wrong)
            assert is_error
            assert "the arguments of add" in text
        assert run("boom") == ("Error: Error executing tool boom", True)
        assert "unknown tool" in run("ecko", text="")[0]
        assert run("echo", text="x" * 5000)[0].startswith("x" * 4000 + "…")
        assert run("count") == ("1", False)


def test_a_call_without_an_answer_ends_at_its_deadline_and_the_next_one_works(server: McpServer) -> None:
    with McpSession(server, LONG) as session:
        tools = {tool.name: tool for tool in session.tools()}
        session.limits = SHORT
        result = execute(tools, Call("hang"), Limits())
        assert result.is_error
        assert result.text == "Error: the server did not answer a call of hang within 0.3 s"
        session.limits = LONG
        assert execute(tools, Call("echo", {"text": "again"}), Limits()).text == "again"


def test_a_server_that_dies_in_the_middle_of_a_call(server: McpServer) -> None:
    with McpSession(server, LONG) as session:
        tools = {tool.name: tool for tool in session.tools()}
        first, second = execute(tools, Call("die"), Limits()), execute(tools, Call("echo", {"text": "a"}), Limits())
        assert first.is_error
        assert "did not answer a call of die" in first.text
        assert second.is_error
        with pytest.raises(McpError):
            session.tools()
        if server.command:
            assert "exit status 3; its last words were: goodbye" in first.text
            assert "the server is gone: it ended with exit status 3" in second.text
            assert not session.alive


def test_an_answer_of_100_megabytes_is_cut_off(server: McpServer) -> None:
    with McpSession(server, LONG) as session:
        tools = {tool.name: tool for tool in session.tools()}
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        result = execute(tools, Call("huge", {"megabytes": 100}), Limits())
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert result.is_error
    assert "4,194,304" in result.text.replace("4194304", "4,194,304")
    assert after - before < 100 << 10  # kilobytes


def test_many_threads_share_a_session(server: McpServer) -> None:
    with McpSession(server, LONG) as session:
        tools = {tool.name: tool for tool in session.tools()}
        results: dict[int, list[str]] = {}

        def run(number: int) -> None:
            texts = [f"{number} {turn}" for turn in range(10)]
            results[number] = [execute(tools, Call("echo", {"text": text}), Limits()).text for text in texts]

        threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert results == {number: [f"{number} {turn}" for turn in range(10)] for number in range(8)}


# -- servers that break rules -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("mode", ["rubbish", "flood", "ask"])
def test_messages_that_are_not_answers_are_ignored(mode: str) -> None:
    assert result_of(mode) == Result("hello", False, pytest.approx(0, abs=1e9))


@pytest.mark.parametrize(
    ("mode", "limits", "words"),
    [
        ("partial", SHORT, "did not answer a call of echo within 0.3 s"),
        ("close output", LONG, "it closed its output"),
        ("endless line", LONG, "it sent more than 4,194,304 bytes in one message"),
        ("killed", LONG, "it was ended by signal 9"),
        ("no result", LONG, "in a way that can be read"),
        ("bad schema", LONG, "txet"),
        ("fetch", LONG, "Unresolvable"),
    ],
)
def test_a_broken_answer_is_an_error(mode: str, limits: SessionLimits, words: str) -> None:
    result = result_of(mode, limits)
    assert result.is_error
    assert words in result.text


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("large", "it sent more than 4,194,304 bytes in one message"),
        ("large event", "exceeded the 4194304 byte limit"),
        ("compressed", "did not answer a call of echo"),
        ("slow", "did not answer a call of echo within 1 s"),
        ("surrogates", "Failed to parse JSON response"),
        ("elsewhere", "not followed"),
        ("broken", "returned an error response"),
        ("accepted", "answered a request with 202"),
    ],
)
def test_a_broken_answer_over_http_is_an_error(mode: str, words: str) -> None:
    limits = SessionLimits(start=60.0, tools_seconds=60.0, call=1.0 if mode == "slow" else 60.0, close=0.3)
    with breaking(mode) as url, McpSession(McpServer(url=url), limits) as session:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        result = call(session, "echo")
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10  # kilobytes
    assert result.is_error
    assert words in result.text


def test_halves_of_surrogate_pairs_become_text() -> None:
    assert result_of("surrogates").text == "half �, whole 😀"


@pytest.mark.parametrize(
    ("mode", "limits", "words"),
    [
        ("endless", LONG, "more than 10,000 tools"),
        ("empty pages", SessionLimits(start=60.0, tools_seconds=0.3), "did not list its tools within 0.3 s"),
        ("twice", LONG, "two tools of the name 'echo'"),
        ("no schema", LONG, "in a way that can be read"),
    ],
)
def test_lists_of_tools_that_cannot_be_used(mode: str, limits: SessionLimits, words: str) -> None:
    with (
        McpSession(McpServer(command=raw(mode)), limits) as session,
        pytest.raises(McpError, match=words),
    ):
        session.tools()


def test_ten_thousand_tools() -> None:
    with McpSession(McpServer(command=raw("many")), LONG) as session:
        assert len(session.tools()) == 10_000
        assert call(session, "echo9999", text="hello").text == "hello"


# -- servers that cannot be used --------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "neither is given"),
        ({"command": ["a"], "url": "http://b"}, "both are given"),
        ({"command": "python server.py"}, "must be a list of texts"),
        ({"url": "127.0.0.1:80"}, "url must be an address"),
    ],
)
def test_a_server_is_a_command_or_a_url(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        McpServer(**arguments)  # type: ignore[arg-type]


def test_a_command_that_does_not_exist() -> None:
    with pytest.raises(FileNotFoundError, match="'no-such-command' of the server was not found"):
        McpSession(McpServer(command=["no-such-command"]))


@pytest.mark.parametrize(
    ("command", "limits", "words"),
    [
        (["true"], LONG, "it ended with exit status 0"),
        (["sh", "-c", "echo no data >&2; exit 5"], LONG, "exit status 5; its last words were: no data"),
        (["cat"], LONG, "Method not found"),
        (["sleep", "3600"], SessionLimits(start=0.3), "did not answer within 0.3 s"),
        (["yes"], SessionLimits(start=0.3), "did not answer within 0.3 s"),
        ([sys.executable, "no-such-file.py"], LONG, "No such file"),
    ],
)
def test_a_command_that_speaks_no_mcp(command: list[str], limits: SessionLimits, words: str) -> None:
    with pytest.raises(McpError, match=words):
        McpSession(McpServer(command=command), limits)


@pytest.mark.parametrize("kind", ["text/html", "application/json", "text/event-stream"])
def test_a_web_page_is_no_server(kind: str) -> None:
    class Page(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.end_headers()
            self.wfile.write(b"<html></html>")

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as page:
        threading.Thread(target=page.serve_forever, daemon=True).start()
        with pytest.raises(McpError, match="cannot be used"):
            McpSession(McpServer(url=f"http://127.0.0.1:{page.server_port}/mcp"), LONG)
        page.shutdown()


def test_an_address_where_nobody_answers() -> None:
    with pytest.raises(McpError, match="connection attempts failed"):
        McpSession(McpServer(url=f"http://127.0.0.1:{free_port()}/mcp"), LONG)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(McpError, match=r"within 0\.3 s"):
        McpSession(McpServer(url=f"http://127.0.0.1:{silent.getsockname()[1]}/mcp"), SessionLimits(start=0.3))


# -- ends -------------------------------------------------------------------------------------------------------------
def pids_in(path: Path) -> list[int]:
    for _ in range(1200):
        if path.exists() and len(path.read_text().split()) == 2:
            return [int(pid) for pid in path.read_text().split()]
        time.sleep(0.05)
    raise AssertionError("the server did not start")


def test_close_ends_a_server_that_ignores_signals_and_its_children(tmp_path: Path) -> None:
    limits = SessionLimits(start=60.0, close=0.1)
    session = McpSession(McpServer(command=raw("stubborn", str(tmp_path / "pids"))), limits)
    pids = pids_in(tmp_path / "pids")
    session.close()
    session.close()
    wait_until_gone(*pids)
    with pytest.raises(McpError, match="the session was closed"):
        session.tools()


def test_a_session_that_did_not_start_leaves_no_server(tmp_path: Path) -> None:
    command = f"echo $$ $$ > {tmp_path / 'pids'}; exec sleep 3600"
    with pytest.raises(McpError):
        McpSession(McpServer(command=["sh", "-c", command]), SessionLimits(start=2.0))
    wait_until_gone(*pids_in(tmp_path / "pids"))


def test_a_server_starts_in_a_process_with_more_than_a_thousand_open_files() -> None:
    """`select.select` refuses descriptors above 1,023, and a server's descriptors have the numbers of this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2048:
        pytest.skip(f"needs 2,048 open files, and the limit is {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2048), hard))
    files = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        with McpSession(McpServer(command=ODD), LONG) as session:
            assert call(session, "echo", text="hello").text == "hello"
    finally:
        for file in files:
            os.close(file)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_server_ends_with_the_process_that_started_it(number: signal.Signals, tmp_path: Path) -> None:
    program = f"""
        from envs.tools.mcp_client import *
        session = McpSession(McpServer(command={raw("stubborn", str(tmp_path / "pids"))!r}), SessionLimits(start=60.0))
        print("ready", flush=True)
        session._ask("x", 3600.0, lambda client: asyncio.sleep(3600))
    """
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        cwd=Path(__file__).parents[2], env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert parent.stdout is not None
    assert parent.stdout.readline() == b"ready\n"
    pids = pids_in(tmp_path / "pids")
    parent.send_signal(number)
    parent.wait(60)
    parent.stdout.close()
    wait_until_gone(*pids)
