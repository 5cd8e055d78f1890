"""The value of an arithmetic expression, without evaluating Python: the text is parsed, and only numbers are computed.

Operators, comparisons and conditions between numbers have the values that Python gives them; comments are skipped.
Names, calls, texts and everything else have none.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from typing import Any

LONGEST = 1000  # characters; longer expressions have no value
MOST_BITS = 4096  # of a result: larger powers have no value
_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.Pow: operator.pow, ast.LShift: operator.lshift,
    ast.RShift: operator.rshift, ast.BitAnd: operator.and_, ast.BitOr: operator.or_, ast.BitXor: operator.xor,
}  # fmt: skip
_UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.UAdd: operator.pos, ast.USub: operator.neg, ast.Invert: operator.invert, ast.Not: operator.not_,
}  # fmt: skip
_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}  # fmt: skip


class _NoValueError(ValueError):
    """The expression has no value here."""


def evaluate(text: str) -> float | complex | None:
    """The value, or None for a text that is no expression of numbers, or that Python cannot compute."""
    if len(text) > LONGEST:
        return None
    try:
        value = _value(ast.parse(text.lstrip(" \t"), mode="eval").body)
        return value if isinstance(value, complex) else float(value)
    except (SyntaxError, ValueError, ArithmeticError, TypeError, RecursionError, MemoryError):
        return None


def _value(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=bool() | int() | float() | complex() as value):
            return value
        case ast.UnaryOp(op=op, operand=operand):
            return _UNARY[type(op)](_value(operand))
        case ast.BinOp(left=left, op=op, right=right):
            return _compute(op, _value(left), _value(right))
        case ast.IfExp(test=test, body=body, orelse=orelse):
            return _value(body if _value(test) else orelse)
        case ast.BoolOp(op=op, values=values):
            return _first(values, isinstance(op, ast.Or))
        case ast.Compare(left=left, ops=ops, comparators=others):
            return _compare(_value(left), ops, others)
    raise _NoValueError


def _compute(op: ast.operator, left: Any, right: Any) -> Any:
    if isinstance(op, (ast.Pow, ast.LShift)) and isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() * right if isinstance(op, ast.Pow) else left.bit_length() + right
        if bits > MOST_BITS:
            raise _NoValueError
    if type(op) not in _BINARY:
        raise _NoValueError
    return _BINARY[type(op)](left, right)


def _first(values: list[ast.expr], truth: bool) -> Any:
    """The first value of `or` (or of `and`) that decides, otherwise the last."""
    value: Any = None
    for node in values:
        value = _value(node)
        if bool(value) == truth:
            break
    return value


def _compare(left: Any, ops: list[ast.cmpop], others: list[ast.expr]) -> bool:
    for op, node in zip(ops, others, strict=True):
        right = _value(node)
        if type(op) not in _COMPARISONS:
            raise _NoValueError
        if not _COMPARISONS[type(op)](left, right):
            return False
        left = right
    return True
