"""A question that is answered with the tools of an MCP server.

A payload has `question` and `answers`, `command` or `url` of the server, and perhaps `only`, the names of the tools to
offer. Each episode has a session of its own, so nothing that a started server remembers gets into the next one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from envs.core import UnknownNameError
from envs.tools.mcp_client import McpServer, SessionLimits, open_session
from envs.tools.questions import NO_ANSWER, Questions, is_right, read_answer
from envs.tools.scenario import Reply, Scenario
from envs.tools.tool import Call, Limits, Result, Tool

MOST_TOOLS = 128  # that a policy is offered


class Toolkit(Scenario):
    """One question. A server that dies in its middle gives errors as results."""

    instructions = Questions.instructions

    def __init__(self, payload: Mapping[str, Any], limits: Limits) -> None:
        """Raises `NoDataError` if the server cannot be used, and `UnknownNameError` for a tool that does not exist."""
        self.goal, self.answers = payload["question"], list(payload["answers"])
        server = McpServer(payload.get("command") or (), payload.get("url"))
        start = payload.get("start_timeout", SessionLimits.start)
        self._session = open_session(server, SessionLimits(start, tools_seconds=start, call=limits.seconds))
        try:
            self._tools = chosen_tools(self._session.tools(), payload.get("only"))
        except BaseException:
            self._session.close()
            raise

    @property
    def tools(self) -> Mapping[str, Tool]:
        return self._tools

    def begin(self) -> str:
        return self.goal

    def reply(self, text: str) -> Reply:
        answer = read_answer(text)
        if answer is None:
            return Reply(NO_ANSWER, signals={"answer_found": False, "no_answer": True})
        score = float(any(is_right(answer, gold) for gold in self.answers or ()))
        return Reply("Right." if score else "Wrong.", True, score, score)

    def called(self, calls: Sequence[tuple[Call, Result]]) -> Reply:
        texts = [result.text.lower() for _, result in calls if not result.is_error]
        found = any(answer.lower() in text for text in texts for answer in self.answers or ())
        return Reply(signals={"answer_found": found, "no_answer": False})

    def close(self) -> None:
        self._session.close()


def chosen_tools(tools: Sequence[Tool], only: Sequence[str] | None) -> dict[str, Tool]:
    """The tools to offer, by name. Raises `UnknownNameError`, and `ValueError` for no tools or too many."""
    known = {tool.name: tool for tool in tools}
    if missing := [name for name in only or () if name not in known]:
        raise UnknownNameError("tool of the server", missing[0], known)
    chosen = {name: tool for name, tool in known.items() if only is None or name in only}
    if not 0 < len(chosen) <= MOST_TOOLS:
        raise ValueError(f"a policy can be offered 1 to {MOST_TOOLS} tools, the server has {len(chosen)}: env.only=[…]")
    return chosen
