"""The benchmark of environments, in its smallest size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import environments
from benchmarks.environments import Case, Speed
from envs.ragen_games.frozen_lake import FrozenLakeTasks
from envs.sokoban.tasks import SokobanTasks


def test_figures_end_with_a_line_of_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = (
        Case(
            "lake",
            lambda: FrozenLakeTasks(valid_tasks=3),
            "valid",
            "twice as slow",
            measure_reference=lambda *_: Speed(1.0, 2.0),
        ),
        Case("levels", lambda: SokobanTasks(levels="boxoban", data=tmp_path), "hard"),
    )
    monkeypatch.setattr(environments, "CASES", small)
    environments.main(["--seconds", "0.01"])
    shown = capsys.readouterr().out
    assert "no data" in shown
    figures = json.loads(shown.splitlines()[-1])
    assert figures["lake"]["reference"] == {"steps_per_s": 1.0, "reset_ms": 2.0}
    assert min(figures["lake"]["ours"].values()) > 0


def test_the_reference_of_the_lake_is_gymnasiums(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environments, "TASKS", 2)
    speed = environments.gymnasium_lake(0.001, None)
    assert speed is not None
    assert speed.steps_per_s > 0
