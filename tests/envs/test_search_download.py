"""Fetching question sets and a corpus: from a server on this machine or a mirror, verified, resumed."""

from __future__ import annotations

import errno
import gzip
import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from envs import fetch as fetch_module
from envs.core import UnknownNameError
from envs.fetch import DownloadError, Remote
from envs.search import download
from envs.search.corpus import CorpusError
from envs.search.download import CORPUS, SETS, install, install_corpus
from envs.search.tasks import QuestionsError, SearchTasks, read_questions
from envs.sums import SUMS
from scripts.download import main
from tests.file_server import FileServer


def lines(rows: Sequence[Any]) -> bytes:
    return "".join(f"{json.dumps(row)}\n" for row in rows).encode()


CONTENTS = {
    "train.jsonl": lines([{"id": "train_0", "question": "a?", "golden_answers": ["x"]}]),
    "test.jsonl": lines([{"id": f"test_{n}", "question": f"{n}?", "golden_answers": ["y", "z"]} for n in range(2)]),
    f"{CORPUS}.gz": gzip.compress(lines([{"id": "0", "contents": '"T"\ntext'}])),
}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYTURN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fetch_module, "_FAILURES", 2)
    monkeypatch.setitem(SETS, "nq", {"train": 1, "test": 3})


@pytest.fixture
def server() -> Iterator[FileServer]:
    with FileServer().running() as running:
        running.contents = dict(CONTENTS)
        yield running


def get(data: Path, server: FileServer | None = None, mirror: Path | None = None) -> str:
    """Returns the output."""
    console = Console(file=io.StringIO(), width=200)
    install(data, ["nq"], mirror, address=server.address if server else "http://127.0.0.1:9", console=console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def mirrored(folder: Path, contents: dict[str, bytes]) -> Path:
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def test_a_downloaded_set_is_one_file_that_can_be_played(server: FileServer, tmp_path: Path) -> None:
    said = get(tmp_path, server)
    assert "nq train: 1 questions" in said
    assert "nq test: 2 questions of the official 3 (incomplete)" in said
    assert "no published hash" in said
    assert sorted(path.name for path in (tmp_path / "qa").iterdir()) == [SUMS, "nq.jsonl"]
    install_corpus(tmp_path, remote=Remote(f"{server.address}/{CORPUS}.gz", None, None), console=Console(quiet=True))
    tasks = SearchTasks("nq.jsonl", CORPUS, data=tmp_path)
    assert tasks.splits == ("train", "test")
    assert tasks.manifest("test").ids == ("test_0", "test_1")
    assert tasks.task("test", "test_1").payload["answers"] == ["y", "z"]
    before = len(server.asked)
    assert "already there" in get(tmp_path, server)
    assert len(server.asked) == before


def test_a_download_resumes_after_a_broken_connection(server: FileServer, tmp_path: Path) -> None:
    server.cuts = [20]
    get(tmp_path, server)
    assert server.asked[:2] == [None, "bytes=20-"]
    assert (tmp_path / "qa" / "nq.jsonl").is_file()


@pytest.mark.parametrize("shape", ["nq/{}", "qa/nq/{}", "nq-{}", "qa/nq-{}"])
def test_a_mirror(shape: str, tmp_path: Path) -> None:
    splits = ("train.jsonl", "test.jsonl")
    mirror = mirrored(tmp_path / "mirror", {shape.format(name): CONTENTS[name] for name in splits})
    get(tmp_path, mirror=mirror)
    assert (tmp_path / "qa" / "nq.jsonl").read_text().count("\n") == 3
    assert (mirror / shape.format("test.jsonl")).is_file()


def test_files_must_have_the_published_hashes(server: FileServer, tmp_path: Path) -> None:
    digest = hashlib.sha256(CONTENTS["test.jsonl"]).hexdigest()
    mirrored(tmp_path / "qa", {SUMS: f"{digest}  nq-test.jsonl\n".encode()})
    server.contents["test.jsonl"] += b" "
    with pytest.raises(DownloadError, match=r"is not the nq-test\.jsonl of SHA256SUMS"):
        get(tmp_path, server)
    server.contents = dict(CONTENTS)
    assert "nq-test.jsonl: verified" in get(tmp_path, server)


def test_a_file_that_is_not_a_question_set_is_removed(server: FileServer, tmp_path: Path) -> None:
    server.contents["train.jsonl"] = b"no questions"
    with pytest.raises(QuestionsError, match="is no question"):
        get(tmp_path, server)
    assert not list((tmp_path / "qa").glob("*.jsonl"))[1:]
    assert not (tmp_path / "qa" / "nq.jsonl").exists()
    server.contents = dict(CONTENTS)
    get(tmp_path, server)


NO_QUESTIONS = [
    b"\x8f\x00", b"[" * 100_000, b'{"question": "\\ud800", "answers": ["a"]}', b'{"question": "q", "answers": [NaN]}',
    b'{"question": "q", "answers": "a", "gold_titles": NaN}', b'{"question": "q", "answers": "a", "gold_titles": [1]}',
]  # fmt: skip


@pytest.mark.parametrize("line", NO_QUESTIONS)
def test_a_line_that_is_no_question_is_named(line: bytes, tmp_path: Path) -> None:
    (tmp_path / "asked.jsonl").write_bytes(b'{"question": "a", "answers": "b"}\n' + line)
    with pytest.raises(QuestionsError, match=r"asked\.jsonl:2 is no question"):
        read_questions(tmp_path / "asked.jsonl", "")


def test_a_file_that_is_not_a_corpus_is_removed(tmp_path: Path) -> None:
    mirror = mirrored(tmp_path / "mirror", {f"{CORPUS}.gz": gzip.compress(b'{"question": "a"}\n')})
    with pytest.raises(CorpusError, match="is not a passage"):
        install_corpus(tmp_path, mirror, console=Console(quiet=True))
    assert not (tmp_path / "qa" / CORPUS).exists()
    mirrored(mirror, {f"{CORPUS}.gz": CONTENTS[f"{CORPUS}.gz"]})
    assert len(install_corpus(tmp_path, mirror, console=Console(quiet=True))) == 1


def test_a_full_disk_does_not_blame_the_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    mirror = mirrored(tmp_path / "mirror", {f"{CORPUS}.gz": CONTENTS[f"{CORPUS}.gz"]})
    monkeypatch.setattr(download.shutil, "copyfileobj", full)
    with pytest.raises(OSError, match="No space left") as caught:
        install_corpus(tmp_path, mirror, console=Console(quiet=True))
    assert not isinstance(caught.value, DownloadError)


def test_a_damaged_corpus_raises(tmp_path: Path) -> None:
    mirror = mirrored(tmp_path / "mirror", {f"{CORPUS}.gz": CONTENTS[f"{CORPUS}.gz"][:-6]})
    with pytest.raises(DownloadError, match="cannot be unpacked"):
        install_corpus(tmp_path, mirror, console=Console(quiet=True))
    mirrored(mirror, {f"{CORPUS}.gz": CONTENTS[f"{CORPUS}.gz"][:10] + b"\xff" * 20})
    with pytest.raises(DownloadError, match="cannot be unpacked"):
        install_corpus(tmp_path, mirror, console=Console(quiet=True))
    assert not (tmp_path / "qa" / CORPUS).exists()
    with pytest.raises(DownloadError, match=r"no nq-train\.jsonl in"):
        get(tmp_path, mirror=mirror)
    with pytest.raises(UnknownNameError, match="did you mean 'nq'"):
        install(tmp_path, ["nqq"])


def test_the_command_passes_its_choices_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mirror = mirrored(tmp_path / "mirror", {f"nq/{name}": content for name, content in CONTENTS.items()})
    mirrored(mirror, {f"{CORPUS}.gz": CONTENTS[f"{CORPUS}.gz"]})
    choices = ["--data", str(tmp_path), "--from", str(mirror), "--sets", "nq", "--corpus"]
    monkeypatch.setattr("sys.argv", ["download", "search", *choices])
    main()
    assert {path.name for path in (tmp_path / "qa").iterdir()} == {"nq.jsonl", CORPUS, SUMS}
    assert download.CORPUS_FILE.url.startswith("https://huggingface.co/datasets/")
