"""The agents of the configuration group `agent`.

Each file `conf/agent/<name>.yaml` names one of these functions, or a user's, in `_target_`. Its arguments are the other
keys of the file, the task set, the `Model` of the command (or None) and a seed.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf

from agents.agent import Agent, PolicyAgent
from agents.evaluation import spread
from agents.policies.base import check_vllm, no_truncation
from agents.policies.names import check_chat_template, check_peft, check_quantization, find_parts
from agents.scripted import ConstantAgent, ExpertAgent, RandomAgent
from algorithms.checkpoint import checkpoint_folder, checkpoints, load_state
from algorithms.needs import Needs, check_environment, check_expert
from envs.core import Expert, Manifest, Need, TaskSet, UnknownNameError
from envs.facts import differences
from envs.pool import EnvPool
from scripts.common import is_group_set_by_user
from scripts.run_folder import override_key, written

if TYPE_CHECKING:  # torch takes seconds to import, and only policies need it
    from torch import Generator

    from agents.chat import Chat
    from agents.endpoint import EndpointAgent
    from agents.policies.base import Policy, Sampling
    from agents.prompts import Prompter


POLICY, RANDOM, CHAT = "scripts.agents.policy", "scripts.agents.random", "agents.chat.Chat"
PRETRAINED = "algorithms.initial_policy.PretrainedPolicy"
WITHOUT_MODEL = {  # agents without model=…
    "scripts.agents.expert": "agent=expert takes no model",
    "scripts.agents.random": "agent=random takes no model",
    "scripts.agents.constant": "agent=constant takes no model",
    "scripts.agents.endpoint": "agent=openai has its model in agent.name",
}
PLAYERS = ("candidates", "masked")  # agents with the name of their player
logger = logging.getLogger(__name__)

IN_PLACE = "agents.policies.local.in_place"
VLLM, VLLM_SERVER = "agents.policies.vllm.VllmPolicy", "agents.policies.vllm_server.VllmServerPolicy"
TINY = "algorithms.initial_policy.TinyPolicy"
CHECKED_TASKS = 8  # tasks of which the first turn is played, to find what the environment provides
PASSED_BY_COMMAND = {"task_set", "model", "seed"}  # arguments of an agent that are not settings of its file
NO_MODEL = ("trainer.pt", "run.json", "checksums.json")  # files of a checkpoint that do not belong to its model


@dataclass(frozen=True)
class Model:
    """The model of a command: its name (see `agents.policies.names`), and how it is loaded and sampled."""

    name: str
    policy: DictConfig  # conf/policy: an `agents.policies.pretrained.Pretrained`
    rollout: DictConfig  # conf/rollout

    def load(self) -> Policy:
        """Load the policy. With an engine, the weights stay on the CPU: the engine needs the GPU's memory."""
        import torch
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()  # loading is fast
        engine = instantiate(self.rollout)
        device = None if self.rollout._target_ == IN_PLACE else torch.device("cpu")
        policy: Policy = engine(instantiate(self.policy).load(self.name, device))
        policy.sync()
        return policy

    def facts(self) -> dict[str, Any]:
        """The model's name and the hashes of its files or, for a model of the hub, its revision."""
        found = find_parts(self.name)
        if any(isinstance(part, Path) and part.is_file() for part in found):  # GGUF: compare the unpacked model
            from agents.policies.pretrained import sources

            found = sources(self.name)
        parts = zip(("base", "adapters"), found, strict=False)
        return {"name": self.name, **{part: _content_hashes(source) for part, source in parts}}


def model_of(config: DictConfig) -> Model | None:
    """The model of a command's configuration, or None."""
    if not config.model:
        return None
    return Model(checkpoint_of(config.model), config.policy, config.rollout)


def check_agent(config: DictConfig) -> None:
    """Raise if the agent and the model of a configuration do not fit together, or do not exist."""
    target, model = config.agent.get("_target_"), config.model
    if taken := sorted(PASSED_BY_COMMAND & config.agent.keys()):
        raise UnknownNameError("setting of agent", taken[0], config.agent.keys() - PASSED_BY_COMMAND - {"_target_"})
    if target == POLICY and not model:
        raise ValueError(
            "this agent needs a model: model=FOLDER, the folder of a Hugging Face model or of a training run; "
            "agent=expert and agent=random need no model"
        )
    if target in WITHOUT_MODEL and model:
        raise ValueError(
            f"{WITHOUT_MODEL[target]}, got model={model}; use a model with agent=masked or agent=transcript"
        )
    for group in ("policy", "rollout"):
        if target in WITHOUT_MODEL and is_group_set_by_user(group):
            logger.warning("%s: %s has no effect", WITHOUT_MODEL[target], group)
    if not model:
        return
    check_engine(config)
    if "prompter" in config.agent:
        _compare_with_training(config, Path(model).expanduser())
    check_model(config)


def check_engine(config: DictConfig) -> None:
    """Raise if the engine that samples cannot do what the agent's player needs, or is not installed."""
    engine, player = config.rollout.get("_target_"), OmegaConf.select(config, "agent.player._target_")
    if engine == VLLM_SERVER and player and getattr(get_object(player), "masked", False):
        raise ValueError(
            f"agent.player={player.rpartition('.')[2]} samples under a mask, and rollout=vllm_server cannot; "
            "use rollout=local or rollout=vllm, or agent=transcript"
        )
    sampling = config.agent.get("sampling")
    if engine == VLLM_SERVER and sampling and (settings := instantiate(sampling).truncation):
        raise ValueError(no_truncation(settings))
    if engine == VLLM:
        check_vllm()


def _model_parts(name: str) -> list[Path | str]:
    """The parts of a model; none for a training run. Raises `OSError` or `ValueError` if there is no such model."""
    path = Path(name).expanduser()
    if not (path / "checkpoints").is_dir():
        return find_parts(name)
    if not checkpoints(path):
        raise FileNotFoundError(f"the run {path} has no checkpoint yet")
    return []


def check_model(config: DictConfig) -> None:
    """Raise `OSError` or `ValueError` if there is no such model, or if it cannot be used with these settings."""
    if not (parts := _model_parts(config.model)):
        return
    check_quantization(config.policy.get("quantization"))
    if config.policy.get("lora") or len(parts) > 1:
        check_peft()
    if OmegaConf.select(config, "agent.prompter._target_") == CHAT:
        check_chat_template(parts)


def check_trained_agent(config: DictConfig) -> None:
    """Raise `ValueError` for an agent that cannot be trained, at all or with this method, policy or engine."""
    choices = HydraConfig.get().runtime.choices
    if config.agent.get("_target_") in WITHOUT_MODEL or not {"player", "prompter", "sampling"} <= config.agent.keys():
        raise ValueError(
            f"agent={choices['agent']} cannot be trained: expected an agent with a player, "
            "a prompter and sampling, such as agent=transcript, agent=candidates, agent=chat or agent=gigpo"
        )
    asked = {override_key(override) for override in written(HydraConfig.get().overrides.task)}
    replaced = choices["agent"] in PLAYERS and choices["agent/player"] != choices["agent"]
    if replaced and "agent" in asked and "agent/player" not in asked:
        raise ValueError(  # the method's player would replace the agent's without a message
            f"algo={choices['algo']} has agent/player={choices['agent/player']}, which is not that of "
            f"agent={choices['agent']}: leave one of them out, or choose with agent/player=…"
        )
    check_engine(config)
    if config.algo.reference:
        _model_parts(config.algo.reference)
    if config.resume:
        return
    if config.model:
        check_model(config)
        if config.policy.get("_target_") == TINY and is_group_set_by_user("policy"):
            raise ValueError(
                f"model={config.model} is the model to train, and policy=tiny creates another one: leave one of them "
                "out, or use policy=hf, which sets how the model is loaded"
            )
        return
    if config.policy.get("_target_") == PRETRAINED:
        raise ValueError("this policy needs a model: model=FOLDER, or use policy=tiny, which creates a small one")
    if config.agent.prompter.get("_target_") == CHAT:
        raise ValueError(
            "agent=chat needs a model with a chat template, and policy=tiny has none: use policy=hf model=FOLDER, or "
            "agent=transcript, which needs no template"
        )


def needs_of_agent(config: DictConfig) -> Needs:
    """What the agent of a configuration needs from the environment, without loading its model."""
    if config._target_ == RANDOM:
        return dict.fromkeys(RandomAgent.needs, "agent=random")
    player = OmegaConf.select(config, "player._target_")
    return dict.fromkeys(getattr(get_object(player), "needs", ()) if player else (), "agent.player")


def check_tasks(needs: Needs, config: DictConfig, task_set: TaskSet, manifest: Manifest) -> None:
    """Play the first turn of a few tasks if something is needed from them. Raises `ValueError` if they lack it."""
    check_expert(needs, task_set)
    if not needs.keys() - {Need.EXPERT}:
        return
    pool = config.get("pool") or {"workers": 0, "step_timeout": 30.0}  # `scripts.play` has none
    tasks = [task_set.task(manifest.split, task_id) for task_id in spread(manifest.ids, CHECKED_TASKS)]
    workers = min(pool["workers"], 1)  # in a worker process if the run's environments are in workers
    # One environment for all tasks: an environment may need much memory, or start a server.
    with EnvPool(task_set.make, 1, workers, pool["step_timeout"]) as environments:
        check_environment(needs, tasks, environments)


def make_agent(config: DictConfig, task_set: TaskSet, model: Model | None, seed: int) -> Agent:
    """Create the agent of a configuration that `check_agent` has accepted."""
    agent: Agent = instantiate(config, _partial_=True)(task_set=task_set, model=model, seed=seed)
    return agent


def expert(task_set: TaskSet, model: Model | None, seed: int) -> ExpertAgent:  # noqa: ARG001
    """The scripted expert of the environment, which is deterministic. Raises `ValueError` if there is none."""

    def make() -> Expert:
        made = task_set.expert()
        if made is None:
            raise ValueError(f"{task_set.env_id} has no scripted expert; choose another agent, such as agent=random")
        return made

    make()
    return ExpertAgent(make)


def random(task_set: TaskSet, model: Model | None, seed: int) -> RandomAgent:  # noqa: ARG001
    """Random admissible actions."""
    return RandomAgent(seed)


def constant(task_set: TaskSet, model: Model | None, seed: int, text: str) -> ConstantAgent:  # noqa: ARG001
    """The same text at every turn."""
    return ConstantAgent(text)


def policy(
    task_set: TaskSet,
    model: Model | None,
    seed: int,
    prompter: Prompter,
    sampling: Sampling,
    player: Callable[[Policy, Prompter, Sampling, Generator], PolicyAgent],
) -> PolicyAgent:
    """A language model with a prompter and a player."""
    import torch

    assert model is not None, "see check_agent"
    loaded = model.load()
    prompter = _adapt(prompter, task_set)
    return player(loaded, prompter, sampling, torch.Generator(loaded.device).manual_seed(seed))


def _adapt(prompter: Any, task_set: TaskSet) -> Any:
    """Set the format of tool calls that the environment reads, for a `Chat`.

    The `system_prompt` of the task set, if it has one, replaces the default one, which is named after the environment.
    """
    from agents.chat import Chat
    from agents.tool_chat import with_calls

    if not isinstance(prompter, Chat):
        return prompter
    suited = with_calls(prompter, getattr(task_set, "format", ""))
    system = getattr(task_set, "system_prompt", "")
    if system and prompter.settings["system"] == HydraConfig.get().runtime.choices.env:
        suited.system = f"{system.strip()}\n\n{suited.parser.request}".strip()
    return suited


def endpoint(
    task_set: TaskSet,
    model: Model | None,  # noqa: ARG001
    seed: int,  # noqa: ARG001
    name: str,
    prompter: Chat,
    sampling: Sampling,
    *,
    base_url: str | None,
    api_key: str | None,
    concurrency: int,
    timeout: float,
    max_retries: int,
    prices: Sequence[float] | None,
    parameters: Mapping[str, Any] | None,
    system_role: str | None,
) -> EndpointAgent:
    """The model `name` behind an OpenAI-compatible endpoint, which samples with its own seeds."""
    from agents.endpoint import EndpointAgent

    return EndpointAgent(
        name, _adapt(prompter, task_set), sampling, base_url=base_url, api_key=api_key, concurrency=concurrency,
        timeout=timeout, max_retries=max_retries, prices=prices, parameters=parameters, system_role=system_role,
    )  # fmt: skip


def checkpoint_of(name: str) -> str:
    """The model `name`. For the folder of a training run: its best checkpoint, or the newest if none was ranked."""
    path = Path(name).expanduser()
    if not (path / "checkpoints").is_dir():
        return str(path.resolve()) if path.exists() else name
    path = path.resolve()
    saved = checkpoints(path)
    if not saved:
        raise FileNotFoundError(f"the run {path} has no checkpoint yet")
    best = load_state(saved[-1], "best")["best"]
    return str(checkpoint_folder(path, best[1]) if best else saved[-1])


def _compare_with_training(config: DictConfig, run: Path) -> None:
    """Compare the agent with that of the training run, because a policy performs badly with other prompts or masks.

    Raises `ValueError` for another prompter. Another environment or player may be intended, so it is a warning.
    """
    file = run / ".hydra" / "config.yaml"
    if not file.is_file():
        return
    before = OmegaConf.load(file)
    trained, now = (OmegaConf.to_container(one.agent.prompter) for one in (before, config))
    if changed := differences({"agent.prompter": trained}, {"agent.prompter": now}):
        changes = "; ".join(f"{name} {change}" for name, change in changed.items())
        raise ValueError(f"{run} was trained with another prompter: {changes}; use the agent that it was trained with")
    for what in ("env", "agent.player"):
        trained, now = (OmegaConf.select(one, f"{what}._target_") for one in (before, config))
        if trained is not None and trained != now:
            logger.warning("%s was trained with %s=%s, and is now used with %s: set %s=… to use the same",
                           run, what, trained, now, what.replace(".", "/"))  # fmt: skip


def _content_hashes(source: Path | str) -> dict[str, str]:
    """The hashes of a model's files; for a model of the hub, its revision."""
    if isinstance(source, str):
        from transformers import AutoConfig

        return {"revision": str(AutoConfig.from_pretrained(source)._commit_hash)}
    files = (path for path in sorted(source.iterdir()) if path.is_file() and path.name not in NO_MODEL)
    return {path.name: _sha256(path) for path in files}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
