"""The laboratory: methods × seeds from one warm start, interrupted and resumed, and its report."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
from filelock import FileLock

from algorithms.checkpoint import checkpoint_folder
from scripts import lab_report
from scripts.lab_report import (
    NOT_RUN,
    Ending,
    LabRun,
    Variant,
    markdown,
    read_runs,
    summarise,
    write_report,
    write_tuning,
)
from scripts.run_folder import Command
from tests.scripts.test_commands import Cli

ROOT = Path(__file__).parents[2]
TASKS = [f"task-{n}" for n in range(20)]
COMMAND = Command("lab", ["+experiment=lab_key_corridor", "algos=[grpo,gigpo]"], [])


# -- the report, of runs made by hand ---------------------------------------------------------------------------------
def a_run(folder: Path, solved: list[int], *, seconds: float = 10.0, weights: bytes = b"w", **more: Any) -> Path:
    """A folder as scripts.train leaves it: after update n, so many of `TASKS` are solved, 100 steps an update."""
    start = checkpoint_folder(folder, 0)
    start.mkdir(parents=True)
    (start / "model.safetensors").write_bytes(weights)
    manifests = {"valid": {"sha256": "ab" * 32, "tasks": 20}}
    facts = {"environment": {}, "manifests": manifests, "training": manifests["valid"], "versions": {}, "machine": {}}
    (start / "run.json").write_text(json.dumps(facts))
    (folder / "command.json").write_text(json.dumps({"name": "train", "overrides": ["seed=0"], "config_dirs": []}))
    (folder / "evaluations").mkdir()
    lines = []
    for update, count in enumerate(solved):
        if update:
            line = {"update": update, "rollout/success": 0.5, "rollout/env_steps": 60.0, "signal/env_steps": 40.0}
            line |= {"tokens/sampled": 300.0, "time/rollout_s": seconds - 1, "time/learn_s": 1.0}
            lines.append(line)
        lines.append({"update": update, "eval/corridor/valid/success": count / 20, "time/eval_s": 99.0})
        valid = {task: {"success": n < count, "score": float(n < count)} for n, task in enumerate(TASKS)}
        selection = {"other": {"success": update > 1, "score": float(update > 1)}}
        evaluations = {"valid": {"turns": 8.0 - update, "success": {"n": 20}}, "selection": {}}
        record = {"settings": {}, "evaluations": evaluations, "tasks": {"valid": valid, "selection": selection, **more}}
        (folder / "evaluations" / f"update-{update:06d}.json").write_text(json.dumps(record))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def read(algo: str, seed: int, folder: Path, ending: Ending = Ending.of_finished()) -> LabRun:  # noqa: B008
    return LabRun.read(Variant(algo, seed), folder, ending)


def test_success_gain_difference_and_cost_of_a_method(tmp_path: Path) -> None:
    runs = [read("grpo", s, a_run(tmp_path / f"a{s}", [8, 9, 10 + s])) for s in range(2)]
    runs += [read("gigpo", s, a_run(tmp_path / f"b{s}", [8, 12, 14 + s], seconds=20.0)) for s in range(2)]
    record = summarise(runs, "grpo")
    gigpo, grpo = record["methods"]["gigpo"], record["methods"]["grpo"]
    assert (gigpo["success"]["start"]["mean"], gigpo["success"]["end"]["rate"]["mean"]) == pytest.approx((0.4, 0.725))
    assert gigpo["success"]["end"]["gain"]["mean"] == pytest.approx(0.325)
    assert gigpo["success"]["end"]["difference"]["over_seeds"]["mean"] == pytest.approx(0.2)
    assert gigpo["success"]["end"]["difference"]["seeds"] == [0, 1]
    assert "difference" not in grpo["success"]["end"]
    assert gigpo["cost"] == {"env_steps": 200.0, "seconds": 40.0, "tokens": 600.0}  # of training alone
    assert record["tasks"] == {"valid": 20}  # no task that ranks checkpoints
    # After 20 s GRPO is at its end, and GiGPO at its first update.
    assert record["seconds"] == 20.0
    assert grpo["success"]["seconds"]["rate"]["mean"] == pytest.approx(0.525)
    assert gigpo["success"]["seconds"]["rate"]["mean"] == pytest.approx(0.6)
    half = summarise(runs, "grpo", 30.0)["methods"]["gigpo"]["success"]["seconds"]["rate"]["mean"]
    assert half == pytest.approx((0.6 + 0.725) / 2)


def test_a_run_that_ended_early_counts_with_its_last_evaluation_and_is_shown(tmp_path: Path) -> None:
    diverged = Ending(finished=False, error="update 2: not | finite")
    runs = [read("grpo", s, a_run(tmp_path / f"a{s}", [8, 9, 12])) for s in range(2)]
    runs += [read("gigpo", 0, a_run(tmp_path / "b0", [8, 9, 14]))]
    runs += [read("gigpo", 1, a_run(tmp_path / "b1", [8, 2]), diverged)]
    runs += [read("gigpo", 2, tmp_path / "nothing", Ending(finished=False, error="out of memory"))]
    record = {"command": "lab", **summarise(runs, "grpo")}
    gigpo = record["methods"]["gigpo"]
    assert gigpo["success"]["end"]["rate"]["mean"] == pytest.approx((0.7 + 0.1) / 2)
    assert (gigpo["seeds"], gigpo["ended_early"]) == ([0, 1], [1])
    text = markdown(record)
    assert "| gigpo† | 2 |" in text
    assert "† gigpo: seed 1 ended early and counts with its last evaluation" in text
    assert "gigpo, seed 2 is in no table, because it was never evaluated: ended early: out of memory" in text
    assert "| gigpo | 1 | 1 | 100 | 10 | 40.0% | 10.0% | ended early: update 2: not \\| finite |" in text
    assert "| gigpo | 2 | – | – | – | – | – | ended early: out of memory |" in text


def test_differences_between_runs_are_reported(tmp_path: Path) -> None:
    runs = [
        read("grpo", 0, a_run(tmp_path / "a", [8, 12])),
        read("gigpo", 0, a_run(tmp_path / "b", [9, 4], weights=b"v")),
    ]
    text = markdown({"command": "lab", **summarise(runs, "grpo")})
    assert "2 different warm starts" in text
    assert "gigpo ends below its warm start: -25.0 points" in text
    assert "With a single seed there is no interval" in text
    other = read("rloo", 0, a_run(tmp_path / "c", [9, 4], test={"another": {"success": True, "score": 1.0}}))
    with pytest.raises(ValueError, match="rloo, seed 0 was evaluated on other tasks"):
        summarise([*runs, other], "grpo")


def test_the_files_of_a_report(tmp_path: Path) -> None:
    runs = []
    for algo, last in (("grpo", 10), ("gigpo", 14), ("a_method_with_a_rather_long_name", 6)):
        for seed in range(3):
            test = {f"t{n}": {"success": n < 2, "score": (n + seed) / 8} for n in range(4)}
            runs.append(read(algo, seed, a_run(tmp_path / algo / str(seed), [8, 9, last + seed], test=test)))
    text = write_report(tmp_path, runs, COMMAND, "grpo", None)
    assert (tmp_path / "report.md").read_text() == text
    assert json.loads((tmp_path / "report.json").read_text())["methods"]["gigpo"]["seeds"] == [0, 1, 2]
    assert "python -m scripts.lab +experiment=lab_key_corridor 'algos=[grpo,gigpo]'" in text
    assert "| method | seeds | warm start | score | test | valid | gain | minus grpo | over seeds only |" in text
    assert text == write_report(tmp_path, runs, COMMAND, "grpo", None)
    assert text == write_report(tmp_path, read_runs(tmp_path), COMMAND, "grpo", None)
    for name in ("curves.png", "differences.png"):
        assert matplotlib.image.imread(tmp_path / name).shape[1] > 900


def test_a_report_without_evaluations(tmp_path: Path) -> None:
    text = write_report(tmp_path, [read("grpo", 0, tmp_path / "grpo/0", NOT_RUN)], COMMAND, "grpo", None)
    assert "No run has been evaluated yet" in text
    assert "| grpo | 0 | – | – | – | – | – | ended early: not finished yet |" in text


def test_rates_are_compared_on_the_tasks_that_rank_checkpoints(tmp_path: Path) -> None:
    runs = [
        LabRun.read(
            Variant("grpo", seed, rate),
            a_run(tmp_path / f"{rate}-{seed}", [20, 1, 1] if rate == 1e-3 else [20, 20]),
            Ending.of_finished(),
        )
        for rate in (1e-4, 1e-3)
        for seed in (0, 1)
    ]
    text = write_tuning(tmp_path, runs)
    assert "| grpo | 0.0% | 0.0% | 100.0% | 0.001 |" in text
    assert json.loads((tmp_path / "tuning.json").read_text())["grpo"]["best"] == 1e-3


# -- the command ------------------------------------------------------------------------------------------------------
SMALL = [
    "+experiment=lab_key_corridor", "env.rooms=5", "env.loops=1", "env.max_turns=6", "env.train_tasks=40",
    "env.valid_tasks=6", "eval.selection_tasks=4", "policy.width=16", "policy.layers=1", "policy.heads=2",
    "policy.warm_start.episodes=20", "policy.warm_start.steps=10", "trainer.env_steps=70", "trainer.groups=2",
    "trainer.group_size=2", "trainer.max_turns=6", "trainer.eval_every=1", "trainer.checkpoint_every=1",
    "pool.size=8", "seeds=[0,1]",
]  # fmt: skip
CONF = f"--config-dir={ROOT / 'tests' / 'scripts' / 'conf'}"


def lab(*arguments: str, cache: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "POLYTURN_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.scripts.forked_lab", *arguments], cwd=ROOT, env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def numbers(folder: Path) -> dict[str, Any]:
    """The report without what depends on the clock."""

    def untimed(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: untimed(member) for key, member in value.items() if key not in ("seconds", "command")}
        return [untimed(member) for member in value] if isinstance(value, list) else value

    untimed_record: dict[str, Any] = untimed(json.loads((folder / "report.json").read_text()))
    return untimed_record


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("labs") / "whole"
    process = lab(CONF, *SMALL, "algos=[grpo,gigpo]", f"hydra.run.dir={folder}", cache=cache)
    output, _ = process.communicate(timeout=500)
    assert process.returncode == 0, output
    return folder, output


def test_methods_and_seeds_are_run_from_one_warm_start(whole: tuple[Path, str], cache: Path) -> None:
    folder, output = whole
    record = json.loads((folder / "report.json").read_text())
    assert [(run["algo"], run["seed"], run["finished"]) for run in record["runs"]] == [
        ("grpo", 0, True), ("grpo", 1, True), ("gigpo", 0, True), ("gigpo", 1, True)
    ]  # fmt: skip
    assert len(record["warm_starts"]) == 1
    assert len([path for path in (cache / "warm_starts").iterdir() if path.is_dir()]) == 1
    assert record["tasks"] == {"valid": 6}
    assert all(run["cost"]["env_steps"] >= 70 for run in record["runs"])
    assert all(run["evaluations"][-2]["cost"]["env_steps"] < 70 for run in record["runs"])
    for seed in (0, 1):  # evaluations draw by the seed, so that all methods start at the same number
        assert len({run["start"] for run in record["runs"] if run["seed"] == seed}) == 1
    assert "4/4" in output
    assert (folder / "report.md").read_text() in output
    assert {path.name for path in (folder / "logs").iterdir()} >= {"grpo-0.txt", "gigpo-1.txt"}


def test_a_resumed_laboratory_reports_the_same(whole: tuple[Path, str], cache: Path) -> None:
    """Ended in its second run, while another one has not begun."""
    folder = whole[0].parent / "ended"
    shutil.copytree(whole[0], folder)
    for missing in ("grpo/1", "gigpo/1"):
        shutil.rmtree(folder / missing)
    process = lab(f"resume={folder}", cache=cache)
    deadline = time.monotonic() + 300
    while not (folder / "grpo/1/checkpoints/update-000001").is_dir():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, output
    assert f"resume with: python -m scripts.lab resume={os.path.relpath(folder, ROOT)}" in output
    first = (folder / "grpo/0/metrics.jsonl").stat().st_mtime_ns
    process = lab(f"resume={folder}", cache=cache)
    output, _ = process.communicate(timeout=500)
    assert process.returncode == 0, output
    assert "are finished already" in output
    assert (folder / "grpo/0/metrics.jsonl").stat().st_mtime_ns == first
    assert numbers(folder) == numbers(whole[0])


def test_finished_runs_of_another_laboratory_are_joined(whole: tuple[Path, str], tmp_path: Path, cache: Path) -> None:
    """Without running them again, and only if their settings are the same."""
    joined = [CONF, *SMALL, "algos=[grpo,gigpo]", f"lab.join=[{whole[0]}]", "lab.processes=0"]
    process = lab(*joined, f"hydra.run.dir={tmp_path / 'joined'}", cache=cache)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert "4 more are in the files of lab.join" in output
    assert numbers(tmp_path / "joined") == numbers(whole[0])
    process = lab(*joined, "trainer.learning_rate=1e-4", f"hydra.run.dir={tmp_path / 'other'}", cache=cache)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 2
    assert "grpo, seed 0 in" in output
    assert "had other settings than here: ['trainer.learning_rate=1e-4']" in output


def test_the_runs_of_a_laboratory_that_is_killed_end(whole: tuple[Path, str], cache: Path) -> None:
    """With -9. They would hold the locks of their folders, so that the laboratory could not be resumed."""
    folder = whole[0].parent / "killed"
    process = lab(CONF, *SMALL, "trainer.env_steps=5000", "algos=[grpo]", f"hydra.run.dir={folder}", cache=cache)
    deadline = time.monotonic() + 300
    while not (folder / "grpo/0/.lock").is_file():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.wait()
    FileLock(folder / "grpo/0/.lock").acquire(timeout=60).lock.release()


def test_a_run_that_diverges_is_shown_and_ends_no_other(whole: tuple[Path, str], cache: Path) -> None:
    """Added to a laboratory that has finished."""
    folder, _ = whole
    before = numbers(folder)
    process = lab(CONF, f"resume={folder}", "algos=[grpo,diverges,gigpo]", "seeds=[0,1]", cache=cache)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 2, output
    assert "2 of 6 runs failed (diverges, seed 0, diverges, seed 1); the report shows them" in output
    record = numbers(folder)
    assert record["methods"]["gigpo"] == before["methods"]["gigpo"]
    failed = [run for run in record["runs"] if run["algo"] == "diverges"]
    assert [run["finished"] for run in failed] == [False, False]
    assert all("not finite" in run["ending"] for run in failed)
    assert "| diverges† | 2 |" in (folder / "report.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["algo=grpo"], "scripts.lab sets algo for each run: use algos=[…] instead"),
        (["seed=3"], "scripts.lab sets seed for each run"),
        (["algos=[grpo,gigpoo]"], "did you mean 'gigpo'"),
        (["algos=[gigpo]"], "lab.baseline"),
        (["algos=[gigpoo]"], "did you mean 'gigpo'"),
        (["lab.rates=[1e-3]", "eval.selection_tasks=0"], "eval.selection_tasks is 0"),
        (["trainer.groops=2"], "groups"),
        (["lab.processes=-1"], "lab.processes must be a whole number"),
        (["split=test"], "unknown split"),
        (["--multirun"], "scripts.lab starts its own runs"),
        (["model=nowhere"], "no model at nowhere"),
        (["lab.join=[nowhere]"], "lab.join: nowhere does not exist"),
    ],
)
def test_mistakes_raise_before_any_run_starts(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cli = Cli(tmp_path, capsys, monkeypatch)
    given = {argument.partition("=")[0] for argument in arguments}
    rest = [argument for argument in SMALL if argument.partition("=")[0] not in given]
    code, _, err = cli("lab", *rest, *arguments, "hydra.run.dir=out")
    assert (code, len(err.splitlines())) == (2, 1), err
    assert message in err
    assert not (tmp_path / "out" / "logs").exists()


def test_curves_end_with_the_numbers_of_the_table(tmp_path: Path) -> None:
    runs = [read("grpo", 0, a_run(tmp_path / "a", [8, 9, 12, 14])), read("grpo", 1, a_run(tmp_path / "b", [8, 9]))]
    figure = lab_report.curves({"command": "", **summarise(runs, "grpo")})
    (line,) = figure.axes[0].lines
    np.testing.assert_allclose(line.get_xdata()[[0, -1]], [0, 200])  # the mean of 300 and 100 steps
    np.testing.assert_allclose(line.get_ydata()[[0, -1]], [0.4, 0.575])
    (turns,) = figure.axes[3].lines
    np.testing.assert_allclose(turns.get_ydata()[[0, -1]], [8.0, 6.0])  # the mean of 5 and 7
