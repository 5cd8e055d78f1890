"""Checksums of what is kept on the disk, so that what is damaged there is noticed when it is opened.

    write_checksums(folder)          # when it is whole, as the last thing
    verify(folder)                   # before anything in it is used

CRC-32 finds what disks, interrupted copies and editors do to a file, at three gigabytes in a second; it is no
protection from somebody who means harm. Sizes are always compared, and the content of all files up to `ALWAYS_READ`;
of a larger one only where its times of change are not those that were noted, since an index of two gigabytes is to
open as quickly as a small one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import zlib
from pathlib import Path
from typing import TypeAlias

from envs.core import cache_root
from envs.files import remove_whole, write_whole

_log = logging.getLogger(__name__)
SUMS = "checksums.json"
ALWAYS_READ = 1 << 26  # bytes
ALWAYS_HASHED = 1 << 26  # bytes; the hash of a larger file is cached with its size and time
_CHUNK = 1 << 20
_Sum: TypeAlias = list[int]  # size, CRC-32, and the times of change of content and of state, in ns


class DamagedError(ValueError):
    """A file is not as it was written. The message names it."""


def write_checksums(folder: Path) -> None:
    """Note what the files of a folder and of the folders in it are now."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != SUMS)
    sums = {path.relative_to(folder).as_posix(): _sum(path) for path in files}
    (folder / SUMS).write_text(json.dumps(sums), encoding="utf-8")


def verify(folder: Path, part: str = "") -> None:
    """Compare all files with what was noted; with `part`, those in that folder of it.

    Raises `DamagedError` for the first that differs, and where nothing was noted.
    """
    for name, noted in _read_sums(folder).items():
        if name.startswith(part):
            _compare(folder / name, noted)


def found_whole(folder: Path, what: str) -> bool:
    """Whether a folder that can be made again is there, and whole. A damaged one is removed, and that is logged.

    `what` it is, for people: "the warm start".
    """
    if not folder.is_dir():
        return False
    try:
        verify(folder)
    except DamagedError as error:
        _log.warning("%s; %s has to be made again", error, what)
        remove_whole(folder)
        return False
    return True


def damaged_files(folder: Path) -> list[Path]:
    """The files that are there and differ from what was noted. Raises `DamagedError` where nothing was noted."""
    found = []
    for name, noted in _read_sums(folder).items():
        try:
            _compare(folder / name, noted)
        except DamagedError:
            found.append(folder / name)
    return [path for path in found if path.exists()]


def verify_if_noted(folder: Path, part: str = "") -> None:
    """As `verify`, for a folder that somebody else may have made, without checksums."""
    if (folder / SUMS).is_file():
        verify(folder, part)


def _read_sums(folder: Path) -> dict[str, _Sum]:
    path = folder / SUMS
    try:
        sums: dict[str, _Sum] = json.loads(path.read_bytes())
        if not sums or not all(len(noted) == 4 for noted in sums.values()):
            raise ValueError("there are no checksums in it")
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedError(f"{path} is damaged: {error}") from error
    return sums


def _compare(path: Path, noted: _Sum) -> None:
    try:
        state = path.stat()
        if state.st_size != noted[0]:
            raise DamagedError(f"{path} is damaged: it has {state.st_size:,} bytes, and was written with {noted[0]:,}")
        if noted[0] > ALWAYS_READ and [state.st_mtime_ns, state.st_ctime_ns] == noted[2:]:
            return
        if checksum(path) != noted[1]:
            raise DamagedError(f"{path} is damaged: its content is not what was written")
    except OSError as error:
        raise DamagedError(f"{path} is damaged: {error.strerror}") from error


def _sum(path: Path) -> _Sum:
    state = path.stat()
    return [state.st_size, checksum(path), state.st_mtime_ns, state.st_ctime_ns]


def checksum(path: Path) -> int:
    """The CRC-32 of a file."""
    crc = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            crc = zlib.crc32(chunk, crc)
    return crc


def hash_file(path: Path) -> bytes:
    """The SHA-256 of a file's content; for a large file it is cached until size or time change."""
    state = path.stat()
    note = None
    if state.st_size > ALWAYS_HASHED:
        looks = f"{path.resolve()}\0{state.st_size}\0{state.st_mtime_ns}".encode("utf-8", "surrogateescape")
        note = cache_root() / "hashes" / hashlib.sha256(looks).hexdigest()[:32]
        with contextlib.suppress(FileNotFoundError):
            noted = note.read_bytes()
            if noted[32:] == _check(noted[:32]):
                return noted[:32]
            _log.warning("%s is damaged; %s is hashed again", note, path)
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").digest()
    if note:
        write_whole(note, found + _check(found))
    return found


def _check(digest: bytes) -> bytes:
    """A checksum of a cached hash, which shows whether it is damaged."""
    return hashlib.sha256(digest).digest()
