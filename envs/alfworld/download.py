"""Download the official games of ALFWorld once, or copy them from a local mirror.

    install(Path("~/data").expanduser())         # fills ~/data/alfworld/json_2.1.1

An archive is checked against its size and SHA-256. Several public projects have recorded these independently for the
files of the two releases; `alfworld` (https://github.com/alfworld/alfworld, MIT licence) publishes none itself. A
mirror with unpacked games has no archive to check. There, the number of games in a split is compared with the published
one, and their content (`Manifest.content_hash`) with the known one. Both are reported for every split. Neither is an
error, since an incomplete or older copy also works.
"""

from __future__ import annotations

import io
import re
import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

from rich.console import Console
from rich.progress import track

from envs.alfworld.game import GAME_FILE
from envs.alfworld.tasks import (
    KNOWN_CONTENT,
    OFFICIAL_COUNTS,
    GamesNotFoundError,
    is_unknown,
    official_folder,
    read_manifest,
)
from envs.checksums import SUMS, damaged_files, write_checksums
from envs.fetch import DownloadError, Remote, check, fetch, size_of
from envs.files import flush, partial_path


@dataclass(frozen=True)
class Archive(Remote):
    """A published zip file, and the one file of each game that it contains."""

    size: int
    sha256: str
    brings: str  # "game.tw-pddl"


_RELEASES = "https://github.com/alfworld/alfworld/releases/download"
GAMES = Archive(
    f"{_RELEASES}/0.4.2/json_2.1.3_tw-pddl.zip",
    36_507_267,
    "5df77ea759f2211a4106082839ddbbb790f1ba4e7d097ed732cf453f72aa36cf",
    GAME_FILE,
)
# What people saw and what ALFRED's planner did. Nothing here reads it, but the `alfworld` package does not accept a
# folder without it as a game.
TRAJECTORIES = Archive(
    f"{_RELEASES}/0.2.2/json_2.1.1_json.zip",
    72_018_818,
    "25171f16e20ad7b048c47275c45b0babf3aa1cbab29cec97387922350a9844bc",
    "traj_data.json",
)


def install(
    data: Path,
    mirror: Path | None = None,
    archives: Sequence[Archive] = (GAMES,),
    console: Console | None = None,
) -> None:
    """Put the official games into `official_folder(data)`. Existing files stay, so it can be run again.

    `mirror` is a folder with the archives, or one that contains `json_2.1.1/<split>` or `alfworld/json_2.1.1/<split>`.
    Raises `DownloadError`, and `OSError` for a disk that is full or read-only.
    """
    console = console or Console(markup=False)
    say = partial(console.print, highlight=False, soft_wrap=True)
    folder = official_folder(data)
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / SUMS).is_file():
        for path in damaged_files(folder):
            say(f"{path} is damaged and will be downloaded again")
            path.unlink()
    placed = False
    for archive in archives:
        if _is_complete(folder, archive):
            say(f"{archive.brings} of all games: already there")
            continue
        tree = _find_tree(mirror) if mirror else None
        if tree:
            files = list(_files_of_tree(tree, archive.brings))
            if not files:
                raise DownloadError(f"no {archive.brings} in {tree / '<split>' / '<task>' / '<trial>'}")
            placed = _place(files, folder, console) or placed
            continue
        path = mirror / archive.name if mirror else fetch(archive, folder.parent, console)
        with _open_zip(path, archive) as opened:
            placed = _place(_files_of_zip(opened, archive.brings, folder), folder, console) or placed
        if not mirror:
            path.unlink()  # its files have been extracted
    if placed:
        write_checksums(folder)
    _report(folder, say)


def _is_complete(folder: Path, archive: Archive) -> bool:
    return all(
        sum(1 for _ in (folder / split).glob(f"*/*/{archive.brings}")) >= count
        for split, count in OFFICIAL_COUNTS.items()
    )


def _report(folder: Path, say: Callable[[str], None]) -> None:
    for split, count in OFFICIAL_COUNTS.items():
        try:
            manifest = read_manifest(folder / split, split, count)
        except GamesNotFoundError:
            say(f"{split}: none of the official {count} tasks")
            continue
        note = f"; its content differs from the known copy, {KNOWN_CONTENT[split][:12]}" if is_unknown(manifest) else ""
        say(manifest.describe() + note)
    say(f"the games are in {folder}")


# -- from files -------------------------------------------------------------------------------------------------------
@contextmanager
def _open_zip(path: Path, archive: Archive) -> Iterator[zipfile.ZipFile]:
    """Open the archive after checking that it is the published one. Raises `DownloadError`."""
    try:
        check(path, archive.sha256, archive.url)
    except FileNotFoundError as error:
        raise DownloadError(f"neither {archive.name} nor json_2.1.1 is in {path.parent}") from error
    with zipfile.ZipFile(path) as opened:
        yield opened


@dataclass(frozen=True)
class _File:
    name: str  # below `json_2.1.1`
    size: int
    open: Callable[[], IO[bytes]]


def _files_of_zip(opened: zipfile.ZipFile, brings: str, folder: Path) -> Iterator[_File]:
    """The files of the splits in an archive. Members of any other shape are skipped, including "../" paths."""
    shape = re.compile(rf"json_2\.1\.1/((?:{'|'.join(OFFICIAL_COUNTS)})/\w[\w.-]*/\w[\w.-]*/{re.escape(brings)})")
    for member in opened.infolist():
        found = shape.fullmatch(member.filename)
        # The archive of trajectories also has those of trials that became no game.
        if found and (brings == GAME_FILE or (folder / found[1]).with_name(GAME_FILE).is_file()):
            yield _File(found[1], member.file_size, partial(opened.open, member))


def _find_tree(mirror: Path) -> Path | None:
    return next((tree for tree in (mirror / "json_2.1.1", official_folder(mirror)) if tree.is_dir()), None)


def _files_of_tree(tree: Path, brings: str) -> Iterator[_File]:
    for split in OFFICIAL_COUNTS:
        for path in sorted((tree / split).glob(f"*/*/{brings}")):
            yield _File(path.relative_to(tree).as_posix(), path.stat().st_size, partial(io.FileIO, path))


def _place(files: Iterable[_File], folder: Path, console: Console) -> bool:
    """Write the files that are missing or have another size: first all of them next to `folder`, then rename each.

    Returns whether there were any.
    """
    new = [file for file in files if size_of(folder / file.name) != file.size]
    needed, free = sum(file.size for file in new), shutil.disk_usage(folder).free
    if needed > free:
        raise DownloadError(f"{len(new)} files need {needed:,} bytes in {folder}, but only {free:,} are free")
    with partial_path(folder) as beside:
        for file in track(new, "unpacking", console=console, disable=not console.is_terminal):
            target = beside / file.name
            target.parent.mkdir(parents=True, exist_ok=True)
            with file.open() as source, target.open("wb") as written:
                shutil.copyfileobj(source, written)
            flush(target)
        for file in new:
            (folder / file.name).parent.mkdir(parents=True, exist_ok=True)
            (beside / file.name).replace(folder / file.name)
    return bool(new)
