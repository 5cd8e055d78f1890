"""What is said of long work where no screen redraws."""

import io

import pytest
from rich.console import Console

from scripts import live
from scripts.live import LiveReporter


def test_a_long_phase_tells_how_far_it_is_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10_000, 25))  # seconds: 25 pass between any two looks at it
    monkeypatch.setattr(live.time, "monotonic", lambda: float(next(clock)))
    told = io.StringIO()
    with LiveReporter(1, Console(file=told, width=100)) as reporter:
        reporter.phase("clone", 12)
        for step in range(12):
            reporter.advance(f"loss {step}")
        reporter.phase("next")
    lines = told.getvalue().splitlines()
    assert [line.split(",")[0] for line in lines[:-1]] == [
        "clone: 3 of 12",
        "clone: 6 of 12",
        "clone: 9 of 12",
        "clone: 12 of 12",
    ]
    assert lines[0].endswith("(loss 2)")
    assert lines[-1].startswith("clone: ")


def test_a_short_phase_tells_nothing() -> None:
    told = io.StringIO()
    with LiveReporter(1, Console(file=told, width=100)) as reporter:
        reporter.phase("clone", 3)
        for _ in range(3):
            reporter.advance("loss 1")
        reporter.phase("next")
    assert told.getvalue() == ""
