"""Text to terms, exactly as Lucene 8 does it in Anserini's DefaultEnglishAnalyzer.

    analyze("Women's X-Large shirts, 3.5 oz™") == ["women", "x", "larg", "shirt", "3.5", "oz", "™"]

StandardTokenizer → possessive 's off → lower case → stop words out → Porter stemmer. The tokenizer's grammar is that of
`StandardTokenizerImpl.jflex` with Unicode 9 and the emoji of Unicode 11. Its character classes are shipped
(`word_break.json`, derived from https://www.unicode.org/Public/9.0.0 and /emoji/11.0), because today's tables, such as
those of the package `regex`, differ for a hundred characters that existed then. The stemmer is Martin Porter's release
3, a mode of `nltk`'s stemmer; Snowball's differs ("trekking").
"""

from __future__ import annotations

import bisect
import json
import re
from array import array
from functools import cache, lru_cache
from itertools import accumulate
from pathlib import Path

from nltk.stem.porter import PorterStemmer

VERSION = 1  # of the results of `analyze`; in the names of cached data
_MAX_TOKEN = 255  # UTF-16 code units; longer tokens are cut
_LONGEST_KEPT = 100  # cache the terms of texts without white space up to this many characters
_STOP_WORDS = re.compile(
    "an?|and|are|as|at|be|but|by|for|if|in|into|is|it|no|not|of|on|or|such|that|the|their|then|there|these|they|this|"
    "to|was|will|with"
)
_POSSESSIVES = ("'s", "’s", "＇s", "'S", "’S", "＇S")


def analyze(text: str) -> list[str]:
    """The terms of a text in order, including repetitions."""
    terms: list[str] = []
    for chunk in text.split():  # no token reaches across white space
        terms += _terms(chunk) if len(chunk) <= _LONGEST_KEPT else _terms.__wrapped__(chunk)
    return terms


@lru_cache(maxsize=1 << 18)
def _terms(chunk: str) -> tuple[str, ...]:
    lowered = (_lower(token[:-2] if token.endswith(_POSSESSIVES) else token) for token in tokenize(chunk))
    return tuple(stem(token) for token in lowered if not _STOP_WORDS.fullmatch(token))


def _lower(token: str) -> str:
    """Lower case as in Java, code point by code point: Python treats final sigmas and İ differently."""
    return token.lower() if token.isascii() else token.replace("İ", "i").replace("Σ", "σ").lower()


# -- tokens -----------------------------------------------------------------------------------------------------------
# One letter for each class of characters in word_break.json, so the rules can be written with letters.
_SYMBOLS = {
    "letter": "L",
    "letter_han": "l",
    "letter_emoji": "m",
    "hebrew": "H",
    "ascii_digit": "0",
    "digit": "D",
    "katakana": "K",
    "join": "_",
    "mid": ".",  # between letters, and between digits
    "mid_letter": ":",
    "mid_digit": ",",
    "single_quote": "'",
    "double_quote": '"',
    "extend": "X",
    "joiner": "J",  # of emoji: U+200D
    "text_selector": "t",  # U+FE0E
    "emoji_selector": "e",  # U+FE0F
    "keycap": "C",
    "tag": "T",
    "tag_end": "Z",
    "asian": "S",  # South East Asian
    "asian_extend": "s",
    "flag": "F",
    "han": "I",
    "hiragana": "Y",
    "emoji": "E",
    "emoji_base": "B",
    "emoji_modifier": "M",
    "keycap_base": "#",
}


def _words() -> str:
    """Letters, digits and what may be between them (UAX #29, WB4 to WB13)."""
    x = "[XJteCTZs]*+"  # characters that extend the one before them
    letter, digit, hebrew, join = f"(?:[LlmH]{x})", f"(?:[0D]{x})", f"(?:H{x})", f"(?:_{x})"
    word = f"(?:{digit}(?:(?:[.,']{x})?{digit})*|{hebrew}(?:\"{x}{hebrew}|'{x})|{letter}(?:[.:']{x}{letter})*)+"
    part = f"(?:(?:K{x})+|{word})"
    return f"{join}*{part}(?:{join}+{part})*{join}*"


def _emoji() -> str:
    """Sequences of emoji (UTS #51). The joiner may occur among extending characters, presentation selectors may not."""
    x, plain, modified = "[XJCTZs]*", "J*[EBm]", "(?:J*B[XJCTZs]*)?M"
    joined = f"(?:{modified}{x}J(?=J*[EBmM])|{plain}(?:{x}eJ+|{x}J)(?=J*[EBmM]))*"
    return f"{plain}{x}eT+Z|{joined}(?:{modified}{x}|{plain}{x}e?)|[0#]{x}e?C{x}|F[XJteCTZs]*+F[XJteCTZs]*+"


# The rules that can match at a character, by its symbol; the longest match counts.
_WORD, _EMOJI = re.compile(_words()), re.compile(_emoji())
_RULES = {
    **dict.fromkeys("LlH0DK_", (_WORD,)),
    **dict.fromkeys("EBMJF#", (_EMOJI,)),
    "m": (_WORD, _EMOJI),
    **dict.fromkeys("Ss", (re.compile("(?:[Ss][XJteCTZs]*+)+"),)),
    **dict.fromkeys("IY", (re.compile("[IY][XJteCTZs]*"),)),
}
_RUN = re.compile(r"(.)\1*")


def tokenize(text: str) -> list[str]:
    """The tokens that StandardTokenizer finds: at each place the longest match of its rules."""
    symbols = text.translate(_symbol_table())
    units = [0]  # UTF-16 code units before each character, where they are needed
    if len(text) * 2 > _MAX_TOKEN and max(text) > "\uffff":
        units += accumulate(1 + (character > "\uffff") for character in text)
    tokens, at = [], 0
    while at < len(text):
        end = at + _MAX_TOKEN  # the end of the scanner's buffer
        if len(units) > 1:
            end = bisect.bisect_right(units, units[at] + _MAX_TOKEN) - 1
        stop = at
        for rule in _RULES.get(symbols[at], ()):
            if found := rule.match(symbols, at, end):
                stop = max(stop, found.end())
        if stop > at:
            tokens.append(text[at:stop])
            at = stop
        else:  # in a long run of one class, all rules fail that cannot see its end
            run = _RUN.match(symbols, at)
            at = max(at + 1, run.end() - _MAX_TOKEN if run else 0)
    return tokens


class _SymbolTable(dict[int, str]):
    """Code points to symbols, for `str.translate`; caches the code points that occurred."""

    def __init__(self) -> None:
        super().__init__()
        classes = json.loads(Path(__file__).with_name("word_break.json").read_bytes())
        self._ranges = sorted(
            (int(first, 16), int(last or first, 16), _SYMBOLS[name])
            for name, ranges in classes.items()
            for first, _, last in (codes.partition("-") for codes in ranges.split())
        )

    def __missing__(self, code: int) -> str:
        _, last, symbol = self._ranges[max(0, bisect.bisect_right(self._ranges, (code, 0x110000, "")) - 1)]
        self[code] = symbol if code <= last and code >= self._ranges[0][0] else " "
        return self[code]


@cache
def _symbol_table() -> _SymbolTable:
    return _SymbolTable()


# -- stems ------------------------------------------------------------------------------------------------------------
_STEMMER = PorterStemmer(PorterStemmer.MARTIN_EXTENSIONS)


def stem(word: str) -> str:
    """The stem of a lower-case word: Porter 1980, with the two departures (bli, logi) of the author's release 3."""
    if word.isascii():
        return str(_STEMMER.stem(word, to_lowercase=False))
    units = array("H", word.encode("utf-16-le", "surrogatepass"))  # Java counts UTF-16 units
    stemmed = str(_STEMMER.stem("".join(map(chr, units)), to_lowercase=False))
    return stemmed.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
