"""Every setting of every configuration has a type and a range, and a wrong value is an error before anything starts."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

import hydra
import pytest
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

import conf
from envs.core import UnknownNameError
from scripts import settings
from scripts.settings import GROUPS, SETTINGS, Either, Word, check_added_keys, check_settings
from tests.scripts.test_commands import environment

CONF = Path(conf.__path__[0])
MECHANICAL = ("_partial_", "_convert_")


def composed(name: str, *overrides: str) -> DictConfig:
    """The configuration of a command as its function gets it."""
    with hydra.initialize_config_module("conf", version_base="1.3"):
        config = hydra.compose(name, list(overrides), return_hydra_config=True)
    HydraConfig.instance().set_config(config)
    with open_dict(config):
        del config["hydra"]
    return config


def choices() -> Iterator[tuple[str, tuple[str, ...]]]:
    """Configurations with each file of each group among them, and what has to be given."""
    needs = {
        "env=gym": ["env.id=x"],
        "env=reasoning_gym": ["env.dataset=x"],
        "env=textarena": ["env.game=x"],
        "env=gem": ["env.game=x"],
        "env=openenv": ["env.url=x"],
        "agent=openai": ["agent.name=x"],
        "agent=constant": ["agent.text=x"],
        **{f"algo={judged}": ["algo.signals.judge.model.name=x"] for judged in ("capo", "pure", "tp_grpo")},
    }
    groups = [
        [f"{group}={path.stem}" for path in sorted((CONF / group).glob("*.yaml"))]
        for group in ("env", "agent", "policy", "rollout", "algo")
    ]
    for together in zip_longest(*groups):
        yield "config", tuple(o for choice in together if choice for o in (choice, *needs.get(choice, [])))
    for path in sorted((CONF / "experiment").glob("*.yaml")):
        yield "config", (f"+experiment={path.stem}",)
    yield "config", ("algo=capo", "algo/judge=local", *needs["algo=capo"])
    yield "config", ("agent/player=candidates",)
    yield "lab", ()
    yield "evaluate", ()
    yield "sweep", ()
    yield "play", ()
    yield "check", ()
    yield "plan", ("shape={width:8,feed_forward:8,layers:1,heads:1,kv_heads:1,vocabulary:8,head_dim:8,tied:true}",)
    yield "serve", ()


def settings_of(config: DictConfig, parents: str = "") -> Iterator[str]:
    for part in config:
        key = f"{parents}{part}"
        if OmegaConf.is_dict(config._get_node(part)) and config[part] is not None:
            yield from settings_of(config[part], f"{key}.")
        elif part not in ("_target_", *MECHANICAL):
            yield key


@pytest.mark.parametrize(("command", "overrides"), list(choices()), ids=str)
def test_every_setting_has_a_kind_that_its_default_is_of(command: str, overrides: tuple[str, ...]) -> None:
    config = composed(command, *overrides)
    check_settings(config, command)
    known = {key for key, _, _ in settings._settings(config)}
    unknown = {key for key in set(settings_of(config)) - known if not key.startswith("small.")}  # see smoke.yaml
    assert unknown <= {"task"}  # of play: a number, or any text


@pytest.mark.parametrize("command", GROUPS)
def test_numbers_refuse_texts_flags_and_values_out_of_range(command: str) -> None:
    config = composed(command, *(["algo=ppo"] if command == "config" else []))
    numbers = [(k, v, kind) for k, v, kind in settings._settings(config) if type(v) in (int, float)]
    assert numbers
    for key, value, kind in numbers:
        wrong: list[Any] = ["abc", True, [value], {"a": value}, float("nan"), float("inf"), 10**30, -(10**30)]
        wrong += [] if kind.accepts(None) else [None]
        for other in wrong:
            assert not kind.accepts(other), (key, other)
            assert "\n" not in f"{kind} {kind.suggestion(other)}"
        for other in ("abc", {"a": value}):
            OmegaConf.update(config, key, other, merge=False, force_add=True)
            with pytest.raises(ValueError, match=rf"^{key} must be "):
                check_settings(config, command)
        OmegaConf.update(config, key, value, merge=False, force_add=True)


@pytest.mark.parametrize(
    ("command", "override", "message"),
    [
        ("config", "seed=abc", "seed must be a whole number from 0 to 4,294,967,295, got 'abc'"),
        ("config", "seed=-1", "got -1; did you mean seed=0?"),
        ("config", "seed=18446744073709551616", "got 18446744073709551616; did you mean seed=4294967295?"),
        ("config", "seed=true", "got true"),
        ("config", "seed=null", "got null"),
        ("config", "trainer.learning_rate=fast", "must be a number from 0 to 10, got 'fast'"),
        ("config", "trainer.updates=-1", "trainer.updates must be a whole number from 0"),
        ("config", "trainer.updates=10.0", "did you mean trainer.updates=10?"),
        ("config", "trainer.gradient_checkpointing=yes", "did you mean trainer.gradient_checkpointing=true?"),
        ("config", "trainer.precision=float23", "unknown trainer.precision 'float23'; did you mean 'float32'"),
        ("config", "trainer.precision=32", "trainer.precision must be one of float32, bfloat16, got 32"),
        ("config", "eval.splits=valid_seen", "did you mean eval.splits=[valid_seen]?"),
        ("config", "algo.estimator.mode=mean", "unknown algo.estimator.mode 'mean'; did you mean 'mean_norm'"),
        ("config", "algo.estimator=gigpo", "algo.estimator must be a group of settings with _target_"),
        ("config", "+algo.signals.critic=5", "algo.signals must be a group of settings, each with _target_"),
        ("config", "pool=5", "pool must be a group of settings, got 5"),
        ("config", "pool=null", "pool has no value; scripts.train needs one"),
        ("config", "+pool.sizes=5", "unknown key of pool 'sizes'; did you mean 'size'"),
        ("config", "~trainer.updates", "trainer.updates has no value"),
        ("config", "model=3", "did you mean model=\"'3'\"?"),
        ("config", "policy.warm_start=none", "policy.warm_start must be a group of settings with _target_ or null"),
        ("evaluate", "seeds=3", "did you mean seeds=[3]?"),
        ("evaluate", "seeds=[]", "seeds must be a list of one or more different items"),
        ("evaluate", "seeds=[0,0]", "4,294,967,295, got [0, 0]; did you mean seeds=[0]?"),
        ("evaluate", "limit=0", "did you mean limit=1?"),
        ("evaluate", "agent.sampling.stop=x", "did you mean agent.sampling.stop=[x]?"),
        ("play", "delay=-1", "did you mean delay=0?"),
        ("plan", "gpus=0", "did you mean gpus=1?"),
        ("plan", "plan.mfu=35", "plan.mfu must be a number above 0, up to 1, got 35"),
    ],
)  # fmt: skip
def test_a_wrong_setting_is_named_with_what_was_expected(command: str, override: str, message: str) -> None:
    config = composed(command, *(["agent=chat"] if "stop" in override else []), override)
    with pytest.raises((ValueError, LookupError)) as raised:
        check_settings(config, command)
    assert message in str(raised.value)


def test_settings_of_other_packages_are_not_checked() -> None:
    config = composed("config", "env=gym", "env.id=x", "+env.kwargs.rooms=many")
    OmegaConf.update(config, "more.seed", "none", force_add=True)  # as a file of theirs may
    config.algo.estimator = {"_target_": "their.method", "gamma": "theirs", "mode": 3}
    check_settings(config, "config")


@pytest.mark.parametrize(
    ("command", "override", "message"),
    [
        ("config", "+splits=train", "unknown key 'splits'; did you mean 'split'"),
        ("config", "+trainers.updates=3", "unknown key 'trainers'; did you mean 'trainer'"),
        ("config", "++max_turns=3", "unknown key 'max_turns'"),
        ("config", "+algo.gamma=0.9", "unknown key of algo 'gamma'"),
        ("config", "+algo.kl_coeff=0.9", "unknown key of algo 'kl_coeff'; did you mean 'kl_coef'"),
        ("config", "+algo.los.eps_low=0.1", "unknown key of algo 'los'; did you mean 'loss'"),
        ("evaluate", "+seed=3", "unknown key 'seed'; did you mean 'seeds'"),
        ("play", "+seeds=[3]", "unknown key 'seeds'; did you mean 'seed'"),
    ],
)  # fmt: skip
def test_an_added_key_that_nothing_reads_is_refused(command: str, override: str, message: str) -> None:
    with pytest.raises(UnknownNameError) as raised:
        check_added_keys(composed(command, override), command)
    assert str(raised.value).startswith(message)


def test_an_added_key_may_be_read_by_another_setting_or_the_name_of_the_folder() -> None:
    for reader in ("trainer.learning_rate=${rate}", "hydra.run.dir=outputs/${rate}"):
        check_added_keys(composed("config", "+rate=0.1", reader), "config")
    check_added_keys(composed("config", "+algo.drop_zero_episodes=true", "+experiment=smoke"), "config")


WORDS = {  # the settings that are words, and where these are known
    "gigpo.mode": "algorithms.estimators.gigpo.MODES",
    "hgpo.mode": "algorithms.estimators.gigpo.MODES",
    "hgpo.precision": "algorithms.estimators.hgpo.PRECISIONS",
    "istar.mode": "algorithms.estimators.istar.MODES",
    "istar.baseline": "algorithms.estimators.istar.BASELINES",
    "istar.scale_steps": "algorithms.estimators.istar.SCALES",
    "igpo.gain": "algorithms.estimators.igpo.GAINS",
    "igpo.normalization": "algorithms.estimators.igpo.NORMALIZATIONS",
    "turn_ends": "algorithms.estimators.gae.TURN_ENDS",
    "turn_gae.anchor": "algorithms.estimators.gae.ANCHORS",
    "psr_nsr.learn_from": "algorithms.estimators.psr_nsr.CHOICES",
    "luffy.compare_with": "algorithms.estimators.luffy.COMPARED_WITH",
    "rloo.single": "algorithms.estimators.rloo.SINGLES",
    "tree_grpo.combine": "algorithms.estimators.tree_grpo.COMBINATIONS",
    "pure.baseline": "algorithms.estimators.pure.BASELINES",
    "statistics": "algorithms.estimators.groups.STATISTICS",
    "shared_turns": "algorithms.estimators.groups.SHARED_TURNS",
    "observations": "algorithms.estimators.reinforce_pp.OBSERVATIONS",
    "algo.aggregation": "algorithms.losses.AGGREGATIONS",
    "algo.kl_estimator": "algorithms.losses.KL_ESTIMATORS",
    "algo.kl_in": "algorithms.learner.KL_PLACES",
    "topr_loss.ratio": "algorithms.losses.RATIOS",
    "loss.unit": "algorithms.losses.UNITS",
    "reward_variance.strategy": "algorithms.filters.STRATEGIES",
    "reward_variance.mode": "algorithms.filters.MODES",
    "dppo_loss.divergence": "algorithms.losses.DIVERGENCES",
    "AnswerGain.model": "algorithms.signals.answer_gain.MODELS",
    "compare": "algorithms.estimators.gtpo.COMPARED",
    "macro_gae.weights": "algorithms.estimators.macro_actions.WEIGHTS",
    "step_grpo.pool": "algorithms.estimators.turn_returns.POOLS",
    "aepo_loss.keep_gradient": "algorithms.losses.ENTROPIES",
    "nft_loss.normalizer": "algorithms.losses.NORMALIZERS",
    "correction.level": "algorithms.correction.LEVELS",
    "SokobanTasks.levels": "envs.sokoban.tasks.LEVELS",
    "SokobanTasks.observation": "envs.sokoban.views.VIEWS",
    "FrozenLakeTasks.observation": "envs.ragen_games.frozen_lake.VIEWS",
    "dead_ends": "envs.sokoban.env.DEAD_ENDS",
    "correction.outside": "algorithms.correction.OUTSIDE",
    "Critic.body": "algorithms.signals.headed.BODIES",
    "Progress.body": "algorithms.signals.headed.BODIES",
    "ImplicitPRM.loss": "algorithms.signals.implicit_prm.LOSSES",
    "ImplicitPRM.reference": "algorithms.signals.implicit_prm.REFERENCES",
    "ImplicitPRM.update": "algorithms.signals.implicit_prm.WHEN",
    "Judge.vote": "algorithms.signals.judge.VOTES",
    "trainer.precision": "algorithms.learner.PRECISIONS",
    "player.normalization": "agents.candidates.NORMALIZATIONS",
    "history.kind": "agents.chat.KINDS",
    "games": "envs.alfworld.tasks.SOURCES",
    "engine": "envs.alfworld.env.ENGINES",
    "catalogue": "envs.webshop.tasks.CATALOGUES",
    "instructions": "envs.webshop.tasks.INSTRUCTIONS",
    "protocol": "envs.webshop.env.PROTOCOLS",
    "SearchTasks.protocol": "envs.search.dialogue.PROTOCOLS",
    "ToolTasks.questions": "envs.tools.tasks.SETS",
    "ToolTasks.format": "envs.tools.calls.FORMATS",
    "variations": "envs.scienceworld.tasks.SETS",
    "domain": "envs.tau_bench.tasks.CHOICES",
    "scenarios": "envs.sotopia.tasks.CHOICES",
    "TauBenchTasks.format": "envs.tools.calls.FORMATS",
    "recipes": "envs.textcraft.tasks.CHOICES",
    "TextCraftTasks.protocol": "envs.textcraft.protocols.PROTOCOLS",
    "retriever": "envs.search.retrieval.RETRIEVERS",
    "wire": "envs.search.wire.WIRES",
    "mcp_tasks.format": "envs.tools.calls.FORMATS",
    "observation": "envs.webshop.env.OBSERVATIONS",
}


@pytest.mark.parametrize(("setting", "where"), WORDS.items())
def test_the_words_of_a_setting_are_those_that_its_code_knows(setting: str, where: str) -> None:
    module, _, name = where.rpartition(".")
    kind = SETTINGS[setting]
    kind = kind.kinds[0] if isinstance(kind, Either) else kind
    assert isinstance(kind, Word)
    assert set(kind.words) == set(getattr(importlib.import_module(module), name))


def test_every_setting_with_choices_is_compared_with_its_code() -> None:
    others = {"policy.dtype"}
    assert {name for name, kind in SETTINGS.items() if isinstance(kind, Word)} - others <= WORDS.keys()


SILENT = "env=gym env.id=tests.envs.test_gym_tasks:Script-v0 split=valid"  # tells nothing but text
MODELS = {  # the config.json of folders, and a file that passes for weights
    "llama": ('{"model_type": "llama"}', "model.safetensors"),
    "mamba": ('{"model_type": "mamba"}', "model.safetensors"),
    "no_weights": ('{"model_type": "llama"}', "README.md"),
    "broken": ("{", "model.safetensors"),
}
REFUSALS = [
    ("train", "seed=abc", "seed must be "),
    ("train", "algo=igpo", "algo.signals.answer_gain needs right answers"),
    (
        "train",
        f"{SILENT} algo=luffy agent=transcript eval.selection_tasks=0",
        "algo.demonstrations needs actions of an expert",
    ),
    ("train", "+algo.estimator.x=1", "unknown setting of algo.estimator 'x'"),
    ("train", "+algo.loss.eps=1", "unknown setting of algo.loss 'eps'"),
    ("train", "algo=fipo +algo.loss.of.eps=1", "unknown setting of algo.loss.of 'eps'"),
    ("train", "+policy.widht=1", "unknown setting of policy 'widht'; did you mean 'width'"),
    ("train", "algo.estimator._target_=algorithms.estimators.gigpoo.gigpo", "did you mean 'gigpo'"),
    ("train", "algo.loss._target_=algorithms.losses.clip", "unknown name in algorithms.losses"),
    ("train", "algo.estimator._target_=nowhere.x", "there is no module 'nowhere'"),
    ("train", "policy=hf model=./nothing", "no model at nothing"),
    ("train", "model=nobody/no-such-model", "the hub cannot provide it"),
    ("train", "agent=masked rollout=vllm_server", "samples under a mask"),
    ("train", "agent=transcript rollout=vllm_server +agent.sampling.top_k=5", "does not say which ids are kept"),
    ("train", "algo=twosome agent=masked", "which is not that of agent=masked"),
    ("train", "model=x policy.width=8", "no model at x"),
    ("train", "eval.selection_tasks=5000", "cannot be held out"),
    ("train", "trainer.group_size=1", "nothing to compare"),
    ("train", "algo=tree_grpo trainer.group_size=3", "trainer.group_size=3 does not fit 2 trees"),
    ("train", "split=nope", "unknown split 'nope'"),
    ("train", "agent=gigpo agent.prompter.name=nope", "unknown prompt template 'nope'"),
    ("evaluate", "seeds=abc", "seeds must be "),
    ("evaluate", "model=./nothing", "no model at nothing"),
    ("evaluate", "agent=chat model=./nothing +agent.prompter.x=1", "unknown setting of agent.prompter 'x'"),
    ("evaluate", "agent=random split=nope", "unknown split of polyturn/KeyCorridor-v0 'nope'"),
    ("train", "algo.aggregation=turn-mean algo.loss_divisor=5", "and no other uses one"),
    ("train", "algo=reinforce_pp trainer.group_size=1 algo.dynamic_sampling=true", "this is every group"),
    ("train", "policy=hf model=../models/llama policy.quantization=4bit", "needs the package bitsandbytes"),
    ("train", "policy=lora model=../models/llama", "need the package peft; pip install 'polyturn[hf]'"),
    ("train", "policy=hf model=../models/llama agent=chat", "models/llama has no chat template"),
    ("train", "policy=hf model=../models/mamba", "models/mamba is a model of type mamba"),
    ("evaluate", "agent=transcript model=../models/no_weights", "has a config.json, but no weights"),
    ("evaluate", "agent=transcript model=../models/broken", "broken/config.json cannot be read"),
    ("evaluate", "agent=openai agent.name=m +agent.x=1", "unknown setting of agent 'x'"),
    ("evaluate", f"{SILENT} agent=candidates model=../models/llama", "agent.player needs admissible actions"),
    ("evaluate", f"{SILENT} agent=random", "agent=random needs admissible actions"),
    ("play", f"{SILENT} agent=masked model=../models/llama", "agent.player needs admissible actions"),
    ("evaluate", "agent=openai agent.name=m", "the package openai is not installed: pip install 'polyturn[openai]'"),
    (
        "evaluate",
        "env=mcp env.url=http://127.0.0.1:1 agent=random",
        "in env: import of mcp halted; None in sys.modules; servers of ",
    ),
    ("train", "hydra/launcher=joblib", "to have it: pip install 'polyturn[parallel]'"),
    ("play", "seed=abc", "seed must be "),
    ("play", "agent=transcript model=./nothing", "no model at nothing"),
]


WATCH = """
import importlib, io, json, os, sys
sys.modules |= dict.fromkeys(("bitsandbytes", "openai", "mcp", "peft"))
from contextlib import redirect_stderr, redirect_stdout
from hydra._internal.hydra import Hydra

Hydra.get_mode = lambda *_, **__: None  # as in tests.scripts.test_commands.Cli

for command, mistakes in json.loads(sys.argv[1]):
    main = importlib.import_module(f"scripts.{command}").main
    sys.argv = [command, *(["env=key_corridor"] if "env=" not in mistakes else []), *mistakes.split()]
    err, code = io.StringIO(), 0
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(err):
            main()
    except SystemExit as end:
        code = end.code
    slow = sorted({"torch", "transformers"} & sys.modules.keys())
    print(json.dumps([code, err.getvalue(), slow, os.listdir()]))
"""


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], list[Any]]:
    """The exit code, stderr, slow modules and files left of each of `REFUSALS`, one after the other in one process."""
    folder = tmp_path_factory.mktemp("refusals")
    (folder / "here").mkdir()
    for name, (config, weights) in MODELS.items():
        (folder / "models" / name).mkdir(parents=True)
        (folder / "models" / name / "config.json").write_text(config)
        (folder / "models" / name / weights).touch()
    small = {"HF_HUB_OFFLINE": "1", "POLYTURN_CACHE": str(folder / "cache"), "POLYTURN_DATA": str(folder / "data")}
    commands = [(command, mistakes) for command, mistakes, _ in REFUSALS]
    done = subprocess.run(
        [sys.executable, "-c", WATCH, json.dumps(commands)],
        capture_output=True, text=True, check=False, env={**environment(), **small}, cwd=folder / "here",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return dict(zip(commands, map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.mark.parametrize(("command", "mistakes", "message"), REFUSALS)
def test_a_refusal_comes_before_torch_is_imported_and_leaves_nothing(
    refused: dict[tuple[str, str], list[Any]], command: str, mistakes: str, message: str
) -> None:
    code, err, slow, left = refused[command, mistakes]
    assert (code, slow, left) == (2, [], []), err
    *_, error = err.splitlines()
    assert error.startswith("error: ")
    assert message in error


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("env.command=python server.py", "[python,server.py]"),
        ("env.command=[python,server.py,--port,8000]", """[python,server.py,--port,"'8000'"]"""),
        ('env.command=[python,"a b",1]', """[python,"'a b'","'1'"]"""),
    ],
)
def test_a_list_is_suggested_item_by_item(written: str, meant: str) -> None:
    with pytest.raises(ValueError, match=r"env\.command must be a list") as raised:
        check_settings(composed("evaluate", "env=mcp", written), "evaluate")
    assert f"did you mean env.command={meant}?" in str(raised.value)
