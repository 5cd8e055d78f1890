"""Masked actions: processor seconds of a rollout under the mask and without it, at equal tokens.

    python -m benchmarks.masking                    # all worlds; --worlds alfworld for one, --output FILE

ALFWorld's embedded games and a made-up WebShop are played by the tiny policy and by one of 64M parameters with a
vocabulary of 32,768, both of random weights in float32, on the threads that torch takes.

Both sides write the same actions: those of the environment's expert, three in ten of them replaced by other admissible
ones. Each id is sampled as ever, and then replaced by the one of the demonstration. So both have the same prompts,
tokens and turns. A play has a new agent, which has seen no state before: the prefix trees are made within it.

Seconds are those of the process, environments, prompts and parsing included, so that others on the machine do not
count. The sides take turns; a ratio is that of neighbours, told as the median and the range. An id that the mask leaves
no choice of takes no step of the model: `forced` is their share.
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

BAR = "≤ 1.15×"
NOISE = 0.3  # share of the expert's actions that are replaced
MODELS = {"tiny": TinyPolicy(128, 4, 4, 2048, None), "64M": TinyPolicy(640, 12, 10, 2048, None)}
LARGE_VOCABULARY = 2**15  # of all models but the tiny one
WORLDS: dict[str, Callable[[int], TaskSet]] = {
    "alfworld": lambda episodes: ALFWorldTasks("embedded", embedded_train=max(episodes, 50)),
    "webshop": lambda _: WebShopTasks("embedded"),
}


class LedPolicy(LocalPolicy):
    """Samples as any `LocalPolicy`, and then writes the completions `led` of a session in place of what it sampled."""

    def __init__(self, model: Any, tokenizer: Any, led: Sequence[Sequence[list[int]]]) -> None:
        super().__init__(model, tokenizer)
        self.led = led  # of each session, in the order of its turns
        self.begin()

    def begin(self) -> None:
        """All sessions begin again; `written` counts ids from now on."""
        self.written = 0
        self._left = [iter(completions) for completions in self.led]

    def _write(self, rows: Any, sessions: list[int], sampling: Sampling, generator: torch.Generator) -> None:
        self._ids = {id(row): next(self._left[session]) for row, session in zip(rows, sessions, strict=True)}
        super()._write(rows, sessions, sampling, generator)
        self.written += sum(len(row.ids) for row in rows)

    def _take(self, row: Any, token: int, logprob: float, sampling: Sampling) -> None:
        del token
        super()._take(row, self._ids[id(row)][len(row.ids)], logprob, sampling)


@dataclass(frozen=True)
class Obedient:
    """The teacher; where what it would do is not admissible, the first action that is."""

    teacher: Agent

    def act(self, views: Sequence[View]) -> list[Decision]:
        return [
            wanted if fits(wanted.action, view.info["admissible"]) else Decision(view.info["admissible"][0])
            for view, wanted in zip(views, self.teacher.act(views), strict=True)
        ]

    def finish(self, key: int) -> None:
        self.teacher.finish(key)


class _Quiet:
    def phase(self, name: str, total: int | None = None) -> None: ...

    def advance(self, status: str = "") -> None: ...


@dataclass(frozen=True)
class Play:
    """What both sides do: the same jobs, with the same ids written by the same policy."""

    tasks: TaskSet
    jobs: list[Job]
    policy: LedPolicy
    turns: int

    def once(self, masked: bool) -> tuple[float, int, float]:
        """Processor seconds of a rollout, the ids that were written in it, and the share of them that was forced."""
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
    """A model, and what it is to write: demonstrations of as many tasks, played side by side."""
    manifest: Manifest = tasks.manifest("train")
    prompter = Transcript()
    with EnvPool(tasks.make, episodes) as pool:
        policy, _ = tiny_policy(model, tasks, manifest, prompter, pool, 0, _Quiet(), {}, masked=True)
        chosen = [tasks.task("train", i) for i in manifest.ids[:: max(1, len(manifest.ids) // episodes)][:episodes]]
        jobs = [Job(task, group, task.seed) for group, task in enumerate(chosen)]
        demonstrator = Demonstrator(Obedient(teacher_of(tasks)), prompter, policy.tokenizer, NOISE, 0, masked=True)
        shown = rollout(demonstrator, pool, jobs, max_turns=turns)
    if large:
        policy.model.resize_token_embeddings(LARGE_VOCABULARY, mean_resizing=False)
    led = [[turn.completion_ids for turn in episode.turns] for episode in shown]
    return Play(tasks, jobs, LedPolicy(policy.model, policy.tokenizer, led), turns)


def measure(play: Play, repeats: int) -> dict[str, Any]:
    """Microseconds of each id on both sides, and their ratio. Raises `RuntimeError` where they write other ids."""
    per_token: dict[bool, list[float]] = {False: [], True: []}
    told: dict[bool, tuple[int, float]] = {}
    for repeat in range(-1, repeats):  # the first does not count
        for masked, found in per_token.items():
            seconds, *told[masked] = play.once(masked)
            if repeat >= 0:
                found.append(seconds / told[masked][0])
    if told[False][0] != told[True][0]:
        raise RuntimeError(f"the sides wrote {told[False][0]} and {told[True][0]} ids: they are to be the same")
    return {
        "tokens": told[True][0],
        "forced": round(told[True][1], 4),
        "us_per_token": {
            name: spread([1e6 * s for s in per_token[masked]]) for name, masked in (("free", False), ("masked", True))
        },
        "ratio": ratio(per_token[True], per_token[False]),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and tell. Ends with one line of JSON."""
    parser = argparse.ArgumentParser(prog="benchmarks.masking", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--worlds", default=",".join(WORLDS), help="some of them, with commas between")
    parser.add_argument("--models", default=",".join(MODELS), help="some of them, with commas between")
    parser.add_argument("--episodes", type=int, default=16, help="at a time, each of another task")
    parser.add_argument("--turns", type=int, default=15, help="of an episode at most")
    parser.add_argument("--repeats", type=int, default=5, help="of every comparison")
    parser.add_argument("--output", type=Path, help="file for the line of JSON")
    options = vars(parser.parse_args(argv))
    worlds, models, output = options.pop("worlds").split(","), options.pop("models").split(","), options.pop("output")
    for kind, asked, known in (("world", worlds, WORLDS), ("model", models, MODELS)):
        if unknown := set(asked) - set(known):
            raise UnknownNameError(kind, sorted(unknown)[0], known)
    if min(options.values()) < 1:
        parser.error(f"sizes have to be at least 1, got {options}")

    disable_progress_bar()
    console = Console()
    figures: dict[str, Any] = {"machine": machine(), "size": options, "masking": {}}
    table = Table("", "free", "masked", "ratio", "is to be", "forced", title="Masked actions")
    for column in table.columns[1:]:
        column.justify = "right"
    for world in worlds:
        tasks = WORLDS[world](options["episodes"])
        for model in models:
            play = prepare(tasks, MODELS[model], model != "tiny", options["episodes"], options["turns"])
            found = figures["masking"].setdefault(world, {})[model] = measure(play, options["repeats"])
            told = [f"{found['us_per_token'][side]['median']:,.0f} µs/token" for side in ("free", "masked")]
            between = "{median:.2f} ({low:.2f}–{high:.2f})".format(**found["ratio"])
            table.add_row(f"{world}, {model}", *told, between, BAR, f"{found['forced']:.0%}")
    console.print(table)
    write_line(figures, output)


if __name__ == "__main__":
    main()
