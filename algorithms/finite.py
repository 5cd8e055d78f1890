"""Nothing that is not finite is learned from or saved: one such step would end a run in all its later weights.

verl skips the optimiser step in the same way; here it is also logged and counted, and after `MOST_SKIPPED` in a row
the run stops and names the episode.
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

logger = logging.getLogger(__name__)

MOST_SKIPPED = 3  # steps in a row that may be skipped before the run stops
NAMED = 5  # suspects that a message names

# The name of an episode (or of whatever a step learns from), and the part of the loss that comes from it alone.
Suspect: TypeAlias = tuple[str, Callable[[], Tensor]]


class NotFiniteError(ValueError):
    """Advantages, losses, gradients or weights are NaN or infinite."""


class FiniteSteps:
    """The optimiser steps of one model. A step that is not finite is skipped, logged and counted.

    The optimiser is not called for a skipped step, so its moments stay those of the steps that were taken.
    """

    def __init__(self, model: str) -> None:
        """`model` names what is trained in messages, such as "policy"."""
        self.model = model
        self.in_a_row = 0  # skipped since one was taken

    def take(
        self,
        parameters: Iterable[Tensor],
        optimizers: Sequence[torch.optim.Optimizer],
        grad_clip: float,
        loss: float,
        suspects: Sequence[Suspect],
    ) -> float | None:
        """One step with the gradients of `parameters`, clipped to the norm `grad_clip`, which are cleared. Returns
        their norm before that, or None where the step was skipped. Raises `NotFiniteError` as `skip` does.
        """
        parameters = list(parameters)
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, grad_clip))
        finite = math.isfinite(loss) and math.isfinite(norm)
        if finite:
            for optimizer in optimizers:
                optimizer.step()
            self.in_a_row = 0
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        if not finite:
            self.skip(f"the loss is {loss} and the norm of its gradient {norm}", _origin(parameters, suspects))
            return None
        return norm

    def skip(self, what: str, origin: str) -> None:
        """Log a step that is not taken, and why. Raises `NotFiniteError` where it is the last of too many in a row."""
        self.in_a_row += 1
        if self.in_a_row < MOST_SKIPPED:
            logger.warning("skipped a step of the %s: %s (%s)", self.model, what, origin)
            return
        raise NotFiniteError(
            f"{self.in_a_row} steps of the {self.model} in a row were not finite; the last: {what} ({origin})"
        )


def _origin(parameters: Sequence[Tensor], suspects: Sequence[Suspect]) -> str:
    """Where a loss or gradient that is not finite comes from: each suspect is tried alone."""
    if not all(bool(p.detach().isfinite().all()) for p in parameters):
        return "the weights themselves are not finite"
    guilty = [name for name, loss in suspects if not _finite_alone(parameters, loss)]
    names = list(dict.fromkeys(guilty or [name for name, _ in suspects]))
    told = ", ".join(names[:NAMED]) + (f", … ({len(names)} in all)" if len(names) > NAMED else "")
    return f"from {told}" if guilty else f"from no single one of {told}"


def _finite_alone(parameters: Sequence[Tensor], loss: Callable[[], Tensor]) -> bool:
    alone = loss()
    if alone.requires_grad:
        alone.backward()  # type: ignore[no-untyped-call]
    gradients = [p.grad for p in parameters if p.grad is not None]
    finite = all(bool(tensor.isfinite().all()) for tensor in (alone.detach(), *gradients))
    for parameter in parameters:
        parameter.grad = None
    return finite


def first_not_finite(values: NDArray[np.float64]) -> int | None:
    """The place of the first of `values` [K] that is NaN or infinite."""
    places = np.flatnonzero(~np.isfinite(values))
    return int(places[0]) if len(places) else None


def check_weights(model: Any, state: Any = None) -> None:
    """Raises `NotFiniteError` naming the first parameter of `model`, or tensor in `state`, that is not finite."""
    for name, tensor in (*model.named_parameters(), *_tensors(state, "state")):
        if tensor.is_floating_point() and not bool(tensor.detach().isfinite().all()):
            raise NotFiniteError(f"{name} is not finite, so it is not saved; the checkpoints before stay as they are")


def _tensors(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _tensors(inner, f"{name}.{key}")
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from _tensors(inner, f"{name}.{number}")
