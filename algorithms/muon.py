"""Muon in float32: the step of a matrix is its orthogonalised momentum.

`torch.optim.Muon` computes in bfloat16, which is slow on CPUs without bfloat16 instructions. There, the optimiser step
of the small policy takes twice as long as its forward and backward passes; in float32 it takes an eighth of their time.
Keller Jordan, https://kellerjordan.github.io/posts/muon/
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic iteration; with torch's defaults for the rest
STEPS = 5


@torch.no_grad()
def orthogonalise(matrices: Tensor) -> Tensor:
    """Matrices [N, A, B] with their singular values moved to about 1 by Newton-Schulz iterations."""
    if matrices.shape[1] > matrices.shape[2]:
        return orthogonalise(matrices.mT).transpose(1, 2)
    a, b, c = COEFFICIENTS
    x: Tensor = matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


class Muon(torch.optim.Optimizer):
    """As `torch.optim.Muon` without weight decay; matrices of one shape are made orthogonal together."""

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One step for every matrix that has a gradient."""
        assert closure is None, "Muon evaluates the loss once"
        for group in self.param_groups:
            alike: dict[torch.Size, list[Tensor]] = {}
            for matrix in group["params"]:
                if matrix.grad is not None:
                    alike.setdefault(matrix.shape, []).append(matrix)
            for (rows, columns), matrices in alike.items():
                updates = orthogonalise(torch.stack([self._momentum(m, group["momentum"]) for m in matrices]))
                rate = group["lr"] * max(1.0, rows / columns) ** 0.5
                for matrix, update in zip(matrices, updates.to(matrices[0].dtype), strict=True):
                    matrix.add_(update, alpha=-rate)

    def _momentum(self, matrix: Tensor, momentum: float) -> Tensor:
        """Nesterov's momentum of a matrix's gradient, in float32."""
        gradient = matrix.grad.float()  # type: ignore[union-attr]
        state = self.state[matrix]
        average = state.setdefault("momentum", torch.zeros_like(gradient)).lerp_(gradient, 1 - momentum)
        return gradient.lerp(average, momentum)
