"""Models of all families in `tests.families` play correctly, or are refused in one line before anything is played."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from agents.policies.local import LocalPolicy
from agents.policies.models import causal_states, context_length
from agents.policies.names import UNSUPPORTED, ModelError, find_parts
from agents.policies.pretrained import Pretrained
from algorithms.checkpoint import save_checkpoint
from tests.agents.toys import random_policy
from tests.families import REFUSED, tiny_model

WINDOWED = (
    "afmoe", "cohere2", "cwm", "exaone4", "gemma2", "gemma3_text", "gpt_neo", "gpt_oss", "ministral", "mistral",
    "olmo3", "qwen2", "vaultgemma",
)  # fmt: skip


def one_line(error: BaseException) -> str:
    text = str(error)
    assert "\n" not in text
    assert len(text) < 600
    return text


@pytest.mark.parametrize("family", REFUSED)
def test_a_model_without_a_usable_cache_is_refused_in_one_line(family: str) -> None:
    model = tiny_model(family)
    with pytest.raises(ValueError, match=type(model).__name__) as refused:
        LocalPolicy(model, random_policy().tokenizer, context=256).check()
    assert "; it cannot be sampled and trained here" in one_line(refused.value)


def test_a_folder_of_an_unsupported_model_is_refused_when_it_loads(tmp_path) -> None:
    assert set(REFUSED) == UNSUPPORTED
    save_checkpoint(tmp_path / "mamba", tiny_model("mamba"), random_policy().tokenizer)
    with pytest.raises(ModelError, match="is a model of type mamba; it cannot be sampled and trained here") as refused:
        find_parts(tmp_path / "mamba")
    one_line(refused.value)


def test_running_out_of_memory_is_not_reported_as_an_unsupported_model(monkeypatch) -> None:
    policy = random_policy()

    def full(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("too large")

    monkeypatch.setattr(policy.model, "forward", full)
    with pytest.raises(torch.OutOfMemoryError):
        policy.check()


# -- how much a model reads ------------------------------------------------------------------------------------------
def test_a_limit_is_required_if_the_model_has_none_and_lowers_that_of_others() -> None:
    tokenizer = random_policy().tokenizer
    with pytest.raises(
        ValueError, match=r"BloomForCausalLM does not say how many ids it can read; .* policy\.context="
    ):
        LocalPolicy(tiny_model("bloom"), tokenizer)
    assert LocalPolicy(tiny_model("bloom"), tokenizer, context=100).context_length == 100
    assert LocalPolicy(tiny_model("llama"), tokenizer, context=100).context_length == 100
    assert LocalPolicy(tiny_model("llama"), tokenizer, context=1000).context_length == 256


def test_a_limit_of_the_configuration_is_that_of_the_policy(tmp_path) -> None:
    save_checkpoint(tmp_path / "model", tiny_model("llama"), random_policy().tokenizer)
    assert Pretrained().load(tmp_path / "model").context_length == 256
    assert Pretrained(context=100).load(tmp_path / "model").context_length == 100
    with pytest.raises(ValueError, match=r"policy\.context must be at least 2, got 0"):
        Pretrained(context=0)


@pytest.mark.parametrize(
    ("family", "settings", "expected"),
    [
        ("mpt", {"max_seq_len": 128, "max_position_embeddings": None}, 128),
        ("ctrl", {"n_positions": 128, "max_position_embeddings": 128}, 128),
        ("gpt_neo", {}, 64),  # its local layers show so much
        ("gpt_neo", {"attention_types": [[["global"], 2]]}, 256),
        ("mistral", {"sliding_window": None}, 256),
        ("qwen3", {"use_sliding_window": True, "sliding_window": 40, "max_window_layers": 1}, 40),
        ("qwen3", {"use_sliding_window": False, "sliding_window": 40}, 256),
    ],
)
def test_the_context_length_is_found_under_each_of_its_names(
    family: str, settings: dict[str, Any], expected: int
) -> None:
    assert context_length(tiny_model(family, **settings).config) == expected


def read_in_parts(policy: LocalPolicy, ids: torch.Tensor, ends: list[int]) -> torch.Tensor:
    """The log-probabilities [V] after each of `ends`, with keys and values kept in between."""
    parts = zip([0, *ends], ends, strict=False)
    with torch.inference_mode():
        return torch.cat([policy._forward([0], [a], [ids[a:b].tolist()]) for a, b in parts]).log_softmax(-1)


@pytest.mark.parametrize("family", [*WINDOWED, "deepseek_v3", "falcon", "gpt2", "mpt", "opt"])
def test_reading_a_full_context_in_parts_equals_reading_it_at_once(family: str) -> None:
    """Also where a window is no multiple of what kernels like."""
    policy = LocalPolicy(tiny_model(family, sliding_window=40, window_size=40), random_policy().tokenizer)
    assert policy.context_length in (40, 256)
    ids = torch.arange(policy.context_length) * 7919 % 300
    ends = [len(ids) // 3, len(ids) - 8, len(ids) - 1, len(ids)]
    with torch.no_grad():
        whole = policy.model(input_ids=ids[None]).logits[0].float().log_softmax(-1)
    torch.testing.assert_close(read_in_parts(policy, ids, ends), whole[[end - 1 for end in ends]], atol=1e-5, rtol=0)


def test_rotary_frequencies_that_change_with_the_length_limit_the_context() -> None:
    """Phi-3's long context: beyond the first length all positions are rotated otherwise."""
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 4,
        "long_factor": [4.0] * 4,
        "original_max_position_embeddings": 64,
    }
    config = LlamaConfig(
        vocab_size=320, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=256, rope_parameters=rope,
    )  # fmt: skip
    torch.manual_seed(0)
    policy = LocalPolicy(AutoModelForCausalLM.from_config(config).eval(), random_policy().tokenizer)
    policy.check()
    assert policy.context_length == 64
    ids = torch.arange(64) * 7919 % 300
    with torch.no_grad():
        whole = policy.model(input_ids=ids[None]).logits[0].log_softmax(-1)
    torch.testing.assert_close(read_in_parts(policy, ids, [50, 64]), whole[[49, 63]], atol=1e-5, rtol=0)


def test_padding_behind_the_last_position_is_read_too() -> None:
    """Batches are padded to widths that kernels like, of which a model may have no positions."""
    model = tiny_model("gpt2", max_position_embeddings=70)
    ids = torch.arange(70) * 7919 % 300
    padded = torch.cat([ids, torch.zeros(58, dtype=torch.long)])
    with torch.no_grad():
        torch.testing.assert_close(causal_states(model, padded[None])[0, :70], causal_states(model, ids[None])[0])


# -- tokenizers of another model -------------------------------------------------------------------------------------
def tokenizer_of(size: int) -> Any:
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({str(i): i for i in range(size)}, "0")), eos_token="1"
    )


def test_a_tokenizer_with_more_ids_than_embeddings_is_refused() -> None:
    model = tiny_model("llama")
    LocalPolicy(model, tokenizer_of(320)).check()
    with pytest.raises(
        ValueError, match=r"has 321 ids, but LlamaForCausalLM has embeddings for 320: \['320'\]"
    ) as refused:
        LocalPolicy(model, tokenizer_of(321)).check()
    one_line(refused.value)


def test_a_special_token_without_an_embedding_is_refused_where_it_is_written() -> None:
    tokenizer = tokenizer_of(320)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    policy = LocalPolicy(tiny_model("llama"), tokenizer)
    policy.check()  # as in Gemma 3, which has no images
    tokenizer.chat_template = "<image>{{ messages[0].content }}"
    with pytest.raises(ValueError, match=r"\['<image>'\] cannot be read"):
        policy.check()
    tokenizer.chat_template = None
    tokenizer.eos_token = "<end>"
    tokenizer.add_special_tokens({"eos_token": "<end>"})
    with pytest.raises(ValueError, match=r"\['<end>'\] cannot be read"):
        policy.check()
