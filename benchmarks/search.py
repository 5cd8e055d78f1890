"""Search: an index's build, start, memory and queries; recall; steps of the environment; a server under load.

    python -m benchmarks.search                                                  # the generated world
    python -m benchmarks.search --corpus FILE --questions FILE [--dense]         # also recall, if they name gold titles
    python -m benchmarks.search --scale 1_000_000 [--folder DIR]                 # a synthetic corpus of that size
    python -m benchmarks.search --load [--clients 64 --queries 10_000]           # a server that must answer every query

rank_bm25 and tantivy are measured too if they are installed, and compiled scores if numba is. Seconds are CPU seconds
of the process, so other processes do not matter, except under load. An index is opened in a new process, after it was
made, and without the time of imports. The last line of the output is JSON.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import resource
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from envs.search import bm25
from envs.search.bm25 import BM25Retriever, tokenize
from envs.search.corpus import Corpus
from envs.search.dense import DenseRetriever, HybridRetriever
from envs.search.retrieval import Retriever
from envs.search.tasks import SearchTasks, read_questions

_KS = (3, 5, 10)  # of recall
_HITS = 3  # of timed queries
_MISBEHAVIOUR = 8  # one of so many queries is sent together with a client that misbehaves
_VOCABULARY = 200_000  # words of a synthetic corpus, by Zipf's law

# In a new process: what it costs to open an index that was made before.
_OPEN = """
import json, sys, time
from pathlib import Path
from envs.search.bm25 import BM25Retriever
from envs.search.corpus import Corpus
start, cpu = time.perf_counter(), time.process_time()
retriever = BM25Retriever(Corpus(Path(sys.argv[1])))
opened = time.perf_counter() - start, time.process_time() - cpu
memory = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS:")) / 1024
print(json.dumps({"open_s": opened[0], "open_cpu_s": opened[1], "open_mb": memory}))
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and tell."""
    parser = argparse.ArgumentParser(prog="benchmarks.search", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--corpus", type=Path, help="a JSONL file of {title, text} (the generated world)")
    parser.add_argument("--questions", type=Path, help="a JSONL file of questions, for queries and recall")
    parser.add_argument("--dense", action="store_true", help="also dense and hybrid retrieval; embedding takes minutes")
    parser.add_argument("--people", type=int, default=480, help="size of the generated world (%(default)s)")
    parser.add_argument("--scale", type=int, help="measure a synthetic corpus of so many passages instead")
    parser.add_argument("--folder", type=Path, help="keep the synthetic corpus here")
    parser.add_argument("--load", action="store_true", help="load a server instead")
    parser.add_argument("--clients", type=int, default=64, help="of --load (%(default)s)")
    parser.add_argument("--queries", type=int, default=10_000, help="of --load (%(default)s)")
    options = parser.parse_args(argv)
    if (options.corpus is None) != (options.questions is None):
        parser.error("--corpus and --questions go together")
    world = SearchTasks(embedded_people=options.people)
    corpus = options.corpus or world.spec.corpus
    with tempfile.TemporaryDirectory() as temporary:
        if options.scale:
            path = (options.folder or Path(temporary)) / f"synthetic-{options.scale}.jsonl"
            figures = _measure_scale(options.scale, path)
        elif options.load:
            figures = _measure_load(corpus, options.clients, options.queries)
        else:
            asked = read_questions(options.questions, str(corpus)) if options.questions else None
            figures = _measure(corpus, world, asked, options.dense)
    table = Table("", "", show_header=False, box=None)
    for name, value in figures.items():
        table.add_row(name, f"{value:,}" if isinstance(value, (int, float)) else str(value))
    Console().print(table)
    print(json.dumps(figures))


# -- an index ---------------------------------------------------------------------------------------------------------
def _measure(
    corpus: Path, world: SearchTasks, asked: Mapping[str, Mapping[str, Any]] | None, dense: bool
) -> dict[str, Any]:
    payloads = (
        [payload for split in asked.values() for payload in split.values()]
        if asked is not None
        else [world.task("valid", task_id).payload for task_id in world.manifest("valid").ids]
    )
    figures, retriever = _index(corpus, [payload["question"] for payload in payloads])
    gold = [(payload["question"], set(payload["gold"])) for payload in payloads if payload["gold"]]
    retrievers: dict[str, Callable[[str], list[str]]] = {"bm25": _titles_of(retriever)}
    if dense:
        embedded = DenseRetriever(Corpus(corpus))  # whose embeddings stay in the cache, unlike the index above
        hybrid = HybridRetriever([retriever, embedded])
        retrievers |= {"dense": _titles_of(embedded), "hybrid": _titles_of(hybrid)}
    retrievers |= _peers(retriever.corpus)
    for name, find in retrievers.items():
        began = time.process_time()
        found = [(set(wanted), find(question)) for question, wanted in (gold[:10] if name == "rank_bm25" else gold)]
        if name != "bm25" and found:
            figures[f"{name}_queries_per_s"] = round(len(found) / (time.process_time() - began), 1)
        for k in _KS if name != "rank_bm25" and found else ():
            shares = [len(wanted & set(titles[:k])) / len(wanted) for wanted, titles in found]
            figures[f"{name}_recall_{k}"] = round(float(np.mean(shares)), 3)
            figures[f"{name}_all_{k}"] = round(float(np.mean([share == 1 for share in shares])), 3)
    return {**figures, "env_steps_per_s": _steps_per_s(world)}


def _index(path: Path, queries: Sequence[str]) -> tuple[dict[str, Any], BM25Retriever]:
    """Build in an empty cache, open in a new process, and search."""
    with tempfile.TemporaryDirectory() as cache:
        kept = os.environ.get("POLYTURN_CACHE")
        os.environ["POLYTURN_CACHE"] = cache
        try:
            wall, cpu = time.perf_counter(), time.process_time()
            retriever = BM25Retriever(Corpus(path))
            built = time.perf_counter() - wall, time.process_time() - cpu
            opened = json.loads(subprocess.check_output([sys.executable, "-c", _OPEN, str(path)]))
            size = sum(file.stat().st_size for file in Path(cache).rglob("*") if file.is_file()) / 1e6
        finally:
            os.environ.pop("POLYTURN_CACHE")
            if kept is not None:
                os.environ["POLYTURN_CACHE"] = kept
        figures: dict[str, Any] = {
            "passages": len(retriever.corpus),
            "build_s": round(built[0], 2),
            "build_cpu_s": round(built[1], 2),
            "build_peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            "index_mb": round(size, 1),
            **{name: round(value, 3) for name, value in opened.items()},
            "queries": len(queries),
            f"{retriever.backend}_queries_per_s": _queries_per_s(retriever, queries),
        }
        if find_spec("numba") and retriever.backend != "numba":
            bm25.WORTH_COMPILING = 0
            compiled = BM25Retriever(retriever.corpus)
            compiled.search(queries[:1], _HITS)
            figures["numba_queries_per_s"] = _queries_per_s(compiled, queries)
        return figures, retriever


def _queries_per_s(retriever: Retriever, queries: Sequence[str]) -> int:
    """One at a time, with tokenising; the best of three passes over the queries."""
    seconds = []
    for _ in range(3):
        began = time.process_time()
        for query in queries:
            retriever.search([query], _HITS)
        seconds.append(time.process_time() - began)
    return round(len(queries) / min(seconds))


def _titles_of(retriever: Retriever) -> Callable[[str], list[str]]:
    """Titles and ids of the best passages, as gold passages are named by either."""

    def find(query: str) -> list[str]:
        return [name for hit in retriever.search([query], max(_KS))[0] for name in (hit.passage.title,)]

    return find


def _peers(corpus: Corpus) -> dict[str, Callable[[str], list[str]]]:
    """The other libraries that are installed."""
    peers: dict[str, Callable[[str], list[str]]] = {}
    if find_spec("rank_bm25"):
        from rank_bm25 import BM25Okapi

        ranked = BM25Okapi([tokenize(passage.contents) for passage in corpus])
        peers["rank_bm25"] = lambda query: [
            corpus[row].title for row in np.argsort(-ranked.get_scores(tokenize(query)))[: max(_KS)].tolist()
        ]
    if find_spec("tantivy"):
        import tantivy

        builder = tantivy.SchemaBuilder()
        builder.add_text_field("title", stored=True, tokenizer_name="raw")
        builder.add_text_field("contents", tokenizer_name="en_stem")
        index = tantivy.Index(builder.build())
        writer = index.writer()
        for passage in corpus:
            writer.add_document(tantivy.Document(title=passage.title, contents=passage.contents))
        writer.commit()
        index.reload()
        searcher = index.searcher()

        def find(query: str) -> list[str]:
            parsed, _ = index.parse_query_lenient(query, ["contents"])
            hits = searcher.search(parsed, max(_KS)).hits
            return [searcher.doc(address)["title"][0] for _, address in hits]

        peers["tantivy"] = find
    return peers


def _steps_per_s(world: SearchTasks) -> int:
    """Steps of the environment in the generated world, with retrieval, on the expert's actions; resets included."""
    env, plays, steps = world.make(), [], 0
    for task_id in world.manifest("valid").ids:
        task, expert = world.task("valid", task_id), world.expert()
        assert expert is not None
        observation, info = env.reset(options={"task": task})
        expert.reset(observation, info)
        actions, over = list[str](), False
        while not over:
            actions.append(expert.act())
            observation, _, terminated, truncated, info = env.step(actions[-1])
            expert.observe(actions[-1], observation, info)
            over = terminated or truncated
        plays.append((task, actions))
        steps += len(actions)
    seconds = []
    for _ in range(5):
        began = time.process_time()
        for task, actions in plays:
            env.reset(options={"task": task})
            for action in actions:
                env.step(action)
        seconds.append(time.process_time() - began)
    return round(steps / min(seconds))


# -- a million --------------------------------------------------------------------------------------------------------
def _measure_scale(count: int, path: Path) -> dict[str, Any]:
    if not path.is_file():
        write_synthetic(path, count)
    rng = random.Random(0)
    with path.open() as file:
        lines = [line for number, line in enumerate(file) if number % max(1, count // 300) == 0]
    queries = [" ".join(rng.choices(json.loads(line)["text"].split(), k=rng.randint(4, 10))) for line in lines]
    figures, _ = _index(path, queries)
    return {**figures, "file_mb": round(path.stat().st_size / 1e6)}


def write_synthetic(path: Path, count: int, seed: int = 0) -> None:
    """Passages of about a hundred invented words each, by Zipf's law."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    lengths = rng.integers(3, 10, _VOCABULARY)
    words = ["".join(letters[rng.integers(0, 26, length)]) for length in lengths]
    cumulative = np.cumsum(1 / (np.arange(_VOCABULARY) + 2.7) ** 1.05)
    with path.open("w") as file:
        for _ in track(range(count), "writing passages", console=Console(stderr=True)):
            drawn = np.searchsorted(cumulative, rng.random(int(rng.poisson(100)) + 3) * cumulative[-1])
            title, text = drawn[:3].tolist(), drawn[3:].tolist()
            row = {"title": " ".join(words[i] for i in title), "text": " ".join(words[i] for i in text)}
            file.write(json.dumps(row) + "\n")


# -- a server ---------------------------------------------------------------------------------------------------------
def _measure_load(corpus: Path, clients: int, queries: int) -> dict[str, Any]:
    """Start a server in its own process, and measure it under load."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "scripts.serve", "retriever", "--corpus", str(corpus), "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        _wait(port, server)
        retriever = BM25Retriever(Corpus(corpus))
        asked = [passage.title for passage in retriever.corpus]
        figures = load_server(port, retriever, asked, clients, queries, large_body=100_000_000)
        with Path(f"/proc/{server.pid}/status").open() as status:
            memory = next(int(line.split()[1]) for line in status if line.startswith("VmHWM:")) // 1024
        return {**figures, "server_peak_mb": memory}
    finally:
        server.terminate()
        server.wait(30)


def _wait(port: int, server: subprocess.Popen[bytes], seconds: float = 120.0) -> None:
    """Until the server listens. Raises `RuntimeError` if it ends, or takes longer."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and server.poll() is None:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.1)
    raise RuntimeError(f"the server did not listen within {seconds} s (its exit code: {server.poll()})")


def load_server(
    port: int, retriever: Retriever, asked: Sequence[str], clients: int, queries: int, large_body: int
) -> dict[str, Any]:
    """Search from many clients at a time and compare with `retriever`, while other clients misbehave.

    With every eighth query, another client sends text that is not JSON, closes the connection in the middle of its
    body, or sends `large_body` bytes (the first time only). Returns the number of wrong and lost replies, and the
    number of misbehaving clients that were refused or disconnected.
    """
    expected = {query: [hit.passage.id for hit in retriever.search([query], _HITS)[0]] for query in set(asked)}
    rng = random.Random(0)
    plan = [rng.choice(asked) for _ in range(queries)]
    counts = {"wrong": 0, "lost": 0, "misbehaved": 0, "refused": 0}
    lock, seconds = threading.Lock(), list[float]()

    def note(name: str, count: int = 1) -> None:
        with lock:
            counts[name] += count

    def client(number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        for place in range(number, queries, clients):
            if place % _MISBEHAVIOUR == 0:
                note("misbehaved")
                note("refused", _misbehave(port, place // _MISBEHAVIOUR, large_body))
            query, began = plan[place], time.perf_counter()
            body = {"query": query} if place % 2 else {"queries": [query]}
            try:
                connection.request("POST", "/retrieve", json.dumps({**body, "topk": _HITS, "return_scores": True}))
                reply = json.loads(connection.getresponse().read())
                [found] = reply["result"]
                note("wrong", [entry["document"]["id"] for entry in found] != expected[query])
            except (OSError, http.client.HTTPException, ValueError, LookupError):
                note("lost")
                connection.close()
            seconds.append(time.perf_counter() - began)
        connection.close()

    began = time.perf_counter()
    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.perf_counter() - began
    return {
        "clients": clients,
        "queries": queries,
        **counts,
        "queries_per_s": round(queries / took),
        "p50_ms": round(1e3 * float(np.quantile(seconds, 0.5)), 1),
        "p99_ms": round(1e3 * float(np.quantile(seconds, 0.99)), 1),
    }


def _misbehave(port: int, number: int, large_body: int) -> bool:
    """One client that misbehaves. Returns whether the server refused it; True if the client itself closed."""
    kind = 0 if number == 0 else 1 + number % 3
    size = {0: large_body, 1: 8, 2: 5, 3: 100}[kind]
    head = f"POST /retrieve HTTP/1.1\r\nHost: localhost\r\nContent-Length: {size}\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", port), timeout=120) as client:
        if kind == 3:  # hangs up
            client.sendall(head + b'{"query":')
            return True
        with suppress(BrokenPipeError, ConnectionResetError):  # refused before all of it was sent
            client.sendall(head)
            body = {0: b"x" * (1 << 16), 1: b"not JSON", 2: b'{"a":'}[kind]
            for _ in range(max(1, size // len(body))):
                client.sendall(body)
        with suppress(ConnectionResetError):
            return client.recv(100).startswith((b"HTTP/1.1 413", b"HTTP/1.1 422"))
    return kind == 0  # refused by closing the connection


if __name__ == "__main__":
    main()
