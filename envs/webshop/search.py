"""The search of the shop: BM25 over names, descriptions, first bullets and options, with Lucene's ranks.

    index = open_index(catalogue)
    index.search("wooden console table")        # numbers of at most 50 products, best first

A query is a bag of words: no operators, and a repeated word weighs as often as it is there. Scores are computed as
Lucene 8's `BM25Similarity` does (float32 for each word, their sum in float64, rounded to float32), so that exact ties
are the same ones; they are broken by asin, as Anserini's searcher does.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from envs.webshop.analysis import analyze
from envs.webshop.catalogue import Catalogue
from envs.webshop.postings import encode, term_key
from envs.webshop.store import Rows, load_array, read_meta

HITS = 50  # what the shop asks for


class SearchIndex:
    """BM25 over a catalogue."""

    def __init__(self, catalogue: Catalogue) -> None:
        """Open the index that was kept with the catalogue. Raises `DamagedStoreError`."""
        folder = catalogue.folder
        self._documents: int = read_meta(folder)["documents"]  # that have any term
        self._ranks = catalogue.asin_ranks
        self._keys = load_array(folder, "keys")  # [terms] uint64, sorted: `term_key` of each
        self._terms = Rows(folder, "terms")
        self._starts = load_array(folder, "starts")  # [terms + 1]: where the postings of each begin
        self._products = load_array(folder, "products")  # [postings] int32
        self._denominators = load_array(folder, "denominators")  # [postings] float32
        self._known = lru_cache(maxsize=1 << 14)(self._postings)

    def search(self, words: Sequence[str] | str, k: int = HITS) -> list[int]:
        """Numbers of the best `k` products, best first. Several words are joined by spaces."""
        return self._rank(_join(words), k)[0]

    def scored(self, words: Sequence[str] | str, k: int = HITS) -> list[tuple[int, float]]:
        """As `search`, with the scores as Anserini reports them: to four places, and ties set apart by 1e-6."""
        products, scores = self._rank(_join(words), k)
        return list(zip(products, _set_apart(scores), strict=True))

    def _rank(self, query: str, k: int) -> tuple[list[int], list[float]]:
        total = np.zeros(len(self._ranks))
        for term, times in Counter(analyze(query)).items():
            found = self._known(term)
            if found is None:
                continue
            products, denominators, idf = found
            weight = np.float32(times) * idf  # float32 throughout, in the order of Lucene's operations
            total[products] += weight - weight / denominators
        candidates = np.flatnonzero(total)
        scores = total[candidates].astype(np.float32)
        if len(candidates) > k:
            least = np.partition(scores, -k)[-k]
            best = np.flatnonzero(scores >= least)  # with all that tie with the last one
            candidates, scores = candidates[best], scores[best]
        order = np.lexsort((self._ranks[candidates], -scores))[:k]
        return candidates[order].tolist(), scores[order].tolist()

    def _postings(self, term: str) -> tuple[NDArray[np.int32], NDArray[np.float32], np.float32] | None:
        """The products that have a term, their denominators, and its inverse document frequency."""
        encoded = encode(term)
        key = np.uint64(term_key(encoded))
        for number in range(int(np.searchsorted(self._keys, key)), len(self._keys)):
            if self._keys[number] != key:
                break
            if self._terms[number] == encoded:
                start, end = self._starts[number : number + 2].tolist()
                idf = math.log(1 + (self._documents - (end - start) + 0.5) / (end - start + 0.5))
                return self._products[start:end], self._denominators[start:end], np.float32(idf)
        return None


def open_index(catalogue: Catalogue) -> SearchIndex:
    """The search of a catalogue, which is kept with it."""
    return SearchIndex(catalogue)


def _join(words: Sequence[str] | str) -> str:
    return words if isinstance(words, str) else " ".join(words)


def _set_apart(scores: Sequence[float]) -> list[float]:
    adjusted: list[float] = []
    ties = 0
    for score in scores:
        rounded = math.floor(score * 1e4 + 0.5) / 1e4
        if adjusted and adjusted[-1] - rounded <= 1e-4:
            ties += 1
            rounded -= 1e-6 * ties
        else:
            ties = 0
        adjusted.append(rounded)
    return adjusted
