"""Plan a run on several GPUs: `python -m scripts.plan model=Qwen/Qwen2.5-7B-Instruct gpus=8`.

It prints the memory of a GPU by part, bytes and seconds of an update, and the fastest way to use the GPUs, by the
formulas of `algorithms.plan`. It downloads and starts nothing, and accepts all settings of `scripts.train`.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import MISSING, fields, replace
from functools import reduce
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich import box
from rich.table import Table

from algorithms.checkpoint import checkpoints
from algorithms.plan import (
    GIGA,
    GPUS,
    KEPT,
    Planner,
    Rates,
    Schedule,
    Shape,
    Training,
    Work,
    known_shape,
    pass_bytes,
    reached_decode,
    reached_mfu,
    training_memory,
    transfer_seconds,
)
from envs.core import UnknownNameError, counted
from envs.files import read_json_lines
from scripts.common import Terminal, command

LINE = 120  # characters
RANK = 32  # of the adapters in the table, if the plan has no adapters
MEASURED = (  # metrics that a measured run must have
    "rollout/episodes", "rollout/turns", "tokens/sampled", "tokens/trained", "tokens/prefix_breaks", "time/rollout_s",
    "perf/trained_tokens_per_s",
)  # fmt: skip


@command("plan")
def main(cfg: DictConfig) -> None:
    """Print the plan. If the model does not fit, raises `ValueError` after the table of memory."""
    if cfg.gpu not in GPUS:
        raise UnknownNameError("gpu", cfg.gpu, GPUS)
    shape = given_shape(cfg.shape) if cfg.shape is not None else shape_of(cfg.model)
    planner = Planner(shape, work_of(cfg), training_of(cfg), GPUS[cfg.gpu], cfg.gpus, rates_of(cfg))
    planner, sources = with_measured(planner, cfg)
    console = Terminal(width=LINE, soft_wrap=True)
    for line in heading(planner, cfg, sources):
        console.print(line)
    console.print(memory_table(planner))
    planner.check(cfg.plan.tensor_parallel)
    found = best(planner.fitting(cfg.plan.tensor_parallel))
    for line in exchange_lines(planner):
        console.print(line)
    console.print(schedule_table(planner, found))
    for line in verdicts(found):
        console.print(line)


# -- model, work, hardware --------------------------------------------------------------------------------------------
def shape_of(model: str | None) -> Shape:
    """The shape of a model, from its folder, the newest checkpoint of a training run, or a published model's name."""
    if not model:
        raise ValueError(
            "scripts.plan needs a model: model=FOLDER, a name such as Qwen/Qwen2.5-7B-Instruct, or shape={…}"
        )
    path = Path(model).expanduser()
    if not path.exists():
        return known_shape(model)
    saved = checkpoints(path) if (path / "checkpoints").is_dir() else []
    folder = saved[-1] if saved else path
    for name in ("config.json", "adapter_config.json"):
        if (folder / name).is_file():
            config = read_object(folder / name)
            return Shape.of_config(config) if name == "config.json" else shape_of(config["base_model_name_or_path"])
    raise FileNotFoundError(f"{folder} has no config.json: expected a model of Hugging Face or a training run")


def given_shape(given: DictConfig) -> Shape:
    """The shape that the command line gives. Raises for keys that are missing or unknown."""
    known = {field.name: field.default is MISSING for field in fields(Shape)}
    if unknown := [name for name in given if name not in known]:
        raise UnknownNameError("key of shape", str(unknown[0]), known)
    if missing := [name for name, needed in known.items() if needed and name not in given]:
        raise ValueError(f"shape needs {', '.join(missing)}")
    shape = Shape(**given)
    if shape.of_head == 0:
        raise ValueError(f"shape.heads={shape.heads} is more than shape.width={shape.width}")
    return shape


def work_of(cfg: DictConfig) -> Work:
    """The episodes of an update, from `trainer` and `plan`."""
    longest = cfg.trainer.max_turns
    turns = cfg.plan.turns or longest
    if turns > longest:
        raise ValueError(
            f"plan.turns={turns:g} is more than trainer.max_turns={longest}, the turns of the longest episode"
        )
    return Work(
        cfg.trainer.groups * cfg.trainer.group_size, turns, longest, cfg.plan.sampled, cfg.plan.observed,
        cfg.plan.sequence_turns or turns, cfg.plan.env_seconds,
    )  # fmt: skip


def training_of(cfg: DictConfig) -> Training:
    """The settings of the trainer."""
    return Training(
        adapters=(cfg.policy.get("lora") or {}).get("rank", 0),
        reference=cfg.algo.kl_coef > 0,
        correction=cfg.trainer.correction is not None,
        checkpointing=cfg.trainer.gradient_checkpointing,
        computed=2 if cfg.trainer.precision == "bfloat16" else 4,
        micro_batch_tokens=cfg.trainer.micro_batch_tokens,
        epochs=cfg.trainer.epochs,
        minibatches=cfg.trainer.minibatches,
    )


def rates_of(cfg: DictConfig) -> Rates:
    """The assumptions."""
    plan = cfg.plan
    return Rates(
        plan.mfu, plan.decode, plan.prefill, plan.network * GIGA, plan.sync_seconds, plan.usable,
        cfg.rollout.get("gpu_memory"), plan.most_lag, plan.node,
    )  # fmt: skip


# -- measured figures -------------------------------------------------------------------------------------------------
def with_measured(planner: Planner, cfg: DictConfig) -> tuple[Planner, list[str]]:
    """The plan with measured figures of a run and a benchmark instead of assumed ones, and a description of these."""
    sources: list[str] = []
    if cfg.measured:
        run = Path(cfg.measured).expanduser()
        lines = read_updates(run)
        settings = OmegaConf.load(run / ".hydra" / "config.yaml")
        work = measured_work(planner.work, lines, settings.trainer.epochs)
        planner = replace(planner, work=replace(work, episodes=planner.work.episodes))
        sources.append(f"{run}: turns and ids of episodes")
        if cfg.plan.measured_gpus:
            rates = measured_rates(
                planner, shape_of(str(run)), work, training_of(settings), lines, cfg.plan.measured_gpus
            )
            planner = replace(planner, rates=rates)
            sources.append(f"{run}: mfu {rates.mfu:.3f}, decode {rates.decode:.3f}")
    if cfg.benchmark:
        changes = benchmark_rates(Path(cfg.benchmark), planner)
        planner = replace(planner, rates=replace(planner.rates, **changes))
        sources.append(f"{cfg.benchmark}: " + ", ".join(f"{name} {value:.3g}" for name, value in changes.items()))
    return planner, sources


def read_updates(run: Path) -> list[dict[str, float]]:
    """The metrics of a run's updates. The first update includes warm-up; it is left out if there are others."""
    lines = read_json_lines(run / "metrics.jsonl")
    updates = [line for line in lines if all(key in line for key in MEASURED)]
    if not updates:
        raise ValueError(f"{run / 'metrics.jsonl'} has no update yet, with {', '.join(MEASURED)}")
    return updates[1:] or updates


def median(lines: Sequence[dict[str, float]], key: str) -> float:
    """The median of a metric."""
    return statistics.median(line[key] for line in lines)


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises `ValueError` for anything else."""
    try:
        return dict(json.loads(file.read_bytes()))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file} is damaged: expected a JSON object") from error


def measured_work(assumed: Work, lines: Sequence[dict[str, float]], epochs: int) -> Work:
    """The measured work of an update: turns, ids, and turns in a training sequence."""
    episodes, turns = median(lines, "rollout/episodes"), median(lines, "rollout/turns")
    sequences = episodes + median(lines, "tokens/prefix_breaks")
    sampled = median(lines, "tokens/sampled") / (episodes * turns)
    whole = median(lines, "tokens/trained") / (epochs * episodes * turns)
    return replace(
        assumed, episodes=round(episodes), turns=turns, longest=max(turns, assumed.longest), sampled=sampled,
        observed=max(whole - sampled, 0.0), sequence_turns=max(episodes * turns / sequences, 1.0),
    )  # fmt: skip


def measured_rates(
    planner: Planner, shape: Shape, work: Work, training: Training, lines: Sequence[dict[str, float]], gpus: int
) -> Rates:
    """The shares of a GPU's data sheet that a run on `gpus` of them reached."""
    gpu, rates = planner.gpu, planner.rates
    mfu = reached_mfu(training, shape.parameters, median(lines, "perf/trained_tokens_per_s") / gpus, gpu.peak)
    seconds = median(lines, "time/rollout_s") * gpus
    decode = reached_decode(work, shape, work.episodes / gpus, seconds, gpu.bandwidth, rates.prefill * gpu.peak)
    for name, value in (("mfu", mfu), ("decode", decode)):
        if not 0 < value <= 1:
            raise ValueError(
                f"with plan.measured_gpus={gpus} × {gpu.device} the measured run would reach {name}={value:.3g}, and "
                "at most 1 is possible; give the GPUs that it used, or plan.measured_gpus=0"
            )
    return replace(rates, mfu=mfu, decode=decode)


def benchmark_rates(file: Path, planner: Planner) -> dict[str, float]:
    """The shares that `benchmarks.gpu` measured, of the largest model that it trained."""
    figures = read_object(file)
    device, gpu = figures.get("device"), planner.gpu
    if device != gpu.device:
        names = [name for name, known in GPUS.items() if known.device == device]
        hint = f"; gpu={names[0]} is the one" if names else ""
        raise ValueError(f"{file} was measured on {device!r}, and the plan is for {gpu.device!r}{hint}")
    checkpointed = planner.training.checkpointing

    def of(*names: str) -> list[float]:
        """The figure of every model that has one, the largest model last."""
        found = (reduce(lambda part, name: part.get(name, {}) if isinstance(part, dict) else {}, names, part)
                 for part in figures.values())  # fmt: skip
        return [value for value in found if isinstance(value, float | int)]

    trained = of("training, checkpointed" if checkpointed else "training", "utilisation")
    # This utilisation counts the forward pass that checkpointing repeats once: 6 of 8 FLOPs.
    found = {"mfu": [value * (8 / 6 if checkpointed else 1) for value in trained]}
    found["decode"] = of("sampling, vllm", "decoding", "bandwidth")
    found["network"] = [value * GIGA for value in of("two gpus", "weight_transfer_gb_per_s")]
    return {name: values[-1] for name, values in found.items() if values}


# -- output -----------------------------------------------------------------------------------------------------------
def heading(planner: Planner, cfg: DictConfig, sources: Sequence[str]) -> list[str]:
    """The model, the GPUs, the work, and what is assumed."""
    gpu, work, rates, training = planner.gpu, planner.work, planner.rates, planner.training
    trained = f"adapters of rank {training.adapters} are trained" if training.adapters else "all are trained"
    signals = sorted({"critic", "implicit_prm", "progress"} & {*(cfg.algo.get("signals") or {})})
    return [
        f"{cfg.model if not cfg.shape else 'the shape'}: {planner.shape.parameters / GIGA:.2f}B parameters, {trained}",
        f"{planner.gpus} × {gpu.device}: {gpu.memory / GIGA:.0f} GB, {gpu.bandwidth / GIGA:,.0f} GB/s, "
        f"{gpu.peak / 1e12:,.0f} TFLOP/s in bfloat16, {gpu.link / GIGA:.0f} GB/s to each other",
        f"an update: {work.episodes:,} episodes × {work.turns:.3g} turns (at most {work.longest:.3g}) × "
        f"({work.sampled:.0f} sampled + {work.observed:.0f} read) ids = {work.ids / 1e6:.2f}M ids",
        f"rates: mfu {rates.mfu:.3g}, decode {rates.decode:.3g}, prefill {rates.prefill:.3g}, "
        f"network {rates.network / GIGA:.3g} GB/s" + ("" if sources else " (assumed)"),
        *[f"measured by {source}" for source in sources],
        *[f"not counted: the weights of algo.signals.{name}" for name in signals],
    ]


def memory_table(planner: Planner) -> Table:
    """GB of a GPU by part, all GPUs training, for replicas and shards, of all weights and of adapters."""
    rank = planner.training.adapters or RANK
    columns = {
        f"{name}{kind}": training_memory(
            planner.shape, replace(planner.training, adapters=adapters), planner.gpus, kind == "shards"
        )
        for name, adapters in (("", 0), (f"LoRA {rank}, ", rank))
        for kind in ("replicas", "shards")
    }
    table = _table("GB of a GPU", columns)
    for part in dict.fromkeys(part for column in columns.values() for part in column):
        table.add_row(part, *(_gb(column.get(part, 0.0)) for column in columns.values()))
    room = planner.rates.usable * planner.gpu.memory
    totals = [sum(column.values()) for column in columns.values()]
    table.add_section()
    table.add_row(f"together, of {room / GIGA:.1f}", *(("" if t <= room else "too large: ") + _gb(t) for t in totals))
    left = [room - sum(column[part] for part in KEPT) for column in columns.values()]
    table.add_row("left for an engine while it samples", *(_gb(max(value, 0.0)) for value in left))
    return table


def _gb(value: float) -> str:
    return f"{value / GIGA:,.1f}" if value else "–"


def exchange_lines(planner: Planner) -> list[str]:
    """Bytes of weights and caches, and bytes sent in a transfer of weights and in a pass."""
    total, rates, context = planner.shape.parameters, planner.rates, planner.work.context
    seconds = transfer_seconds(total, min(planner.gpu.link, rates.network), rates.sync_seconds)
    shards, replicas = (pass_bytes(planner.training, total, planner.gpus, sharded) / GIGA for sharded in (True, False))
    cached = planner.shape.kv_bytes * context / GIGA
    return [
        f"an engine: {2 * total / GIGA:.1f} GB of weights, {cached:.2f} GB of keys and values for {context:,.0f} ids",
        f"a transfer of weights to engines: {2 * total / GIGA:.1f} GB in {seconds:.1f} s",
        f"to each GPU: {shards:.1f} GB in a pass of shards, {replicas:.1f} GB in an optimiser step of replicas",
    ]


def best(schedules: Iterable[Schedule]) -> list[Schedule]:
    """The fastest schedule of each kind: replicas or shards, in turns or apart; the fastest of them first."""
    fastest: dict[tuple[bool, bool], Schedule] = {}
    for schedule in schedules:
        kind = (schedule.sharded, schedule.in_turns)
        if kind not in fastest or schedule.update < fastest[kind].update:
            fastest[kind] = schedule
    return sorted(fastest.values(), key=lambda schedule: schedule.update)


def name_of(schedule: Schedule) -> str:
    """The option of the group `parallel`."""
    return "shards" if schedule.sharded else "replicas" if schedule.trainers > 1 else "none"


def schedule_table(planner: Planner, schedules: Sequence[Schedule]) -> Table:
    """Seconds of an update by part, and tokens per second; a column for each schedule."""
    work, epochs = planner.work, planner.training.epochs
    rows: dict[str, Callable[[Schedule], str]] = {
        "GPUs": lambda s: "in turns" if s.in_turns else f"{s.engines} sample, {s.trainers} train",
        "GPUs of an engine": lambda s: str(s.engine_gpus),
        "episodes side by side in an engine": lambda s: f"{s.batch:.0f}",
        "rollout, s": lambda s: f"{s.rollout:,.1f}",
        "longest episode, s": lambda s: f"{s.longest:,.1f}",
        "training, s": lambda s: f"{s.training:,.1f}",
        "transfer of weights, s": lambda s: f"{s.sync:,.1f}",
        "update, s": lambda s: f"{s.update:,.1f}",
        "lag, updates": lambda s: str(s.lag),
        "sampled ids/s": lambda s: f"{work.sampled_ids / max(s.rollout, s.longest if s.in_turns else 0):,.0f}",
        "trained ids/s": lambda s: f"{work.ids * epochs / s.training:,.0f}",
        "limited by": lambda s: s.limit,
    }
    table = _table("parallel", [name_of(schedule) for schedule in schedules])
    for name, value in rows.items():
        table.add_row(name, *map(value, schedules))
    return table


def _table(corner: str, columns: Iterable[str]) -> Table:
    table = Table(corner, box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def verdicts(schedules: Sequence[Schedule]) -> Iterator[str]:
    """The best schedule in turns and the best apart, in a line each."""
    turns = next((schedule for schedule in schedules if schedule.in_turns), None)
    apart = next((schedule for schedule in schedules if not schedule.in_turns), None)
    if turns:
        yield (f"best in turns: parallel={name_of(turns)}, {turns.update:,.1f} s an update; limited by {turns.limit}")
    if apart:
        gain = f", {turns.update / apart.update:.2f} times as fast" if turns else ""
        yield (
            f"best apart: {apart.engines} GPUs sample while {apart.trainers} train on episodes that are up to "
            f"{counted(apart.lag, 'update')} old, {apart.update:,.1f} s an update{gain}; limited by {apart.limit}"
        )


if __name__ == "__main__":
    main()
