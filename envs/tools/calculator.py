"""Arithmetic without `eval`: numbers, operators, and a few functions."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable
from typing import Any

from envs.tools.tool import ToolError

MOST_CHARACTERS = 500
MOST_BITS = 4096  # of an integer
_OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.UAdd: operator.pos, ast.USub: operator.neg,
}  # fmt: skip
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "abs": abs, "ceil": math.ceil, "cos": math.cos, "exp": math.exp, "floor": math.floor, "gcd": math.gcd,
    "lcm": math.lcm, "log": math.log, "log10": math.log10, "log2": math.log2, "max": max, "min": min, "round": round,
    "sin": math.sin, "sqrt": math.sqrt, "tan": math.tan,
}  # fmt: skip
_CONSTANTS = {"e": math.e, "pi": math.pi}
_SIGNS = str.maketrans({"×": "*", "·": "*", "÷": "/", "−": "-", "–": "-"})


def calculator(expression: str) -> str:
    """The value of an arithmetic expression, see `_OPERATORS` and `_FUNCTIONS`. Raises `ToolError`."""
    if len(expression) > MOST_CHARACTERS:
        raise ToolError(f"the expression has {len(expression):,} characters, at most {MOST_CHARACTERS} are read")
    try:
        tree = ast.parse(expression.translate(_SIGNS).strip(), mode="eval")
        return show_number(_value(tree.body))
    except (SyntaxError, MemoryError, RecursionError):
        raise ToolError(f"cannot read {expression!r} as arithmetic") from None
    except ZeroDivisionError:
        raise ToolError("division by zero") from None
    except (ArithmeticError, ValueError, TypeError) as error:
        raise ToolError(f"{expression!r} has no value: {error}") from None


def show_number(value: float) -> str:
    """An integer in full, any other number with 12 significant digits at most."""
    if isinstance(value, float) and not math.isfinite(value):
        raise OverflowError("it is too large")
    return str(value) if isinstance(value, int) else f"{value:.12g}"


def _value(node: ast.expr) -> int | float:
    match node:
        case ast.Constant(value=bool() | complex()):
            pass
        case ast.Constant(value=int() | float() as number):
            return _checked(number)
        case ast.Name(id=name) if name in _CONSTANTS:
            return _CONSTANTS[name]
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _OPERATORS:
            return _checked(_OPERATORS[type(op)](_value(operand)))
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            return _checked(_power(_value(left), _value(right)))
        case ast.BinOp(left=left, op=ast.BitXor(), right=right):
            raise ToolError("a power is written **, not ^")
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _checked(_OPERATORS[type(op)](_value(left), _value(right)))
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in _FUNCTIONS:
            return _checked(_FUNCTIONS[name](*map(_value, arguments)))
    raise ToolError(f"{ast.unparse(node)[:60]!r} is not arithmetic")


def _power(base: float, exponent: float) -> float:
    """Raises `OverflowError` before a huge integer is computed."""
    if isinstance(base, int) and isinstance(exponent, int) and abs(base) > 1 and exponent > MOST_BITS:
        raise OverflowError("it is too large")
    if isinstance(base, int) and isinstance(exponent, int) and base.bit_length() * exponent > 2 * MOST_BITS:
        raise OverflowError("it is too large")
    value = base**exponent
    if isinstance(value, complex):
        raise ToolError(f"{base}**{exponent} is not a real number")
    return float(value) if isinstance(value, float) else int(value)


def _checked(value: Any) -> int | float:
    if isinstance(value, int) and value.bit_length() > MOST_BITS:
        raise OverflowError("it is too large")
    if not isinstance(value, int | float):
        raise TypeError("it is not a number")
    return value
