"""Databases of which each episode has its own, without copying them.

    data = open_domain("retail", folder)     # read once in a process, and never changed
    database = Database(data)                # an episode's own; holds what it has changed
    database.edit("orders", "#W2378156")["status"] = "cancelled"
    database.hash()                                              # sha256 as the reference computes it

The reference hashes the text of the whole database, with dicts and lists as tuples and keys sorted: 10 and 10.0 differ,
and so do orders of lists. Here texts of rows are kept, and the hash begins from the state that it had before the first
row that was changed. Whether two states are equal is seen from the changed rows alone.
"""

from __future__ import annotations

import gc
import hashlib
import json
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, TypeAlias

from envs.core import NoDataError

Row: TypeAlias = dict[str, Any]
# What an episode has changed: (table, id, canonical text), sorted.
Changes: TypeAlias = tuple[tuple[str, str, str], ...]

GET_DATA = "get it with: python -m scripts.download tau_bench"
_CHECKPOINT_BYTES = 1 << 16  # between two states of the hash that are kept


def canonical(value: Any) -> str:
    """`str` of the value with dicts as tuples of pairs, sorted by key, and lists as tuples."""
    if isinstance(value, dict):
        return _tuple([f"({key!r}, {canonical(item)})" for key, item in sorted(value.items())])
    if isinstance(value, list):
        return _tuple([canonical(item) for item in value])
    return repr(value)


def _tuple(items: Sequence[str]) -> str:
    return f"({items[0]},)" if len(items) == 1 else f"({', '.join(items)})"


class Data:
    """The tables of a domain: rows by id. Tables of a folder are read when they are first used."""

    def __init__(self, tables: Mapping[str, Mapping[str, Row] | Path]) -> None:
        """`tables` are rows, or files of them. Raises `NoDataError` for a file that does not exist."""
        self._tables: dict[str, Mapping[str, Row] | Path] = dict(tables)
        for source in tables.values():
            if isinstance(source, Path) and not source.is_file():
                raise NoDataError(f"{source} does not exist; {GET_DATA}")

    def table(self, name: str) -> Mapping[str, Row]:
        """The rows of a table, which must not be changed."""
        source = self._tables[name]
        if isinstance(source, Path):
            collected = gc.isenabled()
            gc.disable()  # nothing that is read is garbage; looking for some takes as long as reading
            try:
                source = self._tables[name] = json.loads(source.read_bytes())
            finally:
                if collected:
                    gc.enable()
        return source

    @property
    def names(self) -> list[str]:
        """The names of the tables."""
        return list(self._tables)

    @cached_property
    def _hashed(self) -> _HashedText:
        return _HashedText({name: self.table(name) for name in self.names})

    def hash(self, changes: Changes) -> str:
        """Hex sha256 of the whole database after the changes."""
        return self._hashed.digest(changes)

    @cached_property
    def canonical_row(self) -> Any:
        """The canonical text of a row of a table, kept."""
        return lru_cache(maxsize=10_000)(lambda table, key: canonical(self.table(table)[key]))


class Database:
    """The rows of a `Data` as one episode sees them."""

    def __init__(self, data: Data) -> None:
        self.data = data
        self._edited: dict[str, dict[str, Row]] = {name: {} for name in data.names}

    def has(self, table: str, key: Any) -> bool:
        """Raises `TypeError` for a key that cannot be one, such as a list."""
        return key in self._edited[table] or key in self.data.table(table)

    def read(self, table: str, key: Any) -> Row:
        """A row that must not be changed. Raises `KeyError`."""
        edited = self._edited[table]
        return edited[key] if key in edited else self.data.table(table)[key]

    def edit(self, table: str, key: str) -> Row:
        """The episode's own copy of a row. Raises `KeyError`."""
        edited = self._edited[table]
        if key not in edited:
            edited[key] = deepcopy(self.data.table(table)[key])
        return edited[key]

    def add(self, table: str, key: str, row: Row) -> None:
        """A new row; the caller must not change it later."""
        self._edited[table][key] = row

    def rows(self, table: str) -> Iterator[tuple[str, Row]]:
        """All rows, new ones last."""
        edited, rows = self._edited[table], self.data.table(table)
        for key, row in rows.items():
            yield key, edited.get(key, row)
        for key, row in edited.items():
            if key not in rows:
                yield key, row

    def changes(self) -> Changes:
        """The rows that differ from those of the data; equal changes are equal states."""
        found = []
        for table, rows in self._edited.items():
            for key, row in rows.items():
                text = canonical(row)
                if key not in self.data.table(table) or text != self.data.canonical_row(table, key):
                    found.append((table, key, text))
        return tuple(sorted(found))

    def hash(self) -> str:
        """Hex sha256 of the whole database, equal to the reference's."""
        return self.data.hash(self.changes())

    def save(self) -> Any:
        """The state, as a value that later changes do not change."""
        return deepcopy(self._edited)

    def load(self, saved: Any) -> None:
        """Continue from `save`."""
        self._edited = deepcopy(saved)


class _HashedText:
    """The canonical text of all tables, and the state of its hash at several places."""

    def __init__(self, tables: Mapping[str, Mapping[str, Row]]) -> None:
        text = bytearray(b"(")
        self._ids: dict[str, list[str]] = {}
        self._spans: dict[str, list[tuple[int, int]]] = {}  # of each row, without separators
        self._ends: dict[str, int] = {}  # of the last row of a table
        for number, (name, rows) in enumerate(sorted(tables.items())):
            text += f"{', ' if number else ''}({name!r}, (".encode()
            ids, spans = sorted(rows), []
            for place, key in enumerate(ids):
                text += b", " if place else b""
                start = len(text)
                text += _row_text(key, canonical(rows[key]))
                spans.append((start, len(text)))
            self._ids[name], self._spans[name], self._ends[name] = ids, spans, len(text)
            text += b"))"
        text += b")"
        if min(map(len, self._ids.values())) < 2 or len(tables) < 2:
            raise ValueError("a database has two tables or more, of two rows or more")
        self._text = memoryview(bytes(text))
        self._states = [hashlib.sha256()]
        for start in range(0, len(text), _CHECKPOINT_BYTES):
            state = self._states[-1].copy()
            state.update(self._text[start : start + _CHECKPOINT_BYTES])
            self._states.append(state)

    def digest(self, changes: Changes) -> str:
        pieces = sorted(self._piece(*change) for change in changes)
        place = pieces[0][0] if pieces else len(self._text)
        number = place // _CHECKPOINT_BYTES
        state, place = self._states[number].copy(), number * _CHECKPOINT_BYTES
        for start, end, text in pieces:
            state.update(self._text[place:start])
            state.update(text)
            place = end
        state.update(self._text[place:])
        return state.hexdigest()

    def _piece(self, table: str, key: str, text: str) -> tuple[int, int, bytes]:
        """The start and end of the text that a changed row replaces, and its own text."""
        ids, spans = self._ids[table], self._spans[table]
        place = bisect_left(ids, key)
        row = _row_text(key, text)
        if place < len(ids) and ids[place] == key:
            return *spans[place], row
        if place == len(ids):
            return self._ends[table], self._ends[table], b", " + row
        return spans[place][0], spans[place][0], row + b", "


def _row_text(key: str, text: str) -> bytes:
    return f"({key!r}, {text})".encode()
