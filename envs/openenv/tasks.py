"""The tasks of a server of OpenEnv: `env=openenv env.url=http://127.0.0.1:8000`."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from envs.core import Manifest, NoDataError, Task, UnknownNameError, counted, hash_tasks
from envs.listed_tasks import ListedTasks
from envs.openenv.env import ENV_ID, MAX_TURNS, OpenEnvEnv
from envs.seed_tasks import SeedTasks

PAGE = 1000  # tasks to ask for at once


def openenv_tasks(
    url: str,
    action: str | None = None,
    observation: str | None = None,
    max_turns: int | None = None,
    train_tasks: int = 1000,
    valid_tasks: int = 100,
    call_timeout: float = 60.0,
) -> OfferedTasks | SeededTasks:
    """The tasks that a server lists; otherwise seeds.

    `action` and `observation` name fields of text, None: the only ones that the server's schemas have. `max_turns` None
    is what a server of ours says, or `MAX_TURNS`. Raises `NoDataError` if the server cannot be reached, and
    `ValueError` where a field has to be named.
    """
    server = Server(url, call_timeout)
    schema = server.get("schema")
    fields = {
        "action": _text_field(url, "action", action, schema["action"]),
        "observation": _text_field(url, "observation", observation, schema["observation"]),
    }
    names: list[str] = server.get("list_environments", missing=[])
    splits = server.get(f"{names[0]}/splits", missing=[]) if names else []
    if splits:
        return OfferedTasks(server, names[0], splits, fields, max_turns or splits[0].get("max_turns") or MAX_TURNS)
    return SeededTasks(server, fields, max_turns or MAX_TURNS, train_tasks, valid_tasks)


class Server:
    """The routes of a server that are not of a session."""

    def __init__(self, url: str, timeout: float) -> None:
        self.url, self.timeout = url.rstrip("/"), timeout

    def get(self, path: str, body: Mapping[str, Any] | None = None, missing: Any = None) -> Any:
        """What a route answers; `missing`, if it is given, where there is no such route. Raises `NoDataError`."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}/{path}", data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            if missing is not None and error.code in (404, 405, 501):
                return missing
            raise NoDataError(f"{self.url}/{path} answered with status {error.code}") from error
        except (OSError, ValueError) as error:
            raise NoDataError(f"no server of OpenEnv at {self.url}: {error}") from error


def _text_field(url: str, kind: str, name: str | None, schema: Mapping[str, Any]) -> str:
    """The field that holds the text: `name`, or else the only one, or the only one that is required."""
    known: dict[str, Any] = dict(schema.get("properties", {}))
    if name is not None:
        if name not in known:
            raise UnknownNameError(f"field of the {kind} of {url}", name, known)
        return name
    texts = [field for field, about in known.items() if about.get("type") == "string"]
    required = [field for field in texts if field in schema.get("required", ())]
    for found in (texts, required):
        if len(found) == 1:
            return found[0]
    raise ValueError(
        f"the {kind} of {url} has {counted(len(texts), 'field')} of text ({', '.join(texts) or 'none'}); name the "
        f"one to use: env.{kind}=NAME"
    )


class OfferedTasks(ListedTasks):
    """Tasks of a server with OpenEnv's Task API."""

    env_id = ENV_ID

    def __init__(
        self, server: Server, name: str, splits: Sequence[Mapping[str, Any]], fields: Mapping[str, str], max_turns: int
    ) -> None:
        self._about = {split["name"]: split for split in splits}
        evaluated = [split["name"] for split in splits if split.get("evaluation")]
        super().__init__(name, list(self._about), evaluated, max_turns)
        self._server, self._fields = server, dict(fields)

    def fetch(self, split: str) -> tuple[Manifest, dict[str, Task]]:
        """See `ListedTasks`; the hash is the server's, or that of what it lists."""
        rows = list(self._rows(split))
        ids = [str(row.get("id", f"{index:06d}")) for index, row in enumerate(rows)]
        payloads = [{"type": row.get("type", ""), "arguments": {"split": split, "index": index}}
                    for index, row in enumerate(rows)]  # fmt: skip
        about = self._about[split]
        contents = zip(ids, (json.dumps(row, sort_keys=True).encode() for row in rows), strict=True)
        manifest = Manifest(
            self.env_id, split, tuple(sorted(ids)), about.get("sha256") or hash_tasks(contents),
            about.get("official_tasks"),
        )  # fmt: skip
        tasks = {
            task_id: Task(task_id, ENV_ID, split, int(row.get("seed", 0)), payload)
            for task_id, row, payload in zip(ids, rows, payloads, strict=True)
        }
        return manifest, tasks

    def _rows(self, split: str) -> Iterator[Mapping[str, Any]]:
        total: int = self._server.get(f"{self.offers}/num_tasks", {"split": split})["num_tasks"]
        for start in range(0, total, PAGE):
            page = {"split": split, "start": start, "stop": min(start + PAGE, total)}
            for row in self._server.get(f"{self.offers}/task_range", page)["tasks"]:
                yield row if isinstance(row, Mapping) else {"task": row}

    def make(self) -> OpenEnvEnv:
        return _make(self._server, self._fields, self.max_turns)

    def describe(self) -> str:
        return f"{self.env_id}: {self.offers} of {self._server.url}; at most {counted(self.max_turns, 'turn')}"

    def facts(self) -> dict[str, Any]:
        """See `envs.facts.environment_facts`."""
        return {"server": self._server.url, "offers": self.offers, **self._fields}


class SeededTasks(SeedTasks):
    """Seeds for a server that lists no tasks."""

    def __init__(
        self, server: Server, fields: Mapping[str, str], max_turns: int, train_tasks: int, valid_tasks: int
    ) -> None:
        super().__init__(ENV_ID, max_turns, train_tasks, valid_tasks)
        self._server, self._fields = server, dict(fields)

    def payload(self, split: str, seed: int) -> dict[str, Any]:  # noqa: ARG002
        return {"arguments": {"seed": seed}, "server": self._server.url}

    def make(self) -> OpenEnvEnv:
        return _make(self._server, self._fields, self.max_turns)

    def describe(self) -> str:
        return f"{super().describe()}; {self._server.url}, which lists no tasks"

    def facts(self) -> dict[str, Any]:
        """See `envs.facts.environment_facts`."""
        return {**super().facts(), "server": self._server.url, **self._fields}


def _make(server: Server, fields: Mapping[str, str], max_turns: int) -> OpenEnvEnv:
    return OpenEnvEnv(server.url, **fields, max_turns=max_turns, call_timeout=server.timeout)
