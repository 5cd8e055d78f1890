"""The pictures of a run: its results, and diagnostics that explain them.

    RUN/curve.png          success, and the score where an environment gives one: in training, and in evaluations
    RUN/diagnostics.png    loss, KL, entropy, invalid turns, turns per episode, tokens per turn

Training is a line. Evaluations are points with their 95 % intervals: a line between them would suggest a trend that a
few intervals do not support.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from envs.files import whole_file

if TYPE_CHECKING:  # matplotlib takes a second to import, and mistakes are reported before that
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Line: TypeAlias = Mapping[str, float]  # a line of metrics.jsonl

SMOOTH = 10  # updates of the moving average
SELECTION = "selection"  # name of the tasks that rank the checkpoints
PICTURES = ("curve.png", "diagnostics.png")
DODGE = 0.012  # distance between the intervals of one evaluation, as a share of the width
WIDTH = 7.2  # inches


# The diagnostics: a number for each update, computed from its line of metrics.jsonl.
QUANTITIES: dict[str, Callable[[Line], float]] = {
    "loss": lambda line: line["train/loss"],
    "KL to the initial policy": lambda line: line["train/kl"],  # absent without a reference policy (`algo.kl_coef=0`)
    "entropy, nats per token": lambda line: line["train/entropy"],
    "invalid turns": lambda line: line["rollout/invalid"],
    "turns per episode": lambda line: line["rollout/turns"],
    "sampled tokens per turn": lambda line: line["tokens/sampled"] / line["rollout/env_steps"],
}


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The lines of a `metrics.jsonl`. An incomplete last line, of a run that continues or was killed, is skipped.

    Raises `ValueError` naming a line without metrics, `FileNotFoundError` and other kinds of `OSError`.
    """
    lines: list[dict[str, float]] = []
    *whole, _ = path.read_text(encoding="utf-8", errors="replace").split("\n")
    for number, text in enumerate(whole, 1):
        try:
            line = json.loads(text)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: not JSON ({error})") from error
        if not isinstance(line, dict) or "update" not in line:
            raise ValueError(f"{path}, line {number}: expected an object with the key 'update', got {text:.80}")
        lines.append(line)
    return lines


def is_success(metric: str) -> bool:
    """Whether it is the success rate of a whole split, `eval/<env>/<split>/success`."""
    return metric.startswith("eval/") and metric.endswith("/success") and metric.count("/") == 3


def has_score(lines: Sequence[Line]) -> bool:
    """Whether the score differs from success."""
    return any("rollout/score" in line and line["rollout/score"] != line["rollout/success"] for line in lines)


def moving_mean(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """The mean of each of `values` [U] and up to `window` - 1 values before it, [U]."""
    return np.array([values[max(0, i - window + 1) : i + 1].mean() for i in range(len(values))])


def draw_pictures(run: Path, title: str) -> list[Path]:
    """Draw `PICTURES` of a run from its `metrics.jsonl`, and return their paths."""
    lines = read_metrics(run / "metrics.jsonl")
    targets = [run / name for name in PICTURES]
    for target, figure in zip(targets, (_curve(lines, title), _diagnostics(lines, title)), strict=True):
        save(figure, target)
    return targets


def save(figure: Figure, target: Path) -> None:
    """Write a figure as a PNG, completely or not at all."""
    with whole_file(target) as partial:
        figure.savefig(partial, format="png", dpi=150)


# -- results ----------------------------------------------------------------------------------------------------------
def _curve(lines: Sequence[Line], title: str) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    shown = ["success", "score"] if has_score(lines) else ["success"]
    figure = Figure(figsize=(WIDTH, 1.1 + 3.4 * len(shown)), layout="constrained")
    axes = figure.subplots(len(shown), sharex=True, squeeze=False)
    for panel, quantity in zip(axes[:, 0], shown, strict=True):
        _training(panel, lines, lambda line, quantity=quantity: line[f"rollout/{quantity}"])
        _evaluations(panel, lines, quantity)
        panel.set(ylabel=quantity, ylim=(-0.02, 1.02))
    top, bottom = axes[0, 0], axes[-1, 0]
    top.set_title(title, parse_math=False)
    top.yaxis.set_major_formatter(PercentFormatter(1.0))
    _updates(bottom)
    figure.legend(*top.get_legend_handles_labels(), loc="outside lower left", frameon=False, fontsize=8)
    return figure


def _training(axes: Axes, lines: Sequence[Line], quantity: Callable[[Line], float]) -> None:
    """A line of the moving mean over the updates, with the values themselves behind it."""
    points = []
    for line in lines:
        with suppress(KeyError, ZeroDivisionError):  # an evaluation, or an update without this number
            points.append((line["update"], quantity(line)))
    axes.grid(alpha=0.3)
    points = [(update, value) for update, value in points if np.isfinite(value)]
    if not points:
        return
    updates, values = np.array(points, dtype=np.float64).T
    marker = {"marker": "."} if len(points) == 1 else {}
    axes.plot(updates, values, color="0.8", linewidth=0.8)
    axes.plot(
        updates,
        moving_mean(values, SMOOTH),
        color="0.4",
        label=f"training episodes, sampled (mean of {SMOOTH} updates)",
        **marker,
    )


def _evaluations(axes: Axes, lines: Sequence[Line], quantity: str) -> None:
    """A point with its interval for each evaluation of each split."""
    splits = list(dict.fromkeys(key.removesuffix("success") for line in lines for key in line if is_success(key)))
    width = max((line["update"] for line in lines), default=0) or 1
    for number, split in enumerate(splits):
        name = split + quantity
        points = [  # without an interval if all tasks have the same result
            [line["update"], line[name], line.get(f"{name}_low", line[name]), line.get(f"{name}_high", line[name])]
            for line in lines
            if name in line
        ]
        if not points:
            continue
        update, mean, low, high = np.array(points).T
        update = update + (number - (len(splits) - 1) / 2) * DODGE * width  # otherwise intervals would hide each other
        label = f"{split.removeprefix('eval/').split('/', 1)[-1].rstrip('/')} (95 % interval)"
        style = {"marker": "o", "markersize": 5}
        if split.endswith(f"/{SELECTION}/"):
            label = f"{SELECTION}: tasks held out from training, which rank the checkpoints (95 % interval)"
            style = {"marker": "D", "markersize": 4, "markerfacecolor": "white"}
        axes.errorbar(
            update,
            mean,
            [mean - low, high - mean],
            label=label,
            color=f"C{number}",
            linestyle="none",
            capsize=3,
            **style,
        )


# -- diagnostics ------------------------------------------------------------------------------------------------------
def _diagnostics(lines: Sequence[Line], title: str) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    figure = Figure(figsize=(WIDTH, 7.2), layout="constrained")
    axes = figure.subplots(3, 2, sharex=True)
    for panel, (name, quantity) in zip(axes.flat, QUANTITIES.items(), strict=True):
        _training(panel, lines, quantity)
        panel.set_title(name, fontsize=9)
        if not panel.lines:
            panel.text(0.5, 0.5, "not measured", transform=panel.transAxes, ha="center", color="0.5")
            panel.set_yticks([])
        elif panel.dataLim.y0 >= 0 > panel.get_ylim()[0]:
            panel.set_ylim(bottom=0)
    axes[1, 1].yaxis.set_major_formatter(PercentFormatter(1.0))
    for bottom in axes[-1]:
        _updates(bottom)
        bottom.set_xlim(left=0)
    figure.suptitle(f"{title}: training, mean of {SMOOTH} updates", parse_math=False)
    return figure


def _updates(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("update")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
