"""One policy update: from samples and advantages to new weights."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from agents.policies.lora import has_adapters, without_adapters
from agents.policies.models import head_logits, pad
from agents.samples import Sample
from algorithms.losses import aggregate, aggregation_divisor, entropy, kl_estimate
from envs.core import UnknownNameError

# (logprobs, old_logprobs, advantages, mask), each [B, T] -> loss per token [B, T] and statistics per token
PolicyLoss: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, dict[str, Tensor]]]

logger = logging.getLogger(__name__)

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
MOST_LOGITS = 2**26  # at a time: 256 MB in float32, and as much again in the backward pass
LENGTH_STEP = 64  # widths are padded to a multiple: in bf16 every new shape costs a CPU a new kernel


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


@dataclass(frozen=True)
class _Batch:
    """B sequences of T + 1 ids; everything but `ids` is about the T ids that follow the first. All [B, T]."""

    ids: Tensor  # [B, T + 1]
    mask: Tensor
    old_logprobs: Tensor
    advantages: Tensor


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
        self, samples: Sequence[Sample], advantages: NDArray[np.float64], rng: np.random.Generator, learning_rate: float
    ) -> dict[str, float]:
        """Learn from all samples once. `advantages` [N] has one entry for each turn that the samples were made of.

        Returns the metrics of the update. The first minibatch is seen by the weights that sampled it, so there the
        difference of log-probabilities is the mismatch between sampling and training. Where no advantage differs from
        zero nothing is trained on, and the means over tokens are left out.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        order = rng.permutation(len(samples))
        sums: dict[str, float] = {}
        for number, part in enumerate(np.array_split(order, min(self.config.minibatches, len(samples)))):
            chosen = [samples[i] for i in part]
            totals = self._step(chosen, advantages)
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

    def _step(self, samples: Sequence[Sample], advantages: NDArray[np.float64]) -> dict[str, float]:
        """One optimiser step."""
        totals = self._gradients(samples, advantages)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return {**totals, "grad_norm": float(norm), "steps": 1.0}

    def _gradients(self, samples: Sequence[Sample], advantages: NDArray[np.float64]) -> dict[str, float]:
        """The gradients of all samples, and what was counted on the way.

        Where the memory does not suffice, all of it is done again with micro-batches of half the size, which is said
        and kept; the error comes through once a micro-batch is a single sample.
        """
        while True:
            micro_batches = self._micro_batches(samples, advantages)
            try:
                with self._layers_checkpointed():
                    return self._accumulate(samples, micro_batches, advantages)
            except RuntimeError as error:
                if not _out_of_memory(error) or max(map(len, micro_batches)) == 1:
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

    def _accumulate(
        self, samples: Sequence[Sample], micro_batches: Sequence[Sequence[Sample]], advantages: NDArray[np.float64]
    ) -> dict[str, float]:
        """Gradients of one pass. The divisor is that of all samples, also of those that need no pass of their own."""
        masks = pad([s.mask for s in samples], self.device).bool()
        divisor = self.config.loss_divisor or aggregation_divisor(masks, self.config.aggregation)
        totals = dict.fromkeys(
            ("loss", "kl", "entropy", "clip_fraction", "approx_kl", "tokens", "max_log_ratio", "trained_tokens"), 0.0
        )
        for micro_batch in micro_batches:
            batch = self._tensors(micro_batch, advantages)
            loss = self._loss(batch, divisor, totals)
            loss.backward()  # type: ignore[no-untyped-call]
            totals["loss"] += float(loss.detach())
            totals["trained_tokens"] += sum(len(s.ids) for s in micro_batch)
        return totals

    def _micro_batches(self, samples: Sequence[Sample], advantages: NDArray[np.float64]) -> list[list[Sample]]:
        """Samples of similar length together, at most `micro_batch_tokens` padded tokens (or one sample) at a time.

        Without KL, a sample whose advantages are all zero has no gradient and is left out.
        """
        useful = [
            s for s in samples if self.config.kl_coef or any(advantages[row] != 0.0 for row in set(s.turn) - {-1})
        ]
        batches: list[list[Sample]] = []
        for sample in sorted(useful, key=lambda s: -len(s.ids)):  # the first of a batch is its longest
            width = -(-len((batches[-1][0] if batches else sample).ids) // LENGTH_STEP) * LENGTH_STEP
            if not batches or width * (len(batches[-1]) + 1) > self.micro_batch_tokens:
                batches.append([])
            batches[-1].append(sample)
        return batches

    def _tensors(self, samples: Sequence[Sample], advantages: NDArray[np.float64]) -> _Batch:
        width = -(-max(len(s.ids) for s in samples) // LENGTH_STEP) * LENGTH_STEP + 1
        ids = torch.zeros(len(samples), width, dtype=torch.long)
        mask = torch.zeros(len(samples), width, dtype=torch.bool)
        logprobs = torch.zeros(len(samples), width)
        spread = torch.zeros(len(samples), width)
        by_row = np.append(advantages, 0.0)  # turn -1, an id that nobody sampled, takes the last
        for b, sample in enumerate(samples):
            length = len(sample.ids)
            ids[b, :length] = torch.tensor(sample.ids)
            mask[b, :length] = torch.tensor(sample.mask)
            logprobs[b, :length] = torch.tensor(sample.logprobs)
            spread[b, :length] = torch.from_numpy(by_row[sample.turn])
        return _Batch(*(t.to(self.device) for t in (ids, mask[:, 1:], logprobs[:, 1:], spread[:, 1:])))

    def _loss(self, batch: _Batch, divisor: float, totals: dict[str, float]) -> Tensor:
        logprobs, entropies = self._sampled_logprobs(self.model, batch)
        per_token, stats = self.config.loss(logprobs, batch.old_logprobs, batch.advantages, batch.mask)
        if self.config.kl_coef:
            with torch.no_grad():
                reference = self._reference_logprobs(batch)
            kl = kl_estimate(logprobs, reference)
            per_token = per_token + self.config.kl_coef * kl
            totals["kl"] += float(kl.detach()[batch.mask].sum())
        log_ratio = (logprobs.detach() - batch.old_logprobs)[batch.mask]
        totals["max_log_ratio"] = max(totals["max_log_ratio"], float(log_ratio.abs().max()))
        totals["entropy"] += float(entropies.sum())
        totals["tokens"] += float(batch.mask.sum())
        for name, values in stats.items():
            totals[name] += float(values[batch.mask].sum())
        return aggregate(per_token, batch.mask, self.config.aggregation, divisor)

    def _reference_logprobs(self, batch: _Batch) -> Tensor:
        if self.reference is not None:
            return self._sampled_logprobs(self.reference, batch)[0]
        with without_adapters(self.model):
            return self._sampled_logprobs(self.model, batch)[0]

    def _sampled_logprobs(self, model: Any, batch: _Batch) -> tuple[Tensor, Tensor]:
        """Log-probabilities [B, T] of the sampled ids (0 elsewhere) and the entropies [M] they were sampled at.

        Logits are made at the M sampled ids only: observations are most of a sequence and need none.
        """
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            hidden = model.base_model(input_ids=batch.ids[:, :-1], use_cache=False).last_hidden_state  # (B, T, E)
            chosen, entropies = chosen_logprobs(
                model,
                hidden[batch.mask],
                batch.ids[:, 1:][batch.mask],
                self.config.temperature or 1.0,
            )
        logprobs = torch.zeros(batch.mask.shape, device=self.device).masked_scatter(batch.mask, chosen)
        return logprobs, entropies


def chosen_logprobs(
    model: Any, hidden: Tensor, chosen: Tensor, temperature: float, most_logits: int = MOST_LOGITS
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the ids `chosen` [M] after the states `hidden` [M, E], and the entropies [M], in nats.

    Never more than `most_logits` logits exist at a time: where M states make more, they are done in parts, and the
    backward pass makes each part's again.
    """

    def part(states: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        logits = head_logits(model, states) / temperature
        return logits.log_softmax(-1).gather(-1, ids[:, None])[:, 0], entropy(logits.detach())

    size = max(1, most_logits // model.config.get_text_config().vocab_size)
    if len(chosen) <= size:
        return part(hidden, chosen)
    parts = [
        checkpoint(part, states, ids, use_reentrant=False)
        for states, ids in zip(torch.split(hidden, size), torch.split(chosen, size), strict=True)
    ]
    return torch.cat([logprobs for logprobs, _ in parts]), torch.cat([entropies for _, entropies in parts])


def _out_of_memory(error: RuntimeError) -> bool:
    """CUDA has a class for it, the allocator of CPUs only a sentence."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
