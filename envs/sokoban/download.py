"""Download Boxoban's levels once, or copy them from a local mirror.

    install(data_root())        # fills data_root()/boxoban with a million and a half levels, 170 MB

They are one archive of GitHub, whose size and hash are not published. So it is verified against a `SHA256SUMS` file if
the data folder has one, and every file is read as levels before it is accepted.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from rich.console import Console

from envs.fetch import DownloadError, NamedRemote, fetch
from envs.files import write_whole
from envs.sokoban.board import Board
from envs.sokoban.boxoban import FOLDER, SETS, split_levels, to_room
from envs.sokoban.tasks import SokobanTasks
from envs.sums import SUMS, read_sums, verify_sum, write_sums

ARCHIVE = "boxoban-levels-master.zip"
ADDRESS = "https://codeload.github.com/google-deepmind/boxoban-levels/zip/refs/heads/master"
_MEMBER = re.compile(rf"(?:.*/)?((?:{'|'.join(place for place, _ in SETS.values())})/\d+\.txt)")


def install(data: Path, mirror: Path | None = None, address: str = ADDRESS, console: Console | None = None) -> None:
    """Put the levels into `data/boxoban`. Existing files stay, so it can be run again.

    `mirror` is a folder with the archive, or with the folders of the published repository; itself, or in a subfolder
    `boxoban`. Raises `DownloadError`.
    """
    console = console or Console(markup=False)
    say = partial(console.print, highlight=False, soft_wrap=True)
    folder = data / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    if mirror is None:
        sums = read_sums(folder / SUMS)
        archive = fetch(NamedRemote(address, None, None, ARCHIVE), folder, console)
        verify_sum(archive, sums, say, remove=True)
        found = _unpacked(archive)
        write_sums(folder, sums)
    else:
        found = _mirrored(mirror)
    count = 0
    for name, content in found:
        if not (folder / name).is_file():
            _check(name, content)
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            write_whole(folder / name, content)
            count += 1
    if mirror is None:
        archive.unlink()
    say(f"{count} new files of levels in {folder}")
    tasks = SokobanTasks(levels="boxoban", data=data)
    for split in tasks.splits:
        say(tasks.manifest(split).describe())


def _unpacked(archive: Path) -> Iterator[tuple[str, bytes]]:
    """The names and contents of the levels in an archive. Raises `DownloadError`."""
    try:
        with zipfile.ZipFile(archive) as packed:
            for member in sorted(packed.namelist()):
                if found := _MEMBER.fullmatch(member):
                    yield found[1], packed.read(member)
    except (OSError, zipfile.BadZipFile) as error:
        raise DownloadError(f"{archive} cannot be unpacked ({error}): delete it and run this again") from error


def _mirrored(mirror: Path) -> Iterator[tuple[str, bytes]]:
    for place in (mirror, mirror / FOLDER):
        if (place / ARCHIVE).is_file():
            return _unpacked(place / ARCHIVE)
        if paths := sorted(path for folder, _ in SETS.values() for path in (place / folder).glob("*.txt")):
            return ((path.relative_to(place).as_posix(), path.read_bytes()) for path in paths)
    raise DownloadError(f"no {ARCHIVE} in {mirror}, and no folder such as hard, nor in its subfolder {FOLDER}")


def _check(name: str, content: bytes) -> None:
    """Raises `DownloadError` unless a file has levels that can be played."""
    try:
        levels = split_levels(content.decode("ascii"))
        for level in levels:
            Board(to_room(level))
    except ValueError as error:
        raise DownloadError(f"{name} has what is no level: {error}") from error
    if not levels:
        raise DownloadError(f"{name} has no levels")
