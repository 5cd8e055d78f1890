r"""Python in a sandbox: `pydantic-monty`, an interpreter of its own, without files, network or foreign modules.

    result = run_python("x = 6\nx * 7", None, SandboxLimits())
    result.text, result.state                     # "42", and the session's variables as bytes
    run_python("x + 1", result.state, …).text     # "7"

Code runs in a worker process. A session is a value: the state that a call leaves is what the next one begins with, so
snapshots cost nothing, and a call that exceeded a limit leaves the state as it was. Clock and random numbers are fixed.
"""

from __future__ import annotations

import ast
import atexit
import datetime
import os
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from envs.tools.tool import ToolError

try:
    import pydantic_monty as monty
except ImportError as error:
    raise ImportError(f"{error}; the Python tool needs the extra: pip install 'polyturn[tools]'") from error

if TYPE_CHECKING:
    from pydantic_monty import Monty

_START = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
_OUT_OF_BOUNDS = (TimeoutError, MemoryError)  # after which the interpreter's memory is in no known state
_MOST_RESULTS = 20_000  # characters that leave the sandbox


@dataclass(frozen=True)
class SandboxLimits:
    """What a call may use."""

    seconds: float = 2.0
    memory: int = 64 << 20  # bytes
    depth: int = 300  # of calls
    state: int = 4 << 20  # bytes of variables that a session keeps


@dataclass(frozen=True)
class Ran:
    """What code printed, the value of its last expression, and the session after it."""

    text: str
    state: bytes | None


class CodeError(ToolError):
    """The code failed. `state` is the session after it."""

    def __init__(self, message: str, state: bytes | None) -> None:
        super().__init__(message)
        self.state = state


@lru_cache(maxsize=1)
def _pool(process: int) -> Monty:
    """The workers of this process; a process that was forked has its own."""
    del process
    pool = monty.Monty(checkout_timeout=60.0, request_timeout=60.0, max_checkouts_per_worker=10_000)
    pool.__enter__()
    atexit.register(pool.__exit__, None, None, None)
    return pool


def run_python(code: str, state: bytes | None, limits: SandboxLimits) -> Ran:
    """Run code in the session `state`; None is a new one. Raises `CodeError`."""
    printed = _Printed(_MOST_RESULTS)
    bounds: monty.ResourceLimits = {
        "max_feed_duration_secs": limits.seconds, "max_memory": limits.memory, "max_recursion_depth": limits.depth,
        "max_suspensions": 100,
    }  # fmt: skip
    policy: monty.OSPolicy = {
        "sleep": "zero", "process_time": "zero", "random_start": {"seed": 0}, "datetime": _START, "timezone": "utc",
    }  # fmt: skip
    after: bytes | None = None
    failure = ""
    try:
        with _pool(os.getpid()).checkout(script_name="code.py", limits=bounds, os_policy=policy) as session:
            if state is not None:
                session.load_session(state)
            try:
                value = session.feed_run(_with_shown_value(code), print_callback=printed)
                printed("stdout", value if isinstance(value, str) else "")
            except monty.MontyError as error:
                if isinstance(error.exception(), _OUT_OF_BOUNDS) or isinstance(error, monty.MontyCrashedError):
                    raise
                failure = _words(error)
            after = session.dump()
    except (monty.MontyError, TimeoutError) as error:
        raise CodeError(f"{_words(error)}; the session is as before this call", state) from None
    if len(after) > limits.state:
        raise CodeError(
            f"MemoryError: the variables take {len(after):,} bytes, at most {limits.state:,} are kept; the session is "
            "as before this call",
            state,
        )
    if failure:
        raise CodeError(f"{printed.text}\n{failure}".strip(), after)
    return Ran(printed.text.rstrip("\n"), after)


class _Printed:
    """Keeps the beginning of what is printed: the sandbox has no limit of its own."""

    def __init__(self, most: int) -> None:
        self._parts: list[str] = []
        self._left = most

    def __call__(self, stream: str, text: str) -> None:
        del stream
        if self._left > 0:
            self._parts.append(text[: self._left])
            self._left -= len(text)

    @property
    def text(self) -> str:
        return "".join(self._parts)


def _with_shown_value(code: str) -> str:
    """Code that gives the text of its last expression, or an empty one.

    The text is made inside the sandbox, under its limits: values are of any size, and one that holds another many times
    would be written out on the way to this process.
    """
    try:
        body = ast.parse(code).body
        last = body[-1] if body else None
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        last = None  # the sandbox says what is wrong, or knows more of Python than this interpreter
    if not isinstance(last, ast.Expr) or last.end_lineno is None or last.end_col_offset is None:
        return f"{code}\nNone"
    lines = code.encode().splitlines(keepends=True)
    before = b"".join(lines[: last.lineno - 1]) + lines[last.lineno - 1][: last.col_offset]
    *whole, end = lines[last.lineno - 1 : last.end_lineno]
    shown = b"".join([*whole, end[: last.end_col_offset]])
    shown = shown[last.col_offset :]
    show = f"'' if _ is None else f'{{_!r}}'[:{_MOST_RESULTS}]"
    return (before + b"_ = (" + shown + b")").decode() + f"\n{show}"


def _words(error: Any) -> str:
    return str(error.display("type-msg")) if hasattr(error, "display") else f"{type(error).__name__}: {error}"
