"""Comparing training runs: reading, grouping, labels, the table and the picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib.image
import matplotlib.pyplot as plt
import numpy as np
import pytest
import yaml

from agents.statistics import seed_interval, two_level_interval
from scripts import compare
from scripts.compare import grouped, line_of, main, read_run, read_runs

CHOICES = {"env": "corridor", "agent": "transcript", "policy": "tiny", "hydra/help": "default"}


def a_run(
    folder: Path,
    algo: str = "gigpo",
    success: tuple[float, ...] = (0.0, 1.0),
    *,
    seed: int = 0,
    more: Any = None,
    **set_: Any,
) -> Path:
    """A folder as scripts.train leaves it. `set_` are keys of the configuration, with __ for a dot."""
    config: dict[str, Any] = {
        "env": {"rooms": 8},
        "algo": {"estimator": {"_target_": f"algorithms.estimators.{algo}", "gamma": 0.95}, "loss": {"eps_low": 0.2}},
        "trainer": {"updates": 100, "learning_rate": 0.0006},
        "seed": seed,
        "resume": None,
    }
    for key, value in set_.items():
        *parents, leaf = key.split("__")
        place = config
        for parent in parents:
            place = place.setdefault(parent, {})
        place[leaf] = value
    (folder / ".hydra").mkdir(parents=True)
    choices = {"runtime": {"choices": {**CHOICES, "algo": algo}}}
    (folder / ".hydra" / "hydra.yaml").write_text(yaml.safe_dump({"hydra": choices}))
    (folder / ".hydra" / "config.yaml").write_text(yaml.safe_dump(config))
    lines = [{"update": 0, "eval/corridor/valid/success": 0.25, "eval/corridor/selection/success": 0.125}]
    lines += [
        {"update": n + 1, "rollout/success": s, "rollout/score": s, "rollout/env_steps": 40.0, **(more or {})}
        for n, s in enumerate(success)
    ]
    if success:
        lines.append({"update": len(success), "eval/corridor/valid/success": success[-1]})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def names_of(folder: Path) -> list[str]:
    return [group.label for group in grouped([read_run(path) for path in sorted(folder.iterdir())])]


def test_seeds_are_one_line_and_methods_several(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, last in ((0, 0.5), (1, 0.75)):
        a_run(tmp_path / f"g{seed}", "gigpo", (0.0, 0.0, last), seed=seed)
        a_run(tmp_path / f"v{seed}", "vineppo", seed=seed, more={"signal/env_steps": 60.0})
    main([str(tmp_path)])
    output = capsys.readouterr().out
    untrained = "25.0% (25.0% – 25.0%)"
    gigpo, vineppo = "20.8% (16.7% – 25.0%)", "50.0% (50.0% – 50.0%)"
    assert f"| algo=gigpo | 2 | 120 | {gigpo} | {gigpo} | valid | {untrained} | 62.5% (50.0% – 75.0%) |" in output
    assert (
        f"| algo=vineppo | 2 | 200 | {vineppo} | {vineppo} | valid | {untrained} | 100.0% (100.0% – 100.0%) |" in output
    )
    assert "selection" not in output
    assert (tmp_path / "compare.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "compare.md").read_text() in output


def test_the_folders_that_are_read_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder may have tens of thousands of files. Only a terminal shows it."""
    for name in ("a", "b"):
        a_run(tmp_path / name, "grpo")
    said: list[str] = []
    assert len(read_runs([tmp_path], said.append)[0]) == 2
    assert said == [
        f"looking for runs in {tmp_path}",
        f"reading run 1 of 2: {tmp_path / 'a'}",
        f"reading run 2 of 2: {tmp_path / 'b'}",
    ]
    main([str(tmp_path)])
    assert capsys.readouterr().err == ""


def test_a_score_is_shown_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a_run(tmp_path / "r", "grpo", more={"rollout/score": 0.75})
    main([str(tmp_path)])
    output = capsys.readouterr().out
    assert "| | runs | steps | first | last | first score | last score | split | before | after |" in output
    assert "| 1 | 80 | 50.0% | 50.0% | 0.750 | 0.750 | valid | 25.0% | 100.0% |" in output


def test_a_line_is_the_smoothed_success_over_the_steps(tmp_path: Path) -> None:
    run = read_run(a_run(tmp_path / "r", "grpo", (0.0, 1.0, 1.0), seed=3))
    np.testing.assert_array_equal(run.steps, [40, 80, 120])
    steps, success = line_of([run], "success")
    assert (steps[0], steps[-1]) == (40, 120)
    np.testing.assert_allclose(success[0][[0, -1]], [0.0, 2 / 3])
    assert run.seed == 3


def test_runs_of_a_single_update_have_a_point_where_the_shorter_ends(tmp_path: Path) -> None:
    runs = [read_run(a_run(tmp_path / str(n), success=(0.5,), more={"rollout/env_steps": n})) for n in (30.0, 50.0)]
    steps, success = line_of(runs, "success")
    assert (steps.tolist(), success.tolist()) == ([30.0], [[0.5], [0.5]])


# -- which are read ---------------------------------------------------------------------------------------------------
def test_a_folder_that_is_no_run_is_named_and_the_others_are_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a_run(tmp_path / "good")
    (tmp_path / "alien").mkdir()
    (tmp_path / "alien" / "metrics.jsonl").write_text("{}\n")
    bad = {
        "broken": ("metrics.jsonl", '{"update": 1}\nnonsense\n{"update": 2}\n', "line 2"),
        "binary": ("metrics.jsonl", b"\xff\xfe\n", "line 1"),
        "listed": ("metrics.jsonl", "[1]\n", "line 1"),
        "old": ("metrics.jsonl", '{"update": 1, "rollout/success": 1}\n', "rollout/env_steps"),
        "text": ("metrics.jsonl", '{"update": 1, "rollout/success": "x", "rollout/env_steps": 1, "rollout/score": 1}\n',
                 "expected numbers"),
        "seeds": (".hydra/config.yaml", "seed: [1]", ".hydra"),
        "choice": (".hydra/hydra.yaml", "hydra: {runtime: {choices: 3}}\n", ".hydra"),
        "cut": (".hydra/config.yaml", "a: [1", "config.yaml"),
        "other": (".hydra/hydra.yaml", "a: 1\n", ".hydra"),
        "empty": (".hydra/config.yaml", "", ".hydra"),
    }  # fmt: skip
    for name, (file, content, _) in bad.items():
        run = a_run(tmp_path / name)
        (run / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    (tmp_path / "hollow").mkdir()
    main([str(tmp_path), str(tmp_path / "hollow"), str(tmp_path / "nowhere")])
    output = capsys.readouterr()
    left_out = [line for line in output.err.splitlines() if line.startswith("left out: ")]
    assert len(left_out) == 3 + len(bad)
    for name, reason in [("alien", "not a run of scripts.train"), ("hollow", "has no metrics.jsonl"),
                         ("nowhere", "not a folder"), *((n, reason) for n, (_, _, reason) in bad.items())]:  # fmt: skip
        assert any(f"/{name}" in line and reason in line for line in left_out), (name, output.err)
    assert "| env=corridor algo=gigpo | 1 | 80 |" in output.out


def test_without_any_run_it_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(FileNotFoundError, match=r"no training run in .*expected"):
        main([str(tmp_path)])
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(FileNotFoundError, match=r"no training run in .*expected"):
        main([str(tmp_path)])
    assert "not a run of scripts.train" in capsys.readouterr().err
    assert not list(tmp_path.glob("compare.*"))


def test_a_folder_that_is_named_twice_is_read_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = a_run(tmp_path / "sweep" / "0")
    main([str(tmp_path / "sweep"), str(run), str(tmp_path / "sweep" / ".." / "sweep")])
    assert "| env=corridor algo=gigpo | 1 |" in capsys.readouterr().out


def test_a_running_run_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = a_run(tmp_path / "r", success=(0.5, 0.5))
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"update": 3, "roll')
    young = a_run(tmp_path / "y", "grpo", success=())
    main([str(tmp_path)])
    output = capsys.readouterr().out
    assert "| algo=gigpo | 1 | 80 |" in output
    assert "| algo=grpo | 1 | 0 | – | – | valid | 25.0% | – |" in output
    main([str(young)])
    assert "no run has finished an update yet" in capsys.readouterr().out
    assert not (young / "compare.png").exists()


def test_a_seed_that_ended_early_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a_run(tmp_path / "0", success=(0.5,) * 4)
    a_run(tmp_path / "1", success=(0.5,) * 2, seed=1)
    main([str(tmp_path)])
    assert "env=corridor algo=gigpo: its runs have 2 to 4 updates" in capsys.readouterr().out


# -- names ------------------------------------------------------------------------------------------------------------
def test_the_same_configuration_by_other_overrides_is_one_group(tmp_path: Path) -> None:
    for seed in (0, 1):
        run = a_run(tmp_path / str(seed), seed=seed, resume=None if seed else "some/folder")
        (run / ".hydra" / "overrides.yaml").write_text(f"- trainer.updates=100\n- seed={seed}\n" if seed else "[]")
    assert names_of(tmp_path) == ["env=corridor algo=gigpo"]


def test_a_method_is_named_by_its_file_and_not_by_all_that_the_file_sets(tmp_path: Path) -> None:
    a_run(tmp_path / "0", "gigpo", algo__loss__eps_low=0.1, algo__estimator__mode="mean_norm")
    a_run(tmp_path / "1", "grpo")
    assert names_of(tmp_path) == ["algo=gigpo", "algo=grpo"]


def test_a_label_is_as_long_as_needed_to_be_unique(tmp_path: Path) -> None:
    a_run(tmp_path / "0", "grpo")
    a_run(tmp_path / "1", "gigpo", algo__estimator__penalty=0.1)
    a_run(tmp_path / "2", "gigpo", algo__estimator__penalty=0.01)
    a_run(tmp_path / "3", "gigpo", algo__estimator__penalty=0.01, trainer__updates=12)
    assert names_of(tmp_path) == [
        "algo=grpo",
        "algo=gigpo updates=100 penalty=0.1",
        "algo=gigpo updates=100 penalty=0.01",
        "algo=gigpo updates=12",
    ]


def test_labels_use_longer_keys_if_endings_are_shared(tmp_path: Path) -> None:
    for n, rate in enumerate((0.001, 1e-5, 1234567.25)):
        a_run(tmp_path / str(n), trainer__learning_rate=rate, algo__signals__critic__learning_rate=0.1)
    assert names_of(tmp_path) == [
        "trainer.learning_rate=0.001",
        "trainer.learning_rate=1e-05",
        "trainer.learning_rate=1234567.25",
    ]


def test_a_label_names_a_setting_that_a_group_lacks(tmp_path: Path) -> None:
    a_run(tmp_path / "0", policy__lora__rank=8)
    a_run(tmp_path / "1")
    assert names_of(tmp_path) == ["rank=8", "no rank"]


def test_labels_omit_the_common_beginning_of_long_values(tmp_path: Path) -> None:
    for n in range(2):
        a_run(tmp_path / str(n), model=f"/home/me/models/outputs/alfworld/run-{n}/checkpoint")
    assert names_of(tmp_path) == ["model=run-0/checkpoint", "model=run-1/checkpoint"]


def test_different_values_with_the_same_text_are_two_groups(tmp_path: Path) -> None:
    a_run(tmp_path / "0", trainer__precision=True)
    a_run(tmp_path / "1", trainer__precision="true")
    a_run(tmp_path / "2", trainer__precision=None)
    assert names_of(tmp_path) == ["precision=true", "precision=true", "precision=null"]


# -- the picture ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("count", [1, 2, 6, 12])
def test_every_group_has_a_panel_of_its_own_and_no_text_is_clipped(
    tmp_path: Path, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = f"/a/folder/with a ${'{'}name{'}'}$/that is/as long/as {'they come ' * 12}"  # two $ are no formula
    for n in range(count):
        a_run(tmp_path / str(n), model=f"{n}{path}", more={"rollout/score": 0.5})
    figures = []
    monkeypatch.setattr(compare, "save", lambda figure, target: figures.append(figure))
    main([str(tmp_path)])
    (figure,) = figures
    try:
        figure.draw_without_rendering()
        success, score = figure.subfigs
        for part in (success, score):
            assert len(part.axes) == count
            for axes in part.axes:
                assert len(axes.lines) == count  # its own, and in grey those of the others
                assert len({line.get_color() for line in axes.lines}) == min(count, 2)
        texts = [t for part in (figure, success, score) for t in (part._suptitle, part._supxlabel, part._supylabel)]
        texts += [axes.title for part in (success, score) for axes in part.axes]
        for text in texts:
            if text is not None:
                box = text.get_window_extent()
                assert figure.bbox.padded(1).contains(box.x0, box.y0), text
                assert figure.bbox.padded(1).contains(box.x1, box.y1), text
        for part in (success, score):
            for axes in part.axes:
                assert axes.title.get_window_extent().width <= 1.15 * axes.get_window_extent().width
                assert axes.get_window_extent().height > 100  # pixels at 100 dpi
    finally:
        plt.close(figure)


def test_the_picture_is_written(tmp_path: Path) -> None:
    for n in range(2):
        a_run(tmp_path / str(n), env__rooms=n)
    main([str(tmp_path), "--output", str(tmp_path / "made" / "here")])
    assert matplotlib.image.imread(tmp_path / "made" / "here" / "compare.png").shape[1] > 1000


def test_a_command_without_folders_is_an_error_of_one_line() -> None:
    with pytest.raises(ValueError, match="the following arguments are required: FOLDER; see --help"):
        main([])


# -- differences between groups ---------------------------------------------------------------------------------------
def evaluated(run: Path, solved: int, *, tasks: int = 20, manifest: str = "ab") -> None:
    """The last evaluation of a run, in which so many of the tasks were solved."""
    outcomes = {f"t{n:02d}": {"success": n < solved, "score": 0.0} for n in range(tasks)}
    (run / "evaluations").mkdir()
    (run / "evaluations" / "update-000000.json").write_text(json.dumps({"tasks": {"valid": {}}}))
    record = {"tasks": {"valid": outcomes, "selection": outcomes}}
    (run / "evaluations" / "update-000002.json").write_text(json.dumps(record))
    (run / "checkpoints" / "update-000000").mkdir(parents=True)
    facts = {"manifests": {"valid": {"sha256": manifest}}}
    (run / "checkpoints" / "update-000000" / "run.json").write_text(json.dumps(facts))


def test_last_evaluations_are_compared_by_seed_and_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in range(3):
        evaluated(a_run(tmp_path / f"a{seed}", "gigpo", seed=seed), 12 + seed)
        evaluated(a_run(tmp_path / f"b{seed}", "grpo", seed=seed), 8)
    main([str(tmp_path)])
    text = (tmp_path / "compare.md").read_text()
    row = next(
        line for line in text.splitlines() if line.startswith("| algo=gigpo | algo=grpo | valid | 3 | 20 | +25.0 |")
    )
    matrix = np.array([[8 <= n < 12 + seed for n in range(20)] for seed in range(3)]).astype(float)
    both, seeds = two_level_interval(matrix), seed_interval(matrix.mean(1).tolist())
    for interval in (both, seeds):
        assert f"| {100 * interval.low:+.1f} … {100 * interval.high:+.1f} |" in row
    assert row.endswith("| 0.250 | 0.250 |")  # all signs of three seeds
    assert "selection" not in text
    capsys.readouterr()


def test_runs_that_were_evaluated_on_other_tasks_are_named_and_not_compared(tmp_path: Path) -> None:
    evaluated(a_run(tmp_path / "a", "gigpo"), 12)
    evaluated(a_run(tmp_path / "b", "grpo"), 8, manifest="cd")
    main([str(tmp_path)])
    text = (tmp_path / "compare.md").read_text()
    assert (
        f"{tmp_path / 'b'} and {tmp_path / 'a'} are not compared on valid: they were evaluated on other tasks." in text
    )
    assert "a minus b" not in text
