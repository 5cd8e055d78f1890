"""Tasks that need tools: `polyturn/Tools-v0`.

    Tables: items(name, price, stock); orders(customer, item, amount)
    What does this order cost: 17 kg tea, 3 kg wool?
    > sql[SELECT name, price FROM items WHERE name IN ('tea', 'wool')]
    name | price
    wool | 40
    tea | 12
    > calculator[17 * 12 + 3 * 40]
    324
    > answer[324]

One step is one message of the policy. Its calls are executed in order, and the results are the next observation; a
message without calls goes to the task's scenario, which grades it or answers as the user. `envs.tools.calls` has the
formats of calls.

`info["tools"]` has the schemas of the tools, `info["calls"]` those calls of the message that were executed: name,
arguments, text, whether it is an error, seconds, cost. `info["cost"]` adds up all calls so far, `info["calls_made"]`
counts them, and `info["least_calls"]` is the smallest number that is enough, if it is known. `info["tool_result"]` says
whether a tool gave a result that is no error, and `info["turn_reward"]` is what the scenario says of the turn.
`info["signals"]` has the facts behind it: `malformed`, the number of calls that cannot be read; `errors`, of those that
gave an error; `repeated_call`; and those of the scenario.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from envs.core import Info, Task, TextEnv, UnknownNameError
from envs.tools.calls import FORMATS, Message
from envs.tools.scenario import Scenario
from envs.tools.tool import Call, Limits, Result, ToolError

ENV_ID = "polyturn/Tools-v0"
# Payloads name one of these; each is called with the payload and the limits of a call.
SCENARIOS = {
    "questions": "envs.tools.questions:Questions",
    "bfcl": "envs.tools.bfcl_scenario:Conversation",
    "toolkit": "envs.tools.toolkit:Toolkit",
}


def make_scenario(payload: Mapping[str, Any], limits: Limits) -> Scenario:
    """The scenario of a task. Raises `UnknownNameError`, and `ValueError` for a payload that it cannot play."""
    name = payload.get("scenario", "questions")
    if name not in SCENARIOS:
        raise UnknownNameError("scenario", str(name), SCENARIOS)
    module, _, cls = SCENARIOS[name].partition(":")
    made: Scenario = getattr(import_module(module), cls)(payload, limits)
    return made


@dataclass(frozen=True)
class _Made:
    """The calls of an episode."""

    keys: tuple[str, ...] = ()  # name and arguments of each
    cost: float = 0.0


class ToolsEnv(TextEnv):
    """Plays the scenario of a task: its payload names one of `SCENARIOS`, and has what that needs."""

    def __init__(
        self,
        format: str = "brackets",  # noqa: A002
        max_turns: int = 10,
        limits: Limits | None = None,
        render_mode: str | None = None,
    ) -> None:
        """`format` is one of `envs.tools.calls.FORMATS`. Raises `UnknownNameError` for another one."""
        super().__init__(max_turns, render_mode)
        if format not in FORMATS:
            raise UnknownNameError("format", format, FORMATS)
        self.format = FORMATS[format]
        self._limits = limits or Limits()
        self._payload: Mapping[str, Any] = {}  # of the task; never changed
        self._opened: Scenario | None = None
        self._made = _Made()

    def _begin(self, task: Any, seed: int | None) -> tuple[str, Info]:
        del seed  # nothing is drawn
        if not isinstance(task, Task):
            raise ValueError(f"{ENV_ID} needs a task: reset(options={{'task': …}}); got {task!r:.200}")
        scenario = self._enter(task.payload)
        self._made = _Made()
        said = [scenario.begin()]
        if self.format.describes_tools:
            said.insert(0, self.format.describe(scenario.tools))
        if not self.format.lists_actions and scenario.instructions:
            said.insert(-1, scenario.instructions)
        return "\n\n".join(said), self._about(scenario)

    def _enter(self, payload: Mapping[str, Any]) -> Scenario:
        self.close()
        self._payload, self._opened = payload, self._scenario_of(payload)
        return self._opened

    def _scenario_of(self, payload: Mapping[str, Any]) -> Scenario:
        return make_scenario(payload, self._limits)

    def _act(self, action: str) -> tuple[str, float, bool, Info]:
        scenario = self._opened
        assert scenario is not None, "reset opens it"
        known = scenario.tools
        message = self.format.parse(action, known)
        made, results, calls = self._execute(message, scenario)
        if message.calls:
            reply = scenario.called(made)
            observation = "\n".join(filter(None, [self.format.show(results), reply.text]))
        else:
            reply = scenario.reply(message.text)
            observation = reply.text
        added = {name: tool for name, tool in scenario.tools.items() if name not in known}
        if added and self.format.describes_tools:
            observation = f"{self.format.describe(added)}\n\n{observation}"
        keys = [_key(call) for call, _ in made]
        signals = {
            "malformed": len(results) - len(made),
            "errors": sum(result.is_error for _, result in made),
            "repeated_call": len({*self._made.keys, *keys}) < len({*self._made.keys}) + len(keys),
        }
        cost = self._made.cost + sum(call["cost"] for call in calls)
        self._made = _Made((*self._made.keys, *keys), cost)
        info = self._about(scenario) | {
            "score": reply.score,
            "success": reply.score == 1,
            "turn_reward": reply.turn_reward,
            "tool_result": any(not result.is_error for _, result in made),
            "signals": signals | dict(reply.signals),
            "calls": calls,
        }
        return observation, reply.reward, reply.done or reply.score == 1, info

    def _execute(
        self, message: Message, scenario: Scenario
    ) -> tuple[list[tuple[Call, Result]], list[tuple[str, Result]], list[dict[str, Any]]]:
        """The calls with their results, all results with the names of their tools, and the calls as plain data."""
        made: list[tuple[Call, Result]] = []
        results: list[tuple[str, Result]] = []
        calls: list[dict[str, Any]] = []
        for call in message.calls:
            if isinstance(call, ToolError):
                results.append(("", Result(f"Error: {call}", True, 0.0)))
                continue
            tools = scenario.callable_tools
            result = scenario.execute(call, self._limits)
            made.append((call, result))
            results.append((call.name, result))
            calls.append(
                {
                    "name": call.name, "arguments": dict(call.arguments), "text": result.text,
                    "is_error": result.is_error, "seconds": result.seconds,
                    "cost": tools[call.name].cost if call.name in tools else 0.0,
                }
            )  # fmt: skip
        return made, results, calls

    def _about(self, scenario: Scenario) -> Info:
        """What `info` has in every turn."""
        info: Info = {
            "goal": scenario.goal,
            "type": self._payload.get("type", ""),
            "admissible": self._admissible(scenario),
            "answers": None if scenario.answers is None else list(scenario.answers),
            "tools": [tool.schema for tool in scenario.tools.values()],
            "calls": [],
            "calls_made": len(self._made.keys),
            "cost": self._made.cost,
            "least_calls": scenario.least_calls,
        }
        key = scenario.state_key()
        return info if key is None else info | {"state_key": key}

    def _admissible(self, scenario: Scenario) -> list[str] | None:
        offered = scenario.admissible() if self.format.lists_actions else None
        return None if offered is None else [f"{name}[{text}]" for name, text in offered]

    def _save(self) -> Any:
        assert self._opened is not None, "an episode has begun"
        return self._payload, self._made, self._opened.save()

    def _load(self, saved: Any) -> None:
        payload, self._made, state = saved
        self._enter(payload).load(state)

    def close(self) -> None:
        """End what the scenario has opened."""
        if self._opened is not None:
            self._opened.close()
            self._opened = None
        super().close()


def _key(call: Call) -> str:
    try:
        return f"{call.name}({json.dumps(dict(call.arguments), sort_keys=True)})"
    except RecursionError:
        return f"{call.name}(…)"
