"""Adapter folders written by peft: loaded as peft loads them, or refused in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from agents.policies.lora import ADAPTER_WEIGHTS, PREFIX, Lora, merged_weights
from agents.policies.names import ADAPTER_CONFIG, ModelError
from agents.policies.pretrained import Pretrained
from algorithms.checkpoint import load_weights, save_checkpoint
from algorithms.learner import Learner
from envs.checksums import SUMS
from tests.agents.toys import random_policy
from tests.algorithms.test_learner import samples
from tests.algorithms.test_trainer import learner_config
from tests.families import tiny_model

peft = pytest.importorskip("peft")
IDS = torch.arange(3, 40)[None]
LORA = {
    "all layers": {"target_modules": "all-linear"},
    "a head": {"target_modules": "all-linear", "modules_to_save": ["lm_head"]},
    "both embeddings": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens"]},
    "norms": {"target_modules": ["q_proj"], "modules_to_save": ["norm"]},
    "tokens": {"target_modules": ["q_proj"], "trainable_token_indices": [5, 6]},
    "tokens of a head": {
        "target_modules": ["q_proj"],
        "trainable_token_indices": {"embed_tokens": [5], "lm_head": [6]},
    },
    "embeddings": {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
    "magnitudes": {"target_modules": ["q_proj"], "use_dora": True},
    "some layers": {"target_modules": ["q_proj"], "layers_to_transform": [1]},
    "other ranks": {"target_modules": ["q_proj", "v_proj"], "rank_pattern": {"q_proj": 2}, "use_rslora": True},
    "singular vectors": {"target_modules": ["q_proj"], "init_lora_weights": "pissa"},
}
TIED = ("a head", "tokens", "embeddings")


def saved(folder: Path, **settings: Any) -> Path:
    """A small model in `folder`, without checksums, as from another project."""
    save_checkpoint(folder, tiny_model("llama", **settings), random_policy().tokenizer)
    (folder / SUMS).unlink()
    return folder


def adapted(folder: Path, base: Path, config: Any) -> torch.Tensor:
    """Adapters of another project in `folder`, trained a little; returns the logits of the model with them."""
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.empty_like(parameter).normal_(0, 0.2, generator=generator))
    model.save_pretrained(folder)
    with torch.no_grad():
        logits: torch.Tensor = model.eval()(IDS).logits
    return logits


def lora(**settings: Any) -> Any:
    return peft.LoraConfig(task_type="CAUSAL_LM", r=4, **settings)


def logits_of(model: Any) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(IDS).logits
    return logits


CASES = [*((kind, False) for kind in LORA), *((kind, True) for kind in TIED)]


@pytest.mark.filterwarnings("ignore")  # peft warns of what is tried here
@pytest.mark.parametrize(("kind", "tied"), CASES)
def test_adapters_of_other_projects_load_train_and_are_saved(kind: str, tied: bool, tmp_path: Path) -> None:
    base = saved(tmp_path / "base", tie_word_embeddings=tied)
    expected = adapted(tmp_path / "adapters", base, lora(**LORA[kind]))
    policy = Pretrained().load(tmp_path / "adapters", trained=True)
    torch.testing.assert_close(logits_of(policy.model), expected)

    before = {name: p.detach().clone() for name, p in policy.model.named_parameters()}
    Learner(policy.model, learner_config(minibatches=1)).update(*samples(), np.random.default_rng(0), 1e-3)
    moved = {name for name, p in policy.model.named_parameters() if not torch.equal(p, before[name])}
    trained = {name for name, p in policy.model.named_parameters() if p.requires_grad}
    assert moved
    assert moved <= trained

    save_checkpoint(tmp_path / "more", policy.model, policy.tokenizer)
    again = Pretrained().load(tmp_path / "more", trained=True)
    torch.testing.assert_close(logits_of(again.model), logits_of(policy.model), rtol=0, atol=0)
    load_weights(tmp_path / "more", Pretrained().load(tmp_path / "adapters", trained=True).model)

    plain = AutoModelForCausalLM.from_pretrained(base, tie_word_embeddings=False)
    if tied:
        plain.lm_head.weight = torch.nn.Parameter(plain.model.embed_tokens.weight.detach().clone())
    merged = dict(merged_weights(policy.model))
    if "lm_head.weight" not in merged:
        merged["lm_head.weight"] = merged["model.embed_tokens.weight"]
    plain.load_state_dict(merged)
    torch.testing.assert_close(logits_of(plain), logits_of(policy.model), rtol=1e-4, atol=1e-4)


def test_tokens_alone_are_loaded(tmp_path: Path) -> None:
    base = saved(tmp_path / "base")
    config = peft.TrainableTokensConfig(task_type="CAUSAL_LM", token_indices=[3, 4], target_modules=["embed_tokens"])
    expected = adapted(tmp_path / "adapters", base, config)
    torch.testing.assert_close(logits_of(Pretrained().load(tmp_path / "adapters").model), expected)


def test_the_tokenizer_of_adapters_is_taken_where_they_bring_one(tmp_path: Path) -> None:
    adapted(tmp_path / "adapters", saved(tmp_path / "base"), lora(target_modules=["q_proj"]))
    assert "<call>" not in Pretrained().load(tmp_path / "adapters").tokenizer.get_vocab()
    tokenizer = random_policy().tokenizer
    tokenizer.add_tokens(["<call>"])
    tokenizer.save_pretrained(tmp_path / "adapters")
    assert "<call>" in Pretrained().load(tmp_path / "adapters").tokenizer.get_vocab()


# -- what is refused --------------------------------------------------------------------------------------------------
def refused(folder: Path, message: str) -> None:
    with pytest.raises(ModelError, match=message) as error:
        Pretrained().load(folder)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 900


def belong_to(folder: Path, base: Path) -> None:
    config = json.loads((folder / ADAPTER_CONFIG).read_text())
    (folder / ADAPTER_CONFIG).write_text(json.dumps({**config, "base_model_name_or_path": str(base)}))


@pytest.mark.parametrize(
    ("targets", "other", "message"),
    [
        ("all-linear", {"num_hidden_layers": 4}, r"cover the first 2 of the 4 layers in model\.layers"),
        (["q_proj"], {"num_hidden_layers": 4}, r"missing \['model\.layers\.2\.self_attn\.q_proj"),
        ("all-linear", {"num_hidden_layers": 1}, r"extra \['model\.layers\.1\."),
        ("all-linear", {"hidden_size": 64}, r"of another shape \['model\.layers\.0\."),
        ("all-linear", {"intermediate_size": 64}, r"of another shape \['model\.layers\.0\.mlp"),
    ],
)
def test_adapters_of_another_model_are_named(targets: Any, other: dict[str, int], message: str, tmp_path: Path) -> None:
    adapted(tmp_path / "adapters", saved(tmp_path / "base"), lora(target_modules=targets))
    belong_to(tmp_path / "adapters", saved(tmp_path / "other", **other))
    refused(tmp_path / "adapters", message)


def test_adapters_of_some_layers_by_choice_belong_to_any_depth(tmp_path: Path) -> None:
    for kind, chosen in {"number": {"layers_to_transform": [0]}, "pattern": {}}.items():
        targets = ["q_proj"] if chosen else r".*layers\.0\..*q_proj"
        adapted(tmp_path / kind, saved(tmp_path / f"{kind}-base"), lora(target_modules=targets, **chosen))
        belong_to(tmp_path / kind, saved(tmp_path / f"{kind}-other", num_hidden_layers=4))
        assert Pretrained().load(tmp_path / kind).model.config.num_hidden_layers == 4


@pytest.mark.parametrize("kind", ["IA3", "LoHa", "PrefixTuning"])
def test_adapters_of_another_kind_are_named(kind: str, tmp_path: Path) -> None:
    settings: dict[str, dict[str, Any]] = {
        "IA3": {"target_modules": ["k_proj"], "feedforward_modules": []},
        "LoHa": {"target_modules": ["q_proj"]},
        "PrefixTuning": {"num_virtual_tokens": 4},
    }
    config = getattr(peft, f"{kind}Config")(task_type="CAUSAL_LM", **settings[kind])
    base = saved(tmp_path / "base")
    peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(tmp_path / "adapters")
    refused(tmp_path / "adapters", "these adapters are of the kind .*; supported kinds: LORA")


def changed(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    weights = load_file(folder / ADAPTER_WEIGHTS)
    change(weights)
    save_file(weights, folder / ADAPTER_WEIGHTS)


FIRST = f"{PREFIX}model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop(FIRST), r"missing \['model\.layers\.0\.self_attn\.q_proj\.lora_A"),
        (lambda weights: weights.update({f"{PREFIX}model.layers.7.x.lora_A.weight": torch.ones(2)}), r"extra \['model"),
        (
            lambda weights: weights.update({f"{PREFIX}model.embed_tokens.weight": torch.ones(328, 32)}),
            r"holds full weights in addition to its adapters, \['model\.embed_tokens\.weight'\]: merge them",
        ),
    ],
)
def test_missing_and_extra_tensors_are_named(change: Callable[..., Any], message: str, tmp_path: Path) -> None:
    adapted(tmp_path / "adapters", saved(tmp_path / "base"), lora(target_modules=["q_proj"]))
    changed(tmp_path / "adapters", change)
    refused(tmp_path / "adapters", message)


def test_embeddings_in_an_adapter_may_equal_those_of_the_model(tmp_path: Path) -> None:
    base = saved(tmp_path / "base")
    expected = adapted(tmp_path / "adapters", base, lora(target_modules=["q_proj"]))
    embeddings = load_file(base / "model.safetensors")["model.embed_tokens.weight"]
    changed(tmp_path / "adapters", lambda weights: weights.update({f"{PREFIX}model.embed_tokens.weight": embeddings}))
    torch.testing.assert_close(logits_of(Pretrained().load(tmp_path / "adapters").model), expected)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"base_model_name_or_path": None}, "does not name the model of its adapters"),
        ({"peft_type": "SUPER"}, "cannot be loaded: .*SUPER"),
        ({"target_modules": ["W_pack"]}, "W_pack.* not found"),
    ],
)
def test_a_configuration_that_cannot_be_read_is_named(config: dict[str, Any], message: str, tmp_path: Path) -> None:
    adapted(tmp_path / "adapters", saved(tmp_path / "base"), lora(target_modules=["q_proj"]))
    path = tmp_path / "adapters" / ADAPTER_CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    refused(tmp_path / "adapters", message)


def test_adapters_without_weights_are_named(tmp_path: Path) -> None:
    adapted(tmp_path / "adapters", saved(tmp_path / "base"), lora(target_modules=["q_proj"]))
    (tmp_path / "adapters" / ADAPTER_WEIGHTS).unlink()
    refused(tmp_path / "adapters", "No such file")


def test_fresh_adapters_of_layers_that_are_not_there_are_named(tmp_path: Path) -> None:
    base = saved(tmp_path / "base")
    with pytest.raises(ValueError, match=r"policy\.lora\.targets=\['W_pack'\]: Target modules"):
        Pretrained(lora=Lora(rank=2, targets=["W_pack"])).load(base)


# -- whole models -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"num_hidden_layers": 4}, r"missing \['model\.layers\.2\."),
        ({"num_hidden_layers": 1}, r"extra \['model\.layers\.1\."),
        ({"intermediate_size": 64}, r"of another shape \['model\.layers\.0\.mlp"),
        ({"vocab_size": 400}, r"of another shape \['lm_head\.weight', 'model\.embed_tokens\.weight'\]"),
    ],
)
def test_a_folder_whose_weights_are_not_its_configurations_is_refused(
    config: dict[str, int], message: str, tmp_path: Path
) -> None:
    """transformers would draw what is missing at random, and leave out what it has no place for."""
    path = saved(tmp_path / "model") / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    refused(tmp_path / "model", message)


def test_extra_weights_of_another_task_are_logged(tmp_path: Path, caplog) -> None:
    path = saved(tmp_path / "model") / "model.safetensors"
    save_file({**load_file(path), "v_head.weight": torch.zeros(1, 32)}, path, metadata={"format": "pt"})
    Pretrained().load(tmp_path / "model")
    assert "holds 1 tensors that LlamaForCausalLM does not have; they are ignored: v_head.weight" in caplog.text
