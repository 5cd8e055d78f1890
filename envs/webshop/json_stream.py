"""Read JSON files of gigabytes one member at a time: `json.load` would need ten times their size in memory.

`json` itself reads each member, so the result equals that of `json.load`: the parser of `ijson` rejects NaN and long
integers, and replaces lone surrogates.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

_CHUNK = 1 << 20  # characters
_LARGEST = 1 << 26  # characters of one member; a longer one is an error


class JSONFileError(ValueError):
    """A file that is not the expected JSON. The message names the file and the problem."""

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(f"{path}: {problem}")


def stream_list(path: Path, on_progress: Callable[[int], None] | None = None) -> Iterator[Any]:
    """The elements of the list in the file. `on_progress` gets the bytes read. Raises `JSONFileError`."""
    return (value for _, value in _stream(path, "[", "]", on_progress))


def stream_object(path: Path) -> Iterator[tuple[str, Any]]:
    """The members of the object in the file. Raises `JSONFileError`."""
    return _stream(path, "{", "}", None)


def _stream(
    path: Path, opening: str, closing: str, on_progress: Callable[[int], None] | None
) -> Iterator[tuple[str, Any]]:
    number = 0
    try:
        with path.open("rb") as raw:
            reader = _Reader(io.TextIOWrapper(raw, encoding="utf-8-sig"))
            reader.take(opening)
            more = reader.peek() != closing
            while more:
                key = ""
                if opening == "{":
                    key = reader.value()
                    reader.take(":")
                value = reader.value()
                if on_progress:
                    on_progress(raw.tell())
                yield key, value
                number += 1
                more = reader.take("," + closing) == ","
            if not number:
                reader.take(closing)
            if reader.peek():
                raise ValueError(f"{reader.peek()!r} after the end")
    except (ValueError, RecursionError) as error:
        kind = "an object" if opening == "{" else "a list"
        raise JSONFileError(path, f"not {kind} in JSON, or cut off, at member {number}: {error}") from error


class _Reader:
    def __init__(self, file: IO[str]) -> None:
        self._file, self._text, self._at = file, "", 0
        self._decode = json.JSONDecoder().raw_decode

    def peek(self) -> str:
        """The next character that is not white space; "" at the end."""
        while True:
            while self._at < len(self._text):
                if self._text[self._at] not in " \t\n\r":
                    return self._text[self._at]
                self._at += 1
            if not self._more():
                return ""

    def take(self, expected: str) -> str:
        """The next character, which must be one of the expected."""
        found = self.peek()
        if not found or found not in expected:
            raise ValueError(f"expected one of {expected!r}, found {found or 'the end of the file'!r}")
        self._at += 1
        return found

    def value(self) -> Any:
        """The next value."""
        self.peek()
        while True:
            try:
                value, end = self._decode(self._text, self._at)
            except json.JSONDecodeError:
                if len(self._text) - self._at > _LARGEST or not self._more():
                    raise
            else:
                if end < len(self._text) or not self._more():  # otherwise a number might continue
                    self._at = min(end, len(self._text))
                    return value

    def _more(self) -> bool:
        rest = self._text[self._at :]
        read = self._file.read(max(_CHUNK, len(rest)))
        self._text, self._at = rest + read, 0
        return bool(read)
