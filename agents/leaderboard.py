"""Join evaluations of several agents into a leaderboard: plain numbers, computed from the outcomes of every task.

    record = leaderboard(cells)   # an evaluation of an agent on a split of an environment is a cell

Agents are compared on the same tasks, task by task: the tasks are matched by their ids and the hash of their manifest.
*Over all* is the mean over environments, and in an environment over its splits, so an environment with many tasks does
not count more. Only agents with a cell on every split are in it. `agents.statistics` has the methods and their sources.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np

from agents.evaluation import UNTYPED, Evaluation
from agents.statistics import (
    Floats,
    detectable_difference,
    holm,
    mcnemar,
    rank_interval,
    sign_permutation,
    stratified_bootstrap,
    stratified_interval,
)

LEVEL = 0.05  # of an adjusted p-value that tells two agents apart
FLOORS = ("constant", "random")  # agents that show what is reached without skill
MEASURES = ("success", "score")


@dataclass(frozen=True)
class Cell:
    """An evaluation of an agent on one split of an environment."""

    agent: str  # its name in the leaderboard
    environment: str
    split: str
    label: str  # of environment and split, in the leaderboard
    folder: str
    manifest: str  # its hash
    evaluation: Evaluation
    tasks: Mapping[str, Mapping[str, Any]]  # see `agents.evaluation.outcomes_by_task`
    sampled_tokens: int
    cost: float | None
    is_floor: bool = False

    @property
    def attempts(self) -> int:
        """The attempts at each task."""
        return len(self.evaluation.by_seed)

    def values(self, measure: str) -> Floats:
        """[T] the mean over the attempts at each task, in the order of the tasks' ids."""
        return np.array([math.fsum(self.tasks[t][measure]) / len(self.tasks[t][measure]) for t in sorted(self.tasks)])


def paired_differences(a: Cell, b: Cell, measure: str) -> Floats:
    """[T] a's mean minus b's at each task. Raises `ValueError` if the tasks are not the same."""
    if a.manifest != b.manifest:
        raise ValueError(
            f"{a.folder} and {b.folder} cannot be compared: their tasks of {a.label} have different manifests, "
            f"{a.manifest[:12]} and {b.manifest[:12]}"
        )
    if a.tasks.keys() != b.tasks.keys():
        raise ValueError(
            f"{a.folder} and {b.folder} cannot be compared: they have {len(a.tasks)} and {len(b.tasks)} tasks of "
            f"{a.label}, {len(a.tasks.keys() & b.tasks.keys())} of them the same; use one limit for both"
        )
    return a.values(measure) - b.values(measure)


def leaderboard(cells: Sequence[Cell]) -> dict[str, Any]:
    """The leaderboard as plain data. Raises `ValueError` for cells that cannot be compared."""
    if not cells:
        raise ValueError("there are no evaluations to compare")
    twice, count = Counter((cell.agent, cell.label) for cell in cells).most_common(1)[0]
    if count > 1:
        folders = ", ".join(cell.folder for cell in cells if (cell.agent, cell.label) == twice)
        raise ValueError(f"{twice[0]} was evaluated {count} times on {twice[1]}: {folders}; remove all but one of them")
    labels = sorted({cell.label for cell in cells})
    by_label = {label: sorted((c for c in cells if c.label == label), key=lambda c: c.agent) for label in labels}
    scored = any(list(map(float, t["success"])) != t["score"] for cell in cells for t in cell.tasks.values())
    measures = MEASURES if scored else MEASURES[:1]
    agents = {cell.agent for cell in cells}
    whole = sorted(a for a in agents if all(any(c.agent == a for c in by_label[label]) for label in labels))
    record: dict[str, Any] = {
        "measures": list(measures),
        "floors": sorted({cell.agent for cell in cells if cell.is_floor}),
        "environments": [_table(label, by_label[label], measures) for label in labels],
        "overall": None,
    }
    if len(labels) > 1 and whole:
        kept = {label: [c for c in by_label[label] if c.agent in whole] for label in labels}
        record["overall"] = _overall(kept, measures, sorted(agents - set(whole)))
    return record


def _table(label: str, cells: Sequence[Cell], measures: Sequence[str]) -> dict[str, Any]:
    first = cells[0]
    for other in cells[1:]:
        paired_differences(first, other, "success")  # raises if they do not have the same tasks
    by_measure = {measure: np.array([cell.values(measure) for cell in cells]) for measure in measures}  # [A, T]
    rows: list[dict[str, Any]] = []
    for cell in cells:
        evaluation = cell.evaluation
        episodes = evaluation.success.n
        rows.append(
            {
                "agent": cell.agent,
                "folder": cell.folder,
                "attempts": cell.attempts,
                "success": asdict(evaluation.success),
                "score": evaluation.score,
                "score_interval": evaluation.score_interval,
                "by_type": {kind: asdict(rate) for kind, rate in evaluation.by_type.items()},
                "pass_at_k": {str(k): asdict(one) for k, one in evaluation.pass_at_k.items()},
                "pass_hat_k": {str(k): asdict(one) for k, one in evaluation.pass_hat_k.items()},
                "invalid": evaluation.invalid,
                "turns": evaluation.turns,
                "tokens": cell.sampled_tokens / episodes,
                "cost": None if cell.cost is None else cell.cost / episodes,
                "stops": evaluation.stops,
            }
        )
    return {
        "label": label,
        "environment": first.environment,
        "split": first.split,
        "manifest": first.manifest,
        "tasks": len(first.tasks),
        "types": sorted({str(task["type"]) for task in first.tasks.values()} - {UNTYPED}),
        "agents": _ranked(rows, {measure: [values] for measure, values in by_measure.items()}, [1.0]),
        "pairs": {measure: _pairs([cells], [1.0], measure) for measure in measures},
    }


def _overall(kept: Mapping[str, Sequence[Cell]], measures: Sequence[str], left_out: list[str]) -> dict[str, Any]:
    """The mean over environments, and in each over its splits."""
    splits = Counter(cells[0].environment for cells in kept.values())
    weights = [1 / len(splits) / splits[cells[0].environment] for cells in kept.values()]
    groups = {m: [np.array([cell.values(m) for cell in cells]) for cells in kept.values()] for m in measures}
    agents = [cell.agent for cell in next(iter(kept.values()))]
    rows: list[dict[str, Any]] = [
        {
            "agent": agent,
            **{
                measure: asdict(stratified_interval([values[at] for values in groups[measure]], weights))
                for measure in measures
            },
        }
        for at, agent in enumerate(agents)
    ]
    return {
        "environments": len(splits),
        "splits": len(kept),
        "tasks": sum(len(cells[0].tasks) for cells in kept.values()),
        "left_out": left_out,
        "agents": _ranked(rows, groups, weights),
        "pairs": {measure: _pairs(list(kept.values()), weights, measure) for measure in measures},
    }


def _ranked(
    rows: Sequence[dict[str, Any]], groups: Mapping[str, Sequence[Floats]], weights: Sequence[float]
) -> list[dict[str, Any]]:
    """`rows` with their ranks by success and the intervals of the ranks, the best first."""
    success = groups["success"]
    total: Floats = np.sum([w * values.mean(1) for values, w in zip(success, weights, strict=True)], axis=0)
    means = [float(mean) for mean in total]
    intervals = rank_interval(stratified_bootstrap(success, weights))
    ranked = [
        {**row, "rank": 1 + sum(other > mean + 1e-12 for other in means), "rank_low": low, "rank_high": high}
        for row, mean, (low, high) in zip(rows, means, intervals, strict=True)
    ]
    return sorted(ranked, key=lambda row: (row["rank"], row["agent"]))


def _pairs(groups: Sequence[Sequence[Cell]], weights: Sequence[float], measure: str) -> list[dict[str, Any]]:
    """Every pair of agents on all `groups` of cells, which have the same agents in the same order; the better first."""
    pairs: list[dict[str, Any]] = []
    for first, second in combinations(range(len(groups[0])), 2):
        differences = [paired_differences(cells[first], cells[second], measure) for cells in groups]
        mean = stratified_interval(differences, weights).mean
        a, b = (first, second) if mean >= 0 else (second, first)
        differences = [d if mean >= 0 else -d for d in differences]
        interval = stratified_interval(differences, weights)
        once = len(groups) == 1 and measure == "success" and groups[0][a].attempts == groups[0][b].attempts == 1
        better, worse = (sum(int((sign * d > 1e-12).sum()) for d in differences) for sign in (1, -1))
        parts = np.concatenate([w * d / len(d) for d, w in zip(differences, weights, strict=True)])
        pairs.append(
            {
                "a": groups[0][a].agent,
                "b": groups[0][b].agent,
                "difference": abs(mean),
                "low": interval.low,
                "high": interval.high,
                "better": better,  # tasks
                "worse": worse,
                "test": "McNemar" if once else "sign permutation",
                "p": mcnemar(better, worse) if once else sign_permutation(parts),
                "detectable": detectable_difference(differences, weights),
            }
        )
    adjusted = holm([pair["p"] for pair in pairs])
    return [{**pair, "p_holm": p, "told_apart": p < LEVEL} for pair, p in zip(pairs, adjusted, strict=True)]
