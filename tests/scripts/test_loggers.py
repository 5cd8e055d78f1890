"""Loggers: the real services where they are installed, failures, and resumed runs."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from agents.episode import Episode, Turn
from envs.core import UnknownNameError
from scripts import loggers
from scripts.loggers import Loggers, flat, make_loggers, transcript
from tests.agents.corridors import corridor
from tests.scripts.test_commands import Cli

FACTS = {"config": {"trainer": {"updates": 2}}, "manifests": {"valid": {"content_hash": "abc"}}}
TURN = Turn("<script>alert(1)</script>", "go north", 0.5, "hall")
EPISODE = Episode(corridor(), 0, [TURN], "the end")


@pytest.fixture
def cli(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    return Cli(tmp_path, capsys, monkeypatch)


def logged(run: Path, name: str) -> None:
    """A run of two updates that is resumed after the first."""
    for update in (1, 2):
        made = make_loggers([name])
        made.start(run, update - 1, FACTS)
        made.sample({"valid": [EPISODE]})
        made.log(update, {"rollout/success": update / 4})
        made.close()
        assert list(made.active) == [name]


def test_tensorboard_reads_what_was_logged(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs polyturn[loggers]")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logged(tmp_path, "tensorboard")
    read = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in read.Scalars("rollout/success")] == [(1, 0.25), (2, 0.5)]
    texts = [event.tensor_proto.string_val[0].decode() for event in read.Tensors("episodes/valid/text_summary")]
    assert "&lt;script&gt;" in texts[0]
    assert "<script>" not in texts[0]
    assert (
        "manifests.valid.content_hash: abc" in read.Tensors("run/text_summary")[0].tensor_proto.string_val[0].decode()
    )


def test_trackio_keeps_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio", reason="needs polyturn[loggers]")
    logged(tmp_path, "trackio")
    with sqlite3.connect(tmp_path / "trackio" / "polyturn.db") as database:
        rows = database.execute("SELECT run_name, step, metrics FROM metrics ORDER BY step").fetchall()
    assert [(name, step) for name, step, _ in rows] == [(rows[0][0], 1), (rows[0][0], 2)]
    assert [json.loads(metrics)["rollout/success"] for *_, metrics in rows] == [0.25, 0.5]


def test_wandb_is_offline_and_has_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="needs polyturn[loggers]")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_MODE", raising=False)
    logged(tmp_path, "wandb")
    name = (tmp_path / "logger_id").read_text().strip()
    files = list((tmp_path / "wandb").glob(f"offline-run-*-{name}"))
    assert len(files) in (1, 2)  # of the same run, in one or two parts


class Remembers:
    """A logger that raises on request."""

    said: ClassVar[list[Any]] = []
    fails_at: ClassVar[int] = 99

    def start(self, run: Path, name: str, update: int, facts: Mapping[str, Any]) -> None:
        self.said.append(("start", name, update, flat(facts)["config.trainer.updates"]))

    def log(self, update: int, metrics: Mapping[str, float], episodes: Mapping[str, str]) -> None:
        if update == self.fails_at:
            raise ConnectionError("the service\nis away")
        self.said.append((update, {key.split("/")[0] for key in metrics} & {"rollout", "eval"}, list(episodes)))

    def finish(self) -> None:
        self.said.append("finish")


def test_a_run_logs_and_resumes_and_a_failure_does_not_stop_it(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(loggers.BUILT_IN, "remembers", ("json", Remembers))
    Remembers.said, Remembers.fails_at = [], 99
    small = [
        "+experiment=smoke",
        "env=key_corridor",
        "env.rooms=4",
        "policy.layers=1",
        "policy.width=32",
        "eval.limit=2",
    ]
    code, _, err = cli("train", *small, "logger=[remembers]", "hydra.run.dir=run", "trainer.updates=1")
    assert (code, err) == (0, "")
    name = (cli.folder / "run" / loggers.ID_FILE).read_text().strip()
    assert name.startswith("run-")
    assert Remembers.said == [
        ("start", name, 0, 1), (0, {"eval"}, ["valid"]), (1, {"rollout"}, []), (1, {"eval"}, ["valid"]), "finish",
    ]  # fmt: skip
    Remembers.said, Remembers.fails_at = [], 2
    code, _, err = cli("train", "resume=run", "trainer.updates=2")
    assert code == 0
    assert Remembers.said == [("start", name, 1, 2)]
    assert "logger remembers failed, and the run goes on without it: ConnectionError: the service is away" in err
    code, _, err = cli("train", "resume=run", "trainer.updates=3", "logger=[]")
    assert (code, err) == (0, "")


def test_unknown_and_missing_loggers_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnknownNameError, match="unknown logger 'tensorbord'; did you mean 'tensorboard'"):
        make_loggers(["tensorbord"])
    monkeypatch.setattr(loggers, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"logger=\[wandb\] needs the package wandb: pip install"):
        make_loggers(["wandb"])
    assert Loggers({}).active == {}
    assert transcript(EPISODE).splitlines()[2:4] == ["[1] <script>alert(1)</script>", "> go north   (reward 0.5)"]
