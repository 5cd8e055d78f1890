"""The picture of a run: success over updates, in training and in evaluations with their intervals."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
import matplotlib.pyplot as plt

SMOOTH = 10  # updates of the moving average
DODGE = 0.008  # of the width, between the intervals of one evaluation


def is_success(metric: str) -> bool:
    """Whether it is the success rate of a whole split, `eval/<env>/<split>/success`."""
    return metric.startswith("eval/") and metric.endswith("/success") and metric.count("/") == 3


def draw_curve(run: Path, title: str) -> Path:
    """Draw `RUN/curve.png` from `RUN/metrics.jsonl`."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    figure, axes = plt.subplots(figsize=(7.2, 4.2), layout="constrained")
    rollouts = [(line["update"], line["rollout/success"]) for line in lines if "rollout/success" in line]
    if rollouts:
        updates, success = np.array(rollouts).T
        axes.plot(updates, success, color="0.85", linewidth=0.8)
        window = np.array([success[max(0, i - SMOOTH + 1) : i + 1].mean() for i in range(len(success))])
        axes.plot(updates, window, color="0.5", label=f"training episodes, sampled (mean of {SMOOTH} updates)")
    names = list(dict.fromkeys(key for line in lines for key in line if is_success(key)))
    for number, name in enumerate(names):
        points = np.array(
            [[line["update"], line[name], line[f"{name}_low"], line[f"{name}_high"]] for line in lines if name in line]
        )
        update, rate, low, high = points.T
        update = update + (number - (len(names) - 1) / 2) * DODGE * lines[-1]["update"]  # or intervals hide each other
        label = name.removeprefix("eval/").removesuffix("/success").split("/", 1)[-1]
        axes.errorbar(update, rate, [rate - low, high - rate], marker="o", capsize=3, label=f"{label} (95 % interval)")
    axes.set(xlabel="update", ylabel="success", ylim=(0, 1), title=title)
    axes.yaxis.set_major_formatter(mpl.ticker.PercentFormatter(1.0))
    axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", frameon=False)
    target = run / "curve.png"
    figure.savefig(target.with_suffix(".partial"), format="png", dpi=150)
    plt.close(figure)
    target.with_suffix(".partial").replace(target)
    return target
