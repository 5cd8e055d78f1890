"""The retrieval server: both formats, limits, and clients that misbehave while others search."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from benchmarks.search import load_server
from envs.search.bm25 import BM25Retriever
from envs.search.corpus import Corpus
from envs.search.remote import RemoteRetriever
from envs.search.retrieval import Hit, RetrievalError
from envs.search.server import Limits, make_app
from scripts.serve import main

WORDS = [f"word{number}" for number in range(50)]
LIMITS = Limits(default_k=2, most_k=5, most_queries=200, most_passages=800, most_bytes=10_000, deadline=2.0)


class Served:
    """A server in a thread of this process."""

    def __init__(self, retriever: Any, limits: Limits) -> None:
        self.retriever = retriever
        config = uvicorn.Config(make_app(retriever, limits), host="127.0.0.1", port=0, log_level="error")
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        while not self.server.started:
            assert self.thread.is_alive(), "the server has ended"
            time.sleep(0.01)
        self.port = self.server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/retrieve"

    def post(self, body: Any) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        with suppress(BrokenPipeError, ConnectionResetError):  # it answers before it has read all of a large body
            connection.request("POST", "/retrieve", raw)
        response = connection.getresponse()
        reply = json.loads(response.read())
        connection.close()
        return response.status, reply

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(20)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POLYTURN_CACHE", str(tmp_path_factory.mktemp("cache")))
        path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
        rows = [{"title": word, "text": f"{word} {' '.join(WORDS[i % 7 :: 7])}"} for i, word in enumerate(WORDS)]
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        server = Served(BM25Retriever(Corpus(path)), LIMITS)
    yield server
    server.stop()


def titles(reply: Any) -> list[list[str]]:
    return [[entry["document"]["title"] for entry in entries] for entries in reply["result"]]


def test_both_formats_are_answered_at_one_address(served: Served) -> None:
    status, both = served.post({"queries": ["word1", "word2"], "topk": 1, "return_scores": True})
    assert (status, titles(both)) == (200, [["word1"], ["word2"]])
    assert set(both["result"][0][0]["document"]) == {"id", "title", "text", "contents"}
    assert titles(served.post({"query": "word2", "topk": 1, "return_scores": True})[1]) == [["word2"]]
    _, bare = served.post({"queries": ["word1", "word2", "word3"], "topk": 1})
    assert [entries[0]["title"] for entries in bare["result"]] == ["word1", "word2", "word3"]
    assert len(served.post({"query": "word1", "topk": 0})[1]["result"][0]) == LIMITS.default_k
    assert served.post({"queries": []}) == (200, {"result": []})
    for wire in ("search_r1", "verl_agent"):
        remote = RemoteRetriever(served.url, wire)
        assert remote.search(["word3 word4", "nothing"], 3) == served.retriever.search(["word3 word4", "nothing"], 3)


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"{", 422, "json_invalid"),
        (b"", 422, "missing"),
        (b"\xff\xfe", 422, "json_invalid"),
        (b"[" * 9_000, 422, "json_invalid"),
        ([], 422, "model_attributes_type"),
        ({}, 422, "missing"),
        ({"queries": "word1"}, 422, "list_type"),
        ({"queries": [1]}, 422, "string_type"),
        ({"query": None}, 422, "string_type"),
        ({"query": "x", "topk": "many"}, 422, "int_parsing"),
        ({"query": "x", "topk": -1}, 422, "topk must be in 1 to 5"),
        ({"query": "x", "topk": 6}, 422, "topk must be in 1 to 5"),
        ({"query": "x", "topk": 10**4000}, 422, "topk must be in 1 to 5"),
        ({"queries": ["x"] * 201}, 422, "may have 200 queries"),
        ({"queries": [1] * 201}, 422, "may have 200 queries"),
        ({"queries": ["x"] * 200, "topk": 5}, 422, "may ask for 800 passages"),
        ({"query": "x" * 20_000}, 413, "10,000 bytes"),
    ],
)
def test_a_malformed_request_gets_an_error(served: Served, body: Any, status: int, message: str) -> None:
    found, reply = served.post(body)
    assert (found, message in json.dumps(reply)) == (status, True), reply
    assert served.post({"query": "word1", "topk": 1})[0] == 200


def test_a_large_request_is_answered_in_order(served: Served) -> None:
    asked = [WORDS[i % len(WORDS)] for i in range(LIMITS.most_queries)]
    assert [found[0]["title"] for found in served.post({"queries": asked})[1]["result"]] == asked


def test_misbehaving_clients_do_not_disturb_the_replies_of_others(served: Served) -> None:
    figures = load_server(served.port, served.retriever, WORDS, clients=12, queries=240, large_body=2_000_000)
    assert figures["wrong"] == figures["lost"] == 0
    assert figures["queries"] == 240
    assert figures["refused"] == figures["misbehaved"]


def test_the_connection_of_a_silent_client_is_closed(served: Served) -> None:
    with socket.create_connection(("127.0.0.1", served.port), timeout=20) as client:
        client.sendall(b"POST /retrieve HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        assert b"503" in client.recv(1000).partition(b"\r\n")[0]


def test_a_search_that_fails_or_hangs_is_answered(served: Served) -> None:
    class Failing:
        def search(self, queries: list[str], k: int) -> list[list[Hit]]:
            if queries == ["wait"]:
                time.sleep(2.0)
            raise RetrievalError("the index is gone")

        def facts(self) -> dict[str, Any]:
            return {"retriever": "failing"}

    failing = Served(Failing(), Limits(deadline=0.5))
    assert failing.post({"query": "x"}) == (502, {"detail": "the index is gone"})
    status, reply = failing.post({"query": "wait"})
    assert (status, reply["detail"]) == (503, "not done within 0.5 s")
    failing.stop()


def test_nothing_is_searched_after_the_deadline() -> None:
    class Slow:
        searched = 0

        def search(self, queries: list[str], k: int) -> list[list[Hit]]:
            self.searched += len(queries)
            time.sleep(0.2)
            return [[] for _ in queries]

        def facts(self) -> dict[str, Any]:
            return {"retriever": "slow"}

    slow = Served(Slow(), Limits(deadline=0.1))
    assert slow.post({"queries": ["x"] * 10_000})[0] == 503
    slow.stop()
    assert slow.retriever.searched < 1000


@pytest.mark.parametrize(
    "arguments",
    [["retriever", "--retriever", "remote"], ["retriever", "--port", "x"], ["retriever", "--corpus", ""], []],
)
def test_a_wrong_command_line_is_refused(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["serve", *arguments])
    with pytest.raises(ValueError, match="see --help"):
        main()


def test_the_command_serves_on_this_machine_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("POLYTURN_CACHE", str(tmp_path))
    started: dict[str, Any] = {}
    monkeypatch.setattr(
        uvicorn.Server, "run", lambda _, sockets: started.update(host=sockets[0].getsockname()[0], of=sockets)
    )
    monkeypatch.setattr("sys.argv", ["serve", "retriever", "--people", "48", "--port", "0"])
    main()
    assert started["host"] == "127.0.0.1"
    output = capsys.readouterr().out
    assert "bm25 over" in output
    assert "serving passages at http://127.0.0.1:" in output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["retriever", "--port", "PORT"], "the port is in use; choose others with --host and --port"),
        (["mcp", "--http", "--port", "PORT", "env=key_corridor"], "the port is in use"),
        (["retriever", "--host", ""], "--host must be an address, such as 127.0.0.1"),
        (["retriever", "--port", "99999"], "--port must be from 0 to 65535, got 99999"),
        (["mcp", "--http", "--port", "-1", "env=key_corridor"], "--port must be from 0 to 65535, got -1"),
        (["retriever", "--topk", "0"], "--topk must be from 1 to --most-topk"),
        (["retriever", "--model", "x"], "bm25 has no model"),
        (["retriever", "--topk", "101"], "--topk must be from 1 to --most-topk"),
        (["retriever", "--deadline", "0"], "--deadline more than 0"),
        (["retriever", "--deadline", "nan"], "--deadline more than 0"),
        (["mcp", "--http", "--idle", "nan", "env=key_corridor"], "--idle and --deadline more than 0"),
        (["mcp", "--port", "9000", "env=key_corridor"], "--port needs --http"),
        (["retriever", "--corpus", "nothing.jsonl"], "no corpus at nothing.jsonl"),
    ],
)
def test_what_cannot_be_served_is_an_error_before_anything_is_loaded(
    arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scripts.serve.open_retriever", lambda _: pytest.fail("it was loaded"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        monkeypatch.setattr("sys.argv", ["serve", *(port if part == "PORT" else part for part in arguments)])
        with pytest.raises((OSError, ValueError), match=words):
            main()
