"""The benchmark of devices, on any machine."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import hydra
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from agents.policies.base import Request, Sampling
from agents.policies.local import LocalPolicy
from algorithms.plan import GPUS
from benchmarks import gpu
from benchmarks.transfer import broadcast
from scripts.settings import check_settings

PARTS = {"sampling", "training", "training, checkpointed", "run", "two gpus"}


def test_every_part_of_a_tiny_shape_is_measured(tmp_path: Path, capsys) -> None:
    output = tmp_path / "gpu.json"
    gpu.main(["--shapes=tiny", "--repeats=1", f"--output={output}"])
    figures = json.loads(output.read_text())
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == figures
    assert set(figures["tiny"]) >= PARTS
    assert not [part for part in figures["tiny"].values() if "failed" in part]
    assert figures["tiny"]["sampling"]["decoding"]["tokens_per_s"] > 0
    assert figures["tiny"]["run"]["turns"] == 8
    assert figures["tiny"]["two gpus"] == {"left_out": "needs two GPUs, found 0"}


def test_a_part_that_fails_is_reported_and_the_others_continue(tmp_path: Path, capsys) -> None:
    shape = replace(gpu.SHAPES["tiny"], sessions=1, prompt=1024)  # one more id than leaves room for an answer
    figures = gpu.measure(shape, torch.device("cpu"), 1, tmp_path)
    assert figures["sampling"]["failed"].startswith("ValueError: a prompt needs 1 to 1023 ids")
    assert "failed ValueError" in capsys.readouterr().out
    assert not [name for name in PARTS - {"sampling"} if "failed" in figures[name]]


class Counting:
    """A policy that counts its requests."""

    def __init__(self, policy: LocalPolicy) -> None:
        self.policy, self.prompts = policy, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.policy, name)

    def alone(self, prompts: list[list[int]]) -> None:
        self.prompts += len(prompts)
        requests = [Request(1000 + number, prompt) for number, prompt in enumerate(prompts)]
        answers = self.policy.generate(requests, Sampling(1.0, gpu.NEW), torch.Generator().manual_seed(0))
        assert {len(answer.ids) for answer in answers} == {gpu.NEW}


def test_rollouts_are_compared_with_the_engine_alone_on_the_same_requests(tmp_path: Path) -> None:
    benchmark = gpu.Benchmark(gpu.SHAPES["tiny"], torch.device("cpu"), 1)
    policy = Counting(benchmark.policy(torch.float32))
    found = benchmark.engine(policy, policy.alone, tmp_path)
    assert policy.prompts == 8  # 4 episodes of 2 turns
    assert found["share"] == pytest.approx(found["sampled_tokens_per_s"] / found["engine_tokens_per_s"], rel=0.02)


def test_the_least_seconds_of_decoding_are_those_of_the_weights_and_the_caches() -> None:
    shape = replace(gpu.SHAPES["tiny"], sessions=3, prompt=10, new=5)
    config = shape.config()
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    weights = 2 * sum(t.numel() for name, t in model.named_parameters() if not name.endswith("bias"))
    caches = 3 * 12.5 * 2 * 2 * config.num_hidden_layers * config.num_key_value_heads * 32
    assert shape.least_seconds(1e9) == pytest.approx(4 * (weights + caches) / 1e9)


def test_known_gpus_have_the_names_that_torch_gives(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H200")
    assert gpu.known_gpu(torch.device("cuda", 0)) == GPUS["h200"]
    assert gpu.known_gpu(torch.device("cpu")) is None


def test_a_process_of_the_transfer_notes_the_seconds_of_each_but_the_first(tmp_path: Path) -> None:
    """Alone here: that two of them start takes 20 seconds."""
    broadcast(0, 1, "gloo", 1_000_000, tmp_path, 3)
    seconds = json.loads((tmp_path / "seconds.json").read_text())
    assert len(seconds) == 3
    assert min(seconds) > 0
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize("kind", ["none", "replicas", "shards"])
def test_the_command_on_two_gpus_is_one_of_the_trainer(kind: str, tmp_path: Path) -> None:
    command = gpu.train_command(gpu.SHAPES["7b"], tmp_path / "model", tmp_path / "run", kind)
    assert ("--nproc-per-node=2" in command) == (kind != "none")
    overrides = [word for word in command[command.index("scripts.train") + 1 :] if not word.startswith("hydra.")]
    assert (f"parallel={kind}" in overrides) == (kind != "none")
    with hydra.initialize_config_module("conf", version_base="1.3"):
        config = hydra.compose("config", [word for word in overrides if not word.startswith("parallel=")])
    check_settings(config, "config")
    assert (config.trainer.groups * config.trainer.group_size, config.trainer.max_turns) == (32, 20)


def test_the_last_update_of_a_run_is_reported(tmp_path: Path) -> None:
    last = {"train/loss": 1.0, "time/learn_s": 2.0004, "perf/trained_tokens_per_s": 8e3}
    lines = [{**last, "time/learn_s": 9.0}, last, {"time/eval_s": 1.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = gpu.train_figures(tmp_path, 7e9, GPUS["h100"], 2)
    # Per id: 6 in forward and backward, 2 again with checkpointing, 2 of the reference.
    assert found == {"learn_s": 2.0, "trained_tokens_per_s": 8000.0, "mfu": round(4000 * 10 * 7e9 / 989e12, 4)}


def test_model_flops_are_those_of_its_matrix_products() -> None:
    """Counted by torch in a forward pass; it counts all pairs of tokens for attention, not the causal half."""
    benchmark = gpu.Benchmark(gpu.SHAPES["tiny"], torch.device("cpu"), 1)
    model = benchmark.policy(torch.float32).model
    math = sdpa_kernel(SDPBackend.MATH)  # of the fused kernels it counts nothing
    with FlopCounterMode(display=False) as counter, math, torch.no_grad():
        model(input_ids=torch.zeros(2, 16, dtype=torch.long), use_cache=False)
    assert benchmark.shape.flops(model, 32, 16, heads=32) == pytest.approx(counter.get_total_flops(), rel=0.01)
