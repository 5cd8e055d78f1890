"""A causal language model of transformers on this machine, with a KV cache that lives as long as the episode.

`LocalPolicy.generate` computes only the tokens that are new since the session's last request: the observation that
came in, then one token at a time. Sessions own rows of one preallocated cache. Those asked about together are kept
together at the front, so that a step of all of them is a view and not a copy; a step of some copies theirs, which costs
less than to compute the others too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from agents.policies.base import Completion, End, Request, Sampling, token_limits
from agents.policies.models import (
    MOST_LOGITS,
    branch_sums,
    branches,
    context_length,
    forked_places,
    forked_states,
    head_logits,
    next_token_logits,
    pad,
    sample,
    stop_ids,
    token_logprobs,
)

# Key/value lengths are rounded up to this, so that kernels see few different shapes.
LENGTH_STEP = 32
MOST_PREFILL = 2**14  # tokens in one forward pass


class SlotCache(Cache):  # type: ignore[misc]
    """Keys and values of many sessions, one row each, of different lengths.

    Before a forward pass `active` [B] says which rows it is about, `front` whether these are the first B, `positions`
    [B, Q] where each new token goes in them, and `length` how much of them to attend to. Tokens that only pad a row
    are written behind its end, where the next real token overwrites them before anything attends to them.
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
        """Make room, keeping what is there. Grows by half, so that growing is rare."""
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
        """Copy rows `sources` over rows `targets`, all at once (so a permutation is allowed)."""
        if not sources:
            return
        for store in (self.keys, self.values):
            for tensor in store:
                tensor[list(targets)] = tensor[list(sources)]  # indexing by a list copies first

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Write the new tokens' keys and values [B, H, Q, D]; return those of the rows up to `length`."""
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


class LocalPolicy:
    """See `agents.policies.base.Policy`. `model` is any decoder-only model of transformers, kept in eval mode."""

    def __init__(self, model: Any, tokenizer: Any, source: Path | str | None = None) -> None:
        """`source` is the folder (or hub id) that the model was loaded from, for those who need it there."""
        self.model, self.tokenizer, self.source = model, tokenizer, source
        self.stop_ids = stop_ids(model, tokenizer)
        self.device = next(model.parameters()).device
        self.context_length = context_length(model.config)
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
        prompts = [list(requests[i].prompt_ids) for i in order]
        sessions = [requests[i].session for i in order]
        completions: list[Completion | None] = [None] * len(requests)
        for row, done in enumerate(self._decode(sessions, prompts, [limits[i] for i in order], sampling, generator)):
            completions[order[row]] = done
        return cast(list[Completion], completions)

    def _decode(
        self,
        sessions: list[int],
        prompts: list[list[int]],
        limits: list[int],
        sampling: Sampling,
        generator: torch.Generator,
    ) -> list[Completion]:
        kept = [_common_prefix(self._cached[s], p) for s, p in zip(sessions, prompts, strict=True)]
        # At least one token is computed again, since its output is the distribution of the next.
        kept = [min(k, len(p) - 1) for k, p in zip(kept, prompts, strict=True)]
        logits = self._prefill(kept, [p[k:] for k, p in zip(kept, prompts, strict=True)])  # [n, V]
        ids: list[list[int]] = [[] for _ in prompts]
        logprobs: list[list[float]] = [[] for _ in prompts]
        ends: list[End | None] = [None] * len(prompts)
        running = list(range(len(prompts)))
        while running:
            sampled, sampled_logprobs = sample(logits, sampling.temperature, generator)
            for row, token, logprob in zip(running, sampled.tolist(), sampled_logprobs.tolist(), strict=True):
                ids[row].append(token)
                logprobs[row].append(logprob)
                ends[row] = self._end(ids[row], limits[row], sampling.stop)
            running = [row for row in running if ends[row] is None]
            if running:
                lengths = [len(prompts[row]) + len(ids[row]) - 1 for row in running]
                logits = self._forward(running, lengths, [ids[row][-1:] for row in running])
        for session, prompt, sampled_ids in zip(sessions, prompts, ids, strict=True):
            self._cached[session] = prompt + sampled_ids[:-1]  # nothing was asked about the last
        return [
            Completion(row_ids, row_logprobs, cast(End, end))
            for row_ids, row_logprobs, end in zip(ids, logprobs, ends, strict=True)
        ]

    def _end(self, ids: list[int], limit: int, stop: Sequence[str]) -> End | None:
        """What ends a completion that has come to `ids`; None where it goes on."""
        if ids[-1] in self.stop_ids:
            return End.TOKEN
        if stop:
            # A token is a byte or more, so what was completed just now lies within as many tokens as it has bytes.
            tail = self.tokenizer.decode(ids[-max(len(text.encode()) for text in stop) :])
            if any(text in tail for text in stop):
                return End.STRING
        return End.LENGTH if len(ids) == limit else None

    def _prefill(self, starts: list[int], tokens: list[list[int]]) -> Tensor:
        """`_forward` of all rows: those with about as many tokens at a time, for padding would be most of the work."""
        alike: dict[int, list[int]] = {}  # number of tokens, rounded to a power of two -> rows
        for row, fresh in enumerate(tokens):
            alike.setdefault(len(fresh).bit_length(), []).append(row)
        parts = [
            rows[i : i + max(1, MOST_PREFILL >> bits)]
            for bits, rows in alike.items()
            for i in range(0, len(rows), max(1, MOST_PREFILL >> bits))
        ]
        logits = [self._forward(rows, [starts[r] for r in rows], [tokens[r] for r in rows]) for rows in parts]
        return torch.cat(logits)[torch.tensor([row for rows in parts for row in rows]).argsort()]

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
        cache.length = min(-(-end // LENGTH_STEP) * LENGTH_STEP, cache.capacity)
        hidden_from = torch.arange(cache.length, device=self.device) > positions[:, None, :, None]  # (B, 1, Q, KV)
        # Added to the scores of every layer; a mask of booleans would be made into this one in each of them.
        mask = torch.zeros(hidden_from.shape, dtype=self.model.dtype, device=self.device)
        mask.masked_fill_(hidden_from, -torch.inf)
        hidden = self.model.base_model(
            input_ids=ids,
            position_ids=positions.clamp(max=self.context_length - 1),
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
        """Give the sessions rows 0…n-1 with as few copies as possible; the row of each, in the order given."""
        if len(set(sessions)) != len(sessions):
            raise ValueError(f"one request a session at a time, got sessions {sessions}")
        n, wanted = len(sessions), set(sessions)
        old = self._slots
        new = [s if s in wanted else None for s in old[:n]]
        new += [None] * (n - len(new))
        placed = set(new)
        waiting = iter([s for s in sessions if s not in placed])
        new = [s if s is not None else next(waiting) for s in new]
        new += [s for s in old if s is not None and s not in wanted]  # sessions that rest keep a row behind
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
        """Forget a session; unknown ones are ignored, since an episode may end before its first request."""
        if self._cached.pop(session, None) is not None:
            self._slots[self._slots.index(session)] = None

    def pause(self) -> None:
        """See `Policy.pause`."""
        self._slots, self._cached, self._cache = [], {}, None

    def sync(self) -> dict[str, float]:
        """See `Policy.sync`; the weights are the same tensors, so that there is nothing to do."""
        return {}

    @torch.inference_mode()
    def check(self) -> None:
        """Raise `ValueError` where reading ids in two parts, as turns do, gives other logits than reading them at once.

        Models with their own ideas of positions, masks or caches would sample from something else than is trained.
        """
        ids = torch.arange(24, device=self.device) * 7919 % self.model.config.get_text_config().vocab_size
        whole = next_token_logits(self.model, ids[None])[0, -1].log_softmax(-1)
        logits = torch.empty(0)
        for start, end in ((0, 11), (11, 23), (23, 24)):
            logits = self._forward([0], [start], [ids[start:end].tolist()])
        self._cache = None
        error = float((logits[0].log_softmax(-1) - whole).abs().max())
        if not error <= (1e-3 if self.model.dtype == torch.float32 else 0.5):
            raise ValueError(
                f"{type(self.model).__name__}: its log-probabilities differ by {error:.2g} where its keys and values "
                "are kept; this kind of model cannot be sampled here (rollout=vllm may)"
            )

    # -- scoring ----------------------------------------------------------------------------------------------------
    @torch.inference_mode()
    def score(self, sequences: Sequence[Sequence[int]]) -> list[Tensor]:
        """Log-probabilities of given ids, see `Policy.score`; one padded batch."""
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


def in_place() -> Callable[[LocalPolicy], LocalPolicy]:
    """Sample from the weights where they are: the policy itself."""
    return lambda policy: policy


def _common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many ids two sequences share from the start."""
    n = min(len(a), len(b))
    if list(a[:n]) == list(b[:n]):  # the usual case: a prompt that extends the last one
        return n
    return next(i for i in range(n) if a[i] != b[i])
