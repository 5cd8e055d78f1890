"""The catalogue of a shop: products by number, from the official files, in bounded memory.

    catalogue = load_catalogue(data_root() / "webshop")     # items_shuffle*.json, items_ins_v2*.json, …
    product = catalogue.product(catalogue.index("B06Y3VLDFB"))

The files are read once and kept, with the index of the search, below `cache_root()/webshop` under the hash of their
content: columns and rows that are mapped into memory, so that a million products start as quickly as a thousand. What
is a product, and how prices and options read, is as in `load_products` of https://github.com/princeton-nlp/WebShop.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from envs.core import UnknownNameError, cache_root
from envs.webshop import analysis
from envs.webshop.json_stream import JSONFileError as JSONFileError
from envs.webshop.json_stream import stream_list, stream_object
from envs.webshop.nouns import NounsNotFoundError, key_of, nouns_folder, shipped_nouns
from envs.webshop.postings import PostingsWriter
from envs.webshop.products import HumanInstruction as HumanInstruction
from envs.webshop.products import Product as Product
from envs.webshop.products import ProductError, pack, parse_product, unpack
from envs.webshop.products import document as document
from envs.webshop.store import (
    DamagedStoreError,
    Rows,
    RowWriter,
    load_array,
    read_meta,
    remove,
    remove_rows,
    save_array,
    written_whole,
)

VERSION = 2  # of what is kept
SIZES = {"small": "_1000", "full": ""}  # what the official files have in their names
TITLE_NOUNS = "title_nouns.json"  # {asin: [noun, …]}, in the folder of a catalogue that brings its own
_LONGEST_ASIN = 10  # products with a longer one are left out, as officially
_ALWAYS_HASHED = 1 << 26  # bytes; the hash of a larger file is remembered by its size and time
_log = logging.getLogger(__name__)


class CatalogueNotFoundError(FileNotFoundError):
    """A folder without the files of a catalogue; the message says which, and how to get them."""


class CatalogueError(JSONFileError):
    """JSON files that are no catalogue. The message names the file, the product and what is wrong with it."""


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


class Catalogue:
    """Products by number, in the order of the file."""

    def __init__(self, folder: Path) -> None:
        """Open what was kept in `folder`. Raises `DamagedStoreError`."""
        meta = read_meta(folder)
        self.folder = folder
        self.content_hash: str = meta["content_hash"]
        self.asins: Sequence[str] = _Strings(load_array(folder, "asins"))
        self.prices = load_array(folder, "prices")  # [N, 2] float64; the second is NaN where there is one only
        self.instructed = load_array(folder, "instructed")  # [N] bool: has a synthetic instruction
        self.human_instructed = load_array(folder, "human_instructed")  # [N] bool
        self.asin_ranks = load_array(folder, "asin_ranks")  # [N] int32: the place of each asin in their order
        self._sorted_asins = load_array(folder, "sorted_asins")
        self._by_rank = load_array(folder, "by_rank")
        self._groups = {name: load_array(folder, name) for name in ("category", "query")}  # [N] int32
        self._group_names: dict[str, list[str]] = {name: meta[name] for name in self._groups}
        self._records = Rows(folder, "records")
        self._nouns: Rows | None = None
        for place in (folder, nouns_folder(self.content_hash)):
            if (place / "nouns.bin").is_file():
                self._nouns = Rows(place, "nouns")
                break
        self.product = lru_cache(maxsize=4096)(self._product)

    def __len__(self) -> int:
        return len(self._records)

    def _product(self, index: int) -> Product:
        """The product; built when asked for, and the last few thousand kept. Raises `IndexError`."""
        return unpack(self._records[index])

    def index(self, asin: str) -> int:
        """The number of a product. Raises `UnknownNameError`."""
        if len(asin) <= _LONGEST_ASIN:
            rank = int(np.searchsorted(self._sorted_asins, np.array(asin, dtype=self._sorted_asins.dtype)))
            if rank < len(self) and self._sorted_asins[rank] == asin:
                return int(self._by_rank[rank])
        near = self._sorted_asins[max(0, (near := int(np.searchsorted(self._sorted_asins, asin[:1]))) - 3) : near + 3]
        raise UnknownNameError("product", asin, map(str, near), f"the catalogue has {len(self):,}")

    def nouns(self, index: int) -> tuple[str, ...]:
        """The nouns of a product's name, in order, duplicates kept. Raises `NounsNotFoundError`."""
        if self._nouns is None:
            raise NounsNotFoundError(self.content_hash)
        return tuple(json.loads(self._nouns[index]))

    @property
    def has_nouns(self) -> bool:
        """Whether the nouns of the names are known: shipped, brought by the catalogue, or found by the tagger."""
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
    """The catalogue in a folder with the official files; `size` is "small" or "full" where it holds both.

    The first time the files are read whole and what is needed of them is kept; afterwards that is opened.
    Raises `CatalogueNotFoundError`, and `CatalogueError` for files that are no catalogue.
    """
    files = CatalogueFiles.find(folder, size)
    content_hash = files.content_hash()
    kept = cache_root() / "webshop" / f"{content_hash[:16]}-{VERSION}.{analysis.VERSION}"
    if kept.is_dir():
        try:
            return Catalogue(kept)
        except DamagedStoreError as error:
            _log.warning("what was kept of the catalogue is damaged (%s) and will be made again", error)
            remove(kept)
    with _progress(files.products) as on_progress:
        _build(files, content_hash, kept, on_progress)
    return Catalogue(kept)


def _hash_file(path: Path) -> bytes:
    """Of its content; that of a large file is remembered as long as the file looks the same."""
    state = path.stat()
    note = None
    if state.st_size > _ALWAYS_HASHED:
        looks = f"{path.resolve()}\0{state.st_size}\0{state.st_mtime_ns}".encode("utf-8", "surrogateescape")
        note = cache_root() / "webshop" / "hashes" / hashlib.sha256(looks).hexdigest()[:32]
        with contextlib.suppress(FileNotFoundError):
            return bytes.fromhex(note.read_text())
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").digest()
    if note:
        note.parent.mkdir(parents=True, exist_ok=True)
        partial = note.with_name(f".{note.name}.{os.getpid()}")
        partial.write_text(found.hex())
        partial.replace(note)
    return found


@contextlib.contextmanager
def _progress(path: Path) -> Iterator[Callable[[int], None] | None]:
    """What shows how much of a large file has been read."""
    size = path.stat().st_size
    if size < _ALWAYS_HASHED:
        yield None
        return
    columns = (TextColumn("reading the catalogue, once"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task("", total=size)
        yield lambda done: progress.update(bar, completed=done)


# -- the first time ---------------------------------------------------------------------------------------------------
def _build(files: CatalogueFiles, content_hash: str, kept: Path, on_progress: Callable[[int], None] | None) -> None:
    """Read the files and write what `Catalogue` and `SearchIndex` open. Raises `JSONFileError`."""
    meta: dict[str, Any] = {"content_hash": content_hash}
    with written_whole(kept, meta) as folder:
        attributes, human = _Members(files.attributes, dict, folder), _read_human(files.human)
        brought = _Members(files.nouns, list, folder) if files.nouns else None
        columns = _Columns(folder)
        postings = PostingsWriter(folder)
        for number, record in enumerate(stream_list(files.products, on_progress)):
            asin = record.get("asin") if isinstance(record, dict) else None
            if not isinstance(asin, str) or "\0" in asin:
                raise CatalogueError(files.products, f"product {number} has no asin")
            if asin == "nan" or len(asin) > _LONGEST_ASIN or asin in columns.seen:
                continue
            try:
                product = parse_product(record, attributes.get(asin) or {}, human.get(asin, []))
            except ProductError as error:
                raise CatalogueError(files.products, f"product {number}, {asin}: {error}") from error
            nouns = brought.get(asin) if brought else shipped_nouns().get(key_of(product.name))
            if nouns is None and files.nouns:
                raise CatalogueError(files.nouns, f"no nouns of {asin}")
            columns.add(product, nouns)
            postings.add(analysis.analyze(document(product)))
        if not columns.seen:
            raise CatalogueError(files.products, "no product in it")
        for path, asins in ((files.attributes, attributes.asins), (files.human, human)):
            if path and asins and columns.seen.isdisjoint(asins):
                raise CatalogueError(path, f"none of its {len(asins):,} products is in {files.products.name}")
        for members in filter(None, (attributes, brought)):
            members.close()
        meta |= postings.close() | columns.close()


class _Members:
    """The members of a JSON object too large to have in memory, by name."""

    def __init__(self, path: Path, kind: type, folder: Path) -> None:
        """`kind` is what each member must be. `folder` is for what has to be written meanwhile."""
        self._folder, self._name = folder, path.stem
        self.asins: dict[str, int] = {}
        with contextlib.closing(RowWriter(folder, self._name)) as writer:
            for number, (asin, member) in enumerate(stream_object(path)):
                if not isinstance(member, kind):
                    raise CatalogueError(path, f"{asin} is {member!r:.60}, expected a {kind.__name__}")
                self.asins[asin] = number
                writer.append(json.dumps(member).encode())
        self._rows = Rows(folder, self._name)

    def get(self, asin: str) -> Any:
        """The member; None where there is none."""
        number = self.asins.get(asin)
        return None if number is None else json.loads(self._rows[number])

    def close(self) -> None:
        """Remove what was written."""
        remove_rows(self._folder, self._name)


def _read_human(path: Path | None) -> dict[str, list[Any]]:
    if not path:
        return {}
    human = dict(stream_object(path))
    for asin, entries in human.items():
        if not isinstance(entries, list):
            raise CatalogueError(path, f"{asin} has {entries!r:.60}, expected a list of instructions")
    return human


class _Columns:
    """Writes what `Catalogue` opens, one product after the other."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.seen: set[str] = set()
        self._asins: list[str] = []
        self._prices = array("d")
        self._flags = array("B")  # 1 synthetic, 2 human
        self._groups = {"category": array("i"), "query": array("i")}
        self._group_numbers: dict[str, dict[str, int]] = {name: {} for name in self._groups}
        self._records, self._nouns = RowWriter(folder, "records"), RowWriter(folder, "nouns")
        self._all_nouns = True

    def add(self, product: Product, nouns: list[str] | None) -> None:
        """The next product; the nouns of its name where they are known."""
        self.seen.add(product.asin)
        self._asins.append(product.asin)
        self._prices.extend((*product.prices, float("nan"))[:2])
        self._flags.append((product.instruction is not None) + 2 * bool(product.human))
        for name, column in self._groups.items():
            numbers = self._group_numbers[name]
            column.append(numbers.setdefault(getattr(product, name), len(numbers)))
        self._records.append(pack(product))
        self._all_nouns &= nouns is not None
        self._nouns.append(json.dumps(nouns).encode())

    def close(self) -> dict[str, Any]:
        """Write the columns. Returns what stands beside them."""
        self._records.close()
        self._nouns.close()
        if not self._all_nouns:
            remove_rows(self._folder, "nouns")
        asins = np.array(self._asins)
        by_rank = np.argsort(asins, kind="stable").astype(np.int32)
        ranks = np.empty_like(by_rank)
        ranks[by_rank] = np.arange(len(asins), dtype=np.int32)
        flags = np.frombuffer(self._flags, dtype=np.uint8)
        columns = {
            "asins": asins,
            "sorted_asins": asins[by_rank],
            "by_rank": by_rank,
            "asin_ranks": ranks,
            "prices": np.frombuffer(self._prices).reshape(-1, 2),
            "instructed": (flags & 1).astype(bool),
            "human_instructed": (flags & 2).astype(bool),
            **{name: np.frombuffer(column, dtype=np.int32) for name, column in self._groups.items()},
        }
        for name, column in columns.items():
            save_array(self._folder, name, column)
        return {name: list(numbers) for name, numbers in self._group_numbers.items()}
