"""Download the usual question sets and the corpus wiki-18 once, or copy them from a local mirror.

    install(data_root(), ["nq", "hotpotqa"])     # fills data_root()/qa with nq.jsonl and hotpotqa.jsonl
    install_corpus(data_root())                  # … with wiki-18.jsonl, 21 million passages

The sets are those of FlashRAG, which Search-R1, verl-agent and others use. Sizes and hashes are not published: files are
verified against a `SHA256SUMS` file if the mirror or the data folder has one, and against the sets' known numbers of
questions. Every file is read completely before it is accepted.
"""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import Console

from envs.core import UnknownNameError
from envs.fetch import DownloadError, Remote, fetch
from envs.files import whole_file
from envs.search.corpus import Corpus
from envs.search.tasks import QuestionsError, read_questions
from envs.sums import SUMS, read_sums, verify_sum, write_sums

_FLASHRAG = "https://huggingface.co/datasets/RUC-NLPIR/FlashRAG_datasets/resolve/main"
# Number of questions by set and split, as the sets' authors and users report it; None where it is not known.
SETS: dict[str, dict[str, int | None]] = {
    "nq": {"train": 79_168, "test": 3_610},
    "triviaqa": {"train": None, "test": 11_313},
    "popqa": {"test": 14_267},
    "hotpotqa": {"train": 90_447, "dev": 7_405},
    "2wikimultihopqa": {"train": None, "dev": 12_576},
    "musique": {"train": None, "dev": 2_417},
    "bamboogle": {"test": 125},
}
CORPUS = "wiki-18.jsonl"
CORPUS_FILE = Remote(f"https://huggingface.co/datasets/PeterJinGo/wiki-18-corpus/resolve/main/{CORPUS}.gz", None, None)


@dataclass(frozen=True)
class SplitFile(Remote):
    """A file of one split, whose name alone does not tell the set."""

    file_name: str

    @property
    def name(self) -> str:
        return self.file_name


def file_of(name: str, split: str, address: str = _FLASHRAG) -> SplitFile:
    """The published file of a split."""
    return SplitFile(f"{address}/{name}/{split}.jsonl", None, None, f"{name}-{split}.jsonl")


def install(
    data: Path,
    sets: Sequence[str] = tuple(SETS),
    mirror: Path | None = None,
    address: str = _FLASHRAG,
    console: Console | None = None,
) -> None:
    """Put question sets into `data/qa`, each in one file with its splits. Existing ones stay, so it can be run again.

    `mirror` is a folder with `SET/SPLIT.jsonl` or `SET-SPLIT.jsonl`, itself or in a subfolder `qa`. Raises
    `UnknownNameError`, `DownloadError`, and `QuestionsError` for a file that has no questions.
    """
    for name in sets:
        if name not in SETS:
            raise UnknownNameError("question set", name, SETS)
    say, folder, sums = _prepare(data, mirror, console)
    for name in sets:
        target = folder / f"{name}.jsonl"
        if target.is_file():
            say(f"{target.name}: already there")
            continue
        parts = [
            _part(file_of(name, split, address), split, folder, mirror, sums, say, console) for split in SETS[name]
        ]
        with whole_file(target) as whole:
            _join(whole, name, parts, say)
        for path, _, own in parts:
            if own:
                path.unlink()
        write_sums(folder, sums)
        say(f"{target.name}: in {folder}; play it with env.questions={target.name} and an env.corpus")


def install_corpus(
    data: Path, mirror: Path | None = None, remote: Remote = CORPUS_FILE, console: Console | None = None
) -> Corpus:
    """Put the corpus into `data/qa` and index its lines. Raises `DownloadError` and `CorpusError`."""
    say, folder, sums = _prepare(data, mirror, console)
    target = folder / CORPUS
    if not target.is_file():
        packed = _part(remote, "", folder, mirror, sums, say, console)
        say(f"{CORPUS}: unpacking")
        try:
            with whole_file(target) as whole, gzip.open(packed[0], "rb") as source, whole.open("wb") as file:
                shutil.copyfileobj(source, file, 1 << 20)
        except (OSError, EOFError) as error:
            raise DownloadError(
                f"{packed[0]} cannot be unpacked: {error}; delete it and run the command again"
            ) from error
        if packed[2]:
            packed[0].unlink()
        write_sums(folder, sums)
    corpus = Corpus(target)
    say(f"{CORPUS}: {len(corpus):,} passages, corpus {corpus.content_hash[:12]}, in {folder}")
    return corpus


def _prepare(
    data: Path, mirror: Path | None, console: Console | None
) -> tuple[Callable[[str], None], Path, dict[str, str]]:
    say = partial((console or Console(markup=False)).print, highlight=False, soft_wrap=True)
    folder = data / "qa"
    folder.mkdir(parents=True, exist_ok=True)
    known = [read_sums(place / SUMS) for place in (folder, *([mirror, mirror / "qa"] if mirror else []))]
    return say, folder, {name: digest for sums in reversed(known) for name, digest in sums.items()}


def _part(
    remote: Remote,
    split: str,
    folder: Path,
    mirror: Path | None,
    sums: dict[str, str],
    say: Callable[[str], None],
    console: Console | None,
) -> tuple[Path, str, bool]:
    """The file, its split, and whether it was downloaded (and may be removed)."""
    if mirror is None:
        path = fetch(remote, folder, console or Console(markup=False))
    else:
        names = (remote.name, "/".join(remote.url.split("/")[-2:]))
        places = [place / name for place in (mirror, mirror / "qa") for name in names]
        path = next((place for place in places if place.is_file()), mirror)
        if path == mirror:
            raise DownloadError(f"no {remote.name} in {mirror}, nor {names[1]}, nor in its subfolder qa")
    verify_sum(path, sums, say, name=remote.name, remove=mirror is None)
    return path, split, mirror is None


def _join(whole: Path, name: str, parts: Sequence[tuple[Path, str, bool]], say: Callable[[str], None]) -> None:
    """Write the questions of all splits into one file."""
    with whole.open("w", encoding="utf-8") as file:
        for path, split, own in parts:
            try:
                found = read_questions(path, "")
            except QuestionsError:
                if own:
                    path.unlink()
                raise
            payloads = {task_id: payload for part in found.values() for task_id, payload in part.items()}
            official = SETS[name][split]
            missing = f" of the official {official:,} (incomplete)" if official not in (None, len(payloads)) else ""
            say(f"{name} {split}: {len(payloads):,} questions{missing}")
            for task_id, payload in payloads.items():
                row = {
                    "id": task_id, "dataset": name, "split": split, "question": payload["question"],
                    "answers": payload["answers"], "gold_titles": payload["gold"],
                }  # fmt: skip
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
