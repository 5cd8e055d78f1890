"""Plan a run on several GPUs by formula: memory, tokens per second, and seconds of an update.

The module does not import torch, so the command answers at once. Every figure is an estimate: hardware by its data
sheet (`GPUS`), models by their shape (`SHAPES`), everything else by the assumptions in `Rates`, which measured figures
should replace. Not counted: signals with their own weights, the head's share of a pass, attention's FLOPs.

Letters in the formulas: P parameters, W ranks that train, t GPUs of an engine (tensor parallelism), B episodes side by
side in an engine, N ids trained on, S sampled, O observed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from envs.core import UnknownNameError

GIGA = 1e9  # of data sheets; 80 GB are 80e9 bytes
MOST_LOGITS = 2**26  # as `agents.policies.models`, which imports torch


# -- facts ------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Gpu:
    """A GPU. Bytes, bytes per second, FLOP per second."""

    device: str  # its name in torch
    memory: float
    bandwidth: float  # of its memory
    peak: float  # dense bfloat16 with float32 sums
    link: float  # to a GPU of the same machine, in one direction: NVLink, otherwise PCIe


def _gpu(device: str, memory_gb: float, bandwidth_gb: float, tflops: float, link_gb: float) -> Gpu:
    return Gpu(device, memory_gb * GIGA, bandwidth_gb * GIGA, tflops * 1e12, link_gb * GIGA)


# NVIDIA's data sheets: of the A100 (2021), H100 (2023), H200 (2024), L40S (2023) and DGX B200 (2024; an eighth of the
# machine), and the white paper of Ada (2022) for the RTX 4090. FLOP/s with sparsity are halved, and so are NVLink and
# PCIe, which are given for both directions together. Bridges between pairs of PCIe cards are not counted.
GPUS = {
    "a100": _gpu("NVIDIA A100-SXM4-80GB", 80, 2039, 312, 300),
    "a100_40gb": _gpu("NVIDIA A100-SXM4-40GB", 40, 1555, 312, 300),
    "a100_pcie": _gpu("NVIDIA A100 80GB PCIe", 80, 1935, 312, 32),
    "a100_pcie_40gb": _gpu("NVIDIA A100-PCIE-40GB", 40, 1555, 312, 32),
    "h100": _gpu("NVIDIA H100 80GB HBM3", 80, 3350, 989, 450),
    "h100_nvl": _gpu("NVIDIA H100 NVL", 94, 3900, 835, 64),
    "h100_pcie": _gpu("NVIDIA H100 PCIe", 80, 2000, 756, 64),
    "h200": _gpu("NVIDIA H200", 141, 4800, 989, 450),
    "b200": _gpu("NVIDIA B200", 180, 8000, 2250, 900),
    "l40s": _gpu("NVIDIA L40S", 48, 864, 362, 32),
    "rtx4090": _gpu("NVIDIA GeForce RTX 4090", 24, 1008, 165, 32),
}


@dataclass(frozen=True)
class Shape:
    """The shape of a dense decoder with gated feed-forward layers, such as Llama and Qwen."""

    width: int
    feed_forward: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    head_dim: int | None = None  # None: width / heads
    tied: bool = False  # one matrix embeds and is the head

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> Shape:
        """From a config.json of transformers. Raises `ValueError` for models of another kind."""
        text: Mapping[str, Any] = config.get("text_config") or config
        names = {
            "width": "hidden_size", "feed_forward": "intermediate_size", "layers": "num_hidden_layers",
            "heads": "num_attention_heads", "vocabulary": "vocab_size",
        }  # fmt: skip
        kind = config.get("model_type", "unknown")
        if missing := [name for name in names.values() if not isinstance(text.get(name), int)]:
            raise ValueError(f"a model of type {kind!r} cannot be planned: its config.json has no {missing[0]}")
        if experts := [name for name in text if name in ("num_experts", "num_local_experts", "n_routed_experts")]:
            raise ValueError(f"a model of type {kind!r} cannot be planned: it has experts ({experts[0]})")
        return cls(
            **{name: text[theirs] for name, theirs in names.items()},
            kv_heads=text.get("num_key_value_heads") or text["num_attention_heads"],
            head_dim=text.get("head_dim"),
            tied=bool(config.get("tie_word_embeddings", text.get("tie_word_embeddings", True))),  # their default
        )

    @property
    def of_head(self) -> int:
        """Width of an attention head."""
        return self.head_dim or self.width // self.heads

    @property
    def linear(self) -> tuple[tuple[int, int], ...]:
        """Inputs and outputs of the matrices of a layer: queries, keys, values, output; gate, up, down."""
        queries, keys = self.heads * self.of_head, self.kv_heads * self.of_head
        wide = (self.width, self.feed_forward)
        return (
            (self.width, queries), (self.width, keys), (self.width, keys), (queries, self.width), wide, wide, wide[::-1]
        )  # fmt: skip

    @property
    def of_layer(self) -> int:
        """Parameters of a layer: its matrices and two norms. Biases and norms of heads, 0.01 %, are left out."""
        return sum(a * b for a, b in self.linear) + 2 * self.width

    @property
    def of_root(self) -> int:
        """Parameters outside of the layers: embeddings, head, last norm."""
        return self.vocabulary * self.width * (1 if self.tied else 2) + self.width

    @property
    def parameters(self) -> int:
        """All parameters, P."""
        return self.layers * self.of_layer + self.of_root

    @property
    def kv_bytes(self) -> int:
        """Bytes of an id's keys and values in bfloat16: 2 · 2 · layers · kv_heads · head_dim."""
        return 4 * self.layers * self.kv_heads * self.of_head

    def adapters(self, rank: int) -> int:
        """Parameters of LoRA's adapters on all matrices of the layers (arXiv 2106.09685): rank · (inputs + outputs)."""
        return self.layers * rank * sum(a + b for a, b in self.linear)


# The config.json of each model on its page of huggingface.co. Instruct models have the same.
SHAPES = {
    "Qwen2.5-0.5B": Shape(896, 4864, 24, 14, 2, 151_936, tied=True),
    "Qwen2.5-1.5B": Shape(1536, 8960, 28, 12, 2, 151_936, tied=True),
    "Qwen2.5-3B": Shape(2048, 11_008, 36, 16, 2, 151_936, tied=True),
    "Qwen2.5-7B": Shape(3584, 18_944, 28, 28, 4, 152_064),
    "Qwen2.5-14B": Shape(5120, 13_824, 48, 40, 8, 152_064),
    "Qwen2.5-32B": Shape(5120, 27_648, 64, 40, 8, 152_064),
    "Qwen2.5-72B": Shape(8192, 29_568, 80, 64, 8, 152_064),
    "Qwen3-0.6B": Shape(1024, 3072, 28, 16, 8, 151_936, 128, tied=True),
    "Qwen3-1.7B": Shape(2048, 6144, 28, 16, 8, 151_936, 128, tied=True),
    "Qwen3-4B": Shape(2560, 9728, 36, 32, 8, 151_936, 128, tied=True),
    "Qwen3-8B": Shape(4096, 12_288, 36, 32, 8, 151_936, 128),
    "Qwen3-14B": Shape(5120, 17_408, 40, 40, 8, 151_936, 128),
    "Qwen3-32B": Shape(5120, 25_600, 64, 64, 8, 151_936, 128),
    "Llama-3.1-8B": Shape(4096, 14_336, 32, 32, 8, 128_256),
    "Llama-3.1-70B": Shape(8192, 28_672, 80, 64, 8, 128_256),
    "Llama-3.2-1B": Shape(2048, 8192, 16, 32, 8, 128_256, tied=True),
    "Llama-3.2-3B": Shape(3072, 8192, 28, 24, 8, 128_256, tied=True),
}


def known_shape(model: str) -> Shape:
    """The shape of a published model by its name: `Qwen/Qwen2.5-7B-Instruct` is a `Qwen2.5-7B`."""
    name = model.rpartition("/")[2].lower().removeprefix("meta-")
    for known, shape in SHAPES.items():
        if name == known.lower() or name.startswith(f"{known.lower()}-"):
            return shape
    hint = "or give a folder, or shape={width: …, feed_forward: …, layers: …, heads: …, kv_heads: …, vocabulary: …}"
    raise UnknownNameError("model", model, SHAPES, hint)


# -- what is planned --------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Work:
    """What is played and trained on in an update. Turns and ids are means."""

    episodes: int
    turns: float  # of an episode
    longest: float  # turns of the longest episode
    sampled: float  # ids of a completion
    observed: float  # ids that a turn adds to what the model has read: an observation, or a whole prompt
    sequence_turns: float  # turns in a training sequence: those of an episode, or 1 if each has a prompt of its own
    env_seconds: float  # of an environment's step

    @property
    def context(self) -> float:
        """Mean ids before a sampled one: half a sequence, and half of an observation, as turns end with completions."""
        return self.sequence_turns * (self.sampled + self.observed) / 2 + self.observed / 2

    @property
    def sampled_ids(self) -> float:
        """S of an update."""
        return self.episodes * self.turns * self.sampled

    @property
    def observed_ids(self) -> float:
        """O of an update."""
        return self.episodes * self.turns * self.observed

    @property
    def ids(self) -> float:
        """N of an update, in one epoch."""
        return self.sampled_ids + self.observed_ids


@dataclass(frozen=True)
class Training:
    """The settings of the trainer that memory and time depend on."""

    adapters: int = 0  # their rank; 0: all weights are trained
    reference: bool = True  # with KL: another model is kept, and reads the batch
    correction: bool = False  # trainer.correction: the trained model reads the batch before the update
    checkpointing: bool = True
    computed: int = 2  # bytes: 2 in bfloat16, 4 in float32
    micro_batch_tokens: int = 32_768
    epochs: int = 1
    minibatches: int = 1


@dataclass(frozen=True)
class Rates:
    """What of a GPU's data sheet is reached, and the rest of the assumptions."""

    mfu: float = 0.35  # model FLOP utilisation of training
    decode: float = 0.6  # share of the memory's bandwidth while decoding
    prefill: float = 0.5  # share of the peak while prompts are read
    network: float = 50e9  # bytes/s of a GPU to another machine and of a weight transfer: 400 Gbit/s InfiniBand
    sync_seconds: float = 1.0  # of a weight transfer, besides its bytes: engines pause, load, and start again
    usable: float = 0.9  # share of a GPU's memory
    engine_memory: float | None = None  # share for an engine beside a trainer; None: all that is left
    most_lag: int = 4  # updates that episodes may be older than the weights that learn from them
    node: int = 8  # GPUs in a machine


# -- memory -----------------------------------------------------------------------------------------------------------
def training_memory(shape: Shape, training: Training, ranks: int, sharded: bool) -> dict[str, float]:
    """Bytes of a GPU by purpose while it trains.

    AdamW in float32 takes 16 P: weights and gradients 4 P each, two moments 8 P (arXiv 1910.02054, section 3.1). The
    reference's weights take 4 P. Shards divide all by W. A layer's weights in bfloat16 and its gradients in float32 are
    gathered while it computes, those of embeddings and head throughout: 6 bytes a parameter. Replicas have bfloat16
    copies of all. With adapters, the frozen weights are bfloat16 (2 P / W), and every rank has all adapters.
    Activations and logits are those of `algorithms.memory`.
    """
    total, share = shape.parameters, ranks if sharded else 1
    trained = 4.0 * (shape.adapters(training.adapters) if training.adapters else total / share)
    frozen = 2.0 * total / share if training.adapters else 0.0
    gathered = (shape.of_layer + shape.of_root) * (training.computed + (0 if training.adapters else 4))
    copies = 0 if training.adapters or training.computed == 4 else training.computed * total
    tokens, width = training.micro_batch_tokens, shape.width
    of_layer = tokens * training.computed * (
        10 * width + 4 * shape.kv_heads * shape.of_head + 4 * shape.feed_forward
    )  # fmt: skip
    kept = tokens * training.computed * width * shape.layers + of_layer
    return {
        "weights": frozen + trained,
        "gradients": trained,
        "optimizer": 2 * trained,
        "reference": trained if training.reference else 0.0,
        "gathered layers" if sharded else "bfloat16 copies": float(gathered if sharded else copies),
        "activations": float(kept if training.checkpointing else of_layer * shape.layers),
        "logits": 16.0 * min(tokens * shape.vocabulary, MOST_LOGITS),
    }


ENGINES = (1, 2, 4, 8)  # GPUs of an engine that are tried
KEPT = ("weights", "optimizer", "reference")  # beside an engine while it samples


def side_by_side(shape: Shape, memory: float, gpus: int, context: float) -> float:
    """B: how many episodes of `context` ids fit into an engine of `gpus` GPUs with `memory` bytes each."""
    return (memory * gpus - 2 * shape.parameters) / (context * shape.kv_bytes)


# -- seconds ----------------------------------------------------------------------------------------------------------
def decode_step(parameters: float, batch: float, context: float, kv_bytes: float, gpus: int, bandwidth: float) -> float:
    """Seconds of a step that gives each of B episodes an id: weights and caches are read once.

    (2 P + B · context · kv) / (t · bandwidth), with the bandwidth that is reached (arXiv 2211.05102, section 2).
    """
    return (2 * parameters + batch * context * kv_bytes) / (gpus * bandwidth)


def rollout_seconds(work: Work, parameters: float, rate: float, gpus: int, flops: float) -> float:
    """GPU-seconds of an update's rollout: S · t / rate + 2 P O / FLOP/s. `rate` is ids per second of an engine."""
    return work.sampled_ids * gpus / rate + 2 * parameters * work.observed_ids / flops


def episode_seconds(work: Work, step: float) -> float:
    """Seconds of the longest episode, which waits for nothing: turns · (ids · step + environment)."""
    return work.longest * (work.sampled * step + work.env_seconds)


def flops_per_id(training: Training) -> float:
    """FLOPs per parameter and id trained on, all epochs together.

    2 in a forward pass, 4 in a backward pass (arXiv 2001.08361, section 2.1), of which frozen weights need half, and 2
    again with checkpointing; 2 for each reading of the batch by the reference or for a correction.
    """
    learned = (4 if training.adapters else 6) + 2 * training.checkpointing
    return learned * training.epochs + 2 * training.reference + 2 * training.correction


def training_seconds(training: Training, parameters: float, ids: float, flops: float) -> float:
    """GPU-seconds of an update's training, with the FLOP/s that are reached."""
    return flops_per_id(training) * parameters * ids / flops


def pass_bytes(training: Training, parameters: float, ranks: int, sharded: bool) -> float:
    """Bytes that a rank receives in a pass (replicas: for an optimiser step).

    Shards gather all weights forward and again backward, and reduce float32 gradients (arXiv 2304.11277): in bfloat16
    8 P (W - 1) / W, in float32 12. A ring's all-reduce of float32 gradients takes twice their bytes.
    """
    others = (ranks - 1) / ranks
    if not sharded:
        return 0.0 if training.adapters else 8 * parameters * others
    return (2 * training.computed + (0 if training.adapters else 4)) * parameters * others


def transfer_seconds(parameters: float, network: float, fixed: float) -> float:
    """Seconds until engines have new weights: 2 P bytes and a fixed time. Adapters are merged before."""
    return 2 * parameters / network + fixed


# -- figures that were measured ---------------------------------------------------------------------------------------
def reached_mfu(training: Training, parameters: float, rate: float, peak: float) -> float:
    """The model FLOP utilisation of a GPU that trained on `rate` ids per second, epochs counted each."""
    return flops_per_id(training) / training.epochs * parameters * rate / peak


def reached_decode(
    work: Work, shape: Shape, batch: float, gpu_seconds: float, bandwidth: float, prefill: float
) -> float:
    """The share of the bandwidth that a rollout reached: bytes of all steps by the seconds that prompts leave.

    `prefill` is the FLOP/s at which prompts are read. Above 1: the seconds cannot be those of such a GPU.
    """
    seconds = gpu_seconds - 2 * shape.parameters * work.observed_ids / prefill
    step = decode_step(shape.parameters, batch, work.context, shape.kv_bytes, 1, bandwidth)
    return work.sampled_ids / batch * step / seconds if seconds > 0 else math.inf


# -- schedules --------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Schedule:
    """One way to use the GPUs, and the seconds that an update takes."""

    sharded: bool
    engine_gpus: int  # of one engine
    engines: int  # GPUs that sample
    trainers: int  # GPUs that train; in turns both are all GPUs
    batch: float  # episodes side by side in an engine
    rollout: float
    training: float
    longest: float  # of the longest episode; in turns it is a part of the rollout
    sync: float
    lag: int  # 0: in turns
    update: float
    limit: str

    @property
    def in_turns(self) -> bool:
        """Whether all GPUs sample, and then all train."""
        return self.lag == 0


@dataclass(frozen=True)
class Planner:
    """What all schedules of a plan share."""

    shape: Shape
    work: Work
    training: Training
    gpu: Gpu
    gpus: int
    rates: Rates = Rates()

    def memory(self, ranks: int, sharded: bool) -> dict[str, float]:
        """See `training_memory`."""
        return training_memory(self.shape, self.training, ranks, sharded)

    def trains(self, ranks: int, sharded: bool) -> bool:
        """Whether training fits into a GPU."""
        return sum(self.memory(ranks, sharded).values()) <= self.rates.usable * self.gpu.memory

    def in_turns(self, engines: int, trainers: int) -> bool:
        """Whether all GPUs sample, and then all train."""
        return engines == trainers == self.gpus

    def batch(self, sharded: bool, engine_gpus: int, engines: int, trainers: int) -> tuple[float, bool]:
        """Episodes side by side in an engine, and whether memory limits them; otherwise there are no more."""
        room, in_turns = self.rates.usable * self.gpu.memory, self.in_turns(engines, trainers)
        if in_turns:
            room -= sum(self.memory(self.gpus, sharded)[part] for part in KEPT)
            room = min(room, (self.rates.engine_memory or 1.0) * self.gpu.memory)
        fit = side_by_side(self.shape, room, engine_gpus, self.work.context)
        episodes = self.work.episodes * (1 if in_turns else self.rates.most_lag)
        there = max(episodes / (engines // engine_gpus), 1.0)
        return min(fit, there), fit < there

    def step(self, batch: float, engine_gpus: int) -> float:
        """See `decode_step`."""
        bandwidth = self.rates.decode * self.gpu.bandwidth
        return decode_step(
            self.shape.parameters, batch, self.work.context, self.shape.kv_bytes, engine_gpus, bandwidth
        )  # fmt: skip

    def exchange(self, ranks: int, sharded: bool) -> float:
        """Seconds in which ranks exchange weights and gradients in an update; computing overlaps them."""
        training, link = self.training, self.gpu.link if ranks <= self.rates.node else self.rates.network
        steps = training.epochs * training.minibatches
        of_rank = math.ceil(self.work.ids / ranks / training.minibatches / training.micro_batch_tokens)
        passes = steps * (of_rank if sharded else 1)
        return passes * pass_bytes(training, self.shape.parameters, ranks, sharded) / link

    def schedule(self, sharded: bool, engine_gpus: int, engines: int, trainers: int) -> Schedule:
        """The seconds of an update. In turns if `engines` and `trainers` are all GPUs, otherwise apart.

        In turns: max(rollout / G, longest episode) + training / G + 2 transfers. Apart: max(training / W, rollout / E,
        longest episode / lag) + transfer, with a lag of at most `Rates.most_lag`.
        """
        rates, total, in_turns = self.rates, self.shape.parameters, self.in_turns(engines, trainers)
        batch, by_memory = self.batch(sharded, engine_gpus, engines, trainers)
        step = self.step(batch, engine_gpus)
        rollout = rollout_seconds(self.work, total, batch / step, engine_gpus, rates.prefill * self.gpu.peak) / engines
        compute = training_seconds(self.training, total, self.work.ids, rates.mfu * self.gpu.peak) / trainers
        exchange = self.exchange(trainers, sharded)
        training, longest = max(compute, exchange), episode_seconds(self.work, step)
        sync = transfer_seconds(total, min(self.gpu.link, rates.network), rates.sync_seconds)
        if in_turns:
            lag, update, waits = 0, max(rollout, longest) + training + 2 * sync, longest - rollout
        else:
            fastest = max(rollout, training) + sync
            lag = min(math.ceil(longest / fastest), rates.most_lag)
            update = max(fastest, longest / lag)
            waits = update if update > fastest else 0.0
        few = by_memory and 2 * total > batch * self.work.context * self.shape.kv_bytes
        terms = {
            "memory" if few else "decode bandwidth": rollout,
            "interconnect" if exchange > compute else "training compute": training,
            "the longest episode": waits,
            "weight transfer": (2 if in_turns else 1) * sync,
        }
        limit = max(terms, key=terms.__getitem__)
        return Schedule(
            sharded, engine_gpus, engines, trainers, batch, rollout, training, longest, sync, lag, update, limit
        )  # fmt: skip

    def fitting(self, engine_gpus: int | None = None) -> list[Schedule]:
        """Every schedule that fits into memory, with engines of `engine_gpus` GPUs.

        None: the fewest of `ENGINES` with which any fits, as what the GPUs of an engine exchange is not counted.
        """
        for size in [engine_gpus] if engine_gpus else ENGINES:
            if self.gpus % size or self.shape.heads % size:
                continue
            splits = [(engines, self.gpus - engines) for engines in range(size, self.gpus, size)]
            found = [
                self.schedule(sharded, size, engines, trainers)
                for engines, trainers in [(self.gpus, self.gpus), *splits]
                for sharded in ((False, True) if trainers > 1 else (False,))
                if self.fits(sharded, size, engines, trainers)
            ]
            if found:
                return found
        return []

    def fits(self, sharded: bool, engine_gpus: int, engines: int, trainers: int) -> bool:
        """Whether both training and at least one episode fit into memory."""
        return self.trains(trainers, sharded) and self.batch(sharded, engine_gpus, engines, trainers)[0] >= 1

    def check(self, engine_gpus: int | None) -> None:
        """Raise `ValueError` if there are no engines of so many GPUs, or if nothing fits, saying what would."""
        heads = self.shape.heads
        if engine_gpus and (heads % engine_gpus or self.gpus % engine_gpus):
            sizes = [str(n) for n in range(1, self.gpus + 1) if heads % n == self.gpus % n == 0]
            raise ValueError(
                f"plan.tensor_parallel={engine_gpus} must divide the {heads} attention heads of the model and "
                f"gpus={self.gpus}: {', '.join(sizes)}"
            )
        if self.fitting(engine_gpus):
            return
        room, parts = self.rates.usable * self.gpu.memory, self.memory(self.gpus, sharded=self.gpus > 1)
        doing = "training"
        if sum(parts.values()) <= room:
            doing, parts = "sampling", {part: parts[part] for part in KEPT}
            parts["engine's weights"] = 2 * self.shape.parameters / (engine_gpus or 1)
        largest = max(parts, key=parts.__getitem__)
        raise ValueError(
            f"nothing fits: {doing} needs {sum(parts.values()) / GIGA:.1f} GB of a GPU, "
            f"and {room / GIGA:.1f} are usable; the largest part is {largest}, {parts[largest] / GIGA:.1f} GB; "
            f"what would fit: {self._would_fit(engine_gpus)}"
        )

    def _would_fit(self, engine_gpus: int | None) -> str:
        """Changes of a setting, and of the size of a pass where it must be, with which all GPUs train and sample."""

        def fits(**changes: Any) -> bool:
            plan = replace(self, **changes)
            sizes = [
                n for n in ([engine_gpus] if engine_gpus else ENGINES) if plan.gpus % n == plan.shape.heads % n == 0
            ]
            return any(plan.fits(plan.gpus > 1, size, plan.gpus, plan.gpus) for size in sizes)

        own = self.training
        larger = sorted((gpu.memory, name) for name, gpu in GPUS.items() if gpu.memory > self.gpu.memory)
        changes: list[tuple[str, dict[str, Any]]] = [
            ("trainer.gradient_checkpointing=true", {"training": replace(own, checkpointing=True)}),
            *((f"gpus={n}", {"gpus": n}) for n in (self.gpus * 2**k for k in range(1, 8))),
            *((f"gpu={name}", {"gpu": GPUS[name]}) for _, name in larger),
            ("policy=lora", {"training": replace(own, adapters=own.adapters or 32)}),
        ]
        found: dict[str, str] = {}  # the first of each setting
        for tokens in (own.micro_batch_tokens // 2**k for k in range(4)):
            smaller = f"trainer.micro_batch_tokens={tokens}" if tokens < own.micro_batch_tokens else ""
            for text, change in [("", {}), *changes]:
                setting = text.partition("=")[0]
                training = replace(change.get("training", own), micro_batch_tokens=tokens)
                if setting not in found and (text or smaller) and fits(**{**change, "training": training}):
                    found[setting] = " with ".join(filter(None, (text, smaller)))
        return ", or ".join(found.values()) or "a smaller model"
