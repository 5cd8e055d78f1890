"""One policy update: from samples and advantages to new weights."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers.modeling_layers import GradientCheckpointingLayer

from agents.policies.lora import has_adapters, without_adapters
from agents.policies.models import pad
from agents.samples import Sample
from algorithms.batches import Batch, by_sample, make_batch, micro_batches, sampled_logprobs
from algorithms.losses import UNIT_MEANS, aggregate, aggregation_divisor, kl_estimate
from algorithms.turn_table import TurnTable
from envs.core import UnknownNameError

# (logprobs, old_logprobs, advantages, mask), each [B, T] -> loss per token [B, T] and statistics per token
PolicyLoss: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, dict[str, Tensor]]]

logger = logging.getLogger(__name__)

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def check_precision(precision: str, device: torch.device) -> torch.dtype:
    """The dtype to compute in. Raises `ValueError` for bfloat16 on a device that would only emulate it."""
    if precision not in PRECISIONS:
        raise UnknownNameError("precision", precision, PRECISIONS)
    has = {"cuda": torch.cuda.is_bf16_supported, "cpu": torch.cpu._is_avx512_bf16_supported}
    if precision == "bfloat16" and device.type in has and not has[device.type]():
        raise ValueError(f"this {device.type} has no bfloat16 arithmetic; use trainer.precision=float32")
    return PRECISIONS[precision]


@dataclass(frozen=True)
class LearnerConfig:
    """How to learn from one batch. An update takes `minibatches` optimiser steps over disjoint parts of the batch."""

    loss: PolicyLoss
    aggregation: str
    loss_divisor: float | None  # the constant of "seq-mean-token-sum-norm"; None: counted in each minibatch
    kl_coef: float  # weight of KL(policy ‖ reference) in the loss, estimator k3; 0 keeps no reference
    learning_rate: float
    final_learning_rate: float  # at the end of the run; it goes there in a line
    warmup_updates: int  # over which the rate rises from nothing, in a line too
    weight_decay: float
    grad_clip: float
    minibatches: int
    micro_batch_tokens: int  # padded tokens in one forward and backward pass
    gradient_checkpointing: bool  # keep the layers' inputs alone and compute the rest again: less memory, more time
    precision: str
    temperature: float  # of sampling: log-probabilities are those of what was sampled from

    def rate(self, update: int, updates: int) -> float:
        """The learning rate of update number `update`, from 0, of `updates`."""
        share = update / updates
        line = (1 - share) * self.learning_rate + share * self.final_learning_rate
        return line * min(1.0, (update + 1) / max(self.warmup_updates, 1))


class Example(NamedTuple):
    """A sample and what is to be learned from each of its ids that were sampled."""

    sample: Sample
    advantages: NDArray[np.float64]  # one for each sampled id
    unit_tokens: NDArray[np.float64]  # how many tokens its turn or trajectory has, for means over those


class Learner:
    """AdamW on what can be trained of a policy's model, which it changes in place.

    `reference` is a copy of the weights that KL is measured to, taken when the learner is made. A model with adapters
    needs none: without them it is its own.
    """

    def __init__(self, model: Any, config: LearnerConfig) -> None:
        if config.minibatches < 1 or config.micro_batch_tokens < 1:
            raise ValueError("trainer.minibatches and trainer.micro_batch_tokens must be at least 1")
        self.model, self.config = model, config
        self.micro_batch_tokens = config.micro_batch_tokens  # halved where the memory does not suffice
        self.checkpointed = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
        if config.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        self.device = next(model.parameters()).device
        self.dtype = check_precision(config.precision, self.device)
        copied = config.kl_coef and not has_adapters(model)
        self.reference = copy.deepcopy(model).requires_grad_(False) if copied else None
        self.optimizer = torch.optim.AdamW(
            [p for p in model.parameters() if p.requires_grad],
            lr=config.learning_rate,
            betas=(0.9, 0.999),
            weight_decay=config.weight_decay,
        )

    def update(
        self, samples: Sequence[Sample], table: TurnTable, advantages: NDArray[np.float64],
        rng: np.random.Generator, learning_rate: float,
    ) -> dict[str, float]:  # fmt: skip
        """Learn from all samples once. `advantages` are one for each turn of `table`, [N], or each sampled id, [M].

        Returns the metrics of the update. The first minibatch is seen by the weights that sampled it, so there the
        difference of log-probabilities is the mismatch between sampling and training. Where no advantage differs from
        zero nothing is trained on, and the means over tokens are left out.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        examples = self._examples(samples, table, advantages)
        order = rng.permutation(len(examples))
        sums: dict[str, float] = {}
        for number, part in enumerate(np.array_split(order, min(self.config.minibatches, len(examples)))):
            totals = self._step([examples[i] for i in part])
            if number == 0 and totals["tokens"]:
                sums["mismatch/kl"] = totals["approx_kl"] / totals["tokens"]
                sums["mismatch/max_ratio"] = math.exp(totals["max_log_ratio"])
            for name in ("loss", "kl", "entropy", "clip_fraction", "tokens", "grad_norm", "steps", "trained_tokens"):
                sums[name] = sums.get(name, 0.0) + totals[name]
        metrics = {f"train/{name}": sums[name] / sums["steps"] for name in ("loss", "grad_norm")}
        if sums["tokens"]:
            metrics |= {f"train/{name}": sums[name] / sums["tokens"] for name in ("kl", "entropy", "clip_fraction")}
        metrics |= {name: value for name, value in sums.items() if name.startswith("mismatch/")}
        return {**metrics, "tokens/trained": sums["trained_tokens"]}

    def _examples(self, samples: Sequence[Sample], table: TurnTable, advantages: NDArray[np.float64]) -> list[Example]:
        units = unit_tokens(table, self.config.aggregation)
        columns = (by_sample(samples, table.per_token(advantages)), by_sample(samples, units))
        return [Example(*row) for row in zip(samples, *columns, strict=True)]

    def _step(self, examples: Sequence[Example]) -> dict[str, float]:
        """One optimiser step."""
        totals = self._gradients(examples)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return {**totals, "grad_norm": float(norm), "steps": 1.0}

    def _gradients(self, examples: Sequence[Example]) -> dict[str, float]:
        """The gradients of all examples, and what was counted on the way.

        Where the memory does not suffice, all of it is done again with micro-batches of half the size, which is said
        and kept; the error comes through once a micro-batch is a single sample.
        """
        while True:
            parts = self._micro_batches(examples)
            try:
                with self._layers_checkpointed():
                    return self._accumulate(examples, parts)
            except RuntimeError as error:
                if not _out_of_memory(error) or max(map(len, parts)) == 1:
                    raise
            # Outside of the handler, whose traceback holds on to the tensors of the pass that failed.
            self.model.zero_grad(set_to_none=True)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            self.micro_batch_tokens //= 2
            logger.warning("out of memory: going on with micro-batches of %d tokens", self.micro_batch_tokens)

    @contextmanager
    def _layers_checkpointed(self) -> Iterator[None]:
        """Layers are checkpointed in training mode alone; what is inside them stays as it sampled, without dropout."""
        for layer in self.checkpointed:
            layer.training = self.config.gradient_checkpointing
        try:
            yield
        finally:
            for layer in self.checkpointed:
                layer.training = False

    def _accumulate(self, examples: Sequence[Example], parts: Sequence[Sequence[Example]]) -> dict[str, float]:
        """Gradients of one pass. The divisor is that of all examples, also of those that need no pass of their own."""
        masks = pad([e.sample.mask for e in examples], self.device).bool()
        units = torch.zeros(masks.shape, dtype=torch.float64, device=self.device).masked_scatter(
            masks, torch.from_numpy(np.concatenate([e.unit_tokens for e in examples])).to(self.device)
        )
        divisor = self.config.loss_divisor or aggregation_divisor(masks, self.config.aggregation, units)
        totals = dict.fromkeys(
            ("loss", "kl", "entropy", "clip_fraction", "approx_kl", "tokens", "max_log_ratio", "trained_tokens"), 0.0
        )
        for part in parts:
            loss = self._loss(part, divisor, totals)
            loss.backward()  # type: ignore[no-untyped-call]
            totals["loss"] += float(loss.detach())
            totals["trained_tokens"] += sum(len(e.sample.ids) for e in part)
        return totals

    def _micro_batches(self, examples: Sequence[Example]) -> list[list[Example]]:
        """Without KL, an example whose advantages are all zero has no gradient and is left out."""
        useful = [e for e in examples if self.config.kl_coef or e.advantages.any()]
        parts = micro_batches([len(e.sample.ids) for e in useful], self.micro_batch_tokens)
        return [[useful[i] for i in part] for part in parts]

    def _loss(self, part: Sequence[Example], divisor: float, totals: dict[str, float]) -> Tensor:
        config, batch = self.config, make_batch([e.sample for e in part], self.device)
        logprobs, entropies = sampled_logprobs(self.model, batch, config.temperature, self.dtype)
        advantages = batch.spread([e.advantages for e in part])
        per_token, stats = config.loss(logprobs, batch.old_logprobs, advantages, batch.mask)
        if config.kl_coef:
            with torch.no_grad():
                reference = self._reference_logprobs(batch)
            kl = kl_estimate(logprobs, reference)
            per_token = per_token + config.kl_coef * kl
            totals["kl"] += float(kl.detach()[batch.mask].sum())
        log_ratio = (logprobs.detach() - batch.old_logprobs)[batch.mask]
        totals["max_log_ratio"] = max(totals["max_log_ratio"], float(log_ratio.abs().max()))
        totals["entropy"] += float(entropies.sum())
        totals["tokens"] += float(batch.mask.sum())
        for name, values in stats.items():
            totals[name] += float(values[batch.mask].sum())
        units = batch.spread([e.unit_tokens for e in part])
        return aggregate(per_token, batch.mask, config.aggregation, divisor, units)

    def _reference_logprobs(self, batch: Batch) -> Tensor:
        if self.reference is not None:
            return sampled_logprobs(self.reference, batch, self.config.temperature, self.dtype)[0]
        with without_adapters(self.model):
            return sampled_logprobs(self.model, batch, self.config.temperature, self.dtype)[0]


def unit_tokens(table: TurnTable, aggregation: str) -> NDArray[np.float64]:
    """[M] for "turn-mean" and "trajectory-mean" how many tokens the turn or trajectory of a token has; else 1."""
    rows = table.token_rows
    if aggregation not in UNIT_MEANS:
        return np.ones(len(rows))
    counts = np.bincount(rows, minlength=len(table)).astype(np.float64)
    return (counts if aggregation == "turn-mean" else table.episode_sums(counts))[rows]


def _out_of_memory(error: RuntimeError) -> bool:
    """CUDA has a class for it, the allocator of CPUs only a sentence."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
