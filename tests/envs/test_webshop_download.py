"""Fetching catalogues: from a server on this machine or a mirror, verified, resumed; and finding nouns."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from envs import fetch as fetch_module
from envs.checksums import DamagedError
from envs.fetch import DownloadError, NamedRemote
from envs.sums import SUMS
from envs.webshop.catalogue import JSONFileError, load_catalogue
from envs.webshop.download import FILES, install
from envs.webshop.nouns import NounsNotFoundError, nouns_folder, tag_names
from tests.envs.webshop_shop import ATTRIBUTES, HUMAN, PRODUCTS
from tests.file_server import FileServer

ROOT = Path(__file__).parents[2]
CONTENTS = {
    "items_shuffle_1000.json": json.dumps(PRODUCTS).encode(),
    "items_ins_v2_1000.json": json.dumps(ATTRIBUTES).encode(),
    "items_human_ins.json": json.dumps(HUMAN).encode(),
}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYTURN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fetch_module, "_FAILURES", 2)


@pytest.fixture
def server() -> Iterator[FileServer]:
    with FileServer().running() as running:
        running.contents = dict(CONTENTS)
        yield running


def get(data: Path, server: FileServer | None = None, mirror: Path | None = None) -> str:
    """Returns the output."""
    console = Console(file=io.StringIO(), width=200)
    files = tuple(NamedRemote(f"{server.address}/{name}", None, None, name) for name in CONTENTS) if server else None
    install(data, "small", mirror, files=files, console=console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def placed(data: Path) -> dict[str, bytes]:
    shown = (path for path in (data / "webshop").iterdir() if path.name != SUMS)
    return {path.name: path.read_bytes() for path in shown}


def sums(contents: dict[str, bytes]) -> str:
    return "".join(f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in sorted(contents.items()))


def mirrored(folder: Path, contents: dict[str, bytes], **more: str) -> Path:
    folder.mkdir(parents=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    for name, text in more.items():
        (folder / name).write_text(text)
    return folder


# -- from the net -----------------------------------------------------------------------------------------------------
def test_a_download_is_recorded_hashed_and_reported(server: FileServer, tmp_path: Path) -> None:
    output = get(tmp_path, server)
    assert placed(tmp_path) == CONTENTS
    assert (tmp_path / "webshop" / SUMS).read_text() == sums(CONTENTS)
    assert f"small: {len(PRODUCTS)} products" in output
    assert "no published hash" in output
    assert "add --nouns" in output
    before = len(server.asked)
    assert get(tmp_path, server).count("already there") == 3
    assert len(server.asked) == before


def test_a_broken_download_resumes(server: FileServer, tmp_path: Path) -> None:
    server.cuts = [100, 200]
    get(tmp_path, server)
    assert server.asked[:3] == [None, "bytes=100-", "bytes=300-"]
    assert placed(tmp_path) == CONTENTS


def test_complete_files_are_not_fetched_again(server: FileServer, tmp_path: Path) -> None:
    name, content = next(iter(CONTENTS.items()))
    mirrored(tmp_path / "webshop", {f"{name}.part": content})
    get(tmp_path, server)
    assert server.asked[0] == f"bytes={len(content)}-"
    assert placed(tmp_path) == CONTENTS


def test_a_page_instead_of_a_file_is_refused(server: FileServer, tmp_path: Path) -> None:
    server.content_type = "text/html; charset=utf-8"
    with pytest.raises(DownloadError, match=r"sent a page instead of the file.*--from"):
        get(tmp_path, server)
    assert placed(tmp_path) == {}


def test_files_must_have_the_known_hashes(server: FileServer, tmp_path: Path) -> None:
    mirrored(tmp_path / "webshop", {}, **{SUMS: sums(CONTENTS)})
    server.contents["items_ins_v2_1000.json"] += b" "
    with pytest.raises(DownloadError, match=r"is not the items_ins_v2_1000\.json of SHA256SUMS"):
        get(tmp_path, server)
    assert set(placed(tmp_path)) == {"items_shuffle_1000.json"}
    server.contents = dict(CONTENTS)
    assert get(tmp_path, server).count("verified") == 2


def test_an_invalid_catalogue_is_removed(server: FileServer, tmp_path: Path) -> None:
    server.contents["items_shuffle_1000.json"] = CONTENTS["items_shuffle_1000.json"][:-1]
    with pytest.raises(JSONFileError, match="cut off"):
        get(tmp_path, server)
    assert placed(tmp_path) == {}
    assert not (tmp_path / "webshop" / SUMS).exists()


# -- from a mirror ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("shape", [".", "webshop", "data"])
def test_a_mirror(tmp_path: Path, shape: str) -> None:
    mirrored(tmp_path / "mirror" / shape, CONTENTS)
    get(tmp_path, mirror=tmp_path / "mirror")
    assert placed(tmp_path) == CONTENTS
    assert load_catalogue(tmp_path / "webshop", "small").human_instructed.sum() == 1


def test_a_mirror_with_its_hashes(tmp_path: Path) -> None:
    mirror = mirrored(tmp_path / "mirror", CONTENTS, **{SUMS: sums(CONTENTS).replace("  ", " *")})
    assert get(tmp_path, mirror=mirror).count("verified") == 3
    (mirror / "items_shuffle_1000.json").write_bytes(b"[]")
    with pytest.raises(DownloadError, match="SHA-256"):
        get(tmp_path / "another", mirror=mirror)
    assert placed(tmp_path / "another") == {}
    (mirror / SUMS).write_text("nonsense")
    with pytest.raises(DamagedError, match="'nonsense' is not a line of sha256sum"):
        get(tmp_path / "another", mirror=mirror)


def test_human_instructions_under_the_catalogues_size(tmp_path: Path) -> None:
    contents = {name.replace("human_ins", "human_ins_1000"): content for name, content in CONTENTS.items()}
    get(tmp_path, mirror=mirrored(tmp_path / "mirror", contents))
    assert placed(tmp_path) == contents


def test_a_mirror_without_what_is_needed(tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=r"no items_shuffle_1000\.json in .*nowhere"):
        get(tmp_path, mirror=tmp_path / "nowhere")
    contents = {name: CONTENTS[name] for name in ("items_shuffle_1000.json", "items_ins_v2_1000.json")}
    mirror = mirrored(tmp_path / "mirror", contents)
    assert "will have no human instructions" in get(tmp_path, mirror=mirror)
    (mirror / "items_ins_v2_1000.json").unlink()
    with pytest.raises(DownloadError, match=r"no items_ins_v2_1000\.json in"):
        get(tmp_path / "another", mirror=mirror)


def test_the_command(tmp_path: Path) -> None:
    mirror = mirrored(tmp_path / "mirror", CONTENTS)
    command = [sys.executable, "-m", "scripts.download", "webshop", "--data", str(tmp_path / "data"), "--from"]
    done = subprocess.run([*command, str(mirror)], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert placed(tmp_path / "data") == CONTENTS
    full = [*command, "nowhere", "--size", "full"]
    failed = subprocess.run(full, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (failed.returncode, failed.stderr.count("\n")) == (2, 1)


def test_the_sizes_and_urls_of_the_files() -> None:
    assert sorted(FILES) == ["full", "small"]
    for files in FILES.values():
        assert [file.name.partition(".")[0].removesuffix("_1000") for file in files] == [
            "items_shuffle",
            "items_ins_v2",
            "items_human_ins",
        ]
        assert all(file.url.startswith("https://drive.usercontent.google.com/download?id=") for file in files)


# -- nouns ------------------------------------------------------------------------------------------------------------
class Tagger:
    """Takes every other word for a noun, and breaks after `limit` names."""

    meta = {"name": "every_other", "version": "1"}  # noqa: RUF012

    def __init__(self, limit: int = 1000) -> None:
        self.limit, self.asked = limit, 0

    def pipe(self, names, batch_size):
        for name in names:
            if self.asked == self.limit:
                raise KeyboardInterrupt
            self.asked += 1
            yield [
                SimpleNamespace(text=word, pos_=("NOUN", "ADJ", "PROPN", "VERB")[number % 4])
                for number, word in enumerate(name.split())
            ]


def test_finding_nouns_resumes_after_an_interruption(tmp_path: Path) -> None:
    get(tmp_path, mirror=mirrored(tmp_path / "mirror", CONTENTS))
    catalogue = load_catalogue(tmp_path / "webshop")
    with pytest.raises(NounsNotFoundError):
        catalogue.nouns(0)
    names = [catalogue.product(number).name for number in range(len(catalogue))]
    console = Console(file=io.StringIO())
    with pytest.raises(KeyboardInterrupt):
        tag_names(catalogue.content_hash, iter(names), len(names), Tagger(limit=10), console)
    part = next(nouns_folder(catalogue.content_hash).parent.glob(".*nouns*.part"))
    with part.open("ab") as file:
        file.write(b'["half')  # as a process that was killed leaves it
    assert not load_catalogue(tmp_path / "webshop").has_nouns
    tagger = Tagger()
    tag_names(catalogue.content_hash, iter(names), len(names), tagger, console)
    assert tagger.asked == len(names) - 10
    catalogue = load_catalogue(tmp_path / "webshop")
    assert [catalogue.nouns(number) for number in range(len(names))] == [
        tuple(name.lower().split()[::2]) for name in names
    ]
    assert not part.exists()
