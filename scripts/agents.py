"""The agents of the configuration group `agent`.

Each file `conf/agent/<name>.yaml` names one of these functions, or anyone's, in `_target_`. Beside the other keys of
the file it gets the task set to play, the `model` that the command was given, and a seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from agents.agent import Agent, PolicyAgent
from agents.scripted import ExpertAgent, RandomAgent
from envs.core import Expert, TaskSet

if TYPE_CHECKING:  # torch takes seconds to import, and only policies need it
    from agents.chat import Chat
    from agents.endpoint import EndpointAgent
    from agents.policies.base import Sampling
    from agents.prompts import Prompter


def make_agent(config: DictConfig, task_set: TaskSet, model: str | None, seed: int) -> Agent:
    """The agent of a configuration. Raises `ValueError` for a model that is missing, or that does not belong to it."""
    missing = OmegaConf.missing_keys(config)
    if missing:
        name = sorted(missing)[0].removeprefix("agent.")
        raise ValueError(f"agent.{name} has no value; give it one: agent.{name}=…")
    if model and "prompter" in config:
        _check_prompter(config, Path(model).expanduser())
    agent: Agent = instantiate(config, _partial_=True)(task_set=task_set, model=model, seed=seed)
    return agent


def expert(task_set: TaskSet, model: str | None, seed: int) -> ExpertAgent:  # noqa: ARG001
    """The scripted expert of the environment, which draws nothing. Raises `ValueError` where there is none."""
    _refuse("agent=expert", model)

    def make() -> Expert:
        made = task_set.expert()
        if made is None:
            raise ValueError(f"{task_set.env_id} has no scripted expert; choose another agent, agent=random for one")
        return made

    make()
    return ExpertAgent(make)


def random(task_set: TaskSet, model: str | None, seed: int) -> RandomAgent:  # noqa: ARG001
    """Random admissible actions."""
    _refuse("agent=random", model)
    return RandomAgent(seed)


def policy(
    task_set: TaskSet,  # noqa: ARG001
    model: str | None,
    seed: int,
    prompter: Prompter,
    sampling: Sampling,
) -> PolicyAgent:
    """A language model: `model` is its folder, or that of a training run, whose best checkpoint is taken."""
    import torch
    from transformers.utils.logging import disable_progress_bar

    from agents.policies.local import load_policy

    if not model:
        raise ValueError(
            "this agent needs a model: model=FOLDER, of a Hugging Face model or of a training run; "
            "agent=expert and agent=random play without one"
        )
    disable_progress_bar()  # of loading, which takes no time that would need one
    loaded = load_policy(model_folder(Path(model).expanduser()))
    return PolicyAgent(loaded, prompter, sampling, torch.Generator(loaded.device).manual_seed(seed))


def endpoint(
    task_set: TaskSet,  # noqa: ARG001
    model: str | None,
    seed: int,  # noqa: ARG001
    name: str,
    prompter: Chat,
    sampling: Sampling,
    prices: Sequence[float] | None,
    **connection: Any,
) -> EndpointAgent:
    """The model `name` behind an OpenAI-compatible endpoint, which draws by seeds of its own."""
    from agents.endpoint import EndpointAgent

    _refuse("agent=openai", model, "name it by agent.name")
    if prices is not None and len(prices) != 2:
        raise ValueError(f"agent.prices are two, of a million prompt and completion tokens, got {prices}")
    return EndpointAgent(name, prompter, sampling, prices=(prices[0], prices[1]) if prices else None, **connection)


def model_folder(path: Path) -> Path:
    """The folder itself, or in the folder of a training run the checkpoint that its evaluations ranked best."""
    if not (path / "checkpoints").is_dir():
        return path
    from algorithms.checkpoint import checkpoint_folder, checkpoints, load_state

    saved = checkpoints(path)
    if not saved:
        raise FileNotFoundError(f"the run {path} has no checkpoint yet")
    return checkpoint_folder(path, load_state(saved[-1])["best"][1])


def _check_prompter(config: DictConfig, run: Path) -> None:
    """A policy that is prompted otherwise than in its training does badly, and nobody sees why."""
    trained = run / ".hydra" / "config.yaml"
    if not trained.is_file():
        return
    before = OmegaConf.load(trained).agent.prompter
    if before != config.prompter:
        raise ValueError(f"{run} was trained with the prompter {before}, and agent has {config.prompter}; set agent=…")


def _refuse(agent: str, model: str | None, instead: str = "a model is played by agent=transcript") -> None:
    if model:
        raise ValueError(f"{agent} plays without a model folder, got model={model}; {instead}")
