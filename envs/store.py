"""Cached files that are read on demand: arrays, and rows of bytes."""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from envs.checksums import DamagedError, write_checksums
from envs.files import made_once

_META = "meta.json"


@contextmanager
def written_whole(folder: Path, meta: dict[str, Any]) -> Iterator[Path]:
    """`made_once` for these files: `meta` is written last, with the checksums of all files."""
    with made_once(folder, _META) as whole:
        yield whole
        (whole / _META).write_text(json.dumps(meta), encoding="utf-8")
        write_checksums(whole)


def read_meta(folder: Path) -> dict[str, Any]:
    """Raises `DamagedError`."""
    try:
        return dict(json.loads((folder / _META).read_bytes()))
    except (OSError, ValueError) as error:
        raise DamagedError(f"{folder}: {error}") from error


def save_array(folder: Path, name: str, array: NDArray[Any]) -> None:
    """Write an array that `load_array` maps."""
    np.save(folder / f"{name}.npy", array, allow_pickle=False)


def load_array(folder: Path, name: str) -> NDArray[Any]:
    """The memory-mapped array: only accessed parts are read. Raises `DamagedError`."""
    try:
        return np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        raise DamagedError(f"{folder / name}.npy: {error}") from error


class RowWriter:
    """Writes rows for `Rows`. Call `close` at the end."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._name = folder, name
        self._file: IO[bytes] = (folder / f"{name}.bin").open("wb")
        self._ends = [0]

    def append(self, row: bytes) -> None:
        """Add one row."""
        self._file.write(row)
        self._ends.append(self._ends[-1] + len(row))

    def close(self) -> None:
        """Finish both files."""
        self._file.close()
        save_array(self._folder, self._name, np.array(self._ends, dtype=np.int64))


def remove_rows(folder: Path, name: str) -> None:
    """Remove the files of a `RowWriter`."""
    for suffix in ("bin", "npy"):
        (folder / f"{name}.{suffix}").unlink()


class Rows(Sequence[bytes]):
    """Memory-mapped byte strings, by number."""

    def __init__(self, folder: Path, name: str) -> None:
        """Raises `DamagedError`."""
        self._ends = load_array(folder, name)  # [rows + 1], from 0
        path = folder / f"{name}.bin"
        try:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                self._data: mmap.mmap | bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
        except OSError as error:
            raise DamagedError(f"{path}: {error}") from error
        if size != self._ends[-1]:
            raise DamagedError(f"{path}: {size:,} bytes, expected {self._ends[-1]:,}")

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        start, end = self._ends[index : index + 2].tolist()
        return self._data[start:end]
