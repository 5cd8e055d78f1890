"""Encode text that contains foreign text, such as observations, without letting it become a control token.

Foreign text is *quoted*: a private character is put before each of its non-blank characters. Templates then find
nothing in it to act on, but still strip blanks as usual. When a prompt is encoded, the private characters are removed,
and no control token may cover quoted text. If one would, the prompt is encoded by a second tokenizer whose control
tokens are spelled with other private characters, which quoted text cannot contain. All other prompts get exactly the
ids of the tokenizer itself.
"""

from __future__ import annotations

import json
import logging
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

from tokenizers import Tokenizer

logger = logging.getLogger(__name__)

_QUOTE = "\U0010fffd"  # in the last private-use plane, like the characters after it that stand for control tokens
_FIRST_ALIAS = 0x100000
_WORD = re.compile(r"\S+")
_QUOTED = re.compile(f"{_QUOTE}.", re.DOTALL)


def quote(text: str) -> str:
    """Quote `text`. `plain` is the inverse."""
    return _WORD.sub(lambda word: _QUOTE + _QUOTE.join(word[0]), text)


def plain(text: str) -> str:
    """The readable form of a text that may be quoted in parts."""
    return _QUOTE.join(part.replace(_QUOTE, "") for part in text.split(_QUOTE + _QUOTE))


def encode(tokenizer: Any, text: str, *, around: bool = False) -> tuple[int, ...]:
    """The ids of a text that may be quoted in parts; `around` adds the ids around a whole document."""
    return _encode(tokenizer, text, around)[0]


def encode_quoted(tokenizer: Any, text: str) -> tuple[int, ...]:
    """The ids of a text that is quoted as a whole."""
    return encode(tokenizer, quote(text))


def encode_with_offsets(tokenizer: Any, text: str) -> tuple[tuple[int, ...], Sequence[tuple[int, int]]]:
    """The ids, and the character range of each in the plain text. For fast tokenizers."""
    ids, encoding = _encode(tokenizer, text, around=False)
    return ids, encoding.offsets


def _encode(tokenizer: Any, text: str, around: bool) -> tuple[tuple[int, ...], Any]:
    """The ids, and the fast tokenizer's encoding."""
    if not tokenizer.is_fast:
        return tuple(tokenizer.encode(_broken(tokenizer, text), add_special_tokens=around)), None
    encoded = tokenizer(plain(text), add_special_tokens=around)
    ids, encoding = encoded["input_ids"], encoded.encodings[0]
    if _QUOTE in text and _is_forged(_marks(tokenizer), text, encoding):
        _warn_once(_name(tokenizer))
        encoding = _respelled(tokenizer, len(tokenizer)).encode(
            _marks(tokenizer).respell(text), add_special_tokens=around
        )
        ids = encoding.ids
    return tuple(ids), encoding


def _is_forged(marks: _Marks, text: str, encoding: Any) -> bool:
    """Whether a control token covers a quoted character."""
    if marks.ids.isdisjoint(encoding.ids):
        return False
    shown, hidden = plain(text), _QUOTED.sub(_QUOTE, text)
    return any(
        _QUOTE in hidden[start:end] and (token != marks.unknown[0] or marks.unknown[1] in _folded(shown[start:end]))
        for token, (start, end) in zip(encoding.ids, encoding.offsets, strict=True)
        if token in marks.ids
    )


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", text)


@cache
def _warn_once(name: str) -> None:
    logger.warning(
        "an observation contains the text of a control token of %s: it is encoded as plain text (logged once)", name
    )


@dataclass(frozen=True)
class _Marks:
    """The tokens that only a prompter may write: all added tokens except blanks and words."""

    ids: frozenset[int]
    aliases: dict[str, str]  # each alias has as many private characters as the mark has characters
    unknown: tuple[int | None, str]  # the unknown token, which is a mark only where its own text occurs
    pattern: re.Pattern[str]  # a quoted character, or else a mark

    def respell(self, text: str) -> str:
        """The plain text, with an alias for each mark that is not quoted, not even in part."""
        private = {alias[0] for alias in self.aliases.values()}

        def spell(found: re.Match[str]) -> str:
            if not found[0].startswith(_QUOTE):
                return self.aliases[found[0]]
            return "\ufffd" if found[0][1] in private else found[0][1]

        return self.pattern.sub(spell, text)


def has_marks(tokenizer: Any, text: str) -> bool:
    """Whether a text that is not quoted has a control token in it."""
    return _marks(tokenizer).pattern.search(text) is not None


def control_ids(tokenizer: Any) -> frozenset[int]:
    """The ids that only a prompter may write."""
    return _marks(tokenizer).ids


def _marks(tokenizer: Any) -> _Marks:
    return _find_marks(tokenizer, len(tokenizer))


@lru_cache(maxsize=8)
def _find_marks(tokenizer: Any, size: int) -> _Marks:  # noqa: ARG001 - tokens may be added later
    added = tokenizer.added_tokens_decoder
    found = {token.content: number for number, token in added.items() if _is_mark(token)}
    named = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
    found |= {text: number for text, number in named.items() if number is not None}
    aliases = {text: chr(_FIRST_ALIAS + k) * len(text) for k, text in enumerate(found)}
    longest_first = sorted(map(re.escape, found), key=lambda text: (-len(text), text))
    pattern = re.compile("|".join([f"{_QUOTE}.", *longest_first]), re.DOTALL)
    return _Marks(frozenset(found.values()), aliases, (tokenizer.unk_token_id, tokenizer.unk_token or ""), pattern)


def _is_mark(token: Any) -> bool:
    """Whether an added token means more than its text.

    Runs of blanks do not, nor do words: letters and digits, or tokens that match whole words only (`single_word`).
    """
    text = token.content.replace("▁", " ")
    return token.special or not (token.single_word or all(c.isalnum() or c.isspace() for c in text))


@lru_cache(maxsize=2)
def _respelled(tokenizer: Any, size: int) -> Tokenizer:  # noqa: ARG001 - tokens may be added later
    """The same tokenizer and ids, with its marks spelled as their aliases. Raises `ValueError`."""
    aliases = _marks(tokenizer).aliases
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    for token in parts["added_tokens"]:
        if token["content"] in aliases:
            token |= {"content": aliases[token["content"]], "normalized": False, "single_word": False}
    model = parts["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {aliases.get(text, text): number for text, number in model["vocab"].items()}
    else:
        model["vocab"] = [[aliases.get(text, text), score] for text, score in model["vocab"]]
    if "merges" in model:
        model["merges"] = [pair for pair in model["merges"] if aliases.keys().isdisjoint([*pair, "".join(pair)])]
    if model.get("unk_token") is not None:
        model["unk_token"] = aliases.get(model["unk_token"], model["unk_token"])
    made = Tokenizer.from_str(json.dumps(parts))
    made.no_truncation()
    made.no_padding()
    moved = [text for text in aliases if made.token_to_id(aliases[text]) != tokenizer.convert_tokens_to_ids(text)]
    if moved:
        raise ValueError(f"{_name(tokenizer)}: after its control tokens were renamed, other ids changed: {moved[:5]}")
    return made


def _broken(tokenizer: Any, text: str) -> str:
    """For tokenizers without offsets: the plain text with U+FFFD in each mark that is quoted, in part or whole."""
    marks = _marks(tokenizer).aliases
    shown, hidden = plain(text), _QUOTED.sub(_QUOTE, text)
    for mark in marks:
        start = shown.find(mark)
        while start >= 0:
            place = hidden.find(_QUOTE, start, start + len(mark))
            if place >= 0:
                shown = f"{shown[:place]}\ufffd{shown[place + 1 :]}"
                _warn_once(_name(tokenizer))
            start = shown.find(mark, start + 1)
    return shown


def _name(tokenizer: Any) -> str:
    return tokenizer.name_or_path or type(tokenizer).__name__
