"""Collate samples into padded tensors, and compute a model's log-probabilities of the sampled ids.

The learner and all signals that run a model share this module.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from agents.candidates import candidate_logprobs
from agents.policies.models import (
    MOST_LOGITS,
    branch_sums,
    branches,
    causal_states,
    forked_places,
    forked_states,
    head_logits,
    masked_logits,
)
from agents.policies.sharded import in_model
from agents.samples import EPISODES, MIXED, TURNS, Sample
from algorithms.losses import entropy
from algorithms.parallel import ONE_PROCESS, Parallel
from algorithms.turn_table import TurnTable

if TYPE_CHECKING:
    from agents.masking import Node

LENGTH_STEP = 64  # lengths are padded to a multiple of this, because a CPU compiles a bf16 kernel for every new shape


class Choices(NamedTuple):
    """The candidates of each of B sequences; the first of K is the chosen one. See `agents.episode.Choice`."""

    branch: Tensor  # [B, T + 1], see `agents.policies.models`
    lengths: Tensor  # [B, K], 0 for missing candidates


@dataclass(frozen=True)
class Batch:
    """B sequences of T + 1 ids. Everything except `ids` is [B, T] and describes the T ids after the first."""

    ids: Tensor  # [B, T + 1]
    mask: Tensor
    old_logprobs: Tensor  # when the ids were sampled
    choices: Choices | None = None  # set if whole actions were sampled instead of ids
    nodes: Sequence[Node | None] = ()  # [M] what was allowed at each sampled id; empty if all ids were

    def spread(self, values: Sequence[NDArray[Any]]) -> Tensor:
        """[B, T] `values`, which has one number per sampled id for each sequence; 0 elsewhere."""
        flat = torch.from_numpy(np.concatenate(values)).to(self.old_logprobs)
        return torch.zeros_like(self.old_logprobs).masked_scatter(self.mask, flat)


def make_batch(samples: Sequence[Sample], device: torch.device) -> Batch:
    """Pad on the right; attention is causal."""
    width = -(-max(len(s.ids) for s in samples) // LENGTH_STEP) * LENGTH_STEP + 1
    ids = torch.zeros(len(samples), width, dtype=torch.long)
    mask = torch.zeros(len(samples), width, dtype=torch.bool)
    logprobs = torch.zeros(len(samples), width)
    for b, sample in enumerate(samples):
        length = len(sample.ids)
        ids[b, :length] = torch.tensor(sample.ids)
        mask[b, :length] = torch.tensor(sample.mask)
        logprobs[b, :length] = torch.tensor(sample.logprobs)
    choices = _make_choices(samples, width, device) if samples[0].choice else None
    nodes: list[Node | None] = []
    if any(sample.nodes for sample in samples):
        for sample in samples:
            of_ids = sample.nodes or [None] * len(sample.ids)
            nodes += [node for node, sampled in zip(of_ids, sample.mask, strict=True) if sampled]
    return Batch(ids.to(device), mask[:, 1:].to(device), logprobs[:, 1:].to(device), choices, nodes)


def _make_choices(samples: Sequence[Sample], width: int, device: torch.device) -> Choices:
    made = [sample.choice for sample in samples if sample.choice is not None]
    branch = torch.full((len(samples), width), -1)
    lengths = torch.zeros(len(samples), max(len(choice.ids) for choice in made))
    for b, (sample, choice) in enumerate(zip(samples, made, strict=True)):
        counts = [len(ids) for ids in choice.ids]
        branch[b, : len(sample.ids)] = torch.tensor(branches(len(sample.ids) - sum(counts), counts))
        lengths[b, : len(counts)] = torch.tensor(choice.lengths)
    return Choices(branch.to(device), lengths.to(device))


def micro_batches(lengths: Sequence[int], most_tokens: int) -> list[list[int]]:
    """Group sequences of similar length, with at most `most_tokens` padded ids (or one sequence) in each group."""
    batches: list[list[int]] = []
    for number in sorted(range(len(lengths)), key=lambda i: -lengths[i]):  # the first of a group is its longest
        longest = lengths[batches[-1][0]] if batches else 0
        width = -(-longest // LENGTH_STEP) * LENGTH_STEP
        if not batches or width * (len(batches[-1]) + 1) > most_tokens:
            batches.append([])
        batches[-1].append(number)
    return batches


def by_sample(samples: Sequence[Sample], values: NDArray[Any]) -> list[NDArray[Any]]:
    """Split `values` [M], one per sampled id in the order of a `TurnTable`, by sample."""
    counts = [sum(sample.mask) for sample in samples]
    if sum(counts) != len(values):
        raise ValueError(f"{len(values)} values for the {sum(counts)} sampled ids of {len(samples)} samples")
    return np.split(values, np.cumsum(counts)[:-1])


def turn_of(samples: Sequence[Sample], table: TurnTable, token: int) -> str:
    """The turn of sampled id number `token` (of M), for messages."""
    row = int(table.token_rows[token])
    origin = next((sample.origin for sample in samples if row in sample.turn), "")
    return f"turn {table.turn[row]} of {origin or f'episode {table.episode[row]}'}"


def batch_layouts(samples: Sequence[Sample], table: TurnTable) -> frozenset[str]:
    """What a sample is in this batch: `TURNS`, `EPISODES`, both if every episode has one turn, or `MIXED`."""
    turns = [set(sample.turn) - {-1} for sample in samples]
    episodes = {int(table.episode[min(rows)]) for rows in turns}
    layouts = {
        *((TURNS,) if all(len(rows) == 1 for rows in turns) else ()),
        *((EPISODES,) if len(episodes) == len(samples) else ()),
    }
    return frozenset(layouts or {MIXED})


def map_samples(
    samples: Sequence[Sample],
    most_tokens: int,
    device: torch.device,
    compute: Callable[[Batch], Tensor],
    parallel: Parallel = ONE_PROCESS,
    values: int = 1,
) -> NDArray[np.float64]:
    """Apply `compute` to all samples without gradients. Returns a value per sampled id: [M] in `TurnTable` order.

    `compute` gets micro-batches and returns [B, T], or [B, T, K] for K = `values` > 1 per id: then the result is
    [M, K]. Each rank computes some micro-batches, and all ranks get all values.
    """
    shape = (values,) if values > 1 else ()
    parts = [np.zeros((sum(sample.mask), *shape)) for sample in samples]
    groups = micro_batches([len(s.ids) for s in samples], most_tokens)
    with torch.no_grad():
        for numbers, weight in parallel.passes(
            groups, padded_tokens([[samples[i] for i in group] for group in groups])
        ):
            batch = make_batch([samples[i] for i in numbers], device)
            computed = compute(batch).double().cpu()
            if weight:
                for number, row, mask in zip(numbers, computed, batch.mask.cpu(), strict=True):
                    parts[number] = row[mask].numpy()
    return parallel.sum(np.concatenate(parts)) if parts else np.zeros((0, *shape))


def padded_tokens(parts: Sequence[Sequence[Sample]]) -> list[float]:
    """The number of ids in each micro-batch, padding included."""
    return [float(len(part) * max(len(sample.ids) for sample in part)) for part in parts]


def hidden_states(model: Any, batch: Batch, dtype: torch.dtype) -> Tensor:
    """The states [B, T, E] that predict each id after the first, computed in `dtype`."""
    return in_model(model, lambda: _states(model, batch, dtype))


def _states(model: Any, batch: Batch, dtype: torch.dtype) -> Tensor:
    device = batch.ids.device.type
    with torch.autocast(device, dtype, enabled=dtype != torch.float32):
        if batch.choices is not None:
            return forked_states(model, batch.ids[:, :-1], batch.choices.branch[:, :-1])
        return causal_states(model, batch.ids[:, :-1])


def square_sums(model: Any, batch: Batch, temperature: float, dtype: torch.dtype) -> Tensor:
    """[B, T] the sum of squared probabilities of the distribution that each sampled id is drawn from; 0 elsewhere.

    An id that a mask forces has the only probability, 1. Raises `ValueError` for whole actions that were chosen.
    """
    if batch.choices is not None:
        raise ValueError("the signal square_sum is for policies that write ids; agent=candidates chooses whole actions")
    return in_model(model, lambda: _square_sums(model, batch, temperature, dtype))


def _square_sums(model: Any, batch: Batch, temperature: float, dtype: torch.dtype) -> Tensor:
    states = _states(model, batch, dtype)
    sums = torch.ones(int(batch.mask.sum()), device=states.device)
    nodes = batch.nodes or [None] * len(sums)
    drawn = torch.tensor([node is None or node.forced is None for node in nodes], device=states.device)
    chosen = states[batch.mask][drawn]
    of = [node for node, on in zip(batch.nodes, drawn.tolist(), strict=False) if on]
    size = max(1, MOST_LOGITS // model.config.get_text_config().vocab_size)
    parts = []
    for start in range(0, len(chosen), size):
        with torch.autocast(batch.ids.device.type, dtype, enabled=dtype != torch.float32):
            logits = head_logits(model, chosen[start : start + size]) / (temperature or 1.0)
        if of:
            logits = masked_logits(logits, of[start : start + size])
        parts.append(logits.float().softmax(-1).square().sum(-1))
    if parts:
        sums[drawn] = torch.cat(parts)
    return _spread(batch.mask, sums)


def sampled_logprobs(
    model: Any, batch: Batch, temperature: float, dtype: torch.dtype, *, entropy_gradient: bool = False
) -> tuple[Tensor, Tensor]:
    """Log-probabilities [B, T] of the sampled ids (0 elsewhere) and the entropies [M] of their distributions.

    Logits are computed at the M sampled ids only, since most of a sequence is observations. If whole actions were
    sampled, both are those of the policy over candidates, with gradients through all candidates. With a mask or
    truncated sampling, both are over the ids that were allowed; where only one was, both are 0, without logits.
    """
    return in_model(model, lambda: _sampled_logprobs(model, batch, temperature, dtype, entropy_gradient))


def _sampled_logprobs(
    model: Any, batch: Batch, temperature: float, dtype: torch.dtype, entropy_gradient: bool
) -> tuple[Tensor, Tensor]:
    states = _states(model, batch, dtype)
    with torch.autocast(batch.ids.device.type, dtype, enabled=dtype != torch.float32):
        if batch.choices is not None:
            chosen, entropies = _choice_logprobs(model, states, batch.ids, batch.choices, temperature or 1.0)
            return _spread(batch.mask, chosen), entropies
        drawn = [node is None or node.forced is None for node in batch.nodes] or [True] * int(batch.mask.sum())
        places = batch.mask.masked_scatter(batch.mask, torch.tensor(drawn, dtype=torch.bool, device=batch.mask.device))
        chosen, entropies = chosen_logprobs(
            model, states[places], batch.ids[:, 1:][places], temperature or 1.0, entropy_gradient=entropy_gradient,
            nodes=[node for node, on in zip(batch.nodes, drawn, strict=False) if on],
        )  # fmt: skip
    return _spread(places, chosen), _spread(places, entropies)[batch.mask]


def _spread(places: Tensor, values: Tensor) -> Tensor:
    """`values` [N] at the N true `places`, 0 elsewhere."""
    return values.new_zeros(places.shape).masked_scatter(places, values)


def _choice_logprobs(
    model: Any, states: Tensor, ids: Tensor, choices: Choices, temperature: float
) -> tuple[Tensor, Tensor]:
    """[B] the log-probability of the chosen action, and [B] the entropy over the candidates."""
    branch, lengths = choices
    rows, columns, before = forked_places(branch)
    each, _ = chosen_logprobs(model, states[rows, before], ids[rows, columns], 1.0)
    there = lengths > 0
    logprobs = candidate_logprobs(branch_sums(branch, each), lengths.clamp(min=1) * temperature, there)
    return logprobs[:, 0], -(logprobs.exp() * logprobs.masked_fill(~there, 0.0)).sum(-1)


def chosen_logprobs(
    model: Any,
    hidden: Tensor,
    chosen: Tensor,
    temperature: float,
    most_logits: int = MOST_LOGITS,
    *,
    entropy_gradient: bool = False,
    nodes: Sequence[Node | None] = (),
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the ids `chosen` [M] after the states `hidden` [M, E], and the entropies [M], in nats.

    The entropies have a gradient only with `entropy_gradient`, which doubles the memory. With `nodes` [M]
    both are over the ids that these allow.

    At most `most_logits` logits exist at a time: for more, the M states are processed in parts, and the backward pass
    computes the logits of each part again.
    """

    def part(states: Tensor, ids: Tensor, nodes: Sequence[Node | None]) -> tuple[Tensor, Tensor]:
        logits = head_logits(model, states) / temperature
        if nodes:
            logits = masked_logits(logits, nodes)
        return logits.log_softmax(-1).gather(-1, ids[:, None])[:, 0], entropy(
            logits if entropy_gradient else logits.detach()
        )

    size = max(1, most_logits // model.config.get_text_config().vocab_size)
    if len(chosen) <= size:
        return part(hidden, chosen, nodes)
    starts = range(0, len(chosen), size)
    parts = [
        checkpoint(part, hidden[i : i + size], chosen[i : i + size], nodes[i : i + size], use_reentrant=False)
        for i in starts
    ]
    return torch.cat([logprobs for logprobs, _ in parts]), torch.cat([entropies for _, entropies in parts])
