"""Decide which weights of a model are trained and in what dtype, and check that a folder contains all of them."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

HALF = (torch.float16, torch.bfloat16)
LOW_RANK = ".lora_"  # in the names of peft's low-rank matrices


def has_adapters(model: Any) -> bool:
    """Whether only adapters of this model are trained."""
    return bool(getattr(model, "_hf_peft_config_loaded", False))


def training_dtypes(model: Any) -> Iterator[tuple[Tensor, torch.dtype]]:
    """The parameters and buffers of `model`, each with the dtype that it has while the model is trained.

    Trained weights are float32: bfloat16 would round away a step of 1e-6, and Adam divides by zero in float16. The
    frozen weights are float32 as well, unless only low-rank matrices are trained, which work next to weights of any
    dtype. Then frozen weights keep their dtype, except float16, in which gradients vanish or become infinite.
    """
    low_rank_only = all(LOW_RANK in name for name, p in model.named_parameters() if p.requires_grad)
    kept = (torch.bfloat16,) if low_rank_only else ()
    for tensor in chain(model.parameters(), model.buffers()):
        widened = tensor.dtype in HALF and (tensor.requires_grad or tensor.dtype not in kept)
        yield tensor, torch.float32 if widened else tensor.dtype


def train_in_float32(model: Any) -> None:
    """Give the tensors of `model` their `training_dtypes`, in place. Log a warning if frozen weights become larger."""
    frozen = set()
    for tensor, dtype in training_dtypes(model):
        if dtype != tensor.dtype:
            if not tensor.requires_grad:
                frozen.add(str(tensor.dtype).removeprefix("torch."))
            tensor.data = tensor.data.to(dtype)
    if frozen and has_adapters(model):
        logger.warning(
            "frozen weights in %s are converted to float32: gradients do not fit into float16, and adapters that train "
            "whole tensors (modules_to_save, biases) need the whole model in their dtype",
            ", ".join(sorted(frozen)),
        )


def copy_trained(model: Any) -> Any:
    """A copy of `model` that shares its frozen weights: a model with adapters needs memory only for these."""
    return copy.deepcopy(model, {id(p): p for p in model.parameters() if not p.requires_grad})


def check_tensors(folder: Path | str, missing: Iterable[str], extra: Iterable[str], reshaped: Iterable[str]) -> None:
    """Raise `ValueError` naming the tensors that `folder` lacks, has in addition, or has in another shape."""
    wrong = {"missing": sorted(missing), "extra": sorted(extra), "of another shape": sorted(reshaped)}
    problems = [
        f"{what} {names[:3]}{f' and {len(names) - 3} more' * (len(names) > 3)}"
        for what, names in wrong.items()
        if names
    ]
    if problems:
        raise ValueError(f"{folder} holds the weights of another model: {', '.join(problems)}")
