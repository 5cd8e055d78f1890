"""Evaluate an agent: `python -m scripts.evaluate env=alfworld agent=expert split=valid_seen seeds=[0,1,2]`.

Every task of the split is played exactly once for each seed. The run folder gets run.json (the configuration, the hash
of the manifest, the versions), episodes.jsonl and usage.jsonl (written during the run), and at the end evaluation.json,
.md and .png.
`resume=RUN_DIR` plays the missing episodes, and those that ended because a file or a package was missing or a service
did not answer. Seeds can be added; other settings of the episodes must not change.
`model=FOLDER` evaluates a model or a training run; the default agent is `agent=masked`.
"""

from __future__ import annotations

import io
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.console import Console
from rich.markdown import Markdown
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from agents.episode import Episode, read_episodes, write_episodes
from agents.evaluation import Evaluation, describe_limit, episode_key, evaluate, outcomes_by_task, plan
from agents.policies.base import Usage
from agents.rollout import Job, check_environment, lacks_data
from agents.source import agents_hash
from envs.core import StopReason, TaskSet, at_a_time, counted, evaluation_splits
from envs.facts import Facts, differences, environment_facts, in_words, without
from envs.files import naming, write_whole
from envs.pool import EnvPool
from envs.pool_env import error_line
from scripts.agents import Model, check_agent, check_tasks, make_agent, model_of, needs_of_agent
from scripts.common import Terminal, command, compare_machines, machine, make_task_set, plain, printable, versions
from scripts.run_folder import Command, in_shell, locked, resume_command


@command("evaluate")
def main(cfg: DictConfig) -> None:
    """Evaluate in the run folder, which is locked for this process."""
    run = Path(HydraConfig.get().runtime.output_dir)
    with locked(run):
        evaluate_in(cfg, run)


def evaluate_in(cfg: DictConfig, run: Path) -> int:
    """Play the missing episodes of the evaluation in the folder `run`, and write its results.

    Returns how many episodes lacked a file, a package or a service: the next start plays them again.
    """
    check_agent(cfg)
    this_command = Command.of_this_process("evaluate")
    console = Terminal(soft_wrap=True)
    task_set = make_task_set(cfg)
    console.print(task_set.describe())
    cfg.split = cfg.split or evaluation_splits(task_set)[0]
    manifest = task_set.manifest(cfg.split)
    console.print(manifest.describe())
    jobs = plan(task_set, cfg.split, cfg.seeds, cfg.limit)
    if cfg.limit is not None:
        console.print(f"limit={cfg.limit}: {describe_limit(cfg.limit, len(manifest.ids))}")
    check_tasks(needs_of_agent(cfg.agent), cfg, task_set, manifest)  # before torch reads which checkpoint is the best
    model = model_of(cfg)
    facts = facts_of(cfg, HydraConfig.get().runtime.choices["agent"], task_set, model)
    before = _read_facts(run / "run.json", facts)
    facts["machine"] = machine() if model else {}  # without a model, nothing is rounded differently
    if before is None:
        write_whole(run / "run.json", json.dumps(facts, indent=2) + "\n")
    else:
        compare_machines(before, facts, console)
    this_command.save(run, cfg)  # seeds may have been added
    file = run / "episodes.jsonl"
    wanted = {(job.task.id, job.seed) for job in jobs}
    played = [episode for episode in _drop_unplayable(file, console) if episode_key(episode) in wanted]
    if played:
        console.print(f"{len(played)} of {len(jobs)} episodes were played before")
    agent = make_agent(cfg.agent, task_set, model, _policy_seed(jobs, played) if model else cfg.seeds[0])
    spent = UsageLog(run / "usage.jsonl", getattr(agent, "usage", None))
    ended = list(played)
    with (
        EnvPool(
            task_set.make, at_a_time(task_set, min(cfg.pool.size, len(jobs))), cfg.pool.workers, cfg.pool.step_timeout
        ) as pool,
        _progress(console, len(jobs), played, run) as advance,
    ):

        def keep(episode: Episode) -> None:
            slim = replace(episode, turns=[replace(turn, prompt_ids=[]) for turn in episode.turns])
            with naming(file):
                write_episodes(file, [slim], append=True)
            spent.add(episode)
            ended.append(slim)
            advance(episode)

        try:
            evaluation = evaluate(
                agent, task_set, cfg.split, pool,
                seeds=cfg.seeds, limit=cfg.limit, max_turns=cfg.max_turns, played=played, on_episode=keep,
            )  # fmt: skip
        finally:
            if (usage := getattr(agent, "usage", None)) is not None:
                console.print(usage.describe())
    if errors := [episode.error for episode in ended if episode.error]:
        console.print(
            f"errors ended {counted(len(errors), 'episode')}; the first was: {printable(error_line(errors[0]))}"
        )
    lacking = sum(map(lacks_data, ended))
    results = {
        "run": facts,
        "environment": task_set.describe(),
        "evaluation": evaluation.to_json(),
        "seeds": list(cfg.seeds),
        "tasks": outcomes_by_task(ended),
        "lacking": lacking,
        "sampled_tokens": sum(len(turn.completion_ids) for episode in ended for turn in episode.turns),
        "usage": spent.total(),
    }
    _write(run, results, evaluation, console)
    check_environment(ended)
    if evaluation.stops.get(StopReason.REFUSED, 0) == evaluation.success.n:
        raise ValueError(f"the endpoint refused all {counted(evaluation.success.n, 'episode')}, so there is no result")
    return lacking


# -- the facts of an evaluation ---------------------------------------------------------------------------------------
LEFT_OUT = (  # settings that may change when an evaluation is resumed
    "seeds", "limit",  # the number of episodes
    "resume", "pool",
    "env.data", "model",  # the contents of their files are compared instead
    *(f"agent.{key}" for key in ("concurrency", "timeout", "max_retries", "prices")),
    *(f"rollout.{key}" for key in ("concurrency", "timeout", "max_retries")),
)  # fmt: skip


def facts_of(cfg: DictConfig, agent: str, task_set: TaskSet, model: Model | None) -> Facts:
    """A description of the evaluation that holds for all its episodes; it does not contain the machine.

    `agent` is the option chosen from the group `agent`. The configuration must have a split.
    """
    manifest = task_set.manifest(cfg.split)
    configured = without(plain(cfg), LEFT_OUT)
    return {
        "env": manifest.env,
        "split": manifest.split,
        "tasks": len(manifest.ids),
        "official_tasks": manifest.official_count,
        "manifest_sha256": manifest.content_hash,
        "agent": agent,
        "environment": environment_facts(task_set, configured.pop("env")),
        "config": configured,
        "model": model.facts() if model else None,
        "agents_code": agents_hash(),
        "max_turns": cfg.max_turns or task_set.max_turns,
        "versions": versions(),
    }


def _read_facts(file: Path, facts: Facts) -> Facts | None:
    """The facts of the episodes so far; None if there are none. Raises `ValueError` if they differ from `facts`."""
    if not file.exists():
        return None
    before: Facts = json.loads(file.read_text(encoding="utf-8"))
    if changed := differences(without(before, ["machine"]), facts):
        changes = in_words([f"{name} {change}" for name, change in changed.items()])
        raise ValueError(f"{file.parent} was evaluated with other settings, so start a new run: {changes}")
    return before


def _read_whole_lines(file: Path) -> list[Episode]:
    """The episodes of an earlier start. An incomplete last line is removed from the file."""
    if not file.exists():
        return []
    content = file.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        write_whole(file, whole)
    return list(read_episodes(file))


def _drop_unplayable(file: Path, console: Console) -> list[Episode]:
    """The episodes of an earlier start. Those that lacked a file, a package or a service are removed from the file."""
    episodes = _read_whole_lines(file)
    kept = [episode for episode in episodes if not lacks_data(episode)]
    if len(kept) < len(episodes):
        console.print(
            f"playing {counted(len(episodes) - len(kept), 'episode')} again that ended because a file or a "
            "package was missing or a service did not answer"
        )
        lines = zip(file.read_bytes().splitlines(keepends=True), episodes, strict=True)
        write_whole(file, b"".join(line for line, episode in lines if not lacks_data(episode)))
    return kept


def _policy_seed(jobs: Sequence[Job], played: Sequence[Episode]) -> int:
    """The seed of a policy's generator, which differs for each start of an evaluation.

    With the numbers of the first start, a seed that was added later would repeat the attempts of the first seed.
    """
    known = {episode_key(episode) for episode in played}
    first = next((job.seed for job in jobs if (job.task.id, job.seed) not in known), jobs[0].seed)
    return int(np.random.SeedSequence([first, len(played)]).generate_state(1)[0]) if played else first


# -- time, tokens and cost --------------------------------------------------------------------------------------------
class UsageLog:
    """Seconds, tokens and cost of an evaluation, over all its starts.

    The file has a line for each episode with the sums of its start so far, so little is lost if the process is killed.
    """

    def __init__(self, file: Path, of_endpoint: Usage | None) -> None:
        """`of_endpoint` has the counts of an endpoint; None: count the tokens of the turns."""
        self.file, self.counted = file, of_endpoint or Usage()
        self._counts_turns = of_endpoint is None
        self._start = 1 + max((line["start"] for line in self._lines()), default=0)
        self._begun = time.monotonic()

    def add(self, episode: Episode) -> None:
        """Count an episode. Its turns must still contain their prompts."""
        if self._counts_turns:
            for turn in episode.turns:
                if turn.completion_ids:
                    self.counted.add(len(turn.prompt_ids), len(turn.completion_ids))
        seconds = round(time.monotonic() - self._begun, 3)
        row = {"start": self._start, "seconds": seconds, **asdict(self.counted)}
        with naming(self.file), self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def total(self) -> dict[str, Any]:
        """The sums over all starts; the cost is None if no start had prices."""
        last = {line["start"]: line for line in self._lines()}.values()
        costs = [line["cost"] for line in last if line["cost"] is not None]
        names = ("seconds", "requests", "prompt_tokens", "completion_tokens", "uncounted")
        sums = {name: round(sum(line[name] for line in last), 3) for name in names}
        return {"starts": len(last), **sums, "cost": math.fsum(costs) if costs else None}

    def _lines(self) -> list[dict[str, Any]]:
        """The complete lines. An incomplete last line, left by a kill, is removed from the file."""
        if not self.file.exists():
            return []
        content = self.file.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            write_whole(self.file, whole)
        return [json.loads(line) for line in whole.splitlines()]


def describe_usage(usage: Mapping[str, Any]) -> str:
    """Time, tokens and cost in one line."""
    starts = f" in {usage['starts']} starts" if usage["starts"] > 1 else ""
    prompt, sampled = f"{usage['prompt_tokens']:,} prompt tokens", f"{usage['completion_tokens']:,} sampled tokens"
    tokens = f", {usage['requests']:,} requests, {prompt}, {sampled}" if usage["requests"] else ""
    cost = "" if usage["cost"] is None else f", cost {usage['cost']:.4g}"
    uncounted = f" (without {usage['uncounted']:,} requests that were not counted)" if usage["uncounted"] else ""
    return f"Used: {usage['seconds']:.1f} s{starts}{tokens}{cost}{uncounted}."


# -- output -----------------------------------------------------------------------------------------------------------
@contextmanager
def _progress(
    console: Console, total: int, played: Sequence[Episode], run: Path
) -> Iterator[Callable[[Episode], None]]:
    """A progress bar with the success rate so far; without a terminal, a line for every tenth of the episodes.

    If the evaluation ends early, the command that resumes it is printed.
    """
    done, solved = len(played), sum(episode.success for episode in played)
    bar = Progress(
        BarColumn(), MofNCompleteColumn(), TextColumn("success {task.fields[success]}"), TimeRemainingColumn(),
        console=console, disable=not console.is_terminal, auto_refresh=False,
    )  # fmt: skip
    shown = bar.add_task("", total=total, completed=done, success=f"{solved / max(done, 1):.1%}")

    def advance(episode: Episode) -> None:
        nonlocal done, solved
        done, solved = done + 1, solved + episode.success
        bar.update(shown, completed=done, success=f"{solved / done:.1%}", refresh=True)
        if not console.is_terminal and (done == total or done * 10 // total > (done - 1) * 10 // total):
            console.print(f"{done}/{total} episodes, success {solved / done:.1%}")

    try:
        with bar:
            yield advance
    finally:
        if done < total and (file := run / "episodes.jsonl").exists():
            again = resume_command("evaluate", run)
            console.print(f"kept {counted(len(_read_whole_lines(file)), 'episode')}; resume with: {again}")


def _write(run: Path, results: dict[str, Any], evaluation: Evaluation, console: Console) -> None:
    """Write the results as JSON, Markdown and a picture, and print them."""
    facts, environment = results["run"], results["environment"]
    tasks = describe_limit(evaluation.tasks, facts["tasks"])
    official = facts["official_tasks"]
    missing = f" (the official split has {official})" if official not in (None, facts["tasks"]) else ""
    title = f"{facts['agent']} on {evaluation.env} {evaluation.split}"
    seeds = ("seed " if len(evaluation.by_seed) == 1 else "seeds ") + ", ".join(map(str, evaluation.by_seed))
    limit = (
        f", at most {counted(facts['max_turns'], 'turn')}" if facts["config"]["max_turns"] else ""
    )  # beside the environment's
    played = f"{tasks}{missing}{limit}, {seeds}, manifest {facts['manifest_sha256'][:12]}"
    used = describe_usage(results["usage"])
    markdown = f"# {title}\n\n{played}\n\n{environment}\n\n{evaluation.to_markdown()}\n{used}\n"
    files = {
        "evaluation.png": chart(evaluation, f"{title}\n{played}"),
        "evaluation.md": markdown.encode(),
        "evaluation.json": (json.dumps(results, indent=2) + "\n").encode(),
    }
    changed = [name for name in files if not (run / name).is_file() or (run / name).read_bytes() != files[name]]
    for name in changed:
        write_whole(run / name, files[name])
    if not changed:
        console.print("the evaluation was complete already; nothing was changed")
    console.print(Markdown(markdown) if console.is_terminal else markdown)
    console.print(
        f"in {in_shell(run)}: evaluation.json, .md, .png; see episodes with: python -m scripts.view {in_shell(run)}"
    )


def chart(evaluation: Evaluation, title: str) -> bytes:
    """A chart of the success rates by task type, with 95 % intervals, as a PNG."""
    from matplotlib.figure import Figure  # takes a second to import, and mistakes are reported before that

    rates = {"all": evaluation.success, **evaluation.by_type}
    figure = Figure(figsize=(8, 1.4 + 0.45 * len(rates)), layout="constrained")
    axes = figure.subplots()
    places = range(len(rates), 0, -1)
    values = [rate.rate for rate in rates.values()]
    errors = [[r.rate - r.low for r in rates.values()], [r.high - r.rate for r in rates.values()]]
    axes.barh(places, values, xerr=errors, color=["#1b4f72", *["#5499c7"] * (len(rates) - 1)], capsize=3, height=0.7)
    axes.set_yticks(places, rates)
    for place, rate in zip(places, rates.values(), strict=True):
        axes.text(1.02, place, f"{rate.rate:.1%}  ({rate.successes} / {rate.n})", va="center", fontsize=9)
    axes.set(xlim=(0, 1), title=title, xlabel="success, with 95 % intervals")
    axes.title.set_fontsize(10)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=150)
    return image.getvalue()


if __name__ == "__main__":
    main()
