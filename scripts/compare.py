"""Compare training runs: `python -m scripts.compare FOLDER… [--output DIR]`, FOLDER being of a sweep or of runs.

    python -m scripts.train -m env=key_corridor algo=grpo,gigpo seed=0,1,2,3,4
    python -m scripts.compare outputs/sweeps/2026-11-21_12-00-00

Runs that differ in their seed alone are one line: the mean over the seeds of the success in training, over the steps
that were taken in environments (those that signals took are counted), and the range of the seeds around it; beside it
the score, where an environment gives one. Leaves compare.png, and compare.md with the last evaluations, in the first
folder.
"""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from omegaconf import OmegaConf

mpl.use("Agg")
import matplotlib.pyplot as plt

from envs.files import whole_file, write_whole
from scripts.common import Terminal, run
from scripts.curve import SELECTION, is_success, moving_mean

SMOOTH = 5  # updates of the moving average
POINTS = 200  # of a line
LEGEND_WIDTH = 110  # characters


@dataclass(frozen=True)
class Run:
    """What one training run has logged."""

    folder: Path
    name: str  # its overrides but for the seed
    seed: str
    steps: NDArray[np.float64]  # [U] taken until after each update
    success: NDArray[np.float64]  # [U] of the episodes of each update
    score: NDArray[np.float64]  # [U] the same
    evaluations: dict[str, list[float]]  # split -> success of each evaluation, the first before any update


def main(argv: list[str] | None = None) -> None:
    """Read the runs, draw the picture, write and print the table."""
    parser = argparse.ArgumentParser(prog="python -m scripts.compare", description="Compare training runs.")
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER", help="a run, or a folder with runs inside")
    parser.add_argument("--output", type=Path, metavar="DIR", help="where to write; default: the first FOLDER")
    args = parser.parse_args(argv)
    runs = [read_run(path.parent) for folder in args.folders for path in sorted(folder.glob("**/metrics.jsonl"))]
    if not runs:
        raise FileNotFoundError(f"no training run in {', '.join(map(str, args.folders))}: expected a metrics.jsonl")
    groups: dict[str, list[Run]] = {}
    for one in runs:
        groups.setdefault(one.name, []).append(one)
    target = args.output or args.folders[0]
    target.mkdir(parents=True, exist_ok=True)
    draw(groups, target / "compare.png")
    text = table(groups)
    write_whole(target / "compare.md", text)
    console = Terminal(soft_wrap=True, markup=False)
    console.print(text)
    console.print(f"picture: {target / 'compare.png'}")


def read_run(folder: Path) -> Run:
    """The run of a folder. Raises `FileNotFoundError` where it is none of `scripts.train`."""
    record = folder / ".hydra" / "overrides.yaml"
    if not record.is_file():
        raise FileNotFoundError(f"{folder} is no run of scripts.train: it has no {record.relative_to(folder)}")
    overrides = [str(o) for o in OmegaConf.load(record)]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    updates = [line for line in lines if "rollout/success" in line]
    taken = [u["rollout/env_steps"] + u.get("signal/env_steps", 0.0) for u in updates]
    evaluated = [line for line in lines if any(map(is_success, line))]
    names = dict.fromkeys(key for line in evaluated for key in line if is_success(key))
    return Run(
        folder,
        name=" ".join(o for o in overrides if not o.startswith("seed=")) or "defaults",
        seed=next((o.removeprefix("seed=") for o in overrides if o.startswith("seed=")), "0"),
        steps=np.cumsum(taken),
        success=np.array([u["rollout/success"] for u in updates]),
        score=np.array([u["rollout/score"] for u in updates]),
        evaluations={
            split: [line[key] for line in evaluated if key in line]
            for key in names
            if (split := key.split("/")[-2]) != SELECTION
        },
    )


def line_of(runs: Sequence[Run], what: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Steps [P] up to where the shortest run ends, and the smoothed `what` of each run there, [runs, P]."""
    steps = np.linspace(max(r.steps[0] for r in runs), min(r.steps[-1] for r in runs), POINTS)
    smooth = [moving_mean(getattr(one, what), SMOOTH) for one in runs]
    return steps, np.array([np.interp(steps, one.steps, values) for one, values in zip(runs, smooth, strict=True)])


def shared_part(names: Sequence[str]) -> set[str]:
    """The overrides that all runs have, which need not be told for each."""
    return set.intersection(*(set(name.split(" ")) for name in names)) if len(names) > 1 else set()


def label_of(name: str, shared: set[str]) -> str:
    """What tells a group from the others."""
    return " ".join(part for part in name.split(" ") if part not in shared) or "defaults"


def scored(groups: dict[str, list[Run]]) -> bool:
    """Whether some score says more than success."""
    return any(not np.array_equal(one.score, one.success) for runs in groups.values() for one in runs)


def draw(groups: dict[str, list[Run]], target: Path) -> None:
    """A line with the range of its seeds for each group, in a panel for success and, where there is one, for score."""
    shown = ["success", "score"] if scored(groups) else ["success"]
    height = 0.6 + 3.8 * len(shown) + 0.22 * len(groups)
    figure, panels = plt.subplots(len(shown), figsize=(7.2, height), sharex=True, squeeze=False, layout="constrained")
    shared = shared_part(list(groups))
    for what, axes in zip(shown, panels[:, 0], strict=True):
        for name, runs in groups.items():
            begun = [one for one in runs if len(one.steps)]
            if not begun:
                continue
            steps, lines = line_of(begun, what)
            seeds = f"{len(begun)} seed{'s' if len(begun) > 1 else ''}"
            label = textwrap.fill(f"{label_of(name, shared)} ({seeds})", LEGEND_WIDTH, break_long_words=False)
            (line,) = axes.plot(steps, lines.mean(0), label=label)
            axes.fill_between(steps, lines.min(0), lines.max(0), color=line.get_color(), alpha=0.15, linewidth=0)
        axes.set(ylabel=f"{what} in training (mean of {SMOOTH} updates)", ylim=(0, 1))
        axes.grid(alpha=0.3)
    top, bottom = panels[0, 0], panels[-1, 0]
    top.set_title(" ".join(sorted(shared)), fontsize=9)
    top.yaxis.set_major_formatter(mpl.ticker.PercentFormatter(1.0))
    bottom.set_xlabel("steps taken in environments")
    bottom.xaxis.set_major_formatter(mpl.ticker.EngFormatter(sep=""))
    figure.legend(*top.get_legend_handles_labels(), loc="outside lower left", frameon=False, fontsize=8)
    with whole_file(target) as partial:
        figure.savefig(partial, format="png", dpi=150)
    plt.close(figure)


def table(groups: dict[str, list[Run]]) -> str:
    """What each group came to: the mean over its seeds, and their range.

    `first` and `last` are the success in training in the first and the last `SMOOTH` updates, and the score where there
    is one; `before` and `after` are the first and the last evaluation, on each split.
    """
    shared = shared_part(list(groups))
    shown = {"success": "{:.1%}", "score": "{:.3f}"} if scored(groups) else {"success": "{:.1%}"}
    heads = ["first", "last", *(["first score", "last score"] if len(shown) > 1 else [])]
    rows = [f"| | seeds | steps | {' | '.join(heads)} | split | before | after |"]
    rows.append(f"|---|---:|---:|{'---:|' * len(heads)}---|---:|---:|")
    for name, runs in groups.items():
        begun = [one for one in runs if len(one.steps)]
        steps = np.mean([one.steps[-1] for one in begun] or [0.0])
        trained = [
            told([getattr(one, what)[part].mean() for one in begun], form)
            for what, form in shown.items()
            for part in (slice(SMOOTH), slice(-SMOOTH, None))
        ]
        for split in dict.fromkeys(split for one in runs for split in one.evaluations):
            first, last = ([one.evaluations[split][at] for one in runs if split in one.evaluations] for at in (0, -1))
            rows.append(
                f"| {label_of(name, shared)} | {len(last)} | {steps:,.0f} | {' | '.join(trained)} | {split} "
                f"| {told(first)} | {told(last)} |"
            )
    return "\n".join(rows) + "\n"


def told(rates: Sequence[float], form: str = "{:.1%}") -> str:
    """The mean of several numbers, and how far they reach."""
    if not rates:
        return "–"
    mean = form.format(np.mean(rates))
    return mean if len(rates) == 1 else f"{mean} ({form.format(min(rates))} – {form.format(max(rates))})"


if __name__ == "__main__":
    run(main)
