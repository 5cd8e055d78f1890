"""The report of a laboratory: the results of each method on held-out tasks, from the folders of its runs.

    DIR/report.md       tables in Markdown
    DIR/report.json     the same numbers, and those of every run
    DIR/runs.json       the outcome of every task at every evaluation, for `lab.join`
    DIR/curves.png      success over environment steps, seconds of training and sampled tokens
    DIR/differences.png each method's difference to the baseline, with its intervals

A run that ended early counts with its last evaluation. A run that was never evaluated does not count. The report names
both.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from agents.statistics import RESAMPLES, Interval, seed_interval, two_level_interval
from algorithms.checkpoint import RUN, checkpoint_folder
from envs.facts import hash_files
from envs.files import write_whole
from scripts.curve import SELECTION, read_metrics, save
from scripts.run_folder import Command

AXES = {"env_steps": "environment steps", "seconds": "seconds of training", "tokens": "sampled tokens"}
FORMS = {"success": "{:.1%}", "score": "{:.3f}"}
POINTS = 100  # in a line
DAGGER = "†"
RUNS = "runs.json"
FACTS = ("environment", "manifests", "training", "versions", "machine")  # of runs that are compared


@dataclass(frozen=True)
class Variant:
    """The method and the seed of a run, and its learning rate if that is tuned."""

    algo: str
    seed: int
    rate: float | None = None

    @property
    def path(self) -> Path:
        """The path of its run in the folder of the laboratory."""
        return Path(self.algo, *([] if self.rate is None else [f"{self.rate:g}"]), str(self.seed))

    def __str__(self) -> str:
        rate = "" if self.rate is None else f", learning rate {self.rate:g}"
        return f"{self.algo}{rate}, seed {self.seed}"


@dataclass(frozen=True)
class Ending:
    """How the process of a run ended."""

    finished: bool
    error: str = ""

    @classmethod
    def of_finished(cls) -> Ending:
        return cls(finished=True)

    def __str__(self) -> str:
        return "finished" if self.finished else f"ended early: {self.error}"


NOT_RUN = Ending(finished=False, error="not finished yet")


@dataclass(frozen=True)
class Evaluated:
    """One evaluation of a run, and the cost of training up to it."""

    update: int
    cost: dict[str, float]  # by `AXES`
    tasks: dict[str, dict[str, dict[str, float]]]  # split -> task -> {"success": …, "score": …}
    turns: float | None = None  # the mean of an episode on tasks that do not rank checkpoints; None: not known

    @classmethod
    def of(cls, update: int, cost: dict[str, float], record: Mapping[str, Any]) -> Evaluated:
        """An evaluation from its file in a run."""
        of_splits = [of for split, of in record["evaluations"].items() if split != SELECTION]
        episodes = sum(of["success"]["n"] for of in of_splits)
        turns = sum(of["turns"] * of["success"]["n"] for of in of_splits) / episodes if episodes else None
        return cls(update, cost, record["tasks"], turns)

    def outcomes(self, measure: str, split: str | None = None) -> dict[tuple[str, str], float]:
        """The outcome of each task of a split, by split and task; None: of all tasks that do not rank checkpoints."""
        return {
            (name, task): float(outcome[measure])
            for name, tasks in self.tasks.items()
            if name == split or (split is None and name != SELECTION)
            for task, outcome in tasks.items()
        }


@dataclass(frozen=True)
class LabRun:
    """A run of a laboratory."""

    variant: Variant
    ending: Ending
    evaluations: list[Evaluated]  # the first is before any update
    warm_start: str | None  # hash of its initial weights
    facts: dict[str, Any]  # its description, see `scripts.train`
    overrides: list[str]  # of scripts.train

    @classmethod
    def read(cls, variant: Variant, folder: Path, ending: Ending) -> LabRun:
        """Read the files of a run that exist."""
        start = checkpoint_folder(folder, 0)
        try:
            costs = _costs(folder / "metrics.jsonl")
            facts = json.loads((start / RUN).read_bytes())
            overrides = Command.of_run(folder, "train").overrides
        except (OSError, ValueError):
            return cls(variant, ending, [], None, {}, [])
        evaluations = []
        for path in sorted((folder / "evaluations").glob("update-*.json")):
            update = int(path.stem.removeprefix("update-"))
            if update in costs:  # otherwise the run was killed before it wrote its metrics
                evaluations.append(Evaluated.of(update, costs[update], json.loads(path.read_bytes())))
        return cls(variant, ending, evaluations, hash_files(start.glob("*.safetensors")), facts, overrides)

    def after(self, axis: str, cost: float) -> tuple[Evaluated, Evaluated, float]:
        """The evaluations before and after a cost, and its position between them, from 0 to 1."""
        known = [evaluated.cost[axis] for evaluated in self.evaluations]
        later = int(np.clip(np.searchsorted(known, cost), 1, len(known) - 1)) if len(known) > 1 else 0
        before, after = self.evaluations[max(later - 1, 0)], self.evaluations[later]
        way = after.cost[axis] - before.cost[axis]
        return before, after, float(np.clip((cost - before.cost[axis]) / way, 0.0, 1.0)) if way else 1.0


def _costs(metrics_file: Path) -> dict[int, dict[str, float]]:
    """The cost of training up to each update, by `AXES`, including signals, without evaluations."""
    total = dict.fromkeys(AXES, 0.0)
    costs = {0: dict(total)}
    for line in read_metrics(metrics_file):
        if "rollout/success" not in line:
            continue
        total["env_steps"] += line["rollout/env_steps"] + line.get("signal/env_steps", 0.0)
        total["tokens"] += line["tokens/sampled"] + line.get("signal/mc_tokens", 0.0)
        total["seconds"] += sum(v for k, v in line.items() if k.startswith("time/") and k.endswith("_s"))
        costs[int(line["update"])] = dict(total)
    return costs


@dataclass(frozen=True)
class Method:
    """The runs of a method that were evaluated, by seed, all on the same tasks."""

    algo: str
    runs: list[LabRun]

    @cached_property
    def seeds(self) -> list[int]:
        return [run.variant.seed for run in self.runs]

    def matrix(self, measure: str, keys: Sequence[tuple[str, str]], at: int | tuple[str, float]) -> NDArray[np.float64]:
        """[S, T] the outcome of each seed at each task, at evaluation number `at` or after a cost (axis, amount).

        Between two evaluations it is interpolated linearly.
        """
        rows = []
        for run in self.runs:
            if isinstance(at, int):
                before = after = run.evaluations[at]
                share = 1.0
            else:
                before, after, share = run.after(*at)
            pair = [evaluated.outcomes(measure) for evaluated in (before, after)]
            rows.append([(1 - share) * pair[0][key] + share * pair[1][key] for key in keys])
        return np.array(rows)


# -- the runs in one file ---------------------------------------------------------------------------------------------
def write_runs(path: Path, runs: Sequence[LabRun]) -> None:
    """Write the runs that were evaluated, with the outcome of every task. Raises `ValueError` if their tasks differ."""
    evaluated = [run for run in runs if run.evaluations]
    tasks = {split: list(of) for run in evaluated[:1] for split, of in run.evaluations[0].tasks.items()}
    record = {"tasks": tasks, "runs": [_run_to_json(run, tasks) for run in evaluated]}
    write_whole(path, json.dumps(record) + "\n")


def _run_to_json(run: LabRun, tasks: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    def outcomes(evaluated: Evaluated) -> dict[str, dict[str, list[float]]]:
        if {split: set(of) for split, of in evaluated.tasks.items()} != {s: set(of) for s, of in tasks.items()}:
            raise ValueError(
                f"{run.variant} was evaluated on other tasks than the first run, so they cannot be compared"
            )
        return {
            split: {measure: [float(evaluated.tasks[split][task][measure]) for task in of] for measure in FORMS}
            for split, of in tasks.items()
        }

    return {
        "algo": run.variant.algo,
        "seed": run.variant.seed,
        "overrides": run.overrides,
        "ending": asdict(run.ending),
        "warm_start": run.warm_start,
        "facts": {name: run.facts[name] for name in FACTS if name in run.facts},
        "evaluations": [
            {"update": e.update, "cost": e.cost, "turns": e.turns, "outcomes": outcomes(e)} for e in run.evaluations
        ],
    }


def read_runs(path: Path) -> list[LabRun]:
    """The runs of a file of `write_runs`, or of the folder that contains it. Raises `ValueError` for another file."""
    path = path / RUNS if path.is_dir() else path
    try:
        record = json.loads(path.read_bytes())
        return [_run_from_json(run, record["tasks"]) for run in record["runs"]]
    except FileNotFoundError:
        raise ValueError(f"lab.join: {path} does not exist; scripts.lab writes {RUNS} beside its report.md") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"lab.join: {path} is not a {RUNS} of scripts.lab ({type(error).__name__}: {error})") from None


def _run_from_json(run: Mapping[str, Any], tasks: Mapping[str, Sequence[str]]) -> LabRun:
    def outcomes(record: Mapping[str, Mapping[str, Sequence[float]]]) -> dict[str, dict[str, dict[str, float]]]:
        return {
            split: {
                task: dict(zip(FORMS, values, strict=True))
                for task, *values in zip(of, *(record[split][measure] for measure in FORMS), strict=True)
            }
            for split, of in tasks.items()
        }

    evaluations = [
        Evaluated(e["update"], e["cost"], outcomes(e["outcomes"]), e.get("turns")) for e in run["evaluations"]
    ]
    variant = Variant(run["algo"], run["seed"])
    return LabRun(variant, Ending(**run["ending"]), evaluations, run["warm_start"], run["facts"], run["overrides"])


# -- the report -------------------------------------------------------------------------------------------------------
def write_report(folder: Path, runs: Sequence[LabRun], command: Command, baseline: str, seconds: float | None) -> str:
    """Write the files of the report, and return its text."""
    record = summarise(runs, baseline, seconds)
    record = {"command": command_line(command), **record}
    if record["tasks"]:
        save(curves(record), folder / "curves.png")
        if len(record["methods"]) > 1 and baseline in record["methods"]:
            save(differences_chart(record), folder / "differences.png")
    text = markdown(record)
    write_whole(folder / "report.md", text)
    write_whole(folder / "report.json", json.dumps(record, indent=1) + "\n")
    write_runs(folder / RUNS, runs)
    return text


def command_line(command: Command) -> str:
    """The shell command of a laboratory."""
    folders = [f"--config-dir={path}" for path in command.config_dirs]
    return shlex.join(["python", "-m", "scripts.lab", *folders, *command.overrides])


def summarise(runs: Sequence[LabRun], baseline: str, seconds: float | None = None) -> dict[str, Any]:
    """The numbers of the report as plain data."""
    evaluated = [run for run in runs if run.evaluations and run.evaluations[0].outcomes("success")]
    methods = [
        Method(algo, of)
        for algo in dict.fromkeys(run.variant.algo for run in runs)
        if (of := [run for run in evaluated if run.variant.algo == algo])
    ]
    keys = sorted(evaluated[0].evaluations[0].outcomes("success")) if evaluated else []
    for run in evaluated:
        if any(sorted(e.outcomes("success")) != keys for e in run.evaluations):
            raise ValueError(
                f"{run.variant} was evaluated on other tasks than {evaluated[0].variant}, so they cannot be compared"
            )
    whole = [run.evaluations[-1].cost["seconds"] for run in evaluated if run.ending.finished]
    seconds = seconds or (min(whole) if whole else None)
    scored = any(
        outcome["success"] != outcome["score"]
        for run in evaluated for tasks in run.evaluations[0].tasks.values() for outcome in tasks.values()
    )  # fmt: skip
    base = next((method for method in methods if method.algo == baseline), None)
    budgets: dict[str, int | tuple[str, float]] = {"end": -1}
    if seconds is not None:
        budgets["seconds"] = ("seconds", seconds)
    return {
        "baseline": baseline,
        "seconds": seconds,
        "tasks": {split: sum(name == split for name, _ in keys) for split in dict.fromkeys(name for name, _ in keys)},
        "measures": ["success", "score"] if scored else ["success"],
        "methods": {
            method.algo: {
                "seeds": method.seeds,
                "ended_early": [run.variant.seed for run in method.runs if not run.ending.finished],
                "cost": {axis: float(np.mean([r.evaluations[-1].cost[axis] for r in method.runs])) for axis in AXES},
                **{
                    measure: _rates(method, base, measure, keys, budgets)
                    for measure in (["success", "score"] if scored else ["success"])
                },
            }
            for method in methods
        },
        "runs": [_run_record(run, keys) for run in runs],
        "warm_starts": sorted({run.warm_start for run in evaluated if run.warm_start}),
        **_shared_facts(evaluated),
    }


def _rates(
    method: Method,
    base: Method | None,
    measure: str,
    keys: Sequence[tuple[str, str]],
    budgets: Mapping[str, int | tuple[str, float]],
) -> dict[str, Any]:
    start = method.matrix(measure, keys, 0)
    rates: dict[str, Any] = {"start": asdict(seed_interval(start.mean(1)))}
    for name, at in budgets.items():
        reached = method.matrix(measure, keys, at)
        rates[name] = {
            "rate": asdict(seed_interval(reached.mean(1))),
            "gain": asdict(two_level_interval(reached - start)),
            "splits": {
                split: float(reached[:, [name == split for name, _ in keys]].mean())
                for split in dict.fromkeys(name for name, _ in keys)
            },
        }
        if base is not None and base is not method:
            rates[name]["difference"] = _difference(method, base, measure, keys, at)
    return rates


def _difference(
    method: Method, base: Method, measure: str, keys: Sequence[tuple[str, str]], at: int | tuple[str, float]
) -> dict[str, Any] | None:
    """The difference of the same seeds at the same tasks; None if no seed was evaluated with both methods."""
    shared = [seed for seed in method.seeds if seed in base.seeds]
    if not shared:
        return None
    rows = [one.matrix(measure, keys, at)[[one.seeds.index(seed) for seed in shared]] for one in (method, base)]
    paired = rows[0] - rows[1]
    return {
        "seeds": shared,
        "over_seeds": asdict(seed_interval(paired.mean(1))),
        "over_seeds_and_tasks": asdict(two_level_interval(paired)),
    }


def _run_record(run: LabRun, keys: Sequence[tuple[str, str]]) -> dict[str, Any]:
    first, last = (run.evaluations[0], run.evaluations[-1]) if run.evaluations else (None, None)
    return {
        "algo": run.variant.algo,
        "seed": run.variant.seed,
        "finished": run.ending.finished,
        "ending": str(run.ending),
        "updates": last.update if last else None,
        "cost": last.cost if last else None,
        "start": float(np.mean([first.outcomes("success")[key] for key in keys])) if first and keys else None,
        "end": float(np.mean([last.outcomes("success")[key] for key in keys])) if last and keys else None,
        "evaluations": [
            {
                "update": evaluated.update,
                "cost": evaluated.cost,
                "turns": evaluated.turns,
                **{w: float(np.mean([evaluated.outcomes(w)[key] for key in keys])) for w in FORMS if keys},
            }
            for evaluated in run.evaluations
        ],
    }


def _shared_facts(runs: Sequence[LabRun]) -> dict[str, Any]:
    """The facts of the runs; a list of values if they differ."""
    facts: dict[str, Any] = {}
    for name in FACTS:
        values = [run.facts[name] for run in runs if name in run.facts]
        distinct = [value for at, value in enumerate(values) if value not in values[:at]]
        facts[name] = distinct[0] if len(distinct) == 1 else distinct
    return facts


# -- as text ----------------------------------------------------------------------------------------------------------
def markdown(record: Mapping[str, Any]) -> str:
    """The report as Markdown."""
    methods, baseline = record["methods"], record["baseline"]
    tasks = " and ".join(f"{count} of {split}" for split, count in record["tasks"].items())
    parts = [f"```bash\n{record['command']}\n```"]
    if not methods:
        return "\n\n".join([*parts, "No run has been evaluated yet.", _runs_table(record)]) + "\n"
    parts.append(
        f"Held-out tasks: {tasks}. Success of the last evaluation: the mean over training seeds, with Student's 95 % "
        f"interval. Gains over the warm start and differences to {baseline} are in points, paired by seed and task, "
        f"with the 95 % interval over seeds and tasks (two-level bootstrap, {RESAMPLES:,} resamples); differences also "
        "with the interval over seeds only, on these tasks. Bold: neither interval contains 0."
    )
    if any(len(method["seeds"]) == 1 for method in methods.values()):
        parts.append("**With a single seed there is no interval, and no conclusion about the method.**")
    parts.extend(_table(record, measure, "end") for measure in record["measures"])
    if record["seconds"] is not None:
        parts.append(
            f"**After {record['seconds']:,.0f} s of training**, without the time of evaluations (interpolated linearly "
            "between two evaluations):"
        )
        parts.extend(_table(record, measure, "seconds") for measure in record["measures"])
    parts += [*_warnings(record), _runs_table(record), _facts_text(record)]
    return "\n\n".join(parts) + "\n"


def _table(record: Mapping[str, Any], measure: str, budget: str) -> str:
    splits = list(record["tasks"]) if len(record["tasks"]) > 1 else []
    costs = ["env. steps", "seconds", "tokens"] if budget == "end" else []
    minus = f"minus {record['baseline']}"
    head = ["method", "seeds", "warm start", measure, *splits, "gain", minus, "over seeds only", *costs]
    lines = [f"| {' | '.join(head)} |", f"|---{'|---:' * (len(head) - 1)}|"]
    for algo, method in record["methods"].items():
        rates = method[measure]
        reached = rates[budget]
        form = FORMS[measure]
        mark = DAGGER if method["ended_early"] else ""
        cells = [
            f"{algo}{mark}", str(len(method["seeds"])), form.format(rates["start"]["mean"]),
            _shown(reached["rate"], measure), *(form.format(reached["splits"][split]) for split in splits),
            _change(reached["gain"], measure), *_difference_cells(reached.get("difference"), measure),
        ]  # fmt: skip
        if budget == "end":
            cells += [_count(method["cost"][axis]) for axis in AXES]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _shown(interval: Mapping[str, float | None], measure: str) -> str:
    form = FORMS[measure]
    if interval["low"] is None:
        return form.format(interval["mean"])
    low, high = (form.format(min(max(interval[side] or 0.0, 0.0), 1.0)) for side in ("low", "high"))
    return f"{form.format(interval['mean'])} ({low} – {high})"


def _signed(value: float | None, measure: str) -> str:
    if value is None:
        return "–"
    return f"{100 * value:+.1f}" if measure == "success" else f"{value:+.3f}"


def _change(interval: Mapping[str, float | None], measure: str) -> str:
    """Points of success, or score."""
    if interval["low"] is None:
        return _signed(interval["mean"], measure)
    low, high = (_signed(interval[side], measure) for side in ("low", "high"))
    return f"{_signed(interval['mean'], measure)} ({low} … {high})"


def _difference_cells(difference: Mapping[str, Any] | None, measure: str) -> tuple[str, str]:
    """The difference with its interval over seeds and tasks, and the interval over seeds only."""
    if difference is None:
        return "–", "–"
    both, seeds = difference["over_seeds_and_tasks"], difference["over_seeds"]
    if seeds["low"] is None:
        return _signed(both["mean"], measure), "–"
    certain = Interval(**both).excludes_zero and Interval(**seeds).excludes_zero
    text = _change(both, measure)
    return f"**{text}**" if certain else text, f"{_signed(seeds['low'], measure)} … {_signed(seeds['high'], measure)}"


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _warnings(record: Mapping[str, Any]) -> list[str]:
    """Warnings about the runs that the tables compare."""
    warnings = []
    for algo, method in record["methods"].items():
        if method["ended_early"]:
            seeds = ", ".join(map(str, method["ended_early"]))
            warnings.append(f"{DAGGER} {algo}: seed {seeds} ended early and counts with its last evaluation.")
        gain = method["success"]["end"]["gain"]
        if gain["mean"] < 0:
            warnings.append(f"{algo} ends below its warm start: {_change(gain, 'success')} points.")
    evaluated = {(algo, seed) for algo, method in record["methods"].items() for seed in method["seeds"]}
    warnings += [
        f"{run['algo']}, seed {run['seed']} is in no table, because it was never evaluated: {run['ending']}."
        for run in record["runs"]
        if (run["algo"], run["seed"]) not in evaluated
    ]
    if len(record["warm_starts"]) > 1:
        warnings.append(
            f"**The runs have {len(record['warm_starts'])} different warm starts** (policy.seed is not set, or their "
            "configurations differ), which causes a part of the differences between methods."
        )
    warnings += [
        f"**The runs have different {name}** (report.json lists them)."
        for name in ("manifests", "environment", "versions")
        if isinstance(record[name], list) and record[name]
    ]
    return ["\n".join(f"- {line}" for line in warnings)] if warnings else []


def _runs_table(record: Mapping[str, Any]) -> str:
    lines = [
        "<details><summary>Every run</summary>\n",
        "| method | seed | updates | env. steps | seconds | warm start | end | |",
        "|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    for run in record["runs"]:
        cost = run["cost"] or {}
        cells = [
            run["algo"], str(run["seed"]), "–" if run["updates"] is None else str(run["updates"]),
            _count(cost["env_steps"]) if cost else "–", _count(cost["seconds"]) if cost else "–",
            *("–" if run[key] is None else f"{run[key]:.1%}" for key in ("start", "end")),
            " ".join(run["ending"].replace("|", "\\|").split()),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "\n</details>"])


def _facts_text(record: Mapping[str, Any]) -> str:
    def short(manifests: Mapping[str, Any]) -> str:
        return ", ".join(f"{split} {facts['sha256'][:12]} ({facts['tasks']})" for split, facts in manifests.items())

    lines = ["Warm start " + ", ".join(hash_[:12] for hash_ in record["warm_starts"])]
    if isinstance(record["manifests"], dict):
        lines.append(f"manifests: {short(record['manifests'])}")
    if isinstance(record["training"], dict):
        lines.append(f"trained on {record['training']['tasks']} tasks, {record['training']['sha256'][:12]}")
    if isinstance(record["versions"], dict):
        lines.append(", ".join(f"{name} {version}" for name, version in record["versions"].items()))
    return "; ".join(lines) + "."


# -- as pictures ------------------------------------------------------------------------------------------------------
def colours(algos: Sequence[str], baseline: str) -> dict[str, Any]:
    """A colour for each method; the baseline is black."""
    others = [algo for algo in algos if algo != baseline]
    palette = mpl.colormaps["tab10"].colors
    return {baseline: "black", **{algo: palette[at % len(palette)] for at, algo in enumerate(others)}}


def curves(record: Mapping[str, Any]) -> Figure:
    """Mean success of each method over each of `AXES`, and a point for each evaluation of a run.

    Also the score where it is another number, and the turns of an episode where all evaluations have them.
    """
    evaluations = [evaluated for run in record["runs"] for evaluated in run["evaluations"]]
    know_turns = all(evaluated["turns"] is not None for evaluated in evaluations)
    measures = [*record["measures"], *(["turns"] if know_turns else [])]
    figure = Figure(figsize=(10.5, 1.2 + 2.6 * len(measures)), layout="constrained")
    panels = figure.subplots(len(measures), len(AXES), sharey="row", sharex="col", squeeze=False)
    colour = colours(list(record["methods"]), record["baseline"])
    for row, measure in zip(panels, measures, strict=True):
        for axes, (axis, label) in zip(row, AXES.items(), strict=True):
            for algo in record["methods"]:
                runs = [run["evaluations"] for run in record["runs"] if run["algo"] == algo and run["evaluations"]]
                cost, mean = mean_line(runs, axis, measure)
                axes.plot(cost, mean, color=colour[algo], linewidth=1.6, label=algo)
                points = [(one["cost"][axis], one[measure]) for run in runs for one in run]
                axes.scatter(*zip(*points, strict=True), color=colour[algo], s=9, alpha=0.4, linewidth=0)
            axes.grid(alpha=0.3)
            axes.xaxis.set_major_formatter(mpl.ticker.EngFormatter(sep=""))
            axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator(4, steps=[1, 2, 5, 10]))
            axes.set_xlim(left=0)
            if measure == measures[-1]:
                axes.set_xlabel(label)
        row[0].set_ylabel(f"{measure}, held-out tasks" if measure != "turns" else "turns of an episode")
        if measure == "success":
            row[0].yaxis.set_major_formatter(mpl.ticker.PercentFormatter(1.0))
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=9)
    return figure


def mean_line(
    runs: Sequence[Sequence[Mapping[str, Any]]], axis: str, measure: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean cost and `measure` of runs, given by their evaluations, at equal numbers of environment steps, [P] each.

    A run that ended before the others keeps its last value, so the line ends with the numbers of the tables.
    """
    steps = [[evaluated["cost"]["env_steps"] for evaluated in run] for run in runs]
    grid = np.linspace(0, max(known[-1] for known in steps), POINTS)

    def mean(values: Sequence[Sequence[float]]) -> NDArray[np.float64]:
        return np.mean([np.interp(grid, known, of) for known, of in zip(steps, values, strict=True)], axis=0)

    cost = mean([[evaluated["cost"][axis] for evaluated in run] for run in runs])
    return cost, mean([[evaluated[measure] for evaluated in run] for run in runs])


def differences_chart(record: Mapping[str, Any]) -> Figure:
    """Differences to the baseline at the end, with thin intervals over seeds and tasks and thick ones over seeds."""
    shown = {
        algo: difference
        for algo, method in record["methods"].items()
        if (difference := method["success"]["end"].get("difference"))
    }
    figure = Figure(figsize=(7.2, 1.1 + 0.36 * len(shown)), layout="constrained")
    axes = figure.subplots()
    colour = colours(list(record["methods"]), record["baseline"])
    places = np.arange(len(shown), 0, -1)
    for place, (algo, difference) in zip(places, shown.items(), strict=True):
        both, seeds = difference["over_seeds_and_tasks"], difference["over_seeds"]
        if both["low"] is not None:
            axes.plot([100 * both["low"], 100 * both["high"]], [place, place], color=colour[algo], linewidth=1.4)
            axes.plot(
                [100 * seeds["low"], 100 * seeds["high"]], [place, place], color=colour[algo], linewidth=5, alpha=0.35
            )
        axes.plot(100 * both["mean"], place, "o", color=colour[algo])
    axes.axvline(0, color="black", linewidth=1)
    axes.set_yticks(places, list(shown))
    axes.set_ylim(0.4, len(shown) + 0.6)
    axes.grid(axis="x", alpha=0.3)
    axes.set_xlabel(
        f"success minus that of {record['baseline']} in points, held-out tasks\n"
        "(95 %: thin over seeds and tasks, thick over seeds on these tasks)"
    )
    return figure


# -- learning rates ---------------------------------------------------------------------------------------------------
def write_tuning(folder: Path, runs: Sequence[LabRun]) -> str:
    """Write the table of learning rates, by success on the tasks that are held out from training. Returns its text."""
    algos = dict.fromkeys(run.variant.algo for run in runs)
    rates = sorted({run.variant.rate for run in runs if run.variant.rate is not None})
    lines = [f"| | warm start | {' | '.join(f'{rate:g}' for rate in rates)} | best |"]
    lines.append(f"|---|---:|{'---:|' * len(rates)}---:|")
    record: dict[str, Any] = {}
    for algo in algos:
        of = [run for run in runs if run.variant.algo == algo and run.evaluations]
        means = {rate: _selection([run for run in of if run.variant.rate == rate], -1) for rate in rates}
        known = {rate: mean for rate, mean in means.items() if mean is not None}
        best = max(known, key=lambda rate: known[rate]) if known else None
        record[algo] = {"warm_start": _selection(of, 0), "rates": {f"{r:g}": m for r, m in means.items()}, "best": best}
        cells = ["–" if mean is None else f"{mean:.1%}" for mean in (record[algo]["warm_start"], *means.values())]
        lines.append(f"| {algo} | {' | '.join(cells)} | {'–' if best is None else f'{best:g}'} |")
    early = [f"- {run.variant}: {run.ending}" for run in runs if not run.ending.finished]
    note = (
        "Mean success over seeds on the tasks that are held out from training, after the last update. A run that ended "
        "early counts with its last evaluation."
    )
    text = "\n\n".join([note, "\n".join(lines), *(["\n".join(early)] if early else [])]) + "\n"
    write_whole(folder / "tuning.md", text)
    write_whole(folder / "tuning.json", json.dumps(record, indent=1) + "\n")
    return text


def _selection(runs: Sequence[LabRun], at: int) -> float | None:
    """Mean success of runs on the tasks that rank checkpoints, at evaluation number `at`."""
    rates = [np.mean(list(run.evaluations[at].outcomes("success", SELECTION).values())) for run in runs]
    return float(np.mean(rates)) if rates else None
