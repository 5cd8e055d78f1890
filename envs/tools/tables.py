"""Questions to tables in SQL: a database in memory that can only be read."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from envs.tools.calculator import show_number
from envs.tools.tool import ToolError

MOST_ROWS = 50  # that are shown
_FUNCTIONS = frozenset(  # without those that load code, fill memory, or read the clock or random numbers
    (
        "abs", "avg", "cast", "coalesce", "concat", "count", "cume_dist", "dense_rank", "first_value", "format", "glob",
        "group_concat", "hex", "ifnull", "iif", "instr", "lag", "last_value", "lead", "length", "like", "lower",
        "ltrim", "max", "min", "nth_value", "ntile", "nullif", "percent_rank", "printf", "quote", "rank", "replace",
        "round", "row_number", "rtrim", "sign", "string_agg", "substr", "substring", "sum", "total", "trim", "typeof",
        "unicode", "upper",
    )
)  # fmt: skip
_READING = (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_RECURSIVE)
_INSTRUCTIONS = 1000  # of SQLite's virtual machine between two calls of the handler


@dataclass(frozen=True)
class TableLimits:
    """What a query may use."""

    instructions: int = 2_000_000  # of SQLite's virtual machine: the same on every computer, about 0.2 s
    value: int = 10_000  # bytes of a text
    heap: int = 128 << 20  # bytes of SQLite in this process


class Tables:
    """A database of one task.

    Example: `Tables({"items": {"columns": ["name", "price"], "rows": [["mug", 12], ["lamp", 40]]}})`. Types are those
    of the values; nothing can be written, attached or set, and a query that runs away is ended.
    """

    def __init__(self, tables: Mapping[str, Mapping[str, Any]], limits: TableLimits = TableLimits()) -> None:
        self.tables = tables
        self._limits = limits
        self._left = 0
        # Calls may come from any thread, one at a time.
        self._connection = sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None)
        self._connection.execute("PRAGMA temp_store = MEMORY")  # large sorts would go to a file
        self._connection.execute(f"PRAGMA hard_heap_limit = {limits.heap}")  # of all databases of the process
        for name, table in tables.items():
            columns = ", ".join(map(_quoted, table["columns"]))
            self._connection.execute(f"CREATE TABLE {_quoted(name)} ({columns})")
            marks = ", ".join("?" for _ in table["columns"])
            self._connection.executemany(f"INSERT INTO {_quoted(name)} VALUES ({marks})", table["rows"])
        self._connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, limits.value)
        self._connection.setlimit(sqlite3.SQLITE_LIMIT_SQL_LENGTH, limits.value)
        self._connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
        self._connection.setlimit(sqlite3.SQLITE_LIMIT_WORKER_THREADS, 0)
        self._connection.setlimit(sqlite3.SQLITE_LIMIT_EXPR_DEPTH, 100)
        self._connection.setlimit(sqlite3.SQLITE_LIMIT_COMPOUND_SELECT, 50)
        self._connection.setlimit(sqlite3.SQLITE_LIMIT_COLUMN, 100)
        self._connection.set_authorizer(_authorize)
        self._connection.set_progress_handler(self._count, _INSTRUCTIONS)

    def describe(self) -> str:
        """The tables with their columns: `items(name, price)`."""
        return "; ".join(f"{name}({', '.join(table['columns'])})" for name, table in self.tables.items())

    def query(self, sql: str) -> tuple[list[str], list[tuple[Any, ...]]]:
        """The names of the columns, and at most `MOST_ROWS` + 1 rows. Raises `ToolError`."""
        self._left = self._limits.instructions
        try:
            cursor = self._connection.execute(sql)
            try:
                if cursor.description is None:
                    raise ToolError("that is no query: only SELECT is allowed")
                names = [str(column[0]) for column in cursor.description]
                rows = cursor.fetchmany(MOST_ROWS + 1)
            finally:
                cursor.close()
        except MemoryError:
            raise ToolError("the query needs too much memory") from None
        except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError) as error:
            words = "the query takes too long" if str(error) == "interrupted" else str(error)
            allowed = "; only SELECT is allowed" if words in ("not authorized", "authorizer malfunction") else ""
            raise ToolError(words + allowed) from None
        return names, rows

    def close(self) -> None:
        """Give its memory back."""
        self._connection.close()

    def _count(self) -> int:
        self._left -= _INSTRUCTIONS
        return self._left < 0


def write_rows(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """The result of a query as lines: the names of the columns, then the rows."""
    lines = [" | ".join(names), *(" | ".join(map(cell, row)) for row in rows[:MOST_ROWS])]
    if not rows:
        lines.append("(no rows)")
    elif len(rows) > MOST_ROWS:
        lines.append(f"(more than {MOST_ROWS} rows)")
    return "\n".join(lines)


def cell(value: Any) -> str:
    """A value of a table as text."""
    match value:
        case None:
            return "NULL"
        case bytes():
            return value.hex()
        case int() | float():
            return show_number(value) if abs(value) < float("inf") else str(value)
    return str(value)


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _authorize(action: int, first: str | None, second: str | None, database: str | None, trigger: str | None) -> int:
    del first, database, trigger
    if action in _READING or (action == sqlite3.SQLITE_FUNCTION and (second or "").lower() in _FUNCTIONS):
        return sqlite3.SQLITE_OK
    return sqlite3.SQLITE_DENY
