"""The project's own protocol: `search[words]` and `answer[text]`, or the same in tags.

Only the policy's own text is read, and only what follows its reasoning: nothing inside a passage is ever an action or
an answer. An answer is right if it equals one of the right answers after SQuAD's normalisation.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from envs.search.corpus import Passage
from envs.search.search_r1 import Action
from envs.tags import Pair, PairedTags

MAX_TURNS = 8
TOP_K = 3
MOST_CHARACTERS = 2000  # of a passage that are shown
NOTHING = "Nothing found."
MALFORMED = "Nothing was done: write search[words] or answer[text]."
_BRACKETS = re.compile(r"\s*(search|answer)\[(.*)\]\s*", re.DOTALL | re.IGNORECASE)
_TAGS = PairedTags("search", "answer", ignore_case=True)
_REASONING = "</think>"


def parse(text: str) -> Action:
    """The action of a text: all of it in brackets, or else the first pair of tags after the reasoning."""
    said = text.rpartition(_REASONING)[2]
    whole = _BRACKETS.fullmatch(said)
    found = Pair(whole[1], whole[2]) if whole else _TAGS.search(said)
    return Action(found.name.lower(), found.content.strip()) if found else Action(None, "")


def observation(passages: Sequence[Passage]) -> str:
    """The passages that a search found, one a line."""
    if not passages:
        return NOTHING
    return "\n".join(f"{passage.title}: {passage.text[:MOST_CHARACTERS]}" for passage in passages)
