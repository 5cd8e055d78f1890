"""The small policy's tokenizer: lossless, a token for each name and each phrase between names; names share words."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from agents.policies import tiny
from agents.policies.tiny import SharedWords, build_model, build_tokenizer, vocabulary_size

TEXTS = [
    "You arrive at desk 1. On the desk 1, you see a mug 2, and a pen 1.\n\nYour task is to: put a mug in desk.",
    "You arrive at desk 2. On the desk 2, you see nothing.",
    "take mug 2 from desk 1",
] * 30
TOKENIZER = build_tokenizer(TEXTS, ["navy blue", "< prev", "x"])


def pieces(text: str) -> list[str]:
    return [TOKENIZER.decode([i]) for i in TOKENIZER.encode(text)]


def test_names_and_phrases_are_single_tokens() -> None:
    assert pieces("take mug 2 from desk 1") == ["take", " mug 2", " from", " desk 1"]
    assert pieces("You arrive at desk 1. On the desk 1, you see a pen 1") == [
        "You arrive at", " desk 1", ". On the", " desk 1", ", you see a", " pen 1",
    ]  # fmt: skip


def test_numbers_below_the_largest_seen_are_known() -> None:
    assert pieces("take mug 1 from desk 1")[1] == " mug 1"


def test_an_action_begins_with_one_token_of_its_verb_and_its_name() -> None:
    actions = ["take mug 2 from desk 1", "go to desk 1", "go north", "examine desk 1", "room 1"]
    tokenizer = build_tokenizer(TEXTS, actions=actions)

    def written(text: str) -> list[str]:
        return tokenizer.batch_decode([[i] for i in tokenizer.encode(text)])

    assert written("take mug 2 from desk 1") == ["take mug 2", " from", " desk 1"]
    assert written("take mug 1 from desk 3") == ["take mug 1", " from", " desk 3"]  # other numbers of what was seen
    assert written("go to desk 2") == ["go to desk 2"]
    assert written("go north") == ["go", " north"]
    assert written("room 1") == ["room 1"]
    assert written("You take mug 2. go to desk 1")[-2:] == [" to", " desk 1"]  # only where a text begins
    assert written("<act>go to desk 1<eos>take mug 2")[1::2] == ["go to desk 1", "take mug 2"]
    assert written("take pen 1 from desk 1") == ["take", " pen 1", " from", " desk 1"]  # a pen was never taken
    for text in actions:
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_task_is_read_by_its_words() -> None:
    assert " mug" in pieces("Your task is to: put a mug in desk.")


def test_what_actions_name_is_the_same_token_wherever_it_stands() -> None:
    tokenizer = build_tokenizer(["color: navy blue, and", "click[navy blue]"], ["navy blue", "crème"])
    name = tokenizer.convert_tokens_to_ids("navy blue")
    for text in ("color: navy blue, and", "click[navy blue]", "navy blue\nred"):
        assert tokenizer.encode(text).count(name) == 1
    assert name not in tokenizer.encode("navy blues")
    text = "click[crème] navy blue"
    assert tokenizer.decode(tokenizer.encode(text), clean_up_tokenization_spaces=False) == text


@given(st.text())
def test_decoding_restores_any_text(text: str) -> None:
    ids = TOKENIZER.encode(text)
    assert TOKENIZER.decode(ids, clean_up_tokenization_spaces=False) == text
    assert max(ids, default=0) < len(TOKENIZER)


def test_the_rarest_words_have_no_token_if_there_are_too_many(monkeypatch, caplog) -> None:
    monkeypatch.setattr(tiny, "MOST_WORDS", 50)
    texts = ["You are in room 1."] * 30 + [f"x{i:03d}y" for i in range(500)]
    tokenizer = build_tokenizer(texts)
    assert len(tokenizer) < 256 + 100
    assert "rarest of 50" in caplog.text
    for text in ("You are in room 1.", "x499y"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode("You are in room 1.")) < 6


def shared_words() -> tuple[SharedWords, torch.nn.Parameter, Tensor, Tensor]:
    """Words of a small vocabulary, their embedding and what it was before, and the ids of six tokens."""
    tokenizer = build_tokenizer(["You see a laptop 1, a laptop 2 and a mug 1.\nexamine the laptop with the mug\n"] * 30)
    weight = torch.nn.Parameter(torch.randn(vocabulary_size(tokenizer), 64, generator=torch.Generator().manual_seed(0)))
    before = weight.detach().clone()
    ids = [tokenizer.encode(text)[-1] for text in (" laptop 1", " laptop 2", " laptop", " mug 1", " mug", " the")]
    assert len(set(ids)) == 6
    return SharedWords(tokenizer, weight, seed=1), weight, before, torch.tensor(ids)


def test_tokens_with_a_common_word_start_with_similar_embeddings() -> None:
    _, weight, before, ids = shared_words()
    alike = torch.nn.functional.cosine_similarity(weight[ids][:, None], weight[ids][None], dim=-1).detach()
    laptop_1, laptop_2, laptop, mug_1, mug, the = range(6)
    assert alike[laptop_1, laptop_2] > 0.15
    assert alike[laptop_1, laptop] > 0.2
    assert alike[laptop_1, mug_1] > 0.15  # the number
    assert alike[laptop_2, mug].abs() < 0.15
    assert alike[laptop, the].abs() < 0.25
    assert float(weight.detach().std()) == pytest.approx(float(before.std()), rel=0.05)


def test_an_update_of_a_token_also_updates_tokens_with_a_common_word() -> None:
    words, weight, _, ids = shared_words()
    before = weight.detach().clone()
    optimizer = torch.optim.SGD([weight], lr=0.5)
    words.follow(optimizer)
    weight[ids[0]].sum().backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    moved = (weight.detach() - before)[ids]
    laptop_1, laptop_2, laptop, mug_1, mug, the = moved.unbind()
    # By its own part, that of "laptop" and that of "1": a third each.
    assert torch.allclose(laptop_1, torch.full((64,), -1.5))
    for shares in (laptop_2, laptop, mug_1):
        assert torch.allclose(shares, torch.full((64,), -0.5))
    assert not mug.any()
    assert not the.any()


def test_keys_begin_equal_to_queries() -> None:
    model = build_model(32, width=16, layers=2, heads=2, feed_forward=32, context=64, seed=0)
    for layer in model.model.layers:
        assert torch.equal(layer.self_attn.k_proj.weight, layer.self_attn.q_proj.weight)
        assert layer.self_attn.q_proj.weight.any()
