"""The files of a catalogue, under the names of the official WebShop, and a hash of their content."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from envs.checksums import DamagedError, hash_file
from envs.core import NoDataError, UnknownNameError
from envs.sums import SUMS, read_sums

_AGAIN = "delete it, and `python -m scripts.download webshop` downloads it again"
SIZES = {"small": "_1000", "full": ""}  # suffix in the official files' names
EMBEDDED = "embedded-"  # the name of the folder of a generated catalogue begins with it
TITLE_NOUNS = "title_nouns.json"  # {asin: [noun, …]}, in the folder of a catalogue that has its own


class CatalogueNotFoundError(NoDataError):
    """A folder without the files of a catalogue. The message names them and how to get them."""


@dataclass(frozen=True)
class CatalogueFiles:
    """The files of one catalogue."""

    products: Path
    attributes: Path  # also has the synthetic instructions
    human: Path | None
    nouns: Path | None

    @classmethod
    def find(cls, folder: Path, size: str | None = None) -> CatalogueFiles:
        """The catalogue in a folder; `size`, one of `SIZES`, is needed if there are several.

        Raises `CatalogueNotFoundError` and `UnknownNameError`.
        """
        if size is not None and size not in SIZES:
            raise UnknownNameError("size", size, SIZES)
        found = sorted(folder.glob(f"items_shuffle{'*' if size is None else SIZES[size]}.json"))
        if not found:
            which = f" {size}" if size else ""
            again = (
                "a generated one is made again when a run starts or is resumed"
                if folder.name.startswith(EMBEDDED)
                else "`python -m scripts.download webshop` downloads the official ones"
            )
            raise CatalogueNotFoundError(
                f"no{which} catalogue in {folder}: expected items_shuffle{SIZES.get(size or '', '*')}.json; {again}"
            )
        if len(found) > 1:
            names = ", ".join(path.name for path in found)
            raise CatalogueNotFoundError(f"several catalogues in {folder} ({names}): choose one of {sorted(SIZES)}")
        suffix = found[0].stem.removeprefix("items_shuffle")
        attributes = folder / f"items_ins_v2{suffix}.json"
        if not attributes.is_file():
            raise CatalogueNotFoundError(f"no {attributes.name} next to {found[0]}, which needs it for attributes")
        human = [folder / f"items_human_ins{s}.json" for s in (suffix, "")]
        nouns = folder / TITLE_NOUNS
        return cls(
            found[0],
            attributes,
            next((path for path in human if path.is_file()), None),
            nouns if nouns.is_file() else None,
        )

    def content_hash(self) -> str:
        """Hex sha256 over the content of all files.

        Raises `DamagedError` for a file whose hash differs from the one in `SHA256SUMS`.
        """
        digest = hashlib.sha256()
        sums = read_sums(self.products.with_name(SUMS))
        for path in (self.products, self.attributes, self.human, self.nouns):
            found = hash_file(path) if path else b"-"
            if path and sums.get(path.name, found.hex()) != found.hex():
                raise DamagedError(f"{path} is damaged: its hash differs from the one in {SUMS}; {_AGAIN}")
            digest.update(found)
        return digest.hexdigest()
