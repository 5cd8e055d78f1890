"""Memory, time and the share of collectives of an update in several processes on this machine.

    torchrun --standalone --nproc-per-node 2 -m benchmarks.ranks --parameters 0.5B --kind shards
    python -m benchmarks.ranks --parameters 0.5B        # one process

The model has random weights. Memory is that of parameters, gradients and moments of Adam, counted after an update from
the tensors that the process stores, and the most that the process had resident. Rank 0 prints one JSON.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from typing import Any

import numpy as np
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from agents.policies.sharded import own_part
from agents.samples import Sample
from algorithms.launch import Launch
from algorithms.learner import Learner
from algorithms.parallel import ONE_PROCESS, Parallel, Replicas, Shards
from algorithms.turn_table import TurnTable
from benchmarks.rollouts import learner_config

SHAPES = {  # Qwen2.5-0.5B's, and smaller ones
    "0.5B": {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14},
    "0.1B": {"hidden_size": 640, "intermediate_size": 1728, "num_hidden_layers": 18, "num_attention_heads": 10},
    "0.05B": {"hidden_size": 448, "intermediate_size": 1216, "num_hidden_layers": 8, "num_attention_heads": 7},
}
VOCABULARY = {"0.5B": 151_936, "0.1B": 32_000, "0.05B": 32_000}
GIGA = 2**30


def build(name: str) -> Any:
    """The model, the same on every rank."""
    torch.manual_seed(0)
    heads = SHAPES[name]["num_attention_heads"]
    config = Qwen2Config(
        vocab_size=VOCABULARY[name], num_key_value_heads=2 if heads % 2 == 0 else 1, tie_word_embeddings=True,
        max_position_embeddings=4096, **SHAPES[name],
    )  # fmt: skip
    return Qwen2ForCausalLM(config).eval()


def batch(samples: int, tokens: int) -> tuple[list[Sample], TurnTable]:
    """`samples` episodes of one turn, of `tokens` ids, half of them sampled."""
    rng, made = np.random.default_rng(0), []
    for turn in range(samples):
        made.append(Sample())
        made[-1].extend(rng.integers(0, 1000, tokens // 2).tolist())
        made[-1].extend(rng.integers(0, 1000, tokens // 2).tolist(), [-7.0] * (tokens // 2), turn)
    numbers = np.arange(samples)
    table = TurnTable(
        group=numbers // 2, episode=numbers, turn=np.zeros_like(numbers), reward=np.zeros(samples),
        state=numbers.astype(object), valid=np.ones(samples, dtype=np.bool_), tokens=np.full(samples, tokens // 2),
    )  # fmt: skip
    return made, table


def measure(parallel: Parallel, name: str, updates: int) -> dict[str, float]:
    """Figures of one rank."""
    model = build(name)
    learner = Learner(model, learner_config(micro_batch_tokens=256, minibatches=1), parallel)
    samples, table = batch(8, 128)
    seconds, stored = [], 0
    for _ in range(updates):
        parallel.seconds()
        start = time.perf_counter()
        learner.update(samples, table, np.linspace(-1, 1, 8), np.random.default_rng(0), 1e-6)
        seconds.append((time.perf_counter() - start, parallel.seconds().get("time/ranks_s", 0.0)))
    for parameter in learner.trained.values():
        moments = [v for v in learner.optimizer.state[parameter].values() if v.dim()]
        stored += sum(own_part(t).nbytes for t in (parameter, parameter, *moments))  # the gradient is as large
    whole, waited = seconds[-1]
    return {
        "stored_gb": stored / GIGA,
        "resident_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "update_s": whole,
        "collectives_share": waited / whole,
    }


def main(arguments: list[str]) -> None:
    """Measure, and print the figures of rank 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", choices=SHAPES, default="0.05B")
    parser.add_argument("--updates", type=int, default=2)
    parser.add_argument("--kind", choices=("replicas", "shards"), default="shards")
    args = parser.parse_args(arguments)
    parallel: Parallel = ONE_PROCESS
    if Launch.of_environment() is not None:
        parallel = (Replicas if args.kind == "replicas" else Shards)(chunks=8, timeout=600.0)
    with parallel.running():
        figures = measure(parallel, args.parameters, args.updates)
    if parallel.is_first:
        kind = args.kind if parallel.ranks > 1 else "none"
        print(json.dumps({"parallel": kind, "ranks": parallel.ranks, "model": args.parameters, **figures}))


if __name__ == "__main__":
    main(sys.argv[1:])
