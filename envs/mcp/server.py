"""Offers the environments of a task set to clients of the Model Context Protocol.

Each client has an environment of its own, and these tools:

    tasks(split, first, count)         the splits, and the ids of a split
    reset(task, split, seed)           start the episode of a task, by its id or its number
    step(action)                       play one action
    admissible_actions()               the actions that the environment lists for the current turn

`reset` and `step` answer with the observation as text. Structured content has `observation`, `reward`, `terminated`,
`truncated` and the public keys of `info` (`PUBLIC`). The other keys, among them the right answers and the true state,
are in the metadata `polyturn/info`, which clients do not show to models. `envs.mcp.env` plays in such a server.

Over stdio there is one client; over HTTP each session has its own environment until the client ends it or is idle for
too long. Needs the extra `tools`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any, TypeAlias

from envs.checks import plain
from envs.core import TaskSet, UnknownNameError, evaluation_splits
from envs.pool import Outcome
from envs.served import INFO, PUBLIC, EnvironmentFailedError, NoEpisodeError, Served, ServerLimits, sendable
from envs.tools.tool import Tool, ToolError, tool_of

try:
    import anyio
    import mcp_types as types
    from mcp.server import Server, ServerRequestContext
    from mcp.server.stdio import stdio_server
    from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS, MODERN_PROTOCOL_VERSIONS
    from starlette.applications import Starlette
    from starlette.requests import ClientDisconnect
    from starlette.responses import Response
    from starlette.types import ASGIApp, Receive, Scope, Send
except ImportError as error:
    raise ImportError(f"{error}; servers of tools need the extra: pip install 'polyturn[tools]'") from error

MOST_TASKS = 5_000  # ids in one answer
Context: TypeAlias = ServerRequestContext[Any, Any]


@dataclass(frozen=True)
class ToolResult:
    """What a tool answers."""

    text: str
    content: dict[str, Any]
    meta: dict[str, Any]


class Player:
    """The environment of one client. Its methods are the tools; they block, and are called one at a time."""

    def __init__(self, task_set: TaskSet, limits: ServerLimits, playing: threading.Lock) -> None:
        """`playing` is shared by the players of a process, whose environments never run at the same time."""
        self._task_set, self._playing = task_set, playing
        self._served = Served(task_set, limits)
        offered: list[Callable[..., Any]] = [self.tasks, self.reset, self.step, self.admissible_actions]
        self.tools: dict[str, Tool] = {function.__name__: tool_of(function) for function in offered}

    def call(self, name: str, arguments: Mapping[str, Any]) -> ToolResult:
        """Call a tool. Raises what the tool raises, `UnknownNameError`, and `ToolError` for wrong arguments."""
        if name not in self.tools:
            raise UnknownNameError("tool", name[:100], self.tools)
        self.tools[name].check(arguments)
        with self._playing:
            played: ToolResult = self.tools[name].run(**arguments)
        return played

    def tasks(self, split: str | None = None, first: int = 0, count: int = 20) -> Any:
        """The splits of the environment, and the tasks of one split.

        Args:
            split: name of a split; without it, the first one that is meant for evaluation
            first: number of the first task to list
            count: how many to list
        """
        if not 0 <= count <= MOST_TASKS or first < 0:
            raise ValueError(f"first must be at least 0 and count in 0 to {MOST_TASKS}, got {first} and {count}")
        manifest = self._task_set.manifest(split := split or self._default_split)
        tasks = [self._task_set.task(split, task_id) for task_id in manifest.ids[first : first + count]]
        listed = [{"id": task.id, "seed": task.seed, "type": task.payload.get("type", "")} for task in tasks]
        content = {
            "env": self._task_set.env_id, "max_turns": self._task_set.max_turns,
            "splits": list(self._task_set.splits), "evaluation_splits": evaluation_splits(self._task_set),
            "split": split, "tasks": len(manifest.ids), "sha256": manifest.content_hash,
            "official_tasks": manifest.official_count, "first": first, "listed": plain(listed, "listed"),
        }  # fmt: skip
        about = f"{manifest.describe()}; splits: {', '.join(self._task_set.splits)}"
        return ToolResult("\n".join([about, *(task.id for task in tasks)]), content, {})

    def reset(self, task: str | int = 0, split: str | None = None, seed: int | None = None) -> Any:
        """Start the episode of a task. An episode that is being played ends.

        Args:
            task: the id of a task, or its number in the split, from 0 on
            split: name of a split; without it, the first one that is meant for evaluation
            seed: seed of the episode, for environments that draw at random; without it, the seed of the task
        """
        return _played(self._served.reset(task, split, seed))

    def step(self, action: str) -> Any:
        """Play one action.

        Args:
            action: the action, as the environment expects it
        """
        return _played(self._served.step(action))

    def admissible_actions(self) -> Any:
        """The actions that are admissible now, if the environment lists them. `<…>` stands for any text."""
        last = self._served.last
        if last is None:
            raise ToolError("there is no episode: call reset first")
        actions = None if last.over else last.info["admissible"]
        text = "this environment does not list its actions" if actions is None else "\n".join(actions)
        return ToolResult("the episode is over" if last.over else text, {"admissible": actions}, {})

    def close(self) -> None:
        """Close the environment."""
        with self._playing:
            self._served.close()

    @property
    def _default_split(self) -> str:
        return evaluation_splits(self._task_set)[0]


def _played(outcome: Outcome) -> ToolResult:
    content = {
        "observation": outcome.observation, "reward": outcome.reward, "terminated": outcome.terminated,
        "truncated": outcome.truncated, **{key: outcome.info[key] for key in PUBLIC},
    }  # fmt: skip
    end = f"\n\nThe episode is over: {outcome.info['stop_reason']}." if outcome.over else ""
    return ToolResult(outcome.observation + end, plain(content, "the answer"), {INFO: sendable(outcome.info)})


# -- the protocol -----------------------------------------------------------------------------------------------------
def make_server(task_set: TaskSet, player_of: Callable[[Context], Player]) -> Server[Any]:
    """A server whose tools are those of the player that `player_of` finds for a request."""

    async def list_tools(ctx: Context, _: types.PaginatedRequestParams | None) -> types.ListToolsResult:
        tools = player_of(ctx).tools.values()
        listed = [types.Tool(name=t.name, description=t.description, input_schema=dict(t.parameters)) for t in tools]
        return types.ListToolsResult(tools=listed)

    async def call_tool(ctx: Context, params: types.CallToolRequestParams) -> types.CallToolResult:
        try:
            player = player_of(ctx)
            played = await anyio.to_thread.run_sync(player.call, params.name, params.arguments or {})
        except (ToolError, NoEpisodeError, EnvironmentFailedError, UnknownNameError, ValueError, OSError) as error:
            meta = {INFO: {"failed": True}} if isinstance(error, EnvironmentFailedError) else None
            return types.CallToolResult(content=[types.TextContent(text=str(error))], is_error=True, _meta=meta)
        return types.CallToolResult(
            content=[types.TextContent(text=played.text)], structured_content=played.content, _meta=played.meta
        )

    text = f"Plays {task_set.env_id}: call reset with a task, then step until the episode is over."
    return Server("polyturn", instructions=text, on_list_tools=list_tools, on_call_tool=call_tool)


def serve_stdio(task_set: TaskSet, limits: ServerLimits) -> None:
    """Serve the one client at stdin and stdout until it leaves."""

    async def serve(player: Player) -> None:
        server = make_server(task_set, lambda _: player)
        async with stdio_server() as (incoming, outgoing):
            await server.run(incoming, outgoing, server.create_initialization_options())

    with closing(Player(task_set, limits, threading.Lock())) as player:
        anyio.run(serve, player)


def http_app(task_set: TaskSet, limits: ServerLimits, host: str) -> Starlette:
    """The application that serves each client at `/mcp`. A client beyond `limits.sessions` gets status 503."""
    playing = threading.Lock()

    def player_of(ctx: Context) -> Player:
        if ctx.protocol_version in MODERN_PROTOCOL_VERSIONS:  # in which no request belongs to a session
            raise ToolError(f"each session has an environment: connect with version {HANDSHAKE_PROTOCOL_VERSIONS[-1]}")
        connection = ctx.session._connection  # its state and its end have no public name in mcp 2.3
        if "player" not in connection.state:
            player = connection.state["player"] = Player(task_set, limits, playing)
            connection.exit_stack.push_async_callback(anyio.to_thread.run_sync, player.close)
        found: Player = connection.state["player"]
        return found

    async def discover(_: Context, __: types.RequestParams | None) -> types.DiscoverResult:
        return types.DiscoverResult(
            supported_versions=list(HANDSHAKE_PROTOCOL_VERSIONS), capabilities=server.get_capabilities()
        )

    server = make_server(task_set, player_of)
    server.add_request_handler("server/discover", types.RequestParams, discover)
    app = server.streamable_http_app(
        json_response=True, host=host, session_idle_timeout=limits.idle, max_sessions=limits.sessions
    )
    app.add_middleware(_WithoutStreams)
    logging.getLogger("mcp.server.streamable_http").addFilter(_is_no_disconnect)
    return app


def _is_no_disconnect(record: logging.LogRecord) -> bool:
    """Whether to log a record. A client that left in the middle of its request is no reason for a traceback."""
    return not (record.exc_info and isinstance(record.exc_info[1], ClientDisconnect))


class _WithoutStreams:
    """Refuses GET, as the protocol permits: the server never speaks first, and a stream would keep idle sessions."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refuse = scope["type"] == "http" and scope["method"] == "GET"
        await (Response(status_code=405) if refuse else self._app)(scope, receive, send)
