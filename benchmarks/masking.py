"""Masked actions: processor time of a rollout with the mask and without it, for the same tokens.

    python -m benchmarks.masking                    # all worlds; --worlds alfworld for one, --output FILE

The tiny policy and a policy of 64M parameters with a vocabulary of 32,768 play ALFWorld's embedded games and WebShop's
embedded catalogue. Both have random weights in float32.

Both sides write the same actions: those of the environment's expert, three in ten of them replaced by other admissible
ones. Each id is sampled, and then replaced by the one of the demonstration. So prompts, tokens and turns are equal.
Each play has a new agent, so its time includes building the prefix trees.

Processor time includes environments, prompts and parsing, and does not depend on other processes. The two sides are
measured alternately; a ratio is that of two neighbouring measurements, reported as the median with the range. An id
that is the only allowed one needs no step of the model: `forced` is the share of these ids.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers.utils.logging import disable_progress_bar

from agents.agent import Agent, Decision, PolicyAgent, View
from agents.masking import MaskedAgent
from agents.parsing import fits
from agents.policies.base import Sampling
from agents.policies.local import LocalPolicy
from agents.prompts import Transcript
from agents.rollout import Job, rollout
from algorithms.initial_policy import TinyPolicy, tiny_policy
from algorithms.warm_start import Demonstrator, teacher_of
from benchmarks.rollouts import machine, ratio, spread, write_line
from envs.alfworld.tasks import ALFWorldTasks
from envs.core import Manifest, TaskSet, UnknownNameError
from envs.pool import EnvPool
from envs.webshop.tasks import WebShopTasks

TARGET = "≤ 1.15×"
NOISE = 0.3  # share of the expert's actions that are replaced
MODELS = {"tiny": TinyPolicy(128, 4, 4, 2048, None), "64M": TinyPolicy(640, 12, 10, 2048, None)}
LARGE_VOCABULARY = 2**15  # of all models but the tiny one
WORLDS: dict[str, Callable[[int], TaskSet]] = {
    "alfworld": lambda episodes: ALFWorldTasks("embedded", embedded_train=max(episodes, 50)),
    "webshop": lambda _: WebShopTasks("embedded"),
}


class ReplayPolicy(LocalPolicy):
    """A `LocalPolicy` that replaces the ids that it samples with given completions."""

    def __init__(self, model: Any, tokenizer: Any, completions: Sequence[Sequence[list[int]]]) -> None:
        super().__init__(model, tokenizer)
        self.completions = completions  # of each session, in the order of its turns
        self.begin()

    def begin(self) -> None:
        """Restart all sessions and the count of written ids."""
        self.written = 0
        self._left = [iter(completions) for completions in self.completions]

    def _write(self, rows: Any, sessions: list[int], sampling: Sampling, generator: torch.Generator) -> None:
        self._ids = {id(row): next(self._left[session]) for row, session in zip(rows, sessions, strict=True)}
        super()._write(rows, sessions, sampling, generator)
        self.written += sum(len(row.ids) for row in rows)

    def _take(self, row: Any, token: int, logprob: float, sampling: Sampling) -> None:
        del token
        super()._take(row, self._ids[id(row)][len(row.ids)], logprob, sampling)


@dataclass(frozen=True)
class AdmissibleTeacher:
    """The teacher, with its inadmissible actions replaced by the first admissible one."""

    teacher: Agent

    def act(self, views: Sequence[View]) -> list[Decision]:
        return [
            wanted if fits(wanted.action, view.info["admissible"]) else Decision(view.info["admissible"][0])
            for view, wanted in zip(views, self.teacher.act(views), strict=True)
        ]

    def finish(self, key: int) -> None:
        self.teacher.finish(key)


class _NoProgress:
    def phase(self, name: str, total: int | None = None) -> None: ...

    def advance(self, status: str = "") -> None: ...


@dataclass(frozen=True)
class Play:
    """The jobs that both sides play, with the same policy and the same ids."""

    tasks: TaskSet
    jobs: list[Job]
    policy: ReplayPolicy
    turns: int

    def once(self, masked: bool) -> tuple[float, int, float]:
        """Processor seconds of a rollout, the number of written ids, and the share of forced ones."""
        kind = MaskedAgent if masked else PolicyAgent
        agent = kind(self.policy, Transcript(), Sampling(1.0, 10_000), torch.Generator().manual_seed(0))
        self.policy.begin()
        with EnvPool(self.tasks.make, len(self.jobs)) as pool:
            start = time.process_time()
            episodes = rollout(agent, pool, self.jobs, max_turns=self.turns)
            seconds = time.process_time() - start
        nodes = [node for episode in episodes for turn in episode.turns for node in turn.nodes]
        forced = sum(node.forced is not None for node in nodes)
        return seconds, self.policy.written, forced / self.policy.written


def prepare(tasks: TaskSet, model: TinyPolicy, large: bool, episodes: int, turns: int) -> Play:
    """A model, and the demonstrations of `episodes` tasks that it writes."""
    manifest: Manifest = tasks.manifest("train")
    prompter = Transcript()
    with EnvPool(tasks.make, episodes) as pool:
        policy, _ = tiny_policy(model, tasks, manifest, prompter, pool, 0, _NoProgress(), {}, masked=True)
        chosen = [tasks.task("train", i) for i in manifest.ids[:: max(1, len(manifest.ids) // episodes)][:episodes]]
        jobs = [Job(task, group, task.seed) for group, task in enumerate(chosen)]
        demonstrator = Demonstrator(
            AdmissibleTeacher(teacher_of(tasks)), prompter, policy.tokenizer, NOISE, 0, masked=True
        )
        shown = rollout(demonstrator, pool, jobs, max_turns=turns)
    if large:
        policy.model.resize_token_embeddings(LARGE_VOCABULARY, mean_resizing=False)
    completions = [[turn.completion_ids for turn in episode.turns] for episode in shown]
    return Play(tasks, jobs, ReplayPolicy(policy.model, policy.tokenizer, completions), turns)


def measure(play: Play, repeats: int) -> dict[str, Any]:
    """Microseconds per id on both sides, and their ratio. Raises `RuntimeError` if their numbers of ids differ."""
    per_token: dict[bool, list[float]] = {False: [], True: []}
    written: dict[bool, tuple[int, float]] = {}
    for repeat in range(-1, repeats):  # the first is a warm-up
        for masked, found in per_token.items():
            seconds, *written[masked] = play.once(masked)
            if repeat >= 0:
                found.append(seconds / written[masked][0])
    if written[False][0] != written[True][0]:
        raise RuntimeError(f"the sides wrote {written[False][0]} and {written[True][0]} ids, expected the same number")
    return {
        "tokens": written[True][0],
        "forced": round(written[True][1], 4),
        "us_per_token": {
            name: spread([1e6 * s for s in per_token[masked]]) for name, masked in (("free", False), ("masked", True))
        },
        "ratio": ratio(per_token[True], per_token[False]),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, and print a table and one line of JSON."""
    parser = argparse.ArgumentParser(prog="benchmarks.masking", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--worlds", default=",".join(WORLDS), help="a comma-separated list")
    parser.add_argument("--models", default=",".join(MODELS), help="a comma-separated list")
    parser.add_argument("--episodes", type=int, default=16, help="number of episodes, each of another task")
    parser.add_argument("--turns", type=int, default=15, help="most turns of an episode")
    parser.add_argument("--repeats", type=int, default=5, help="of every comparison")
    parser.add_argument("--output", type=Path, help="file for the line of JSON")
    options = vars(parser.parse_args(argv))
    worlds, models, output = options.pop("worlds").split(","), options.pop("models").split(","), options.pop("output")
    for kind, asked, known in (("world", worlds, WORLDS), ("model", models, MODELS)):
        if unknown := set(asked) - set(known):
            raise UnknownNameError(kind, sorted(unknown)[0], known)
    if min(options.values()) < 1:
        parser.error(f"sizes must be at least 1, got {options}")

    disable_progress_bar()
    console = Console()
    figures: dict[str, Any] = {"machine": machine(), "size": options, "masking": {}}
    table = Table("", "free", "masked", "ratio", "target", "forced", title="Masked actions")
    for column in table.columns[1:]:
        column.justify = "right"
    for world in worlds:
        tasks = WORLDS[world](options["episodes"])
        for model in models:
            play = prepare(tasks, MODELS[model], model != "tiny", options["episodes"], options["turns"])
            found = figures["masking"].setdefault(world, {})[model] = measure(play, options["repeats"])
            speeds = [f"{found['us_per_token'][side]['median']:,.0f} µs/token" for side in ("free", "masked")]
            between = "{median:.2f} ({low:.2f}–{high:.2f})".format(**found["ratio"])
            table.add_row(f"{world}, {model}", *speeds, between, TARGET, f"{found['forced']:.0%}")
    console.print(table)
    write_line(figures, output)


if __name__ == "__main__":
    main()
