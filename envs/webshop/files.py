"""The files of a catalogue, as the official WebShop names them, and a hash of what is in them."""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import dataclass
from pathlib import Path

from envs.core import UnknownNameError, cache_root
from envs.files import write_whole

SIZES = {"small": "_1000", "full": ""}  # what the official files have in their names
TITLE_NOUNS = "title_nouns.json"  # {asin: [noun, …]}, in the folder of a catalogue that brings its own
ALWAYS_HASHED = 1 << 26  # bytes; the hash of a larger file is remembered by its size and time


class CatalogueNotFoundError(FileNotFoundError):
    """A folder without the files of a catalogue; the message says which, and how to get them."""


@dataclass(frozen=True)
class CatalogueFiles:
    """The files of one catalogue."""

    products: Path
    attributes: Path  # and synthetic instructions
    human: Path | None
    nouns: Path | None

    @classmethod
    def find(cls, folder: Path, size: str | None = None) -> CatalogueFiles:
        """Those in a folder; `size`, one of `SIZES`, says which where there are several.

        Raises `CatalogueNotFoundError` and `UnknownNameError`.
        """
        if size is not None and size not in SIZES:
            raise UnknownNameError("size", size, SIZES)
        found = sorted(folder.glob(f"items_shuffle{'*' if size is None else SIZES[size]}.json"))
        if not found:
            which = f" {size}" if size else ""
            raise CatalogueNotFoundError(
                f"no{which} catalogue in {folder}: expected items_shuffle{SIZES.get(size or '', '*')}.json; "
                f"`python -m scripts.download webshop` fetches the official ones"
            )
        if len(found) > 1:
            names = ", ".join(path.name for path in found)
            raise CatalogueNotFoundError(f"several catalogues in {folder} ({names}): say which, one of {sorted(SIZES)}")
        suffix = found[0].stem.removeprefix("items_shuffle")
        attributes = folder / f"items_ins_v2{suffix}.json"
        if not attributes.is_file():
            raise CatalogueNotFoundError(f"no {attributes.name} beside {found[0]}: it has the products' attributes")
        human = [folder / f"items_human_ins{s}.json" for s in (suffix, "")]
        nouns = folder / TITLE_NOUNS
        return cls(
            found[0],
            attributes,
            next((path for path in human if path.is_file()), None),
            nouns if nouns.is_file() else None,
        )

    def content_hash(self) -> str:
        """Hex sha256 over the content of all files."""
        digest = hashlib.sha256()
        for path in (self.products, self.attributes, self.human, self.nouns):
            digest.update(_hash_file(path) if path else b"-")
        return digest.hexdigest()


def _hash_file(path: Path) -> bytes:
    """Of its content; that of a large file is remembered as long as the file looks the same."""
    state = path.stat()
    note = None
    if state.st_size > ALWAYS_HASHED:
        looks = f"{path.resolve()}\0{state.st_size}\0{state.st_mtime_ns}".encode("utf-8", "surrogateescape")
        note = cache_root() / "webshop" / "hashes" / hashlib.sha256(looks).hexdigest()[:32]
        with contextlib.suppress(FileNotFoundError):
            return bytes.fromhex(note.read_text())
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").digest()
    if note:
        write_whole(note, found.hex())
    return found
