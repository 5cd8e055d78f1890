"""The presets compose, and have the settings of their sources."""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import hydra
import pytest
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from algorithms.learner import LearnerConfig, Objective
from algorithms.plan import KEPT, known_shape, training_memory
from algorithms.trainer import TrainerConfig
from envs.core import evaluation_splits, hold_out
from scripts.lab import tuned_settings
from scripts.plan import training_of
from scripts.settings import check_settings
from scripts.train import LEARNER_KEYS

FOLDER = Path(__file__).parents[2] / "conf" / "experiment"


def composed(name: str) -> DictConfig:
    with hydra.initialize_config_module("conf", version_base="1.3"):
        return hydra.compose("config", [f"+experiment={name}"])


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.yaml")))
def test_every_part_of_a_preset_can_be_made(name: str) -> None:
    config = composed(name)
    if "system" in config.agent.prompter:
        config.agent.prompter.system = "alfworld"  # of a command's own choice, which there is none of here
    assert not OmegaConf.missing_keys(config)
    given = {key: value for key, value in config.env.items() if key != "_target_"}
    inspect.signature(hydra.utils.get_class(config.env._target_)).bind(**given)  # the tasks may be still to download
    for part in (config.policy, config.agent.prompter, config.agent.sampling, config.algo):
        instantiate(part)
    settings = dict(config.trainer)
    learner = {key: settings.pop(key) for key in LEARNER_KEYS}
    algo = instantiate(config.algo)
    objective = Objective(**{field.name: algo[field.name] for field in fields(Objective) if field.name in algo})
    LearnerConfig(objective, temperature=1, **learner)  # type: ignore[arg-type]
    TrainerConfig(dynamic_sampling=False, tree_expansion=None, **settings)


SMALL = {  # what takes the place of downloaded data, and of the time that many tasks take
    "alfworld": [
        "env.games=embedded", "env.embedded_train=400", "env.embedded_valid_seen=20", "env.embedded_valid_unseen=20",
    ],
    "webshop": ["env.catalogue=embedded", "env.embedded_products=200"],
    "key_corridor": [],
    "sokoban": ["env.train_tasks=300", "env.valid_tasks=20"],
    "search": [
        "env.questions=embedded", "env.corpus=null", "env.retriever=bm25", "env.embedded_people=48",
        "env.train_tasks=400", "env.valid_tasks=20",
    ],
    "tools": ["env.embedded_people=48", "env.train_tasks=400", "env.valid_tasks=20"],
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.yaml")))
def test_a_preset_reports_on_no_task_that_chooses_its_checkpoint(name: str) -> None:
    """Nor on one that it trains on. Where no task ranks checkpoints, the newest is taken."""
    with hydra.initialize_config_module("conf", version_base="1.3"):
        env = hydra.compose("config", [f"+experiment={name}"], return_hydra_config=True).hydra.runtime.choices["env"]
        config = hydra.compose("config", [f"+experiment={name}", *SMALL[env]])
    tasks = instantiate(config.env)
    training, selection = hold_out(tasks.manifest(config.split), config.eval.selection_tasks)
    assert bool(selection.ids) == (name != "smoke")
    reported = config.eval.splits or evaluation_splits(tasks)
    assert config.split not in reported
    assert not set(training.ids) & set(selection.ids)

    def contents(split: str, ids: Sequence[str]) -> set[str]:
        return {json.dumps(tasks.task(split, i).payload, sort_keys=True, default=str) for i in ids}

    played = {content for split in reported for content in contents(split, tasks.manifest(split).ids)}
    assert not contents(config.split, [*training.ids, *selection.ids]) & played


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("lab_*.yaml")))
def test_a_laboratory_is_of_masked_actions_one_warm_start_and_one_budget(name: str) -> None:
    config = composed(name)
    assert config.agent.player._target_ == "agents.masking.MaskedAgent"
    assert config.policy.seed == 0
    assert config.trainer.updates is None
    assert config.trainer.env_steps > 0


@pytest.mark.parametrize("env", sorted(path.stem for path in (FOLDER.parent / "tuned").glob("*.yaml")))
def test_tuned_settings_belong_to_the_method(env: str) -> None:
    assert (FOLDER.parent / "env" / f"{env}.yaml").exists()
    tuned = tuned_settings(env, [])
    assert tuned
    with hydra.initialize_config_module("conf", version_base="1.3"):
        for algo, overrides in tuned.items():
            check_settings(hydra.compose("config", [f"+experiment=lab_{env}", f"algo={algo}", *overrides]), "config")


def test_the_published_run_has_the_published_settings() -> None:
    config = composed("alfworld_gigpo_qwen2.5_1.5b")
    assert config.model == "Qwen/Qwen2.5-1.5B-Instruct"
    assert (config.trainer.groups, config.trainer.group_size, config.trainer.max_turns) == (16, 8, 50)
    assert config.agent.prompter == {"_target_": "agents.prompts.Template", "name": "gigpo_alfworld", "history": 2}
    assert (config.algo.estimator.gamma, config.algo.estimator.mode) == (0.95, "mean_std_norm")
    assert (config.algo.kl_coef, config.algo.kl_estimator, config.algo.entropy_coef) == (0.01, "k3", 0.001)
    assert config.algo.estimator.invalid_penalty == 0.01  # a tenth of theirs, as success is
    assert (config.trainer.learning_rate, config.trainer.updates) == (1e-6, 150)
    assert (config.agent.sampling.temperature, config.agent.sampling.max_tokens) == (1.0, 512)
    assert config.eval.temperature == 0.4


def test_the_published_webshop_run_has_the_published_settings() -> None:
    config = composed("webshop_gigpo_qwen2.5_1.5b")
    assert (config.env.catalogue, config.env.protocol, config.env.max_turns) == ("small", "verl_agent", 15)
    assert config.agent.prompter == {"_target_": "agents.prompts.WebShopTemplate", "history": 2}
    assert (config.trainer.groups, config.trainer.group_size, config.trainer.updates) == (16, 8, 150)
    assert (config.algo.estimator.mode, config.algo.estimator.gamma, config.algo.kl_coef) == ("mean_norm", 0.95, 0.01)
    assert (config.algo.estimator.invalid_penalty, config.algo.entropy_coef) == (0.1, 0.001)
    assert config.eval.temperature == 0.4


@pytest.mark.parametrize(
    ("name", "of_one_gpu", "model"),
    [
        ("alfworld_gigpo_qwen2.5_7b_8gpu", "alfworld_gigpo_qwen2.5_1.5b", "Qwen/Qwen2.5-7B-Instruct"),
        ("search_grpo_qwen2.5_7b_8gpu", "search_r1_qwen2.5_3b", "Qwen/Qwen2.5-7B"),
    ],
)
def test_the_published_runs_on_eight_gpus_differ_from_those_on_one_in_size_only(name, of_one_gpu, model) -> None:
    config, smaller = composed(name), composed(of_one_gpu)
    assert (config.model, config.parallel._target_) == (model, "algorithms.parallel.Shards")
    assert "lora" not in config.policy
    for part in (config, smaller):
        part.trainer.micro_batch_tokens = 0
    for group in ("env", "agent", "algo", "trainer", "eval"):
        assert config[group] == smaller[group]


@pytest.mark.parametrize("name", ["alfworld_gigpo_qwen2.5_7b_8gpu", "search_grpo_qwen2.5_7b_8gpu"])
def test_the_presets_for_eight_gpus_fit_into_80_gb(name: str) -> None:
    config = composed(name)
    shape, training = known_shape(config.model), training_of(config)
    memory = training_memory(shape, training, 8, sharded=True)
    assert sum(memory.values()) < 0.8 * 80e9
    assert sum(memory[part] for part in KEPT) + config.rollout.gpu_memory * 80e9 < 0.9 * 80e9
    assert sum(training_memory(shape, training, 8, sharded=False).values()) > 80e9  # so they need shards


@pytest.mark.parametrize(
    ("name", "protocol", "batch", "settings"),
    [
        ("search_r1_qwen2.5_3b", "search_r1", (512, 5), {"kl": 0.001, "updates": 1005, "tokens": 500, "entropy": 0.0}),
        ("igpo_qwen2.5_7b", "igpo", (32, 16), {"kl": 0.001, "updates": 300, "tokens": 2000, "entropy": 0.001}),
        ("mt_grpo_qwen2.5_7b", "mt_grpo", (16, 21), {"kl": 0.0, "updates": 300, "tokens": 1024, "entropy": 0.0}),
    ],
)
def test_the_published_search_runs_have_the_published_settings(name, protocol, batch, settings) -> None:
    config = composed(name)
    assert config.env.protocol == protocol
    assert (config.trainer.groups, config.trainer.group_size) == batch
    assert {
        "kl": config.algo.kl_coef, "updates": config.trainer.updates, "tokens": config.agent.sampling.max_tokens,
        "entropy": config.algo.entropy_coef,
    } == settings  # fmt: skip
    assert (config.trainer.learning_rate, config.algo.loss.eps_low, config.algo.loss.eps_high) == (1e-6, 0.2, 0.2)
    assert config.agent.prompter._target_ == "agents.prompts.Verbatim"
    assert config.trainer.epochs == (2 if protocol == "mt_grpo" else 1)
