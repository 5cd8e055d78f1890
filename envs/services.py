"""Services that environments call: a retrieval server, a model that plays the user.

A call without an answer ends its episode (`ServiceError`), and the run continues. If `MOST_FAILURES` calls in a row get
no answer, the service is gone, and the run ends (`NoDataError`): the other episodes would end the same way.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from envs.core import NoDataError, counted

MOST_FAILURES = 3  # calls in a row


class ServiceError(RuntimeError):
    """A service gave no answer. The message names it and says why.

    It ends the episode; a resumed evaluation plays the episode again.
    """


class Service:
    """Counts the calls of a service that get no answer."""

    def __init__(self, name: str) -> None:
        """`name` is used in messages, as in "the retrieval server http://127.0.0.1:8000/retrieve"."""
        self.name = name
        self._failures = 0  # in a row

    @contextmanager
    def call(self) -> Iterator[None]:
        """Run a call, which raises `ServiceError` without an answer. Raises `NoDataError` for the last of too many.

        A call that the caller's own deadline ends has no answer either. Any other `Exception` is an answer.
        """
        self._failures += 1
        if self._failures > MOST_FAILURES:
            raise self._gone("")
        try:
            yield
        except ServiceError as error:
            if self._failures == MOST_FAILURES:
                raise self._gone(f": {error}") from error
            raise
        except Exception:
            self._failures = 0
            raise
        self._failures = 0

    def _gone(self, why: str) -> NoDataError:
        calls, self._failures = counted(MOST_FAILURES, "call"), 0
        return NoDataError(f"{self.name} did not answer {calls} in a row{why}; resume the run when it answers again")
