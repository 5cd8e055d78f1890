"""Models whose weights are divided among processes by torch's FSDP2 (`fully_shard`).

Each parameter of such a model is a `DTensor`: every process stores a part, and the parts are gathered where they are
needed. All processes must therefore run the model equally often. Other code asks three things here: to compute
something inside the model (`in_model`), for a whole tensor (`whole`), or to write one (`assign`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MethodType
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

T = TypeVar("T")
METHOD = "compute_inside"


def shard(model: Any, mesh: Any, dtype: torch.dtype, *, offload: bool = False) -> None:
    """Divide the parameters of `model` over the processes of `mesh`, in place.

    Each layer is gathered when it is used. What is not in a layer (embeddings, the last norm, the head) belongs to the
    model and is gathered with it, so that tied embeddings stay tied. Matrices are multiplied in `dtype`; gradients are
    summed in float32, not averaged, since the divisor of a loss counts the tokens of all processes. `offload` keeps
    what is not in use in the memory of the CPU.
    """
    from torch.distributed.fsdp import (
        CPUOffloadPolicy,
        FSDPModule,
        MixedPrecisionPolicy,
        OffloadPolicy,
        fully_shard,
        register_fsdp_forward_method,
    )
    from transformers.modeling_layers import GradientCheckpointingLayer

    half = None if dtype == torch.float32 else dtype
    options: dict[str, Any] = {
        "mesh": mesh,
        "mp_policy": MixedPrecisionPolicy(param_dtype=half, reduce_dtype=torch.float32 if half else None),
        "offload_policy": CPUOffloadPolicy(pin_memory=torch.cuda.is_available()) if offload else OffloadPolicy(),
    }
    for layer in [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]:
        fully_shard(layer, **options)
    setattr(model, METHOD, MethodType(lambda _, ask: ask(), model))
    fully_shard(model, **options)
    register_fsdp_forward_method(model, METHOD)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo has no other sum with a factor


def is_sharded(model: Any) -> bool:
    """Whether the parameters of `model` are divided among processes."""
    return hasattr(model, METHOD)


def in_model(model: Any, ask: Callable[[], T]) -> T:
    """The result of `ask`, which uses parts of `model`. Its tensors have gradients as usual.

    A sharded model gathers its parameters only inside its own forward pass, so `ask` runs there.
    """
    return cast(T, getattr(model, METHOD)(ask)) if is_sharded(model) else ask()


def own_class(model: Any) -> Any:
    """The class of `model` before it was sharded, which gives it another."""
    return type(model).__bases__[1] if is_sharded(model) else type(model)


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be divided. All processes must ask for it."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def own_part(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process stores; the tensor itself where it is not divided."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def divided_like(tensor: Tensor, example: Tensor) -> Tensor:
    """The whole `tensor`, divided as `example` is. Without communication: all processes have the same tensor."""
    if not hasattr(example, "full_tensor"):
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor

    example = cast(DTensor, example)
    return distribute_tensor(
        tensor.to(example.to_local().device, example.dtype), example.device_mesh, example.placements, src_data_rank=None
    )


def assign(target: Tensor, tensor: Tensor) -> None:
    """Copy the whole `tensor` into `target`, which may be divided."""
    with torch.no_grad():
        target.copy_(divided_like(tensor, target))


def clip_gradients(parameters: Sequence[Tensor], limit: float) -> float:
    """Scale the gradients of all `parameters` to a norm of at most `limit`. Returns their norm before.

    Some of the parameters may be divided, such as those of a critic, and others not, such as its head.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    kinds = [[g for g in gradients if hasattr(g, "full_tensor") == divided] for divided in (True, False)]
    norms = [whole(torch.nn.utils.get_total_norm(kind)) for kind in kinds if kind]
    norm = torch.linalg.vector_norm(torch.stack(norms)) if len(norms) > 1 else norms[0] if norms else torch.zeros(())
    factor = torch.clamp(limit / (norm + 1e-6), max=1.0)  # as torch.nn.utils.clip_grads_with_norm_
    for gradient in gradients:
        own_part(gradient).mul_(factor.to(gradient.device))
    return float(norm)


def whole_state(module: torch.nn.Module) -> dict[str, Tensor]:
    """The state of a module with whole tensors; tensors that it shares stay shared. All processes must ask for it."""
    made: dict[int, Tensor] = {}
    state = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        if id(tensor) not in made:
            made[id(tensor)] = whole(tensor.detach())
        state[name] = made[id(tensor)]
    return state


def load_whole_state(module: torch.nn.Module, state: Mapping[str, Tensor]) -> None:
    """The inverse of `whole_state`. Raises `RuntimeError` for tensors that do not fit."""
    own = module.state_dict(keep_vars=True)
    fitting = {name: divided_like(tensor, own[name]) if name in own else tensor for name, tensor in state.items()}
    module.load_state_dict(fitting)


def optimizer_state(optimizer: torch.optim.Optimizer, names: Mapping[str, Tensor]) -> dict[str, Any]:
    """The state of an optimiser by the names of its parameters, with whole tensors. All processes must ask for it.

    `names` has all of its parameters. The state can be loaded by any number of processes.
    """
    name_of = {id(parameter): name for name, parameter in names.items()}
    state = {
        name_of[id(parameter)]: {key: whole(v) if isinstance(v, Tensor) else v for key, v in values.items()}
        for parameter, values in optimizer.state.items()
    }
    groups = [
        {**{k: v for k, v in group.items() if k != "params"}, "params": [name_of[id(p)] for p in group["params"]]}
        for group in optimizer.param_groups
    ]
    return {"state": state, "groups": groups}


def load_optimizer_state(
    optimizer: torch.optim.Optimizer, names: Mapping[str, Tensor], saved: Mapping[str, Any]
) -> None:
    """The inverse of `optimizer_state`. Raises `ValueError` for the state of other parameters."""
    if "groups" not in saved:
        raise ValueError("the optimiser's state was saved by an earlier version of polyturn")
    parameters = [list(group["params"]) for group in optimizer.param_groups]
    name_of = {id(parameter): name for name, parameter in names.items()}
    own = [[name_of[id(p)] for p in group] for group in parameters]
    if own != [group["params"] for group in saved["groups"]]:
        raise ValueError("the optimiser's state belongs to other parameters")
    order = [name for group in own for name in group]
    number = {name: place for place, name in enumerate(order)}

    def fitting(name: str, value: Any) -> Any:
        divided = isinstance(value, Tensor) and value.shape == names[name].shape
        return divided_like(value, names[name]) if divided else value

    state = {
        number[name]: {key: fitting(name, value) for key, value in values.items()}
        for name, values in saved["state"].items()
    }
    groups = [
        {**{k: v for k, v in group.items() if k != "params"}, "params": [number[name] for name in group["params"]]}
        for group in saved["groups"]
    ]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
