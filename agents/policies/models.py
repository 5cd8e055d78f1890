"""Compute logits and log-probabilities with a causal language model of transformers, and read its limits and shapes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from agents.chat_templates import answer_end_id
from agents.masking import Kept
from agents.policies.sharded import in_model

if TYPE_CHECKING:
    from agents.masking import Node
    from agents.policies.base import Sampling

# Names in configurations of the number of ids that a model can read; GPT-2's n_positions is an alias of the first.
CONTEXT_NAMES = ("max_position_embeddings", "max_seq_len", "max_sequence_length", "seq_length", "context_length")
WINDOW_NAMES = ("attention_window_size", "sliding_window_size", "local_attention", "attention_chunk_size")
_NONE = np.zeros(0, np.int64)
MOST_LOGITS = 2**26  # computed at a time: 256 MB in float32, and the same again in the backward pass


def one_line(error: BaseException) -> str:
    """A library's error message, in one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:300]}…"


def find_device() -> torch.device:
    """The best available device: cuda, then mps, then cpu."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def head_logits(model: Any, hidden: Tensor) -> Tensor:
    """Logits [..., V] in float32 of hidden states [..., E], with the final scaling that some families use."""
    logits = cast(Tensor, model.get_output_embeddings()(hidden)).float()
    config = model.config.get_text_config()
    if scale := getattr(config, "logit_scale", None):  # Cohere
        logits = logits * scale
    if divisor := getattr(config, "logits_scaling", None):  # Granite
        logits = logits / divisor
    if cap := getattr(config, "final_logit_softcapping", None):  # Gemma
        logits = cap * torch.tanh(logits / cap)
    return logits


def causal_states(model: Any, ids: Tensor) -> Tensor:
    """Hidden states [B, L, E] of `ids` [B, L] that are padded on the right; see `head_logits`."""
    states: Tensor = _base_outputs(model, ids).last_hidden_state
    return states


def penultimate_states(model: Any, ids: Tensor) -> Tensor:
    """The states [B, L, E] of `ids` [B, L], padded on the right, before the last layer."""
    return in_model(model, lambda: cast(Tensor, _base_outputs(model, ids, output_hidden_states=True).hidden_states[-2]))


def _base_outputs(model: Any, ids: Tensor, **options: Any) -> Any:
    limit = context_length(model.config)
    positions = {}
    if limit is not None and ids.shape[1] > limit:
        positions = {"position_ids": clamp_positions(model, torch.arange(ids.shape[1], device=ids.device)[None])}
    return model.base_model(input_ids=ids, use_cache=False, **positions, **options)


def clamp_positions(model: Any, positions: Tensor) -> Tensor:
    """The positions, limited to what the model can read: padding may go beyond its end."""
    limit = context_length(model.config)
    return positions if limit is None else positions.clamp(max=limit - 1)


def next_token_logits(model: Any, ids: Tensor) -> Tensor:
    """Logits of the token after each of `ids` [B, L] that are padded on the right: [B, L, V] in float32."""
    return in_model(model, lambda: head_logits(model, causal_states(model, ids)))


def token_logprobs(model: Any, ids: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probability of each token of `ids` [B, L] given those before it: [B, L - 1], in nats."""
    logits = next_token_logits(model, ids[:, :-1]) / temperature
    return torch.log_softmax(logits, dim=-1).gather(-1, ids[:, 1:, None])[..., 0]


def pad(sequences: Sequence[Sequence[int]], device: torch.device, fill: int = 0) -> Tensor:
    """Ids padded on the right with `fill`, as a tensor [B, L]. With a causal mask, padding has no effect."""
    width = max(len(s) for s in sequences)
    return torch.tensor([[*s, *([fill] * (width - len(s)))] for s in sequences], device=device)


def masked_logits(logits: Tensor, nodes: Sequence[Node | None]) -> Tensor:
    """`logits` [B, V] with -inf for ids that the row's mask node does not allow. None allows every id."""
    allowed = torch.zeros(logits.shape, dtype=torch.bool)
    free: dict[int, list[int]] = {}  # the rows that share a set of free ids
    for row, node in enumerate(nodes):
        if node is None:
            allowed[row] = True
        elif node.free is not None:
            free.setdefault(id(node.free), []).append(row)
    for rows in free.values():
        ids = torch.from_numpy(cast("Node", nodes[rows[0]]).free)
        allowed[rows, : len(ids)] = ids[: logits.shape[-1]]  # some special ids may have no embedding
    children = [node.ids if node is not None else _NONE for node in nodes]
    places = np.repeat(np.arange(len(nodes)), [len(ids) for ids in children]), np.concatenate(children)
    allowed[tuple(map(torch.from_numpy, places))] = True
    return logits.masked_fill(~allowed.to(logits.device), -torch.inf)


def truncated(logits: Tensor, sampling: Sampling) -> list[Kept]:
    """The ids that truncated `sampling` keeps of each row of `logits` [B, V], of which masked ids have -inf.

    All three truncations keep a beginning of the ids in the order of their probabilities.
    """
    logprobs, ids = (logits / sampling.temperature).log_softmax(-1).sort(dim=-1, descending=True, stable=True)
    probabilities = logprobs.exp()
    keep = (logprobs > -torch.inf) & (probabilities >= sampling.min_p * probabilities[:, :1])
    if sampling.top_k:
        keep[:, sampling.top_k :] = False
    if sampling.top_p < 1:
        probabilities = probabilities * keep
        before = probabilities.cumsum(-1) - probabilities  # of the likelier ids
        keep &= before < sampling.top_p * probabilities.sum(-1, keepdim=True)
        keep[:, 0] = True
    counts = keep.sum(-1).cpu().numpy()
    return [Kept(row) for row in np.split(ids[keep].cpu().numpy(), counts.cumsum()[:-1])]


def sample(logits: Tensor, temperature: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Sample one id from each row of `logits` [B, V]; also returns its log-probability under that distribution."""
    logprobs = torch.log_softmax(logits / (temperature or 1.0), dim=-1)
    if temperature == 0:
        chosen = logits.argmax(dim=-1)
    else:
        # argmax p/e with e ~ Exp(1) samples from p: the Gumbel trick, and far faster than multinomial on a CPU.
        noise = torch.empty_like(logprobs).exponential_(generator=generator)
        chosen = (logprobs - noise.log()).argmax(dim=-1)
    return chosen, logprobs.gather(-1, chosen[:, None])[:, 0]


# -- forked sequences: a trunk and several branches, each a possible continuation, side by side ------------------------
# `branch` [B, L] is 0 for ids of the trunk, k for ids of the k-th branch (from 1) and -1 for padding.
def branches(trunk: int, lengths: Iterable[int]) -> list[int]:
    """The branch number of each id, for a trunk and branches of these lengths."""
    return [number for number, length in enumerate([trunk, *lengths]) for _ in range(length)]


def forked_states(model: Any, ids: Tensor, branch: Tensor) -> Tensor:
    """Hidden states [B, L, E] of `ids` [B, L]. Each branch sees the trunk and itself, directly after the trunk."""
    seen = ((branch == 0)[:, None, :] | (branch[:, :, None] == branch[:, None, :])).tril()  # (B, Q, KV)
    mask = torch.zeros(seen.shape, dtype=model.dtype, device=ids.device).masked_fill_(~seen, -torch.inf)
    positions = clamp_positions(model, seen.sum(-1) - 1)
    states: Tensor = model.base_model(
        input_ids=ids, position_ids=positions, attention_mask=mask[:, None], use_cache=False
    ).last_hidden_state
    return states


def forked_places(branch: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For the M ids of branches, each [M]: their row, their column, and the column of the state that predicts them."""
    rows, columns = (branch > 0).nonzero(as_tuple=True)
    opens = branch[rows, columns] != branch[rows, columns - 1]
    return rows, columns, torch.where(opens, (branch == 0).sum(-1)[rows] - 1, columns - 1)


def branch_sums(branch: Tensor, values: Tensor) -> Tensor:
    """[B, K] the sum of `values` [M] (see `forked_places`) over each branch; 0 where a row has fewer than K."""
    rows, columns = (branch > 0).nonzero(as_tuple=True)
    sums = torch.zeros(len(branch), int(branch.max()), dtype=values.dtype, device=values.device)
    return sums.index_put((rows, branch[rows, columns] - 1), values, accumulate=True)


def cache_shape(config: Any) -> tuple[int, int, int]:
    """Layers, heads and head width of the keys and values that a model of this configuration caches."""
    text = config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return text.num_hidden_layers, heads, head_dim


def context_length(config: Any) -> int | None:
    """How many ids a model of this configuration can read, or None if it does not say.

    At most the narrowest attention window, and the range of the first rotary frequencies: beyond these, a text read in
    parts, as turns are, would get other rotations than the same text read at once.
    """
    text = config.get_text_config()
    limits = [getattr(text, name, None) for name in (*CONTEXT_NAMES, *WINDOW_NAMES)]
    kinds = getattr(text, "layer_types", None) or getattr(text, "attention_layers", None) or ["sliding_attention"]
    if "sliding_attention" in kinds or "local" in kinds:
        limits += [getattr(text, name, None) for name in ("sliding_window", "window_size")]
    rope = getattr(text, "rope_parameters", None) or {}
    for rotary in (rope, *rope.values()):  # for all layers, or for each kind of layer
        if isinstance(rotary, dict) and rotary.get("rope_type") == "longrope":
            limits.append(rotary.get("original_max_position_embeddings"))
    return min((limit for limit in limits if isinstance(limit, int) and limit > 0), default=None)


def stop_ids(model: Any, tokenizer: Any) -> list[int]:
    """The ids that end a completion: from the tokenizer, the chat template, and the generation settings."""
    settings = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    listed = settings if isinstance(settings, list) else [settings]
    ends = [tokenizer.eos_token_id, answer_end_id(tokenizer) if tokenizer.chat_template else None]
    return sorted({int(i) for i in [*ends, *listed] if i is not None})
