"""Text to terms, exactly as Lucene 8 does it in Anserini's DefaultEnglishAnalyzer.

    analyze("Women's X-Large shirts, 3.5 oz™") == ["women", "x", "larg", "shirt", "3.5", "oz", "™"]

StandardTokenizer → possessive 's off → lower case → stop words out → Porter stemmer. The tokenizer's grammar is that of
`StandardTokenizerImpl.jflex` over Unicode 9 and the emoji of Unicode 11, and that is why its character classes are
shipped (`word_break.json`, derived from https://www.unicode.org/Public/9.0.0 and /emoji/11.0): today's tables, those
of the package `regex` say, differ for a hundred characters that existed then. The stemmer is Martin Porter's release 3,
with which `nltk` agrees (half a second and 45 MB to import, at every start) and Snowball's does not ("trekking").
"""

from __future__ import annotations

import json
import re
from functools import cache, lru_cache
from pathlib import Path

VERSION = 1  # of what `analyze` gives, in the names of what is cached of it
_MAX_TOKEN = 255  # UTF-16 code units; what is longer is cut
_STOP_WORDS = re.compile(
    "an?|and|are|as|at|be|but|by|for|if|in|into|is|it|no|not|of|on|or|such|that|the|their|then|there|these|they|this|"
    "to|was|will|with"
)
_POSSESSIVES = ("'s", "’s", "＇s", "'S", "’S", "＇S")


def analyze(text: str) -> list[str]:
    """The terms of a text in their order, repetitions kept."""
    return [term for chunk in text.split() for term in _terms(chunk)]  # no token reaches across white space


@lru_cache(maxsize=1 << 16)
def _terms(chunk: str) -> tuple[str, ...]:
    lowered = (_lower(token[:-2] if token.endswith(_POSSESSIVES) else token) for token in tokenize(chunk))
    return tuple(stem(token) for token in lowered if not _STOP_WORDS.fullmatch(token))


def _lower(token: str) -> str:
    """Lower case as Java's, code point by code point: Python's knows final sigmas and gives İ a second character."""
    return token.lower() if token.isascii() else token.replace("İ", "i").replace("Σ", "σ").lower()


# -- tokens -----------------------------------------------------------------------------------------------------------
def tokenize(text: str) -> list[str]:
    """What StandardTokenizer finds in a text: at each place the longest match of any of its rules."""
    if text.isascii() and len(text) <= _MAX_TOKEN:
        return _ascii_words().findall(text)
    rules = _rules()
    tokens, at = [], 0
    while at < len(text):
        end = _window(text, at)
        stop = max((found.end() for rule in rules if (found := rule.match(text, at, end))), default=0)
        if stop:
            tokens.append(text[at:stop])
        at = stop or at + 1
    return tokens


def _window(text: str, start: int) -> int:
    """Where the scanner's buffer ends that begins at `start`."""
    window = text[start : start + _MAX_TOKEN]
    while _utf16_length(window) > _MAX_TOKEN:
        window = window[:-1]
    return start + len(window)


def _utf16_length(text: str) -> int:
    return len(text) + sum(letter > "\uffff" for letter in text)


@cache
def _ascii_words() -> re.Pattern[str]:
    return re.compile(_words(_classes(ascii_only=True)))


@cache
def _rules() -> tuple[re.Pattern[str], ...]:
    """Emoji; words and numbers; South East Asian runs; single Han and Hiragana characters."""
    sets = _classes(ascii_only=False)
    x = sets["extend"] + "*+"
    rules = (
        _emoji(sets),
        _words(sets),
        f"(?:{sets['south_east_asian']}{x})+",
        f"{sets['han']}{x}",
        f"{sets['hiragana']}{x}",
    )
    return tuple(re.compile(rule) for rule in rules)


def _classes(ascii_only: bool) -> dict[str, str]:
    """Regular expressions for one character of each class of `word_break.json`."""
    classes = {}
    for name, ranges in json.loads(Path(__file__).with_name("word_break.json").read_bytes()).items():
        bounds = [codes.split("-") for codes in ranges.split()]
        if ascii_only:
            bounds = [codes for codes in bounds if int(codes[0], 16) < 128]
        inside = "".join("-".join(f"\\U{code:0>8}" for code in codes) for codes in bounds)
        classes[name] = f"[{inside}]" if inside else r"[^\s\S]"
    return classes


def _words(sets: dict[str, str]) -> str:
    """Letters, digits and what may stand between them (UAX #29, WB4 to WB13)."""
    x = sets["extend"] + "*+"
    hebrew, letter, digit, join = (f"(?:{sets[name]}{x})" for name in ("hebrew", "letter", "digit", "join"))
    letter = f"(?:{letter}|{hebrew})"
    word = (
        f"(?:{digit}(?:(?:{sets['mid_digit']}{x})?{digit})*"
        f"|{hebrew}(?:\"{x}{hebrew}|'{x})"
        f"|{letter}(?:{sets['mid_letter']}{x}{letter})*)+"
    )
    part = f"(?:(?:{sets['katakana']}{x})+|{word})"
    return f"{join}*{part}(?:{join}+{part})*{join}*"


def _emoji(sets: dict[str, str]) -> str:
    """Sequences of emoji (UTS #51): the joiner may stand within what extends one, presentation selectors may not."""
    x, base, plain = f"(?:(?![\\uFE0E\\uFE0F]){sets['extend']})*", sets["emoji_base"], rf"\u200D*{sets['emoji']}"
    modified = rf"(?:\u200D*{base}{x})?{sets['emoji_modifier']}"
    another = rf"(?=\u200D*(?:{sets['emoji']}|{sets['emoji_modifier']}))"
    joined = rf"(?:{modified}{x}\u200D{another}|{plain}(?:{x}\uFE0F\u200D+|{x}\u200D){another})*"
    return (
        rf"{plain}{x}\uFE0F[\U000E0020-\U000E007E]+\U000E007F"
        rf"|{joined}(?:{modified}{x}|{plain}{x}\uFE0F?)"
        rf"|[0-9#*]{x}\uFE0F?\u20E3{x}"
        rf"|(?:{sets['flag']}{sets['extend']}*+){{2}}"
    )


# -- stems ------------------------------------------------------------------------------------------------------------
def _pairs(text: str) -> list[tuple[str, str]]:
    return [(old, new) for old, _, new in (pair.partition("-") for pair in text.split())]


_STEP_2 = _pairs(
    "ational-ate tional-tion enci-ence anci-ance izer-ize bli-ble alli-al entli-ent eli-e ousli-ous ization-ize "
    "ation-ate ator-ate alism-al iveness-ive fulness-ful ousness-ous aliti-al iviti-ive biliti-ble logi-log"
)
_STEP_3 = _pairs("icate-ic ative- alize-al iciti-ic ical-ic ful- ness-")
_STEP_4 = re.compile("(?:al|ance|ence|er|ic|able|ible|ant|ement|ment|ent|(?<=[st])ion|ou|ism|ate|iti|ous|ive|ize)$")


def stem(word: str) -> str:
    """The stem of a lower-case word: Porter 1980, with the two departures (bli, logi) of the author's release 3."""
    if _utf16_length(word) < 3:
        return word
    word = _step_1(word)
    word = _replace(word, _STEP_2)
    word = _replace(word, _STEP_3)
    if (found := _STEP_4.search(word)) and _measure(word[: found.start()]) > 1:
        word = word[: found.start()]
    if word.endswith("e"):
        measure = _measure(word)
        if measure > 1 or (measure == 1 and not _is_short(word[:-1])):
            word = word[:-1]
    return word[:-1] if word.endswith("ll") and _measure(word) > 1 else word


def _step_1(word: str) -> str:
    """Plurals, -ed, -ing and final y."""
    if word.endswith(("sses", "ies")):
        word = word[:-2]
    elif word.endswith("s") and not word.endswith("ss"):
        word = word[:-1]
    if word.endswith("eed"):
        if _measure(word[:-3]) > 0:
            word = word[:-1]
    elif word.endswith(("ed", "ing")):
        rest = word[: -2 if word.endswith("ed") else -3]
        if "v" in _shape(rest):
            word = _mend(rest)
    return word[:-1] + "i" if word.endswith("y") and "v" in _shape(word[:-1]) else word


def _mend(word: str) -> str:
    """What -ed or -ing was taken from, as it stands alone: hopp → hop, hop → hope."""
    if word.endswith(("at", "bl", "iz")):
        return word + "e"
    if word[-1:] == word[-2:-1] and _shape(word).endswith("c"):
        return word if word[-1] in "lsz" else word[:-1]
    return word + "e" if _measure(word) == 1 and _is_short(word) else word


def _replace(word: str, endings: list[tuple[str, str]]) -> str:
    """The first ending that is there replaced, if a syllable stays before it."""
    for old, new in endings:
        if word.endswith(old):
            stays = word.removesuffix(old)
            return stays + new if _measure(stays) > 0 else word
    return word


def _shape(word: str) -> str:
    """v for a vowel, c for a consonant; y is a vowel after a consonant."""
    shape = ""
    for letter in word:
        shape += "v" if letter in "aeiou" or (letter == "y" and shape.endswith("c")) else "c"
    return shape


def _measure(word: str) -> int:
    return _shape(word).count("vc")


def _is_short(word: str) -> bool:
    """Whether it ends in consonant, vowel, consonant, the last not w, x or y."""
    return _shape(word).endswith("cvc") and word[-1] not in "wxy"
