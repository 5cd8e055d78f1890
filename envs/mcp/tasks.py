"""The tasks of a server of the Model Context Protocol: `env=mcp env.command=[…]` or `env.url=…`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from envs.core import Manifest, NoDataError, Task, UnknownNameError, counted, hash_tasks
from envs.listed_tasks import ListedTasks
from envs.mcp.env import ENV_ID, McpEnv, check_tools
from envs.search.tasks import read_questions
from envs.seed_tasks import SeedTasks
from envs.tools.env import ENV_ID as TOOLS_ENV_ID
from envs.tools.env import ToolsEnv
from envs.tools.mcp_client import Answer, McpServer, McpSession, SessionLimits, open_session
from envs.tools.tool import Limits
from envs.tools.toolkit import chosen_tools

DEFAULT_MAX_TURNS, TOOLKIT_MAX_TURNS = 50, 10
PAGE = 1000  # tasks to ask for at once
_LISTING = {"env": str, "splits": list, "sha256": str, "tasks": int, "max_turns": int, "listed": list}


def mcp_tasks(
    command: Sequence[str] | None = None,
    url: str | None = None,
    max_turns: int | None = None,
    train_tasks: int = 1000,
    valid_tasks: int = 100,
    start_timeout: float = 30.0,
    call_timeout: float = 30.0,
    questions: str | None = None,
    only: Sequence[str] | None = None,
    format: str = "tags",  # noqa: A002
) -> OfferedTasks | NumberedTasks | ToolkitTasks:
    """The tasks that a server lists, as that of `python -m scripts.serve mcp` does; otherwise seeds.

    With `questions`, a file as `envs.search.tasks.read_questions` takes it, they are answered with the server's tools,
    or with those in `only`; `format` is one of `envs.tools.calls.FORMATS`. `max_turns` None is what the server says, or
    `DEFAULT_MAX_TURNS`. Raises `NoDataError` if the server or the file cannot be used, and `ValueError` if the server
    has no `reset` and `step`.
    """
    server = McpServer(tuple(command or ()), url)
    limits = SessionLimits(start=start_timeout, tools_seconds=start_timeout, call=call_timeout)
    if questions is not None:
        return ToolkitTasks(server, limits, questions, only, format, max_turns or TOOLKIT_MAX_TURNS)
    with open_session(server, limits) as session:
        arguments = check_tools(session).get("properties", {})
        listing = _listing(session, None, 0, 0)
    if listing is not None:
        return OfferedTasks(server, limits, listing, max_turns or listing["max_turns"])
    argument = next((name for name in ("seed", "task") if name in arguments), None)
    return NumberedTasks(server, limits, argument, max_turns or DEFAULT_MAX_TURNS, train_tasks, valid_tasks)


def _listing(session: McpSession, split: str | None, first: int, count: int) -> Mapping[str, Any] | None:
    """What the tool `tasks` answers; None if there is no such tool."""
    arguments = {"first": first, "count": count} | ({} if split is None else {"split": split})
    answer: Answer = session.call("tasks", arguments)
    listing = answer.structured
    fits = isinstance(listing, Mapping) and all(isinstance(listing.get(key), kind) for key, kind in _LISTING.items())
    return None if answer.is_error or not fits else listing


class OfferedTasks(ListedTasks):
    """Tasks that a server lists."""

    env_id = ENV_ID

    def __init__(self, server: McpServer, limits: SessionLimits, listing: Mapping[str, Any], max_turns: int) -> None:
        splits, evaluated = (list(map(str, listing.get(key, ()))) for key in ("splits", "evaluation_splits"))
        super().__init__(listing["env"], splits, evaluated, max_turns)
        self.server, self._limits = server, limits

    def fetch(self, split: str) -> tuple[Manifest, dict[str, Task]]:
        """See `ListedTasks`; the hash is the server's."""
        found: list[Mapping[str, Any]] = []
        with open_session(self.server, self._limits) as session:
            while True:
                page = _listing(session, split, len(found), PAGE)
                if page is None:
                    raise ValueError(f"the server {self.server} does not list the tasks of {split!r}")
                found += page["listed"]
                if not page["listed"] or len(found) >= page["tasks"]:
                    break
        tasks = {row["id"]: _offered(split, row) for row in found}
        manifest = Manifest(self.env_id, split, tuple(sorted(tasks)), page["sha256"], page.get("official_tasks"))
        return manifest, tasks

    def make(self) -> McpEnv:
        return _make(self.server, self._limits, self.max_turns)

    def describe(self) -> str:
        return f"{self.env_id}: {self.offers} of {self.server}; at most {counted(self.max_turns, 'turn')}"

    def facts(self) -> dict[str, Any]:
        """See `envs.facts.environment_facts`."""
        return {"server": str(self.server), "offers": self.offers}


def _offered(split: str, row: Mapping[str, Any]) -> Task:
    payload = {"type": row.get("type", ""), "arguments": {"task": row["id"], "split": split}}
    return Task(row["id"], ENV_ID, split, int(row.get("seed", 0)), payload)


class NumberedTasks(SeedTasks):
    """Seeds for a server that lists no tasks: `argument` of its tool `reset` is the seed; None: it takes none."""

    def __init__(
        self,
        server: McpServer,
        limits: SessionLimits,
        argument: str | None,
        max_turns: int,
        train_tasks: int,
        valid_tasks: int,
    ) -> None:
        super().__init__(ENV_ID, max_turns, train_tasks, valid_tasks)
        self.server, self._limits, self._argument = server, limits, argument

    def payload(self, split: str, seed: int) -> dict[str, Any]:  # noqa: ARG002
        return {"arguments": {self._argument: seed} if self._argument else {}}

    def manifest(self, split: str) -> Manifest:
        """Hashed over the ids and the server's address, which is all that is known of it."""
        ids = self.ids(split)
        made_from = f"{self.server} {self._argument}".encode()
        return Manifest(self.env_id, split, ids, hash_tasks((task_id, made_from) for task_id in ids))

    def make(self) -> McpEnv:
        return _make(self.server, self._limits, self.max_turns)

    def describe(self) -> str:
        takes = f"{self._argument} of reset" if self._argument else "nothing: its tool reset takes no seed"
        return f"{super().describe()}; {self.server}, seeds are {takes}"

    def facts(self) -> dict[str, Any]:
        """See `envs.facts.environment_facts`."""
        return {**super().facts(), "server": str(self.server)}


class ToolkitTasks:
    """The questions of a file, answered with the tools of a server: `polyturn/Tools-v0`."""

    env_id = TOOLS_ENV_ID

    def __init__(
        self,
        server: McpServer,
        limits: SessionLimits,
        questions: str,
        only: Sequence[str] | None,
        format: str,  # noqa: A002
        max_turns: int,
    ) -> None:
        self.server, self.max_turns, self._limits, self.format = server, max_turns, limits, format
        path = Path(questions).expanduser().absolute()
        if not path.is_file():
            raise NoDataError(f"the question file {path} does not exist")
        self._shared = {"scenario": "toolkit", "command": list(server.command), "url": server.url,
                        "only": None if only is None else list(only), "start_timeout": limits.start}  # fmt: skip
        self._questions, self._path = read_questions(path, corpus=""), path
        self.splits: Sequence[str] = list(self._questions)
        with open_session(server, limits) as session:
            self._tools = list(chosen_tools(session.tools(), only).values())
        self.make().close()  # raises for an unknown format

    def manifest(self, split: str) -> Manifest:
        """Hashed over the questions and the schemas of the tools."""
        rows = self._rows(split)
        schemas = json.dumps([tool.schema for tool in self._tools], sort_keys=True)
        contents = (
            (task_id, f"{json.dumps(row, sort_keys=True)}\n{schemas}".encode()) for task_id, row in rows.items()
        )
        return Manifest(self.env_id, split, tuple(sorted(rows)), hash_tasks(contents))

    def task(self, split: str, task_id: str) -> Task:
        rows = self._rows(split)
        if task_id not in rows:
            raise UnknownNameError(f"question of {self._path}", task_id, rows)
        kept = {key: rows[task_id][key] for key in ("type", "question", "answers")}
        return Task(task_id, self.env_id, split, 0, {**kept, **self._shared})

    def _rows(self, split: str) -> Mapping[str, Mapping[str, Any]]:
        if split not in self._questions:
            raise UnknownNameError(f"split of {self._path}", split, self._questions)
        return self._questions[split]

    def make(self) -> ToolsEnv:
        return ToolsEnv(self.format, self.max_turns, Limits(seconds=self._limits.call))

    def expert(self) -> None:
        """None: there is no expert."""

    def describe(self) -> str:
        names, count = ", ".join(tool.name for tool in self._tools), sum(map(len, self._questions.values()))
        return (
            f"{self.env_id}: {count} questions of {self._path} with the tools {names} "
            f"of {self.server}; calls as {self.format}; at most {counted(self.max_turns, 'turn')}"
        )

    def facts(self) -> dict[str, Any]:
        """See `envs.facts.environment_facts`."""
        return {"server": str(self.server), "tools": [tool.name for tool in self._tools]}


def _make(server: McpServer, limits: SessionLimits, max_turns: int) -> McpEnv:
    return McpEnv(server.command, server.url, max_turns, limits)
