"""What a notebook needs: tasks, agents, evaluations, training, and the files of a run."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

import conf
from agents.agent import Agent
from agents.episode import Episode
from agents.evaluation import Evaluation
from agents.evaluation import evaluate as play_and_summarise
from agents.record import SUFFIX, Record, read_record
from algorithms.checkpoint import checkpoints
from envs.core import TaskSet, UnknownNameError, at_a_time
from envs.files import read_json_lines
from envs.pool import EnvPool
from scripts import train as training
from scripts.agents import check_agent, model_of
from scripts.agents import make_agent as make_configured
from scripts.common import explain, prepare
from scripts.run_folder import COMMAND


def make_tasks(env: str, **settings: Any) -> TaskSet:
    """The tasks of `env=NAME`, with settings of conf/env/NAME.yaml: `make_tasks("alfworld", games="embedded")`.

    `tasks.splits` names the splits, `tasks.manifest(split).ids` the tasks, and `tasks.make()` is an environment that
    plays `env.reset(options={"task": tasks.task(split, id)})`. Raises `UnknownNameError` and `ValueError`.
    """
    with _explained("evaluate"):
        tasks: TaskSet = instantiate(_composed([f"env={env}"], {"env": settings}).env)
    return tasks


def make_agent(agent: str, tasks: TaskSet, *, model: str | Path | None = None, seed: int = 0, **settings: Any) -> Agent:
    """The agent `agent=NAME`: "expert", "random", or, with a `model`, "masked", "chat" and others of conf/agent.

    `model` is the folder of a training run or of a Hugging Face model, or a name of the hub. `settings` are those of
    conf/agent/NAME.yaml, nested ones as dicts: `sampling={"temperature": 0}`. Raises `UnknownNameError`, `ValueError`.
    """
    with _explained("evaluate"):
        config = _composed([f"env={_name_of(tasks)}", f"agent={agent}"], {"agent": settings})
        config.model = None if model is None else str(model)
        check_agent(config)
        return make_configured(config.agent, tasks, model_of(config), seed)


def evaluate(
    agent: Agent,
    tasks: TaskSet,
    split: str,
    *,
    seeds: Sequence[int] = (0,),
    limit: int | None = None,
    max_turns: int | None = None,
    environments: int = 32,
    on_episode: Callable[[Episode], None] | None = None,
) -> Evaluation:
    """Play every task of a split once for each seed, with that many `environments` at a time.

    `on_episode` is called with every episode that ends. See `agents.evaluation.evaluate`.
    """
    with EnvPool(tasks.make, at_a_time(tasks, environments)) as pool:
        return play_and_summarise(
            agent, tasks, split, pool, seeds=seeds, limit=limit, max_turns=max_turns, on_episode=on_episode
        )


def train(folder: str | Path, *settings: str) -> Run:
    """Train in `folder` with settings as on the command line, `"env=key_corridor", "algo=gigpo"`, and return the run.

    If the folder has a run already, it is resumed: settings then change its configuration. Ctrl-C stops it after the
    current update. Raises the errors that the command prints.
    """
    folder = Path(folder)
    begun = (folder / COMMAND).is_file()
    place = [f"resume={folder}"] if begun else [f"hydra.run.dir={folder}"]
    arguments, sys.argv = sys.argv, ["train", *settings, *place]
    try:
        with _explained("config"):
            training.main()
    finally:
        sys.argv = arguments
    return load_run(folder)


@dataclass(frozen=True)
class Run:
    """The files of a training run."""

    folder: Path

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, see docs/metrics.md."""
        return read_json_lines(self.folder / "metrics.jsonl")

    @property
    def evaluation(self) -> dict[str, Any]:
        """The report of a complete run, evaluation.json. Raises `FileNotFoundError` before the run has ended."""
        report: dict[str, Any] = json.loads((self.folder / "evaluation.json").read_bytes())
        return report

    def records(self) -> Iterator[Record]:
        """The recorded batches and evaluations, see docs/viewing.md."""
        for folder in ("episodes", "evaluations"):
            yield from map(read_record, sorted((self.folder / folder).glob(f"*{SUFFIX}")))

    def turns(self) -> list[dict[str, Any]]:
        """A row for every recorded turn, for a data frame: `pandas.DataFrame(run.turns())`."""
        return [
            {
                "update": record.update, "split": record.split, "kind": record.kind, "episode": number,
                "task": episode.task.id, "group": episode.group, "success": episode.success, "turn": t,
                "observation": turn.observation, "action": turn.action, "reward": turn.reward,
                "status": str(turn.status), "tokens": len(turn.completion_ids),
            }
            for record in self.records()
            for number, episode in enumerate(record.episodes)
            for t, turn in enumerate(episode.turns)
        ]  # fmt: skip


def load_run(folder: str | Path) -> Run:
    """The run in a folder. Raises `FileNotFoundError` if there is none."""
    folder = Path(folder)
    if not (folder / "metrics.jsonl").is_file() and not checkpoints(folder):
        raise FileNotFoundError(f"{folder} is no training run: it has neither metrics.jsonl nor checkpoints")
    return Run(folder)


@contextmanager
def _explained(config_name: str) -> Iterator[None]:
    """Errors of Hydra become a `ValueError` with the message of the command; a command's exit becomes its error."""
    try:
        yield
    except (SystemExit, Exception) as raised:
        error: BaseException = raised
        if isinstance(raised, SystemExit):
            if not raised.code:
                return
            error = raised.__cause__ or RuntimeError(f"the command ended with exit code {raised.code}")
        text = explain(error, config_name) if isinstance(error, HydraException | OmegaConfBaseException) else None
        raise (error if text is None else ValueError(text)) from None


def _composed(choices: list[str], settings: dict[str, dict[str, Any]]) -> DictConfig:
    """The configuration of scripts.evaluate with these choices and settings, checked as the command does."""
    with hydra.initialize_config_module("conf", version_base="1.3"):
        config = hydra.compose("evaluate", choices, return_hydra_config=True)
    HydraConfig.instance().set_config(config)  # the checks ask it which options were chosen
    with open_dict(config):
        del config["hydra"]
    for group, values in settings.items():
        for name in values.keys() - config[group].keys():
            raise UnknownNameError(
                f"setting of {choices[-1]}", name, [str(key) for key in config[group] if key != "_target_"]
            )
        config[group] = OmegaConf.merge(config[group], values)
    prepare(config, "evaluate")
    return config


def _name_of(tasks: TaskSet) -> str:
    """The file of conf/env that makes such tasks; gym for tasks of other packages."""
    target = f"{type(tasks).__module__}.{type(tasks).__qualname__}"
    files = sorted((Path(conf.__path__[0]) / "env").glob("*.yaml"))
    return next((file.stem for file in files if f"_target_: {target}\n" in file.read_text(encoding="utf-8")), "gym")
