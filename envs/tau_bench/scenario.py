"""A conversation with a customer as a scenario of `envs.tools`.

Messages with calls are executed; a message without calls is for the user, whose answer is the next observation. The
conversation ends when the user stops it, or with a transfer to a human agent. The reward is then 1 if the database is
as the reference actions leave it, and if every required output was in a message to the user.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from envs.partners import Partner
from envs.tau_bench.database import Changes, Data, Database
from envs.tau_bench.domains import DOMAINS, open_domain
from envs.tau_bench.tools import TRANSFER, tools_over
from envs.tau_bench.users import GREETING, STOP
from envs.tools.scenario import Reply, Scenario
from envs.tools.tool import Call, Limits, Result, Tool, execute

ENDED = "Error: the conversation has ended"


class Conversation(Scenario):
    """Plays the task of a payload: `domain`, `folder`, `instruction`, `actions` and `outputs`."""

    goal = "Help the customer."

    def __init__(self, payload: Mapping[str, Any], user: Partner) -> None:
        missing = {"domain", "instruction", "actions", "outputs"} - set(payload)
        if missing:
            raise ValueError(f"a conversation needs {sorted(missing)[0]!r}, got a payload with {sorted(payload)}")
        self._payload, self._user = payload, user
        self._domain = DOMAINS[payload["domain"]]
        self._data = open_domain(payload["domain"], payload.get("folder", ""))
        self.database = Database(self._data)
        self._tools = tools_over(self.database, self._domain.tools, self._domain.functions)
        self._said: list[str] = [GREETING]  # the greeting of the agent, then user and agent in turn
        self._transferred = False

    def begin(self) -> str:
        return self._answer()

    def _answer(self) -> str:
        self._said.append(self._user.answer(self._payload["instruction"], tuple(self._said)))
        return self._said[-1]

    @property
    def tools(self) -> Mapping[str, Tool]:
        return self._tools

    def execute(self, call: Call, limits: Limits) -> Result:
        """Errors read as in the reference."""
        if self._transferred:
            return Result(ENDED, True, 0.0)
        if call.name not in self._tools:
            return Result(f"Unknown action {call.name[:1000]}", True, 0.0)
        result = super().execute(call, limits)
        self._transferred = call.name == TRANSFER
        return result

    def called(self, calls: Sequence[tuple[Call, Result]]) -> Reply:  # noqa: ARG002
        return self._end() if self._transferred else Reply()

    def reply(self, text: str) -> Reply:
        found = re.fullmatch(r"answer\[(.*)\]", text, re.DOTALL)  # as policies write it that choose from a list
        self._said.append(found[1] if found else text)
        answer = self._answer()
        return self._end(answer) if STOP in answer else Reply(answer)

    def _end(self, text: str = "") -> Reply:
        changes = self.database.changes()
        expected = self._expected()
        found = {output: self._is_said(output) for output in self._payload["outputs"]}
        reward = float(changes == expected and all(found.values()))
        signals = {"database_is_right": changes == expected, "outputs": found, "transferred": self._transferred}
        return Reply(text, True, reward, reward, signals=signals)

    def _expected(self) -> Changes:
        return reference_changes(self._data, self._payload["domain"], json.dumps(self._payload["actions"]))

    @property
    def reference_hash(self) -> str:
        """Hex sha256 of the whole database after the reference actions."""
        return self._data.hash(self._expected())

    def _is_said(self, output: str) -> bool:
        return any(output.lower() in text.lower().replace(",", "") for text in self._said[2::2])

    def state_key(self) -> str:
        """What has been changed, what was said, and whether it is over."""
        seen = json.dumps([self.database.changes(), self._said, self._transferred])
        return hashlib.sha256(seen.encode()).hexdigest()[:16]

    def admissible(self) -> list[tuple[str, str]]:
        """Every tool with a slot for its arguments, and a message to the user."""
        slots = [(name, _slot(tool)) for name, tool in self._tools.items()]
        return [*slots, ("answer", "<message to the user>")]

    def save(self) -> Any:
        return self.database.save(), tuple(self._said), self._transferred

    def load(self, saved: Any) -> None:
        database, said, self._transferred = saved
        self.database.load(database)
        self._said = list(said)


def _slot(tool: Tool) -> str:
    names = list(tool.parameters.get("properties", {}))
    if len(names) == 1:
        return f"<{names[0]}>"
    return f"<JSON of {', '.join(names)}>" if names else ""


@lru_cache(maxsize=4096)
def reference_changes(data: Data, domain: str, actions: str) -> Changes:
    """What the reference actions change, given as JSON; played on a database of their own."""
    database = Database(data)
    tools = tools_over(database, DOMAINS[domain].tools, DOMAINS[domain].functions)
    for action in json.loads(actions):
        if action["name"] != TRANSFER:
            execute(tools, Call(action["name"], action["kwargs"]), Limits())
    return database.changes()
