from __future__ import annotations

import copy
import inspect
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

import conf
from algorithms.learner import Objective
from algorithms.losses import aggregate, clip_loss
from envs.core import Info
from envs.pool import EnvPool
from tests.agents.corridors import Corridor
from tests.agents.endpoint_server import Serve, answered
from tests.agents.toys import random_policy
from tests.algorithms.test_trainer import make_trainer, without_times

FOLDER = Path(conf.__path__[0]) / "algo"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
# Those that need what the corridor has not, right answers and tools: tests/scripts/test_every_method.py trains them.
NOT_IN_CORRIDORS = {"igpo", "mt_grpo", "trace", "fine_grained"}
# The methods that set something else than the default of their estimator, which several methods share, or which gives
# the plain differences of values where the authors whiten them.
OWN_SETTINGS = {
    "vineppo": {"whiten"},
    "spo_chain": {"whiten", "probability_mask"},
    "spo_tree": {"whiten", "probability_mask"},
    "twosome": {"gamma"},
    "dr_grpo": {"normalize_by_std", "statistics", "invalid_penalty"},
    "topr": {"normalize_by_std", "statistics", "invalid_penalty"},
    "spear": {"normalize_by_std"},
    "psr": {"learn_from"},
    "nsr": {"learn_from"},
}
# With more attempts at these short tasks, two are best, and then it learns nothing.
ATTEMPTS = {"pass_at_k": 2}
OLD, NEW = torch.tensor([[-1.0, -1.0, -3.0, -1.0]]), torch.tensor([[-0.1, -1.1, -0.1, -3.0]])
MASK = torch.ones(1, 4, dtype=torch.bool)


def composed(name: str, *overrides: str) -> Any:
    """The configuration of a method, and its parts. A judge gets the name of a model."""
    config = whole(name, *overrides)
    if "judge" in config.algo.signals and OmegaConf.is_missing(config.algo.signals.judge.model, "name"):
        config.algo.signals.judge.model.name = "m"
    return instantiate(config.algo)


def whole(name: str, *overrides: str) -> Any:
    return copy.deepcopy(_whole(name, *overrides))


@cache  # composing takes a fifth of a second
def _whole(name: str, *overrides: str) -> Any:
    with hydra.initialize_config_module("conf", version_base="1.3"):
        return hydra.compose(
            "config", [f"algo={name}", *(["algo.reference=FOLDER"] if name == "opd" else []), *overrides]
        )


@pytest.mark.parametrize("name", ["grpo", "gigpo"])
def test_a_config_file_has_the_defaults_of_its_loss(name: str) -> None:
    algo = composed(name)
    advantages = torch.tensor([[1.0, -1.0, -1.0, -1.0]])
    loss, _ = algo.loss(NEW, OLD, advantages, MASK)
    torch.testing.assert_close(loss, clip_loss(NEW, OLD, advantages, MASK)[0])
    assert aggregate(loss, MASK, algo.aggregation, algo.loss_divisor) == aggregate(loss, MASK)


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_of_an_estimator_stands_in_its_file_with_its_default(name: str) -> None:
    estimator = composed(name).estimator
    parameters = inspect.signature(estimator.func).parameters
    defaults = {key: p.default for key, p in parameters.items() if p.kind is p.KEYWORD_ONLY}
    # An epsilon is left alone, and the similarity of states is an option of its own.
    assert set(estimator.keywords) == set(defaults) - {"epsilon", "similarity"}
    for key in set(estimator.keywords) - OWN_SETTINGS.get(name, set()):
        assert estimator.keywords[key] == defaults[key], key


def test_parameters_in_units_of_reward_fit_a_success_of_1() -> None:
    """verl-agent's penalty of 0.1 belongs to a success of 10."""
    penalties = {name: composed(name).estimator.keywords.get("invalid_penalty", 0.0) for name in NAMES}
    published = {"empg", "gigpo", "grpo", "gspo", "hgpo", "istar", "reinforce_pp_baseline", "rloo"}
    published |= {"cispo", "clip_cov", "dppo", "gmpo", "kl_cov", "sapo", "vespo", "sampo"}
    published |= {"aepo", "fipo", "opsm", "resrl"}
    published |= {"step_grpo", "turn_rloo", "hicra", "top_entropy", "s_grpo", "spear", "arpo"}
    assert {name: penalty for name, penalty in penalties.items() if penalty} == dict.fromkeys(published, 0.01)


@pytest.mark.parametrize("name", ["vineppo", "spo_chain", "spo_tree"])
def test_monte_carlo_methods_whiten_what_they_train(name: str) -> None:
    estimator = composed(name, *([] if name == "vineppo" else ["algo.probability_mask=0.7"])).estimator
    assert estimator.keywords["whiten"] is True
    assert estimator.keywords.get("probability_mask") == (None if name == "vineppo" else 0.7)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in NOT_IN_CORRIDORS])
def test_every_method_trains(name: str, tmp_path: Path, serve: Serve) -> None:
    """Two updates as its file says them, after which the weights have moved. The commands train all under a mask."""
    judge = serve(lambda _: answered('{"wrong": [1]}'))
    has_judge = "judge" in composed(name).signals
    algo = composed(name, *([f"algo.signals.judge.model.base_url={judge.url}"] if has_judge else []))
    policy = random_policy()
    before = {key: tensor.clone() for key, tensor in policy.model.state_dict().items()}
    with EnvPool(lambda: Generous(max_turns=3), 8) as pool:
        trainer = make_trainer(
            tmp_path / "run", pool, policy, 2, algo.estimator, algo.signals,
            instantiate(whole(name).agent.player),
            groups=2, group_size=ATTEMPTS.get(name, 4), tree_expansion=algo.tree_expansion,
            dynamic_sampling=algo.dynamic_sampling, demonstrations=algo.demonstrations, minibatches=1,
            reference=random_policy(seed=1).model if algo.reference else None, replay=algo.replay,
            **{field.name: algo[field.name] for field in fields(Objective) if field.name in algo},
        )  # fmt: skip
        trainer.train()
    lines = [line for line in without_times(tmp_path / "run" / "metrics.jsonl") if "rollout/success" in line]
    assert len(lines) == 2
    assert all(np.isfinite(list(line.values())).all() for line in lines)
    assert any(not torch.equal(tensor, before[key]) for key, tensor in policy.model.state_dict().items())
    assert bool(judge.asked) is has_judge


def test_methods_are_trained_for_as_many_steps_as_published() -> None:
    assert whole("mt_grpo").trainer.epochs == 2
    assert whole("mt_grpo", "trainer.epochs=3").trainer.epochs == 3
    for name in ("archer", "twosome"):
        config = whole(name)
        assert config.trainer.epochs == 1
        assert (config.algo.signals.critic.epochs, config.algo.signals.critic.minibatches) == (1, 4)
    assert whole("psr").algo.drop_zero_episodes


class Generous(Corridor):
    """A corridor that an untrained policy leaves now and then: by an even number of characters in its third turn."""

    def _act(self, action: str) -> tuple[str, float, bool, Info]:
        self.at += 1
        won = self.at == 3 and len(action) % 2 == 0
        return f"You are in room {self.at + 1}.", float(won), won, self._extra(success=won, score=float(won))
