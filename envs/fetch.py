"""Download published files: resumable, checked, and complete before they get their name."""

from __future__ import annotations

import hashlib
import http
import http.client
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from envs.files import flush, locked

_TIMEOUT_S = 30.0  # without a byte from the server
_FAILURES = 5  # attempts in a row without a byte before giving up
_CHUNK = 1 << 18


class DownloadError(OSError):
    """A file could not be downloaded; the message says why and what to do."""


@dataclass(frozen=True)
class Remote:
    """A published file. Size (bytes) and hash are None if they are not published."""

    url: str
    size: int | None
    sha256: str | None

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]


@dataclass(frozen=True)
class NamedRemote(Remote):
    """A published file whose address does not end with its name."""

    file_name: str

    @property
    def name(self) -> str:
        return self.file_name


def fetch(remote: Remote, folder: Path, console: Console) -> Path:
    """Download the file into `folder`, unchecked. Continues an interrupted download, and waits for another process
    that downloads the same file. Raises `DownloadError`.
    """
    path = folder / remote.name
    if not path.is_file():
        with locked(
            folder / f".{remote.name}.lock",
            str(path),
            lambda: console.print(f"another process is fetching {path}; waiting for it", soft_wrap=True),
        ):
            if not path.is_file():
                _fetch_whole(remote, path, console)
    return path


def _fetch_whole(remote: Remote, path: Path, console: Console) -> None:
    part = path.with_name(f"{remote.name}.part")
    first = size_of(part)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        bar = progress.add_task(remote.name, total=remote.size)
        size, failures = remote.size, 0
        while size is None or size_of(part) < size:
            have = size_of(part)
            try:
                size = _fetch(remote, part, lambda done, size: progress.update(bar, completed=done, total=size))
                reason = "the server closed the connection"
            except urllib.error.HTTPError as error:
                if error.code < 500:
                    raise DownloadError(f"{remote.url}: {error}; {_BY_HAND}") from error
                reason = str(error)
            except urllib.error.URLError as error:
                if size_of(part) == first and failures == 0:  # no connection at all: waiting will not help
                    raise DownloadError(f"{remote.url}: no connection ({error.reason}); {_BY_HAND}") from error
                reason = str(error.reason)
            except (TimeoutError, ConnectionError, http.client.HTTPException) as error:
                reason = str(error) or type(error).__name__
            failures = 0 if size_of(part) > have else failures + 1
            if failures == _FAILURES:
                of = f"{size:,}" if size is not None else "unknown"
                raise DownloadError(
                    f"{remote.url}: the download stopped at {size_of(part):,} of {of} bytes ({reason}). "
                    f"Run the command again to continue, or {_BY_HAND}"
                )
            if size is None or size_of(part) < size:
                progress.console.print(
                    f"{remote.name}: stopped at {size_of(part):,} bytes ({reason}); trying again in {failures} s",
                    markup=False, highlight=False, soft_wrap=True,
                )  # fmt: skip
            time.sleep(failures)  # wait longer after each failure
    flush(part)
    part.replace(path)


_BY_HAND = "download the file by other means and pass its folder with --from"


def size_of(path: Path) -> int:
    """Bytes of a file, 0 if it does not exist."""
    return path.stat().st_size if path.exists() else 0


def _fetch(remote: Remote, part: Path, on_progress: Callable[[int, int | None], None]) -> int:
    """Append to `part` until the server ends or the size is reached. Returns the size."""
    done = size_of(part)
    request = urllib.request.Request(remote.url, headers={"Range": f"bytes={done}-"} if done else {})
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and remote.size is None:
            return done  # the earlier download was complete
        raise
    with response:
        if response.headers.get_content_type() == "text/html":
            raise DownloadError(f"{remote.url}: the server sent a page instead of the file; {_BY_HAND}")
        if response.status != http.HTTPStatus.PARTIAL_CONTENT:
            done = 0  # the server does not support ranges and sends the whole file
        length = response.headers["Content-Length"]
        size = remote.size if remote.size is not None else done + int(length) if length else None
        with part.open("ab" if done else "wb") as file:
            while (size is None or done < size) and (chunk := response.read(_CHUNK)):
                done += file.write(chunk)
                on_progress(done, size)
    return done if size is None else size


def check(path: Path, sha256: str, source: str) -> None:
    """Raises `DownloadError` unless the file has this hash; `source` describes the expected file."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise DownloadError(
            f"{path} is not {source}: its SHA-256 is {found}, expected {sha256}. It is damaged or from another "
            "release; delete it and run the command again"
        )
