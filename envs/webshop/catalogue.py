"""The catalogue of a shop: products by number, from the official files, in bounded memory.

    catalogue = load_catalogue(data_root() / "webshop")     # items_shuffle*.json, items_ins_v2*.json, …
    product = catalogue.product(catalogue.index("B06Y3VLDFB"))

The files are read once. Their content and the search index are cached below `cache_root()/webshop` under the hash of
the files: columns and rows that are mapped into memory, so a million products start as quickly as a thousand. Products,
prices and options are read as in `load_products` of https://github.com/princeton-nlp/WebShop.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.checksums import found_whole
from envs.core import UnknownNameError, cache_root
from envs.store import Rows, load_array, read_meta
from envs.webshop import analysis
from envs.webshop.build import LONGEST_ASIN, build
from envs.webshop.build import CatalogueError as CatalogueError
from envs.webshop.files import SIZES as SIZES
from envs.webshop.files import CatalogueFiles as CatalogueFiles
from envs.webshop.files import CatalogueNotFoundError as CatalogueNotFoundError
from envs.webshop.json_stream import JSONFileError as JSONFileError
from envs.webshop.nouns import NounsNotFoundError, open_nouns
from envs.webshop.products import HumanInstruction as HumanInstruction
from envs.webshop.products import Product as Product
from envs.webshop.products import document as document
from envs.webshop.products import unpack

VERSION = 2  # of the cached files


class Catalogue:
    """Products by number, in the order of the file."""

    def __init__(self, folder: Path) -> None:
        """Open the cached files in `folder`. Raises `DamagedError`."""
        meta = read_meta(folder)
        self.folder = folder
        self.content_hash: str = meta["content_hash"]
        self.asins: Sequence[str] = _Strings(load_array(folder, "asins"))
        self.prices = load_array(folder, "prices")  # [N, 2] float64; the second is NaN if there is only one
        self.instructed = load_array(folder, "instructed")  # [N] bool: has a synthetic instruction
        self.human_instructed = load_array(folder, "human_instructed")  # [N] bool
        self.asin_ranks = load_array(folder, "asin_ranks")  # [N] int32: the rank of each asin in sorted order
        self._sorted_asins = load_array(folder, "sorted_asins")
        self._by_rank = load_array(folder, "by_rank")
        self._groups = {name: load_array(folder, name) for name in ("category", "query")}  # [N] int32
        self._group_names: dict[str, list[str]] = {name: meta[name] for name in self._groups}
        self._records = Rows(folder, "records")
        self._nouns: Rows | None = None
        if (folder / "nouns.bin").is_file():
            self._nouns = Rows(folder, "nouns")
        elif found := open_nouns(self.content_hash):
            self._nouns = found
        self.product = lru_cache(maxsize=4096)(self._product)

    def __len__(self) -> int:
        return len(self._records)

    def _product(self, index: int) -> Product:
        """The product; the last few thousand are cached. Raises `IndexError`."""
        return unpack(self._records[index])

    def index(self, asin: str) -> int:
        """The number of a product. Raises `UnknownNameError`."""
        if len(asin) <= LONGEST_ASIN:
            rank = int(np.searchsorted(self._sorted_asins, np.array(asin, dtype=self._sorted_asins.dtype)))
            if rank < len(self) and self._sorted_asins[rank] == asin:
                return int(self._by_rank[rank])
        place = int(np.searchsorted(self._sorted_asins, asin[:LONGEST_ASIN]))
        near = self._sorted_asins[max(0, place - 3) : place + 3].tolist()
        raise UnknownNameError("product", asin, near, f"these are its neighbours; the catalogue has {len(self):,}")

    def nouns(self, index: int) -> tuple[str, ...]:
        """The nouns of a product's name, in order, with duplicates. Raises `NounsNotFoundError`."""
        if self._nouns is None:
            raise NounsNotFoundError(self.content_hash)
        return tuple(json.loads(self._nouns[index]))

    @property
    def has_nouns(self) -> bool:
        """Whether the nouns of the names are known: shipped, part of the catalogue, or found by the tagger."""
        return self._nouns is not None

    def of_category(self, category: str) -> list[int]:
        """The products of a category, in order."""
        return self._of("category", category)

    def of_query(self, query: str) -> list[int]:
        """The products of a query, in order."""
        return self._of("query", query)

    def _of(self, group: str, name: str) -> list[int]:
        names = self._group_names[group]
        found: list[int] = np.flatnonzero(self._groups[group] == names.index(name)).tolist() if name in names else []
        return found


class _Strings(Sequence[str]):
    """A column of strings as strings."""

    def __init__(self, column: NDArray[np.str_]) -> None:
        self._column = column

    def __len__(self) -> int:
        return len(self._column)

    def __getitem__(self, index: Any) -> Any:
        found = self._column[index]
        return str(found) if isinstance(found, str) else found.tolist()


def load_catalogue(folder: Path, size: str | None = None) -> Catalogue:
    """The catalogue in a folder with the official files; `size` is "small" or "full" if the folder has both.

    The first call reads the whole files and caches the content; later calls open the cache. Raises
    `CatalogueNotFoundError`, and `CatalogueError` for files that are not a catalogue.
    """
    files = CatalogueFiles.find(folder, size)
    content_hash = files.content_hash()
    kept = cache_root() / "webshop" / f"{content_hash[:16]}-{VERSION}.{analysis.VERSION}"
    if not found_whole(kept, "the cached catalogue"):
        build(files, content_hash, kept)
    return Catalogue(kept)
