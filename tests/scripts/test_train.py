"""The main command as a user runs it: the smoke experiment, killed and resumed, and errors for mistakes."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from agents.record import read_record
from tests.scripts.test_commands import Cli

ROOT = Path(__file__).parents[2]
SMOKE = ["+experiment=smoke", "trainer.updates=4", "eval.splits=[valid_seen]", "eval.selection_tasks=8"]


def start(*arguments: str, cache: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "scripts.train", *arguments]
    environment = {**os.environ, "POLYTURN_CACHE": str(cache)}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def metrics(run: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith(("time/", "perf/"))} for line in lines]


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, cache: Path) -> tuple[Path, str]:
    run = tmp_path_factory.mktemp("runs") / "whole"
    process = start(*SMOKE, f"hydra.run.dir={run}", cache=cache)
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output
    return run, output


@pytest.fixture
def train(tmp_path: Path, cache: Path, capsys, monkeypatch) -> Callable[..., tuple[int, str]]:
    """Trains in this process, which has imported torch. Returns the exit code, and what is printed."""
    monkeypatch.setenv("POLYTURN_CACHE", str(cache))
    cli = Cli(tmp_path, capsys, monkeypatch, pictures=True)

    def run(*arguments: str) -> tuple[int, str]:
        code, out, err = cli("train", *arguments)
        return code, out + err

    return run


def test_a_run_writes_the_files_that_the_readme_lists(whole: tuple[Path, str]) -> None:
    run, output = whole
    for name in ("metrics.jsonl", "evaluation.json", "evaluation.md", "curve.png", ".hydra/config.yaml"):
        assert (run / name).stat().st_size > 0, name
    assert (run / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert "games generated from floor plans" in output
    assert "update 4/4" in output
    assert re.search(
        r"\| update \| valid_seen \| selection \|\n\|---:\|---:\|---:\|\n\| 0 \| .*%\) \|\n\| 4 \| .*%\) \|\n", output
    )
    record = json.loads((run / "evaluation.json").read_text())
    assert record["evaluations"]["valid_seen"]["success"]["n"] == 8
    assert record["machine"]["threads"] >= 1
    assert record["manifests"].keys() == {"train", "valid_seen"}
    assert record["environment"]["games"] == "embedded"
    report = (run / "evaluation.md").read_text()
    assert "games generated from floor plans" in report
    assert f"manifest {record['manifests']['train']['sha256'][:12]}" in report
    rollouts = [line for line in metrics(run) if "rollout/success" in line]
    assert [line["update"] for line in rollouts] == [1, 2, 3, 4]
    assert all(line["rollout/episodes"] == 8 for line in rollouts)


def test_tasks_that_are_not_trained_on_choose_the_checkpoint(whole: tuple[Path, str]) -> None:
    run, output = whole
    record = json.loads((run / "evaluation.json").read_text())
    held_out = record["selection"]["tasks"]
    assert len(held_out) == 8
    assert "8 tasks of train, held out from training" in output
    trained = {e.task.id for path in (run / "episodes").iterdir() for e in read_record(path).episodes}
    assert trained
    assert not trained & set(held_out)
    for split in ("valid_seen", "selection"):
        evaluated = read_record(run / f"evaluations/update-000004.{split}.jsonl.gz")
        assert (evaluated.update, evaluated.split, len(evaluated.episodes)) == (4, split, 8)
        assert all(turn.completion_ids and not turn.prompt_ids for e in evaluated.episodes for turn in e.turns)
    rates = {m["update"]: m[key] for m in metrics(run) if (key := "eval/alfworld/selection/success") in m}
    best = max(rates, key=rates.get)
    assert record["selection"]["best"] == [rates[best], best]
    report = (run / "evaluation.md").read_text()
    assert f"the one after {best} updates: it solved {rates[best]:.1%} of the 8 tasks of train" in report
    assert "## selection" not in report
    assert set(record["evaluations"]) == {"valid_seen"}


def test_an_evaluation_stores_the_outcome_of_each_task(whole: tuple[Path, str]) -> None:
    run, _ = whole
    held_out = json.loads((run / "evaluation.json").read_text())["selection"]["tasks"]
    for update in (0, 4):
        kept = json.loads((run / f"evaluations/update-{update:06d}.json").read_text())
        outcomes = kept["tasks"]["valid_seen"]
        assert len(outcomes) == 8
        assert sum(o["success"] for o in outcomes.values()) == kept["evaluations"]["valid_seen"]["success"]["successes"]
        assert sum(o["score"] for o in outcomes.values()) / 8 == kept["evaluations"]["valid_seen"]["score"]
        assert list(kept["tasks"]["selection"]) == held_out


def test_a_resumed_run_equals_an_uninterrupted_one(whole, cache: Path, tmp_path: Path, train) -> None:
    """After Ctrl-C; `python -m tests.kills` kills at any moment."""
    run = tmp_path / "ended"
    process = start(*SMOKE, f"hydra.run.dir={run}", cache=cache)
    deadline = time.monotonic() + 300
    while not (run / "checkpoints/update-000001").is_dir():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert not (run / "evaluation.md").exists()
    (run / ".hydra/overrides.yaml").write_text("")
    assert process.returncode == 0, output
    assert f"resume with: python -m scripts.train resume={os.path.relpath(run, ROOT)}" in output
    code, output = train(f"resume={run}")
    assert code == 0, output
    assert metrics(run) == metrics(whole[0])
    newest = "checkpoints/update-000004/model.safetensors"
    weights, expected = load_file(run / newest), load_file(whole[0] / newest)
    assert all((weights[name] == expected[name]).all() for name in expected)
    assert not list((run / "checkpoints").glob(".*"))
    for report in ("evaluation.md", "evaluation.json", "curve.png"):
        assert (run / report).read_bytes() == (whole[0] / report).read_bytes()


def test_a_complete_run_is_not_changed_and_a_missing_report_is_written(whole, train, tmp_path: Path) -> None:
    run = tmp_path / "complete"
    shutil.copytree(whole[0], run)

    def contents() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in run.rglob("*") if path.is_file()}

    before, times = contents(), {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    code, output = train(f"resume={run}")
    assert (code, f"{run} is complete after 4 updates" in output) == (0, True), output
    assert (contents(), {path: path.stat().st_mtime_ns for path in run.rglob("*")}) == (before, times)
    (run / "evaluation.md").unlink()
    (run / "curve.png").unlink()
    (run / "evaluation.json").write_text((run / "evaluation.json").read_text()[:100])
    code, output = train(f"resume={run}")
    assert code == 0, output
    assert contents() == before


def test_a_complete_run_continues_with_more_updates(whole, train, tmp_path: Path) -> None:
    run = tmp_path / "complete"
    shutil.copytree(whole[0], run)
    code, output = train(f"resume={run}", "trainer.updates=5")
    assert (code, "update 5/5" in output) == (0, True), output
    assert json.loads((run / "evaluation.json").read_text())["updates"] == 5
    assert metrics(run)[: len(metrics(whole[0]))] == metrics(whole[0])
    code, output = train(f"resume={run}")  # the change was kept
    assert (code, f"{run} is complete after 5 updates" in output) == (0, True), output


def test_a_run_is_not_resumed_with_other_settings(whole, train) -> None:
    code, output = train(f"resume={whole[0]}", "env.max_turns=9")
    assert (code, "environment.max_turns was 50 and is 9" in output) == (2, True), output
    code, output = train(f"resume={whole[0]}", "trainer.updates=4", "pool.size=64")
    assert (code, "changed since the last start: pool.size was 128 and is 64" in output) == (0, True), output


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ("env=alfwrld", "did you mean 'alfworld'"),
        ("algo=gigp", "did you mean 'gigpo'"),
        ("trainer.update=3", "did you mean 'updates'"),
        ("split=trian", "did you mean 'train'"),
        ("eval.splits=[valid_sen]", "did you mean 'valid_seen'"),
        ("env.engine=textword", "did you mean 'textworld'"),
        ("algo.estimator.mode=mean", "did you mean 'mean_norm'"),
        ("trainer.precision=float23", "did you mean 'float32'"),
        ("model=/no/such/folder", "no model at /no/such/folder"),
        ("resume=/no/such/run", "nothing to resume in /no/such/run"),
        ("env.games=official", "scripts.download alfworld"),
        ("eval.selection_tasks=17", "eval.selection_tasks=17 cannot be held out of the 64 tasks of train"),
        ("trainer.groups=0", "trainer.groups must be a whole number from 1"),
    ],
)
def test_a_mistake_is_an_error_of_one_line(train, tmp_path: Path, monkeypatch, mistake: str, message: str) -> None:
    monkeypatch.setenv("POLYTURN_DATA", str(tmp_path / "no-data"))
    code, printed = train(*SMOKE, mistake)
    assert code == 2, printed
    assert message in printed.rpartition("error: ")[2]
    assert "Traceback" not in printed
    assert not list(tmp_path.iterdir())
