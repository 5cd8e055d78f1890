"""One or two GPUs: tokens per second of sampling and of training, the utilisation of the device, and short runs.

    python -m benchmarks.gpu --output benchmarks/results/gpu_h100.json
    python -m benchmarks.gpu --shapes tiny          # seconds, on any machine

Needs torch, transformers and gymnasium. ALFWorld's games and vLLM are used if `alfworld` and `vllm` are installed.
Models have the shapes of Qwen2.5 0.5B and 1.5B with tied embeddings and random weights, which are as fast as trained
ones. If a part fails, for example for lack of memory, the error is reported, and the other parts continue.

sampling    64 sessions with prompts of 512 ids, 128 new ids each, weights in bfloat16: the prompts (one new id), and
            from there on the new ids. With the policy of transformers, and with vLLM on a GPU.
training    One update with as many sequences, of which the new ids are trained on: weights in float32 with
            bfloat16 autocast, without and with gradient checkpointing.
run         Rollouts of 32 ALFWorld episodes (or of examples.light_switches), and an update with KL for each rollout.
engine      Where vLLM is installed: the rollouts of `run` with vLLM, and the same requests of all turns in one call of
            vLLM alone, from an empty cache. The share of its tokens per second that rollouts reach. And the seconds
            until it has new weights.
two gpus    Where two GPUs are: the weights in bfloat16 sent from one to the other by NCCL; and `scripts.train`, two
            updates of examples.light_switches on one GPU, and under torchrun on two as replicas and as shards.

Model FLOPs are the necessary ones: 2 per weight and token in a forward pass, three times that with the backward pass,
the head where its logits are needed, and 4 per dimension and pair of tokens for attention. Computations that gradient
checkpointing repeats count once. Utilisation is their share of the dense bfloat16 peak in the vendor's data sheet, and
bandwidth the share of the memory's bandwidth that decoding needs at least: weights once a step, and all caches
(`algorithms.plan`). `scripts.plan benchmark=FILE` plans with them.
"""

from __future__ import annotations

import argparse
import gc
import json
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, Qwen2Config

from agents.agent import PolicyAgent
from agents.policies.base import Policy, Request, Sampling
from agents.policies.local import LocalPolicy
from agents.policies.models import find_device
from agents.policies.tiny import build_tokenizer
from agents.prompts import Transcript
from agents.rollout import Job, rollout
from agents.samples import Sample, build_samples
from algorithms.estimators.grpo import grpo
from algorithms.learner import Learner, Objective
from algorithms.losses import clip_loss
from algorithms.plan import GPUS, Gpu, Training, decode_step, reached_mfu
from algorithms.plan import Shape as PlannedShape
from algorithms.turn_table import TurnTable
from benchmarks.rollouts import RecordingPolicy, in_new_process, learner_config, table_of, write_line
from benchmarks.transfer import transfer
from envs.alfworld.env import ALFWorldEnv
from envs.alfworld.game import GAME_FILE
from envs.alfworld.generate import generate_game
from envs.core import Task, UnknownNameError
from envs.gym_tasks import GymTasks
from envs.pool import EnvPool

NEW = 24  # ids of a completion in `run`, `engine` and `two gpus`


@dataclass(frozen=True)
class Shape:
    """The shape of a model, and the size of the measurements."""

    width: int
    feed_forward: int
    layers: int
    heads: int
    key_value_heads: int
    vocabulary: int = 151_936
    sessions: int = 64
    prompt: int = 512
    new: int = 128
    micro_batch_tokens: int = 16_384
    episodes: int = 32
    turns: int = 20
    context: int = 4096

    def config(self) -> Qwen2Config:
        return Qwen2Config(
            vocab_size=self.vocabulary,
            hidden_size=self.width,
            intermediate_size=self.feed_forward,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.key_value_heads,
            max_position_embeddings=self.context,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=1,
        )

    def flops(self, model: Any, tokens: int, context: float, heads: int) -> float:
        """FLOPs of a forward pass of `tokens` with a mean `context` each, and logits at `heads` of them."""
        embedding = model.get_input_embeddings().weight.numel()
        weights = sum(p.numel() for p in model.parameters()) - embedding
        return float(tokens * (2 * weights + 4 * self.layers * self.width * context) + heads * 2 * embedding)

    def least_seconds(self, bandwidth: float) -> float:
        """Seconds that decoding the new ids takes if only the memory's bandwidth, bytes/s, limits it; in bfloat16."""
        planned = PlannedShape.of_config(self.config().to_dict())
        context = self.prompt + self.new / 2
        step = decode_step(planned.parameters, self.sessions, context, planned.kv_bytes, 1, bandwidth)
        return (self.new - 1) * step


SHAPES = {
    "0.5b": Shape(896, 4864, 24, 14, 2),
    "1.5b": Shape(1536, 8960, 28, 12, 2),
    "3b": Shape(2048, 11008, 36, 16, 2),
    "7b": Shape(3584, 18944, 28, 28, 4),
    "tiny": Shape(
        128,
        256,
        2,
        4,
        2,
        1024,
        sessions=4,
        prompt=32,
        new=8,
        micro_batch_tokens=128,
        episodes=4,
        turns=2,
        context=1024,
    ),
}


def known_gpu(device: torch.device) -> Gpu | None:
    """The data sheet of a device, if it is known."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return next((gpu for gpu in GPUS.values() if gpu.device == name), None)


class Benchmark:
    """One device and one shape."""

    def __init__(self, shape: Shape, device: torch.device, repeats: int) -> None:
        self.shape, self.device, self.repeats = shape, device, repeats
        self.precision = "bfloat16" if device.type == "cuda" else "float32"  # not every CPU computes in bfloat16
        self.gpu = known_gpu(device)

    def policy(self, dtype: torch.dtype = torch.bfloat16) -> LocalPolicy:
        torch.manual_seed(0)
        with self.device:
            model = AutoModelForCausalLM.from_config(self.shape.config(), dtype=dtype, attn_implementation="sdpa")
        policy = LocalPolicy(model.eval(), build_tokenizer(["You are in room 1. Go to room 2."]))
        policy.stop_ids = []
        return policy

    # -- sampling ---------------------------------------------------------------------------------------------------
    def sampling(self) -> dict[str, Any]:
        policy = self.policy()
        return self.sample(policy, policy.model)

    def sample(self, policy: Policy, model: Any) -> dict[str, Any]:
        """Measure with one new id per prompt and with all; the difference is decoding."""
        shape = self.shape
        rng = np.random.default_rng(0)
        generator = torch.Generator(policy.device).manual_seed(0)

        def seconds(new: int) -> float:
            policy.sync()
            prompts = rng.integers(2, shape.vocabulary, (shape.sessions, shape.prompt)).tolist()
            requests = [Request(session, prompt) for session, prompt in enumerate(prompts)]
            taken, answers = self.clock(lambda: policy.generate(requests, Sampling(1.0, new), generator))
            for request in requests:
                policy.release(request.session)
            assert all(len(answer.ids) == new for answer in answers)
            return taken

        seconds(shape.new)
        self.forget_peak()
        first = statistics.median(seconds(1) for _ in range(self.repeats))
        whole = statistics.median(seconds(shape.new) for _ in range(self.repeats))
        read, made = shape.sessions * shape.prompt, shape.sessions * (shape.new - 1)
        context = shape.prompt + shape.new / 2
        decoding = self.rates(made, whole - first, shape.flops(model, made, context, made))
        if self.gpu:
            decoding["bandwidth"] = round(shape.least_seconds(self.gpu.bandwidth) / (whole - first), 4)
        return {
            "prompt": self.rates(read, first, shape.flops(model, read, shape.prompt / 2, shape.sessions)),
            "decoding": decoding,
            "sampled_tokens_per_s": round(shape.sessions * shape.new / whole),
            "peak_gb": self.peak_gb(),
        }

    # -- training ---------------------------------------------------------------------------------------------------
    def training(self, checkpointing: bool) -> dict[str, Any]:
        shape = self.shape
        model = self.policy(torch.float32).model
        changes = {"gradient_checkpointing": checkpointing, "precision": self.precision}
        learner = Learner(model, learner_config(shape.micro_batch_tokens, **changes))
        rng = np.random.default_rng(0)
        samples = []
        for row in range(shape.sessions):
            sample = Sample()
            sample.extend(rng.integers(2, shape.vocabulary, shape.prompt).tolist())
            sample.extend(rng.integers(2, shape.vocabulary, shape.new).tolist(), [-10.0] * shape.new, row)
            samples.append(sample)
        table, advantages = table_of(samples), rng.normal(size=shape.sessions)
        self.forget_peak()
        times = [
            self.clock(lambda: learner.update(samples, table, advantages, rng, 1e-6))[0]
            for _ in range(1 + self.repeats)
        ]
        length = shape.prompt + shape.new
        tokens, trained = shape.sessions * length, shape.sessions * shape.new
        flops = 3 * shape.flops(model, tokens, length / 2, trained)
        return {
            **self.rates(tokens, statistics.median(times[1:]), flops),
            "trained_tokens_per_s": round(trained / statistics.median(times[1:])),
            "micro_batch_tokens": learner.micro_batch_tokens,
            "peak_gb": self.peak_gb(),
        }

    # -- a short run ------------------------------------------------------------------------------------------------
    def run(self, folder: Path) -> dict[str, Any]:
        """Two updates; the second is reported."""
        shape, policy = self.shape, self.policy(torch.float32)
        tasks, make = _games(folder, shape) if find_spec("alfworld") else _lamps(shape)
        # A policy that never succeeds has no advantages; with KL there is a gradient.
        objective = Objective(partial(clip_loss, dual_clip=None), kl_coef=0.01)
        learner = Learner(
            policy.model, learner_config(shape.micro_batch_tokens, objective=objective, precision=self.precision)
        )
        rng, generator = np.random.default_rng(0), torch.Generator(policy.device).manual_seed(0)
        agent = PolicyAgent(policy, Transcript(), Sampling(1.0, NEW), generator)
        jobs = [Job(tasks[i // 4], i // 4) for i in range(shape.episodes)]
        self.forget_peak()
        with EnvPool(make, shape.episodes) as pool:
            for _ in range(2):
                rollout_s, episodes = self.clock(partial(rollout, agent, pool, jobs, max_turns=shape.turns))
                samples, table = build_samples(episodes), TurnTable.from_episodes(episodes)
                advantages = grpo(table)
                policy.pause()
                learn_s, learned = self.clock(partial(learner.update, samples, table, advantages, rng, 1e-6))
                policy.sync()
        turns = [turn for episode in episodes for turn in episode.turns]
        return {
            "environment": tasks[0].env,
            "episodes": len(episodes),
            "turns": len(turns),
            "rollout_s": round(rollout_s, 3),
            "turns_per_s": round(len(turns) / rollout_s, 1),
            "sampled_tokens_per_s": round(sum(len(turn.completion_ids) for turn in turns) / rollout_s),
            "learn_s": round(learn_s, 3),
            "learned_tokens_per_s": round(learned["tokens/trained"] / learn_s),
            "peak_gb": self.peak_gb(),
        }

    # -- rollouts beside the engine alone -----------------------------------------------------------------------------
    def engine(self, policy: Policy, alone: Callable[[list[list[int]]], Any], folder: Path) -> dict[str, Any]:
        """Rollouts, then the same requests by `alone`, a call that gives every prompt `NEW` ids."""
        tasks, make = _games(folder, self.shape) if find_spec("alfworld") else _lamps(self.shape)
        jobs = [Job(tasks[i // 4], i // 4) for i in range(self.shape.episodes)]
        generator = torch.Generator(policy.device).manual_seed(0)
        sync_s, _ = self.clock(policy.sync)
        with EnvPool(make, self.shape.episodes) as pool:
            for _ in range(2):  # the first warms up
                meter = RecordingPolicy(policy)
                agent = PolicyAgent(meter, Transcript(), Sampling(1.0, NEW), generator)  # type: ignore[arg-type]
                policy.sync()  # clears the prefixes that an engine caches
                rollout_s, _ = self.clock(partial(rollout, agent, pool, jobs, max_turns=self.shape.turns))
        prompts = [list(request.prompt_ids) for call in meter.calls if not isinstance(call, int) for request in call]
        policy.sync()
        alone_s, _ = self.clock(partial(alone, prompts))
        sampled = sum(map(len, meter.sampled))
        return {
            "sampled_tokens_per_s": round(sampled / rollout_s),
            "engine_tokens_per_s": round(len(prompts) * NEW / alone_s),
            "share": round(sampled / rollout_s / (len(prompts) * NEW / alone_s), 4),
            "sync_s": round(sync_s, 3),
        }

    # -- clocks and meters ------------------------------------------------------------------------------------------
    def clock(self, call: Callable[[], Any]) -> tuple[float, Any]:
        """Seconds until the device has finished, and the result."""
        self.wait()
        start = time.perf_counter()
        result = call()
        self.wait()
        return time.perf_counter() - start, result

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def rates(self, tokens: int, seconds: float, flops: float) -> dict[str, Any]:
        found = {"tokens_per_s": round(tokens / seconds), "tflops": float(f"{flops / seconds / 1e12:.4g}")}
        return found | ({"utilisation": round(flops / seconds / self.gpu.peak, 4)} if self.gpu else {})

    def forget_peak(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def peak_gb(self) -> float:
        """The peak of the device since `forget_peak`; on a CPU, the peak of the process since its start."""
        if self.device.type == "cuda":
            return round(torch.cuda.max_memory_allocated() / 2**30, 2)
        return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)


def sampling_vllm(shape: Shape, repeats: int) -> dict[str, Any]:
    """`Benchmark.sampling` with vLLM. It runs in its own process, so its memory is free afterwards."""
    from agents.policies.vllm import VllmPolicy

    benchmark = Benchmark(shape, find_device(), repeats)
    trained = benchmark.policy()
    return benchmark.sample(VllmPolicy(trained), trained.model)


def engine_vllm(shape: Shape, repeats: int, folder: Path) -> dict[str, Any]:
    """`Benchmark.engine` with vLLM, in its own process."""
    from agents.policies.vllm import VllmPolicy, import_vllm

    benchmark = Benchmark(shape, find_device(), repeats)
    policy = VllmPolicy(benchmark.policy())
    settings = import_vllm().SamplingParams(temperature=1.0, max_tokens=NEW, ignore_eos=True)

    def alone(prompts: list[list[int]]) -> Any:
        return policy.llm.generate([{"prompt_token_ids": ids} for ids in prompts], settings, use_tqdm=False)

    return benchmark.engine(policy, alone, folder)


# -- two GPUs ---------------------------------------------------------------------------------------------------------
def two_gpus(shape: Shape, device: torch.device, folder: Path) -> dict[str, Any]:
    """The transfer of weights, and training on one GPU and on two. Says so where there are fewer."""
    count = torch.cuda.device_count() if device.type == "cuda" else 0
    if count < 2:
        return {"left_out": f"needs two GPUs, found {count}"}
    policy = Benchmark(shape, torch.device("cpu"), 1).policy()
    size = sum(p.numel() for p in policy.model.parameters()) * 2
    found: dict[str, Any] = {"weight_transfer_gb_per_s": transfer("nccl", size, folder)}
    policy.model.save_pretrained(folder / "model")
    policy.tokenizer.save_pretrained(folder / "model")
    del policy
    for kind in ("none", "replicas", "shards"):
        run = folder / kind
        done = subprocess.run(train_command(shape, folder / "model", run, kind), capture_output=True, text=True)
        if done.returncode:
            found[kind] = {"failed": (done.stderr.strip().splitlines() or ["no message"])[-1]}
        else:
            found[kind] = train_figures(run, size / 2, known_gpu(device), 1 if kind == "none" else 2)
    return found


def train_command(shape: Shape, model: Path, run: Path, kind: str) -> list[str]:
    """Two updates of examples.light_switches: on one GPU without `kind`, otherwise on two."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return [
        sys.executable, *(launcher if kind != "none" else []), "-m", "scripts.train", f"model={model}", "policy=hf",
        *([f"parallel={kind}"] if kind != "none" else []), "env=gym", "env.id=examples.light_switches:LightSwitches-v0",
        "eval.splits=[valid]", "eval.limit=1", "eval.selection_tasks=0", "agent=transcript",
        f"agent.sampling.max_tokens={NEW}", "algo=grpo", "algo.kl_coef=0.01", "trainer.updates=2",
        f"trainer.groups={-(-shape.episodes // 4)}", "trainer.group_size=4", f"trainer.max_turns={shape.turns}",
        "trainer.minibatches=1", f"trainer.micro_batch_tokens={shape.micro_batch_tokens}", "trainer.precision=bfloat16",
        "trainer.gradient_checkpointing=true", "trainer.learning_rate=1e-6", "trainer.eval_every=0",
        "trainer.checkpoint_every=1000", f"hydra.run.dir={run}",
    ]  # fmt: skip


def train_figures(run: Path, parameters: float, gpu: Gpu | None, gpus: int) -> dict[str, Any]:
    """Seconds and tokens per second of a run's last update, and the `mfu` that `scripts.plan` would need for them."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    last = [line for line in lines if "train/loss" in line][-1]
    found = {key.rpartition("/")[2]: round(last[key], 3) for key in sorted(last) if re.match("time/|perf/", key)}
    if gpu:
        rate = last["perf/trained_tokens_per_s"] / gpus
        found["mfu"] = round(reached_mfu(Training(), parameters, rate, gpu.peak), 4)
    return found


def _games(folder: Path, shape: Shape) -> tuple[list[Task], Callable[[], Any]]:
    tasks = []
    for number in range(-(-shape.episodes // 4)):
        path = folder / f"game-{number}" / GAME_FILE
        path.parent.mkdir()
        path.write_text(json.dumps(generate_game(number).content), encoding="utf-8")
        tasks.append(Task(f"game-{number}", "polyturn/ALFWorld-v0", payload={"path": str(path)}))
    return tasks, partial(ALFWorldEnv, shape.turns)


def _lamps(shape: Shape) -> tuple[list[Task], Callable[[], Any]]:
    task_set = GymTasks("examples.light_switches:LightSwitches-v0", train_tasks=-(-shape.episodes // 4))
    return [task_set.task("train", name) for name in task_set.manifest("train").ids], task_set.make


def measure(shape: Shape, device: torch.device, repeats: int, folder: Path) -> dict[str, Any]:
    """The results of all parts for one shape, or their errors."""
    benchmark = Benchmark(shape, device, repeats)
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "sampling": benchmark.sampling,
        "training": partial(benchmark.training, False),
        "training, checkpointed": partial(benchmark.training, True),
        "run": partial(benchmark.run, _new(folder, "run")),
    }
    if device.type == "cuda" and find_spec("vllm"):
        parts["sampling, vllm"] = partial(in_new_process, sampling_vllm, shape, repeats)
        parts["engine"] = partial(in_new_process, engine_vllm, shape, repeats, _new(folder, "engine"))
    parts["two gpus"] = partial(two_gpus, shape, device, _new(folder, "two"))
    found = {}
    for name, part in parts.items():
        try:
            found[name] = part()
        except Exception as error:  # the other parts continue
            found[name] = {"failed": f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"}
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        print(f"  {name:<26} {_line(found[name])}", flush=True)
    return found


def _new(folder: Path, name: str) -> Path:
    (folder / name).mkdir()
    return folder / name


def _line(found: dict[str, Any]) -> str:
    """The figures in one line: "prompt tokens/s 802, …, peak gb 0.43"."""
    parts = []
    for name, value in found.items():
        if isinstance(value, dict):
            parts.append(f"{name} {_line(value)}")
        else:
            shown = value if isinstance(value, str) else f"{value:,}"
            parts.append(f"{name.replace('_per_s', '/s').replace('_', ' ')} {shown}")
    return ", ".join(parts)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure the chosen shapes, and print one line of JSON."""
    parser = argparse.ArgumentParser(prog="benchmarks.gpu", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--shapes", default="0.5b,1.5b", help=f"a comma-separated list of {', '.join(SHAPES)}")
    parser.add_argument("--repeats", type=int, default=3, help="of every measurement; the median is reported")
    parser.add_argument("--output", type=Path, help="file for the line of JSON")
    options = parser.parse_args(argv)
    names = options.shapes.split(",")
    if unknown := set(names) - set(SHAPES):
        raise UnknownNameError("shape", sorted(unknown)[0], SHAPES)

    device = find_device()
    name = (
        torch.cuda.get_device_name() if device.type == "cuda" else f"{device.type}, {torch.get_num_threads()} threads"
    )
    gpu = known_gpu(device)
    known = f"bfloat16 peak {gpu.peak / 1e12:.0f} TFLOP/s, {gpu.bandwidth / 1e9:,.0f} GB/s" if gpu else ""
    print(f"{name}: {known or 'its peak is unknown, so there is no utilisation'}")
    figures: dict[str, Any] = {"device": name, "peak_tflops": gpu and gpu.peak / 1e12, "torch": torch.__version__}
    figures["date"] = time.strftime("%Y-%m-%d")
    for shape in names:
        print(f"{shape}:")
        with tempfile.TemporaryDirectory() as folder:
            figures[shape] = measure(SHAPES[shape], device, options.repeats, Path(folder))
    write_line(figures, options.output)


if __name__ == "__main__":
    main()
