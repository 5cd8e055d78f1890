"""The picture of a run: success and score over updates, in training and in evaluations with their intervals."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from numpy.typing import NDArray

from envs.files import whole_file

SMOOTH = 10  # updates of the moving average
SELECTION = "selection"  # the name under which the tasks that rank the checkpoints are evaluated
CURVE = "curve.png"
DODGE = 0.008  # of the width, between the intervals of one evaluation


def is_success(metric: str) -> bool:
    """Whether it is the success rate of a whole split, `eval/<env>/<split>/success`."""
    return metric.startswith("eval/") and metric.endswith("/success") and metric.count("/") == 3


def moving_mean(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """The mean of each of `values` [U] and of up to `window` - 1 before it, [U]."""
    return np.array([values[max(0, i - window + 1) : i + 1].mean() for i in range(len(values))])


def draw_curve(run: Path, title: str) -> Path:
    """Draw `RUN/curve.png` from `RUN/metrics.jsonl`; below success the score, where an environment gives one."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    rollouts = [line for line in lines if "rollout/score" in line]
    scored = any(line["rollout/score"] != line["rollout/success"] for line in rollouts)
    shown = ["success", "score"] if scored else ["success"]
    figure, axes = plt.subplots(
        len(shown), figsize=(7.2, 1.1 + 3.4 * len(shown)), sharex=True, squeeze=False, layout="constrained"
    )
    for panel, quantity in zip(axes[:, 0], shown, strict=True):
        _draw(panel, lines, quantity)
    top, bottom = axes[0, 0], axes[-1, 0]
    top.set_title(title)
    top.yaxis.set_major_formatter(mpl.ticker.PercentFormatter(1.0))
    bottom.set_xlabel("update")
    bottom.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
    figure.legend(*top.get_legend_handles_labels(), loc="outside lower left", frameon=False, fontsize=8)
    target = run / CURVE
    with whole_file(target) as partial:
        figure.savefig(partial, format="png", dpi=150)
    plt.close(figure)
    return target


def _draw(axes: Axes, lines: Sequence[Mapping[str, float]], quantity: str) -> None:
    rollouts = [(line["update"], line[f"rollout/{quantity}"]) for line in lines if f"rollout/{quantity}" in line]
    if rollouts:
        updates, values = np.array(rollouts).T
        axes.plot(updates, values, color="0.85", linewidth=0.8)
        axes.plot(
            updates,
            moving_mean(values, SMOOTH),
            color="0.5",
            label=f"training episodes, sampled (mean of {SMOOTH} updates)",
        )
    splits = list(dict.fromkeys(key.removesuffix("success") for line in lines for key in line if is_success(key)))
    for number, split in enumerate(splits):
        name = split + quantity
        points = [  # without an interval where all tasks came to the same
            [line["update"], line[name], line.get(f"{name}_low", line[name]), line.get(f"{name}_high", line[name])]
            for line in lines
            if name in line
        ]
        if not points:
            continue
        update, mean, low, high = np.array(points).T
        update = update + (number - (len(splits) - 1) / 2) * DODGE * lines[-1]["update"]  # or intervals hide each other
        label = f"{split.removeprefix('eval/').split('/', 1)[-1].rstrip('/')} (95 % interval)"
        style = {"marker": "o", "capsize": 3}
        if split.endswith(f"/{SELECTION}/"):
            label, style = f"{SELECTION}: ranks the checkpoints, tasks held out from training", {"linestyle": "dotted"}
        axes.errorbar(update, mean, [mean - low, high - mean], label=label, **style)
    axes.set(ylabel=quantity, ylim=(0, 1))
    axes.grid(alpha=0.3)
