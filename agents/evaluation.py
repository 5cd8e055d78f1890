"""Evaluate an agent: play every task of a split exactly once for each seed, and summarise the results.

    with EnvPool(task_set.make, size=32) as pool:
        evaluation = evaluate(agent, task_set, "valid_seen", pool, seeds=[0, 1, 2])

Every ending counts: an episode that ended by an error or at a limit did not solve its task.

Training leaves out episodes that a fault of the environment ended. An evaluation keeps them, since otherwise its set of
tasks would change.

*Which interval is which.* `success` and the rates by task type pool the episodes of all seeds. Episodes of one task
resemble each other, so three seeds of 140 tasks are less than 420 independent trials. The Wilson interval is
therefore computed for `effective_n` trials, the number of independent trials that would vary as much as the tasks' own
rates do (the design effect of cluster sampling, Kish 1965; linearised variance, clusters = tasks). It answers: how
would the agent do on other tasks like these? `by_seed` has the rate of each seed and its plain interval over tasks.
`seed_mean` ± `seed_std` (the sample standard deviation, not a standard error) answers another question: how much does
the result change when only the seed changes, on these very tasks? The interval of the mean score is over tasks, too: it
is Wilson's, computed for the number of trials that would vary as much.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self, TypeVar

import numpy as np

from agents.agent import Agent
from agents.episode import Episode, ParseStatus
from agents.rollout import Job, rollout
from agents.statistics import (
    Interval,
    bootstrap_interval,
    effective_trials,
    pass_at_k,
    pass_hat_k,
    share_interval,
    wilson,
)
from envs.core import StopReason, TaskSet, counted
from envs.pool import EnvPool

K = TypeVar("K", int, str)
UNTYPED = "untyped"  # tasks without a type, in a split where others have one


@dataclass(frozen=True)
class Rate:
    """A share of successes, and its 95 % Wilson interval at `effective_n` trials."""

    successes: int
    n: int  # episodes
    rate: float
    low: float
    high: float
    effective_n: float  # at most n; equal to n if every task was played once


@dataclass(frozen=True)
class Evaluation:
    """The results of an agent on a split. Means are over episodes; `invalid` is a share of all turns."""

    env: str
    split: str
    tasks: int
    success: Rate
    by_type: dict[str, Rate]  # empty if tasks have no types
    by_seed: dict[int, Rate]
    seed_mean: float
    seed_std: float | None  # None for a single seed
    score: float
    score_interval: tuple[float, float] | None  # 95 %; None if all tasks have the same score, which gives no interval
    total_reward: float
    turns: float
    invalid: float  # turns that were malformed, illegal or truncated
    stops: dict[str, int]  # stop reason -> episodes
    # k -> the mean over tasks of pass@k (at least one of k attempts solves it) and pass^k (all of them do), with
    # intervals by a bootstrap over tasks; for k up to the number of attempts at each task
    pass_at_k: dict[int, Interval] = field(default_factory=dict)
    pass_hat_k: dict[int, Interval] = field(default_factory=dict)

    def metrics(self, prefix: str) -> dict[str, float]:
        """Flat numbers for logs. `prefix` is `eval/<env>/<split>`: `eval/alfworld/valid_seen/success` and so on."""
        values = {
            "success": self.success.rate,
            "success_low": self.success.low,
            "success_high": self.success.high,
            "score": self.score,
            **(dict(zip(("score_low", "score_high"), self.score_interval, strict=True)) if self.score_interval else {}),
            "return": self.total_reward,
            "turns": self.turns,
            "invalid": self.invalid,
            **{f"success/{kind}": rate.rate for kind, rate in self.by_type.items()},
            **{f"stop/{reason}": count / self.success.n for reason, count in self.stops.items()},
        }
        return {f"{prefix}/{name}": value for name, value in values.items()}

    @property
    def is_broken(self) -> bool:
        """Whether the results say nothing about the agent.

        Errors of the environment ended more than half of the episodes, or an endpoint refused all of them.
        """
        is_refused = self.stops.get(StopReason.REFUSED, 0) == self.success.n
        return is_refused or 2 * self.stops.get(StopReason.ENV_ERROR, 0) > self.success.n

    def to_json(self) -> dict[str, Any]:
        """Plain data for `json.dumps`."""
        return asdict(self)

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Self:
        """The inverse of `to_json`. Raises `TypeError` or `KeyError` for other data."""
        interval = row["score_interval"]
        rates = {
            "success": Rate(**row["success"]),
            "by_type": {kind: Rate(**rate) for kind, rate in row["by_type"].items()},
            "by_seed": {int(seed): Rate(**rate) for seed, rate in row["by_seed"].items()},
            **{
                name: {int(k): Interval(**interval) for k, interval in row.get(name, {}).items()}
                for name in ("pass_at_k", "pass_hat_k")
            },
        }
        return cls(**{**row, **rates, "score_interval": interval and (interval[0], interval[1])})

    def to_markdown(self) -> str:
        """A table by task type, one by seed if there are several, and a line with the other numbers."""
        rows = {"**all**": self.success, **self.by_type}
        parts = [_table("task type", rows)]
        if self.seed_std is not None:
            parts.append(_table("seed", {str(seed): rate for seed, rate in self.by_seed.items()}))
            parts.append(
                f"Over the {len(self.by_seed)} seeds: {self.seed_mean:.1%} ± {self.seed_std:.1%} (standard deviation). "
                f"The first table pools the seeds; for its intervals, {self.success.n} episodes of {self.tasks} tasks "
                f"count as {self.success.effective_n:.0f} independent ones."
            )
        if len(self.pass_at_k) > 1:
            parts.append(self._passes())
        stops = ", ".join(f"{reason} {count}" for reason, count in self.stops.items())
        low_high = " (95 % interval {:.3f} – {:.3f})".format(*self.score_interval) if self.score_interval else ""
        parts.append(
            f"Mean score {self.score:.3f}{low_high}, mean return {self.total_reward:.3f}, mean turns {self.turns:.1f}, "
            f"invalid turns {self.invalid:.1%}. Endings: {stops}.{self._faults()}"
        )
        return "\n\n".join(parts) + "\n"

    def _passes(self) -> str:
        lines = ["| k | pass@k: one of k attempts | 95 % interval | pass^k: all k attempts | 95 % interval |"]
        lines.append("|---:|---:|---:|---:|---:|")
        for k, best in self.pass_at_k.items():
            cells = [text for one in (best, self.pass_hat_k[k]) for text in (f"{one.mean:.1%}", _range(one))]
            lines.append(f"| {k} | {' | '.join(cells)} |")
        return "\n".join(lines)

    def _faults(self) -> str:
        faults = sum(count for reason, count in self.stops.items() if StopReason(reason).is_fault)
        return (
            f" Faults of the environment ended {counted(faults, 'episode')}; these count as not solved."
            if faults
            else ""
        )


def _range(interval: Interval) -> str:
    return "–" if interval.low is None else f"{interval.low:.1%} – {interval.high:.1%}"


def _table(heading: str, rows: dict[str, Rate]) -> str:
    lines = [f"| {heading} | success | 95 % interval | solved |", "|---|---:|---:|---:|"]
    for name, rate in rows.items():
        interval = f"{rate.low:.1%} – {rate.high:.1%}"
        lines.append(f"| {name} | {rate.rate:.1%} | {interval} | {rate.successes} / {rate.n} |")
    return "\n".join(lines)


def evaluate(
    agent: Agent,
    task_set: TaskSet,
    split: str,
    pool: EnvPool,
    *,
    seeds: Sequence[int] = (0,),
    limit: int | None = None,
    task_ids: Sequence[str] | None = None,
    max_turns: int | None = None,
    episode_timeout: float | None = None,
    played: Iterable[Episode] = (),
    on_episode: Callable[[Episode], None] | None = None,
) -> Evaluation:
    """Play every task of the split once for each seed, and summarise.

    `task_ids` selects these tasks only, `limit` this number of them (`spread`).

    Episodes in `played` are reused instead of played again, except those that do not belong to the plan. Seeds are
    passed to the environment's reset, and to agents that draw from `episode.seed`. A policy draws from one generator in
    the order of the batch: at temperature 0 its episodes depend neither on batching nor on resuming (up to rounding in
    the model), at higher temperatures they depend on both.
    """
    if max_turns is not None and (not isinstance(max_turns, int) or max_turns < 1):
        raise ValueError(f"max_turns must be at least 1, or None for the environment's limit; got {max_turns!r}")
    jobs = plan(task_set, split, seeds, limit, task_ids)
    known = {episode_key(episode): episode for episode in played}
    missing = [job for job in jobs if (job.task.id, job.seed) not in known]
    fresh = rollout(agent, pool, missing, max_turns=max_turns, episode_timeout=episode_timeout, on_episode=on_episode)
    known |= {episode_key(episode): episode for episode in fresh}
    return summarise([known[job.task.id, job.seed] for job in jobs])


def plan(
    task_set: TaskSet,
    split: str,
    seeds: Sequence[int],
    limit: int | None = None,
    task_ids: Sequence[str] | None = None,
) -> list[Job]:
    """The episodes of an evaluation: for each seed the tasks in the order of the manifest, `group` by task."""
    if not seeds or len(set(seeds)) != len(seeds) or not all(isinstance(seed, int) for seed in seeds):
        raise ValueError(f"seeds must be one or more different integers, got {list(seeds)}")
    if limit is not None and (not isinstance(limit, int) or limit < 1):
        raise ValueError(f"limit must be at least 1, or None for all tasks; got {limit!r}")
    ids = spread(task_set.manifest(split).ids if task_ids is None else task_ids, limit)
    tasks = [task_set.task(split, task_id) for task_id in ids]
    return [Job(task, group, seed) for seed in seeds for group, task in enumerate(tasks)]


def spread(ids: Sequence[str], limit: int | None) -> list[str]:
    """`limit` of the sorted `ids`, evenly spaced: ids begin with the task type, and the first ones all have one type.

    Returns all of them for None, or if there are no more. A limit twice as large selects a superset, so an evaluation
    can be extended.
    """
    count = len(ids) if limit is None else min(limit, len(ids))
    return [ids[i * len(ids) // count] for i in range(count)]


def describe_limit(limit: int | None, total: int) -> str:
    """How `spread` selects from `total` tasks, in words: "20 of 140 tasks, evenly spaced over the sorted ids"."""
    if limit is None or limit >= total:
        return counted(total, "task")
    return f"{limit} of {counted(total, 'task')}, evenly spaced over the sorted ids"


def episode_key(episode: Episode) -> tuple[str, int]:
    """The key of an episode in an evaluation: its task's id and its seed."""
    return episode.task.id, episode.seed


def summarise(episodes: Sequence[Episode]) -> Evaluation:
    """The statistics of one split's episodes. Raises `ValueError` if a task occurs twice for the same seed."""
    if not episodes:
        raise ValueError("there are no episodes to summarise")
    for what, values in {
        "environment": {e.task.env for e in episodes},
        "split": {e.task.split for e in episodes},
    }.items():
        if len(values) > 1:
            raise ValueError(f"an evaluation covers one {what}, got episodes of {sorted(values)}")
    (twice, count), *_ = Counter(map(episode_key, episodes)).most_common(1)
    if count > 1:
        raise ValueError(f"task {twice[0]!r} was played {count} times with seed {twice[1]}, expected once")
    by_seed = {seed: _rate(of) for seed, of in _grouped(episodes, lambda e: e.seed).items()}
    by_task = _grouped(episodes, lambda e: e.task.id)
    types = _grouped(episodes, _type_of)
    rates = [rate.rate for rate in by_seed.values()]
    turns = [turn for episode in episodes for turn in episode.turns]
    stops = Counter(episode.stop_reason for episode in episodes)
    return Evaluation(
        env=episodes[0].task.env,
        split=episodes[0].task.split,
        tasks=len(by_task),
        success=_rate(episodes),
        by_type={} if set(types) == {UNTYPED} else {kind: _rate(of) for kind, of in types.items()},
        by_seed=by_seed,
        seed_mean=statistics.fmean(rates),
        seed_std=statistics.stdev(rates) if len(rates) > 1 else None,
        score=statistics.fmean(episode.score for episode in episodes),
        score_interval=share_interval([(math.fsum(e.score for e in of), len(of)) for of in by_task.values()]),
        total_reward=statistics.fmean(episode.total_reward for episode in episodes),
        turns=len(turns) / len(episodes),
        invalid=sum(turn.status is not ParseStatus.OK for turn in turns) / max(len(turns), 1),
        stops={str(reason): stops[reason] for reason in StopReason if stops[reason]},
        pass_at_k=_by_k(pass_at_k, list(by_task.values())),
        pass_hat_k=_by_k(pass_hat_k, list(by_task.values())),
    )


def _by_k(estimate: Callable[[int, int, int], float], tasks: Sequence[Sequence[Episode]]) -> dict[int, Interval]:
    counts = [(len(of), sum(episode.success for episode in of)) for of in tasks]
    return {
        k: bootstrap_interval(np.array([estimate(n, c, k) for n, c in counts]))
        for k in range(1, min(n for n, _ in counts) + 1)
    }


def outcomes_by_task(episodes: Iterable[Episode]) -> dict[str, dict[str, Any]]:
    """The type of each task, and the success and the score of its attempts in the order of their seeds: plain data."""
    return {
        task: {
            "type": _type_of(of[0]),
            "success": [episode.success for episode in sorted(of, key=lambda e: e.seed)],
            "score": [episode.score for episode in sorted(of, key=lambda e: e.seed)],
        }
        for task, of in _grouped(episodes, lambda e: e.task.id).items()
    }


def _type_of(episode: Episode) -> str:
    return str(episode.task.payload.get("type", UNTYPED))


def _grouped(episodes: Iterable[Episode], key: Callable[[Episode], K]) -> dict[K, list[Episode]]:
    """Episodes by key, in the order of the keys."""
    groups: dict[K, list[Episode]] = {}
    for episode in episodes:
        groups.setdefault(key(episode), []).append(episode)
    return {name: groups[name] for name in sorted(groups)}


def _rate(episodes: Sequence[Episode]) -> Rate:
    tasks = _grouped(episodes, lambda e: e.task.id).values()
    counts = [(sum(e.success for e in of), len(of)) for of in tasks]
    return _interval(sum(k for k, _ in counts), len(episodes), effective_trials(counts))


def pooled(rates: Sequence[Rate]) -> Rate:
    """The share over the episodes of all `rates`, which belong to different tasks."""
    return _interval(sum(r.successes for r in rates), sum(r.n for r in rates), sum(r.effective_n for r in rates))


def _interval(successes: int, n: int, effective_n: float) -> Rate:
    low, high = wilson(successes / n, effective_n)
    return Rate(successes, n, successes / n, low, high, effective_n)
