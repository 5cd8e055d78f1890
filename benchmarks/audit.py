"""The effect of the protocol on results for ALFWorld and WebShop: one fixed policy, one changed choice at a time.

    python -m benchmarks.audit --model DIR      # a model or a training run of agent=transcript, on official games
    python -m benchmarks.audit --parts webshop  # without a model: the scripted expert plays

The base setting of ALFWorld is every game of valid_seen once, temperature 0.4, at most 50 turns, the whole episode in
the prompt, any text as an action. The base setting of WebShop is the 500 test goals of the small catalogue in the
official order, prices of seed 0, at most 15 turns, played by the scripted expert, which is deterministic.

A row changes one choice. If both settings play the same tasks, the difference is paired over tasks, with a 95 %
interval of 1.96 standard errors. Otherwise it is the difference of two means, with the interval of independent samples.
Rows that only select results (a step limit, tasks drawn with repetition, the best of several checkpoints) are computed
from the episodes of the base setting. If the selection is random, they give the range of 19 draws in 20. The last line
of the output is JSON.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from agents.agent import Agent, PolicyAgent
from agents.candidates import CandidateAgent
from agents.episode import Turn
from agents.evaluation import plan
from agents.masking import MaskedAgent
from agents.policies.base import Sampling
from agents.policies.local import LocalPolicy
from agents.policies.pretrained import Pretrained
from agents.prompts import Transcript
from agents.rollout import rollout
from agents.scripted import ExpertAgent
from agents.statistics import Z95
from benchmarks.rollouts import write_line
from envs.alfworld.tasks import OFFICIAL_COUNTS, ALFWorldTasks
from envs.core import Info, TaskSet, UnknownNameError
from envs.pool import EnvPool
from envs.webshop.tasks import WebShopTasks
from scripts.agents import checkpoint_of

PARTS = ("alfworld", "webshop")
TEMPERATURE, TURNS = 0.4, 50
DRAWS = 10_000  # of random selections
CHECKPOINTS = 10  # of which the best is chosen
WORKERS = 128  # of verl-agent; each has its own validation goals


@dataclass(frozen=True)
class Results:
    """The results of episodes: by task, in the order of the manifest, the mean over seeds."""

    ids: list[str]
    success: NDArray[np.float64]  # [N]
    score: NDArray[np.float64]  # [N]
    turns: NDArray[np.int64]  # [N, S] of each task and seed
    solved: NDArray[np.bool_]  # [N, S]

    def within(self, turns: int) -> NDArray[np.float64]:
        """The success [N] with a limit of `turns`."""
        return (self.solved & (self.turns <= turns)).mean(1)


@dataclass(frozen=True)
class Row:
    """A choice in the base setting and in another one, with the mean success in both and their difference."""

    world: str
    choice: str
    base: str
    now: str
    before: float
    after: float
    low: float  # of the difference
    high: float
    n: int  # tasks

    def cells(self) -> list[str]:
        """The cells of a table, in per cent and points."""
        gain, low, high = (100 * x for x in (self.after - self.before, self.low, self.high))
        rates = [f"{100 * x:.1f}" for x in (self.before, self.after)]
        return [
            self.choice,
            f"{self.base} → {self.now}",
            *rates,
            f"{gain:+.1f} ({low:+.1f} to {high:+.1f})",
            str(self.n),
        ]


class LastTurns(Transcript):
    """A prompter that shows the first turn and the last few, instead of the whole episode."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def prompt_ids(self, tokenizer: Any, turns: Sequence[Turn], observation: str, info: Info) -> list[int]:
        """The ids of these turns as in `Transcript`, and of the observation."""
        ids: list[int] = []
        for number in [0, *range(max(1, len(turns) - self.count), len(turns))] if turns else []:
            turn = turns[number]
            shown = super().prompt_ids(tokenizer, [], turn.observation, {})
            ids += [*(shown if not ids else shown[1:]), *turn.completion_ids]
            ids += [] if ids[-1] == tokenizer.eos_token_id else [tokenizer.eos_token_id]
        now = super().prompt_ids(tokenizer, [], observation, info)
        return [*ids, *(now[1:] if ids else now)]


def play(agent: Agent, tasks: TaskSet, split: str, seeds: Sequence[int], limit: int | None, turns: int) -> Results:
    """Play tasks of a split once for each seed."""
    jobs = plan(tasks, split, seeds, limit)
    with EnvPool(tasks.make, min(64, len(jobs))) as pool:
        episodes = rollout(agent, pool, jobs, max_turns=turns)
    shape = (len(seeds), -1)
    solved = np.array([episode.success for episode in episodes]).reshape(shape).T
    score = np.array([episode.score for episode in episodes]).reshape(shape).T
    ids = [job.task.id for job in jobs[: len(solved)]]
    lengths = np.array([len(episode.turns) for episode in episodes]).reshape(shape).T
    return Results(ids, solved.mean(1), score.mean(1), lengths, solved)


def paired(gains: NDArray[np.float64]) -> tuple[float, float]:
    """The 95 % interval of the mean of `gains` [N], over tasks."""
    error = Z95 * gains.std(ddof=1) / np.sqrt(len(gains))
    return float(gains.mean() - error), float(gains.mean() + error)


def unpaired(before: NDArray[np.float64], after: NDArray[np.float64]) -> tuple[float, float]:
    """The 95 % interval of the difference of two means over different tasks."""
    error = Z95 * np.sqrt(before.var(ddof=1) / len(before) + after.var(ddof=1) / len(after))
    gain = after.mean() - before.mean()
    return float(gain - error), float(gain + error)


class Rows:
    """Collects the rows of an environment, each compared with the base setting."""

    def __init__(self, world: str, base: Results) -> None:
        self.world, self.base, self.rows = world, base, list[Row]()

    def same_tasks(self, choice: str, base: str, now: str, after: NDArray[np.float64]) -> None:
        """A setting with the same tasks."""
        before = self.base.success
        self._add(choice, base, now, after, *paired(after - before))

    def other_tasks(self, choice: str, base: str, now: str, after: NDArray[np.float64]) -> None:
        """A setting with other tasks."""
        self._add(choice, base, now, after, *unpaired(self.base.success, after))

    def by_chance(self, choice: str, base: str, now: str, means: NDArray[np.float64]) -> None:
        """A selection of the base setting's results: its `means` in many draws."""
        before = float(self.base.success.mean())
        low, high = np.quantile(means - before, [0.025, 0.975])
        self.rows.append(
            Row(self.world, choice, base, now, before, float(means.mean()), low, high, len(self.base.success))
        )

    def _add(self, choice: str, base: str, now: str, after: NDArray[np.float64], low: float, high: float) -> None:
        before = float(self.base.success.mean())
        self.rows.append(Row(self.world, choice, base, now, before, float(after.mean()), low, high, len(after)))

    def drawn(self, count: int) -> None:
        """Rows of both environments about the selection of tasks."""
        rng, success = np.random.default_rng(0), self.base.success
        n = len(success)
        self.by_chance(
            "tasks",
            "each once",
            f"{count} drawn with repetition",
            success[rng.integers(n, size=(DRAWS, count))].mean(1),
        )
        kept = n - n // 10
        some = rng.permuted(np.tile(success, (DRAWS, 1)), axis=1)[:, :kept].mean(1)
        self.by_chance("missing tasks", "none", "a tenth, at random", some)
        self.by_chance("order of the ids", "all", f"the first {n // 4}", np.full(1, success[: n // 4].mean()))

    def best_of(self) -> None:
        """The success of the best of equal checkpoints, if it is chosen on the split that is reported."""
        rng, success = np.random.default_rng(0), self.base.success
        rates = rng.binomial(1, success, size=(1000, CHECKPOINTS, len(success))).mean(2).max(1)
        self.by_chance("checkpoint", "one", f"best of {CHECKPOINTS} equal ones on the split", rates)


def audit_alfworld(model: str, data: str | None, seeds: Sequence[int], limit: int | None) -> list[Row]:
    """All rows of ALFWorld."""
    policy: LocalPolicy = Pretrained().load(checkpoint_of(model))
    tasks = ALFWorldTasks("official", data)

    def agent(
        kind: type[PolicyAgent] = PolicyAgent, temperature: float = TEMPERATURE, history: int | None = None
    ) -> Agent:
        prompter = Transcript() if history is None else LastTurns(history)
        generator = torch.Generator(policy.device).manual_seed(0)
        made: Agent = kind(policy, prompter, Sampling(temperature, 24), generator)
        return made

    def played(one: Agent, split: str = "valid_seen", turns: int = TURNS) -> Results:
        start = time.perf_counter()
        found = play(one, tasks, split, seeds, limit, turns)
        Console().print(
            f"{split}: {100 * found.success.mean():.1f} %, {time.perf_counter() - start:.0f} s", style="dim"
        )
        return found

    base = played(agent())
    rows = Rows("alfworld", base)
    for turns in (30, 20):
        rows.same_tasks("step limit", str(TURNS), str(turns), base.within(turns))
    for temperature in (0.0, 1.0):
        rows.same_tasks(
            "temperature", str(TEMPERATURE), str(temperature), played(agent(temperature=temperature)).success
        )
    rows.same_tasks("history", "whole episode", "first turn and last 2", played(agent(history=2)).success)
    rows.same_tasks("actions", "any text", "admissible ones (masked)", played(agent(MaskedAgent)).success)
    scored = played(agent(partial(CandidateAgent, normalization="sum")))
    rows.same_tasks("actions", "any text", "admissible ones (scored)", scored.success)
    unseen = played(agent(), "valid_unseen")
    there = f"valid_unseen ({len(tasks.manifest('valid_unseen').ids)} of {OFFICIAL_COUNTS['valid_unseen']} games)"
    rows.other_tasks("split", "valid_seen", there, unseen.success)
    kinds = np.array([task_id.split("-")[0] for task_id in base.ids])
    for worst, name in ((True, "hardest"), (False, "easiest")):
        by_kind = {kind: base.success[kinds == kind].mean() for kind in np.unique(kinds)}
        left_out = (min if worst else max)(by_kind, key=lambda kind: float(by_kind[kind]))
        kept = base.success[kinds != left_out]
        rows.by_chance("missing tasks", "none", f"the {name} type ({left_out})", np.full(1, kept.mean()))
    rows.drawn(len(base.success))
    rows.best_of()
    return rows.rows


def audit_webshop(data: str | None, limit: int | None) -> list[Row]:
    """All rows of WebShop."""

    def played(split: str = "test", limit: int | None = limit, **settings: Any) -> Results:
        tasks = WebShopTasks("small", data, **settings)
        return play(ExpertAgent(tasks.expert), tasks, split, [0], limit, 15)

    base = played()
    rows = Rows("webshop", base)
    for turns in (10, 5):
        rows.same_tasks("step limit", "15", str(turns), base.within(turns))
    rows.same_tasks("the reported number", "success", "score", base.score)
    for seed in (1, 2):
        rows.same_tasks("prices", "seed 0", f"seed {seed}", played(seed=seed).success)
    rows.other_tasks("split", "test", "valid", played("valid").success)
    for seed in (0, 1):
        workers = played("valid", protocol="verl_agent", valid_workers=WORKERS, seed=seed)
        rows.other_tasks(
            "goals by worker", "official order", f"verl-agent's, {WORKERS} workers, seed {seed}", workers.success
        )
    rows.drawn(len(base.success))
    return rows.rows


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, and print tables and one line of JSON."""
    parser = argparse.ArgumentParser(prog="benchmarks.audit", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--parts", default=",".join(PARTS), help="a comma-separated list")
    parser.add_argument("--model", help="folder of a model or of a training run, for ALFWorld")
    parser.add_argument("--data", help="folder with official files ($POLYTURN_DATA)")
    parser.add_argument("--limit", type=int, help="tasks of each split, evenly spaced (all)")
    parser.add_argument("--seeds", type=int, default=1, help="how often each game of ALFWorld is played")
    parser.add_argument("--output", type=Path, help="file for the line of JSON")
    options = parser.parse_args(argv)
    parts = options.parts.split(",")
    if unknown := set(parts) - set(PARTS):
        raise UnknownNameError("part", sorted(unknown)[0], PARTS)
    if "alfworld" in parts and not options.model:
        parser.error("ALFWorld needs --model FOLDER; --parts webshop needs no model")
    rows: list[Row] = []
    if "alfworld" in parts:
        rows += audit_alfworld(options.model, options.data, range(options.seeds), options.limit)
    if "webshop" in parts:
        rows += audit_webshop(options.data, options.limit)
    for world in parts:
        table = Table("choice", "base → now", "base %", "now %", "difference (95 %)", "tasks", title=world)
        for row in rows:
            if row.world == world:
                table.add_row(*row.cells())
        Console().print(table)
    write_line({"audit": [vars(row) for row in rows], "options": {**vars(options), "output": None}}, options.output)


if __name__ == "__main__":
    main()
