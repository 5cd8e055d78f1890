"""How a policy writes calls and reads results: four formats of the same task.

- `brackets`: `calculator[12 * 7]`, one call a message, for policies that choose from a list or are small. A tool with
  one text as its argument takes what stands in the brackets, any other one a JSON object: `move[{"from": "a", …}]`.
- `tags`: `<tool>{"name": "calculator", "arguments": {"expression": "12 * 7"}}</tool>`, several a message. Results come
  in `<result>…</result>`.
- `json`: the message is one such object, or a list of them, and nothing else. Results are a JSON list.
- `native`: the chat template of the model writes tools, calls and results. An agent parses the model's calls and passes
  them on as `json`; it finds the tools in `info["tools"]`, and names, texts and errors of results in `info["calls"]`.

A message without calls is text for the user, in every format. Only what follows `</think>` is read.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from envs.tags import PairedTags
from envs.tools.tool import Call, Result, Tool, ToolError

MOST_CALLS = 32  # in one message
MOST_CHARACTERS = 1_000_000  # of a message
_REASONING = "</think>"
_CALL, _CALL_END = "<tool>", "</tool>"
_RESULT = PairedTags("result")


class Message(NamedTuple):
    """What a policy wrote: calls, and an error in place of each that cannot be read; or text without any."""

    calls: tuple[Call | ToolError, ...]
    text: str = ""


class Format(ABC):
    """A way to write calls and results. Nothing has a state."""

    describes_tools = True  # whether the first observation does
    lists_actions = False  # whether a call can be one of `info["admissible"]`

    @abstractmethod
    def describe(self, tools: Mapping[str, Tool]) -> str:
        """The tools and how to call them, for the first observation; "" if that says nothing of them."""

    @abstractmethod
    def write(self, calls: Sequence[Call], tools: Mapping[str, Tool]) -> str:
        """A message with these calls."""

    @abstractmethod
    def show(self, results: Sequence[tuple[str, Result]]) -> str:
        """The results, with the names of their tools."""

    @abstractmethod
    def results_in(self, observation: str) -> list[str]:
        """The texts of results in an observation."""

    @abstractmethod
    def _calls(self, text: str, tools: Mapping[str, Tool]) -> list[Call | ToolError]:
        """The calls in a text."""

    def parse(self, text: str, tools: Mapping[str, Tool]) -> Message:
        """The calls of a message, or its text. Never raises."""
        said = text.rpartition(_REASONING)[2].strip()
        if len(said) > MOST_CHARACTERS:
            return Message((ToolError(f"the message has more than {MOST_CHARACTERS:,} characters"),))
        calls = self._calls(said, tools)
        if len(calls) > MOST_CALLS:
            return Message((ToolError(f"more than {MOST_CALLS} calls in a message: none of them was made"),))
        return Message(tuple(calls)) if calls else Message((), said)


class Brackets(Format):
    """See the module."""

    describes_tools = False
    lists_actions = True

    def describe(self, tools: Mapping[str, Tool]) -> str:  # noqa: ARG002
        return ""

    def write(self, calls: Sequence[Call], tools: Mapping[str, Tool]) -> str:
        """Raises `ValueError` unless there is one call."""
        if len(calls) != 1:
            raise ValueError(f"a message in brackets has one call, got {len(calls)}")
        [call] = calls
        argument = only_text(tools[call.name])
        arguments = json.dumps(dict(call.arguments), ensure_ascii=False) if call.arguments else ""
        return f"{call.name}[{arguments if argument is None else call.arguments[argument]}]"

    def show(self, results: Sequence[tuple[str, Result]]) -> str:
        return "\n".join(result.text for _, result in results)

    def results_in(self, observation: str) -> list[str]:
        return [observation]

    def _calls(self, text: str, tools: Mapping[str, Tool]) -> list[Call | ToolError]:
        found = re.match(r"([\w.-]+)\[", text)
        if found is None or not text.endswith("]"):
            return []
        name, content = found[1], text[found.end() : -1]
        if name not in tools:
            return [] if name.lower() == "answer" else [Call(name)]
        argument = only_text(tools[name])
        if argument is not None:
            return [Call(name, {argument: content})]
        try:
            arguments = read_json(content) if content.strip() else {}
            if not isinstance(arguments, dict):
                raise ToolError(f"{name} takes a JSON object in its brackets")
        except ToolError as error:
            return [error]
        return [Call(name, arguments)]


class Tags(Format):
    """See the module."""

    def describe(self, tools: Mapping[str, Tool]) -> str:
        return (
            f"{_listed(tools)}\n\nCall a tool, or several, with "
            '<tool>{"name": "…", "arguments": {…}}</tool>. Results come back in <result>…</result>.'
        )

    def write(self, calls: Sequence[Call], tools: Mapping[str, Tool]) -> str:  # noqa: ARG002
        return "\n".join(f"<tool>{_line(call)}</tool>" for call in calls)

    def show(self, results: Sequence[tuple[str, Result]]) -> str:
        return "\n".join(f"<result>{_inside(result.text)}</result>" for _, result in results)

    def results_in(self, observation: str) -> list[str]:
        return [pair.content for pair in _RESULT.findall(observation)]

    def _calls(self, text: str, tools: Mapping[str, Tool]) -> list[Call | ToolError]:  # noqa: ARG002
        calls: list[Call | ToolError] = []
        place = text.find(_CALL)
        while place >= 0:  # with places, since what is left of a long text takes time to copy
            start, end = place + len(_CALL), text.find(_CALL_END, place)
            if end < 0:
                return [*calls, ToolError(f"{_CALL} without {_CALL_END}")]
            calls.extend(_read(text[start:end]))
            if len(calls) > MOST_CALLS:
                break
            place = text.find(_CALL, end)
        return calls


class Json(Format):
    """See the module."""

    def describe(self, tools: Mapping[str, Tool]) -> str:
        return (
            f"{_listed(tools)}\n\nTo call a tool, write nothing but "
            '{"name": "…", "arguments": {…}}, or a JSON list of them. Results come back as a list.'
        )

    def write(self, calls: Sequence[Call], tools: Mapping[str, Tool]) -> str:  # noqa: ARG002
        lines = [_line(call) for call in calls]
        return lines[0] if len(lines) == 1 else f"[{', '.join(lines)}]"

    def show(self, results: Sequence[tuple[str, Result]]) -> str:
        lines = [
            {"name": name[:100], "error" if result.is_error else "result": result.text} for name, result in results
        ]
        return json.dumps(lines, ensure_ascii=False)

    def results_in(self, observation: str) -> list[str]:
        try:
            found, _ = json.JSONDecoder().raw_decode(observation)
        except ValueError:
            return [observation]
        return [str(one.get("result", one.get("error"))) for one in found]

    def _calls(self, text: str, tools: Mapping[str, Tool]) -> list[Call | ToolError]:  # noqa: ARG002
        return _read(text) if text[:1] in ("{", "[") else []


class Native(Json):
    """As `json`, but the chat template shows the tools."""

    describes_tools = False

    def describe(self, tools: Mapping[str, Tool]) -> str:  # noqa: ARG002
        return ""


FORMATS: dict[str, Format] = {"brackets": Brackets(), "tags": Tags(), "json": Json(), "native": Native()}


def only_text(tool: Tool) -> str | None:
    """The name of a tool's argument, if it has one and that is a text."""
    properties = tool.parameters.get("properties", {})
    if len(properties) != 1:
        return None
    [(name, schema)] = properties.items()
    return name if isinstance(schema, Mapping) and schema.get("type") == "string" else None


def read_json(text: str) -> Any:
    """Standard JSON. Raises `ToolError` for anything else: no NaN, no nesting that Python cannot follow."""
    try:
        return json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise ToolError(f"this is no JSON: {str(error) or type(error).__name__}") from None


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number of JSON")


def _read(text: str) -> list[Call | ToolError]:
    """The call, or the list of calls, in JSON."""
    try:
        value = read_json(text)
    except ToolError as error:
        return [error]
    return [_call(one) for one in value] if isinstance(value, list) else [_call(value)]


def _call(value: Any) -> Call | ToolError:
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return ToolError('a call is a JSON object with "name" and "arguments"')
    if other := sorted(set(value) - {"name", "arguments"}):
        return ToolError(f'a call has "name" and "arguments", not {other[0][:60]!r}')
    arguments = value.get("arguments", {})
    if isinstance(arguments, str):  # as OpenAI's are
        try:
            arguments = read_json(arguments or "{}")
        except ToolError as error:
            return error
    if not isinstance(arguments, dict):
        return ToolError(f'"arguments" of {value["name"][:60]} is no JSON object')
    return Call(value["name"], arguments)


def _line(call: Call) -> str:
    return json.dumps({"name": call.name, "arguments": dict(call.arguments)}, ensure_ascii=False)


def _listed(tools: Mapping[str, Tool]) -> str:
    lines = [json.dumps(tool.schema["function"], ensure_ascii=False) for tool in tools.values()]
    return "\n".join(["You can use these tools:", *lines])


def _inside(text: str) -> str:
    """A result whose own text cannot end it, or begin another one."""
    return re.sub(r"<(?=/?result>)", "&lt;", text, flags=re.IGNORECASE)
