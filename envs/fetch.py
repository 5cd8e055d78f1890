"""Download published files: resumable, checked, and complete before they get their name."""

from __future__ import annotations

import hashlib
import http
import http.client
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from envs.files import flush, locked

_TIMEOUT_S = 30.0  # without a byte from the server
_FAILURES = 5  # attempts in a row without a byte before giving up
_CHUNK = 1 << 18
# After these, another connection may succeed. A full disk is not among them.
_BROKEN = (urllib.error.HTTPError, TimeoutError, ConnectionError, http.client.HTTPException)


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
    path, lock = folder / remote.name, folder / f".{remote.name}.lock"
    if not path.is_file():
        with locked(
            lock,
            str(path),
            lambda: console.print(f"another process is fetching {path}; waiting for it", soft_wrap=True),
        ):
            try:
                if not path.is_file():
                    _fetch_whole(remote, path, console)
            finally:
                with suppress(OSError):  # of a read-only folder
                    lock.unlink()
    return path


def _fetch_whole(remote: Remote, path: Path, console: Console) -> None:
    from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt, wait_incrementing

    part = path.with_name(f"{remote.name}.part")
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        bar = progress.add_task(remote.name, total=remote.size)

        def say(state: RetryCallState) -> None:
            error = state.outcome and state.outcome.exception()
            text = f"{remote.name}: stopped at {size_of(part):,} bytes ({error}); trying again in"
            progress.console.print(text, f"{state.upcoming_sleep:.0f} s", markup=False, highlight=False, soft_wrap=True)

        attempts = Retrying(
            retry=retry_if_exception_type(_BROKEN), stop=stop_after_attempt(_FAILURES), wait=wait_incrementing(1, 1),
            before_sleep=say, reraise=True,
        )  # fmt: skip
        show = partial(progress.update, bar)
        first = size_of(part)
        try:
            while not attempts(_fetch, remote, part, first, show):
                pass  # the connection broke, but brought bytes: failures are counted from zero again
        except _BROKEN as error:
            size = progress.tasks[0].total
            of = f"{size:,.0f}" if size is not None else "unknown"
            raise DownloadError(
                f"{remote.url}: the download stopped at {size_of(part):,} of {of} bytes ({error}). "
                f"Run the command again to continue, or {_BY_HAND}"
            ) from error
    flush(part)
    part.replace(path)


_BY_HAND = "download the file by other means and pass its folder with --from"


def size_of(path: Path) -> int:
    """Bytes of a file, 0 if it does not exist."""
    return path.stat().st_size if path.exists() else 0


def _fetch(remote: Remote, part: Path, first: int, show: Callable[..., None]) -> bool:
    """Continue the download over one connection. Returns whether the file is complete.

    Raises one of `_BROKEN` if `part` did not grow, and `DownloadError` if another attempt cannot succeed. `part` had
    `first` bytes when this process began; `show` takes the bytes so far and the size.
    """
    have = done = size_of(part)
    if have == remote.size or (response := _open(remote, have, first)) is None:
        return True
    with response:
        if response.headers.get_content_type() == "text/html":
            raise DownloadError(f"{remote.url}: the server sent a page instead of the file; {_BY_HAND}")
        if response.status != http.HTTPStatus.PARTIAL_CONTENT:
            done = 0  # the server does not support ranges and sends the whole file
        length = response.headers["Content-Length"]
        size = remote.size if remote.size is not None else done + int(length) if length else None
        try:
            with part.open("ab" if done else "wb") as file:
                while (size is None or done < size) and (chunk := response.read(_CHUNK)):
                    done += file.write(chunk)
                    show(completed=done, total=size)
            if size is not None and done < size:
                raise ConnectionError("the server closed the connection")
        except _BROKEN:
            if done <= have:
                raise
            return False
    return True


def _open(remote: Remote, have: int, first: int) -> http.client.HTTPResponse | None:
    """The file from byte `have` on; None if it ends there."""
    request = urllib.request.Request(remote.url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response: http.client.HTTPResponse = urllib.request.urlopen(request, timeout=_TIMEOUT_S)
        return response
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and remote.size is None:
            return None
        if error.code < 500:
            raise DownloadError(f"{remote.url}: {error}; {_BY_HAND}") from error
        raise
    except urllib.error.URLError as error:
        if have == first:  # no connection at all: waiting will not help
            raise DownloadError(f"{remote.url}: no connection ({error.reason}); {_BY_HAND}") from error
        raise ConnectionError(error.reason) from error


def check(path: Path, sha256: str, source: str) -> None:
    """Raises `DownloadError` unless the file has this hash; `source` describes the expected file."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise DownloadError(
            f"{path} is not {source}: its SHA-256 is {found}, expected {sha256}. It is damaged or from another "
            "release; delete it and run the command again"
        )
