"""Low-rank adapters (LoRA, arXiv 2106.09685) through peft: trained in place of a model's own weights.

The adapters are inserted into the model itself, which keeps its class. Adapter folders made elsewhere may also train
whole modules (`modules_to_save`) and single tokens (`trainable_token_indices`).
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import revert_weight_conversion

from agents.policies.models import one_line
from agents.policies.sharded import divided_like, whole
from agents.policies.weights import LOW_RANK, check_tensors

ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER = "default"
PREFIX = "base_model.model."
KINDS = ("LORA", "TRAINABLE_TOKENS")  # peft's names
# Parts of the names of tensors that adapters add to a model.
_BESIDE = (LOW_RANK, ".original_module.", ".trainable_tokens_")


@dataclass(frozen=True)
class Lora:
    """The adapters' size. W + alpha / rank · B A, where A [rank, in] is random and B [out, rank] is zero at first."""

    rank: int = 32
    alpha: int = 64
    targets: str | list[str] = "all-linear"  # names of the layers that get adapters
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"policy.lora.rank must be at least 1, got {self.rank}")


def add_adapters(model: Any, lora: Lora, name: str) -> None:
    """Insert new float32 adapters into `model` and freeze everything else. `name` is the name of the model."""
    from peft import LoraConfig

    targets = lora.targets if isinstance(lora.targets, str) else list(lora.targets)
    config = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, target_modules=targets, lora_dropout=0.0, bias="none", task_type="CAUSAL_LM"
    )
    model.name_or_path = name  # written with the adapters, to find the model again
    with torch.random.fork_rng():
        torch.manual_seed(lora.seed)
        try:
            _insert(model, config)
        except Exception as error:  # unknown names, or layers that cannot have adapters
            raise ValueError(f"policy.lora.targets={lora.targets}: {one_line(error)}") from error


def add_adapters_of(model: Any, folder: Path) -> None:
    """Insert adapters of the shape in `folder` into `model`, for further training; `read_adapters` loads the weights.

    Raises peft's errors, and `ValueError` for adapters of another kind, or of a model with fewer layers.
    """
    from peft import PeftConfig

    config = PeftConfig.from_pretrained(str(folder))
    if config.peft_type not in KINDS:
        kind = getattr(config.peft_type, "value", config.peft_type)
        raise ValueError(f"these adapters are of the kind {kind}; supported kinds: {', '.join(KINDS)}")
    config.inference_mode = False  # otherwise peft would freeze them
    model.name_or_path = config.base_model_name_or_path
    _insert(model, config)


def _insert(model: Any, config: Any) -> None:
    """Insert low-rank matrices in float32; peft computes with them next to weights of any dtype."""
    model.add_adapter(config, ADAPTER)
    for name, parameter in model.named_parameters():
        if LOW_RANK in name:
            parameter.data = parameter.data.float()
    _check_depth(model, config)
    _set_adapter_weights(model, _adapter_weights(model))


def _check_depth(model: Any, config: Any) -> None:
    """Raise `ValueError` if the layers in `config` end before the model's do: the adapters are of a smaller model.

    peft stores "all-linear" as the names of all layers, and would insert the adapters into a deeper model silently.
    """
    named = config.target_modules
    if not named or isinstance(named, str) or getattr(config, "layers_to_transform", None) is not None:
        return
    found = [re.match(r"(.*?)\.(\d+)\.", name) for name, _ in model.named_parameters() if LOW_RANK in name]
    for stack in {match[1] for match in found if match}:
        numbers = {int(match[2]) for match in found if match and match[1] == stack}
        depth = len(model.get_submodule(stack))
        if numbers == set(range(len(numbers))) and len(numbers) < depth:
            raise ValueError(
                f"these adapters cover the first {len(numbers)} of the {depth} layers in {stack}, and seem to belong "
                "to a model with fewer layers; if this is intended, set layers_to_transform in their configuration"
            )


def _adapter_weights(model: Any) -> dict[str, Tensor]:
    """The saved weights of the adapters of `model`, by their names in the folder without `PREFIX`."""
    from peft import get_peft_model_state_dict

    own: dict[str, Tensor] = get_peft_model_state_dict(model, adapter_name=ADAPTER, save_embedding_layers=False)
    return own


def _set_adapter_weights(model: Any, weights: dict[str, Tensor]) -> None:
    """Load `weights` into the adapters of `model`. Raises `ValueError` naming weights that peft has no place for."""
    from peft import set_peft_model_state_dict

    result: Any = set_peft_model_state_dict(model, weights, ADAPTER)
    lost = result.unexpected_keys
    if lost:
        raise ValueError(f"peft cannot read back the adapters of {sorted(lost)[:3]}: choose other layers")


def adapter_weights(model: Any) -> dict[str, Tensor]:
    """The whole weights of the adapters of `model`, by their names in a folder. All ranks must ask for them."""
    return {PREFIX + name: whole(tensor.detach()).contiguous() for name, tensor in _adapter_weights(model).items()}


def save_adapters(folder: Path, model: Any, weights: dict[str, Tensor]) -> None:
    """Write the adapters of `model` in peft's format, without the model's embeddings."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    model.peft_config[ADAPTER].save_pretrained(str(folder))


def read_adapters(model: Any, folder: Path) -> None:
    """Load the weights in `folder` into the adapters of `model`. Raises `ValueError` naming tensors that do not fit.

    The folder may also hold weights of the model itself, as some hold its embeddings, if they equal the model's.
    """
    # peft writes the prefix of its own wrapper, which is absent here.
    weights = {name.removeprefix(PREFIX): tensor for name, tensor in load_file(folder / ADAPTER_WEIGHTS).items()}
    own, everything = _adapter_weights(model), model.state_dict()
    reshaped = {name for name in own.keys() & weights.keys() if own[name].shape != weights[name].shape}
    extra = weights.keys() - own.keys()
    also = {name: whole(everything[name]) for name in sorted(extra & everything.keys())}
    same = {name for name, tensor in also.items() if torch.equal(tensor, weights[name].to(tensor))}
    if other := sorted(also.keys() - same):
        raise ValueError(
            f"{folder} holds full weights in addition to its adapters, {other[:3]}: merge them into the model first"
        )
    check_tensors(folder, own.keys() - weights.keys(), extra - same, reshaped)
    _set_adapter_weights(model, {name: divided_like(weights[name], tensor) for name, tensor in own.items()})


def merged_weights(model: Any) -> Iterator[tuple[str, Tensor]]:
    """The weights that `save_pretrained` would write if the adapters were merged into them.

    Tied tensors come once, under their first name. They come one at a time, except where transformers stores them
    differently from how it keeps them in memory (experts, for example). The model itself is not changed. All ranks
    must ask for the weights of a sharded model.
    """
    merged = _merged(model)
    if getattr(model, "_weight_conversions", None) or get_model_conversion_mapping(model, add_legacy=False):
        yield from revert_weight_conversion(model, dict(merged)).items()
    else:
        yield from merged


def _merged(model: Any) -> Iterator[tuple[str, Tensor]]:
    """The same, with the names and shapes of the model in memory."""
    layers = {
        name: module
        for name, module in model.named_modules()
        if hasattr(module, "get_delta_weight") or hasattr(module, "get_merged_weights")
    }
    given: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        owner, _, last = name.rpartition(".base_layer.")
        adapted = owner in layers and last == "weight"
        if any(part in name for part in _BESIDE) or (id(tensor) in given and not adapted):
            continue
        given.add(id(tensor))
        if owner in layers:
            merged = _merged_tensor(layers[owner], last, tensor.detach())
            yield f"{owner.removesuffix('.token_adapter')}.{last}", whole(merged)
        else:
            yield name.replace(f".modules_to_save.{ADAPTER}.", "."), whole(tensor.detach())


def _merged_tensor(layer: Any, last: str, tensor: Tensor) -> Tensor:
    """The weight or bias `tensor` of the layer under the adapter `layer`, merged with the adapter."""
    if hasattr(layer, "get_merged_weights"):  # adapters of single tokens
        merged: Tensor = layer.get_merged_weights([ADAPTER]).detach()
    elif getattr(layer, "lora_variant", None) or any(getattr(layer, "lora_bias", {}).values()):  # DoRA, say
        copied = copy.deepcopy(layer).float()
        try:
            copied.merge(adapter_names=[ADAPTER])
        except Exception as error:  # for example a bias that the layer itself lacks
            raise ValueError(f"these adapters cannot be merged, use rollout=local: {one_line(error)}") from error
        merged = getattr(copied.base_layer, last).detach()
    elif last == "weight":
        merged = tensor.float() + layer.get_delta_weight(ADAPTER).detach()
    else:
        return tensor
    return merged.to(tensor.dtype)
