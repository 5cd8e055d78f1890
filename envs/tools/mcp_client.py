"""Sessions with servers of the Model Context Protocol, and their tools.

    with McpSession(McpServer(command=["python", "server.py"])) as session:
        tools = {tool.name: tool for tool in session.tools()}
        execute(tools, Call("add", {"a": 1, "b": 2}), Limits())

A session runs the client of the `mcp` package in a thread with an event loop of its own: that client is cancelled when
a server dies. A server that dies, hangs, answers too much or answers rubbish is a `McpError` within a deadline. A
server that was started by a session ends with it, and also when this process is killed (`envs.tools.guard`).
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import shlex
import shutil
import sys
import threading
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, TypeVar

from envs.checks import clean_text
from envs.core import NoDataError
from envs.tools.tool import Tool, ToolError

try:
    import anyio
    import httpx2
    import mcp_types
    from mcp import Client, MCPError
    from mcp.client.streamable_http import streamable_http_client
    from mcp.shared.message import SessionMessage
except ImportError as error:
    raise ImportError(f"{error}; servers of tools need the extra: pip install 'polyturn[tools]'") from error

GUARD = Path(__file__).with_name("guard.py")
CLOSED_SECONDS = 0.5  # in which a server whose output has ended is expected to end
GUARD_SECONDS = 3.0  # in which a server is ended by force, see `envs.tools.guard`
SPARE_SECONDS = 5.0  # a thread that is this late for its own deadline is given up
STDERR_BYTES = 2_000  # of what a server wrote there, for error messages
logging.getLogger("mcp").addHandler(logging.NullHandler())  # it would print tracebacks of what becomes a `McpError`

T = TypeVar("T")


class McpError(ToolError):
    """A server cannot be started, is gone, or gave no answer that can be read. The message is for a policy, too."""


class ServerLostError(McpError):
    """The server has ended, or it no longer knows the session."""


@dataclass(frozen=True)
class McpServer:
    """Where a server is: the command that starts it, or the URL that it answers at.

    Raises `ValueError` unless there is exactly one of them, and for a URL that is none.
    """

    command: Sequence[str] = ()
    url: str | None = None

    def __post_init__(self) -> None:
        if bool(self.command) == bool(self.url):
            both = "both are given" if self.url else "neither is given"
            raise ValueError(
                f"a server of tools needs a command that starts it or a url, and {both}: command=[python, server.py] "
                "or url=http://127.0.0.1:8000/mcp"
            )
        if isinstance(self.command, str) or not all(isinstance(part, str) for part in self.command):
            raise ValueError(f"a command must be a list of texts, as in [python, server.py]; got {self.command!r}")
        if self.url and not self.url.startswith(("http://", "https://")):
            raise ValueError(f"url must be an address, as in http://127.0.0.1:8000/mcp; got {self.url!r}")

    def __str__(self) -> str:
        return self.url or shlex.join(self.command)


@dataclass(frozen=True)
class SessionLimits:
    """How long a server may take, and how much it may send."""

    start: float = 30.0  # seconds until it answers for the first time
    tools_seconds: float = 30.0  # to list its tools
    call: float = 30.0  # seconds for a call
    close: float = 2.0  # seconds to end by itself
    message: int = 4 << 20  # bytes of an answer
    tools: int = 10_000


@dataclass(frozen=True)
class Answer:
    """What a tool answered."""

    text: str
    is_error: bool
    structured: Any  # `structuredContent`, None if there is none
    meta: Mapping[str, Any]  # `_meta`


class McpSession:
    """A connection to a server. Raises `McpError` if there is none within the limits, and `FileNotFoundError` for a
    command that does not exist. Its methods may be called from any thread.
    """

    def __init__(self, server: McpServer, limits: SessionLimits | None = None) -> None:
        self.server, self.limits = server, limits or SessionLimits()
        if server.command and not shutil.which(server.command[0]):
            raise FileNotFoundError(f"the command {server.command[0]!r} of the server was not found; looked in PATH")
        self._connection = _Connection(server, self.limits)
        weakref.finalize(self, self._connection.stop).atexit = False  # it may be dropped without being closed
        try:
            self._client = self._connection.started.result(self.limits.start + SPARE_SECONDS)
        except TimeoutError:
            self._connection.abandon()
            raise McpError(f"the server {server} did not answer within {self.limits.start:g} s") from None
        except BaseException:  # also of a user who does not want to wait
            self._connection.abandon()
            raise

    # -- what can be asked ----------------------------------------------------------------------------------------
    def tools(self) -> list[Tool]:
        """The tools of the server. Raises `McpError`, also for more than `limits.tools`, and for two of one name."""

        async def read(client: Client) -> list[mcp_types.Tool]:
            found: list[mcp_types.Tool] = []
            cursor = None
            while not found or cursor:
                page = await client.list_tools(cursor=cursor)
                found += page.tools
                cursor = page.next_cursor
                if len(found) > self.limits.tools:
                    raise McpError(f"the server has more than {self.limits.tools:,} tools")
                if not cursor:
                    break
            return found

        tools = [
            Tool(t.name, clean_text(t.description or t.title or ""), t.input_schema, partial(self._run_tool, t.name),
                 bounded=True)
            for t in self._ask("list its tools", self.limits.tools_seconds, read)
        ]  # fmt: skip
        names = [tool.name for tool in tools]
        if twice := {name for name in names if names.count(name) > 1} if len(set(names)) < len(names) else None:
            raise McpError(f"the server has two tools of the name {min(twice)!r}")
        return tools

    def call(self, name: str, arguments: Mapping[str, Any]) -> Answer:
        """Call a tool. Raises `McpError` if there is no answer; an error of the tool itself is an answer."""
        try:
            sent = json.loads(clean_text(json.dumps(dict(arguments), ensure_ascii=False)))
        except (TypeError, ValueError, RecursionError) as error:
            raise McpError(f"the arguments of {name} cannot be sent as JSON: {error}") from error

        async def call(client: Client) -> mcp_types.CallToolResult:
            return await client.call_tool(name, sent)

        result = self._ask(f"answer a call of {name}", self.limits.call, call)
        texts = [_text_of(part) for part in result.content]
        if not texts and result.structured_content is not None:
            texts = [json.dumps(result.structured_content, ensure_ascii=False)]
        text = clean_text("\n".join(texts))
        return Answer(text, bool(result.is_error), result.structured_content, dict(result.meta or {}))

    def _run_tool(self, name: str, /, **arguments: Any) -> str:
        answer = self.call(name, arguments)
        if answer.is_error:
            raise ToolError(answer.text or f"{name} failed without a message")
        return answer.text

    @property
    def alive(self) -> bool:
        """Whether nothing is known to have ended the session."""
        return self._connection.alive

    def close(self) -> None:
        """End the session, and the server that it started. It may be called twice."""
        self._connection.stop()
        self._connection.thread.join(self.limits.close + GUARD_SECONDS + SPARE_SECONDS)
        self._connection.abandon()

    def __enter__(self) -> McpSession:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- in the caller's thread -----------------------------------------------------------------------------------
    def _ask(self, what: str, seconds: float, question: Callable[[Client], Awaitable[T]]) -> T:
        """The answer to a question, which is asked in the session's thread. `what` completes "did not …".

        Raises `McpError`; if the session is over, `ServerLostError`.
        """
        if not self.alive:
            raise ServerLostError(f"the server is gone: {self._connection.why(None)}")

        async def within() -> T:
            with anyio.fail_after(seconds):
                return await question(self._client)

        asked = within()
        try:
            future = asyncio.run_coroutine_threadsafe(asked, self._connection.loop)
        except RuntimeError:  # the loop has ended since
            asked.close()
            raise ServerLostError(f"the server is gone: {self._connection.fault}") from None
        late = f"the server did not {what} within {seconds:g} s"
        try:
            return future.result(seconds + SPARE_SECONDS)
        except TimeoutError:
            raise McpError(late) from None
        except McpError:
            raise
        except CancelledError:
            self._connection.thread.join(self.limits.close)  # the fault is known when it has ended
            raise ServerLostError(f"the server is gone: {self._connection.why(None)}") from None
        except MCPError as error:
            if error.code == mcp_types.REQUEST_TIMEOUT:
                raise McpError(late) from None
            if error.code == mcp_types.CONNECTION_CLOSED:
                raise ServerLostError(f"the server did not {what}: {self._connection.why(error)}") from None
            if error.code == mcp_types.INVALID_REQUEST:  # the answer to a session that the server does not know
                raise ServerLostError(f"the server refused: {error.message}") from None
            raise McpError(f"the server refused: {error.message}") from None
        except Exception as error:  # what cannot be read, such as tools with a schema that is none
            raise McpError(f"the server did not {what} in a way that can be read: {_first_line(error)}") from error
        finally:
            future.cancel()


def open_session(server: McpServer, limits: SessionLimits | None) -> McpSession:
    """A session to play in. Raises `NoDataError` if the server cannot be used: then no task can be played."""
    try:
        return McpSession(server, limits)
    except (McpError, FileNotFoundError) as error:
        raise NoDataError(str(error)) from error


class _Connection:
    """The client of a session, in a thread with an event loop. It does not refer to the session."""

    def __init__(self, server: McpServer, limits: SessionLimits) -> None:
        self.server, self.limits = server, limits
        self.started: Future[Client] = Future()
        self.fault = ""  # why the session is over
        self._process: _Process | None = None
        self.loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self.thread = threading.Thread(target=self._run, name=f"MCP {server}"[:60], daemon=True)
        self.thread.start()

    @property
    def alive(self) -> bool:
        """Whether nothing is known to have ended it."""
        return self.thread.is_alive() and not self.fault and not self.server_end()

    def stop(self) -> None:
        """Let it end, without waiting."""
        self.fault = self.fault or "the session was closed"
        with suppress(RuntimeError):  # its loop has ended
            self.loop.call_soon_threadsafe(self._stop.set)

    def abandon(self) -> None:
        """Let the guard end the server, whatever the thread does."""
        self.fault = self.fault or "the session was given up"
        if self._process is not None:
            self._process.needed.close()

    def why(self, error: BaseException | None) -> str:
        """Why the session is over, as far as it is known."""
        return self.server_end() or self.fault or (_first_line(error) if error else "the connection ended")

    def server_end(self) -> str:
        """How the server ended by itself; empty while it runs, and for a url."""
        return self._process.end() if self._process is not None else ""

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: self.loop) as runner:
                runner.run(self._serve())
        except BaseException as error:
            self.fault = self.fault or self.why(_innermost(error))
            if not self.started.done():
                self.started.set_exception(McpError(f"the server {self.server} cannot be used: {self.fault}"))
        finally:
            self.fault = self.fault or "the session has ended"

    async def _serve(self) -> None:
        """Connect, and stay connected until `_stop` is set or the connection breaks."""
        connect = self._start_server if self.server.command else self._reach_server
        info = mcp_types.Implementation(name="polyturn", version="0")
        with anyio.CancelScope(deadline=anyio.current_time() + self.limits.start) as scope:
            async with Client(connect(), cache=None, client_info=info) as client:
                scope.deadline = math.inf
                self.started.set_result(client)
                if not self.fault:  # otherwise it was given up before it had started
                    await self._stop.wait()
                scope.deadline = anyio.current_time() + self.limits.close
        if not self.started.done():
            raise McpError(f"it did not answer within {self.limits.start:g} s")

    def _reach_server(self) -> AbstractAsyncContextManager[Any]:
        return _http(self.server.url or "", self.limits.message)

    @asynccontextmanager
    async def _start_server(self) -> AsyncIterator[Any]:
        """Start the server and exchange messages with it, one a line. Like `mcp.client.stdio`, but what it sends is
        limited, and a guard ends it.
        """
        self._process = process = await _Process.start(self.server.command, self.limits.message)
        inbox_in, inbox = anyio.create_memory_object_stream[SessionMessage | Exception](0)
        outbox, outbox_out = anyio.create_memory_object_stream[SessionMessage](0)

        async def receive() -> None:
            async with inbox_in:
                with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
                    async for message in process.messages():
                        await inbox_in.send(SessionMessage(message))

        async def send() -> None:
            async with outbox_out:
                async for message in outbox_out:
                    line = message.message.model_dump_json(by_alias=True, exclude_unset=True) + "\n"
                    try:
                        await process.write(line.encode())
                    except OSError:  # it no longer reads; that its output has ended is reported by `receive`
                        return

        async with anyio.create_task_group() as tasks:
            for task in (receive, send, process.keep_stderr):
                tasks.start_soon(task)
            try:
                yield inbox, outbox
            finally:
                with anyio.CancelScope(shield=True):
                    inbox.close()
                    outbox.close()
                    await process.stop(self.limits.close if self.started.done() else 0.0)
                tasks.cancel_scope.cancel()


class _Process:
    """A server that was started, behind its guard. Made and used in the session's loop."""

    def __init__(self, process: asyncio.subprocess.Process, needed: IO[bytes], most: int) -> None:
        self.process = process
        self.needed = needed  # the pipe of `envs.tools.guard`; may be closed in any thread
        self._most = most
        self._stderr = b""
        self._fault = ""
        self._stopped = False

    @classmethod
    async def start(cls, command: Sequence[str], most: int) -> _Process:
        end, needed = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-I", "-S", str(GUARD), str(end), *command, pass_fds=(end,), start_new_session=True,
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
                limit=most,
            )  # fmt: skip
        except BaseException:
            os.close(needed)
            raise
        finally:
            os.close(end)
        return cls(process, os.fdopen(needed, "wb", buffering=0), most)

    async def messages(self) -> AsyncIterator[mcp_types.JSONRPCMessage]:
        """What it writes, without lines that are no message, until its output ends or a line is too long."""
        assert self.process.stdout is not None
        while True:
            try:
                line = await self.process.stdout.readline()
            except ValueError:
                self._fault = f"it sent more than {self._most:,} bytes in one message"
                return
            if not line:
                if not await self._ended(CLOSED_SECONDS):
                    self._fault = "it closed its output"
                return
            try:
                message = mcp_types.jsonrpc_message_adapter.validate_python(_decoded(line), by_name=False)
            except (ValueError, RecursionError):  # what it prints by mistake
                await asyncio.sleep(0)  # there may be no end of it
            else:
                yield message

    async def write(self, data: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(data)
        await self.process.stdin.drain()

    async def keep_stderr(self) -> None:
        assert self.process.stderr is not None
        while chunk := await self.process.stderr.read(1 << 16):
            self._stderr = (self._stderr + chunk)[-STDERR_BYTES:]

    async def stop(self, grace: float) -> None:
        """Close its input, wait for its end, and let the guard end it if that takes longer than `grace` seconds."""
        assert self.process.stdin is not None
        self._fault, self._stopped = self.end(), True  # its end from now on is no fault
        self.process.stdin.close()
        await self._ended(0.0 if self._fault else grace)
        self.needed.close()
        await self._ended(GUARD_SECONDS)
        self.process._transport.close()  # type: ignore[attr-defined]  # a process that it started may hold its pipes

    async def _ended(self, seconds: float) -> bool:
        """Whether it ends within some seconds."""
        with anyio.move_on_after(seconds):
            while self.process.returncode is None:  # wait() would also wait for the ends of its pipes
                await anyio.sleep(0.005)
        return self.process.returncode is not None

    def end(self) -> str:
        """How it ended by itself, in words; empty while it runs."""
        if self._fault or self._stopped:
            return self._fault
        status = self.process.returncode
        if status is None:
            return ""
        last = clean_text(self._stderr.decode("utf-8", "replace")).strip()
        how = f"it was ended by signal {status - 128}" if status > 128 else f"it ended with exit status {status}"
        return f"{how}{'; its last words were: ' + last if last else ''}"


@asynccontextmanager
async def _http(url: str, most: int) -> AsyncIterator[Any]:
    """Exchange messages over streamable HTTP; an answer of more than `most` bytes is an error."""

    async def limit(response: httpx2.Response) -> None:
        if "content-encoding" in response.headers:
            raise httpx2.StreamError("a compressed answer, which was not asked for")
        if not response.headers.get("content-type", "").startswith("text/event-stream"):  # it limits its events
            response.stream = _Limited(response.stream, most)

    timeout = httpx2.Timeout(None, connect=SPARE_SECONDS)  # the session has deadlines of its own
    headers = {"accept-encoding": "identity"}
    async with (
        httpx2.AsyncClient(timeout=timeout, headers=headers, event_hooks={"response": [limit]}) as client,
        streamable_http_client(url, http_client=client, max_sse_event_size=most) as streams,
    ):
        yield streams


class _Limited(httpx2.AsyncByteStream):
    def __init__(self, stream: Any, most: int) -> None:
        self._stream, self._most = stream, most

    async def __aiter__(self) -> AsyncIterator[bytes]:
        read = 0
        async for chunk in self._stream:
            read += len(chunk)
            if read > self._most:
                raise httpx2.StreamError(f"it sent more than {self._most:,} bytes in one message")
            yield chunk

    async def aclose(self) -> None:
        await self._stream.aclose()


def _decoded(line: bytes) -> Any:
    """The JSON of a line. Halves of surrogate pairs, which the types of `mcp` refuse, become `�`."""
    message = json.loads(line)
    if b"\\u" in line:
        message = json.loads(clean_text(json.dumps(message, ensure_ascii=False)))
    return message


def _text_of(part: Any) -> str:
    """A part of an answer as text: what is none is named."""
    match part:
        case mcp_types.TextContent():
            return part.text
        case mcp_types.EmbeddedResource(resource=mcp_types.TextResourceContents() as resource):
            return resource.text
        case mcp_types.ResourceLink():
            return f"[a link to {part.uri}]"
        case mcp_types.ImageContent() | mcp_types.AudioContent():
            return f"[{part.type} {part.mime_type}, {len(part.data) * 3 // 4:,} bytes]"
    return f"[{getattr(part, 'type', 'content')}, which is no text]"


def _innermost(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _first_line(error: BaseException) -> str:
    error = _innermost(error)
    text = " ".join(str(error).split()[:60])
    return text if isinstance(error, (McpError, MCPError)) else f"{type(error).__name__}: {text}".rstrip(": ")
