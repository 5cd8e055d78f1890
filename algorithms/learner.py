"""One policy update: from samples and advantages to new weights."""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers.modeling_layers import GradientCheckpointingLayer

from agents.policies.models import pad
from agents.policies.sharded import load_optimizer_state, optimizer_state
from agents.policies.weights import copy_trained, has_adapters, train_in_float32
from agents.samples import MIXED, Sample
from algorithms.batches import (
    Batch,
    batch_layouts,
    by_sample,
    make_batch,
    map_samples,
    micro_batches,
    padded_tokens,
    sampled_logprobs,
    turn_of,
)
from algorithms.correction import Corrected, Correction
from algorithms.finite import FiniteSteps, LossPart, first_not_finite
from algorithms.losses import (
    AGGREGATIONS,
    KL_ESTIMATORS,
    ROW_MEANS,
    UNIT_MEANS,
    Tokens,
    Units,
    aggregate,
    aggregation_divisor,
    kl_estimate,
    knows_demonstrations,
    make_units,
    marker,
    probability_mask,
    unit_means,
    unit_measure,
    unit_of,
)
from algorithms.needs import check_aggregation
from algorithms.parallel import ONE_PROCESS, Parallel
from algorithms.turn_table import TurnTable
from envs.core import UnknownNameError

# (logprobs, old_logprobs, advantages, mask), each [B, T] -> loss per token [B, T] and statistics per token
PolicyLoss: TypeAlias = Callable[..., tuple[Tensor, dict[str, Tensor]]]  # see `algorithms.losses`

logger = logging.getLogger(__name__)

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
KL_PLACES = ("loss", "reward")
LARGEST_EXPONENT = 700.0  # exp() of it still fits into a float
# Over the passes of a step.
SUMS = ("loss", "replay_loss", "kl", "entropy", "clip_fraction", "approx_kl", "tokens", "trained_tokens")


def check_precision(precision: str, device: torch.device) -> torch.dtype:
    """The dtype to compute in. Raises `ValueError` for bfloat16 on a device that only emulates it."""
    if precision not in PRECISIONS:
        raise UnknownNameError("precision", precision, PRECISIONS)
    has = {"cuda": torch.cuda.is_bf16_supported, "cpu": torch.cpu._is_avx512_bf16_supported}
    if precision == "bfloat16" and device.type in has and not has[device.type]():
        raise ValueError(f"this {device.type} has no bfloat16 arithmetic; use trainer.precision=float32")
    return PRECISIONS[precision]


@dataclass(frozen=True)
class Objective:
    """The objective that an update minimises, set by the method (conf/algo).

        aggregate(w · loss + kl_coef · KL - entropy_coef · entropy),  w: see `LearnerConfig.correction`

    With `kl_in="reward"` the KL term is left out. Instead the `token_reward` of every token is reduced by kl_coef · KL
    before the estimator runs; KL is measured when the batch was sampled. Demonstrations have no KL.
    """

    loss: PolicyLoss
    aggregation: str = "token-mean"
    loss_divisor: float | None = None  # the constant of "seq-mean-token-sum-norm"; None: counted in each minibatch
    kl_coef: float = 0.0  # weight of KL(policy ‖ reference), the initial policy by default; 0 keeps no reference
    kl_estimator: str = "k3"  # see `kl_estimate`
    kl_in: str = "loss"
    entropy_coef: float = 0.0  # weight of the entropy of the sampling distributions
    probability_mask: float | None = None  # leave out tokens sampled with this probability or above (SPO)
    drop_zero_episodes: bool = False  # leave out episodes whose advantages are all 0, also from the divisor

    def __post_init__(self) -> None:
        for name, known in (("aggregation", AGGREGATIONS), ("kl_estimator", KL_ESTIMATORS), ("kl_in", KL_PLACES)):
            if getattr(self, name) not in known:
                raise UnknownNameError(f"algo.{name}", getattr(self, name), known)
        check_aggregation(self.aggregation, self.loss_divisor)
        if self.probability_mask is not None and not 0 < self.probability_mask <= 1:
            raise ValueError(f"algo.probability_mask must lie between 0 and 1, got {self.probability_mask}")

    def check_layout(self, layouts: frozenset[str], what: str) -> None:
        """Raises `ValueError` unless the aggregation is defined in one of `layouts`, the layouts of `what`.

        A mean over training sequences has a meaning only where all of them are turns, or all are episodes.
        """
        if layouts == {MIXED} and self.aggregation in ROW_MEANS:
            raise ValueError(
                f"algo.aggregation={self.aggregation} is defined where every turn is a separate training sequence or "
                f"every episode is; with {what} some sequences are single turns and others span several turns. "
                "agent=transcript puts an episode in one sequence, and so does agent=chat with history.kind=full and "
                "keep_reasoning=true; agent=gigpo puts every turn in its own. algo.aggregation=turn-mean and "
                "trajectory-mean work with all of them"
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
    """The settings of an update.

    An update makes `epochs` passes over the batch. Each pass has `minibatches` optimiser steps over disjoint, randomly
    drawn parts. The old log-probabilities stay those of the policy that sampled.
    """

    objective: Objective
    learning_rate: float
    final_learning_rate: float  # at the end of the run; the rate changes linearly
    warmup_updates: int  # over which the rate rises linearly from 0
    weight_decay: float
    grad_clip: float
    minibatches: int
    micro_batch_tokens: int  # padded tokens in one forward and backward pass
    gradient_checkpointing: bool  # keep only the layers' inputs and recompute the rest: less memory, more time
    precision: str
    temperature: float  # of sampling: log-probabilities are those of the sampling distribution
    epochs: int = 1
    correction: Correction | None = None
    """If another engine samples, its log-probabilities differ slightly from those of the trained weights. With a
    correction, the learner recomputes them before an update and uses them as the old ones, and the correction weighs or
    rejects tokens. With None, the engine's are the old ones."""

    def rate(self, update: int, progress: float) -> float:
        """The learning rate of update number `update`, from 0, when the share `progress` of the run is done."""
        line = (1 - progress) * self.learning_rate + progress * self.final_learning_rate
        return line * min(1.0, (update + 1) / max(self.warmup_updates, 1))


class Example(NamedTuple):
    """A sample, with training targets for each of its sampled ids."""

    sample: Sample
    advantages: NDArray[np.float64]
    old_logprobs: NDArray[np.float64]
    weights: NDArray[np.float64]  # weight in the policy loss
    trained: NDArray[np.bool_]  # whether the loss counts it
    unit_tokens: NDArray[np.float64]  # number of trained tokens of its turn or trajectory, for means over those
    units: NDArray[np.int64]  # the number of the turn or episode that each belongs to, for a loss over units
    demonstrated: NDArray[np.bool_]  # whether an expert wrote it, not the policy
    marks: NDArray[Any] | None = None  # of a loss over minibatches
    unit_means: NDArray[np.float64] | None = None  # [K + 1, ids] see `Units`, and the tokens; for units of many samples


class Replayed(NamedTuple):
    """Examples of earlier updates, which an update learns from beside its batch."""

    examples: Sequence[Example]
    loss: PolicyLoss | None  # None: the loss of the batch
    weight: float  # of their mean loss


class Portion(NamedTuple):
    """Examples of an optimiser step that have a mean loss of their own."""

    examples: Sequence[Example]
    objective: Objective
    weight: float = 1.0


class TokenStats:
    """What the passes of an update compute of each token, kept for the record: no pass is made for it.

    Tokens without a gradient are not computed; their values are NaN.
    """

    def __init__(self) -> None:
        self._of: dict[int, tuple[NDArray[np.float64], NDArray[np.float64]]] = {}  # by the id of the sample
        self._first: set[int] = set()

    def add(self, samples: Sequence[Sample], logprobs: Tensor, entropies: Tensor) -> None:
        """Store the log-probabilities and entropies [M] of the samples' tokens, the first time they are computed."""
        ends = np.cumsum([sum(sample.mask) for sample in samples])[:-1]
        parts = (np.split(values.double().cpu().numpy(), ends) for values in (logprobs, entropies))
        for sample, *values in zip(samples, *parts, strict=True):
            self._of.setdefault(id(sample), (values[0], values[1]))

    def end_first_step(self) -> None:
        """Mark the values added so far as those of the weights that sampled the batch."""
        self._first = set(self._of)

    def columns(
        self, samples: Sequence[Sample], corrected: Corrected | None, parallel: Parallel = ONE_PROCESS
    ) -> dict[str, NDArray[np.float64]]:
        """[M] `entropy`, and `mismatch`: the log-probability under the sampling weights minus the engine's.

        With a correction the mismatch is known for the whole batch, otherwise for the first optimiser step. The values
        are those of all ranks.
        """
        entropy, mismatch = [], []
        for sample in samples:
            unknown = np.full(sum(sample.mask), np.nan)
            now, its_entropy = self._of.get(id(sample), (unknown, unknown))
            entropy.append(its_entropy)
            mismatch.append(now - engine_logprobs([sample]) if id(sample) in self._first else unknown)
        measured = {"entropy": np.concatenate(entropy), "mismatch": np.concatenate(mismatch)}
        columns = {name: _merge_ranks(values, parallel) for name, values in measured.items()}
        if corrected is not None:
            columns["mismatch"] = corrected.trained - engine_logprobs(samples)
        return columns


class Learner:
    """Trains a policy's model in place with AdamW, after giving the model its `training_dtypes`.

    `reference` is the model that KL is measured against: the one that is given, or a frozen copy of the initial model;
    None without KL. Of a model with adapters, only these are copied. With several ranks, each makes some of the forward
    and backward passes.
    """

    def __init__(
        self, model: Any, config: LearnerConfig, parallel: Parallel = ONE_PROCESS, reference: Any = None
    ) -> None:
        for name in ("epochs", "minibatches", "micro_batch_tokens"):
            if getattr(config, name) < 1:
                raise ValueError(f"trainer.{name} must be at least 1, got {getattr(config, name)}")
        if getattr(model, "is_quantized", False) and not has_adapters(model):
            raise ValueError(
                "of a model with quantized weights, only the other weights (embeddings, norms) could be trained; use "
                "policy=lora, which trains adapters"
            )
        self.model, self.config, self.objective, self.parallel = model, config, config.objective, parallel
        self.micro_batch_tokens = config.micro_batch_tokens  # halved when memory runs out
        self.checkpointed = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
        if config.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        self.steps = FiniteSteps("policy")
        self.device = next(model.parameters()).device
        self.dtype = check_precision(config.precision, self.device)
        train_in_float32(model)
        self.has_teacher = reference is not None  # otherwise the reference is the initial policy
        if self.objective.kl_coef and reference is None:
            reference = copy_trained(model).requires_grad_(False)
        self.reference = reference
        for placed in (model, self.reference):
            if placed is not None:
                parallel.place(placed, self.dtype)
        self.trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.optimizer = torch.optim.AdamW(
            self.trained.values(),
            lr=config.learning_rate,
            betas=(0.9, 0.999),
            weight_decay=config.weight_decay,
        )

    def optimizer_state(self) -> dict[str, Any]:
        """The optimiser's whole state, by the names of the parameters. All ranks must call this."""
        return optimizer_state(self.optimizer, self.trained)

    def load_optimizer_state(self, state: dict[str, Any]) -> None:
        """The inverse of `optimizer_state`. Raises `ValueError` for the state of other parameters."""
        load_optimizer_state(self.optimizer, self.trained, state)

    def update(
        self, samples: Sequence[Sample], table: TurnTable, advantages: NDArray[np.float64],
        rng: np.random.Generator, learning_rate: float, corrected: Corrected | None = None,
        counted: NDArray[np.bool_] | None = None, token_stats: TokenStats | None = None,
        replayed: Replayed | None = None,
    ) -> dict[str, float]:  # fmt: skip
        """Learn from all samples. `advantages` has one value per turn of `table`, [N], or per sampled id, [M].

        `corrected` is the batch's `correct`, if the caller has it already. `counted` [M] says which ids are in the
        loss, in its sums and in its divisor; None: all. Samples without such an id are left out. `token_stats` stores
        what is computed for the tokens. `replayed` examples are shared out to the steps of each pass; they have neither
        KL nor an entropy bonus, and only `train/loss`, `train/grad_norm` and `tokens/trained` count them.

        Returns the metrics of the update. The first minibatch is evaluated with the weights that sampled it, so there
        the difference of log-probabilities is the mismatch between sampling and training; with a `correction` the
        mismatch is known for the whole batch. Means are over all sampled tokens, including tokens that a mask keeps out
        of the loss, but not over demonstrations nor over episodes that `drop_zero_episodes` drops. If all advantages
        of the policy's own tokens are zero, these metrics are left out; if all are, nothing is trained.

        Steps that are not finite are skipped and counted in `train/skipped_steps`, which appears only if there are any.
        If an advantage or a log-probability is not finite, all are skipped. Raises `NotFiniteError` after too many
        in a row, and `ValueError` for a batch whose layout the loss is not defined for.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.objective.check_layout(batch_layouts(samples, table), "this batch")
        corrected = corrected or self.correct(samples, table)
        old = _old_logprobs(samples, corrected)
        advantages = table.per_token(advantages)
        for name, values in (("an advantage", advantages), ("a log-probability", engine_logprobs(samples) + old)):
            place = first_not_finite(values)
            if place is not None:
                self.steps.skip(f"{name} is {values[place]}", turn_of(samples, table, place))
                due = self.config.epochs * min(self.config.minibatches, len(samples))
                return {"train/skipped_steps": float(due), "tokens/trained": 0.0}
        examples, mismatch = self._examples(samples, table, advantages, old, corrected, counted)
        sums, skipped = defaultdict[str, float](float), 0
        for number, portions in enumerate(self._portions(examples, replayed, rng)):
            in_first_epoch = number < self.config.minibatches  # another rank may compute it in the next
            ready = [portion._replace(examples=self._with_minibatch_values(portion, rng)) for portion in portions]
            totals = self._step(ready, token_stats if in_first_epoch else None)
            if token_stats is not None and number == 0:
                token_stats.end_first_step()
            if totals is None:
                skipped += 1
                continue
            if number == 0 and totals["tokens"] and not mismatch:
                mismatch["mismatch/kl"] = totals["approx_kl"] / totals["tokens"]
                mismatch["mismatch/max_ratio"] = _exp(totals["max_log_ratio"])
            for name in (*SUMS, "grad_norm", "steps"):
                sums[name] += totals[name]
        metrics = {"train/skipped_steps": float(skipped)} if skipped else {}
        if replayed is not None and sums["steps"]:
            metrics["replay/loss"] = sums["replay_loss"] / sums["steps"]
        if sums["steps"] or not examples:  # without examples there was nothing to learn, and nothing was skipped
            metrics |= {f"train/{name}": sums[name] / max(sums["steps"], 1) for name in ("loss", "grad_norm")}
        if sums["tokens"]:
            measured = ["kl"] * bool(self.objective.loss_kl_coef) + ["entropy", "clip_fraction"]
            metrics |= {f"train/{name}": sums[name] / sums["tokens"] for name in measured}
        return metrics | mismatch | {"tokens/trained": sums["trained_tokens"]}

    def examples(
        self, samples: Sequence[Sample], table: TurnTable, advantages: NDArray[np.float64],
        corrected: Corrected | None = None, counted: NDArray[np.bool_] | None = None,
    ) -> list[Example]:  # fmt: skip
        """What `update` learns from; the arguments are its own."""
        old = _old_logprobs(samples, corrected)
        return self._examples(samples, table, table.per_token(advantages), old, corrected, counted)[0]

    def _portions(
        self, examples: Sequence[Example], replayed: Replayed | None, rng: np.random.Generator
    ) -> Iterator[list[Portion]]:
        """What each step learns from: a part of the batch first, and a part of the replayed examples."""
        whole = [Portion(examples, self.objective)]
        if replayed is not None:
            loss = replayed.loss or self.objective.loss
            objective = replace(self.objective, loss=loss, kl_coef=0.0, entropy_coef=0.0)
            whole.append(Portion(replayed.examples, objective, replayed.weight))
        bundles = [_bundles(portion) for portion in whole]
        count = len(bundles[0]) or len(bundles[-1])
        for _ in range(self.config.epochs if count else 0):
            steps = min(self.config.minibatches, count)
            shares = [np.array_split(rng.permutation(len(of)), steps) for of in bundles]
            for parts in zip(*shares, strict=True):
                yield [
                    portion._replace(examples=[example for number in part for example in of[number]])
                    for portion, of, part in zip(whole, bundles, parts, strict=True)
                ]

    def reference_kl(self, samples: Sequence[Sample], corrected: Corrected | None = None) -> NDArray[np.float64]:
        """[M] the estimated KL(policy ‖ reference) at each sampled id, in the order of a `TurnTable`.

        `corrected` is the batch's `correct`, if the caller has it already.
        """
        reference = self._map(samples, self._reference_logprobs)
        if corrected is not None:
            old = torch.from_numpy(corrected.trained)
        else:
            old = torch.from_numpy(self._logprobs(samples) if self.config.correction else engine_logprobs(samples))
        kl: NDArray[np.float64] = kl_estimate(old, torch.from_numpy(reference), self.objective.kl_estimator).numpy()
        return kl

    def correct(self, samples: Sequence[Sample], table: TurnTable) -> Corrected | None:
        """The correction of a batch for the engine's mismatch; None without a `correction`."""
        if self.config.correction is None:
            return None
        return self.config.correction(self._logprobs(samples), engine_logprobs(samples), table)

    def _logprobs(self, samples: Sequence[Sample]) -> NDArray[np.float64]:
        """[M] the log-probabilities under the present weights."""

        def compute(batch: Batch) -> Tensor:
            return sampled_logprobs(self.model, batch, self.config.temperature, self.dtype)[0]

        return self._map(samples, compute)

    def _map(
        self, samples: Sequence[Sample], compute: Callable[[Batch], Tensor], values: int = 1
    ) -> NDArray[np.float64]:
        return map_samples(samples, self.micro_batch_tokens, self.device, compute, self.parallel, values)

    def _logprobs_and_entropies(self, samples: Sequence[Sample]) -> NDArray[np.float64]:
        """[2, M] the log-probabilities under the present weights, and the entropies of their distributions."""

        def compute(batch: Batch) -> Tensor:
            logprobs, entropies = sampled_logprobs(self.model, batch, self.config.temperature, self.dtype)
            return torch.stack([logprobs, torch.zeros_like(logprobs).masked_scatter(batch.mask, entropies)], -1)

        return self._map(samples, compute, values=2).T

    def _examples(
        self, samples: Sequence[Sample], table: TurnTable, advantages: NDArray[np.float64], old: NDArray[np.float64],
        corrected: Corrected | None, counted: NDArray[np.bool_] | None = None,
    ) -> tuple[list[Example], dict[str, float]]:  # fmt: skip
        """The examples, and the metrics of a correction. `advantages` and `old` are [M]."""
        highest = self.objective.probability_mask
        weights, trained, mismatch = np.ones(len(old)), np.ones(len(old), dtype=np.bool_), dict[str, float]()
        if corrected is not None:
            _, weights, trained, mismatch = corrected
        if counted is not None:
            trained = trained & counted
        if highest is not None:
            likely = ~probability_mask(torch.from_numpy(old), torch.from_numpy(trained), threshold=highest).numpy()
            trained = trained & ~(likely & table.own_tokens)
        if self.objective.drop_zero_episodes:
            size = np.bincount(table.token_rows, weights=np.abs(advantages), minlength=len(table))
            trained = trained & (table.episode_sums(size)[table.token_rows] > 0)
        units = unit_tokens(table, self.objective.aggregation, trained)
        unit = unit_of(self.objective.loss) or "turn"
        numbers = table.token_rows if unit == "turn" else table.episode_number[table.token_rows]
        shown = ~table.own_tokens
        columns = (by_sample(samples, c) for c in (advantages, old, weights, trained, units, numbers, shown))
        examples = [Example(*row) for row in zip(samples, *columns, strict=True)]
        drops = self.objective.drop_zero_episodes or (counted is not None and not counted.all())
        return [e for e in examples if e.trained.any() or not drops], mismatch

    def _with_minibatch_values(self, portion: Portion, rng: np.random.Generator) -> list[Example]:
        """The examples of a minibatch, with what the loss has to know of all of them.

        These are the marks of a loss over minibatches, and the means of units with several samples. They need another
        forward pass, without gradients.
        """
        examples, loss = portion.examples, portion.objective.loss
        mark, measured, spans = marker(loss), unit_measure(loss), _has_split_episodes(portion)
        if not examples or (mark is None and not spans):
            return list(examples)
        samples = [e.sample for e in examples]
        now, entropies = self._logprobs_and_entropies(samples)
        columns = zip(*((e.old_logprobs, e.advantages, e.units, e.demonstrated) for e in examples), strict=True)
        old, advantages, numbers, shown = (np.concatenate(column) for column in columns)
        old = np.where(shown, now, old)  # a demonstration has no ratio to the policy that sampled
        if mark is not None:
            parts = by_sample(samples, mark(Tokens(now, old, advantages, entropies, numbers), rng))
            examples = [e._replace(marks=part) for e, part in zip(examples, parts, strict=True)]
        if measured is not None and spans:
            counted = np.concatenate([e.trained for e in examples])
            values = measured[1](*(torch.from_numpy(column[counted]) for column in (now, old, advantages)))
            means, counts = unit_means(values, torch.from_numpy(numbers[counted]))
            known = np.zeros((len(means) + 1, len(counted)))
            known[:, counted] = torch.cat([means, counts[None]]).numpy()
            parts = by_sample(samples, known.T)
            examples = [e._replace(unit_means=part.T) for e, part in zip(examples, parts, strict=True)]
        return list(examples)

    def _step(self, portions: Sequence[Portion], token_stats: TokenStats | None = None) -> dict[str, float] | None:
        """One optimiser step, from a part of the batch first; None if it was skipped."""
        totals = self._gradients(portions, token_stats)

        def own_loss(objective: Objective, example: Example) -> Tensor:
            return self._loss([example], objective, 1.0, defaultdict(float))

        loss_parts: list[LossPart] = [
            (e.sample.origin, partial(own_loss, portion.objective, e))
            for portion in portions
            for e in _with_gradient(portion)
        ]
        clip = self.config.grad_clip
        norm = self.steps.take(self.trained.values(), [self.optimizer], clip, totals["loss"], loss_parts)
        return None if norm is None else {**totals, "grad_norm": norm, "steps": 1.0}

    def _gradients(self, portions: Sequence[Portion], token_stats: TokenStats | None = None) -> dict[str, float]:
        """Compute the gradients of all examples; returns the accumulated statistics.

        If memory runs out, everything is computed again with micro-batches of half the size, which is logged and kept
        for later updates. The error is raised if a micro-batch has a single sample. It is also raised with several
        ranks, since the others wait in the middle of a pass.
        """
        while True:
            parts = [(number, part) for number, of in enumerate(portions) for part in self._micro_batches(of)]
            try:
                with self._layers_checkpointed():
                    return self._accumulate(portions, parts, token_stats)
            except RuntimeError as error:
                if not _out_of_memory(error) or max(len(p) for _, p in parts) == 1 or self.parallel.ranks > 1:
                    raise
            # Outside of the handler: its traceback keeps the tensors of the failed pass alive.
            self.model.zero_grad(set_to_none=True)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            self.micro_batch_tokens //= 2
            logger.warning("out of memory: continuing with micro-batches of %d tokens", self.micro_batch_tokens)

    @contextmanager
    def _layers_checkpointed(self) -> Iterator[None]:
        """Layers are checkpointed only in training mode; their submodules stay in eval mode, without dropout."""
        for layer in self.checkpointed:
            layer.training = self.config.gradient_checkpointing
        try:
            yield
        finally:
            for layer in self.checkpointed:
                layer.training = False

    def _divisor(self, examples: Sequence[Example]) -> float:
        """The divisor of a mean loss. It counts all examples, including those that need no pass of their own."""
        if self.objective.loss_divisor or not examples:
            return self.objective.loss_divisor or 1.0
        masks = pad([e.sample.mask for e in examples], self.device).bool()

        def spread(values: Sequence[NDArray[Any]]) -> Tensor:
            flat = torch.from_numpy(np.concatenate(values)).to(self.device)
            return torch.zeros(masks.shape, dtype=flat.dtype, device=self.device).masked_scatter(masks, flat)

        trained, units = spread([e.trained for e in examples]), spread([e.unit_tokens for e in examples])
        return aggregation_divisor(trained, self.objective.aggregation, units)

    def _accumulate(
        self,
        portions: Sequence[Portion],
        parts: Sequence[tuple[int, Sequence[Example]]],
        token_stats: TokenStats | None = None,
    ) -> dict[str, float]:
        """Gradients of one pass over micro-batches of the portions. All statistics but three are of the first one."""
        divisors = [self._divisor(portion.examples) for portion in portions]
        totals = dict.fromkeys(SUMS, 0.0) | {"max_log_ratio": 0.0}
        costs = padded_tokens([[e.sample for e in part] for _, part in parts])
        for (number, part), weight in self.parallel.passes(parts, costs):
            counts, objective = bool(weight), portions[number].objective
            own, kept = (totals, token_stats) if counts and not number else (defaultdict[str, float](float), None)
            loss = weight * portions[number].weight * self._loss(part, objective, divisors[number], own, kept)
            loss.backward()  # type: ignore[no-untyped-call]
            if counts:
                totals["loss"] += float(loss.detach())
                totals["replay_loss"] += float(loss.detach()) if number else 0.0
                totals["trained_tokens"] += sum(len(e.sample.ids) for e in part)
        self.parallel.sum_gradients(list(self.trained.values()))
        of_all = self.parallel.sum(np.array([totals[name] for name in SUMS]))
        highest = self.parallel.max(np.array([totals["max_log_ratio"]]))
        return dict(zip(SUMS, of_all.tolist(), strict=True)) | {"max_log_ratio": float(highest[0])}

    def _micro_batches(self, portion: Portion) -> list[list[Example]]:
        useful = _with_gradient(portion)
        parts = micro_batches([len(e.sample.ids) for e in useful], self.micro_batch_tokens)
        return [[useful[i] for i in part] for part in parts]

    def _loss(
        self, part: Sequence[Example], objective: Objective, divisor: float, totals: dict[str, float],
        token_stats: TokenStats | None = None,
    ) -> Tensor:  # fmt: skip
        batch = make_batch([e.sample for e in part], self.device)
        logprobs, entropies = sampled_logprobs(
            self.model, batch, self.config.temperature, self.dtype, entropy_gradient=objective.entropy_coef != 0
        )
        advantages, old = batch.spread([e.advantages for e in part]), batch.spread([e.old_logprobs for e in part])
        trained, units = batch.spread([e.trained for e in part]).bool(), batch.spread([e.unit_tokens for e in part])
        demonstrated = batch.spread([e.demonstrated for e in part]).bool()
        own = batch.mask & ~demonstrated
        known: dict[str, Any] = {"demonstrated": demonstrated} if knows_demonstrations(objective.loss) else {}
        if marks := [e.marks for e in part if e.marks is not None]:
            known["marks"] = batch.spread(marks)
        if (measured := unit_measure(objective.loss)) is not None:
            if means := [e.unit_means for e in part if e.unit_means is not None]:
                *spread, tokens = (batch.spread(column) for column in zip(*means, strict=True))
                known["units"] = Units(torch.stack(spread), tokens)
            else:
                numbers = batch.spread([e.units for e in part])
                known["units"] = make_units(measured[1], logprobs, old, advantages, trained, numbers)
        per_token, stats = objective.loss(logprobs, old, advantages, batch.mask, **known)
        per_token = per_token * batch.spread([e.weights for e in part])
        if objective.loss_kl_coef:
            with torch.no_grad():
                reference = self._reference_logprobs(batch)
            kl = kl_estimate(logprobs, reference, objective.kl_estimator, old).masked_fill(demonstrated, 0.0)
            per_token = per_token + objective.loss_kl_coef * kl
            totals["kl"] += float(kl.detach()[own].sum())
        if objective.entropy_coef:
            bonus = torch.zeros_like(per_token).masked_scatter(batch.mask, entropies)
            per_token = per_token - objective.entropy_coef * bonus
        if token_stats is not None:
            token_stats.add([e.sample for e in part], logprobs.detach()[batch.mask], entropies.detach())
        log_ratio = (logprobs.detach() - old).masked_fill(~own, 0.0)
        totals["max_log_ratio"] = max(totals["max_log_ratio"], float(log_ratio.abs().max()))
        totals["entropy"] += float(entropies.detach()[own[batch.mask]].sum())
        totals["tokens"] += float(own.sum())
        for name, values in stats.items():
            totals[name] += float(values[own].sum())
        return aggregate(per_token, trained, objective.aggregation, divisor, units)

    def _reference_logprobs(self, batch: Batch) -> Tensor:
        return sampled_logprobs(self.reference, batch, self.config.temperature, self.dtype)[0]


def _bundles(portion: Portion) -> list[list[Example]]:
    """The examples that stay in one optimiser step: those of one unit of the loss."""
    if not _has_split_episodes(portion):
        return [[example] for example in portion.examples]
    together: dict[int, list[Example]] = defaultdict(list)
    for example in portion.examples:
        together[int(example.units[0])].append(example)
    return list(together.values())


def _has_split_episodes(portion: Portion) -> bool:
    """Whether the loss is over episodes and some episode has several samples."""
    if unit_of(portion.objective.loss) != "episode":  # a turn is never cut
        return False
    return len({int(example.units[0]) for example in portion.examples}) < len(portion.examples)


def _with_gradient(portion: Portion) -> list[Example]:
    """Leave out examples without a gradient: all advantages are 0, no KL, no entropy bonus, no selected tokens."""
    all_count = portion.objective.loss_kl_coef or portion.objective.entropy_coef
    return [e for e in portion.examples if all_count or e.advantages.any() or _selects_tokens(e.marks)]


def _old_logprobs(samples: Sequence[Sample], corrected: Corrected | None) -> NDArray[np.float64]:
    """[M] the log-probabilities that ratios compare with."""
    return engine_logprobs(samples) if corrected is None else corrected.trained


def _selects_tokens(marks: NDArray[Any] | None) -> bool:
    """Whether a loss picks some of the ids. Marks that are numbers pick none: they only scale the advantages."""
    return marks is not None and marks.dtype == np.bool_ and bool(marks.any())


def unit_tokens(table: TurnTable, aggregation: str, trained: NDArray[np.bool_]) -> NDArray[np.float64]:
    """[M] the number of tokens in `trained` [M] of each token's turn ("turn-mean") or trajectory ("trajectory-mean").

    1 for other aggregations.
    """
    rows = table.token_rows
    if aggregation not in UNIT_MEANS:
        return np.ones(len(rows))
    counts = np.bincount(rows, weights=trained, minlength=len(table)).astype(np.float64)
    return (counts if aggregation == "turn-mean" else table.episode_sums(counts))[rows]


def engine_logprobs(samples: Sequence[Sample]) -> NDArray[np.float64]:
    """[M] the log-probabilities when the ids were sampled."""
    return np.array([p for s in samples for p, on in zip(s.logprobs, s.mask, strict=True) if on])


def _merge_ranks(values: NDArray[np.float64], parallel: Parallel) -> NDArray[np.float64]:
    """[M] the values of all ranks together: each value comes from the rank that computed it; NaN if none did."""
    known = np.isfinite(values)
    ranks = parallel.sum(known.astype(np.float64))
    sums = parallel.sum(np.where(known, values, 0.0))
    return np.where(ranks > 0, sums / np.maximum(ranks, 1), np.nan)


def _exp(log_ratio: float) -> float:
    return math.exp(min(log_ratio, LARGEST_EXPONENT))


def _out_of_memory(error: RuntimeError) -> bool:
    """Whether memory ran out: CUDA has an exception class for it, the CPU's allocator only a message."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
