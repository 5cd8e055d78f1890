"""The search of the shop: BM25 over names, descriptions, first bullets and options, with Lucene's ranking.

    index = open_index(catalogue)
    index.search("wooden console table")        # numbers of at most 50 products, best first

A query is a bag of words: there are no operators, and a repeated word counts repeatedly. Scores are computed as in
Lucene 8's `BM25Similarity` (float32 for each word, their sum in float64, rounded to float32), so the same products have
exactly equal scores. Ties are broken by asin, as in Anserini's searcher.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from envs.store import Rows, load_array, read_meta
from envs.webshop.analysis import analyze
from envs.webshop.catalogue import Catalogue
from envs.webshop.postings import encode, term_key

HITS = 50  # number of results that the shop requests
_WORTHWHILE = 1 << 17  # postings; with fewer, pruning costs more than it saves
_ALMOST = 1 - 1e-6  # scores this close could be equal after rounding


@dataclass(frozen=True, slots=True, eq=False)
class _Term:
    """A term of a query."""

    products: NDArray[np.int32]  # the products with the term, in order
    denominators: NDArray[np.float32]
    weight: np.float32  # upper bound of what it adds to a score

    @property
    def scores(self) -> NDArray[np.float32]:
        """[products] the scores, in the order of Lucene's operations."""
        return self.weight - self.weight / self.denominators


class SearchIndex:
    """BM25 over a catalogue."""

    def __init__(self, catalogue: Catalogue) -> None:
        """Open the index in the catalogue's cache. Raises `DamagedError`."""
        folder = catalogue.folder
        self._documents: int = read_meta(folder)["documents"]  # number with at least one term
        self._ranks = catalogue.asin_ranks
        self._keys = load_array(folder, "keys")  # [terms] uint64, sorted: `term_key` of each
        self._terms = Rows(folder, "terms")
        self._starts = load_array(folder, "starts")  # [terms + 1]: start of each term's postings
        self._products = load_array(folder, "products")  # [postings] int32
        self._denominators = load_array(folder, "denominators")  # [postings] float32
        self._known = lru_cache(maxsize=1 << 14)(self._postings)

    def search(self, words: Sequence[str] | str, k: int = HITS) -> list[int]:
        """The indices of the best `k` products, best first. Several words are joined by spaces."""
        return self._rank(_join(words), k)[0]

    def scored(self, words: Sequence[str] | str, k: int = HITS) -> list[tuple[int, float]]:
        """Like `search`, with the scores that Anserini reports: rounded to four places, and ties separated by 1e-6."""
        products, scores = self._rank(_join(words), k)
        return list(zip(products, _set_apart(scores), strict=True))

    def _rank(self, query: str, k: int) -> tuple[list[int], list[float]]:
        counts = Counter(analyze(query))
        terms = [
            _Term(products, denominators, np.float32(counts[term]) * idf)
            for term in counts
            if (found := self._known(term)) is not None
            for products, denominators, idf in [found]
        ]
        candidates, exact = self._score(sorted(terms, key=lambda term: len(term.products)), k)
        scores = exact.astype(np.float32)
        if len(candidates) > k:
            least = np.partition(scores, -k)[-k]
            best = np.flatnonzero(scores >= least)  # includes all ties with the last one
            candidates, scores = candidates[best], scores[best]
        order = np.lexsort((self._ranks[candidates], -scores))[:k]
        return candidates[order].tolist(), scores[order].tolist()

    def _score(self, terms: Sequence[_Term], k: int) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
        """A set of products that contains the best `k`, and their scores. Rarest terms come first.

        Once the remaining terms cannot lift another product into the best `k` (MaxScore; Turtle and Flood 1995), they
        are looked up only for products that still can be among them.
        """
        total = np.zeros(len(self._ranks))
        open_weight, open_postings = float(sum(t.weight for t in terms)), sum(len(t.products) for t in terms)
        for number, term in enumerate(terms, 1):
            total[term.products] += term.scores
            open_weight -= float(term.weight)
            open_postings -= len(term.products)
            if open_postings > _WORTHWHILE:
                candidates = np.flatnonzero(total).astype(np.int32)
                scores = total[candidates]
                least = _ALMOST * np.partition(scores, -k)[-k] if len(candidates) > k else 0.0
                if least > open_weight:
                    possible = scores + open_weight >= least
                    return candidates[possible], _add(candidates[possible], scores[possible], terms[number:])
        candidates = np.flatnonzero(total).astype(np.int32)
        return candidates, total[candidates]

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


def _add(products: NDArray[np.int32], scores: NDArray[np.float64], terms: Sequence[_Term]) -> NDArray[np.float64]:
    """Add the scores of further terms to the scores of these products, which are in order."""
    for term in terms:
        place = np.minimum(np.searchsorted(term.products, products), len(term.products) - 1)
        has = term.products[place] == products
        found = term.weight - term.weight / term.denominators[place[has]]
        scores[has] += found
    return scores


def open_index(catalogue: Catalogue) -> SearchIndex:
    """The search index of a catalogue, stored in the same cache."""
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
