"""Stub of Lucene's English analysis."""

from __future__ import annotations

import regex

_STOP = frozenset(
    "a an and are as at be but by for if in into is it no not of on or such that the their then there these they this "
    "to was will with".split()
)
_TOKEN = regex.compile(r"\w+(?:[.,':]\w+)*")


def analyze(text: str) -> list[str]:
    """The terms of a text."""
    found = [t.lower() for t in _TOKEN.findall(text)]
    return [t.removesuffix("'s") for t in found if t not in _STOP]
