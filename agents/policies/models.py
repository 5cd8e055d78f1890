"""What a causal language model of transformers says: its logits, log-probabilities, limits and shapes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor


def find_device() -> torch.device:
    """The best device there is: cuda, then mps, then cpu. Found, not asked for."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def head_logits(model: Any, hidden: Tensor) -> Tensor:
    """Logits [..., V] in float32 of hidden states [..., E], with what some families do to them at the end."""
    logits = cast(Tensor, model.get_output_embeddings()(hidden)).float()
    config = model.config.get_text_config()
    if scale := getattr(config, "logit_scale", None):  # Cohere
        logits = logits * scale
    if divisor := getattr(config, "logits_scaling", None):  # Granite
        logits = logits / divisor
    if cap := getattr(config, "final_logit_softcapping", None):  # Gemma
        logits = cap * torch.tanh(logits / cap)
    return logits


def next_token_logits(model: Any, ids: Tensor) -> Tensor:
    """Logits of the token after each of `ids` [B, L] that are padded on the right: [B, L, V] in float32."""
    return head_logits(model, model.base_model(input_ids=ids, use_cache=False).last_hidden_state)


def token_logprobs(model: Any, ids: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probability of each token of `ids` [B, L] given those before it: [B, L - 1], in nats."""
    logits = next_token_logits(model, ids[:, :-1]) / temperature
    return torch.log_softmax(logits, dim=-1).gather(-1, ids[:, 1:, None])[..., 0]


def pad(sequences: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Ids padded on the right with 0, as a tensor [B, L]. Behind a causal mask the padding touches nothing."""
    width = max(len(s) for s in sequences)
    return torch.tensor([[*s, *([0] * (width - len(s)))] for s in sequences], device=device)


def cache_shape(config: Any) -> tuple[int, int, int]:
    """Layers, heads and width of a head of the keys and values that a model of this configuration keeps."""
    text = config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return text.num_hidden_layers, heads, head_dim


def context_length(config: Any) -> int:
    """How many ids a model of this configuration reads; no more than what its narrowest window shows."""
    text = config.get_text_config()
    length = int(text.max_position_embeddings)
    window = getattr(text, "sliding_window", None)
    windowed = "sliding_attention" in (getattr(text, "layer_types", None) or ["sliding_attention"])
    return min(length, int(window)) if window and windowed else length


def stop_ids(model: Any, tokenizer: Any) -> list[int]:
    """The ids that end a completion: the tokenizer's, and those of the model's generation settings."""
    settings = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    listed = settings if isinstance(settings, list) else [settings]
    return sorted({int(i) for i in [tokenizer.eos_token_id, *listed] if i is not None})
