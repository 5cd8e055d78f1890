"""The two formats in which projects talk to a retrieval server, as plain data: one for a client, both for a server.

    search_r1     {"queries": ["…", "…"], "topk": 3, "return_scores": true}   Search-R1, verl's own search tool
    verl_agent    {"query": "…", "topk": 3, "return_scores": true}            verl-agent: one query a request

The reply is `{"result": [[{"document": {"title", "text", "contents"}, "score"}, …], …]}`, one list for each query;
without scores, documents stand there alone. Dense servers of Search-R1 give rows of their corpus as documents,
`{"id", "contents"}`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from envs.core import UnknownNameError
from envs.search.corpus import Passage
from envs.search.retrieval import Hit

WIRES = ("search_r1", "verl_agent")


def requests(wire: str, queries: Sequence[str], k: int) -> list[dict[str, Any]]:
    """The bodies that ask for these queries: one for all, or one for each. Raises `UnknownNameError`."""
    if wire not in WIRES:
        raise UnknownNameError("wire format", wire, WIRES)
    if wire == "search_r1":
        return [{"queries": list(queries), "topk": k, "return_scores": True}] if queries else []
    return [{"query": query, "topk": k, "return_scores": True} for query in queries]


def result(hits: Sequence[Sequence[Hit]], scores: bool) -> dict[str, Any]:
    """The reply to a request with the hits of each of its queries."""
    return {"result": [[_entry(hit, scores) for hit in one] for one in hits]}


def _entry(hit: Hit, scores: bool) -> dict[str, Any]:
    passage = hit.passage
    # Clients read `contents`; `id` is in the dense servers' documents only, and others ignore it.
    document = {"id": passage.id, "title": passage.title, "text": passage.text, "contents": passage.contents}
    return {"document": document, "score": hit.score} if scores else document


def read_result(reply: Any, queries: int) -> list[list[Hit]]:
    """The hits of each query in a reply. Raises `ValueError`, which says what was expected."""
    lists = reply.get("result") if isinstance(reply, dict) else None
    if not isinstance(lists, list) or not all(isinstance(entries, list) for entries in lists):
        raise ValueError(f"expected {{'result': [[…], …]}}, got {reply!r:.200}")
    if len(lists) != queries:
        raise ValueError(f"expected a list for each of {queries} queries, got {len(lists)}")
    return [[_hit(entry, number) for number, entry in enumerate(entries)] for entries in lists]


def _hit(entry: Any, number: int) -> Hit:
    document: Any = entry
    score: Any = 0.0
    if isinstance(entry, dict) and "document" in entry:
        document, score = entry["document"], entry.get("score")
    if isinstance(document, str):  # as servers with a re-ranker have it
        document = {"contents": document}
    if not isinstance(score, (int, float)):
        raise ValueError(f"expected a number as the score of a document, got {score!r:.80}")
    return Hit(Passage.from_json(document, number), float(score))
