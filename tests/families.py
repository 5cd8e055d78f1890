"""Tiny random models of many families of transformers, built from their configurations in a few hundredths of a second.

`LocalPolicy` samples from all of `FAMILIES` and refuses all of `REFUSED`. Each is named by its model type, with what
its configuration needs beside `SIZE`; what a family does not have is left in its configuration, and read by nobody.
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
LATENT = {  # attention over a compressed state, whose keys and values have other widths
    **EXPERTS,
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "num_hidden_layers": 2,
}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_d_ssm": 64, "mamba_expand": 2}
FAMILIES: dict[str, dict[str, Any]] = {
    "afmoe": EXPERTS,
    "apertus": {},
    "arcee": {},
    "bert-generation": {"is_decoder": True},
    "biogpt": {},
    "bitnet": {},
    "cohere": {"logit_scale": 0.25},
    "cohere2": {},
    "ctrl": {"dff": 48},
    "cwm": HEADS,
    "deepseek_v3": LATENT,
    "diffllama": {},
    "doge": {},
    "ernie4_5": HEADS,
    "ernie4_5_moe": EXPERTS,
    "exaone4": HEADS,
    "exaone_moe": EXPERTS,
    "falcon": {},
    "flex_olmo": EXPERTS,
    "gemma": HEADS,
    "gemma2": {**HEADS, "sliding_window": 64, "final_logit_softcapping": 5.0},
    "gemma3_text": {**HEADS, "sliding_window": 64},
    "glm": HEADS,
    "glm4": HEADS,
    "glm4_moe": EXPERTS,
    "gpt2": {},
    "gpt_bigcode": {},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 64},
    "gpt_neox": {},
    "gpt_oss": EXPERTS,
    "gptj": {"rotary_dim": 4},
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
    "mpt": {"max_seq_len": 256},
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
# By what kind of thing each of them does otherwise than `LocalPolicy` needs it.
REFUSED: dict[str, dict[str, Any]] = {
    # positions by a bias on the scores
    "bloom": {},
    # no attention, or other layers between it
    "bamba": MAMBA,
    "deepseek_v32": {**LATENT, "index_n_heads": 4, "index_head_dim": 16},
    "falcon_h1": MAMBA,
    "falcon_mamba": {},
    "granitemoehybrid": MAMBA,
    "jamba": {},
    "lfm2_moe": {**EXPERTS, "layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "mamba": {},
    "mamba2": {"num_heads": 8, "head_dim": 8, "state_size": 8},
    "minimax": EXPERTS,
    "olmo_hybrid": {},
    "qwen3_5_text": HEADS,
    "qwen3_next": EXPERTS,
    "recurrent_gemma": {},
    "rwkv": {},
    "xlstm": {},
    # windows under other names, or only in the attention itself
    "modernbert-decoder": {},
    # no keys and values that are kept, or other inputs
    "cpmant": {"dim_head": 8, "dim_ff": 48},
    "llama4_text": EXPERTS,
    "openai-gpt": {},
    "reformer": {"is_decoder": True, "axial_pos_embds": False, "attn_layers": ["local"] * 2, "attention_head_size": 8},
    "xlm": {},
    "xlnet": {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48},
    # encoders, and decoders that count positions by themselves
    "bart": {},
    "bert": {},
    "bigbird_pegasus": {},
    "blenderbot": {},
    "electra": {"embedding_size": 32},
    "marian": {},
    "mbart": {},
    "megatron-bert": {},
    "roberta": {"is_decoder": True},
    "roformer": {"is_decoder": True},
    "trocr": {},
    "xlm-roberta": {"is_decoder": True},
}
WITHOUT_LENGTH = {"bloom", "xlnet"}  # their configurations refuse one, or have none


def tiny_model(family: str, **settings: Any) -> Any:
    """A random model of a family in float32; the same one every time."""
    given = {**SIZE, **(FAMILIES | REFUSED)[family], **settings}
    if family in WITHOUT_LENGTH:
        del given["max_position_embeddings"]
    config = CONFIG_MAPPING[family](**given)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config).eval()
