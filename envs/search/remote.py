"""Retrieval by a server of Search-R1, verl, verl-agent, or `python -m scripts.serve retriever`."""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

from envs.core import NoDataError, UnknownNameError
from envs.search.retrieval import Hit, RetrievalError, index_hash
from envs.search.wire import WIRES, read_result, requests

_AGAIN = (500, 502, 503, 504)  # a server that is busy, or starting


class RemoteRetriever:
    """Asks `url`, for example http://127.0.0.1:8000/retrieve."""

    def __init__(
        self,
        url: str,
        wire: str = "search_r1",
        timeout: float = 30.0,
        deadline: float = 120.0,
        largest_reply: int = 1 << 26,
    ) -> None:
        """`wire` is one of `envs.search.wire.WIRES`; `timeout` (seconds) is for one attempt, `deadline` for all of
        a request, `largest_reply` is in bytes. Raises `UnknownNameError`.
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

    def check(self) -> None:
        """Ask one question, once. Raises `NoDataError` if nobody answers or the answer is none; a server that is busy
        passes, because a search asks again.
        """
        [body] = requests(self.wire, ["check"], 1)
        try:
            read_result(self._post(body), 1)
        except urllib.error.HTTPError as error:
            if error.code in _AGAIN:
                return
            reason = f"it answers with status {error.code}"
        except (OSError, http.client.HTTPException) as error:
            reason = str(getattr(error, "reason", error)) or type(error).__name__
        except ValueError as error:
            reason = f"it does not answer like a retrieval server: {error}"
        else:
            return
        raise NoDataError(
            f"the retrieval server {self.url} cannot be used: {reason}; env.url must be the address of a server with "
            f"the format env.wire={self.wire}, such as python -m scripts.serve retriever"
        )

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """Raises `RetrievalError` if there is no proper reply before the deadline."""
        bodies = requests(self.wire, queries, k)
        each = 1 if self.wire == "verl_agent" else len(queries)
        return [hits[:k] for body in bodies for hits in self._ask(body, each)]

    def facts(self) -> dict[str, Any]:
        """A server does not say which corpus it has: only its address is known."""
        return {"retriever": "remote", "url": self.url, "index": index_hash({"url": self.url, "wire": self.wire})}

    def _ask(self, body: dict[str, Any], queries: int) -> list[list[Hit]]:
        end, tries = time.monotonic() + self.deadline, 0
        while True:
            tries += 1
            try:
                return read_result(self._post(body), queries)
            except urllib.error.HTTPError as error:
                reason = f"status {error.code}"
                if error.code not in _AGAIN:
                    raise RetrievalError(f"{self.url}: {reason}: {error.read(200)!r}") from error
            except (OSError, http.client.HTTPException) as error:
                reason = str(error) or type(error).__name__
            except ValueError as error:
                raise RetrievalError(f"{self.url} does not answer like a retrieval server: {error}") from error
            if time.monotonic() + tries > end:
                raise RetrievalError(f"{self.url}: no reply after {tries} attempts in {self.deadline:.0f} s: {reason}")
            time.sleep(tries)  # verl-agent's waits: one second more each time

    def _post(self, body: dict[str, Any]) -> Any:
        """One attempt."""
        request = urllib.request.Request(
            self.url, json.dumps(body).encode(), {"Content-Type": "application/json"}, method="POST"
        )
        with urllib.request.urlopen(request, timeout=self.timeout) as response:
            content = response.read(self.largest_reply + 1)
        if len(content) > self.largest_reply:
            raise ValueError(f"its reply has more than {self.largest_reply:,} bytes")
        return json.loads(content)
