"""The project's own protocol: `search[words]` and `answer[text]`, or the same in tags.

Only the policy's own text is read, and only what follows its reasoning: nothing inside a passage is ever an action or
an answer. An answer is right if it equals one of the right answers after SQuAD's normalisation.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from envs.search.corpus import Passage
from envs.search.search_r1 import Action

MAX_TURNS = 8
TOP_K = 3
MOST_CHARACTERS = 2000  # of a passage that are shown
NOTHING = "Nothing found."
MALFORMED = "Nothing was done: write search[words] or answer[text]."
_BRACKETS = re.compile(r"\s*(search|answer)\[(.*)\]\s*", re.DOTALL | re.IGNORECASE)
_TAGS = re.compile(r"<(search|answer)>(.*?)</\1>", re.DOTALL | re.IGNORECASE)
_REASONING = "</think>"


def parse(text: str) -> Action:
    """The action of a text: all of it in brackets, or else the first pair of tags after the reasoning."""
    said = text.rpartition(_REASONING)[2]
    found = _BRACKETS.fullmatch(said) or _TAGS.search(said)
    return Action(found[1].lower(), found[2].strip()) if found else Action(None, "")


def observation(passages: Sequence[Passage]) -> str:
    """The passages that a search found, one a line."""
    if not passages:
        return NOTHING
    return "\n".join(f"{passage.title}: {passage.text[:MOST_CHARACTERS]}" for passage in passages)
