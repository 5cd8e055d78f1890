"""The cells of a sweep: evaluations of one agent on one split, each in a folder of `scripts.evaluate`.

The name of a cell's folder ends with a hash of the facts that `scripts.evaluate` compares when it resumes (`facts_of`):
agent, model and its files, environment, split, manifest, turn limit, versions. Seeds and the limit are not among them,
so both can be increased later.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import traceback
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path

import hydra
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.types import HydraContext, RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict

from agents.evaluation import Evaluation, spread
from envs.core import TaskSet, UnknownNameError, counted, evaluation_splits
from envs.facts import key_of
from scripts.agents import POLICY, WITHOUT_MODEL, check_agent, model_of
from scripts.common import explain, prepare
from scripts.evaluate import evaluate_in, facts_of
from scripts.run_folder import end_with_parent, locked, quoted, written

CELLS, LOG = "cells", "log.txt"


@dataclass
class Cell:
    """An evaluation of a sweep, and how it ended."""

    name: str  # in messages
    overrides: list[str]  # for scripts.evaluate
    folder: Path = Path()
    tasks: list[str] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    manifest: tuple[str, str, str] = ("", "", "")  # environment, split, hash
    error: str = ""  # one line; empty without an error
    _read: int = 0  # bytes read so far of the file of episodes
    _ended: int = 0

    @property
    def total(self) -> int:
        """The number of episodes."""
        return len(self.tasks) * len(self.seeds)

    def ended(self) -> int:
        """The number of finished episodes. Reads only what was written since the last call."""
        file = self.folder / "episodes.jsonl"
        if file.is_file() and (size := file.stat().st_size) != self._read:
            begin = self._read if size > self._read else 0
            with file.open("rb") as episodes:
                episodes.seek(begin)
                new = episodes.read(size - begin)
            self._ended = (self._ended if begin else 0) + new.count(b"\n")
            self._read = size
        return min(self._ended, self.total)

    def is_complete(self) -> bool:
        """Whether the evaluation of these tasks and seeds was written, and is a measure of the agent.

        It is not if episodes lacked a file, a package or a service: they are played again.
        """
        try:
            record = json.loads((self.folder / "evaluation.json").read_bytes())
            evaluation = Evaluation.from_json(record["evaluation"])
            same = sorted(record["tasks"]) == sorted(self.tasks) and sorted(record["seeds"]) == sorted(self.seeds)
            lacking = record["lacking"]
        except (OSError, ValueError, KeyError, TypeError):  # missing or damaged
            return False
        return same and not lacking and not evaluation.is_broken


# -- which cells ------------------------------------------------------------------------------------------------------
def plan_cells(cfg: DictConfig, folder: Path) -> list[Cell]:
    """The cells of a sweep: agents × environments × splits × models.

    Raises for a wrong configuration. If an environment cannot be created, its cells get the error.
    """
    cells: list[Cell] = []
    known: set[str] = set()
    for env in cfg.envs:
        made: dict[str, TaskSet | str] = {}  # by the settings of the environment; a text is an error
        for agent in cfg.agents:
            more = _entry("agent", agent)[1:]
            for overrides, one, name in _composed(cfg, [*_entry("env", env), *_entry("agent", agent)]):
                settings = OmegaConf.to_yaml(one.env)
                task_set = made.setdefault(settings, made.get(settings) or _task_set_of(one))
                title = f"{_entry('env', env)[0].removeprefix('env=')} {name}"
                if isinstance(task_set, str):
                    cells.append(Cell(title, overrides, error=task_set))
                    continue
                known |= {*task_set.splits}
                cells += [
                    _cell(folder, overrides, one.copy(), name, more, task_set, s) for s in _splits(one, cfg, task_set)
                ]
    if known and (missing := [split for split in cfg.splits or [] if split not in known]):
        raise UnknownNameError("split of these environments", missing[0], sorted(known))
    for number, cell in enumerate(cells):
        if cell.folder in {other.folder for other in cells[:number]} - {Path()}:
            raise ValueError(f"{cell.name} is in this sweep twice, with the same settings")
    return cells


def _entry(group: str, entry: str | ListConfig) -> list[str]:
    """The overrides of an entry of `agents` or `envs`: a name, or a list of a name and overrides."""
    name, *more = [entry] if isinstance(entry, str) else [*entry]
    if wrong := [override for override in more if "=" not in override]:
        raise ValueError(
            f"{group}s has {[name, *more]}: {wrong[0]!r} is not an override; expected a name, or a list of one name "
            f"and overrides, as in '{group}s=[[{name},\"seed=1\"]]'"
        )
    return [f"{group}={name}", *more]


def _composed(cfg: DictConfig, overrides: list[str]) -> Iterator[tuple[list[str], DictConfig, str]]:
    """The overrides, configuration and agent of an evaluation, with each of the sweep's models if it needs one."""
    shared = [f"pool.{key}={value}" for key, value in cfg.pool.items()]
    shared += [f"{key}={cfg[key]}" for key in ("limit", "max_turns") if cfg[key] is not None]
    seeds = f"seeds=[{','.join(map(str, cfg.seeds))}]"
    overrides = [*shared, seeds, *overrides]
    try:
        one = hydra.compose("evaluate", overrides, return_hydra_config=True)
    except HydraException as error:
        raise ValueError(explain(error, "evaluate", overrides)) from error
    agent = one.hydra.runtime.choices.agent
    with open_dict(one):
        del one.hydra
    takes_model = one.agent.get("_target_") not in WITHOUT_MODEL and one.model is None
    if one.agent.get("_target_") == POLICY and takes_model and not cfg.models:
        raise ValueError(f"agent={agent} needs a model: models=[FOLDER,…], folders of models or of training runs")
    for model in cfg.models if cfg.models and takes_model else [None]:
        with_model = one.copy()
        if model is not None:
            with_model.model = model
        prepare(with_model, "evaluate")
        check_agent(with_model)
        yield [*overrides, *([] if model is None else [f"model={quoted(model)}"])], with_model, agent


def _task_set_of(one: DictConfig) -> TaskSet | str:
    """The task set of an evaluation; if it cannot be created, the error as a text."""
    try:
        made: TaskSet = instantiate(one.env)
    except Exception as error:
        if (message := explain(error, "evaluate")) is None:
            raise
        return message
    return made


def _splits(one: DictConfig, cfg: DictConfig, task_set: TaskSet) -> list[str]:
    """The splits to play: that of the entry, those of the sweep that the environment has, or its default."""
    if one.split is not None:
        return [one.split]
    if not cfg.splits:
        return evaluation_splits(task_set)[:1]
    if not (there := [split for split in cfg.splits if split in task_set.splits]):
        raise UnknownNameError(f"split of {task_set.env_id}", cfg.splits[0], task_set.splits)
    return there


def _cell(
    folder: Path,
    overrides: list[str],
    one: DictConfig,
    agent: str,
    more: list[str],
    task_set: TaskSet,
    split: str,
) -> Cell:
    one.split = split
    manifest = task_set.manifest(split)
    model = model_of(one)
    facts = facts_of(one, agent, task_set, model)
    words = [task_set.env_id.rpartition("/")[2], split, agent, *([Path(model.name).name] if model else [])]
    name = re.sub(r"[^\w.-]+", "_", "-".join(words))[:100]
    return Cell(
        name=" ".join([*words, *more]),
        overrides=[*overrides, f"split={quoted(split)}"],
        folder=folder / CELLS / f"{name}-{key_of(facts)}",
        tasks=spread(manifest.ids, one.limit),
        seeds=[*one.seeds],
        manifest=(manifest.env, split, manifest.content_hash),
    )


# -- playing them -----------------------------------------------------------------------------------------------------
def launch(cells: Sequence[Cell], folder: Path) -> None:
    """Play the cells with Hydra's launcher, and set `error` of those that failed."""
    asked = written(HydraConfig.get().overrides.hydra)
    chosen = [o for o in asked if o.startswith(("hydra/launcher=", "hydra.launcher.", "hydra.searchpath="))]
    with_dir = [*chosen, "hydra/hydra_logging=quiet", f"hydra.sweep.dir={quoted(folder)}"]
    running = GlobalHydra.instance().hydra
    assert running is not None
    config = running.compose_config("evaluate", with_dir, RunMode.MULTIRUN, from_shell=False)
    context = HydraContext(config_loader=running.config_loader, callbacks=Callbacks(config))
    launcher = Plugins.instance().instantiate_launcher(hydra_context=context, task_function=play, config=config)
    jobs = [[*cell.overrides, f"hydra.sweep.subdir={quoted(cell.folder.relative_to(folder))}"] for cell in cells]
    for cell, done in zip(cells, launcher.launch(jobs, initial_job_idx=0), strict=True):
        cell.error = done.return_value


def play(cfg: DictConfig) -> str:
    """Play the missing episodes of a cell in the folder of the job. Returns the error in one line, or an empty text.

    Its output goes to log.txt in the folder.
    """
    run = Path(HydraConfig.get().runtime.output_dir)
    if multiprocessing.parent_process() is not None:
        end_with_parent(os.getppid())
    with (run / LOG).open("a", encoding="utf-8") as log, redirect_stdout(log), redirect_stderr(log):
        try:
            prepare(cfg, "evaluate")
            with locked(run):
                lacking = evaluate_in(cfg, run)
        except Exception as error:
            message = explain(error, "evaluate")
            if message is None:
                traceback.print_exc()
                first, _, _ = str(error).partition("\n")
                return f"{type(error).__name__}: {first}; see {run / LOG}"
            print(f"error: {message}")
            return message
    return f"{counted(lacking, 'episode')} lacked a file, a package or a service" if lacking else ""
