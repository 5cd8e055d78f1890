"""Muon in float32 takes the same steps as torch's, which also computes in float32 there."""

from collections.abc import Callable

import pytest
import torch

from algorithms.muon import Muon

SHAPES = [(64, 32), (32, 64), (64, 32), (48, 48)]


def _trained(optimizer: Callable[..., torch.optim.Optimizer], **settings: float) -> list[torch.Tensor]:
    """Matrices of `SHAPES` after five steps with random gradients."""
    generator = torch.Generator().manual_seed(0)
    matrices = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]
    steps = optimizer(matrices, lr=0.02, **settings)
    for _ in range(5):
        for matrix in matrices:
            matrix.grad = torch.randn(matrix.shape, generator=generator)
        steps.step()
    return [matrix.detach() for matrix in matrices]


def test_the_steps_equal_those_of_torch_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)
    for ours, theirs in zip(_trained(Muon), _trained(torch.optim.Muon, weight_decay=0.0), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)


def test_a_matrix_without_a_gradient_stays() -> None:
    with_gradient, without = (torch.nn.Parameter(torch.ones(3, 2)) for _ in range(2))
    with_gradient.grad = torch.ones(3, 2)
    Muon([with_gradient, without], lr=0.1).step()
    assert torch.equal(without, torch.ones(3, 2))
    assert not torch.equal(with_gradient, without)
