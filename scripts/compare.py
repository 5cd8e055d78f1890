"""Compare training runs: `python -m scripts.compare FOLDER… [--output DIR]`; FOLDER is a sweep, or contains runs.

    python -m scripts.train -m env=key_corridor algo=grpo,gigpo seed=0,1,2,3,4
    python -m scripts.compare outputs/sweeps/2026-11-21_12-00-00

Runs whose configurations differ only in the seed are one group. A group is labelled with as few settings as needed to
distinguish it from the other groups. A folder without a readable run is reported and left out.

Writes two files into the first folder. `compare.png` has a panel for each group: success in training as the mean over
its seeds, with their range, over the steps taken in environments (including those of signals), and the other groups'
means in grey; if an environment has a score, the same for the score. `compare.md` is a table with the first and the
last updates and evaluations, and the difference of every two groups in their last evaluations: paired by seed and task,
with intervals over seeds and tasks and over seeds alone, as in `agents.statistics`. A training seed is one measurement
of its group; seeds are never pooled.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape

from agents.statistics import Interval, holm, seed_interval, sign_permutation, two_level_interval
from envs.files import files_named, write_whole
from scripts.common import Arguments, Terminal, path_argument, run
from scripts.curve import SELECTION, is_success, moving_mean, read_metrics, save

SMOOTH = 5  # updates of the moving average
POINTS = 200  # in a line
SHARED = 12  # a label omits the common beginning of all values if it is longer than this, in characters
Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast if libyaml is installed
LEFT_OUT = ("seed", "resume")  # keys that do not matter for grouping
BUNDLES = ("experiment",)  # groups of the configuration that only set other keys

if TYPE_CHECKING:  # matplotlib takes a second to import, and scripts.view does without it
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure


@dataclass(frozen=True)
class Run:
    """The logs of one training run."""

    folder: Path
    seed: int
    choices: dict[str, Any]  # group of the configuration -> the chosen file: {"env": "alfworld", …}
    config: dict[str, Any]  # key -> value, without the seed: {"trainer.updates": 100, …}
    steps: NDArray[np.float64]  # [U] steps in environments up to each update
    success: NDArray[np.float64]  # [U] of the episodes of each update
    score: NDArray[np.float64]  # [U] the same for the score; equals success in an environment without scores
    evaluations: dict[str, list[float]]  # split -> success of each evaluation, the first before any update
    outcomes: dict[str, dict[str, float]]  # split -> task -> success in the last evaluation
    manifests: dict[str, str]  # split -> hash


@dataclass(frozen=True)
class Group:
    """Runs that differ only in their seed."""

    label: str  # what distinguishes them from the other groups
    runs: list[Run]

    @property
    def with_updates(self) -> list[Run]:
        """The runs that have finished at least one update."""
        return [one for one in self.runs if len(one.steps)]

    @property
    def size(self) -> str:
        """The number of runs, and of seeds."""
        seeds = len({one.seed for one in self.runs})
        count = f"{seeds} seed{'s' if seeds > 1 else ''}"
        return count if seeds == len(self.runs) else f"{len(self.runs)} runs of {count}"


def main(argv: list[str] | None = None) -> None:
    """Read the runs, draw the picture, write and print the table."""
    parser = Arguments(prog="python -m scripts.compare", description="Compare training runs.")
    parser.add_argument(
        "folders", type=path_argument, nargs="+", metavar="FOLDER", help="a run, or a folder with runs inside"
    )
    parser.add_argument("--output", type=path_argument, metavar="DIR", help="where to write; default: the first FOLDER")
    args = parser.parse_args(argv)
    with Console(stderr=True).status("") as status:  # only in a terminal
        runs, left_out = read_runs(args.folders, lambda doing: status.update(escape(doing)))
    for reason in left_out:
        print(f"left out: {reason}", file=sys.stderr)
    if not runs:
        raise FileNotFoundError(
            f"no training run in {', '.join(map(str, args.folders))}: expected folders of scripts.train, with "
            "metrics.jsonl and .hydra"
        )
    groups = grouped(runs)
    target = args.output or args.folders[0]
    target.mkdir(parents=True, exist_ok=True)
    console = Terminal(soft_wrap=True)
    text = "\n".join(part for part in (table(groups), differences(groups)) if part)
    write_whole(target / "compare.md", text)
    console.print(text)
    for group in groups:
        updates = [len(one.steps) for one in group.with_updates]
        if len(set(updates)) > 1:
            span = f"{min(updates)} to {max(updates)} updates"
            console.print(f"{group.label}: its runs have {span}; its line ends with the shortest run")
    if any(group.with_updates for group in groups):
        draw(groups, target / "compare.png")
        console.print(f"picture: {target / 'compare.png'}")
    else:
        console.print("no run has finished an update yet, so there is no picture")


# -- reading ----------------------------------------------------------------------------------------------------------
def read_runs(folders: Sequence[Path], show: Callable[[str], None] = lambda _: None) -> tuple[list[Run], list[str]]:
    """The runs in `folders`, each once, and for each folder without a run the reason why it is left out.

    `show` is called with what is searched or read next.
    """
    runs: dict[Path, Run] = {}
    left_out = []
    for folder in folders:
        show(f"looking for runs in {folder}")
        found = files_named(folder, "metrics.jsonl")
        if not found:
            left_out.append(f"{folder} {'has no metrics.jsonl' if folder.is_dir() else 'is not a folder'}")
        for number, path in enumerate(found, start=1):
            show(f"reading run {number} of {len(found)}: {path.parent}")
            try:
                runs.setdefault(path.parent.resolve(), read_run(path.parent))
            except (OSError, ValueError) as error:
                left_out.append(" ".join(str(error).split()))
    return list(runs.values()), left_out


def read_run(folder: Path) -> Run:
    """The run of a folder. Raises `ValueError` or `OSError` with the folder's name if it is not a run."""
    choices, config = configuration(folder)
    lines = read_metrics(folder / "metrics.jsonl")
    updates = [line for line in lines if "rollout/success" in line]
    evaluated = [line for line in lines if any(map(is_success, line))]
    names = dict.fromkeys(key for line in evaluated for key in line if is_success(key))
    try:
        taken = [u["rollout/env_steps"] + u.get("signal/env_steps", 0.0) for u in updates]
        return Run(
            folder,
            config.get("seed", 0),
            choices,
            {key: value for key, value in config.items() if key not in LEFT_OUT},
            steps=np.cumsum(taken),
            success=np.array([u["rollout/success"] for u in updates], float),
            score=np.array([u["rollout/score"] for u in updates], float),
            evaluations={
                split: [line[key] for line in evaluated if key in line]
                for key in names
                if (split := key.split("/")[-2]) != SELECTION
            },
            outcomes=_last_outcomes(folder),
            manifests=_manifests(folder),
        )
    except KeyError as error:
        raise ValueError(f"{folder}: an update in metrics.jsonl has no {error}") from error
    except (TypeError, ValueError) as error:
        raise ValueError(f"{folder / 'metrics.jsonl'}: expected numbers: {error}") from error


def _last_outcomes(folder: Path) -> dict[str, dict[str, float]]:
    """The success of each task in the last evaluation, by split; empty if there is none."""
    files = sorted((folder / "evaluations").glob("update-*.json"))
    if not files:
        return {}
    try:
        tasks = json.loads(files[-1].read_bytes())["tasks"]
        return {
            split: {task: float(outcome["success"]) for task, outcome in of.items()}
            for split, of in tasks.items()
            if split != SELECTION
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{files[-1]} is damaged: {error}") from error


def _manifests(folder: Path) -> dict[str, str]:
    """The hash of the manifest of each split that the run evaluates on; empty for a run without a checkpoint."""
    for file in sorted(folder.glob("checkpoints/*/run.json"))[:1]:
        with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
            return {split: facts["sha256"] for split, facts in json.loads(file.read_bytes())["manifests"].items()}
    return {}


def configuration(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The choices and the flat configuration of a run. Raises `ValueError` if scripts.train has not written them."""
    documents = []
    for name in ("hydra.yaml", "config.yaml"):
        path = folder / ".hydra" / name
        try:
            documents.append(yaml.load(path.read_text(encoding="utf-8"), Loader))
        except FileNotFoundError:
            raise ValueError(f"{folder} is not a run of scripts.train: it has no {path.relative_to(folder)}") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is damaged: {error}") from error
    try:
        choices = dict(documents[0]["hydra"]["runtime"]["choices"])
        flat = dict(_flat(documents[1]))
        int(flat.get("seed", 0))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{folder / '.hydra'} has no configuration of scripts.train ({error!r})") from error
    return {group: name for group, name in choices.items() if not str(group).startswith("hydra/")}, flat


def _flat(config: Mapping[str, Any], parent: str = "") -> dict[str, Any]:
    """`{"trainer": {"updates": 1}}` as `{"trainer.updates": 1}`. Lists are values."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= _flat(value, f"{parent}{key}.") if isinstance(value, dict) and value else {f"{parent}{key}": value}
    return flat


# -- naming -----------------------------------------------------------------------------------------------------------
def grouped(runs: Sequence[Run]) -> list[Group]:
    """Group runs by their configuration, with a label for each group."""
    by_config: dict[str, list[Run]] = {}
    for one in runs:
        by_config.setdefault(yaml.safe_dump(one.config), []).append(one)
    groups = list(by_config.values())
    return [Group(label, members) for label, members in zip(labels_of([g[0] for g in groups]), groups, strict=True)]


def labels_of(runs: Sequence[Run]) -> list[str]:
    """A short name for each of `runs`, which have different configurations.

    Settings are chosen one after another, each time the one that separates the most runs that are not separated yet:
    choices such as `algo` before single keys, and the shortest among equals. A name contains the first of these
    settings until it is unique.
    """
    if len(runs) == 1:
        return [_title(runs)]
    settings = [{**one.choices, **one.config} for one in runs]
    return labels_of_settings(settings, list(dict.fromkeys(name for one in runs for name in one.choices)))


def labels_of_settings(settings: Sequence[Mapping[str, Any]], choices: Sequence[str]) -> list[str]:
    """A short name for each of several different `settings`; see `labels_of`. `choices` are the keys to begin with."""
    chosen = _distinguishing_keys(settings, choices)
    names = _short_names(chosen, {key for one in settings for key in one})
    rows = [_values(one, chosen) for one in settings]
    cut = {key: _shared_length([_shown(one[key]) for one in settings if key in one]) for key in chosen}
    labels = []
    for one, row in zip(settings, rows, strict=True):
        length = next(n for n in range(1, len(chosen) + 1) if sum(other[:n] == row[:n] for other in rows) == 1)
        pairs = list(zip(names, chosen, strict=True))[:length]
        there = [f"{name}={_shown(one[key])[cut[key] :]}" for name, key in pairs if key in one]
        labels.append(" ".join(there or [f"no {name}" for name, _ in pairs]))
    return labels


def _title(runs: Sequence[Run]) -> str:
    """Environment and method, if all runs have the same."""
    parts = {name: {one.choices.get(name) for one in runs} for name in ("env", "algo")}
    return " ".join(f"{name}={value}" for name, values in parts.items() if len(values) == 1 for value in values)


def _values(settings: Mapping[str, Any], keys: Sequence[str]) -> tuple[str | None, ...]:
    """The values of `keys` in a comparable form; None for a missing key."""
    return tuple(repr(settings[key]) if key in settings else None for key in keys)


def _distinguishing_keys(settings: Sequence[Mapping[str, Any]], choices: Sequence[str]) -> list[str]:
    """Keys that distinguish all `settings`, the most distinguishing first; those of `choices` before others."""
    chosen: list[str] = []
    keys = sorted({key for one in settings for key in one}, key=lambda key: (len(key), key))

    def kinds(names: Sequence[str]) -> int:
        return len({_values(one, names) for one in settings})

    for candidates in ([k for k in keys if k in choices and k not in BUNDLES], keys):
        while candidates and kinds(chosen) < len(settings):
            best = max(candidates, key=lambda key: kinds([*chosen, key]))
            if kinds([*chosen, best]) == kinds(chosen):
                break
            chosen.append(best)
    return chosen


def _short_names(keys: Sequence[str], known: set[str]) -> list[str]:
    """Each key as its shortest unique ending among `known`: `learning_rate` for `trainer.learning_rate`."""
    endings: dict[str, set[str]] = {}
    for key in known:
        parts = key.split(".")
        for start in range(len(parts)):
            endings.setdefault(".".join(parts[start:]), set()).add(key)
    return [
        next(e for s in range(len(p)) if (e := ".".join(p[-1 - s :])) == key or endings[e] == {key})
        for key in keys
        if (p := key.split("."))
    ]


def _shown(value: Any) -> str:
    """A value in one line, as in a configuration."""
    if isinstance(value, float) and float(short := f"{value:g}") == value:
        return short
    if value is None or isinstance(value, bool):
        return str(value).lower().replace("none", "null")
    return " ".join(str(value).split())


def _shared_length(values: Sequence[str]) -> int:
    """The length of the common beginning of all `values` that a label can omit: whole words or folders.

    "/home/me/outputs/a" and "/home/me/outputs/b" share 17 characters.
    """
    begin = os.path.commonprefix(values)  # noqa: RUF071 - of characters
    length = max(begin.rfind(" "), begin.rfind("/")) + 1
    return length if length > SHARED else 0


# -- the picture ------------------------------------------------------------------------------------------------------
def draw(groups: Sequence[Group], target: Path) -> None:
    """A panel for each group with finished updates, in rows; panels of the score are below those of success."""
    shown = [group for group in groups if group.with_updates]
    columns = min(len(shown), 4 if len(shown) > 6 else 3)
    rows = -(-len(shown) // columns)
    measures = measures_of(shown)
    width = max(7.2, 2.9 * columns)
    lines = [_wrapped(group, width / columns) for group in shown]
    title = 0.17 * max(text.count("\n") + 1 for text in lines)
    height = max(3.2, 0.7 + rows * (1.7 + title))
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height * len(measures)), layout="constrained")
    for part, measure in zip(figure.subfigures(len(measures), 1, squeeze=False)[:, 0], measures, strict=True):
        _draw_part(part, shown, lines, measure, rows, columns)
    if len(groups) > 1:
        figure.suptitle(_title([one for group in groups for one in group.runs]), fontsize=10, parse_math=False)
    save(figure, target)


def _draw_part(
    part: SubFigure, groups: Sequence[Group], titles: Sequence[str], measure: str, rows: int, columns: int
) -> None:
    from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter

    panels = part.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flatten()
    curves = [line_of(group.with_updates, measure) for group in groups]
    for at, (axes, title) in enumerate(zip(panels, titles, strict=False)):
        for other, (steps, values) in enumerate(curves):
            if other != at:
                axes.plot(steps, values.mean(0), color="0.8", linewidth=0.9)
        _draw_group(axes, *curves[at])
        axes.set_title(title, fontsize=8, parse_math=False)
        axes.set_ylim(-0.02, 1.02)
        axes.grid(alpha=0.3)
        axes.tick_params(labelsize=8)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        if measure == "success":
            axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        if at + columns >= len(groups):  # no panel below it
            axes.tick_params(labelbottom=True)
    for axes in panels[len(groups) :]:
        axes.remove()
    part.supylabel(f"{measure} in training (mean of {SMOOTH} updates)", fontsize=9)
    part.supxlabel("steps taken in environments", fontsize=9)


def _draw_group(axes: Axes, steps: NDArray[np.float64], values: NDArray[np.float64]) -> None:
    """The mean of the seeds, `values` [runs, P], and their range; a point if there is one update."""
    marker = {"marker": "o", "markersize": 3} if len(steps) == 1 else {}
    axes.fill_between(steps, values.min(0), values.max(0), color="C0", alpha=0.25, linewidth=0)
    axes.plot(steps, values.mean(0), color="C0", **marker)


def _wrapped(group: Group, inches: float) -> str:
    return textwrap.fill(f"{group.label} ({group.size})", int(inches * 13), break_on_hyphens=False)


def line_of(runs: Sequence[Run], measure: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Steps [P] up to the end of the shortest run, and the smoothed `measure` of each run there, [runs, P]."""
    begin, end = max(r.steps[0] for r in runs), min(r.steps[-1] for r in runs)
    steps = np.linspace(begin, end, POINTS) if begin < end else np.array([end])
    smooth = [moving_mean(getattr(one, measure), SMOOTH) for one in runs]
    return steps, np.array([np.interp(steps, one.steps, values) for one, values in zip(runs, smooth, strict=True)])


# -- the table --------------------------------------------------------------------------------------------------------
def measures_of(groups: Sequence[Group]) -> list[str]:
    """The quantities to show: success, and the score if it differs from success in some group."""
    scored = any(not np.array_equal(one.score, one.success) for group in groups for one in group.runs)
    return ["success", "score"] if scored else ["success"]


def table(groups: Sequence[Group]) -> str:
    """The mean over the seeds of each group and their range, with a legend of the columns."""
    forms = {"success": "{:.1%}", "score": "{:.3f}"}
    measures = measures_of(groups)
    heads = ["first", "last", *(["first score", "last score"] if len(measures) > 1 else [])]
    rows = [f"| | runs | steps | {' | '.join(heads)} | split | before | after |"]
    rows.append(f"|---|---:|---:|{'---:|' * len(heads)}---|---:|---:|")
    for group in groups:
        with_updates = group.with_updates
        steps = np.mean([one.steps[-1] for one in with_updates] or [0.0])
        trained = [
            summary([getattr(one, measure)[part].mean() for one in with_updates], forms[measure])
            for measure in measures
            for part in (slice(SMOOTH), slice(-SMOOTH, None))
        ]
        label = group.label.replace("|", "\\|")
        for split in dict.fromkeys(split for one in group.runs for split in one.evaluations) or ["–"]:
            evaluated = [one.evaluations[split] for one in group.runs if split in one.evaluations]
            before = summary([rates[0] for rates in evaluated])
            after = summary([rates[-1] for rates in evaluated if len(rates) > 1])
            rows.append(
                f"| {label} | {len(group.runs)} | {steps:,.0f} | {' | '.join(trained)} | {split} | {before} | {after} |"
            )
    legend = (
        f"`first`, `last`: success{' and score' * (len(measures) > 1)} in training, in the first and the last {SMOOTH} "
        "updates. `before`, `after`: success in the first and the last evaluation on the split. `steps`: taken in "
        "environments. Each number is the mean over the runs of a group, with the lowest and the highest in brackets."
    )
    return "\n".join([*rows, "", legend]) + "\n"


def differences(groups: Sequence[Group]) -> str:
    """A table of every two groups in their last evaluations, by split; empty if no two of them share a seed.

    The difference of two groups is an array [S, T]: the same seeds, the same tasks.
    """
    lines, refused = [], []
    for split in dict.fromkeys(split for group in groups for one in group.runs for split in one.outcomes):
        rows = []
        for first, second in itertools.combinations(groups, 2):
            pairs = _shared_runs(first, second, split)
            if not pairs:
                continue
            if reason := _other_tasks(pairs, split):
                refused.append(f"- {reason}")
                continue
            tasks = sorted(pairs[0][0].outcomes[split])
            matrix = np.array(
                [[a.outcomes[split][t] - b.outcomes[split][t] for t in tasks] for a, b in pairs]
            )  # [S, T]
            rows.append((first, second, matrix, sign_permutation(matrix.mean(1))))
        for (first, second, matrix, p), adjusted in zip(rows, holm([row[-1] for row in rows]), strict=True):
            both, seeds = two_level_interval(matrix), seed_interval(matrix.mean(1).tolist())
            cells = [
                first.label.replace("|", "\\|"), second.label.replace("|", "\\|"), split, *map(str, matrix.shape),
                f"{100 * both.mean:+.1f}", _bounds(both), _bounds(seeds), f"{p:.3f}", f"{adjusted:.3f}",
            ]  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
    if not lines:
        return "".join(f"{line}\n" for line in refused)
    heads = [
        "a",
        "b",
        "split",
        "seeds",
        "tasks",
        "a minus b",
        "over seeds and tasks",
        "over seeds",
        "p",
        "p after Holm",
    ]
    table = [f"| {' | '.join(heads)} |", f"|---|---|---{'|---:' * 7}|", *lines]
    legend = (
        "The last evaluations of two groups: the difference of success in points, for the same seeds at the same "
        "tasks. The first 95 % interval is for other seeds and other tasks (bootstrap over both), the second for other "
        "seeds on these tasks (Student's). p: permutation of the signs of the seeds' differences; with S seeds it is "
        "never below 2 / 2^S, 0.06 for five. Holm's correction is over the pairs of a split."
    )
    return "\n".join([*table, "", *refused, *([""] if refused else []), legend]) + "\n"


def _shared_runs(first: Group, second: Group, split: str) -> list[tuple[Run, Run]]:
    """Runs of two groups with the same seed that were both evaluated on the split."""
    runs = [{one.seed: one for one in group.runs if split in one.outcomes} for group in (first, second)]
    return [(runs[0][seed], runs[1][seed]) for seed in sorted(runs[0].keys() & runs[1].keys())]


def _other_tasks(pairs: Sequence[tuple[Run, Run]], split: str) -> str:
    """Why the runs cannot be compared on a split; empty if they can."""
    first = pairs[0][0]
    for one in (one for pair in pairs for one in pair):
        hashes = {one.manifests.get(split), first.manifests.get(split)}
        if one.outcomes[split].keys() != first.outcomes[split].keys() or len(hashes) > 1:
            return f"{one.folder} and {first.folder} are not compared on {split}: they were evaluated on other tasks."
    return ""


def _bounds(interval: Interval) -> str:
    if interval.low is None or interval.high is None:
        return "–"
    return f"{100 * interval.low:+.1f} … {100 * interval.high:+.1f}"


def summary(values: Sequence[float], form: str = "{:.1%}") -> str:
    """The mean of several numbers, with the lowest and the highest."""
    if not values:
        return "–"
    mean = form.format(np.mean(values))
    return mean if len(values) == 1 else f"{mean} ({form.format(min(values))} – {form.format(max(values))})"


if __name__ == "__main__":
    run(main)
