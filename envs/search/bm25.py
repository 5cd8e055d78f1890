"""BM25 with Lucene's formula, through bm25s (Lù 2024, arXiv 2407.03618) and the Porter2 stemmer of PyStemmer.

Scores equal those of bm25s; results keep the contract of `envs.search.retrieval`, which those of bm25s do not: it fills
up with passages of score 0 and orders ties differently from backend to backend. The index is built once, with the
tokens in the order of their first occurrence, so that the same corpus gives the same bytes; then it is memory-mapped.
With numba installed, large corpora are scored by compiled code.
"""

from __future__ import annotations

import logging
import re
from array import array
from functools import lru_cache
from importlib.util import find_spec

import bm25s
import numpy as np
import Stemmer
from bm25s.stopwords import STOPWORDS_EN
from numpy.typing import NDArray

from envs.checksums import found_whole
from envs.progress import reading
from envs.search.corpus import Corpus
from envs.search.retrieval import ScoringRetriever, index_hash
from envs.store import written_whole

FORMAT = 1  # raise it when the same corpus would give another index
MOST_WORDS = 1000  # of a query; the others do not count
WORTH_COMPILING = 50_000  # passages; with fewer, numba's compiler takes longer than it saves
_WORDS = re.compile(r"(?u)\b\w\w+\b")
_STOP_WORDS = frozenset(STOPWORDS_EN)
_stem = Stemmer.Stemmer("english").stemWord
logging.getLogger("bm25s").setLevel(logging.WARNING)  # it sets DEBUG when it is imported


def words_of(text: str) -> list[str]:
    """The words that count, before stemming: two characters or more, in lower case, without stop words."""
    return [word for word in _WORDS.findall(text.lower()) if word not in _STOP_WORDS]


def tokenize(text: str) -> list[str]:
    """The tokens of a text, equal to `bm25s.tokenize(text, stopwords="en", stemmer=Stemmer.Stemmer("english"))`."""
    return [_stem(word) for word in words_of(text)]


class BM25Retriever(ScoringRetriever):
    """BM25 over a corpus. `backend` is "numba" or "numpy"; both give the same results."""

    name = "bm25"

    def __init__(self, corpus: Corpus, k1: float = 0.9, b: float = 0.4) -> None:
        """Open the cached index, or build it."""
        self.corpus = corpus
        self.index_hash = index_hash(
            {"corpus": corpus.content_hash, "bm25s": bm25s.__version__, "stemmer": "english", "k1": k1, "b": b,
             "format": FORMAT}
        )  # fmt: skip
        folder = corpus.folder / f"bm25-{self.index_hash[:16]}"
        if not found_whole(folder, f"the BM25 index of {corpus.path}"):
            with written_whole(folder, {"index": self.index_hash}) as whole:
                _build(corpus, k1, b).save(whole, show_progress=False)
        self._index = bm25s.BM25.load(folder, mmap=True, show_progress=False)
        arrays = self._index.scores  # memory-mapped: as plain arrays they are sliced faster
        arrays |= {name: np.asarray(array) for name, array in arrays.items() if isinstance(array, np.memmap)}
        self._known = lru_cache(1 << 16)(self._token)
        self.backend = "numba" if find_spec("numba") and len(corpus) >= WORTH_COMPILING else "numpy"
        if self.backend == "numba":
            self._index.activate_numba_scorer()

    def scores(self, query: str) -> NDArray[np.float32]:
        """[passages] the scores of one query: sums over its known tokens, in their order; repeated ones count again."""
        tokens = [token for word in words_of(query)[:MOST_WORDS] if (token := self._known(word)) is not None]
        found: NDArray[np.float32] = self._index.get_scores_from_ids(tokens)
        return found

    def _token(self, word: str) -> int | None:
        token: int | None = self._index.vocab_dict.get(_stem(word))
        return token


def _build(corpus: Corpus, k1: float, b: float) -> bm25s.BM25:
    vocabulary: dict[str, int] = {}
    tokens: dict[str, int] = {}  # by word, as stemming is slow; -1 for stop words
    documents = []
    with reading(corpus.path, "building the BM25 index") as on_progress:
        for passage in corpus.each(on_progress):
            document = array("i")
            for word in _WORDS.findall(passage.contents.lower()):
                token = tokens.get(word)
                if token is None:
                    stop = word in _STOP_WORDS
                    token = tokens[word] = -1 if stop else vocabulary.setdefault(_stem(word), len(vocabulary))
                if token >= 0:
                    document.append(token)
            documents.append(document)
    index = bm25s.BM25(k1=k1, b=b, method="lucene")
    index.index((documents, vocabulary or {"": 0}), show_progress=False)  # bm25s cannot do without a word
    return index
