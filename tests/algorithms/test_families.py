"""Models of all families in `tests.families` are trained, saved and resumed, with one small update each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from agents.policies.lora import Lora, add_adapters, merged_weights
from agents.policies.models import token_logprobs
from agents.samples import Sample
from algorithms.checkpoint import load_weights, save_checkpoint
from algorithms.finite import NotFiniteError
from algorithms.learner import Learner
from algorithms.turn_table import TurnTable
from tests.agents.toys import random_policy
from tests.algorithms.test_trainer import learner_config
from tests.families import FAMILIES, tiny_model

TARGETS = {"phimoe": ["q_proj", "k_proj", "v_proj", "o_proj"]}  # its router is a linear layer that peft breaks
pytestmark = pytest.mark.parametrize("family", FAMILIES)


def played(model: Any) -> tuple[list[Sample], TurnTable, np.ndarray]:
    """Four sequences of one turn each, with the model's log-probabilities; their table; advantages."""
    rng, samples = np.random.default_rng(0), []
    for row in range(4):
        sample = Sample()
        sample.extend(rng.integers(2, 300, 9).tolist())
        sample.extend(rng.integers(2, 300, 6).tolist(), [0.0] * 6, row)
        with torch.no_grad():
            logprobs = token_logprobs(model, torch.tensor([sample.ids]))[0].tolist()
        sample.logprobs = [logprobs[i - 1] if on else 0.0 for i, on in enumerate(sample.mask)]
        samples.append(sample)
    table = TurnTable(
        group=np.zeros(4, dtype=np.int64),
        episode=np.arange(4),
        turn=np.zeros(4, dtype=np.int64),
        reward=np.zeros(4),
        state=np.array(list("abcd"), dtype=object),
        valid=np.ones(4, dtype=np.bool_),
        tokens=np.full(4, 6),
    )
    return samples, table, np.array([-1.0, 1.0, -1.0, 1.0])


def update(learner: Learner, batch: tuple[list[Sample], TurnTable, np.ndarray], rate: float = 1e-3) -> dict[str, float]:
    return learner.update(*batch, np.random.default_rng(0), rate)


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []


def is_odd(family: str) -> bool:
    """Whether a family gets the second of two cases of a test."""
    return list(FAMILIES).index(family) % 2 == 1


def zero(model: Any, names: str = "") -> None:
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if names in name:
                tensor.zero_()


def test_weights_of_half_precision_take_the_smallest_steps(family: str) -> None:
    """At the published rate of 1e-6, of what has a gradient nearly all moves, and all stays finite."""
    dtype = (torch.bfloat16, torch.float16)[is_odd(family)]
    model = tiny_model(family).to(dtype)
    learner = Learner(model, learner_config(minibatches=1, weight_decay=0.0, grad_clip=1e9))
    before = {p: p.detach().clone() for p in model.parameters()}
    metrics = update(learner, played(model), 1e-6)
    assert np.isfinite(list(metrics.values())).all()
    had, moved = 0, 0
    for parameter, old in before.items():
        assert parameter.dtype == torch.float32
        assert parameter.isfinite().all()
        step = learner.optimizer.state.get(parameter, {}).get("exp_avg", torch.zeros(1))
        had += int((step.abs() > 1e-6).sum())  # beside Adam's epsilon
        moved += int(((step.abs() > 1e-6) & (parameter != old)).sum())
    assert had > 1000
    assert moved > 0.9 * had


def test_a_checkpoint_is_read_back_and_equals_the_weights_of_engines(family: str, tmp_path: Path) -> None:
    """Whatever transformers calls a tensor on the disk, and however it cuts it."""
    model, tokenizer = tiny_model(family), random_policy().tokenizer
    expected = weights(model)
    save_checkpoint(tmp_path / "saved", model, tokenizer)
    assert_equal(dict(merged_weights(model)), load_file(tmp_path / "saved/model.safetensors"))
    zero(model)
    load_weights(tmp_path / "saved", model)
    assert_equal(weights(model), expected)


def test_an_update_after_a_resume_is_the_one_without(family: str, tmp_path: Path) -> None:
    """With KL, whose reference is read from the first checkpoint."""
    config = learner_config(minibatches=1, kl_coef=0.1)
    model, tokenizer = tiny_model(family), random_policy().tokenizer
    learner, batch = Learner(model, config), played(model)
    save_checkpoint(tmp_path / "first", model, tokenizer)
    update(learner, batch)
    state = {"optimizer": learner.optimizer.state_dict()}
    save_checkpoint(tmp_path / "second", model, tokenizer, state)

    other = tiny_model(family)
    zero(other)
    resumed = Learner(other, config)
    load_weights(tmp_path / "second", other)
    load_weights(tmp_path / "first", resumed.reference)
    resumed.optimizer.load_state_dict(torch.load(tmp_path / "second/trainer.pt", weights_only=True)["optimizer"])
    assert update(resumed, batch) == update(learner, batch)
    assert_equal(weights(other), weights(model))


def test_adapters_start_as_their_own_reference_and_are_read_back(family: str, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    model, tokenizer = tiny_model(family).to(torch.bfloat16), random_policy().tokenizer
    add_adapters(model, Lora(rank=2, targets=TARGETS.get(family, "all-linear")), "model")
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.1, generator=generator)
    save_checkpoint(tmp_path / "first", model, tokenizer)
    learner, batch = Learner(model, learner_config(minibatches=1, kl_coef=0.1)), played(model)
    kls = [update(learner, batch)["train/kl"] for _ in range(2)]
    assert kls[0] < 1e-5 < kls[1]
    expected = weights(model)
    save_checkpoint(tmp_path / "second", model, tokenizer)
    zero(model, ".lora_")
    load_weights(tmp_path / "second", model)
    assert_equal(weights(model), expected)
    load_weights(tmp_path / "first", model)
    assert_equal(weights(model), weights(learner.reference))


def test_values_that_are_not_finite_are_neither_learned_nor_saved(family: str, tmp_path: Path) -> None:
    where = ("advantage", "weight")[is_odd(family)]
    model, tokenizer = tiny_model(family), random_policy().tokenizer
    samples, table, advantages = played(model)
    learner = Learner(model, learner_config(minibatches=1))
    if where == "advantage":
        advantages = np.where(np.arange(4) == 2, np.inf, advantages)
    else:
        with torch.no_grad():
            model.get_output_embeddings().weight[5] = torch.nan
        with pytest.raises(NotFiniteError):
            save_checkpoint(tmp_path / "saved", model, tokenizer)
        assert not (tmp_path / "saved").exists()
    before = weights(model)
    metrics = update(learner, (samples, table, advantages))
    assert metrics["train/skipped_steps"] == 1.0
    for name, tensor in weights(model).items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0, equal_nan=True)
