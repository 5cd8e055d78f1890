"""A causal language model of transformers on this machine, with a KV cache that lives as long as the episode.

`LocalPolicy.generate` computes only the tokens that are new since the session's last request: the observation that
came in, then one token at a time. Sessions own rows of one preallocated cache. Those asked about together are kept
together at the front, so that a step of all of them is a view and not a copy; a step of some copies theirs, which costs
less than to compute the others too.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.cache_utils import Cache

from agents.policies.base import Completion, Request, Sampling

# Key/value lengths are rounded up to this, so that kernels see few different shapes.
LENGTH_STEP = 32


def find_device() -> torch.device:
    """The best device there is: cuda, then mps, then cpu. Found, not asked for."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


class SlotCache(Cache):  # type: ignore[misc]
    """Keys and values of many sessions, one row each, of different lengths.

    Before a forward pass `active` [B] says which rows it is about, `front` whether these are the first B, `positions`
    [B, Q] where each new token goes in them, and `length` how much of them to attend to. Tokens that only pad a row
    are written behind its end, where the next real token overwrites them before anything attends to them.
    """

    def __init__(self, layers: int, heads: int, head_dim: int, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(layers=[])
        self.rows, self.capacity, self.length = 0, 0, 0
        self.active = torch.zeros(0, dtype=torch.long, device=device)
        self.front = True
        self.positions = torch.zeros(0, 0, dtype=torch.long, device=device)
        empty = torch.zeros(0, heads, 0, head_dim, device=device, dtype=dtype)
        self.keys = [empty for _ in range(layers)]  # each [rows, H, capacity, D]
        self.values = [empty for _ in range(layers)]

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
        keys, values = self.keys[layer_idx], self.values[layer_idx]
        keys[self.active[:, None], :, self.positions] = key_states.transpose(1, 2)
        values[self.active[:, None], :, self.positions] = value_states.transpose(1, 2)
        keys, values = keys[:, :, : self.length], values[:, :, : self.length]
        if self.front:
            return keys[: len(self.active)], values[: len(self.active)]
        return keys.index_select(0, self.active), values.index_select(0, self.active)


class LocalPolicy:
    """See `agents.policies.base.Policy`. `model` is any decoder-only model of transformers, kept in eval mode."""

    def __init__(self, model: Any, tokenizer: Any, stop_ids: Sequence[int] | None = None) -> None:
        """`stop_ids` end a completion; default: the tokenizer's end-of-sequence token."""
        self.model = model
        self.tokenizer = tokenizer
        self.stop_ids = list(stop_ids) if stop_ids is not None else [int(tokenizer.eos_token_id)]
        self.device = next(model.parameters()).device
        self.context_length = int(model.config.max_position_embeddings)
        self._cache: SlotCache | None = None
        self._slots: list[int | None] = []  # row of the cache -> session
        self._cached: dict[int, list[int]] = {}  # session -> the ids whose keys and values are in its row

    # -- generation -------------------------------------------------------------------------------------------------
    @torch.inference_mode()
    def generate(self, requests: Sequence[Request], sampling: Sampling, generator: torch.Generator) -> list[Completion]:
        """Continue every request; see `Policy.generate`. Raises `ValueError` for a prompt that leaves no room."""
        if not requests:
            return []
        for request in requests:
            room = self.context_length - len(request.prompt_ids)
            if room < 1 or not request.prompt_ids:
                raise ValueError(
                    f"a prompt needs 1 to {self.context_length - 1} ids to leave room for an answer, "
                    f"session {request.session} has {len(request.prompt_ids)}"
                )
        slots = self._arrange([request.session for request in requests])
        order = sorted(range(len(requests)), key=slots.__getitem__)  # requests by row
        prompts = [list(requests[i].prompt_ids) for i in order]
        sessions = [requests[i].session for i in order]
        limits = [min(sampling.max_tokens, self.context_length - len(p)) for p in prompts]
        completions: list[Completion | None] = [None] * len(requests)
        for row, done in enumerate(self._decode(sessions, prompts, limits, sampling.temperature, generator)):
            completions[order[row]] = done
        return cast(list[Completion], completions)

    def _decode(
        self,
        sessions: list[int],
        prompts: list[list[int]],
        limits: list[int],
        temperature: float,
        generator: torch.Generator,
    ) -> list[Completion]:
        kept = [_common_prefix(self._cached[s], p) for s, p in zip(sessions, prompts, strict=True)]
        # At least one token is computed again, since its output is the distribution of the next.
        kept = [min(k, len(p) - 1) for k, p in zip(kept, prompts, strict=True)]
        logits = self._prefill(kept, [p[k:] for k, p in zip(kept, prompts, strict=True)])  # [n, V]
        ids: list[list[int]] = [[] for _ in prompts]
        logprobs: list[list[float]] = [[] for _ in prompts]
        stops = set(self.stop_ids)
        running = list(range(len(prompts)))
        while running:
            sampled, sampled_logprobs = _sample(logits, temperature, generator)
            for row, token, logprob in zip(running, sampled.tolist(), sampled_logprobs.tolist(), strict=True):
                ids[row].append(token)
                logprobs[row].append(logprob)
            running = [row for row in running if ids[row][-1] not in stops and len(ids[row]) < limits[row]]
            if running:
                lengths = [len(prompts[row]) + len(ids[row]) - 1 for row in running]
                logits = self._forward(running, lengths, [ids[row][-1:] for row in running])
        for session, prompt, sampled_ids in zip(sessions, prompts, ids, strict=True):
            self._cached[session] = prompt + sampled_ids[:-1]  # nothing was asked about the last
        return [
            Completion(row_ids, row_logprobs, finished=row_ids[-1] in stops)
            for row_ids, row_logprobs in zip(ids, logprobs, strict=True)
        ]

    def _prefill(self, starts: list[int], tokens: list[list[int]]) -> Tensor:
        """`_forward` of all rows: those with about as many tokens at a time, for padding would be most of the work."""
        parts: dict[int, list[int]] = {}  # number of tokens, rounded to a power of two -> rows
        for row, fresh in enumerate(tokens):
            parts.setdefault(len(fresh).bit_length(), []).append(row)
        logits = [self._forward(rows, [starts[r] for r in rows], [tokens[r] for r in rows]) for rows in parts.values()]
        return torch.cat(logits)[torch.tensor([row for rows in parts.values() for row in rows]).argsort()]

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
        return cast(Tensor, self.model.get_output_embeddings()(last)).float()

    # -- rows of the cache ------------------------------------------------------------------------------------------
    def _room(self, rows: int, capacity: int) -> SlotCache:
        if self._cache is None:
            self._cache = SlotCache(*cache_shape(self.model.config), self.device, self.model.dtype)
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

    def reset_cache(self) -> None:
        """Forget every session: what is cached belongs to weights that have changed."""
        self._slots, self._cached = [], {}

    # -- scoring ----------------------------------------------------------------------------------------------------
    @torch.inference_mode()
    def score(self, sequences: Sequence[Sequence[int]]) -> list[Tensor]:
        """Log-probabilities of given ids, see `Policy.score`; one padded batch."""
        ids = pad(sequences, self.device)
        scores = token_logprobs(self.model, ids)
        return [row[: len(s) - 1].cpu() for row, s in zip(scores, sequences, strict=True)]


def load_policy(folder: str | Path, device: torch.device | None = None) -> LocalPolicy:
    """The model and tokenizer of a Hugging Face folder. Raises `FileNotFoundError` saying what is there instead."""
    path = Path(folder).expanduser()
    if not (path / "config.json").is_file():
        near = sorted(p.parent for p in path.glob("**/config.json")) or sorted(path.parent.glob("*/config.json"))
        seen = ", ".join(str(p) for p in near[:5]) or "no model folder near it"
        raise FileNotFoundError(f"no model in {path}: expected a folder with config.json; found {seen}")
    model = AutoModelForCausalLM.from_pretrained(path, dtype="auto", local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    return LocalPolicy(model.to(device or find_device()).eval(), tokenizer)


def cache_shape(config: Any) -> tuple[int, int, int]:
    """Layers, heads and width of a head of the keys and values that a model of this configuration keeps."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return config.num_hidden_layers, heads, head_dim


def pad(sequences: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Ids padded on the right with 0, as a tensor [B, L]. Behind a causal mask the padding touches nothing."""
    width = max(len(s) for s in sequences)
    return torch.tensor([[*s, *([0] * (width - len(s)))] for s in sequences], device=device)


def next_token_logits(model: Any, ids: Tensor) -> Tensor:
    """Logits of the token after each of `ids` [B, L] that are padded on the right: [B, L, V] in float32."""
    hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    return cast(Tensor, model.get_output_embeddings()(hidden)).float()


def token_logprobs(model: Any, ids: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probability of each token of `ids` [B, L] given those before it: [B, L - 1], in nats."""
    logits = next_token_logits(model, ids[:, :-1]) / temperature
    return torch.log_softmax(logits, dim=-1).gather(-1, ids[:, 1:, None])[..., 0]


def _sample(logits: Tensor, temperature: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """One token for each row of `logits` [B, V], and its log-probability under what it was sampled from."""
    logprobs = torch.log_softmax(logits / (temperature or 1.0), dim=-1)
    if temperature == 0:
        tokens = logits.argmax(dim=-1)
    else:
        # argmax p/e with e ~ Exp(1) samples from p: the Gumbel trick, and far faster than multinomial on a CPU.
        noise = torch.empty_like(logprobs).exponential_(generator=generator)
        tokens = (logprobs - noise.log()).argmax(dim=-1)
    return tokens, logprobs.gather(-1, tokens[:, None])[:, 0]


def _common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many ids two sequences share from the start."""
    n = min(len(a), len(b))
    if list(a[:n]) == list(b[:n]):  # the usual case: a prompt that extends the last one
        return n
    return next(i for i in range(n) if a[i] != b[i])
