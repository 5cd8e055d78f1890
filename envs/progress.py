"""Progress bars for work that is done once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

WORTHWHILE = 1 << 26  # bytes; a smaller file has no bar


@contextlib.contextmanager
def reading(path: Path, what: str) -> Iterator[Callable[[int], None] | None]:
    """A bar on stderr for reading a large file once; gives the function that takes the bytes read so far."""
    size = path.stat().st_size
    if size < WORTHWHILE:
        yield None
        return
    columns = (TextColumn(f"{what} (once)", markup=False), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task("", total=size)
        yield lambda done: progress.update(bar, completed=done)
