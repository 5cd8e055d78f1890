"""The output of long phases without a terminal."""

import io

import pytest
from rich.console import Console

from scripts import live
from scripts.live import LiveReporter


def test_a_long_phase_prints_its_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10_000, 25))  # seconds: 25 pass between any two looks at it
    monkeypatch.setattr(live.time, "monotonic", lambda: float(next(clock)))
    output = io.StringIO()
    with LiveReporter(1, Console(file=output, width=100)) as reporter:
        reporter.phase("clone", 12)
        for step in range(12):
            reporter.advance(f"loss {step}")
        reporter.phase("next")
    lines = output.getvalue().splitlines()
    assert [line.split(",")[0] for line in lines[:-1]] == [
        "clone: 3 of 12",
        "clone: 6 of 12",
        "clone: 9 of 12",
        "clone: 12 of 12",
    ]
    assert lines[0].endswith("(loss 2)")
    assert lines[-1].startswith("clone: ")


def test_a_short_phase_prints_nothing() -> None:
    output = io.StringIO()
    with LiveReporter(1, Console(file=output, width=100)) as reporter:
        reporter.phase("clone", 3)
        for _ in range(3):
            reporter.advance("loss 1")
        reporter.phase("next")
    assert output.getvalue() == ""
