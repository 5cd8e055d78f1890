"""Write files and folders completely or not at all, however a process ends and whoever else writes them.

Everything is written under a temporary name, `.NAME.OWNER.partial`, flushed to disk, and then renamed. A folder to be
replaced is first renamed to `.NAME.OWNER.old`, and removed when the new one is in place.

A killed process leaves such names behind. The next writer in that folder cleans up (`tidy`): partial names are removed,
and an old folder is restored if no new one replaced it. The owner in a name shows whether its process is still alive.
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

LONGEST_WAIT = 4 * 3600.0  # seconds to wait for another process that makes the same
_ABANDONED_S = 24 * 3600.0  # a name older than this is abandoned, on whatever machine it was written
_LEFT = re.compile(r"\.(.+)\.([0-9a-f]{8})-(\d+)-[0-9a-f]{8}\.(partial|old)", re.DOTALL)


# -- writing ----------------------------------------------------------------------------------------------------------
@contextmanager
def partial_path(target: Path) -> Iterator[Path]:
    """A temporary path next to `target`, used by this call only. Anything left there at the end is removed.

    The path does not exist yet. The caller renames it; `whole_file`, `whole_folder` and `made_once` do this.
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
    """A path to write a file to; at the end it replaces `path`. After an error `path` is unchanged."""
    with partial_path(path) as partial, naming(path):
        yield partial
        flush(partial)
        partial.replace(path)
        flush(path.parent)


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file completely or not at all."""
    with whole_file(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A path to make a folder at; at the end it replaces `folder`. After an error `folder` is unchanged."""
    with partial_path(folder) as partial, naming(folder):
        yield partial
        _flush_tree(partial)
        _put_in_place(partial, folder)
        flush(folder.parent)


@contextmanager
def made_once(folder: Path, proof: str = ".") -> Iterator[Path]:
    """An empty folder to fill, which becomes `folder` at the end; after an error nothing of it is left.

    If two processes make the same folder, the second one keeps the first one's, recognised by the `proof` that it
    holds.
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
    """Remove a file or folder: rename it first, then delete it. It may be gone already."""
    with partial_path(path) as partial, suppress(FileNotFoundError):
        path.rename(partial)


def tidy(folder: Path, everything: bool = False) -> None:
    """Remove leftovers of killed processes in `folder`; with `everything`, of all processes: for the lock's owner."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return
    for name in names:
        left = _LEFT.fullmatch(name)
        if left is None:
            continue
        with suppress(OSError):  # another process may tidy too, or the folder is read-only
            if everything or _is_abandoned(folder / name, machine=left[2], pid=int(left[3])):
                _settle(folder / name, folder / left[1]) if left[4] == "old" else _remove(folder / name)


def _put_in_place(new: Path, folder: Path) -> None:
    """Rename `new` to `folder`. An existing folder is renamed aside first, so one of the two always exists."""
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
                if not folder.exists():  # otherwise another process has just put its own there
                    raise
    finally:
        for aside in reversed(asides):
            _settle(aside, folder)


def _settle(old: Path, folder: Path) -> None:
    """Restore a folder that was renamed aside, or remove it if another one has replaced it."""
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
    """Add the path to disk errors: Python names a file when it fails to open it, but not when it fails to write."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:  # our own errors already name their subject
            error.filename = str(path)
        raise


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a file, one per line; an unfinished last line is skipped.

    Raises `ValueError` naming the first damaged line.
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


# -- finding ----------------------------------------------------------------------------------------------------------
def files_named(folder: Path, name: str) -> list[Path]:
    """The files of that name in `folder` and below it, sorted.

    Hidden folders are left out: half-written ones are among them. The folder may change while it is read.
    """
    found = []
    for parent, folders, files in os.walk(folder):  # `Path.glob` raises when a folder vanishes
        folders[:] = [inside for inside in folders if not inside.startswith(".")]
        found += [Path(parent, name)] if name in files else []
    return sorted(found)


# -- flushing ---------------------------------------------------------------------------------------------------------
def flush(path: Path) -> None:
    """Wait until a file or folder is on disk."""
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
    """A name for the scope of process ids: a machine, or a container on it."""
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
        except PermissionError:  # it is alive and belongs to another user
            pass
    return time.time() - path.lstat().st_mtime > _ABANDONED_S


# -- locks ------------------------------------------------------------------------------------------------------------
@contextmanager
def locked(lock_file: Path, what: str, on_wait: Callable[[], None]) -> Iterator[None]:
    """Hold a lock that one process at a time can hold; others call `on_wait` once and wait. A killed process releases
    it. In a read-only folder there is no lock.

    Raises `TimeoutError`; `what` says what was waited for.
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
                f"if there is no such process, remove {lock_file}"
            ) from None
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        # A read-only folder may contain everything that is needed. If something is missing, the attempt to write it
        # raises.
    try:
        yield
    finally:
        lock.release()
