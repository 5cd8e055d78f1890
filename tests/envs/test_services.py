from __future__ import annotations

import pytest

from envs.core import NoDataError
from envs.services import MOST_FAILURES, Service, ServiceError


class Deadline(BaseException):
    """The deadline of a caller, as in a pool."""


def call(service: Service, error: BaseException | None = None) -> None:
    with service.call():
        if error is not None:
            raise error


def test_too_many_calls_in_a_row_without_an_answer_end_the_run() -> None:
    service = Service("the oracle")
    for _ in range(2):  # the count starts again after the error
        for _ in range(MOST_FAILURES - 1):
            with pytest.raises(ServiceError):
                call(service, ServiceError("asleep"))
        with pytest.raises(NoDataError, match="the oracle did not answer 3 calls in a row: asleep; resume the run"):
            call(service, ServiceError("asleep"))


@pytest.mark.parametrize("answer", [None, ValueError("refused")])
def test_an_answer_or_a_refusal_starts_the_count_again(answer: Exception | None) -> None:
    service = Service("the oracle")
    for turn in range(3 * MOST_FAILURES):
        if turn % MOST_FAILURES == 0:
            try:
                call(service, answer)
            except ValueError:
                assert answer is not None
        else:
            with pytest.raises(ServiceError):
                call(service, ServiceError("asleep"))


def test_calls_that_a_deadline_ends_have_no_answer() -> None:
    service = Service("the oracle")
    for _ in range(MOST_FAILURES):
        with pytest.raises(Deadline):
            call(service, Deadline())
    with pytest.raises(NoDataError, match="in a row; resume the run when it answers again"):
        call(service)
