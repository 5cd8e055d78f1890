"""Stub of the search: BM25 over the analysed documents, in memory."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from envs.webshop.analysis import analyze
from envs.webshop.catalogue import Catalogue, document


class SearchIndex:
    """BM25 over a catalogue."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._postings: defaultdict[str, dict[int, int]] = defaultdict(dict)
        self._lengths = np.zeros(len(catalogue))
        for i in range(len(catalogue)):
            terms = Counter(analyze(document(catalogue.product(i))))
            self._lengths[i] = sum(terms.values())
            for term, count in terms.items():
                self._postings[term][i] = count

    def search(self, words: Sequence[str] | str, k: int = 50) -> list[int]:
        """Indices of the best `k` products, best first. `words` are joined by a space."""
        return [i for i, _ in self.scored(words, k)]

    def scored(self, words: Sequence[str] | str, k: int = 50) -> list[tuple[int, float]]:
        """As `search`, with the scores that the official engine reports."""
        query = words if isinstance(words, str) else " ".join(words)
        n, average = len(self._lengths), self._lengths.mean()
        scores: defaultdict[int, float] = defaultdict(float)
        for term, times in Counter(analyze(query)).items():
            found = self._postings.get(term, {})
            idf = np.log(1 + (n - len(found) + 0.5) / (len(found) + 0.5))
            for i, tf in found.items():
                norm = 0.9 * (0.6 + 0.4 * self._lengths[i] / average)
                scores[i] += times * idf * tf / (tf + norm)
        return sorted(((i, float(s)) for i, s in scores.items()), key=lambda x: -x[1])[:k]


def open_index(catalogue: Catalogue) -> SearchIndex:
    """The search index of a catalogue."""
    return SearchIndex(catalogue)
