"""Tools, calls and results.

    def area(width: float, height: float = 1.0) -> float:
        "The area of a rectangle."
        return width * height

    tools = {"area": tool_of(area)}
    execute(tools, Call("area", {"width": 3, "height": 2}), Limits())    # Result(text="6.0", is_error=False, …)
    execute(tools, Call("area", {"widht": 3}), Limits())                 # Result(text="Error: …", is_error=True, …)

Whatever a policy calls, `execute` returns a result: an unknown tool, arguments that do not fit, an exception, and a
call that takes too long are errors that the policy can read.
"""

from __future__ import annotations

import inspect
import json
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from envs.checks import clean_text
from envs.core import UnknownNameError

try:
    import jsonschema
    import pydantic
    import referencing
    from pydantic.json_schema import GenerateJsonSchema
except ImportError as error:
    raise ImportError(f"{error}; tools need the extra: pip install 'polyturn[tools]'") from error

_RAISED = (Exception, SystemExit, CancelledError)  # what a tool may raise; an interrupt of the user is not caught


def _no_problem(*_: Any) -> None:
    """A keyword of JSON Schema that is not checked."""


# A regular expression of somebody else's server could run for hours; the server checks it itself.
_Validator = jsonschema.validators.extend(
    jsonschema.Draft202012Validator, {"pattern": _no_problem, "patternProperties": _no_problem}
)


class ToolError(Exception):
    """An error of a tool in words for the policy, which are shown as they are."""


@dataclass(frozen=True)
class Tool:
    """A function that a policy can call.

    Example: `Tool("add", "The sum of two numbers.", {"type": "object", "properties": {"a": {"type": "number"}, "b":
    {"type": "number"}}, "required": ["a", "b"]}, run=operator.add)`.
    """

    name: str
    description: str
    # JSON Schema of the arguments: an object. Arguments that it does not name are refused, unless it says otherwise.
    parameters: Mapping[str, Any]
    # Keyword arguments in; a string, or anything JSON can write, out. What it raises is an error result.
    run: Callable[..., Any]
    cost: float = 1.0  # of a call, in a unit of the task's own
    bounded: bool = False  # `run` itself ends within the limits: it needs no thread that could be abandoned

    @property
    def schema(self) -> dict[str, Any]:
        """The tool as `info["tools"]`, chat templates and the usual servers have it."""
        about = {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}
        return {"type": "function", "function": about}

    @cached_property
    def _validator(self) -> jsonschema.Draft202012Validator:
        open_ended = {"additionalProperties", "unevaluatedProperties", "patternProperties"} & set(self.parameters)
        schema = dict(self.parameters) if open_ended else {**self.parameters, "unevaluatedProperties": False}
        # An empty registry: a schema must not make this machine fetch a URL.
        return _Validator(schema, registry=referencing.Registry())

    def check(self, arguments: Mapping[str, Any]) -> None:
        """Raise `ToolError` for arguments that do not fit `parameters`."""
        problem = jsonschema.exceptions.best_match(self._validator.iter_errors(dict(arguments)))
        if problem is not None:
            where = "".join(f"[{part!r}]" for part in problem.absolute_path)
            raise ToolError(f"the arguments of {self.name}{where} do not fit: {problem.message}")


@dataclass(frozen=True)
class Call:
    """A tool and its arguments, as a policy wrote them."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """What a call gave."""

    text: str  # what the policy reads: the output or an error, cut to the limit
    is_error: bool
    seconds: float


@dataclass(frozen=True)
class Limits:
    """What one call may use."""

    seconds: float = 5.0
    arguments: int = 100_000  # characters of the arguments as JSON
    output: int = 4_000  # characters of a result


def tool_of(function: Callable[..., Any], name: str | None = None) -> Tool:
    """The tool of a typed function.

    The description is the docstring up to its section "Args:", whose lines `argument: text` describe the arguments.
    Arguments may have any type that pydantic knows, and `run` converts them: a dataclass arrives as a dataclass.
    Raises `TypeError` for a function without a docstring, without a type of an argument, with `*args` or `**kwargs`,
    and for a coroutine.
    """
    name = name or function.__name__
    if inspect.iscoroutinefunction(function):
        raise TypeError(f"{name} is a coroutine, expected a plain function")
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise TypeError(f"{name} has {parameter}, expected arguments that can be passed by name")
        if parameter.annotation is parameter.empty:
            raise TypeError(f"the argument {parameter.name!r} of {name} has no type")
    description, about = _read_docstring(inspect.getdoc(function) or "")
    if not description:
        raise TypeError(f"{name} has no docstring, which would tell a policy what it does")
    adapter: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(function)  # type: ignore[arg-type]
    schema = adapter.json_schema(schema_generator=_WithoutTitles)
    for argument, text in about.items():
        if argument in schema["properties"]:
            schema["properties"][argument].setdefault("description", text)
    return Tool(name, description, schema, pydantic.validate_call(function))


class _WithoutTitles(GenerateJsonSchema):
    """Without a title for each argument, which repeats its name."""

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002
        return False


def _read_docstring(text: str) -> tuple[str, dict[str, str]]:
    """The description, and the texts of a section "Args:" in Google's style."""
    description, _, rest = text.partition("\nArgs:\n")
    section = re.split(r"\n\S", rest, maxsplit=1)[0]
    arguments = re.finditer(r"^ {2,4}(\w+)(?: \([^)]*\))?: (.*(?:\n {5,}.*)*)", section, re.MULTILINE)
    return description.strip(), {match[1]: " ".join(match[2].split()) for match in arguments}


def execute(tools: Mapping[str, Tool], call: Call, limits: Limits) -> Result:
    """Run a call. Never raises, but for an interrupt of the user (`KeyboardInterrupt`).

    A call that takes too long is left behind in its thread, with the state that it can reach.
    """
    start = time.perf_counter()
    outcome: list[tuple[str, bool]] = []

    def run() -> None:
        try:
            output = tool.run(**call.arguments)
            outcome.append((output if isinstance(output, str) else _json_text(output, limits.output), False))
        except _RAISED as error:
            outcome.append((_words(error), True))

    try:
        tool = _checked(tools, call, limits)
        if tool.bounded:
            run()
        else:
            thread = threading.Thread(target=run, name=f"tool {tool.name}", daemon=True)
            thread.start()
            thread.join(limits.seconds)
        text, is_error = outcome[0] if outcome else (f"{tool.name} did not end within {limits.seconds:g} s", True)
    except _RAISED as error:
        text, is_error = _words(error), True
    return Result(_shown(f"Error: {text}" if is_error else text, limits.output), is_error, time.perf_counter() - start)


def _checked(tools: Mapping[str, Tool], call: Call, limits: Limits) -> Tool:
    """The tool of a call. Raises `UnknownNameError` and `ToolError`."""
    if call.name not in tools:
        raise UnknownNameError("tool", call.name[:100], tools)
    tool = tools[call.name]
    if not isinstance(call.arguments, Mapping):
        raise ToolError(f"the arguments of {tool.name} are no object of names and values")
    if len(_json_text(dict(call.arguments), limits.arguments)) > limits.arguments:
        raise ToolError(f"the arguments of {tool.name} are longer than {limits.arguments:,} characters")
    tool.check(call.arguments)
    return tool


def _words(error: BaseException) -> str:
    try:
        text = str(error)
    except Exception:
        text = ""
    named = isinstance(error, (ToolError, UnknownNameError))
    return text if named else f"{type(error).__name__}: {text}" if text else type(error).__name__


def _json_text(value: Any, most: int) -> str:
    """The value as JSON, or its beginning: a little more than `most` characters. Raises `TypeError`, `ValueError`."""
    return _beginning(json.JSONEncoder(ensure_ascii=False).iterencode(value), most)


def _beginning(parts: Iterable[str], most: int) -> str:
    kept, length = [], 0
    for part in parts:
        kept.append(part)
        length += len(part)
        if length > most:
            break
    return "".join(kept)


def _shown(text: str, most: int) -> str:
    """The text, with a note where it was cut."""
    return clean_text(text if len(text) <= most else f"{text[:most]}… (cut after {most:,} characters)")
