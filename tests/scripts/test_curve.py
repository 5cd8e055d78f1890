"""The picture of a run has a panel for the score only where there is one beside success."""

import json
from pathlib import Path

import matplotlib.image
import pytest

from scripts.curve import draw_curve

EVALUATION = {f"eval/shop/valid/{name}": 0.5 for name in ("success", "success_low", "success_high", "score")}


def drawn(run: Path, score: float) -> int:
    """The height of the picture."""
    run.mkdir()
    rollout = {"rollout/success": 0.25, "rollout/score": score}
    lines = [{"update": 0, **EVALUATION}, {"update": 1, **rollout}, {"update": 1, **EVALUATION}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return matplotlib.image.imread(draw_curve(run, "a run")).shape[0]


def test_a_score_of_its_own_has_a_panel(tmp_path: Path) -> None:
    alone, beside = drawn(tmp_path / "a", score=0.25), drawn(tmp_path / "b", score=0.6)
    assert beside == pytest.approx(alone * (1.1 + 6.8) / (1.1 + 3.4), rel=0.01)


def test_metrics_from_before_there_were_scores_are_drawn(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"update": 1, "rollout/success": 0.25}) + "\n")
    assert draw_curve(tmp_path, "a run").stat().st_size > 0
