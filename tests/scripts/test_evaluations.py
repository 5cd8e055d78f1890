"""Evaluations during training use their own generator: training continues as without them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from agents.agent import PolicyAgent
from agents.policies.base import Sampling
from agents.prompts import Transcript
from envs.pool import EnvPool
from scripts import train
from tests.agents.corridors import Corridors
from tests.agents.toys import Wanderer, random_policy
from tests.algorithms.test_trainer import Quiet


@pytest.fixture
def pool():
    with EnvPool(Corridors().make, 8) as made:
        yield made


def evaluator_of(agent: PolicyAgent, pool: EnvPool, monkeypatch: pytest.MonkeyPatch, seed: int = 0) -> train._Evaluator:
    choices = SimpleNamespace(runtime=SimpleNamespace(choices={"env": "corridor"}))
    monkeypatch.setattr(train.HydraConfig, "get", lambda: choices)
    cfg: Any = OmegaConf.create(
        {
            "seed": seed,
            "eval": {"splits": ["valid"], "limit": None, "temperature": 0.7},
            "trainer": {"episode_timeout": 60.0},
        }
    )
    manifest = Corridors().manifest("train")
    training, selection = manifest.part(manifest.ids[:16]), manifest.part(manifest.ids[16:])
    return train._Evaluator(cfg, Corridors(), training, selection, agent, pool, Quiet())  # type: ignore[arg-type]


def agent_of(kind: type[PolicyAgent], seed: int) -> PolicyAgent:
    return kind(random_policy(), Transcript(), Sampling(1.0, 6), torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", [PolicyAgent, Wanderer])
def test_an_evaluation_does_not_change_the_sampling_of_training(
    kind: type[PolicyAgent], pool: EnvPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = agent_of(kind, 3)
    before = agent.generator.get_state()
    evaluator_of(agent, pool, monkeypatch)()
    assert torch.equal(agent.generator.get_state(), before)
    assert agent.sampling == Sampling(1.0, 6)


def test_every_evaluation_uses_the_seed_of_the_run(pool: EnvPool, monkeypatch: pytest.MonkeyPatch) -> None:
    """However much training has drawn before."""
    evaluator = evaluator_of(agent_of(Wanderer, 3), pool, monkeypatch)
    first = evaluator()
    evaluator.agent.generator.manual_seed(99)
    assert evaluator() == first
    assert evaluator_of(agent_of(Wanderer, 4), pool, monkeypatch)() == first
    assert evaluator_of(agent_of(Wanderer, 3), pool, monkeypatch, seed=1)() != first


def test_an_evaluation_has_a_temperature_of_its_own(pool: EnvPool, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = agent_of(PolicyAgent, 3)
    heard: list[Sampling] = []
    generate = agent.policy.generate
    monkeypatch.setattr(
        agent.policy, "generate", lambda r, sampling, g: (heard.append(sampling), generate(r, sampling, g))[1]
    )
    evaluator_of(agent, pool, monkeypatch)()
    assert set(heard) == {Sampling(0.7, 6)}
