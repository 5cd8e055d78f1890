"""The benchmark of devices, on any machine."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import gpu

PARTS = {"sampling", "training", "training, checkpointed", "run"}


def test_every_part_of_a_tiny_shape_is_measured(tmp_path: Path, capsys) -> None:
    output = tmp_path / "gpu.json"
    gpu.main(["--shapes=tiny", "--repeats=1", f"--output={output}"])
    figures = json.loads(output.read_text())
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == figures
    assert set(figures["tiny"]) >= PARTS
    assert not [part for part in figures["tiny"].values() if "failed" in part]
    assert figures["tiny"]["sampling"]["decoding"]["tokens_per_s"] > 0
    assert figures["tiny"]["run"]["turns"] == 8


def test_a_part_that_fails_is_reported_and_the_others_continue(tmp_path: Path, capsys) -> None:
    shape = replace(gpu.SHAPES["tiny"], sessions=1, prompt=1024)  # one more id than leaves room for an answer
    figures = gpu.measure(shape, torch.device("cpu"), 1, tmp_path)
    assert figures["sampling"]["failed"].startswith("ValueError: a prompt needs 1 to 1023 ids")
    assert "failed ValueError" in capsys.readouterr().out
    assert not [name for name in PARTS - {"sampling"} if "failed" in figures[name]]


def test_model_flops_are_those_of_its_matrix_products() -> None:
    """Counted by torch in a forward pass; it counts all pairs of tokens for attention, not the causal half."""
    benchmark = gpu.Benchmark(gpu.SHAPES["tiny"], torch.device("cpu"), 1)
    model = benchmark.policy(torch.float32).model
    math = sdpa_kernel(SDPBackend.MATH)  # of the fused kernels it counts nothing
    with FlopCounterMode(display=False) as counter, math, torch.no_grad():
        model(input_ids=torch.zeros(2, 16, dtype=torch.long), use_cache=False)
    assert benchmark.shape.flops(model, 32, 16, heads=32) == pytest.approx(counter.get_total_flops(), rel=0.01)
