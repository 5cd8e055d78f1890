"""A causal language model of transformers on this machine, with a KV cache that lasts for the episode.

`LocalPolicy.generate` computes only tokens that are new since the session's last request: the new observation, then one
token at a time. Each session owns a row of one preallocated cache. The sessions of a request are kept together at the
front, so a step of all of them is a view instead of a copy. A step of some of them copies their rows, which costs less
than computing the others too.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from agents.policies.base import Completion, End, Request, Sampling, Writing, token_limits
from agents.policies.models import (
    MOST_LOGITS,
    branch_sums,
    branches,
    clamp_positions,
    context_length,
    forked_places,
    forked_states,
    head_logits,
    masked_logits,
    next_token_logits,
    one_line,
    pad,
    sample,
    stop_ids,
    token_logprobs,
    truncated,
)
from agents.policies.sharded import whole
from agents.prompts import ACT

# Key/value lengths are rounded up to a multiple of this, so kernels see few different shapes.
LENGTH_STEP = 32
MOST_PREFILL = 2**14  # tokens in one forward pass
MOST_SCORES = 2**26  # prompt tokens times the tokens that they see: the mask takes 256 MB


class SlotCache(Cache):  # type: ignore[misc]
    """Keys and values of many sessions, one row each, of different lengths.

    Before a forward pass, set `active` [B], the rows in use; `front`, whether these are the first B rows; `positions`
    [B, Q], where each new token goes in its row; and `length`, the number of places to attend to. Padding tokens are
    written after the row's end, where the next real token overwrites them before anything attends to them.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__(layers=[])
        self.rows, self.capacity, self.length = 0, 0, 0
        self.active = torch.zeros(0, dtype=torch.long, device=device)
        self.front = True
        self.positions = torch.zeros(0, 0, dtype=torch.long, device=device)
        self.keys: list[Tensor] = []  # of each layer [rows, H, capacity, D]
        self.values: list[Tensor] = []

    def reserve(self, rows: int, capacity: int) -> None:
        """Make room and keep the contents. Grows by half, so that it rarely has to."""
        if rows <= self.rows and capacity <= self.capacity:
            return
        old_rows, old_capacity = self.rows, self.capacity
        self.rows = max(rows, old_rows)
        if capacity > old_capacity:
            self.capacity = -(-max(capacity, old_capacity * 3 // 2) // LENGTH_STEP) * LENGTH_STEP
        for store in (self.keys, self.values):
            for layer, old in enumerate(store):
                new = old.new_zeros(self.rows, old.shape[1], self.capacity, old.shape[3])
                new[:old_rows, :, :old_capacity] = old
                store[layer] = new

    def move(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy rows `sources` over rows `targets`, all at once (so a permutation works)."""
        if not sources:
            return
        for store in (self.keys, self.values):
            for tensor in store:
                tensor[list(targets)] = tensor[list(sources)]  # indexing by a list copies first

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Write the new tokens' keys and values [B, H, Q, D]; return those of the active rows up to `length`."""
        if layer_idx == len(self.keys):  # the first pass
            for store, states in ((self.keys, key_states), (self.values, value_states)):
                store.append(states.new_zeros(self.rows, states.shape[1], self.capacity, states.shape[3]))
        keys, values = self.keys[layer_idx], self.values[layer_idx]
        keys[self.active[:, None], :, self.positions] = key_states.transpose(1, 2)
        values[self.active[:, None], :, self.positions] = value_states.transpose(1, 2)
        keys, values = keys[:, :, : self.length], values[:, :, : self.length]
        if self.front:
            return keys[: len(self.active)], values[: len(self.active)]
        return keys.index_select(0, self.active), values.index_select(0, self.active)


@dataclass(kw_only=True)
class _Writing(Writing):
    """A completion that is being written, and what the cache holds of its sequence."""

    prompt: list[int]
    read: int = 0  # number of ids of prompt and completion in the cache
    logprobs: list[float] = field(default_factory=list)

    def unread(self) -> list[int]:
        """The ids that are not in the cache yet."""
        return self.prompt[self.read :] + self.ids[max(0, self.read - len(self.prompt)) :]


class LocalPolicy:
    """See `agents.policies.base.Policy`. `model` is any decoder-only model of transformers, kept in eval mode."""

    takes_masks = True

    def __init__(
        self, model: Any, tokenizer: Any, source: Path | str | None = None, context: int | None = None
    ) -> None:
        """`source` is the folder (or hub id) that the model was loaded from.

        `context` limits the ids of a sequence below the model's own limit. Raises `ValueError` if neither is known.
        """
        self.model, self.tokenizer, self.source = model, tokenizer, source
        self.stop_ids = stop_ids(model, tokenizer)
        self.device = next(model.parameters()).device
        limits = [limit for limit in (context_length(model.config), context) if limit is not None]
        if not limits:
            raise ValueError(
                f"{type(model).__name__} does not say how many ids it can read; set a limit, as in policy.context=2048"
            )
        self.context_length = min(limits)
        self._cache: SlotCache | None = None
        self._slots: list[int | None] = []  # row of the cache -> session
        self._cached: dict[int, list[int]] = {}  # session -> the ids whose keys and values are in its row

    # -- generation -------------------------------------------------------------------------------------------------
    @torch.inference_mode()
    def generate(self, requests: Sequence[Request], sampling: Sampling, generator: torch.Generator) -> list[Completion]:
        """Continue every request; see `Policy.generate`. Raises `ValueError` for a prompt that leaves no room."""
        if not requests:
            return []
        limits = token_limits(requests, sampling, self.context_length)
        slots = self._arrange([request.session for request in requests])
        order = sorted(range(len(requests)), key=slots.__getitem__)  # requests by row
        writing = [
            _Writing(
                requests[i].mask, limits[i], self.context_length - len(requests[i].prompt_ids), self.stop_ids,
                prompt=list(requests[i].prompt_ids),
            )
            for i in order
        ]  # fmt: skip
        self._write(writing, [requests[i].session for i in order], sampling, generator)
        completions: list[Completion | None] = [None] * len(requests)
        for i, row in zip(order, writing, strict=True):
            completions[i] = Completion(row.ids, row.logprobs, cast(End, row.end), row.nodes)
        return cast(list[Completion], completions)

    def _write(self, rows: list[_Writing], sessions: list[int], sampling: Sampling, generator: torch.Generator) -> None:
        """Write all completions to their ends; that of `rows[i]` uses row i of the cache."""
        for row, session in zip(rows, sessions, strict=True):
            # Compute at least one token again: its output is the distribution of the next one.
            row.read = min(_common_prefix(self._cached[session], row.prompt), len(row.prompt) - 1)
            self._take_forced(row, sampling)
        forward = self._prefill
        while running := [number for number, row in enumerate(rows) if row.end is None]:
            starts, fresh = [rows[number].read for number in running], [rows[number].unread() for number in running]
            logits = forward(running, starts, fresh)  # [n, V]
            if any(rows[number].node for number in running):
                logits = masked_logits(logits, [rows[number].node for number in running])
            kept = truncated(logits, sampling) if sampling.truncation else []
            if kept:
                logits = masked_logits(logits, kept)
            sampled, logprobs = sample(logits, sampling.temperature, generator)
            for place, (number, token, logprob) in enumerate(
                zip(running, sampled.tolist(), logprobs.tolist(), strict=True)
            ):
                row = rows[number]
                row.read = len(row.prompt) + len(row.ids)
                self._take(row, token, logprob, sampling)
                if kept:
                    row.nodes[len(row.ids) - 1 :] = [kept[place]]
                self._take_forced(row, sampling)
            forward = self._forward
        for row, session in zip(rows, sessions, strict=True):
            self._cached[session] = (row.prompt + row.ids)[: row.read]

    def _take(self, row: _Writing, token: int, logprob: float, sampling: Sampling) -> None:
        row.take(token)
        row.logprobs.append(logprob)
        if row.mask is None and row.end is not End.TOKEN and self._is_stopped(row.ids, sampling.stop):
            row.end = End.STRING

    def _take_forced(self, row: _Writing, sampling: Sampling) -> None:
        """Append the ids that the mask forces: they have probability 1, and nothing is computed."""
        while row.end is None and row.node is not None and (token := row.node.forced) is not None:
            self._take(row, token, 0.0, sampling)

    def _is_stopped(self, ids: list[int], stop: Sequence[str]) -> bool:
        """Whether the last of `ids` completes one of the texts in `stop`."""
        if not stop:
            return False
        # A token is at least one byte, so a stop string just completed lies within as many tokens as it has bytes.
        tail = self.tokenizer.decode(ids[-max(len(text.encode()) for text in stop) :])
        return any(text in tail for text in stop)

    def _prefill(self, rows: list[int], starts: list[int], tokens: list[list[int]]) -> Tensor:
        """`_forward` for rows with similar numbers of tokens at a time: otherwise most of the work would be padding."""
        by_length: dict[int, list[int]] = {}  # number of tokens, rounded to a power of two -> places in `rows`
        for place, fresh in enumerate(tokens):
            by_length.setdefault(len(fresh).bit_length(), []).append(place)
        parts = [
            places[i : i + max(1, MOST_PREFILL >> bits)]
            for bits, places in by_length.items()
            for i in range(0, len(places), max(1, MOST_PREFILL >> bits))
        ]
        logits = [
            self._read([rows[i] for i in part], [starts[i] for i in part], [tokens[i] for i in part]) for part in parts
        ]
        return torch.cat(logits)[torch.tensor([place for part in parts for place in part]).argsort()]

    def _read(self, rows: list[int], starts: list[int], tokens: list[list[int]]) -> Tensor:
        """`_forward` for a few rows, or for one long row in parts."""
        if len(rows) > 1:
            return self._forward(rows, starts, tokens)
        (start,), (fresh,) = starts, tokens
        size = max(LENGTH_STEP, MOST_SCORES // (start + len(fresh)))
        for a in range(0, len(fresh), size):
            logits = self._forward(rows, [start + a], [fresh[a : a + size]])
        return logits

    def _forward(self, rows: list[int], starts: list[int], tokens: list[list[int]]) -> Tensor:
        """Put `tokens[b]` at position `starts[b]` of `rows[b]`; the next-token logits [B, V] after each row's last."""
        counts = torch.tensor([len(t) for t in tokens], device=self.device)
        width = max(len(t) for t in tokens)
        ids = torch.tensor([t + [0] * (width - len(t)) for t in tokens], device=self.device)  # (B, Q)
        start = torch.tensor(starts, device=self.device)
        positions = start[:, None] + torch.arange(width, device=self.device)  # (B, Q)
        end = max(s + len(t) for s, t in zip(starts, tokens, strict=True))
        cache = self._room(max(rows) + 1, max(starts) + width)
        cache.active = torch.tensor(rows, device=self.device)
        cache.front = rows == list(range(len(rows)))
        cache.positions = positions
        rounded = min(-(-end // LENGTH_STEP) * LENGTH_STEP, cache.capacity)
        cache.length = max(end, min(rounded, self.context_length))  # attention windows count from the last place
        hidden_from = torch.arange(cache.length, device=self.device) > positions[:, None, :, None]  # (B, 1, Q, KV)
        # This is added to the attention scores. Every layer would convert a boolean mask into the same tensor.
        mask = torch.zeros(hidden_from.shape, dtype=self.model.dtype, device=self.device)
        mask.masked_fill_(hidden_from, -torch.inf)
        hidden = self.model.base_model(
            input_ids=ids,
            position_ids=clamp_positions(self.model, positions),
            attention_mask=mask,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state  # (B, Q, E)
        last = hidden[torch.arange(len(tokens), device=self.device), counts - 1]
        return head_logits(self.model, last)

    # -- rows of the cache ------------------------------------------------------------------------------------------
    def _room(self, rows: int, capacity: int) -> SlotCache:
        if self._cache is None:
            self._cache = SlotCache(self.device)
        self._cache.reserve(max(rows, len(self._slots)), capacity)
        return self._cache

    def _arrange(self, sessions: list[int]) -> list[int]:
        """Assign rows 0…n-1 to the sessions with as few copies as possible; return each session's row."""
        if len(set(sessions)) != len(sessions):
            raise ValueError(f"a session can have one request at a time, got sessions {sessions}")
        n, requested = len(sessions), set(sessions)
        old = self._slots
        new = [s if s in requested else None for s in old[:n]]
        new += [None] * (n - len(new))
        placed = set(new)
        waiting = iter([s for s in sessions if s not in placed])
        new = [s if s is not None else next(waiting) for s in new]
        new += [s for s in old if s is not None and s not in requested]  # inactive sessions keep a row after these
        was = {s: row for row, s in enumerate(old) if s is not None}
        moves = [(was[s], row) for row, s in enumerate(new) if s in was and was[s] != row]
        self._slots = list(new)
        if moves and self._cache is not None:
            self._cache.reserve(len(new), self._cache.capacity)
            self._cache.move([a for a, _ in moves], [b for _, b in moves])
        for session in sessions:
            self._cached.setdefault(session, [])
        rows = {s: row for row, s in enumerate(new)}
        return [rows[s] for s in sessions]

    def release(self, session: int) -> None:
        """Forget a session. Unknown ones are ignored, since an episode may end before its first request."""
        if self._cached.pop(session, None) is not None:
            self._slots[self._slots.index(session)] = None

    def pause(self) -> None:
        """See `Policy.pause`."""
        self._slots, self._cached, self._cache = [], {}, None

    def sync(self) -> dict[str, float]:
        """See `Policy.sync`; the weights are the same tensors, so there is nothing to do."""
        return {}

    @torch.inference_mode()
    def check(self) -> None:
        """Raise `ValueError` in one line for a model that cannot be sampled and trained here, whatever the reason.

        A model with unusual positions, masks, caches or heads would be sampled differently from how it is trained, and
        some models keep no keys and values. The tokenizer must not have ids that the model lacks.
        """
        name = type(self.model).__name__
        self._check_vocabulary(name)
        try:
            problem = self._compare()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a model of another kind may raise anything
            problem = f"its forward pass fails ({one_line(error)})"
        finally:
            self.pause()
        if problem is not None:
            raise ValueError(
                f"{name}: {problem}; it cannot be sampled and trained here. docs/agents.md lists the models that can"
            )

    def _check_vocabulary(self, name: str) -> None:
        """Special tokens that are never written may lack an embedding, as one of Gemma 3's does."""
        size = len(self.model.get_input_embeddings().weight)
        beyond = {text: number for text, number in self.tokenizer.get_vocab().items() if number >= size}
        written = {self.tokenizer.bos_token, self.tokenizer.eos_token, ACT}
        template = str(self.tokenizer.chat_template or "")
        special = set(self.tokenizer.all_special_tokens)
        wrong = sorted(t for t in beyond if t not in special or t in written or t in template)
        if wrong:
            raise ValueError(
                f"the tokenizer has {max(beyond.values()) + 1:,} ids, but {name} has embeddings for {size:,}: "
                f"{wrong[:3]}{' and others' * (len(wrong) > 3)} cannot be read; is it the tokenizer of another model?"
            )

    def _compare(self) -> str | None:
        """Compare the logits of a short text read in parts, as turns are, and at once; returns the problem if any."""
        size = len(self.model.get_input_embeddings().weight)
        ids = torch.arange(min(24, self.context_length), device=self.device) * 7919 % size
        ends = sorted({max(len(ids) - 13, 1), max(len(ids) - 1, 1), len(ids)})
        last = torch.tensor(ends, device=self.device) - 1
        logits = self.model(input_ids=ids[None], use_cache=False).logits[0, last].float()
        if not logits.isfinite().all():
            return "its logits are not finite, which suggests damaged weights"
        # Logits that hardly differ from each other, as with random weights, must agree more closely.
        most = (1e-3 if self.model.dtype == torch.float32 else 0.5) * min(1.0, float(logits.std()))
        trained = next_token_logits(self.model, ids[None])[0, last]
        if not (error := _largest_difference(trained, logits)) <= most:
            return f"its log-probabilities differ by {error:.2g} from those computed from its hidden states"
        parts = [self._forward([0], [a], [ids[a:b].tolist()])[0] for a, b in zip([0, *ends], ends, strict=False)]
        if not (error := _largest_difference(torch.stack(parts), trained)) <= most:
            return f"its log-probabilities differ by {error:.2g} when its keys and values are cached"
        return None

    # -- scoring ----------------------------------------------------------------------------------------------------
    @torch.no_grad()  # `inference_mode` would make a sharded model untrainable
    def score(self, sequences: Sequence[Sequence[int]]) -> list[Tensor]:
        """Log-probabilities of given ids, see `Policy.score`; one padded batch. Raises `ValueError` for longer ones."""
        if (longest := max(map(len, sequences))) > self.context_length:
            raise ValueError(f"a sequence has at most {self.context_length} ids, got {longest}")
        ids = pad(sequences, self.device)
        scores = token_logprobs(self.model, ids)
        return [row[: len(s) - 1].cpu() for row, s in zip(scores, sequences, strict=True)]

    @torch.inference_mode()
    def score_candidates(
        self, prompts: Sequence[Sequence[int]], candidates: Sequence[Sequence[Sequence[int]]]
    ) -> list[Tensor]:
        """See `Policy.score_candidates`; each prompt is read once, with its candidates side by side behind it."""
        ids = [[*p, *(i for c in these for i in c)] for p, these in zip(prompts, candidates, strict=True)]
        order = sorted(range(len(ids)), key=lambda row: -len(ids[row]))
        scores: dict[int, Tensor] = {}
        while order:
            size = max(1, MOST_PREFILL // len(ids[order[0]]))
            part, order = order[:size], order[size:]
            branch = pad([branches(len(prompts[i]), map(len, candidates[i])) for i in part], self.device, -1)
            sums = self._branch_logprobs(pad([ids[i] for i in part], self.device), branch).cpu()
            scores |= {i: row[: len(candidates[i])] for i, row in zip(part, sums, strict=True)}
        return [scores[i] for i in range(len(ids))]

    def _branch_logprobs(self, ids: Tensor, branch: Tensor) -> Tensor:
        """[B, K] log-probabilities of the branches of `ids` [B, L]."""
        rows, columns, before = forked_places(branch)
        states = forked_states(self.model, ids, branch)[rows, before]
        size = max(1, MOST_LOGITS // self.model.config.get_text_config().vocab_size)
        each = [
            head_logits(self.model, s).log_softmax(-1).gather(-1, chosen[:, None])[:, 0]
            for s, chosen in zip(torch.split(states, size), torch.split(ids[rows, columns], size), strict=True)
        ]
        return branch_sums(branch, torch.cat(each))


class SamplingCopy(LocalPolicy):
    """A whole copy of a policy whose model is going to be sharded: it samples, and `sync` renews its weights.

    Every process can then play its own episodes, whose numbers of turns differ.
    """

    def __init__(self, trained: LocalPolicy) -> None:
        super().__init__(copy.deepcopy(trained.model), trained.tokenizer, trained.source, trained.context_length)
        self.trained = trained.model

    def sync(self) -> dict[str, float]:
        """Copy the trained weights. All processes must call it."""
        own = self.model.state_dict(keep_vars=True)
        with torch.no_grad():
            for name, tensor in self.trained.state_dict(keep_vars=True).items():
                own[name].copy_(whole(tensor.detach()))
        return super().sync()


def _largest_difference(logits: Tensor, others: Tensor) -> float:
    """The largest difference of log-probabilities, in nats; NaN if one of them is NaN."""
    return float((logits.log_softmax(-1) - others.log_softmax(-1)).abs().max())


def in_place() -> Callable[[LocalPolicy], LocalPolicy]:
    """Sample with the trained weights themselves: returns the policy unchanged."""
    return lambda policy: policy


def _common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many ids two sequences share from the start."""
    n = min(len(a), len(b))
    if list(a[:n]) == list(b[:n]):  # the usual case: a prompt that extends the last one
        return n
    return next(i for i in range(n) if a[i] != b[i])
