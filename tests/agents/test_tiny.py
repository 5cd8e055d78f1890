"""The small policy's tokenizer: lossless, a name is one token, and so is a phrase between names."""

from hypothesis import given
from hypothesis import strategies as st

from agents.policies import tiny
from agents.policies.tiny import build_tokenizer

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
def test_any_text_comes_back_as_it_was(text: str) -> None:
    ids = TOKENIZER.encode(text)
    assert TOKENIZER.decode(ids, clean_up_tokenization_spaces=False) == text
    assert max(ids, default=0) < len(TOKENIZER)


def test_of_many_words_the_rarest_have_no_token(monkeypatch, caplog) -> None:
    monkeypatch.setattr(tiny, "MOST_WORDS", 50)
    texts = ["You are in room 1."] * 30 + [f"x{i:03d}y" for i in range(500)]
    tokenizer = build_tokenizer(texts)
    assert len(tokenizer) < 256 + 100
    assert "rarest of 50" in caplog.text
    for text in ("You are in room 1.", "x499y"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode("You are in room 1.")) < 6
