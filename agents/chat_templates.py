"""Render a tokenizer's chat template, and find the token that ends an answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import date
from functools import lru_cache
from typing import Any

from agents.policies.names import NO_CHAT_TEMPLATE
from agents.quoting import control_ids, encode

MARK = "\u2063polyturn\u2063"  # marks the place of an answer, with invisible separators that nobody else would write
FILLER = "…"  # a message that is removed again; some templates skip empty messages
# The date that chat templates write (Llama 3's default). With today's date, tomorrow's run would differ.
DAY = date(2024, 7, 26)


class ChatTemplateError(ValueError):
    """The model's chat template is missing, fails, or cannot be used for conversations over several turns."""


def render_chat(tokenizer: Any, messages: Sequence[dict[str, str]], **options: Any) -> str:
    """The chat template's text for `messages`. Raises `ChatTemplateError`."""
    if not tokenizer.chat_template:
        raise ChatTemplateError(f"{model_name(tokenizer)} {NO_CHAT_TEMPLATE}")
    try:
        text: str = tokenizer.apply_chat_template(
            messages, **{"tokenize": False, "strftime_now": DAY.strftime, **options}
        )
    except Exception as error:  # templates are programs: they may raise anything
        raise ChatTemplateError(f"{model_name(tokenizer)}: the chat template fails: {error}") from error
    return text


def append_text(ids: Sequence[int], text: str, encode: Callable[[str], Sequence[int]]) -> list[int]:
    """A conversation's ids and the template's text after an answer.

    If the template's stop token ended the answer, it is present already, without blanks before it.
    """
    rest = encode(text.lstrip())
    return [*ids, *(rest[1:] if rest[:1] == (ids[-1],) else encode(text))]


def end_id(tokenizer: Any) -> int:
    """The token that ends a text. Raises `ValueError` if the tokenizer has none."""
    if tokenizer.eos_token_id is None:
        raise ValueError(f"{model_name(tokenizer)} has no end-of-sequence token, so no action could end")
    return int(tokenizer.eos_token_id)


def answer_end_id(tokenizer: Any) -> int:
    """The token that ends an answer: the control token that the chat template writes after it, otherwise `end_id`.

    In Gemma's template this is `<end_of_turn>`, while its texts end with `<eos>`.
    """
    found = _end_in_template(tokenizer, str(tokenizer.chat_template)) if tokenizer.chat_template else None
    return end_id(tokenizer) if found is None else found


@lru_cache(maxsize=8)
def _end_in_template(tokenizer: Any, template: str) -> int | None:  # noqa: ARG001 - it may be set later
    question, answer = {"role": "user", "content": FILLER}, {"role": "assistant", "content": MARK}
    try:
        _, _, after = render_chat(tokenizer, [question, answer, question]).partition(MARK)
    except ChatTemplateError:
        return None
    first = encode(tokenizer, after.lstrip())[:1]
    return first[0] if first and first[0] in control_ids(tokenizer) - {tokenizer.bos_token_id} else None


def model_name(tokenizer: Any) -> str:
    """The model's name for messages."""
    return str(getattr(tokenizer, "name_or_path", "") or "the model")
