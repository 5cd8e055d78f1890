"""On-policy distillation: what the advantages are, and that the policy moves toward its teacher."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agents.policies.models import find_device
from agents.policies.tiny import build_model, build_tokenizer, vocabulary_size
from algorithms.estimators.opd import opd
from algorithms.reference import load_reference
from algorithms.trainer import Trainer
from algorithms.turn_table import TurnTable
from envs.pool import EnvPool
from tests.agents.corridors import Corridors
from tests.agents.toys import random_policy
from tests.algorithms.test_learner import logprobs_of
from tests.algorithms.test_trainer import make_trainer, without_times
from tests.golden.tables import single_turns


@pytest.fixture
def pool():
    with EnvPool(Corridors().make, 16) as pool:
        yield pool


def make(run: Path, pool: EnvPool, updates: int, estimator: Any = opd, **changes: Any) -> Trainer:
    """A random policy whose teacher is another one."""
    settings = {"groups": 2, "group_size": 4, "minibatches": 1, "kl_coef": 1.0, "kl_in": "reward", "kl_estimator": "k1"}
    teacher = random_policy(seed=1).model.requires_grad_(False)
    return make_trainer(
        run, pool, random_policy(), updates, estimator, reference=teacher, **{**settings, **changes}
    )  # fmt: skip


def test_the_advantage_is_the_difference_of_log_probabilities_and_the_teacher_comes_closer(
    tmp_path: Path, pool: EnvPool
) -> None:
    seen: list[tuple[np.ndarray, TurnTable]] = []

    def watched(table: TurnTable) -> np.ndarray:
        seen.append((advantages := opd(table), table))
        return advantages

    trainer = make(tmp_path / "run", pool, 12, watched, learning_rate=5e-3, final_learning_rate=5e-3)
    first, update = random_policy().model, trainer.learner.update
    samples: list[Any] = []
    trainer.learner.update = lambda of, *rest: (samples.append(of), update(of, *rest))[1]
    trainer.train()
    expected = [
        (logprobs_of(trainer.learner.reference, sample) - logprobs_of(first, sample)).detach() for sample in samples[0]
    ]
    np.testing.assert_allclose(seen[0][0], torch.cat(expected), atol=1e-4)
    kl = [line["train/kl"] for line in without_times(tmp_path / "run/metrics.jsonl") if "train/kl" in line]
    assert kl[0] == pytest.approx(-seen[0][0].mean())
    assert kl[-1] < 0.7 * kl[0]
    for weight, before in zip(
        trainer.learner.reference.parameters(), random_policy(seed=1).model.parameters(), strict=True
    ):
        assert torch.equal(weight, before)


def test_the_outcomes_that_are_added_are_those_of_the_environment_alone() -> None:
    table = single_turns([0, 0], [0.0, 1.0], tokens=np.array([2, 1]))
    taught = replace(table, token_signals={"token_reward": np.array([0.5, -1.0, 9.0])})
    credit = opd(taught, outcome_weight=0.5, normalize_by_std=False)
    np.testing.assert_allclose(credit, [0.5 - 0.25, -1.0 - 0.25, 9.0 + 0.25])


def test_a_resumed_run_keeps_its_teacher(tmp_path: Path, pool: EnvPool) -> None:
    make(tmp_path / "run", pool, 1).train()
    resumed = make(tmp_path / "run", pool, 2)
    resumed.resume()
    assert resumed.update == 1
    for weight, teacher in zip(
        resumed.learner.reference.parameters(), random_policy(seed=1).model.parameters(), strict=True
    ):
        assert torch.equal(weight, teacher)


def test_a_teacher_with_another_vocabulary_or_less_context_is_refused(tmp_path: Path) -> None:
    policy = random_policy()

    def save(name: str, tokenizer: Any, context: int) -> Path:
        size = vocabulary_size(tokenizer)
        model = build_model(size, width=8, layers=1, heads=1, feed_forward=8, context=context, seed=0)
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        return tmp_path / name

    read = load_reference(save("same", policy.tokenizer, policy.context_length), policy)
    assert not any(weight.requires_grad for weight in read.parameters())
    assert next(read.parameters()).device.type == find_device().type
    other = save("other", build_tokenizer(["quite another text"] * 20), policy.context_length)
    with pytest.raises(ValueError, match=r"algo\.reference=.*other has another vocabulary than the policy, of \d+ and"):
        load_reference(other, policy)
    with pytest.raises(ValueError, match=r"reads 64 ids, and the policy writes up to 512: set policy\.context=64"):
        load_reference(save("short", policy.tokenizer, 64), policy)
