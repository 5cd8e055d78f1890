"""The inverted index of a catalogue for BM25, as in Lucene 8.

For each term, in the order of `term_key`, it has the products with the term and, for each of them, BM25's denominator
`1 + tf / (k1 · (1 - b + b · length / average length))` as the float32 that Lucene computes. The length is that of
Lucene's norm: one byte, exact below 40 and with four significant bits above (`SmallFloat.intToByte4`).
"""

from __future__ import annotations

import contextlib
import hashlib
from array import array
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.store import RowWriter, save_array

K1, B = np.float32(0.9), np.float32(0.4)  # Anserini's
_BLOCK = 1 << 21  # postings sorted at a time


def encode(term: str) -> bytes:
    """The stored form of a term."""
    return term.encode("utf-8", "surrogatepass")


def term_key(term: bytes) -> int:
    """The lookup key of a term: 64 bits, which two terms might share."""
    return int.from_bytes(hashlib.blake2b(term, digest_size=8).digest(), "big")


class PostingsWriter:
    """Takes the terms of documents, one document at a time, and writes their index into a folder.

    Memory: the vocabulary, a few bytes per document, and a block of postings; the postings themselves are on disk.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._vocabulary: defaultdict[str, int] = defaultdict()
        self._vocabulary.default_factory = self._vocabulary.__len__  # new terms are numbered as they come
        self._forward = (folder / "forward.tmp").open("wb")  # (term, tf) of all documents, int32 each
        self._lengths = array("i")
        self._unique = array("i")  # number of different terms in each document

    def add(self, terms: Sequence[str]) -> None:
        """Add the next document."""
        counts = Counter(map(self._vocabulary.__getitem__, terms))
        array("i", chain.from_iterable(counts.items())).tofile(self._forward)
        self._lengths.append(len(terms))
        self._unique.append(len(counts))

    def close(self) -> dict[str, int]:
        """Write the index. Returns its statistics."""
        self._forward.close()
        lengths = np.frombuffer(self._lengths, dtype=np.int32) if self._lengths else np.zeros(0, np.int32)
        unique = np.frombuffer(self._unique, dtype=np.int32) if self._unique else np.zeros(0, np.int32)
        tokens, filled = int(lengths.sum(dtype=np.int64)), int(np.count_nonzero(lengths))
        ranks = self._write_terms()
        path = self._folder / "forward.tmp"
        forward = np.memmap(path, np.int32, "r").reshape(-1, 2) if path.stat().st_size else np.zeros((0, 2), np.int32)
        self._invert(forward, unique, ranks, _inverse_norms(lengths, np.float32(tokens / filled if filled else 1.0)))
        del forward
        path.unlink()
        return {"documents": filled, "tokens": tokens, "terms": len(ranks)}

    def _write_terms(self) -> NDArray[np.int32]:
        """Write the vocabulary in the order of its keys. Returns the new position of each term."""
        terms = list(self._vocabulary)
        self._vocabulary.clear()
        keys = np.fromiter((term_key(encode(term)) for term in terms), dtype=np.uint64, count=len(terms))
        order = np.argsort(keys, kind="stable")
        save_array(self._folder, "keys", keys[order])
        ranks = np.empty(len(terms), dtype=np.int32)
        ranks[order] = np.arange(len(terms), dtype=np.int32)
        with contextlib.closing(RowWriter(self._folder, "terms")) as writer:
            for number in order.tolist():
                writer.append(encode(terms[number]))
        return ranks

    def _invert(
        self,
        forward: NDArray[np.int32],  # [postings, 2]
        unique: NDArray[np.int32],  # [N]
        ranks: NDArray[np.int32],  # [terms]
        inverse_norms: NDArray[np.float32],  # [N]
    ) -> None:
        blocks = [slice(at, at + _BLOCK) for at in range(0, len(forward), _BLOCK)]
        counts = np.zeros(len(ranks), dtype=np.int64)
        for block in blocks:
            counts += np.bincount(ranks[forward[block, 0]], minlength=len(ranks))
        starts = np.concatenate([[0], np.cumsum(counts)])
        save_array(self._folder, "starts", starts)
        shape = (len(forward),)
        products = _new_array(self._folder, "products", np.int32, shape)
        denominators = _new_array(self._folder, "denominators", np.float32, shape)
        ends = np.cumsum(unique, dtype=np.int64)
        free = starts[:-1].copy()  # [terms] position of the next posting
        for block in blocks:
            term = ranks[forward[block, 0]]
            document = np.searchsorted(ends, np.arange(block.start, block.start + len(term)), side="right")
            order = np.argsort(term, kind="stable")
            term = term[order]
            new = np.bincount(term, minlength=len(ranks))
            first = np.cumsum(new) - new  # [terms] first posting in this block
            place = free[term] + np.arange(len(term)) - first[term]
            document = document[order].astype(np.int32)
            products[place] = document
            frequency = forward[block, 1][order].astype(np.float32)
            denominators[place] = np.float32(1) + frequency * inverse_norms[document]
            free += new
        for written in (products, denominators):
            if isinstance(written, np.memmap):
                written.flush()


def _new_array(folder: Path, name: str, dtype: Any, shape: tuple[int, ...]) -> NDArray[Any]:
    """A new memory-mapped array."""
    return np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype=dtype, shape=shape)


def _inverse_norms(lengths: NDArray[np.int32], average: np.float32) -> NDArray[np.float32]:
    """[N] 1 / (k1 · (1 - b + b · length / average)) of each document, in Lucene's order of operations."""
    decoded = _lossy(lengths).astype(np.float32)
    one = np.float32(1)
    return (one / (K1 * ((one - B) + B * decoded / average))).astype(np.float32)


def _lossy(lengths: NDArray[np.int32]) -> NDArray[np.int64]:
    """Lengths after the rounding of Lucene's norms."""
    rest = np.maximum(lengths.astype(np.int64) - 24, 0)
    shift = np.maximum(np.frexp(rest.astype(np.float64))[1] - 4, 0)  # bits below the leading four
    return np.where(lengths < 24, lengths, 24 + ((rest >> shift) << shift))
