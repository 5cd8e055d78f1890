"""A corpus of passages: a JSONL file, one object a line, read on demand.

    corpus = Corpus(Path("corpus.jsonl"))    # {"title": "Anna Karenina", "text": "A novel by …"}
    corpus[0].contents                       # the text that is indexed: the quoted title, and the text below it

Search-R1's corpora have `{"id", "contents"}` instead, with such contents. The file is memory-mapped and is never held
in memory; where its lines begin is kept in the cache.
"""

from __future__ import annotations

import json
import mmap
from array import array
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from envs.checksums import found_whole, hash_file
from envs.core import NoDataError, cache_root
from envs.progress import reading
from envs.store import load_array, save_array, written_whole

REMEMBERED = 1 << 14  # passages


class CorpusError(ValueError):
    """A file that is not a corpus. The message names the line and what was expected."""


class Passage(NamedTuple):
    """`id` is the row's own if it has one, otherwise its number. `names` are what it names, where the row lists it."""

    id: str
    title: str
    text: str
    names: tuple[str, ...] = ()

    @property
    def contents(self) -> str:
        """The passage as Search-R1 writes it: the quoted title, and the text in the lines after it."""
        return f'"{self.title}"\n{self.text}'

    @classmethod
    def from_json(cls, row: Any, number: int = 0) -> Passage:
        """Reads `{"title", "text"}` or `{"contents"}`. Raises `ValueError`."""
        if isinstance(row, dict):
            name = str(row.get("id", number))
            title, text, contents = row.get("title"), row.get("text"), row.get("contents")
            if isinstance(title, str) and isinstance(text, str):
                names = row.get("names", ())
                if not isinstance(names, (list, tuple)) or not all(isinstance(one, str) for one in names):
                    raise ValueError(f"expected a list of texts as 'names', got {names!r:.80}")
                return cls(name, title, text, tuple(names))
            if isinstance(contents, str):
                title, _, text = contents.partition("\n")
                return cls(name, title.strip('"'), text)
        raise ValueError(f"expected an object with the texts 'title' and 'text', or 'contents'; got {row!r:.80}")


class Corpus(Sequence[Passage]):
    """The passages of a file by row. `content_hash` is the hex SHA-256 of the file."""

    def __init__(self, path: Path) -> None:
        """Raises `NoDataError` for a missing file and `CorpusError` for a line that is not a passage."""
        if not path.is_file():
            raise NoDataError(f"no corpus at {path}: expected a JSONL file of {{'title', 'text'}}")
        self.path, self.content_hash = path, hash_file(path).hex()
        # The folder of everything that is derived from this corpus.
        self.folder = cache_root() / "search" / self.content_hash[:32]
        lines = self.folder / "lines"
        if not found_whole(lines, f"the line index of {path}"):
            with written_whole(lines, {"corpus": self.content_hash}) as folder:
                save_array(folder, "starts", np.frombuffer(_starts(path), dtype=np.int64))
        self._starts = load_array(lines, "starts")  # [passages + 1]
        with path.open("rb") as file:
            self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._read = lru_cache(REMEMBERED)(self._parse)

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, row: Any) -> Any:
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)} passages")
        return self._read(row)

    def __iter__(self) -> Iterator[Passage]:
        """All passages in order; none is remembered."""
        return map(self._parse, range(len(self)))

    def each(self, on_progress: Callable[[int], None] | None) -> Iterator[Passage]:
        """All passages in order; `on_progress` gets the bytes read so far."""
        for row, passage in enumerate(self):
            yield passage
            if on_progress and row % 1024 == 0:
                on_progress(int(self._starts[row + 1]))

    def _parse(self, row: int) -> Passage:
        start, end = self._starts[row : row + 2].tolist()
        return Passage.from_json(json.loads(self._data[start:end]), row)


def read_row(line: bytes) -> Any:
    """The JSON of a line. Raises `ValueError`, also for halves of characters, which nothing can write or encode."""
    try:
        row = json.loads(line)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if b"\\ud" in line.lower():  # an escaped half; two of them are a character
        json.dumps(row, ensure_ascii=False).encode()
    return row


def _starts(path: Path) -> array[int]:
    """Where each line begins, and the end of the file; every line is read. Raises `CorpusError`."""
    starts, place = array("q"), 0
    with path.open("rb") as file, reading(path, "reading the corpus") as on_progress:
        for number, line in enumerate(file):
            try:
                Passage.from_json(read_row(line), number)
            except ValueError as error:
                raise CorpusError(f"{path}:{number + 1} is not a passage: {error}") from error
            starts.append(place)
            place += len(line)
            if on_progress and number % 1024 == 0:
                on_progress(place)
    if not starts:
        raise CorpusError(f"{path} has no passage")
    starts.append(place)
    return starts
