"""Low-rank adapters (LoRA, arXiv 2106.09685) through peft: trained in place of a model's own weights.

The adapters are put into the model itself, which stays the class that it was. With them off it is the model that was
loaded, which makes it its own reference for KL.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
ADAPTER = "default"


@dataclass(frozen=True)
class Lora:
    """The adapters' size: W + alpha / rank · B A, with A [rank, in] drawn at random and B [out, rank] zero at first."""

    rank: int = 32
    alpha: int = 64
    targets: str | list[str] = "all-linear"  # names of the layers that get adapters
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"policy.lora.rank must be at least 1, got {self.rank}")


def has_adapters(model: Any) -> bool:
    """Whether adapters are what is trained of this model."""
    return bool(getattr(model, "_hf_peft_config_loaded", False))


def add_adapters(model: Any, lora: Lora, name: str) -> None:
    """Put fresh adapters, in float32, into `model`, and freeze everything else. `name` is what the model is called."""
    from peft import LoraConfig

    targets = lora.targets if isinstance(lora.targets, str) else list(lora.targets)
    config = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, target_modules=targets, lora_dropout=0.0, bias="none", task_type="CAUSAL_LM"
    )
    model.name_or_path = name  # is written beside the adapters, and finds the model again
    with torch.random.fork_rng():
        torch.manual_seed(lora.seed)
        model.add_adapter(config, ADAPTER)
    _train_adapters(model)


def load_adapters(model: Any, folder: Path) -> None:
    """Put the adapters of `folder` into `model`, to be trained further."""
    from peft import PeftConfig

    config = PeftConfig.from_pretrained(str(folder))
    model.name_or_path = config.base_model_name_or_path
    model.add_adapter(config, ADAPTER)
    read_adapters(model, folder)
    _train_adapters(model)


def read_adapters(model: Any, folder: Path) -> None:
    """Give the adapters that `model` has the weights of `folder`."""
    from peft import set_peft_model_state_dict

    result: Any = set_peft_model_state_dict(model, load_file(folder / ADAPTER_WEIGHTS), ADAPTER)
    if result.unexpected_keys:
        raise ValueError(f"{folder} holds adapters of another model: {sorted(result.unexpected_keys)[:3]} …")


def _train_adapters(model: Any) -> None:
    for name, parameter in model.named_parameters():
        ours = ".lora_" in name
        parameter.requires_grad_(ours)
        if ours:
            parameter.data = parameter.data.float()  # small steps vanish in bfloat16


@contextmanager
def without_adapters(model: Any) -> Iterator[None]:
    """In this block `model` is what it was before adapters were trained."""
    model.disable_adapters()
    try:
        yield
    finally:
        model.enable_adapters()


def merged_weights(model: Any) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors as the model would have them without adapters beside its weights, one at a time.

    Tied tensors come once, under their first name. The model itself is left as it is.
    """
    layers = {name: module for name, module in model.named_modules() if hasattr(module, "get_delta_weight")}
    for name, tensor in model.named_parameters():
        owner, _, last = name.rpartition(".base_layer.")
        if owner in layers:
            merged = tensor.detach()
            if last == "weight":
                merged = (merged.float() + layers[owner].get_delta_weight(ADAPTER).detach()).to(tensor.dtype)
            yield f"{owner}.{last}", merged
        elif ".lora_" not in name:
            yield name, tensor.detach()
