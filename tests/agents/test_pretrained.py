"""Models of many families load, sample correctly and are trained with adapters; errors name what cannot be loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agents.policies import lora
from agents.policies.base import End, Request, Sampling
from agents.policies.local import LocalPolicy
from agents.policies.lora import Lora, merged_weights
from agents.policies.models import token_logprobs
from agents.policies.names import ModelError
from agents.policies.pretrained import Pretrained
from agents.policies.weights import has_adapters
from algorithms.checkpoint import load_weights, save_checkpoint
from algorithms.learner import Learner
from envs.checksums import SUMS
from envs.core import UnknownNameError
from tests.agents.toys import random_policy
from tests.algorithms.test_learner import samples
from tests.algorithms.test_trainer import learner_config
from tests.families import FAMILIES, tiny_model


def family(name: str) -> Any:
    """A small random model of a family, with logits far from flat."""
    made = tiny_model(name)
    with torch.no_grad():
        made.get_output_embeddings().weight.mul_(20)
    return made


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_samples_from_its_own_distribution(name: str) -> None:
    """Over turns with kept keys and values, log-probabilities are those of the model's own forward pass."""
    policy, rng = LocalPolicy(family(name), random_policy().tokenizer), np.random.default_rng(0)
    policy.check()
    generator = torch.Generator().manual_seed(0)
    history: list[list[int]] = [rng.integers(2, 300, size).tolist() for size in (3, 20)]
    for _ in range(3):
        requests = [Request(session, ids) for session, ids in enumerate(history)]
        for ids, done in zip(history, policy.generate(requests, Sampling(1.0, 5), generator), strict=True):
            whole = torch.tensor([ids + done.ids])
            with torch.no_grad():
                expected = policy.model(whole).logits[0].float().log_softmax(-1)
            rows = torch.arange(len(ids) - 1, whole.shape[1] - 1)
            np.testing.assert_allclose(done.logprobs, expected[rows, whole[0, rows + 1]], atol=1e-5)
            ids += [*done.ids, *rng.integers(2, 300, 4).tolist()]
    np.testing.assert_allclose(policy.score([whole[0].tolist()])[0][rows], done.logprobs, atol=1e-5)


def test_the_context_is_no_longer_than_the_window() -> None:
    assert LocalPolicy(family("gemma3_text"), random_policy().tokenizer).context_length == 64
    assert LocalPolicy(family("llama"), random_policy().tokenizer).context_length == 256


def test_a_model_whose_cache_gives_other_logits_is_refused(monkeypatch) -> None:
    policy = random_policy()
    policy.check()
    forward = policy.model.model.forward
    monkeypatch.setattr(  # a model that counts positions by itself
        policy.model.model, "forward", lambda position_ids=None, **rest: forward(**rest)
    )
    with pytest.raises(ValueError, match=r"Qwen3ForCausalLM: its log-probabilities differ by"):
        policy.check()


def test_the_ids_of_the_generation_settings_end_a_completion_too() -> None:
    policy = random_policy()
    policy.model.generation_config.eos_token_id = [1, 7]
    assert LocalPolicy(policy.model, policy.tokenizer).stop_ids == [1, 7]


def test_a_stop_string_ends_a_completion_with_the_ids_that_wrote_it() -> None:
    policy, generator = random_policy(), torch.Generator().manual_seed(0)
    policy.stop_ids = []
    (free,) = policy.generate([Request(0, [5, 6])], Sampling(0.0, 30), generator)
    text = policy.tokenizer.decode(free.ids)
    stop = text[len(text) // 2 : len(text) // 2 + 3]
    (done,) = policy.generate([Request(1, [5, 6])], Sampling(0.0, 30, [stop]), generator)
    assert done.end is End.STRING
    assert done.ids == free.ids[: len(done.ids)]
    assert stop in policy.tokenizer.decode(done.ids)
    assert stop not in policy.tokenizer.decode(done.ids[:-1])
    assert done.text_ids == done.ids
    assert free.end is End.LENGTH
    with pytest.raises(ValueError, match="stop must be a list of non-empty texts"):
        Sampling(stop="</action>")


# -- adapters ---------------------------------------------------------------------------------------------------------
@pytest.fixture
def folder(tmp_path: Path) -> Path:
    policy = random_policy()
    save_checkpoint(tmp_path / "model", policy.model, policy.tokenizer)
    return tmp_path / "model"


def trained_adapters(folder: Path) -> LocalPolicy:
    """A policy whose adapters change the logits."""
    pytest.importorskip("peft")
    policy = Pretrained(lora=Lora(rank=4)).load(folder)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in policy.model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.3, generator=generator)
    return policy


IDS = list(range(3, 40))


def test_fresh_adapters_change_nothing_and_are_all_that_is_trained(folder: Path) -> None:
    pytest.importorskip("peft")
    plain, policy = Pretrained().load(folder), Pretrained(lora=Lora(rank=4)).load(folder)
    torch.testing.assert_close(policy.score([IDS]), plain.score([IDS]))
    trained = [name for name, p in policy.model.named_parameters() if p.requires_grad]
    assert len(trained) == 2 * 7 * 2  # A and B of seven projections in two layers
    assert all(".lora_" in name for name in trained)
    again = Pretrained(lora=Lora(rank=4)).load(folder)
    for a, b in zip(policy.model.parameters(), again.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_merged_weights_are_those_of_a_plain_model(folder: Path) -> None:
    policy, plain = trained_adapters(folder), Pretrained().load(folder)
    before = plain.score([IDS])[0]
    merged = dict(merged_weights(policy.model))
    assert set(merged) == {name for name, _ in plain.model.named_parameters()}
    plain.model.load_state_dict(merged, strict=False)
    assert (policy.score([IDS])[0] - before).abs().max() > 0.01
    torch.testing.assert_close(policy.score([IDS])[0], plain.score([IDS])[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("made", [lambda folder: Pretrained(lora=Lora(rank=4)).load(folder), trained_adapters])
def test_the_reference_of_kl_are_the_adapters_of_the_start(folder: Path, made: Callable[[Path], LocalPolicy]) -> None:
    """Fresh ones say what the model says; others come from a folder or a warm start. They alone are copied."""
    batch, table, advantages = samples()
    model = made(folder).model
    learner = Learner(model, learner_config(kl_coef=0.1, minibatches=1))
    rng = np.random.default_rng(0)
    kls = [learner.update(batch, table, advantages, rng, rate)["train/kl"] for rate in (0.0, 1e-2, 0.0)]
    assert kls[:2] == [0.0, 0.0]
    assert kls[2] > 1e-3
    for (name, own), copied in zip(model.named_parameters(), learner.reference.parameters(), strict=True):
        assert (own is copied) == (".lora_" not in name)
        assert not copied.requires_grad or own is not copied


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_adapters_beside_weights_of_any_dtype_learn_in_float32(
    folder: Path, dtype: str, precision: str, monkeypatch, caplog
) -> None:
    """Frozen weights stay as they are, except for float16, in which gradients would vanish or become infinite."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    model = Pretrained(dtype=dtype, lora=Lora(rank=4)).load(folder, trained=True).model
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    learner = Learner(model, learner_config(minibatches=1, precision=precision))
    metrics = learner.update(*samples(), np.random.default_rng(0), 1e-6)
    assert np.isfinite(list(metrics.values())).all()
    for name, parameter in model.named_parameters():
        adapter = ".lora_" in name
        assert parameter.dtype == (torch.bfloat16 if dtype == "bfloat16" and not adapter else torch.float32)
        assert torch.equal(parameter, before[name]) == (".lora_B" not in name)  # A has no gradient while B is zero
    assert ("frozen weights in float16 are converted to float32" in caplog.text) == (dtype == "float16")


def test_further_weights_of_an_adapter_folder_are_trained_saved_and_synced(folder: Path, tmp_path: Path) -> None:
    """Whole modules (`modules_to_save`), as others' folders have them; the model beside them is float32, too."""
    peft = pytest.importorskip("peft")
    policy = Pretrained(dtype="bfloat16").load(folder)
    config = peft.LoraConfig(r=4, target_modules="all-linear", modules_to_save=["lm_head"], task_type="CAUSAL_LM")
    policy.model.name_or_path = str(folder)
    policy.model.add_adapter(config, lora.ADAPTER)
    save_checkpoint(tmp_path / "adapters", policy.model, policy.tokenizer)

    loaded = Pretrained(dtype="bfloat16").load(tmp_path / "adapters", trained=True)
    trained = {name: p for name, p in loaded.model.named_parameters() if p.requires_grad}
    head = "lm_head.modules_to_save.default.weight"
    assert head in trained
    assert {p.dtype for p in trained.values()} == {torch.float32}
    before = trained[head].detach().clone()
    Learner(loaded.model, learner_config(minibatches=1)).update(*samples(), np.random.default_rng(0), 1e-6)
    assert not torch.equal(trained[head], before)

    save_checkpoint(tmp_path / "more", loaded.model, loaded.tokenizer)
    again = Pretrained(dtype="bfloat16").load(tmp_path / "more", trained=True)
    torch.testing.assert_close(again.score([IDS]), loaded.score([IDS]), rtol=0, atol=0)
    assert torch.equal(dict(merged_weights(again.model))["lm_head.weight"], trained[head])


def test_adapters_that_do_not_fit_are_named(folder: Path, tmp_path: Path) -> None:
    policy = trained_adapters(folder)
    save_checkpoint(tmp_path / "adapters", policy.model, policy.tokenizer)
    other = Pretrained(lora=Lora(rank=4, targets=["q_proj", "v_proj"])).load(folder)
    with pytest.raises(
        ValueError, match=r"adapters holds the weights of another model: extra \['model\.layers\.0\.mlp.* and 17 more"
    ):
        load_weights(tmp_path / "adapters", other.model)
    wider = Pretrained(lora=Lora(rank=8)).load(folder)
    with pytest.raises(ValueError, match=r"of another shape \['model\.layers\.0\.mlp"):
        load_weights(tmp_path / "adapters", wider.model)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"num_hidden_layers": 3}, r"missing \['model\.layers\.2\..* and 6 more"),
        ({"num_hidden_layers": 1}, r"extra \['model\.layers\.1\."),
        ({"intermediate_size": 40}, r"of another shape \['model\.layers\.0\.mlp\."),
    ],
)
def test_weights_that_do_not_fit_are_named_and_nothing_is_read(
    tmp_path: Path, other: dict[str, int], message: str
) -> None:
    save_checkpoint(tmp_path / "saved", tiny_model("llama"), random_policy().tokenizer)
    model = tiny_model("llama", **other)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=f"holds the weights of another model: {message}"):
        load_weights(tmp_path / "saved", model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


# -- what is trained --------------------------------------------------------------------------------------------------
def test_a_model_that_is_trained_is_float32_whatever_its_file_has(tmp_path: Path, caplog) -> None:
    policy = random_policy()
    save_checkpoint(tmp_path / "half", policy.model.to(torch.bfloat16), policy.tokenizer)
    assert Pretrained().load(tmp_path / "half").model.dtype == torch.bfloat16
    trained = Pretrained().load(tmp_path / "half", trained=True)
    assert {p.dtype for p in trained.model.parameters()} == {torch.float32}
    assert not caplog.records
    asked = Pretrained(dtype="float16").load(tmp_path / "half", trained=True)
    assert "policy.dtype=float16 is ignored" in caplog.text
    for a, b in zip(asked.model.parameters(), trained.model.parameters(), strict=True):  # not by way of float16
        assert torch.equal(a, b)


def test_a_checkpoint_holds_the_adapters_and_finds_the_model(folder: Path, tmp_path: Path) -> None:
    policy = trained_adapters(folder)
    save_checkpoint(tmp_path / "adapters", policy.model, policy.tokenizer)
    assert not (tmp_path / "adapters" / "model.safetensors").exists()
    loaded = Pretrained().load(tmp_path / "adapters")
    torch.testing.assert_close(loaded.score([IDS]), policy.score([IDS]), rtol=0, atol=0)
    assert has_adapters(loaded.model)
    fresh = Pretrained(lora=Lora(rank=4)).load(folder)
    load_weights(tmp_path / "adapters", fresh.model)
    torch.testing.assert_close(fresh.score([IDS]), policy.score([IDS]), rtol=0, atol=0)


def test_four_bits_of_frozen_weights_carry_adapters(folder: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="needs the extra quantized")
    policy = Pretrained(quantization="4bit", lora=Lora(rank=4)).load(folder)
    plain = Pretrained().load(folder)
    packed = policy.model.model.layers[0].mlp.up_proj.base_layer.weight
    assert (packed.dtype, packed.numel()) == (torch.uint8, plain.model.model.layers[0].mlp.up_proj.weight.numel() // 2)
    difference = (policy.score([IDS])[0] - plain.score([IDS])[0]).abs().max()
    assert 0 < difference < 0.1
    token_logprobs(policy.model, torch.tensor([IDS])).sum().backward()
    assert {p.grad is not None for n, p in policy.model.named_parameters() if "lora_B" in n} == {True}
    assert packed.grad is None


def test_four_bits_without_adapters_are_not_trained(folder: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="needs the extra quantized")
    policy = Pretrained(quantization="4bit").load(folder)
    with pytest.raises(ValueError, match="policy=lora, which trains adapters"):
        Learner(policy.model, learner_config())


def test_a_tokenizer_with_several_chat_templates_is_saved_and_loaded(tmp_path: Path) -> None:
    policy = random_policy()
    policy.tokenizer.chat_template = {"default": "{{ messages }}", "tool_use": "{{ tools }}"}
    for _ in range(2):  # and saved over
        save_checkpoint(tmp_path / "model", policy.model, policy.tokenizer)
    loaded = Pretrained().load(tmp_path / "model").tokenizer
    assert loaded.chat_template == policy.tokenizer.chat_template
    assert loaded.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False).startswith("[{")


# -- what cannot be loaded --------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere/at/all", "expected a folder with config.json"),
        ("package:no_such_package/model.gguf", "'no_such_package' is not installed"),
        ("nobody/no-such-model", "no such folder, and the hub cannot provide it"),
    ],
)
def test_missing_models_and_files_are_named(name: str, message: str, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=message):
        Pretrained().load(name)


def test_files_without_a_model_are_named(tmp_path: Path, folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ModelError, match=r"model\.safetensors is damaged"):
        Pretrained().load(folder)
    (folder / SUMS).unlink()  # as in a folder of another project
    with pytest.raises(ModelError, match="cannot be loaded"):
        Pretrained().load(folder)
    (tmp_path / "broken.gguf").write_bytes(b"GGUF nothing")
    with pytest.raises(ModelError, match=r"broken\.gguf"):
        Pretrained().load(tmp_path / "broken.gguf")
    with pytest.raises(ModelError, match=r"found .*broken\.gguf"):
        Pretrained().load(tmp_path)


def test_settings_that_do_not_exist_are_named_with_the_existing_ones() -> None:
    with pytest.raises(UnknownNameError, match="bfloat16"):
        Pretrained(dtype="bf16")
    with pytest.raises(UnknownNameError, match="4bit"):
        Pretrained(quantization="8bit")
    with pytest.raises(ValueError, match="rank"):
        Lora(rank=0)
