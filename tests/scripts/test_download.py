"""Fetching games: resumed, verified, never outside its folder, and done once. A real server on this machine."""

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import urllib.error
import zipfile
from collections import namedtuple
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from envs import fetch as fetch_module
from envs.alfworld import download
from envs.alfworld.download import GAMES, TRAJECTORIES, Archive, install
from envs.alfworld.game import GAME_FILE
from envs.alfworld.tasks import read_manifest
from envs.checksums import SUMS, DamagedError
from envs.fetch import DownloadError
from scripts import download as download_command
from tests.damage import KINDS, delete
from tests.file_server import FileServer

ROOT = Path(__file__).parents[2]
SPLITS = {"train": 3, "valid_train": 1, "valid_seen": 2, "valid_unseen": 2}


def game(name: str) -> bytes:
    return json.dumps(
        {"pddl_problem": f"(define {name})", "solvable": True, "filler": os.urandom(30_000).hex()}
    ).encode()


GAME_FILES = {
    f"json_2.1.1/{split}/pick_and_place_simple-Mug-None-Desk-{n}/trial_{n}/{GAME_FILE}": game(f"{split} {n}")
    for split, count in SPLITS.items()
    for n in range(count)
}


def make_zip(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


@pytest.fixture(autouse=True)
def _small_and_quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYTURN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(download, "OFFICIAL_COUNTS", SPLITS)
    monkeypatch.setattr(fetch_module, "_FAILURES", 2)


@pytest.fixture
def server() -> Iterator[FileServer]:
    with FileServer(make_zip(GAME_FILES)).running() as running:
        yield running


def archive_of(server: FileServer, brings: str = GAME_FILE) -> Archive:
    url = f"{server.address}/release/games.zip"
    return Archive(url, len(server.content), hashlib.sha256(server.content).hexdigest(), brings)


def fetch(data: Path, *archives: Archive, mirror: Path | None = None) -> str:
    """Returns the output."""
    console = Console(file=io.StringIO(), width=200)
    install(data, mirror, archives, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def installed(data: Path) -> dict[str, bytes]:
    folder = data / "alfworld"
    files = (path for path in files_in(folder) if path.name != SUMS)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


# -- from the net -----------------------------------------------------------------------------------------------------
def test_a_download_is_unpacked_and_reported(server: FileServer, tmp_path: Path) -> None:
    output = fetch(tmp_path, archive_of(server))
    assert installed(tmp_path) == GAME_FILES  # and nothing else: no archive, no part
    for split, count in SPLITS.items():
        manifest = read_manifest(tmp_path / "alfworld" / "json_2.1.1" / split, split, count)
        assert manifest.describe() in output
        assert len(manifest.ids) == count


def test_a_second_download_sends_no_request(server: FileServer, tmp_path: Path) -> None:
    fetch(tmp_path, archive_of(server))
    before = len(server.asked)
    assert "already there" in fetch(tmp_path, archive_of(server))
    assert len(server.asked) == before


def test_a_broken_download_resumes(server: FileServer, tmp_path: Path) -> None:
    server.cuts = [10_000, 20_000]
    fetch(tmp_path, archive_of(server))
    assert server.asked == [None, "bytes=10000-", "bytes=30000-"]
    assert installed(tmp_path) == GAME_FILES


def test_a_later_download_resumes_an_earlier_one(server: FileServer, tmp_path: Path) -> None:
    server.cuts = [10_000, 0, 0]
    with pytest.raises(DownloadError, match=r"stopped at 10,000 of [\d,]+ bytes.*again to continue.*--from"):
        fetch(tmp_path, archive_of(server))
    server.asked.clear()
    fetch(tmp_path, archive_of(server))
    assert server.asked == ["bytes=10000-"]
    assert installed(tmp_path) == GAME_FILES


def test_a_server_without_ranges_is_downloaded_from_the_beginning(server: FileServer, tmp_path: Path) -> None:
    server.ranges = False
    server.cuts = [10_000]
    fetch(tmp_path, archive_of(server))
    assert installed(tmp_path) == GAME_FILES


def test_a_request_to_a_busy_server_is_retried(server: FileServer, tmp_path: Path) -> None:
    server.statuses = [503]
    output = fetch(tmp_path, archive_of(server))
    assert "games.zip: stopped at 0 bytes (HTTP Error 503: Service Unavailable); trying again in 1 s" in output
    assert installed(tmp_path) == GAME_FILES


def test_a_missing_file_is_requested_once(server: FileServer, tmp_path: Path) -> None:
    server.statuses = [404]
    with pytest.raises(DownloadError, match=r"games\.zip: HTTP Error 404.*--from"):
        fetch(tmp_path, archive_of(server))
    assert len(server.asked) == 1
    assert files_in(tmp_path) == []


def test_without_a_connection_there_is_no_wait(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: pytest.fail("it waited"))
    archive = replace(archive_of(server), url="http://127.0.0.1:1/games.zip")
    with pytest.raises(DownloadError, match=r"games\.zip: no connection \(.*refused.*\); .*--from"):
        fetch(tmp_path, archive)


@pytest.mark.parametrize("damage", ["another file", "a longer file"])
def test_another_file_is_not_unpacked(server: FileServer, tmp_path: Path, damage: str) -> None:
    archive = archive_of(server)
    if damage == "another file":
        server.content = server.content[:-1] + b"x"
    else:
        server.content = make_zip(GAME_FILES | {"json_2.1.1/more": os.urandom(100)})
    with pytest.raises(DownloadError, match=rf"is not {archive.url}: its SHA-256 is \w+, expected {archive.sha256}"):
        fetch(tmp_path, archive)
    assert not any(name.endswith(GAME_FILE) for name in installed(tmp_path))


# -- what is unpacked -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "name",
    [
        f"../{GAME_FILE}",
        f"/{GAME_FILE}",
        f"json_2.1.1/train/../../{GAME_FILE}",
        f"json_2.1.1/train/../../../../a/{GAME_FILE}",
        f"json_2.1.1/train/..\\..\\a/b/{GAME_FILE}",
        f"json_2.1.1/other/a/b/{GAME_FILE}",
        "json_2.1.1/train/a/b/other.txt",
    ],
)
def test_only_games_are_extracted_from_the_archive(server: FileServer, tmp_path: Path, name: str) -> None:
    server.content = make_zip({name: b"{}", **GAME_FILES})
    data = tmp_path / "deep" / "data"
    fetch(data, archive_of(server))
    assert installed(data) == GAME_FILES
    written = {path for path in files_in(tmp_path) if "cache" not in path.parts and path.name != SUMS}
    assert len(written) == len(GAME_FILES)


def test_trajectories_are_those_of_games(server: FileServer, tmp_path: Path) -> None:
    fetch(tmp_path, archive_of(server))
    mine = {name.replace(GAME_FILE, "traj_data.json"): b"{}" for name in GAME_FILES}
    server.content = make_zip(mine | {"json_2.1.1/train/pick-Mug-Box-Desk-1/trial_9/traj_data.json": b"{}"})
    fetch(tmp_path, archive_of(server, "traj_data.json"))
    assert installed(tmp_path) == GAME_FILES | mine


def test_games_that_are_there_stay(server: FileServer, tmp_path: Path) -> None:
    fetch(tmp_path, archive_of(server))
    lost, *kept = (tmp_path / "alfworld" / name for name in GAME_FILES)
    lost.unlink()
    times = [path.stat().st_mtime_ns for path in kept]
    fetch(tmp_path, archive_of(server))
    assert installed(tmp_path) == GAME_FILES
    assert [path.stat().st_mtime_ns for path in kept] == times


@pytest.mark.parametrize("kind", KINDS)
def test_a_game_that_is_damaged_later_is_named_and_fetched_again(
    server: FileServer, tmp_path: Path, kind: Callable[[Path], None]
) -> None:
    fetch(tmp_path, archive_of(server))
    path = tmp_path / "alfworld" / next(iter(GAME_FILES))
    kind(path)
    with pytest.raises(DamagedError, match=rf"{path.parent.name}.*{GAME_FILE} is damaged"):
        read_manifest(path.parents[2], path.parents[2].name)
    assert kind is delete or "is damaged and will be downloaded again" in fetch(tmp_path, archive_of(server))
    fetch(tmp_path, archive_of(server))
    assert installed(tmp_path) == GAME_FILES


def test_a_full_disk_raises_before_anything_is_written(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(100, 99, 1))
    with pytest.raises(DownloadError, match=r"8 files need [\d,]+ bytes in .*json_2\.1\.1, but only 1 are free"):
        fetch(tmp_path, archive_of(server))
    assert not any(name.endswith(GAME_FILE) for name in installed(tmp_path))


# -- from a mirror ----------------------------------------------------------------------------------------------------
def test_a_mirror_with_the_archive(server: FileServer, tmp_path: Path) -> None:
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    (mirror / "games.zip").write_bytes(server.content)
    fetch(tmp_path / "data", archive_of(server), mirror=mirror)
    assert installed(tmp_path / "data") == GAME_FILES
    assert (mirror / "games.zip").is_file()
    assert not server.asked


@pytest.mark.parametrize("shape", [".", "alfworld"])
def test_a_mirror_with_games(server: FileServer, tmp_path: Path, shape: str) -> None:
    names = [name for name in GAME_FILES if "unseen" not in name]
    for name in names:
        path = tmp_path / "mirror" / shape / name
        path.parent.mkdir(parents=True)
        path.write_bytes(GAME_FILES[name])
    output = fetch(tmp_path / "data", archive_of(server), mirror=tmp_path / "mirror")
    assert installed(tmp_path / "data") == {name: GAME_FILES[name] for name in names}
    assert "valid_unseen: none of the official 2 tasks" in output
    assert "its content differs from the known copy" in output  # these games are made up
    assert not server.asked


def test_a_mirror_without_either(server: FileServer, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=r"neither games\.zip nor json_2\.1\.1 is in .*nowhere"):
        fetch(tmp_path / "data", archive_of(server), mirror=tmp_path / "nowhere")


def test_a_mirror_with_no_games(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "mirror" / "json_2.1.1" / "train").mkdir(parents=True)
    with pytest.raises(DownloadError, match=r"no game\.tw-pddl in .*mirror/json_2\.1\.1/<split>/<task>/<trial>"):
        fetch(tmp_path / "data", archive_of(server), mirror=tmp_path / "mirror")


# -- the command ------------------------------------------------------------------------------------------------------
def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "scripts.download", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120
    )


def test_the_command(tmp_path: Path) -> None:
    for name, content in GAME_FILES.items():
        path = tmp_path / "mirror" / name
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
    data, mirror = str(tmp_path / "data"), str(tmp_path / "mirror")
    done = run("alfworld", "--data", data, "--from", mirror)
    assert (done.returncode, done.stderr) == (0, "")
    assert "train: 3 of the official 3553 tasks (incomplete)" in done.stdout
    assert installed(tmp_path / "data") == GAME_FILES
    failed = run("alfworld", "--data", data, "--from", str(tmp_path / "nowhere"))
    assert failed.returncode == 2
    assert failed.stderr.count("\n") == 1
    assert "nowhere" in failed.stderr
    assert run("webshp").returncode == 2


def no_connection(*_: object, **__: object) -> None:
    raise urllib.error.URLError("refused")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", ""], "argument --data: expected a path, got an empty text; see --help"),
        (["--from", __file__], "--from needs a folder"),
        (["--from", "."], "json_2.1.1 is in ."),
        ([], "no connection"),
    ],
)
def test_a_failed_download_leaves_no_folder(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["download", "alfworld", "--data", "new/data", *arguments])
    monkeypatch.setattr("urllib.request.urlopen", no_connection)
    with pytest.raises((OSError, ValueError), match=message):
        download_command.main()
    assert not list(tmp_path.iterdir())


def test_urls_and_hashes_are_pinned() -> None:
    for archive in (GAMES, TRAJECTORIES):
        assert archive.url.startswith("https://github.com/alfworld/alfworld/releases/download/")
        assert len(bytes.fromhex(archive.sha256)) == 32
