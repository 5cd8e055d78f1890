"""Skip optimiser steps that are not finite, and never save weights that are not finite.

One such step would make all later weights NaN. verl skips it in the same way; here it is also logged and counted. After
`MOST_SKIPPED` skipped steps in a row, the run stops and names the episode.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.policies.sharded import clip_gradients, own_part

logger = logging.getLogger(__name__)

MOST_SKIPPED = 3  # after so many skipped steps in a row the run stops
NAMED = 5  # origins that a message lists

# The name of an episode (or of another origin), and its own part of the loss.
LossPart: TypeAlias = tuple[str, Callable[[], Tensor]]


class NotFiniteError(ValueError):
    """Advantages, losses, gradients or weights are NaN or infinite."""


class FiniteSteps:
    """The optimiser steps of one model. A step that is not finite is skipped, logged and counted.

    The optimiser is not called for a skipped step, so its moments do not change.
    """

    def __init__(self, model: str) -> None:
        """`model` is the name of the trained model in messages, such as "policy"."""
        self.model = model
        self.in_a_row = 0  # steps skipped since the last one taken

    def take(
        self,
        parameters: Iterable[Tensor],
        optimizers: Sequence[torch.optim.Optimizer],
        grad_clip: float,
        loss: float,
        loss_parts: Sequence[LossPart],
    ) -> float | None:
        """Take one step with the gradients of `parameters`, clipped to the norm `grad_clip`, then clear them.

        Returns the norm before clipping, or None if the step was skipped. Raises `NotFiniteError` as `skip` does.
        """
        parameters = list(parameters)
        norm = clip_gradients(parameters, grad_clip)
        finite = math.isfinite(loss) and math.isfinite(norm)
        if finite:
            for optimizer in optimizers:
                optimizer.step()
            self.in_a_row = 0
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        if not finite:
            self.skip(f"the loss is {loss} and the norm of its gradient {norm}", _origin(parameters, loss_parts))
            return None
        return norm

    def skip(self, what: str, origin: str) -> None:
        """Log a skipped step and the reason. Raises `NotFiniteError` after too many in a row."""
        self.in_a_row += 1
        if self.in_a_row < MOST_SKIPPED:
            logger.warning("skipped a step of the %s: %s (%s)", self.model, what, origin)
            return
        raise NotFiniteError(
            f"{self.in_a_row} steps of the {self.model} in a row were not finite; the last: {what} ({origin})"
        )


def _origin(parameters: Sequence[Tensor], loss_parts: Sequence[LossPart]) -> str:
    """The source of a loss or gradient that is not finite; each part of the loss is computed separately."""
    if not all(bool(own_part(p.detach()).isfinite().all()) for p in parameters):
        return "the weights themselves are not finite"
    guilty = [name for name, loss in loss_parts if not _is_finite(parameters, loss)]
    names = list(dict.fromkeys(guilty or [name for name, _ in loss_parts]))
    listed = ", ".join(names[:NAMED]) + (f", … ({len(names)} in all)" if len(names) > NAMED else "")
    return f"from {listed}" if guilty else f"from no single one of {listed}"


def _is_finite(parameters: Sequence[Tensor], compute_loss: Callable[[], Tensor]) -> bool:
    loss = compute_loss()
    if loss.requires_grad:
        loss.backward()  # type: ignore[no-untyped-call]
    gradients = [p.grad for p in parameters if p.grad is not None]
    finite = all(bool(own_part(tensor).isfinite().all()) for tensor in (loss.detach(), *gradients))
    for parameter in parameters:
        parameter.grad = None
    return finite


def first_not_finite(values: NDArray[np.float64]) -> int | None:
    """The index of the first of `values` [K] that is NaN or infinite."""
    places = np.flatnonzero(~np.isfinite(values))
    return int(places[0]) if len(places) else None


def check_weights(weights: Iterable[tuple[str, Tensor]], state: Any = None) -> None:
    """Raises `NotFiniteError` naming the first of the named `weights`, or tensor in `state`, that is not finite."""
    for name, tensor in (*weights, *tensors_in(state, "state")):
        if tensor.is_floating_point() and not bool(tensor.detach().isfinite().all()):
            raise NotFiniteError(f"{name} is not finite, so it is not saved; earlier checkpoints are kept")


def tensors_in(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    """The tensors in nested dicts, lists and tuples, by their names; `name` is that of `value`."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from tensors_in(inner, f"{name}.{key}")
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from tensors_in(inner, f"{name}.{number}")
