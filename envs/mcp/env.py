"""Play in a server of the Model Context Protocol: `polyturn/MCP-v0`.

A server with the tools `reset` and `step` is played as an environment. Their answers have structured content (or a
JSON object as text) with `observation`; `reward`, `terminated`, `truncated` and the keys of `envs.core.INFO_KEYS` may
be there too. Missing ones have the defaults of `envs.gym_tasks.TextAdapter`. An error of `step` is an observation.
`envs.mcp.server` is such a server, and playing through it gives the same transcript as playing its environment.

An environment starts or reaches the server at its first reset, and again at a reset after it was lost. A server that
cannot be started or reached ends the run (`NoDataError`). One that gives no answer in time ends the episode. One that
dies or closes the session ends it too (`ServiceError`), and a resumed evaluation plays this episode again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from envs.checks import checked_step
from envs.core import Info, Task, TextEnv
from envs.served import INFO
from envs.services import ServiceError
from envs.tools.mcp_client import Answer, McpError, McpServer, McpSession, ServerLostError, SessionLimits, open_session

ENV_ID = "polyturn/MCP-v0"
EXPECTED = "structured content with observation, and perhaps reward, terminated, truncated, admissible, score, success"


class McpEnv(TextEnv):
    """Plays in one session of a server. A task's payload has `arguments`, those of the tool `reset`."""

    def __init__(
        self,
        command: Sequence[str] = (),
        url: str | None = None,
        max_turns: int = 50,
        limits: SessionLimits | None = None,
        render_mode: str | None = None,
    ) -> None:
        """Raises `ValueError` unless exactly one of `command` and `url` is given."""
        super().__init__(max_turns, render_mode)
        self._server, self._limits = McpServer(tuple(command), url), limits
        self._session: McpSession | None = None
        self._takes_seed = False
        self._goal = ""

    def _begin(self, task: Any, seed: int | None) -> tuple[str, Info]:
        if task is not None and not (isinstance(task, Task) and isinstance(task.payload.get("arguments"), Mapping)):
            raise ValueError(f"{ENV_ID} needs a task whose payload has arguments, got {task!r:.200}")
        was_open = self._session is not None
        session = self._open()
        arguments = dict(task.payload["arguments"]) if task else {}
        if self._takes_seed and seed is not None:
            arguments.setdefault("seed", seed)
        try:
            answer = self._ask(session, "reset", arguments)
        except (McpError, ServiceError):
            if not was_open:
                raise
            answer = self._ask(self._open(), "reset", arguments)  # the server may have ended an idle session
        if answer.is_error:
            raise McpError(f"reset failed: {answer.text}")
        observation, _, _, _, info = _read(answer, "reset")
        self._goal = info.get("goal", observation)
        return observation, {"goal": self._goal, **info}

    def _act(self, action: str) -> tuple[str, float, bool, Info]:
        assert self._session is not None, "reset opens it"
        answer = self._ask(self._session, "step", {"action": action})
        if answer.is_error:
            if _of_info(answer).get("failed"):
                raise McpError(answer.text)
            return answer.text, 0.0, False, {"goal": self._goal}
        observation, reward, terminated, truncated, info = _read(answer, "step")
        success = info.setdefault("success", terminated and reward > 0)
        if success:
            info["score"] = 1.0
        if truncated:  # whatever its reason, an episode that the server ends is at its turn limit
            self._turns = self.max_turns - 1
        return observation, reward, terminated or success, {"goal": self._goal, **info}

    def _open(self) -> McpSession:
        if self._session is None or not self._session.alive:
            self.close()
            self._session = open_session(self._server, self._limits)
            self._takes_seed = "seed" in check_tools(self._session).get("properties", {})
        return self._session

    def _ask(self, session: McpSession, name: str, arguments: Mapping[str, Any]) -> Answer:
        try:
            return session.call(name, arguments)
        except McpError as error:
            self.close()  # what the server has done is unknown
            if isinstance(error, ServerLostError):
                raise ServiceError(f"{session.server}: {error}") from error
            raise

    def close(self) -> None:
        """End the session."""
        if self._session is not None:
            self._session.close()
            self._session = None
        super().close()


def check_tools(session: McpSession) -> Mapping[str, Any]:
    """The schema of `reset`. Raises `ValueError` for a server without `reset` and `step`."""
    tools = {tool.name: tool for tool in session.tools()}
    if missing := {"reset", "step"} - tools.keys():
        raise ValueError(
            f"the server {session.server} cannot be played: it has no tool {' or '.join(sorted(missing))}; its tools: "
            f"{', '.join(sorted(tools)[:20]) or 'none'}. To answer questions with its tools: env.questions=FILE"
        )
    return tools["reset"].parameters


def _of_info(answer: Answer) -> Mapping[str, Any]:
    further = answer.meta.get(INFO)
    return further if isinstance(further, Mapping) else {}


def _read(answer: Answer, tool: str) -> tuple[str, float, bool, bool, Info]:
    """What a tool answered, checked. Raises `McpError` for an answer that is no turn."""
    content = answer.structured
    if content is None:
        with suppress(ValueError, RecursionError):  # servers that know nothing of structured content write it as text
            content = json.loads(answer.text)
    if not isinstance(content, Mapping) or "observation" not in content:
        raise McpError(f"{tool} answered without what a turn needs; expected {EXPECTED}, got {answer.text!r:.200}")
    info = {**_of_info(answer), **content}
    turn = [info.pop(key, default) for key, default in _TURN.items()]
    observation, reward, terminated, truncated, info = checked_step((*turn, info))
    info.pop("stop_reason", None)  # it follows from the others
    if "score" in info:
        info["score"] = min(max(info["score"], 0.0), 1.0)
    return observation, reward, terminated, truncated, info


_TURN = {"observation": "", "reward": 0.0, "terminated": False, "truncated": False}
