"""Runs of a sweep side by side."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from scripts.compare import line_of, main, read_run


def a_run(folder: Path, overrides: list[str], success: list[float], **more: float) -> Path:
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "overrides.yaml").write_text("".join(f"- {o}\n" for o in overrides))
    lines = [{"update": 0, "eval/corridor/valid/success": 0.25, "eval/corridor/selection/success": 0.125}]
    lines += [
        {"update": n + 1, "rollout/success": s, "rollout/score": s, "rollout/env_steps": 40.0, **more}
        for n, s in enumerate(success)
    ]
    lines.append({"update": len(success), "eval/corridor/valid/success": success[-1]})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_seeds_are_one_line_and_methods_several(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, last in ((0, 0.5), (1, 0.75)):
        a_run(tmp_path / f"g{seed}", ["env=corridor", "algo=gigpo", f"seed={seed}"], [0.0, 0.0, last])
        a_run(
            tmp_path / f"v{seed}",
            ["env=corridor", "algo=vineppo", f"seed={seed}"],
            [0.0, 1.0],
            **{"signal/env_steps": 60.0},
        )
    main([str(tmp_path)])
    said = capsys.readouterr().out
    untrained = "25.0% (25.0% – 25.0%)"
    gigpo, vineppo = "20.8% (16.7% – 25.0%)", "50.0% (50.0% – 50.0%)"
    assert f"| algo=gigpo | 2 | 120 | {gigpo} | {gigpo} | valid | {untrained} | 62.5% (50.0% – 75.0%) |" in said
    assert (
        f"| algo=vineppo | 2 | 200 | {vineppo} | {vineppo} | valid | {untrained} | 100.0% (100.0% – 100.0%) |" in said
    )
    assert "selection" not in said
    assert (tmp_path / "compare.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "compare.md").read_text() in said


def test_a_score_beside_success_is_told_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a_run(tmp_path / "r", ["env=webshop", "algo=grpo"], [0.0, 1.0], **{"rollout/score": 0.75})
    main([str(tmp_path)])
    said = capsys.readouterr().out
    assert "| | seeds | steps | first | last | first score | last score | split | before | after |" in said
    assert "| 1 | 80 | 50.0% | 50.0% | 0.750 | 0.750 | valid | 25.0% | 100.0% |" in said


def test_a_line_is_the_smoothed_success_over_the_steps(tmp_path: Path) -> None:
    run = read_run(a_run(tmp_path / "r", ["algo=grpo"], [0.0, 1.0, 1.0]))
    np.testing.assert_array_equal(run.steps, [40, 80, 120])
    steps, success = line_of([run], "success")
    assert (steps[0], steps[-1]) == (40, 120)
    np.testing.assert_allclose(success[0][[0, -1]], [0.0, 2 / 3])
    assert (run.name, run.seed) == ("algo=grpo", "0")


def test_what_holds_no_run_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"expected a metrics\.jsonl"):
        main([str(tmp_path)])
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(FileNotFoundError, match=r"no run of scripts\.train"):
        main([str(tmp_path)])
