"""A retrieval server: `POST /retrieve` in the formats of Search-R1 and of verl-agent (`envs.search.wire`).

Both are accepted at the same address; the name of the field, `queries` or `query`, tells them apart. A malformed
request gets status 422 with a list of what is wrong, as from their FastAPI servers. Bodies, the number of queries,
`topk`, passages and the time of a request are limited. Needs the extra `serve`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from envs.search.retrieval import Hit, RetrievalError, Retriever
from envs.search.wire import result
from envs.services import ServiceError

Search = Callable[[Sequence[str], int], list[list[Hit]]]
_AT_ONCE = 64  # queries that are searched before another request gets its turn


class QueriesRequest(BaseModel):
    """A request of Search-R1."""

    queries: list[str]
    topk: int | None = None
    return_scores: bool = False


class QueryRequest(BaseModel):
    """A request of verl-agent."""

    query: str
    topk: int | None = None
    return_scores: bool = False


@dataclass(frozen=True)
class Limits:
    """What a request may ask for."""

    default_k: int = 3  # where topk is missing or 0
    most_k: int = 100
    most_queries: int = 10_000  # Search-R1 sends those of a whole batch: 2,560 with its settings
    most_passages: int = 100_000  # queries times topk
    most_bytes: int = 1 << 23  # of a body
    deadline: float = 60.0  # seconds, for reading the body and again for the search


class RequestError(ValueError):
    """A request that cannot be answered; `status` and `detail` are the reply."""

    def __init__(self, status: int, detail: Any) -> None:
        super().__init__(str(detail))
        self.status, self.detail = status, detail


def read_request(
    body: Any, model: type[QueriesRequest] | type[QueryRequest] | None = None
) -> QueriesRequest | QueryRequest:
    """The request in a decoded body; `model` None takes either. Raises `RequestError`."""
    if model is None:
        model = QueryRequest if isinstance(body, dict) and "query" in body and "queries" not in body else QueriesRequest
    if body is None:
        raise RequestError(422, [{"type": "missing", "loc": ["body"], "msg": "Field required"}])
    try:
        return TypeAdapter[QueriesRequest | QueryRequest](model).validate_python(body, from_attributes=True)
    except ValidationError as error:
        parts = error.errors(include_url=False, include_context=False, include_input=False)
        detail = [{"type": part["type"], "loc": ["body", *part["loc"]], "msg": part["msg"]} for part in parts]
        raise RequestError(422, detail) from error


def answer(request: QueriesRequest | QueryRequest, search: Search, limits: Limits) -> dict[str, Any]:
    """The reply. Raises `RequestError` for a request beyond the limits."""
    return result(search(*_asked(request, limits)), request.return_scores)


def _asked(request: QueriesRequest | QueryRequest, limits: Limits) -> tuple[list[str], int]:
    """Queries and k. Raises `RequestError` beyond the limits."""
    queries = request.queries if isinstance(request, QueriesRequest) else [request.query]
    k = request.topk or limits.default_k
    if not 0 < k <= limits.most_k:
        raise RequestError(422, f"topk must be in 1 to {limits.most_k}, got {str(k)[:40]}")
    if len(queries) * k > limits.most_passages:
        raise RequestError(
            422, f"a request may ask for {limits.most_passages:,} passages, got {len(queries):,} queries with topk {k}"
        )
    return queries, k


def _check_count(body: Any, limits: Limits) -> None:
    """Before the queries are looked at one by one. Raises `RequestError`."""
    queries = body.get("queries") if isinstance(body, dict) else None
    if isinstance(queries, list) and len(queries) > limits.most_queries:
        raise RequestError(422, f"a request may have {limits.most_queries:,} queries, got {len(queries):,}")


def make_app(retriever: Retriever, limits: Limits | None = None) -> Starlette:
    """The server's application.

    One thread searches: scoring is bound by memory, and results stay the same. It takes a few queries of a request at a
    time, so that other clients need not wait for a large one, and none is searched after the deadline.
    """
    chosen, worker = limits or Limits(), ThreadPoolExecutor(1)

    async def retrieve(request: Request) -> Response:
        try:
            async with asyncio.timeout(chosen.deadline):
                body = await _read_json(request, chosen.most_bytes)
            _check_count(body, chosen)
            asked = read_request(body)
            queries, k = _asked(asked, chosen)
            hits: list[list[Hit]] = []
            async with asyncio.timeout(chosen.deadline):
                loop = asyncio.get_running_loop()
                for i in range(0, len(queries), _AT_ONCE):
                    hits += await loop.run_in_executor(worker, retriever.search, queries[i : i + _AT_ONCE], k)
        except RequestError as error:
            return JSONResponse({"detail": error.detail}, error.status)
        except TimeoutError:
            return JSONResponse({"detail": f"not done within {chosen.deadline} s"}, 503)
        except (RetrievalError, ServiceError) as error:
            return JSONResponse({"detail": str(error)}, 502)
        except ClientDisconnect:
            return Response(status_code=499)  # nobody reads it
        return JSONResponse(result(hits, asked.return_scores))

    async def health(_: Request) -> Response:
        return JSONResponse({"status": "ok", **retriever.facts()})

    return Starlette(routes=[Route("/retrieve", retrieve, methods=["POST"]), Route("/health", health)])


async def _read_json(request: Request, most: int) -> Any:
    """The decoded body. Raises `RequestError`, for a large one before it is read completely."""
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > most:
        raise RequestError(413, f"a body may have {most:,} bytes, this one has {int(declared):,}")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > most:
            raise RequestError(413, f"a body may have {most:,} bytes")
    try:
        return json.loads(bytes(body)) if body else None
    except (ValueError, RecursionError) as error:
        place = getattr(error, "pos", 0)
        raise RequestError(422, [{"type": "json_invalid", "loc": ["body", place], "msg": str(error)}]) from error
