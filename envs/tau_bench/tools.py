"""The tools of a domain: the reference's schemas over functions of ours.

A function takes the database and the arguments of a call. What it raises is an error result with the exception's text,
as in the reference, where the text of a wrong call names a class: `GetUserDetails.invoke() missing 1 required
positional argument: 'user_id'`. Here that is the function's qualified name, so Python writes the same text.
"""

from __future__ import annotations

import ast
import json
import operator
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import lru_cache
from importlib import resources
from typing import Any, TypeAlias

from envs.tau_bench.database import Database
from envs.tools.tool import Tool, ToolError

Function: TypeAlias = Callable[..., str]  # of a database and the arguments of a call

TRANSFER = "transfer_to_human_agents"
_MOST_BITS = 4096  # of an integer; a float has at most 1,024


class _Unchecked(Tool):
    """A tool whose function checks its arguments: errors read as in the reference, and other types pass."""

    def check(self, arguments: Mapping[str, Any]) -> None:
        pass


@lru_cache(maxsize=4)
def _schemas(domain: str) -> tuple[dict[str, Any], ...]:
    """The schemas of sierra-research/tau-bench @ 59a200c (MIT)."""
    text = resources.files("envs.tau_bench").joinpath(f"{domain}_tools.json").read_text(encoding="utf-8")
    return tuple(tool["function"] for tool in json.loads(text))


def tools_over(database: Database, domain: str, functions: Sequence[Function]) -> dict[str, Tool]:
    """The tools of a domain over a database, in the order of the reference."""
    known = {function.__name__: function for function in functions}
    return {
        schema["name"]: _Unchecked(
            schema["name"], schema["description"], schema["parameters"], _run(database, known[schema["name"]]),
            bounded=True,
        )
        for schema in _schemas(domain)
    }  # fmt: skip


def _run(database: Database, function: Function) -> Callable[..., str]:
    def run(**arguments: Any) -> str:
        try:
            # A database keeps some arguments; later changes of it must not change what the policy wrote.
            return function(database, **deepcopy(arguments))
        except ToolError:
            raise
        except Exception as error:
            raise ToolError(str(error)) from error

    return run


def named(function: Function) -> Function:
    """Give a function the name that errors of the reference have."""
    parts = function.__name__.split("_")
    function.__qualname__ = f"{''.join(part.capitalize() for part in parts)}.invoke"
    return function


# -- tools of both domains --------------------------------------------------------------------------------------------
@named
def think(database: Database, thought: Any) -> str:  # noqa: ARG001
    """Nothing happens."""
    return ""


@named
def transfer_to_human_agents(database: Database, summary: Any) -> str:  # noqa: ARG001
    """The conversation ends."""
    return "Transfer successful"


@named
def get_user_details(database: Database, user_id: Any) -> str:
    """A user as JSON."""
    if not database.has("users", user_id):
        raise ToolError("user not found")
    return json.dumps(database.read("users", user_id))


@named
def calculate(database: Database, expression: Any) -> str:  # noqa: ARG001
    """The value of an arithmetic expression, rounded to two places."""
    if not all(char in "0123456789+-*/(). " for char in expression):
        raise ToolError("invalid characters in expression")
    if not isinstance(expression, str):
        raise TypeError("eval() arg 1 must be a string, bytes or code object")
    # The parser's errors are those of `eval`, which also skips leading blanks.
    tree = ast.parse(expression.lstrip(" \t"), "<string>", mode="eval")
    return str(round(float(_value(tree.body)), 2))


_OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.UAdd: operator.pos, ast.USub: operator.neg,
}  # fmt: skip


def _value(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=value):
            return value
        case ast.UnaryOp(op=op, operand=operand):
            return _OPERATORS[type(op)](_value(operand))
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            return _power(_value(left), _value(right))
        case ast.BinOp(left=left, op=op, right=right):
            return _bounded(_OPERATORS[type(op)](_value(left), _value(right)))
        case ast.Tuple(elts=[]):
            return ()
        case ast.Call(func=function):
            return _value(function)()  # a number is not callable, as `eval` says, too
    raise SyntaxError("invalid syntax")


def _power(base: Any, exponent: Any) -> Any:
    """As Python's, but for integers that no float can hold: these end as in `float`, and need no time."""
    are_integers = isinstance(base, int) and isinstance(exponent, int)
    if are_integers and abs(base) > 1 and base.bit_length() * exponent > 2 * _MOST_BITS:
        raise OverflowError("int too large to convert to float")
    return _bounded(base**exponent)


def _bounded(value: Any) -> Any:
    if isinstance(value, int) and value.bit_length() > _MOST_BITS:
        raise OverflowError("int too large to convert to float")
    return value
