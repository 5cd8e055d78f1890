"""What the chat template of a tokenizer writes, and which token ends what a model writes."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from functools import lru_cache
from typing import Any

from agents.quoting import control_ids, encode

MARK = "\u2063polyturn\u2063"  # an answer's place; invisible separators: nothing that anybody else would write
FILLER = "…"  # a message that is cut off again; some templates leave out empty ones
# The date that chat templates write, the default of Llama 3's: with today's, tomorrow's run would be another one.
DAY = date(2024, 7, 26)


class ChatTemplateError(ValueError):
    """The model's chat template is missing, fails, or does not keep to what conversations need of it."""


def render_chat(tokenizer: Any, messages: Sequence[dict[str, str]], **options: Any) -> str:
    """The chat template's text for `messages`. Raises `ChatTemplateError`."""
    if not tokenizer.chat_template:
        raise ChatTemplateError(
            f"{model_name(tokenizer)} has no chat template: it is no instruction-tuned model. "
            "agent=transcript plays with any model, agent=chat with those that have one"
        )
    try:
        text: str = tokenizer.apply_chat_template(
            messages, **{"tokenize": False, "strftime_now": DAY.strftime, **options}
        )
    except Exception as error:  # whatever a template raises, and they are programs
        raise ChatTemplateError(f"{model_name(tokenizer)}: the chat template fails: {error}") from error
    return text


def end_id(tokenizer: Any) -> int:
    """The token that ends a text. Raises `ValueError` where the tokenizer has none."""
    if tokenizer.eos_token_id is None:
        raise ValueError(f"{model_name(tokenizer)} has no end-of-sequence token: nothing would end an action")
    return int(tokenizer.eos_token_id)


def answer_end_id(tokenizer: Any) -> int:
    """The token that ends an answer: the control token that the chat template writes behind it, else `end_id`.

    In Gemma's template that is `<end_of_turn>`, while its texts end with `<eos>`.
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
    """What to call the model of a tokenizer in a message."""
    return str(getattr(tokenizer, "name_or_path", "") or "the model")
