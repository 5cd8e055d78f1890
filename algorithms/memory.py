"""Estimate the memory of a run before it starts."""

from __future__ import annotations

from typing import Any

import torch

from agents.policies.models import MOST_LOGITS, cache_shape
from agents.policies.weights import training_dtypes
from algorithms.learner import LearnerConfig, check_precision

GIGA = 2**30


def estimate_memory(model: Any, config: LearnerConfig, episodes: int) -> dict[str, float]:
    """Approximate bytes by purpose.

    Weights, gradients, AdamW's two moments, the reference, keys and values are exact. Activations depend on the kind of
    layer; the estimate is right within a factor of two for Llama-like models. Trained weights are float32
    (`training_dtypes`); "autocast" is their copies in a lower precision. "cache" is for 1,000 tokens in each of
    `episodes` that run at a time, which makes it easy to scale. Raises as `check_precision` does.
    """
    shape = model.config.get_text_config()
    parameters = [(t, dtype) for t, dtype in training_dtypes(model) if isinstance(t, torch.nn.Parameter)]
    trained = 4.0 * sum(p.numel() for p, _ in parameters if p.requires_grad)
    in_float32 = sum(p.numel() for p, dtype in parameters if dtype == torch.float32)
    width = shape.hidden_size
    layers, heads, head_dim = cache_shape(model.config)
    feed_forward = getattr(shape, "intermediate_size", None) or 4 * width
    computed = check_precision(config.precision, model.device).itemsize
    sampled = next(dtype for _, dtype in parameters if dtype.is_floating_point)
    tokens = config.micro_batch_tokens
    of_a_layer = tokens * computed * (10 * width + 4 * heads * head_dim + 4 * feed_forward)
    activations = (
        tokens * computed * width * layers + of_a_layer if config.gradient_checkpointing else of_a_layer * layers
    )
    # In float32: the logits, their log-softmax and the gradient of either.
    logits = 4 * 4 * min(tokens * shape.vocab_size, MOST_LOGITS)
    return {
        "weights": float(sum(p.numel() * dtype.itemsize for p, dtype in parameters)),
        "gradients": trained,
        "optimizer": 2 * trained,
        "reference": trained if config.objective.kl_coef else 0.0,
        "autocast": float(in_float32 * computed) if computed < 4 else 0.0,
        "activations": float(activations + logits),
        "cache": 2.0 * episodes * 1000 * layers * heads * head_dim * sampled.itemsize,
    }


def describe_memory(model: Any, config: LearnerConfig, episodes: int) -> str:
    """The parts, their sum, and the memory of the device, in one line."""
    parts = estimate_memory(model, config, episodes)
    listed = ", ".join(f"{name} {_size(value)}" for name, value in parts.items() if value)
    return (
        f"memory, about: {listed} (for 1,000 tokens in each of {episodes} episodes); "
        f"together {_size(sum(parts.values()))}{_available(next(model.parameters()).device)}"
    )


def _available(device: torch.device) -> str:
    if device.type != "cuda":
        return ""
    free, total = torch.cuda.mem_get_info(device)
    return f", of {_size(free)} free on a device of {_size(total)}"


def _size(value: float) -> str:
    return f"{value / GIGA:.1f} GB" if value >= GIGA else f"{value / 2**20:.0f} MB"
