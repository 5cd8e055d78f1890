"""Reads the files of a catalogue once, and writes the files that `Catalogue` and `SearchIndex` open."""

from __future__ import annotations

import contextlib
import json
from array import array
from pathlib import Path
from typing import Any

import numpy as np

from envs.progress import reading
from envs.store import Rows, RowWriter, remove_rows, save_array, written_whole
from envs.webshop.analysis import analyze
from envs.webshop.files import CatalogueFiles
from envs.webshop.json_stream import JSONFileError, stream_list, stream_object
from envs.webshop.nouns import key_of, shipped_nouns
from envs.webshop.postings import PostingsWriter
from envs.webshop.products import Product, ProductError, document, pack, parse_product

LONGEST_ASIN = 10  # products with a longer asin are left out, as in the official code


class CatalogueError(JSONFileError):
    """JSON files that are not a catalogue. The message names the file, the product and the problem."""


def build(files: CatalogueFiles, content_hash: str, kept: Path) -> None:
    """Write into `kept`, completely or not at all. Raises `JSONFileError`."""
    meta: dict[str, Any] = {"content_hash": content_hash}
    with written_whole(kept, meta) as folder, reading(files.products, "reading the catalogue") as on_progress:
        attributes, human = _Members(files.attributes, dict, folder), _read_human(files.human)
        brought = _Members(files.nouns, list, folder) if files.nouns else None
        columns = _Columns(folder)
        postings = PostingsWriter(folder)
        for number, record in enumerate(stream_list(files.products, on_progress)):
            asin = record.get("asin") if isinstance(record, dict) else None
            if not isinstance(asin, str) or "\0" in asin:
                raise CatalogueError(files.products, f"product {number} has no asin")
            if asin == "nan" or len(asin) > LONGEST_ASIN or asin in columns.seen:
                continue
            try:
                product = parse_product(record, attributes.get(asin) or {}, human.get(asin, []))
            except ProductError as error:
                raise CatalogueError(files.products, f"product {number}, {asin}: {error}") from error
            nouns = brought.get(asin) if brought else shipped_nouns().get(key_of(product.name))
            if nouns is None and files.nouns:
                raise CatalogueError(files.nouns, f"no nouns of {asin}")
            columns.add(product, nouns)
            postings.add(analyze(document(product)))
        if not columns.seen:
            raise CatalogueError(files.products, "no product in it")
        for path, asins in ((files.attributes, attributes.asins), (files.human, human)):
            if path and asins and columns.seen.isdisjoint(asins):
                raise CatalogueError(path, f"none of its {len(asins):,} products is in {files.products.name}")
        for members in filter(None, (attributes, brought)):
            members.close()
        meta |= postings.close() | columns.close()


class _Members:
    """The members of a JSON object that is too large for memory, by name."""

    def __init__(self, path: Path, kind: type, folder: Path) -> None:
        """`kind` is the type of each member. `folder` is for temporary files."""
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
        """The member, or None."""
        number = self.asins.get(asin)
        return None if number is None else json.loads(self._rows[number])

    def close(self) -> None:
        """Remove the temporary files."""
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
    """Writes the files that `Catalogue` opens, product by product."""

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
        """Add the next product; `nouns` are those of its name, if known."""
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
        """Write the columns. Returns the other data of the catalogue."""
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
