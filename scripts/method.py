"""Report what a method needs and whether an environment has it: `python -m scripts.doctor algo=NAME env=NAME`.

It accepts all settings of `scripts.train`. Each requirement is checked separately, so one report names everything that
is missing. Random play of a few tasks shows two more facts for the choice of a method: whether there are rewards before
the last turn, and whether several attempts reach the same states.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from agents.agent import Agent
from agents.episode import Episode
from agents.evaluation import spread
from agents.rollout import Job, rollout
from agents.scripted import ConstantAgent, RandomAgent
from algorithms.needs import Needs
from envs.core import TURN_KEYS, Info, Manifest, Need, TaskSet, at_a_time, counted
from envs.pool import EnvPool
from envs.pool_env import error_line
from scripts.agents import check_tasks, check_trained_agent
from scripts.common import command, make_task_set
from scripts.doctor import Finding, report
from scripts.run_folder import written
from scripts.train import Method, Parts

TASKS, ATTEMPTS, TURNS = 6, 4, 20  # of random play


@command("doctor")
def main(cfg: DictConfig) -> None:
    """Print what the method needs, and what the environment has. Raises `SystemExit(1)` if something is missing."""
    task_set = make_task_set(cfg)
    manifest = task_set.manifest(cfg.split)
    choices = HydraConfig.get().runtime.choices
    print(task_set.describe())
    bad = report(f"algo={choices['algo']} with agent={choices['agent']}", requirements(cfg, task_set, manifest))
    bad += report("the environment, as random play sees it", task_properties(cfg, task_set, manifest))
    if bad:
        print(f"\n{counted(bad, 'problem')}: the method cannot be trained like this")
        raise SystemExit(1)
    print("\nready: python -m scripts.train " + shlex.join(written(HydraConfig.get().overrides.task)))


def requirements(cfg: DictConfig, task_set: TaskSet, manifest: Manifest) -> Iterator[Finding]:
    """Check the parts of the method, and whether the environment provides what they need."""
    method = Method.of(cfg)
    signals = ", ".join(method.signals) or "none"
    yield Finding("ok", f"signals: {signals}; filters: {', '.join(method.filters) or 'none'}")
    yield from _checked(lambda: check_trained_agent(cfg), "the agent can be trained with this method and policy")
    needs: dict[Need, str] = {}
    yield from _checked(
        lambda: needs.update(method.check(cfg)),
        f"signals, settings and groups of {cfg.trainer.group_size} fit the estimator",
    )
    yield from _checked(
        lambda: needs.update(Parts.of(cfg, method).check(cfg, task_set)),
        "loss and aggregation fit the training sequences of the agent",
    )
    for need, place in needs.items():
        yield from _checked(_of_tasks({need: place}, cfg, task_set, manifest), f"{place} needs {need}: they are there")
    if not needs:
        yield Finding("ok", "the method needs nothing from the environment except its rewards")


def _of_tasks(needs: Needs, cfg: DictConfig, task_set: TaskSet, manifest: Manifest) -> Callable[[], None]:
    return lambda: check_tasks(needs, cfg, task_set, manifest)


def _checked(check: Callable[[], Any], text: str) -> Iterator[Finding]:
    try:
        check()
    except (ValueError, LookupError) as error:
        yield Finding("bad", " ".join(str(error).split()))
    else:
        yield Finding("ok", text)


def task_properties(cfg: DictConfig, task_set: TaskSet, manifest: Manifest) -> Iterator[Finding]:
    """Properties of the tasks that matter for the choice of a method, from a few attempts at a few tasks."""
    tasks = [task_set.task(manifest.split, task) for task in spread(manifest.ids, TASKS)]
    jobs = [Job(task, group, task.seed) for group, task in enumerate(tasks)]
    episodes: list[Episode] = []
    with EnvPool(task_set.make, at_a_time(task_set, len(jobs)), cfg.pool.workers, cfg.pool.step_timeout) as pool:
        first = pool.reset({0: tasks[0]}, {0: tasks[0].seed})[0]
        info: Info = {} if first.error is not None else first.info
        restores = first.error is None and pool.snapshot([0])[0].error is None
        for attempt in range(ATTEMPTS):  # an agent plays the same in every attempt at a task
            agent: Agent = RandomAgent(cfg.seed + attempt) if info.get("admissible") else ConstantAgent("look around")
            episodes += rollout(agent, pool, jobs, max_turns=TURNS)
    played = [episode for episode in episodes if episode.turns and not episode.is_faulty]
    if not played:
        error = next((episode.error for episode in episodes if episode.error), "")
        yield Finding("bad", f"no task could be played: {error_line(error)}")
        return
    how = f"{len(tasks)} × {ATTEMPTS} attempts of at most {TURNS} turns"
    yield Finding("ok", f"success {_share(e.success for e in played)} of random play ({how})")
    rewarded = _share(any(turn.reward for turn in e.turns[:-1]) for e in played)
    yield Finding("ok", f"rewards before the last turn in {rewarded} of the attempts")
    yield Finding("ok", f"several attempts at a task reach {_share(_shared_states(played))} of its states")
    for there, text in (
        (bool(info.get("admissible")), "a list of admissible actions"),
        (restores, "snapshots"),
        (bool(info.get("answers")), "right answers"),
        (any(TURN_KEYS.keys() <= e.final_info.keys() for e in played), "rewards of a rule for every turn"),
    ):
        yield Finding("ok" if there else "note", text if there else f"no {text.removeprefix('a ')}")
    yield Finding("note", "which method fits: docs/algorithms/choosing.md")


def _shared_states(episodes: Sequence[Episode]) -> Iterator[bool]:
    """For each state of each task except the first: whether more than one attempt reached it."""
    for group in {episode.group for episode in episodes}:
        met = Counter(key for e in episodes if e.group == group for key in {turn.state_key for turn in e.turns[1:]})
        yield from (count > 1 for count in met.values())


def _share(values: Iterable[bool]) -> str:
    listed = list(values)
    return f"{sum(listed) / max(len(listed), 1):.0%}"
