"""The pictures of a run."""

import json
from pathlib import Path

import matplotlib.image
import matplotlib.pyplot as plt
import pytest
from matplotlib.figure import Figure

from scripts import curve
from scripts.curve import draw_pictures, read_metrics

EVALUATION = {f"eval/shop/valid/{name}": 0.5 for name in ("success", "success_low", "success_high", "score")}
ROLLOUT = {
    "rollout/success": 0.25, "rollout/score": 0.25, "rollout/invalid": 0.1, "rollout/turns": 4.0,
    "rollout/env_steps": 8.0, "tokens/sampled": 24.0, "train/loss": 0.5, "train/kl": 0.01, "train/entropy": 1.5,
}  # fmt: skip


def written(run: Path, lines: list[dict[str, float]]) -> Path:
    run.mkdir(exist_ok=True)
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> dict[str, Figure]:
    """The figures that are drawn from now on, by file name."""
    kept: dict[str, Figure] = {}
    monkeypatch.setattr(curve, "save", lambda figure, target: kept.update({target.name: figure}))
    yield kept
    for figure in kept.values():
        plt.close(figure)


def height(run: Path, score: float) -> int:
    lines = [{"update": 0, **EVALUATION}, {"update": 1, **ROLLOUT, "rollout/score": score}, {"update": 1, **EVALUATION}]
    pictures = draw_pictures(written(run, lines), "a run")
    assert [path.name for path in pictures] == ["curve.png", "diagnostics.png"]
    return matplotlib.image.imread(pictures[0]).shape[0]


def test_a_score_of_its_own_has_a_panel(tmp_path: Path) -> None:
    alone, beside = height(tmp_path / "a", score=0.25), height(tmp_path / "b", score=0.6)
    assert beside == pytest.approx(alone * (1.1 + 6.8) / (1.1 + 3.4), rel=0.01)


def test_evaluations_are_points_with_intervals_and_training_is_a_line(
    tmp_path: Path, figures: dict[str, Figure]
) -> None:
    splits = ("valid_seen", "valid_unseen", "selection")
    evaluation = {
        f"eval/shop/{split}/{name}": value
        for split in splits
        for name, value in {"success": 0.5, "success_low": 0.4, "success_high": 0.7}.items()
    }
    lines = [{"update": 0, **evaluation}]
    lines += [{"update": n, **ROLLOUT, **(evaluation if n == 20 else {})} for n in range(1, 21)]
    draw_pictures(written(tmp_path, lines), "a run")
    (axes,) = figures["curve.png"].axes
    assert len(axes.containers) == len(splits)
    places = []
    for points in axes.containers:
        line, _, bars = points.lines
        assert line.get_linestyle() == "None"
        assert line.get_marker() not in ("", "None", None)
        for segment in bars[0].get_segments():
            assert segment[:, 1] == pytest.approx([0.4, 0.7])
        places.append(line.get_xdata()[0])
    assert len(set(places)) == len(splits)  # none hides another
    assert [len(line.get_xdata()) for line in axes.lines if line.get_linestyle() == "-"] == [20, 20]


def test_the_second_picture_shows_the_diagnostics(tmp_path: Path, figures: dict[str, Figure]) -> None:
    draw_pictures(
        written(tmp_path, [{"update": 0, **EVALUATION}, *({"update": n, **ROLLOUT} for n in (1, 2))]), "a run"
    )
    shown = {axes.get_title(): axes.lines[-1].get_ydata().tolist() for axes in figures["diagnostics.png"].axes}
    assert shown == {
        "loss": [0.5, 0.5],
        "KL to the initial policy": [0.01, 0.01],
        "entropy, nats per token": [1.5, 1.5],
        "invalid turns": [0.1, 0.1],
        "turns per episode": [4.0, 4.0],
        "sampled tokens per turn": [3.0, 3.0],
    }


def test_missing_measurements_are_named_and_not_drawn_as_zero(tmp_path: Path, figures: dict[str, Figure]) -> None:
    skipped = {key: value for key, value in ROLLOUT.items() if key not in ("train/loss", "train/entropy", "train/kl")}
    draw_pictures(written(tmp_path, [{"update": 1, **skipped, "rollout/env_steps": 0.0}]), "a run")
    shown = {axes.get_title(): [text.get_text() for text in axes.texts] for axes in figures["diagnostics.png"].axes}
    missing = {title for title, texts in shown.items() if texts == ["not measured"]}
    assert missing == {
        "loss", "KL to the initial policy", "entropy, nats per token", "sampled tokens per turn"
    }  # fmt: skip


def test_an_axis_does_not_go_below_zero_where_nothing_is_negative(tmp_path: Path, figures: dict[str, Figure]) -> None:
    valid = {**ROLLOUT, "rollout/invalid": 0.0}
    draw_pictures(written(tmp_path, [{"update": 1, **valid}, {"update": 2, **valid}]), "a run")
    assert min(axes.get_ylim()[0] for axes in figures["diagnostics.png"].axes) >= 0


def test_metrics_from_before_there_were_scores_are_drawn(tmp_path: Path) -> None:
    for path in draw_pictures(written(tmp_path, [{"update": 1, "rollout/success": 0.25}]), "a $run of {an} env$"):
        assert path.stat().st_size > 0


def test_a_run_without_an_update_is_drawn(tmp_path: Path) -> None:
    for lines in ([], [{"update": 0, **EVALUATION}]):
        for path in draw_pictures(written(tmp_path, lines), "a run"):
            assert path.stat().st_size > 0


def test_a_last_line_that_is_not_whole_is_left_out_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"update": 1}\n{"upda')
    assert read_metrics(path) == [{"update": 1}]
    for content in ('{"update": 1}\nnonsense\n', '{"update": 1}\n7\n', '{"update": 1}\n{"no": 1}\n'):
        path.write_text(content)
        with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2: "):
            read_metrics(path)
