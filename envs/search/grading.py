"""Comparing answers with right ones."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalize(text: str) -> str:
    """SQuAD's normalisation: lower case, without ASCII punctuation, articles and extra blanks, in this order."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def golds_of(golds: Sequence[str] | str) -> list[str]:
    """A list of right answers; a single text is one."""
    return [golds] if isinstance(golds, str) else list(golds)


def exact_match(answer: str, golds: Sequence[str] | str) -> bool:
    """Whether the answer equals one of the right answers after `normalize`."""
    return normalize(answer) in map(normalize, golds_of(golds))


def contains_match(answer: str, golds: Sequence[str] | str) -> bool:
    """Whether a right answer is part of the answer after `normalize`. An empty right answer is part of any."""
    said = normalize(answer)
    return any(normalize(gold) in said for gold in golds_of(golds))
