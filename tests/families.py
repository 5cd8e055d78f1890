"""Tiny random models of many families of transformers, built from their configurations in a few hundredths of a second.

All of them can be sampled by `LocalPolicy`. `FAMILIES` names each by its model type, with what its configuration needs
beside `SIZE`; what a family does not have is left in its configuration, and read by nobody.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

SIZE: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
HEADS = {"head_dim": 8}
EXPERTS = {
    **HEADS,
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "n_routed_experts": 4,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "afmoe": EXPERTS,
    "apertus": {},
    "arcee": {},
    "bitnet": {},
    "cohere": {"logit_scale": 0.25},
    "cohere2": {},
    "cwm": HEADS,
    "diffllama": {},
    "doge": {},
    "ernie4_5": HEADS,
    "ernie4_5_moe": EXPERTS,
    "exaone4": HEADS,
    "exaone_moe": EXPERTS,
    "flex_olmo": EXPERTS,
    "gemma": HEADS,
    "gemma2": {**HEADS, "sliding_window": 64, "final_logit_softcapping": 5.0},
    "gemma3_text": {**HEADS, "sliding_window": 64},
    "glm": HEADS,
    "glm4": HEADS,
    "glm4_moe": EXPERTS,
    "gpt2": {},
    "gpt_bigcode": {},
    "gpt_neox": {},
    "gpt_oss": EXPERTS,
    "granite": {"logits_scaling": 3.0},
    "granitemoe": EXPERTS,
    "granitemoeshared": EXPERTS,
    "helium": HEADS,
    "hunyuan_v1_dense": HEADS,
    "hunyuan_v1_moe": EXPERTS,
    "jais2": {},
    "jetmoe": EXPERTS,
    "lfm2": {},
    "llama": {},
    "minimax_m2": EXPERTS,
    "ministral": HEADS,
    "mistral": {**HEADS, "sliding_window": 64},
    "mixtral": EXPERTS,
    "nanochat": {},
    "nemotron": {},
    "olmo": {},
    "olmo2": {},
    "olmo3": {},
    "olmoe": EXPERTS,
    "opt": {},
    "persimmon": {},
    "phi": {},
    "phi3": {},
    "phimoe": EXPERTS,
    "qwen2": {"tie_word_embeddings": True},
    "qwen2_moe": EXPERTS,
    "qwen3": HEADS,
    "qwen3_moe": EXPERTS,
    "seed_oss": HEADS,
    "smollm3": {},
    "stablelm": {},
    "starcoder2": {},
    "vaultgemma": HEADS,
    "xglm": {},
}


def tiny_model(family: str, **settings: Any) -> Any:
    """A random model of a family in float32; the same one every time."""
    config = CONFIG_MAPPING[family](**{**SIZE, **FAMILIES[family], **settings})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config).eval()
