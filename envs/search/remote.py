"""Retrieval by a server of Search-R1, verl, verl-agent, or `python -m scripts.serve retriever`."""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

from envs.core import NoDataError, UnknownNameError, counted
from envs.search.retrieval import Hit, RetrievalError, index_hash
from envs.search.wire import WIRES, read_result, requests
from envs.services import Service, ServiceError

_AGAIN = (500, 502, 503, 504)  # a server that is busy, or starting


class RemoteRetriever:
    """Asks `url`, for example http://127.0.0.1:8000/retrieve."""

    def __init__(
        self,
        url: str,
        wire: str = "search_r1",
        timeout: float = 20.0,
        deadline: float = 25.0,
        largest_reply: int = 1 << 26,
    ) -> None:
        """`wire` is one of `envs.search.wire.WIRES`; `timeout` (seconds) is for one attempt, `deadline` for all
        attempts of a search, `largest_reply` is in bytes. Raises `UnknownNameError`.

        The default deadline is shorter than `step_timeout` of `envs.pool.EnvPool`, so that the error names the server.
        """
        if wire not in WIRES:
            raise UnknownNameError("wire format", wire, WIRES)
        self.url, self.wire, self.timeout, self.deadline, self.largest_reply = (
            url,
            wire,
            timeout,
            deadline,
            largest_reply,
        )
        self._service = Service(f"the retrieval server {url}")

    def check(self) -> None:
        """Ask one question, once. Raises `NoDataError` if nobody answers or the answer is none; a server that is busy
        passes, because a search asks again.
        """
        [body] = requests(self.wire, ["check"], 1)
        try:
            read_result(self._post(body, time.monotonic() + self.timeout), 1)
            return
        except urllib.error.HTTPError as error:
            if error.code in _AGAIN:
                return
            reason = f"it answers with {_reason(error)}"
        except (OSError, http.client.HTTPException) as error:
            reason = _reason(error)
        except ValueError as error:
            reason = f"it does not answer like a retrieval server: {error}"
        raise NoDataError(
            f"the retrieval server {self.url} cannot be used: {reason}; env.url must be the address of a server with "
            f"the format env.wire={self.wire}, such as python -m scripts.serve retriever"
        )

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """Raises `ServiceError` if there is no proper reply before the deadline, `NoDataError` if this happens too
        often in a row, and `RetrievalError` if the server refuses the queries.
        """
        bodies = requests(self.wire, queries, k)
        each = 1 if self.wire == "verl_agent" else len(queries)
        end = time.monotonic() + self.deadline
        with self._service.call():
            return [hits[:k] for body in bodies for hits in self._ask(body, each, end)]

    def facts(self) -> dict[str, Any]:
        """A server does not say which corpus it has: only its address is known."""
        return {"retriever": "remote", "url": self.url, "index": index_hash({"url": self.url, "wire": self.wire})}

    def _ask(self, body: dict[str, Any], queries: int, end: float) -> list[list[Hit]]:
        """One request, attempted until `end` (`time.monotonic`)."""
        from tenacity import RetryError, Retrying, retry_if_exception, stop_before_delay, wait_incrementing

        attempts = Retrying(
            retry=retry_if_exception(_may_pass),
            stop=stop_before_delay(end - time.monotonic()),
            wait=wait_incrementing(1, 1),  # verl-agent's waits: one second more each time
        )
        try:
            return read_result(attempts(lambda: self._post(body, end)), queries)
        except RetryError as error:
            last = error.last_attempt
            reason, many = _reason(last.exception()), counted(last.attempt_number, "attempt")
            raise ServiceError(f"{self.url}: no reply after {many} in {self.deadline:.0f} s: {reason}") from error
        except urllib.error.HTTPError as error:
            raise RetrievalError(f"{self.url}: {_reason(error)}: {error.read(200)!r}") from error
        except ValueError as error:
            raise ServiceError(f"{self.url} does not answer like a retrieval server: {error}") from error

    def _post(self, body: dict[str, Any], end: float) -> Any:
        """One attempt. Raises `ValueError` for a reply that cannot be read."""
        timeout = max(0.1, min(self.timeout, end - time.monotonic()))
        end = time.monotonic() + timeout
        request = urllib.request.Request(
            self.url, json.dumps(body).encode(), {"Content-Type": "application/json"}, method="POST"
        )
        content = bytearray()
        with urllib.request.urlopen(request, timeout=timeout) as response:
            while part := response.read1():  # never waits for more than one part
                content += part
                if len(content) > self.largest_reply:
                    raise ValueError(f"its reply has more than {self.largest_reply:,} bytes")
                if time.monotonic() > end:
                    raise TimeoutError(f"its reply was not complete after {timeout:.0f} s")
            if response.length:  # the connection ended before the reply
                raise http.client.IncompleteRead(bytes(content), response.length)
        return json.loads(content)


def _may_pass(error: BaseException) -> bool:
    """Whether another attempt may succeed."""
    if isinstance(error, urllib.error.HTTPError):
        return error.code in _AGAIN
    return isinstance(error, (OSError, http.client.HTTPException))


def _reason(error: BaseException | None) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"status {error.code}"
    return str(getattr(error, "reason", error)) or type(error).__name__
