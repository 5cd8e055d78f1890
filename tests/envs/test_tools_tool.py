"""Tools, their schemas, and the promise that no call raises."""

import dataclasses
import enum
import sys
import threading
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from envs.tools.scenario import Reply, Scenario
from envs.tools.tool import Call, Limits, Tool, ToolError, execute, tool_of

LIMITS = Limits(seconds=60.0, arguments=1000, output=100)


class Unit(enum.Enum):
    CM = "cm"
    M = "m"


@dataclasses.dataclass
class Box:
    width: float
    height: float = 1.0


def area(box: Box, unit: Unit = Unit.M, *, scale: Annotated[int, Field(ge=1)] = 1) -> str:
    """The area of a box.

    In squares of the unit.

    Args:
        box: what is measured,
            from outside
        unit (Unit): of the sides
        scale: a factor

    Returns:
        a text
    """
    return f"{box.width * box.height * scale:g} {unit.value}²"


TOOLS = {"area": tool_of(area)}


def tool(run: Any, parameters: dict[str, Any] | None = None, bounded: bool = False) -> dict[str, Tool]:
    return {"f": Tool("f", "A tool.", parameters or {"type": "object"}, run, bounded=bounded)}


def test_schema_and_description_are_those_of_signature_and_docstring():
    schema = TOOLS["area"].schema
    assert schema["type"] == "function"
    assert schema["function"]["name"] == "area"
    assert schema["function"]["description"] == "The area of a box.\n\nIn squares of the unit."
    parameters = schema["function"]["parameters"]
    assert parameters["required"] == ["box"]
    assert parameters["additionalProperties"] is False
    assert parameters["properties"]["box"]["description"] == "what is measured, from outside"
    assert parameters["properties"]["unit"]["description"] == "of the sides"
    assert parameters["properties"]["scale"] == {
        "default": 1, "minimum": 1, "type": "integer", "description": "a factor",
    }  # fmt: skip


def test_arguments_arrive_as_the_types_of_the_function():
    result = execute(TOOLS, Call("area", {"box": {"width": 2, "height": 3}, "unit": "cm"}), LIMITS)
    assert (result.text, result.is_error) == ("6 cm²", False)
    assert 0 <= result.seconds < 5


def _untyped(a):
    """A."""


def _silent(a: int):
    pass


def _many(*a: int):
    """A."""


def _named(**a: int):
    """A."""


async def _later(a: int):
    """A."""


@pytest.mark.parametrize(
    ("function", "problem"),
    [
        (_untyped, "'a' of _untyped has no type"),
        (_silent, "no docstring"),
        (_many, r"\*a: int"),
        (_named, r"\*\*a: int"),
        (_later, "coroutine"),
    ],
)
def test_function_that_is_no_tool_says_why(function, problem):
    with pytest.raises(TypeError, match=problem):
        tool_of(function)


@pytest.mark.parametrize(
    ("call", "problem"),
    [
        (Call("aera", {}), "Error: unknown tool 'aera'; did you mean 'area'?"),
        (Call("area", {}), "'box' is a required property"),
        (Call("area", {"box": {"width": "2"}}), "of area['box']['width'] do not fit: '2' is not of type 'number'"),
        (Call("area", {"box": {"width": 2}, "colour": "red"}), "'colour' was unexpected"),
        (Call("area", {"box": {"width": 2}, "scale": 0}), "less than the minimum"),
        (Call("area", {"box": {"width": 2}, "scale": True}), "not of type 'integer'"),
        (Call("area", {"box": {"width": 2}, "unit": "mile"}), "is not one of ['cm', 'm']"),
        (Call("area", {"box": "x" * 10_000_000}), "longer than 1,000 characters"),
        (Call("area", [1]), "no object of names and values"),  # type: ignore[arg-type]
        (Call("x" * 10_000_000, {}), "unknown tool 'xxx"),
    ],
)
def test_call_that_does_not_fit_is_an_error_result(call, problem):
    result = execute(TOOLS, call, dataclasses.replace(LIMITS, output=300))
    assert result.is_error
    assert problem in result.text
    assert len(result.text) < 400


def test_unknown_arguments_are_refused_unless_the_schema_allows_them():
    echo = {"type": "object", "properties": {"a": {"type": "string"}}}
    call = Call("f", {"a": "x", "b": 1})
    assert "'b' was unexpected" in execute(tool(lambda **all_: all_, echo), call, LIMITS).text
    combined = {"allOf": [echo, {"properties": {"b": {"type": "integer"}}}]}
    assert execute(tool(lambda **all_: all_, combined), call, LIMITS).text == '{"a": "x", "b": 1}'
    allowed = {**echo, "additionalProperties": True}
    assert execute(tool(lambda **all_: all_, allowed), call, LIMITS).text == '{"a": "x", "b": 1}'


@pytest.mark.parametrize("bounded", [False, True])
@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ToolError("no such city"), "Error: no such city"),
        (ValueError("bad"), "Error: ValueError: bad"),
        (ZeroDivisionError(), "Error: ZeroDivisionError"),
        (SystemExit(3), "Error: SystemExit: 3"),
        (MemoryError(), "Error: MemoryError"),
        (RecursionError("deep"), "Error: RecursionError: deep"),
        (ValueError("x" * 10_000_000), "Error: ValueError: xxx"),
    ],
)
def test_what_a_tool_raises_is_an_error_result(error, text, bounded):
    def run():
        raise error

    result = execute(tool(run, bounded=bounded), Call("f"), LIMITS)
    assert result.is_error
    assert result.text.startswith(text)
    assert len(result.text) < 200


def test_error_whose_text_cannot_be_written_is_an_error_result():
    class BrokenError(Exception):
        def __str__(self):
            raise RuntimeError

    def run():
        raise BrokenError

    assert execute(tool(run), Call("f"), LIMITS).text == "Error: BrokenError"


def test_interrupt_of_the_user_is_not_caught():
    def run():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute(tool(run, bounded=True), Call("f"), LIMITS)


def test_call_that_takes_too_long_is_an_error_result_and_the_next_one_works():
    held = threading.Event()
    tools = {**tool(held.wait), **TOOLS}
    result = execute(tools, Call("f"), dataclasses.replace(LIMITS, seconds=0.2))
    assert result.text == "Error: f did not end within 0.2 s"
    assert execute(tools, Call("area", {"box": {"width": 2}}), LIMITS).text == "2 m²"
    held.set()


@pytest.mark.parametrize(
    ("output", "text"),
    [
        ("é\n", "é\n"),
        ({"é": [1, None, True]}, '{"é": [1, null, true]}'),
        (None, "null"),
        ("half \ud800 pair", "half � pair"),
        ("", ""),
    ],
)
def test_result_is_a_text_or_json(output, text):
    assert execute(tool(lambda: output), Call("f"), LIMITS).text == text


def test_output_is_cut_with_a_note():
    result = execute(tool(lambda: "x" * 50_000_000), Call("f"), LIMITS)
    assert result.text == "x" * 100 + "… (cut after 100 characters)"
    result = execute(tool(lambda: [0] * 20_000_000), Call("f"), LIMITS)  # a hundred megabytes as JSON
    assert result.text.startswith("[0, 0")
    assert len(result.text) < 150


def test_output_that_json_cannot_write_is_an_error_result():
    circle: list[Any] = []
    circle.append(circle)
    for output in (object(), circle, {(1, 2): 3}):
        assert execute(tool(lambda value=output: value), Call("f"), LIMITS).is_error


def test_schema_that_is_broken_or_names_a_url_is_an_error_result():
    for parameters in ({"type": "objekt"}, {"$ref": "http://127.0.0.1:9/schema.json"}, {"properties": 3}):
        result = execute(tool(lambda: "ran", parameters), Call("f", {"a": 1}), LIMITS)
        assert result.is_error
        assert result.text != "ran"


def test_deeply_nested_arguments_are_an_error_result():
    nested: dict[str, Any] = {}
    for _ in range(sys.getrecursionlimit() * 2):
        nested = {"a": nested}
    assert execute(tool(lambda **_: "ran", {"additionalProperties": True}), Call("f", nested), LIMITS).is_error


def test_scenario_refuses_unsupported_actions():
    class Empty(Scenario):
        tools = TOOLS

        def begin(self):
            return "Hello."

        def reply(self, text):
            return Reply("Good bye.", done=True)

    scenario = Empty()
    assert scenario.called([]) == Reply()
    assert scenario.state_key() is None
    with pytest.raises(NotImplementedError, match="Empty cannot take snapshots"):
        scenario.save()
    scenario.close()


def test_literal_types_are_enumerations():
    def paint(colour: Literal["red", "blue"]) -> str:
        """Paint."""
        return colour

    assert tool_of(paint).parameters["properties"]["colour"]["enum"] == ["red", "blue"]


def test_a_regular_expression_of_a_schema_cannot_run_for_long() -> None:
    text = {"type": "string", "pattern": "^(a+)+$"}
    schema = {"type": "object", "properties": {"text": text}, "patternProperties": {"^(b+)+$": {"type": "string"}}}
    tool = Tool("echo", "Echo.", schema, lambda **arguments: " ".join(arguments))
    result = execute({"echo": tool}, Call("echo", {"text": "a" * 60 + "!", "b" * 60 + "!": "x"}), Limits())
    assert not result.is_error
    assert result.text.startswith("text b")
