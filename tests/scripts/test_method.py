"""`scripts.doctor algo=…`: the needs of a method, which of them are missing, and the statistics of random play."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.scripts.test_commands import CORRIDOR, Cli

CONF = f"--config-dir={CORRIDOR[1]}"


@pytest.fixture
def cli(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    return Cli(tmp_path, capsys, monkeypatch)


def test_all_that_is_missing_is_reported_at_once_and_nothing_is_written(cli: Cli) -> None:
    code, out, err = cli("doctor", CONF, "env=corridor", "algo=igpo", "trainer.group_size=1")
    assert (code, err) == (1, "")
    assert "✗ algo.estimator=igpo compares attempts at a task, and with trainer.group_size=1" in out
    code, out, err = cli("doctor", CONF, "env=corridor", "algo=igpo")
    assert (code, err) == (1, "")
    assert "✗ algo.signals.answer_gain needs right answers, and test/Corridor-v0 has none" in out
    assert "✓ agent.player needs admissible actions: they are there" in out
    assert "1 problem: the method cannot be trained like this" in out
    code, out, err = cli("doctor", CONF, "env=corridor", "algo=luffy")
    assert (code, err) == (0, "")
    assert "✓ algo.demonstrations needs actions of an expert: they are there" in out
    assert list(cli.folder.iterdir()) == []


def test_random_play_shows_properties_of_the_tasks(cli: Cli) -> None:
    code, out, err = cli("doctor", "env=key_corridor", "algo=vineppo", "env.rooms=4")
    assert (code, err) == (0, "")
    assert "✓ algo.signals.monte_carlo needs snapshots: they are there" in out
    shares = [line for line in out.splitlines() if "several attempts at a task reach" in line]
    assert len(shares) == 1
    assert 0 < int(shares[0].split("%")[0].split()[-1]) < 100  # attempts differ
    assert "ready: python -m scripts.train env=key_corridor algo=vineppo env.rooms=4" in out
