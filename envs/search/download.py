"""Download the usual question sets and the corpus wiki-18 once, or copy them from a local mirror.

    install(data_root(), ["nq", "hotpotqa"])     # fills data_root()/qa with nq.jsonl and hotpotqa.jsonl
    install_corpus(data_root())                  # … with wiki-18.jsonl, 21 million passages

The sets are those of FlashRAG, which Search-R1, verl-agent and others use. Sizes and hashes are not published. So files
are verified against a `SHA256SUMS` file if the mirror or the data folder has one, and the number of questions is
compared with that of the published set. Every file is read completely before it is accepted.
"""

from __future__ import annotations

import gzip
import json
import shutil
import zlib
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from envs.checksums import hash_file
from envs.core import UnknownNameError
from envs.fetch import DownloadError, NamedRemote, Remote, fetch
from envs.files import whole_file
from envs.search.corpus import Corpus, CorpusError
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


def file_of(name: str, split: str, address: str = _FLASHRAG) -> NamedRemote:
    """The published file of a split. Its address names the split only, so it has a name of its own."""
    return NamedRemote(f"{address}/{name}/{split}.jsonl", None, None, f"{name}-{split}.jsonl")


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
    installer = _Installer(data, mirror, console)
    for name in sets:
        installer.install(name, address)


def install_corpus(
    data: Path, mirror: Path | None = None, remote: Remote = CORPUS_FILE, console: Console | None = None
) -> Corpus:
    """Put the corpus into `data/qa` and index its lines. Raises `DownloadError` and `CorpusError`."""
    return _Installer(data, mirror, console).install_corpus(remote)


class _Installer:
    """Gets files from the net or a mirror into one folder."""

    def __init__(self, data: Path, mirror: Path | None, console: Console | None) -> None:
        self.folder, self.mirror, self.console = data / "qa", mirror, console or Console(markup=False)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.say = partial(self.console.print, highlight=False, soft_wrap=True)
        places = [*([mirror / "qa", mirror] if mirror else []), self.folder]
        self.sums = {name: digest for place in places for name, digest in read_sums(place / SUMS).items()}

    def install(self, name: str, address: str) -> None:
        target = self.folder / f"{name}.jsonl"
        if target.is_file():
            self.say(f"{target.name}: already there")
            return
        parts = {split: self._get(file_of(name, split, address)) for split in SETS[name]}
        with whole_file(target) as whole, whole.open("w", encoding="utf-8") as file:
            for split, path in parts.items():
                file.writelines(f"{json.dumps(row, ensure_ascii=False)}\n" for row in self._read(name, split, path))
        self._accept(target, parts.values())
        self.say(f"{target.name}: in {self.folder}; play it with env.questions={target.name} and an env.corpus")

    def install_corpus(self, remote: Remote) -> Corpus:
        target = self.folder / CORPUS
        if not target.is_file():
            packed = self._get(remote)
            self.say(f"{CORPUS}: unpacking")
            try:
                with whole_file(target) as whole, gzip.open(packed, "rb") as source, whole.open("wb") as file:
                    shutil.copyfileobj(source, file, 1 << 20)
            except (gzip.BadGzipFile, EOFError, zlib.error) as error:
                raise DownloadError(f"{packed} cannot be unpacked ({error}): delete it and run this again") from error
            try:
                Corpus(target)
            except CorpusError:
                self._remove([packed])
                target.unlink()
                raise
            self._accept(target, [packed])
        corpus = Corpus(target)
        self.say(f"{CORPUS}: {len(corpus):,} passages, corpus {corpus.content_hash[:12]}, in {self.folder}")
        return corpus

    def _get(self, remote: Remote) -> Path:
        """The verified file. Raises `DownloadError`."""
        if self.mirror is None:
            path = fetch(remote, self.folder, self.console)
        else:
            names = (remote.name, "/".join(remote.url.split("/")[-2:]))
            places = [place / name for place in (self.mirror, self.mirror / "qa") for name in names]
            found = next((place for place in places if place.is_file()), None)
            if found is None:
                raise DownloadError(f"no {names[0]} in {self.mirror}, nor {names[1]}, nor in its subfolder qa")
            path = found
        verify_sum(path, self.sums, self.say, name=remote.name, remove=self.mirror is None)
        return path

    def _read(self, name: str, split: str, path: Path) -> Iterator[dict[str, Any]]:
        """The rows of a split. Raises `QuestionsError`; a downloaded file is then removed."""
        try:
            found = read_questions(path, "")
        except QuestionsError:
            self._remove([path])
            raise
        payloads = {task_id: payload for tasks in found.values() for task_id, payload in tasks.items()}
        official = SETS[name][split]
        missing = f" of the official {official:,} (incomplete)" if official not in (None, len(payloads)) else ""
        self.say(f"{name} {split}: {len(payloads):,} questions{missing}")
        for task_id, payload in payloads.items():
            yield {
                "id": task_id, "dataset": name, "split": split, "question": payload["question"],
                "answers": payload["answers"], "gold_titles": payload["gold"],
            }  # fmt: skip

    def _accept(self, target: Path, used: Iterable[Path]) -> None:
        """Note the hash of a new file, and remove what it was made from."""
        self._remove(used)
        self.sums[target.name] = hash_file(target).hex()
        write_sums(self.folder, self.sums)

    def _remove(self, paths: Iterable[Path]) -> None:
        for path in paths:
            if self.mirror is None:
                path.unlink()
