"""Low-rank adapters (LoRA, arXiv 2106.09685) through peft: trained in place of a model's own weights.

The adapters are put into the model itself, which stays the class that it was.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import revert_weight_conversion

from agents.policies.weights import LOW_RANK, check_tensors

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
ADAPTER = "default"
PREFIX = "base_model.model."


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
        _add(model, config)


def add_adapters_of(model: Any, folder: Path) -> None:
    """Put adapters as `folder` has them into `model`, to be trained further; `read_adapters` gives them its weights."""
    from peft import PeftConfig

    config = PeftConfig.from_pretrained(str(folder))
    config.inference_mode = False  # or peft would freeze them
    model.name_or_path = config.base_model_name_or_path
    _add(model, config)


def _add(model: Any, config: Any) -> None:
    """Of low-rank matrices in float32, which peft computes with beside weights of any dtype."""
    model.add_adapter(config, ADAPTER)
    for name, parameter in model.named_parameters():
        if LOW_RANK in name:
            parameter.data = parameter.data.float()


def read_adapters(model: Any, folder: Path) -> None:
    """Give the adapters of `model` the weights in `folder`. Raises `ValueError` naming the tensors that do not fit."""
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    # peft writes the prefix of a wrapper of its own, which is not there.
    weights = {name.removeprefix(PREFIX): tensor for name, tensor in load_file(folder / ADAPTER_WEIGHTS).items()}
    own = get_peft_model_state_dict(model, adapter_name=ADAPTER, save_embedding_layers=False)
    reshaped = {name for name in own.keys() & weights.keys() if own[name].shape != weights[name].shape}
    beside = model.state_dict().keys()  # embeddings of a changed vocabulary are written along with adapters
    check_tensors(folder, own.keys() - weights.keys(), weights.keys() - own.keys() - beside, reshaped)
    set_peft_model_state_dict(model, weights, ADAPTER)


def merged_weights(model: Any) -> Iterator[tuple[str, Tensor]]:
    """The weights as `save_pretrained` would write them if what adapters have learned were part of them.

    Tied tensors come once, under their first name. They come one at a time, except where transformers writes them
    otherwise than it keeps them (experts, say). The model itself is left as it is.
    """
    merged = _merged(model)
    if getattr(model, "_weight_conversions", None) or get_model_conversion_mapping(model, add_legacy=False):
        yield from revert_weight_conversion(model, dict(merged)).items()
    else:
        yield from merged


def _merged(model: Any) -> Iterator[tuple[str, Tensor]]:
    """The same with the names and shapes that tensors have in the model."""
    layers = {name: module for name, module in model.named_modules() if hasattr(module, "get_delta_weight")}
    given: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) in given or LOW_RANK in name or ".original_module." in name:
            continue
        given.add(id(tensor))
        owner, _, last = name.rpartition(".base_layer.")
        if owner in layers:
            merged = tensor.detach()
            if last == "weight":
                merged = (merged.float() + layers[owner].get_delta_weight(ADAPTER).detach()).to(tensor.dtype)
            yield f"{owner}.{last}", merged
        else:
            yield name.replace(f".modules_to_save.{ADAPTER}.", "."), tensor.detach()
