"""The estimated memory of a run, compared with its actual memory."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_module
from transformers import AutoModelForCausalLM

from agents.policies.lora import Lora, add_adapters
from algorithms.learner import Example, Learner, LearnerConfig, Portion
from algorithms.memory import GIGA, describe_memory, estimate_memory
from benchmarks.gpu import SHAPES
from tests.agents.toys import random_policy
from tests.algorithms.test_learner import samples
from tests.algorithms.test_trainer import learner_config


def examples_of(learner: Learner) -> list[Example]:
    batch, table, advantages = samples()
    return learner.examples(batch, table, advantages)


def test_weights_gradients_and_moments_are_counted_exactly() -> None:
    policy = random_policy()
    learner = Learner(policy.model, learner_config(kl_coef=0.1))
    learner._gradients([Portion(examples_of(learner), learner.objective)])
    parts = estimate_memory(policy.model, learner.config, episodes=3)
    tensors = list(policy.model.parameters())
    assert parts["weights"] == sum(t.nbytes for t in tensors)
    assert parts["gradients"] == sum(t.grad.nbytes for t in tensors)
    assert parts["reference"] == sum(t.nbytes for t in learner.reference.parameters())
    learner.optimizer.step()
    moments = [v for state in learner.optimizer.state.values() for v in state.values() if v.ndim]
    assert parts["optimizer"] == sum(t.nbytes for t in moments)


def kept_for_backward(config: LearnerConfig) -> int:
    """Bytes that one forward pass over five sequences keeps for its backward pass, weights apart."""
    policy = random_policy(layers=4)
    learner = Learner(policy.model, config)
    examples = examples_of(learner)
    own = {t.data_ptr() for t in policy.model.parameters()}
    sizes: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in own:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    names = ("kl", "entropy", "tokens", "max_log_ratio", "clip_fraction", "approx_kl")
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), learner._layers_checkpointed():
        learner._loss(examples, learner.objective, 1.0, dict.fromkeys(names, 0.0))
    return sum(sizes.values())


def test_activations_are_right_to_a_factor_of_two() -> None:
    model = random_policy(layers=4).model
    config = learner_config(micro_batch_tokens=5 * 64)  # five sequences, padded to 64
    whole = estimate_memory(model, config, 1)["activations"]
    assert whole / 2 < kept_for_backward(config) < whole * 2
    checkpointed = replace(config, gradient_checkpointing=True)
    assert kept_for_backward(checkpointed) < estimate_memory(model, checkpointed, 1)["activations"] < whole


def test_the_line_has_the_parts_and_the_sum() -> None:
    text = describe_memory(random_policy().model, learner_config(), episodes=7)
    for part in ("weights", "gradients", "optimizer", "activations", "cache", "together", "7 episodes"):
        assert part in text
    assert "reference" not in text  # without KL there is none


def preset(name: str, shape: str) -> tuple[Any, LearnerConfig, Any]:
    """The model of a preset without its weights, and its configuration."""
    with initialize_config_module("conf", version_base="1.3"):
        cfg = compose("config", [f"+experiment={name}"])
    with torch.device("meta"):
        dtype = getattr(torch, cfg.policy.dtype if cfg.policy.dtype != "auto" else "bfloat16")
        model = AutoModelForCausalLM.from_config(SHAPES[shape].config(), dtype=dtype)
    if lora := cfg.policy.get("lora"):
        add_adapters(model, Lora(lora.rank, lora.alpha), "model")
    changes = {key: cfg.trainer[key] for key in ("micro_batch_tokens", "gradient_checkpointing", "precision")}
    return model, learner_config(kl_coef=cfg.algo.kl_coef, **changes), cfg


@pytest.mark.parametrize(
    ("name", "shape", "gpu"),
    [
        ("alfworld_gigpo_qwen2.5_1.5b", "1.5b", 80), ("webshop_gigpo_qwen2.5_1.5b", "1.5b", 80),
        ("alfworld_gigpo_lora_24gb", "1.5b", 24), ("search_r1_qwen2.5_3b", "3b", 80), ("igpo_qwen2.5_7b", "7b", 80),
        ("mt_grpo_qwen2.5_7b", "7b", 80),
    ],
)  # fmt: skip
def test_presets_fit_into_the_gpu_that_they_name(name: str, shape: str, gpu: int) -> None:
    """While vLLM samples gradients and activations are not there, and while the weights are trained vLLM sleeps."""
    pytest.importorskip("peft")
    model, config, cfg = preset(name, shape)
    parts = estimate_memory(model, config, 1)
    learning = sum(parts.values()) - parts["cache"]
    kept = parts["weights"] + parts["optimizer"] + parts["reference"]
    assert learning < 0.8 * gpu * GIGA
    assert kept + cfg.rollout.gpu_memory * gpu * GIGA < 0.9 * gpu * GIGA


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_what_a_file_has_in_half_precision_is_counted_as_it_is_trained(dtype: torch.dtype) -> None:
    whole, half = random_policy().model, random_policy().model.to(dtype)
    config = replace(learner_config(kl_coef=0.1), precision="float32")
    assert estimate_memory(half, config, 3) == estimate_memory(whole, config, 3)


def test_copies_in_bfloat16_are_counted(monkeypatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    parts = estimate_memory(random_policy().model, learner_config(precision="bfloat16"), 3)
    assert parts["autocast"] == parts["weights"] / 2
