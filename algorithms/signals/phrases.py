"""Find the tokens of planning phrases, such as "let me check" (HICRA's strategic grams)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from algorithms.signals.base import Measurement, RolloutBatch, SignalContext, UntrainedSignal

UNFINISHED = "\ufffd"  # stands for a character that later ids complete
BEFORE = 8  # ids that are decoded with an id, since a character may span several


class Phrases(UntrainedSignal):
    """Token signal `planning`: 1 for a token that holds a character of one of the phrases, else 0.

    Upper and lower case are the same. A phrase is found within a turn's answer.
    """

    gives = ()
    gives_tokens = ("planning",)

    def __init__(self, context: SignalContext, *, phrases: Sequence[str]) -> None:
        """Raises `ValueError` for an empty phrase, or none."""
        if not phrases or not all(phrase.strip() for phrase in phrases):
            raise ValueError(f"algo.signals.phrases.phrases needs one or more phrases, got {list(phrases)}")
        self.tokenizer, self.phrases = context.agent.policy.tokenizer, [phrase.lower() for phrase in phrases]

    def measure(self, rollouts: RolloutBatch) -> Measurement:
        """Raises `ValueError` for whole actions that were chosen."""
        if any(sample.choice for sample in rollouts.samples):
            raise ValueError(
                "the signal phrases is for policies that write ids; agent=candidates chooses whole actions"
            )
        turns = [turn for episode in rollouts.episodes for turn in episode.turns]
        parts = [planning_tokens(self.tokenizer, turn.completion_ids, self.phrases) for turn in turns]
        values = np.concatenate([np.zeros(0), *parts])
        share = float(values.mean()) if len(values) else 0.0
        return Measurement(token_signals={"planning": values}, metrics={"signal/planning": share})


def planning_tokens(tokenizer: Any, ids: Sequence[int], phrases: Sequence[str]) -> NDArray[np.float64]:
    """[T] 1 for the `ids` [T] that hold a character of one of the `phrases`, which are in lower case."""
    spans, done = [], 0  # [T] the characters of `text` that each id holds, some of them in part
    for place in range(len(ids)):
        window = ids[max(0, place - BEFORE) : place + 1]
        before, now = (tokenizer.decode(part) for part in (window[:-1], window))
        whole = now.rstrip(UNFINISHED)
        after = done + len(whole) - len(before.rstrip(UNFINISHED))
        spans.append((done, after + (whole != now)))
        done = after
    text = tokenizer.decode(ids).lower()
    inside = np.zeros(len(text) + 1, dtype=np.bool_)
    for phrase in phrases:
        at = text.find(phrase)
        while at >= 0:
            inside[at : at + len(phrase)] = True
            at = text.find(phrase, at + 1)
    return np.array([float(inside[start:end].any()) for start, end in spans])
