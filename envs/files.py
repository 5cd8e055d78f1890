"""Files and folders that are there whole or not at all, however a process ends and whoever else writes them.

Everything is written under a name of its own, `.NAME.OWNER.partial`, flushed to the disk, and then renamed. A folder
that is replaced is first renamed to `.NAME.OWNER.old`, and removed when the new one is in its place.

A process that is killed leaves such names behind. Whoever writes next in that folder clears them (`tidy`): partial
ones are removed, and an old folder is put back where no new one took its place. The owner in a name tells whether its
process still lives.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

LONGEST_WAIT = 4 * 3600.0  # seconds for another process to make the same
_ABANDONED_S = 24 * 3600.0  # after which nobody still writes, on whatever machine
_LEFT = re.compile(r"\.(.+)\.([0-9a-f]{8})-(\d+)-[0-9a-f]{8}\.(partial|old)", re.DOTALL)


# -- writing ----------------------------------------------------------------------------------------------------------
@contextmanager
def partial_path(target: Path) -> Iterator[Path]:
    """A path beside `target` for what is not whole yet, of this call alone. What is still there at the end is removed.

    Nothing is at the path yet. To be renamed by the caller; `whole_file`, `whole_folder` and `made_once` do that.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    tidy(target.parent)
    partial = _own_name(target, "partial")
    try:
        yield partial
    finally:
        _remove(partial)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path to write a file to, which takes the place of `path` at the end. An error leaves `path` as it was."""
    with partial_path(path) as partial, naming(path):
        yield partial
        flush(partial)
        partial.replace(path)
        flush(path.parent)


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file that is there whole or not at all."""
    with whole_file(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A path to make a folder at, which takes the place of `folder` at the end. An error leaves `folder` as it was."""
    with partial_path(folder) as partial, naming(folder):
        yield partial
        _flush_tree(partial)
        _put_in_place(partial, folder)
        flush(folder.parent)


@contextmanager
def made_once(folder: Path, proof: str = ".") -> Iterator[Path]:
    """An empty folder to fill, which becomes `folder` at the end; nothing is left of it when something fails.

    Where two make the same folder, whoever is second keeps the first one's, told by the `proof` that it holds.
    """
    with partial_path(folder) as partial, naming(folder):
        partial.mkdir()
        yield partial
        _flush_tree(partial)
        try:
            partial.rename(folder)
        except OSError:
            if not (folder / proof).exists():
                raise
        flush(folder.parent)


def remove_whole(path: Path) -> None:
    """Remove a file or folder: out of sight at once, then away. It may be gone already."""
    with partial_path(path) as partial, suppress(FileNotFoundError):
        path.rename(partial)


def tidy(folder: Path, everything: bool = False) -> None:
    """Clear what killed processes left in `folder`; with `everything`, what any did: for whoever has it locked."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return
    for name in names:
        left = _LEFT.fullmatch(name)
        if left is None:
            continue
        with suppress(OSError):  # another process tidies, too, or the folder may only be read
            if everything or _is_abandoned(folder / name, machine=left[2], pid=int(left[3])):
                _settle(folder / name, folder / left[1]) if left[4] == "old" else _remove(folder / name)


def _put_in_place(new: Path, folder: Path) -> None:
    """Rename `new` to `folder`. What is there is renamed aside first, so that there is always one of the two."""
    asides: list[Path] = []
    try:
        while True:
            with suppress(FileNotFoundError):
                aside = _own_name(folder, "old")
                folder.rename(aside)
                asides.append(aside)
            try:
                new.rename(folder)
                return
            except OSError:
                if not folder.exists():  # else another process has just put its own there
                    raise
    finally:
        for aside in reversed(asides):
            _settle(aside, folder)


def _settle(old: Path, folder: Path) -> None:
    """Put a folder that was renamed aside back, or remove it where another one is in its place."""
    if folder.exists():
        _remove(old)
    else:
        old.rename(folder)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Errors of the disk name what was written: Python names a file when it opens it, and not when it writes to it."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:  # an error of our own says what it is about
            error.filename = str(path)
        raise


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file with one a line; a last line that was not finished is left out.

    Raises `ValueError` naming the first line that is none.
    """
    rows = []
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), start=1):
        if not line.endswith(b"\n"):
            break
        try:
            rows.append(dict(json.loads(line)))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}:{number} is damaged: expected a JSON object, got {line[:60]!r}") from error
    return rows


# -- on the disk ------------------------------------------------------------------------------------------------------
def flush(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _flush_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        flush(path)
    flush(folder)


# -- owners -----------------------------------------------------------------------------------------------------------
def _own_name(path: Path, kind: str) -> Path:
    return path.with_name(f".{path.name}.{_machine()}-{os.getpid()}-{secrets.token_hex(4)}.{kind}")


def _machine() -> str:
    """Names where process ids mean the same: a machine, or a container on it."""
    namespace = ""
    with suppress(OSError):
        namespace = os.readlink("/proc/self/ns/pid")
    return hashlib.sha256(f"{platform.node()} {namespace}".encode()).hexdigest()[:8]


def _is_abandoned(path: Path, machine: str, pid: int) -> bool:
    if machine == _machine():
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:  # it lives, and is another user's
            pass
    return time.time() - path.lstat().st_mtime > _ABANDONED_S


# -- one at a time ----------------------------------------------------------------------------------------------------
@contextmanager
def alone(lock_file: Path, what: str, on_wait: Callable[[], None]) -> Iterator[None]:
    """Held by one process at a time; the others call `on_wait` once, and wait. A killed process holds it no more.
    Nobody holds it in a folder that can only be read.

    Raises `TimeoutError`, saying `what` was waited for.
    """
    lock = FileLock(lock_file)
    try:
        lock_file.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        on_wait()
        try:
            lock.acquire(timeout=LONGEST_WAIT)
        except Timeout:
            raise TimeoutError(
                f"another process has been making {what} for {LONGEST_WAIT / 3600:.0f} hours; "
                f"if there is none, remove {lock_file}"
            ) from None
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        # What can only be read may hold all that is needed. Where something has to be made after all, writing it says
        # that it cannot be written.
    try:
        yield
    finally:
        lock.release()
