"""One policy update: from samples and advantages to new weights."""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers.modeling_layers import GradientCheckpointingLayer

from agents.policies.models import pad
from agents.policies.weights import copy_trained, has_adapters, train_in_float32
from agents.samples import EPISODES, MIXED, TURNS, Sample
from algorithms.batches import (
    Batch,
    batch_layouts,
    by_sample,
    make_batch,
    micro_batches,
    read,
    sampled_logprobs,
    turn_of,
)
from algorithms.finite import FiniteSteps, Suspect, first_not_finite
from algorithms.losses import (
    AGGREGATIONS,
    KL_ESTIMATORS,
    UNIT_MEANS,
    aggregate,
    aggregation_divisor,
    importance_weights,
    kl_estimate,
    loss_layouts,
    probability_mask,
)
from algorithms.turn_table import TurnTable
from envs.core import UnknownNameError

# (logprobs, old_logprobs, advantages, mask), each [B, T] -> loss per token [B, T] and statistics per token
PolicyLoss: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, dict[str, Tensor]]]

logger = logging.getLogger(__name__)

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
KL_PLACES = ("loss", "reward")
ROWS = {
    TURNS: "every turn is a training sequence of its own",
    EPISODES: "every episode is one training sequence",
    MIXED: "some training sequences are single turns and others go on over several",
}
LARGEST_EXPONENT = 700.0  # whose exp() a float holds


def check_precision(precision: str, device: torch.device) -> torch.dtype:
    """The dtype to compute in. Raises `ValueError` for bfloat16 on a device that would only emulate it."""
    if precision not in PRECISIONS:
        raise UnknownNameError("precision", precision, PRECISIONS)
    has = {"cuda": torch.cuda.is_bf16_supported, "cpu": torch.cpu._is_avx512_bf16_supported}
    if precision == "bfloat16" and device.type in has and not has[device.type]():
        raise ValueError(f"this {device.type} has no bfloat16 arithmetic; use trainer.precision=float32")
    return PRECISIONS[precision]


@dataclass(frozen=True)
class Objective:
    """What an update minimises, which is a method's to say (conf/algo).

        aggregate(w · loss + kl_coef · KL - entropy_coef · entropy),  w: see `LearnerConfig.importance_cap`

    With `kl_in="reward"` there is no KL in it: every token pays kl_coef · KL as its `token_reward` instead, before the
    estimator runs, measured where it was sampled.
    """

    loss: PolicyLoss
    aggregation: str = "token-mean"
    loss_divisor: float | None = None  # the constant of "seq-mean-token-sum-norm"; None: counted in each minibatch
    kl_coef: float = 0.0  # weight of KL(policy ‖ reference); 0 keeps no reference
    kl_estimator: str = "k3"  # see `kl_estimate`
    kl_in: str = "loss"
    entropy_coef: float = 0.0  # weight of the entropy of the distributions that tokens were sampled from
    probability_mask: float | None = None  # leave out the tokens that were sampled at this probability or above (SPO)
    drop_zero_episodes: bool = False  # leave out the episodes whose advantages are all 0: the divisor counts the others

    def __post_init__(self) -> None:
        for name, known in (("aggregation", AGGREGATIONS), ("kl_estimator", KL_ESTIMATORS), ("kl_in", KL_PLACES)):
            if getattr(self, name) not in known:
                raise UnknownNameError(f"algo.{name}", getattr(self, name), known)
        if (self.aggregation == "seq-mean-token-sum-norm") != (self.loss_divisor is not None):
            raise ValueError(
                f"algo.loss_divisor is {self.loss_divisor} beside algo.aggregation={self.aggregation}; the aggregation "
                "seq-mean-token-sum-norm needs a constant, for example the token limit, and no other takes one"
            )
        if self.probability_mask is not None and not 0 < self.probability_mask <= 1:
            raise ValueError(f"algo.probability_mask must lie between 0 and 1, got {self.probability_mask}")

    def check_layout(self, layouts: frozenset[str], what: str) -> None:
        """Raises `ValueError` unless loss and aggregation are defined in one of `layouts`, those that `what` has."""
        known = loss_layouts(self.loss, self.aggregation)
        if known.isdisjoint(layouts):
            name = getattr(getattr(self.loss, "func", self.loss), "__name__", self.loss)
            raise ValueError(
                f"algo.loss={name} with algo.aggregation={self.aggregation} is defined where "
                f"{' or '.join(ROWS[layout] for layout in sorted(known))}; with {what} "
                f"{' and '.join(ROWS[layout] for layout in sorted(layouts))}. agent=transcript has an episode in one "
                "sequence, and so has agent=chat with history.kind=full and keep_reasoning=true; agent=gigpo has every "
                "turn in its own. algo.aggregation=turn-mean or trajectory-mean and topr_loss with ratio=token are "
                "the same in all of them"
            )

    @property
    def loss_kl_coef(self) -> float:
        """The weight of KL in the loss."""
        return self.kl_coef if self.kl_in == "loss" else 0.0

    @property
    def reward_kl_coef(self) -> float:
        """The weight of KL in the reward."""
        return self.kl_coef if self.kl_in == "reward" else 0.0


@dataclass(frozen=True)
class LearnerConfig:
    """How to learn from one batch. An update passes over it `epochs` times, each time in `minibatches` optimiser steps
    over disjoint parts of it, drawn anew; the old log-probabilities stay those of the policy that sampled.
    """

    objective: Objective
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
    epochs: int = 1
    importance_cap: float | None = None
    """Where another engine samples, its log-probabilities are not quite those of the weights that are trained. With a
    cap the learner computes them anew before an update, which the loss then takes for the old ones, and multiplies the
    loss of a token by min(exp(anew - the engine's), cap); None takes the engine's for the old ones."""

    def rate(self, update: int, updates: int) -> float:
        """The learning rate of update number `update`, from 0, of `updates`."""
        share = update / updates
        line = (1 - share) * self.learning_rate + share * self.final_learning_rate
        return line * min(1.0, (update + 1) / max(self.warmup_updates, 1))


class Example(NamedTuple):
    """A sample, and for each of its ids that were sampled what is to be learned from it."""

    sample: Sample
    advantages: NDArray[np.float64]
    old_logprobs: NDArray[np.float64]
    weights: NDArray[np.float64]  # of the policy loss
    trained: NDArray[np.bool_]  # whether it takes part in the loss
    unit_tokens: NDArray[np.float64]  # how many that do its turn or trajectory has, for means over those


class Learner:
    """AdamW on what can be trained of a policy's model, which it changes in place and gives its `training_dtypes`.

    `reference` is what KL is measured to: a frozen copy of the model that the learner is made with, or None where there
    is no KL. Of a model with adapters only these are copied.
    """

    def __init__(self, model: Any, config: LearnerConfig) -> None:
        for name in ("epochs", "minibatches", "micro_batch_tokens"):
            if getattr(config, name) < 1:
                raise ValueError(f"trainer.{name} must be at least 1, got {getattr(config, name)}")
        if config.importance_cap is not None and config.importance_cap <= 0:
            raise ValueError(f"trainer.importance_cap must be positive, got {config.importance_cap}")
        if getattr(model, "is_quantized", False) and not has_adapters(model):
            raise ValueError(
                "of a model whose weights are packed only what is not (embeddings, norms) could be trained; "
                "policy=lora trains adapters beside them"
            )
        self.model, self.config, self.objective = model, config, config.objective
        self.micro_batch_tokens = config.micro_batch_tokens  # halved where the memory does not suffice
        self.checkpointed = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
        if config.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        self.steps = FiniteSteps("policy")
        self.device = next(model.parameters()).device
        self.dtype = check_precision(config.precision, self.device)
        train_in_float32(model)
        self.reference = copy_trained(model).requires_grad_(False) if self.objective.kl_coef else None
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
        """Learn from all samples. `advantages` are one for each turn of `table`, [N], or each sampled id, [M].

        Returns the metrics of the update. The first minibatch is seen by the weights that sampled it, so there the
        difference of log-probabilities is the mismatch between sampling and training; with an `importance_cap` it is
        known of the whole batch. Means are over all sampled tokens, also where a mask keeps some out of the loss, but
        not over the episodes that `drop_zero_episodes` drops. Where no advantage differs from zero nothing is trained
        on, and they are left out.

        Steps that are not finite are skipped and counted in `train/skipped_steps`, which is there where any were; with
        an advantage or a log-probability that is not finite they all are. Raises `NotFiniteError` after too many, and
        `ValueError` for a batch whose layout the loss is not defined for.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.objective.check_layout(batch_layouts(samples, table), "this batch")
        old, advantages = self._old_logprobs(samples), table.per_token(advantages)
        for name, values in (("an advantage", advantages), ("a log-probability", _engine_logprobs(samples) + old)):
            place = first_not_finite(values)
            if place is not None:
                self.steps.skip(f"{name} is {values[place]}", turn_of(samples, table, place))
                due = self.config.epochs * min(self.config.minibatches, len(samples))
                return {"train/skipped_steps": float(due), "tokens/trained": 0.0}
        examples, mismatch = self._examples(samples, table, advantages, old)
        sums, skipped = defaultdict[str, float](float), 0
        for number, part in enumerate(self._parts(len(examples), rng)):
            totals = self._step([examples[i] for i in part])
            if totals is None:
                skipped += 1
                continue
            if number == 0 and totals["tokens"] and not mismatch:
                mismatch["mismatch/kl"] = totals["approx_kl"] / totals["tokens"]
                mismatch["mismatch/max_ratio"] = _exp(totals["max_log_ratio"])
            for name in ("loss", "kl", "entropy", "clip_fraction", "tokens", "grad_norm", "steps", "trained_tokens"):
                sums[name] += totals[name]
        metrics = {"train/skipped_steps": float(skipped)} if skipped else {}
        if sums["steps"] or not examples:  # without any there is nothing to learn from, and nothing was skipped
            metrics |= {f"train/{name}": sums[name] / max(sums["steps"], 1) for name in ("loss", "grad_norm")}
        if sums["tokens"]:
            metrics |= {f"train/{name}": sums[name] / sums["tokens"] for name in ("kl", "entropy", "clip_fraction")}
            if self.objective.reward_kl_coef:
                del metrics["train/kl"]  # `reference_kl` reports the one that was paid
        return metrics | mismatch | {"tokens/trained": sums["trained_tokens"]}

    def _parts(self, count: int, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
        """The numbers of the examples, of which there are `count`, that each step learns from."""
        for _ in range(self.config.epochs if count else 0):
            yield from np.array_split(rng.permutation(count), min(self.config.minibatches, count))

    def reference_kl(self, samples: Sequence[Sample]) -> NDArray[np.float64]:
        """[M] the estimate of KL(policy ‖ reference) at each sampled id, in the order of a `TurnTable`."""
        reference = read(samples, self.micro_batch_tokens, self.device, self._reference_logprobs)
        old = torch.from_numpy(self._old_logprobs(samples))
        kl: NDArray[np.float64] = kl_estimate(old, torch.from_numpy(reference), self.objective.kl_estimator).numpy()
        return kl

    def _old_logprobs(self, samples: Sequence[Sample]) -> NDArray[np.float64]:
        """[M] the log-probabilities of the ids under the policy that sampled them: the engine's, or computed anew."""
        if self.config.importance_cap is None:
            return _engine_logprobs(samples)

        def ask(batch: Batch) -> Tensor:
            return sampled_logprobs(self.model, batch, self.config.temperature, self.dtype)[0]

        return read(samples, self.micro_batch_tokens, self.device, ask)

    def _examples(
        self, samples: Sequence[Sample], table: TurnTable, advantages: NDArray[np.float64], old: NDArray[np.float64]
    ) -> tuple[list[Example], dict[str, float]]:
        """And with an `importance_cap` the metrics of what it corrects. `advantages` and the `old` ones are [M]."""
        cap, highest = self.config.importance_cap, self.objective.probability_mask
        weights, trained, mismatch = np.ones(len(old)), np.ones(len(old), dtype=np.bool_), {}
        if cap is not None:
            engine = _engine_logprobs(samples)
            weights = importance_weights(torch.from_numpy(old), torch.from_numpy(engine), cap=cap).numpy()
            mismatch = {
                "mismatch/kl": float(np.mean(engine - old)),
                "mismatch/max_ratio": _exp(float(np.abs(engine - old).max())),
                "mismatch/capped": float(np.mean(weights == cap)),
            }
        if highest is not None:
            trained = probability_mask(torch.from_numpy(old), torch.from_numpy(trained), threshold=highest).numpy()
        if self.objective.drop_zero_episodes:
            size = np.bincount(table.token_rows, weights=np.abs(advantages), minlength=len(table))
            trained &= table.episode_sums(size)[table.token_rows] > 0
        units = unit_tokens(table, self.objective.aggregation, trained)
        columns = (by_sample(samples, c) for c in (advantages, old, weights, trained, units))
        examples = [Example(*row) for row in zip(samples, *columns, strict=True)]
        return [e for e in examples if e.trained.any() or not self.objective.drop_zero_episodes], mismatch

    def _step(self, examples: Sequence[Example]) -> dict[str, float] | None:
        """One optimiser step; None where it was skipped."""
        totals = self._gradients(examples)

        def alone(example: Example) -> Tensor:
            return self._loss([example], 1.0, defaultdict(float))

        suspects: list[Suspect] = [(e.sample.origin, partial(alone, e)) for e in self._useful(examples)]
        clip = self.config.grad_clip
        norm = self.steps.take(self.model.parameters(), [self.optimizer], clip, totals["loss"], suspects)
        return None if norm is None else {**totals, "grad_norm": norm, "steps": 1.0}

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

        def spread(values: Sequence[NDArray[Any]]) -> Tensor:
            flat = torch.from_numpy(np.concatenate(values)).to(self.device)
            return torch.zeros(masks.shape, dtype=flat.dtype, device=self.device).masked_scatter(masks, flat)

        trained, units = spread([e.trained for e in examples]), spread([e.unit_tokens for e in examples])
        divisor = self.objective.loss_divisor or aggregation_divisor(trained, self.objective.aggregation, units)
        totals = dict.fromkeys(
            ("loss", "kl", "entropy", "clip_fraction", "approx_kl", "tokens", "max_log_ratio", "trained_tokens"), 0.0
        )
        for part in parts:
            loss = self._loss(part, divisor, totals)
            loss.backward()  # type: ignore[no-untyped-call]
            totals["loss"] += float(loss.detach())
            totals["trained_tokens"] += sum(len(e.sample.ids) for e in part)
        return totals

    def _useful(self, examples: Sequence[Example]) -> list[Example]:
        """Without KL or an entropy bonus, an example whose advantages are all zero has no gradient and is left out."""
        all_count = self.objective.loss_kl_coef or self.objective.entropy_coef
        return [e for e in examples if all_count or e.advantages.any()]

    def _micro_batches(self, examples: Sequence[Example]) -> list[list[Example]]:
        useful = self._useful(examples)
        parts = micro_batches([len(e.sample.ids) for e in useful], self.micro_batch_tokens)
        return [[useful[i] for i in part] for part in parts]

    def _loss(self, part: Sequence[Example], divisor: float, totals: dict[str, float]) -> Tensor:
        objective, batch = self.objective, make_batch([e.sample for e in part], self.device)
        logprobs, entropies = sampled_logprobs(
            self.model, batch, self.config.temperature, self.dtype, entropy_gradient=objective.entropy_coef != 0
        )
        advantages, old = batch.spread([e.advantages for e in part]), batch.spread([e.old_logprobs for e in part])
        per_token, stats = objective.loss(logprobs, old, advantages, batch.mask)
        per_token = per_token * batch.spread([e.weights for e in part])
        if objective.loss_kl_coef:
            with torch.no_grad():
                reference = self._reference_logprobs(batch)
            kl = kl_estimate(logprobs, reference, objective.kl_estimator)
            per_token = per_token + objective.loss_kl_coef * kl
            totals["kl"] += float(kl.detach()[batch.mask].sum())
        if objective.entropy_coef:
            bonus = torch.zeros_like(per_token).masked_scatter(batch.mask, entropies)
            per_token = per_token - objective.entropy_coef * bonus
        log_ratio = (logprobs.detach() - old)[batch.mask]
        totals["max_log_ratio"] = max(totals["max_log_ratio"], float(log_ratio.abs().max()))
        totals["entropy"] += float(entropies.detach().sum())
        totals["tokens"] += float(batch.mask.sum())
        for name, values in stats.items():
            totals[name] += float(values[batch.mask].sum())
        trained, units = batch.spread([e.trained for e in part]).bool(), batch.spread([e.unit_tokens for e in part])
        return aggregate(per_token, trained, objective.aggregation, divisor, units)

    def _reference_logprobs(self, batch: Batch) -> Tensor:
        return sampled_logprobs(self.reference, batch, self.config.temperature, self.dtype)[0]


def unit_tokens(table: TurnTable, aggregation: str, trained: NDArray[np.bool_]) -> NDArray[np.float64]:
    """[M] for "turn-mean" and "trajectory-mean" how many tokens in `trained` [M] the turn or trajectory of a token has;
    else 1.
    """
    rows = table.token_rows
    if aggregation not in UNIT_MEANS:
        return np.ones(len(rows))
    counts = np.bincount(rows, weights=trained, minlength=len(table)).astype(np.float64)
    return (counts if aggregation == "turn-mean" else table.episode_sums(counts))[rows]


def _engine_logprobs(samples: Sequence[Sample]) -> NDArray[np.float64]:
    """[M] as they were sampled."""
    return np.array([p for s in samples for p, on in zip(s.logprobs, s.mask, strict=True) if on])


def _exp(log_ratio: float) -> float:
    return math.exp(min(log_ratio, LARGEST_EXPONENT))


def _out_of_memory(error: RuntimeError) -> bool:
    """CUDA has a class for it, the allocator of CPUs only a sentence."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
