"""Small policies for tests: a random transformer for the corridor, and a policy that acts at random."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from agents.agent import Decision, PolicyAgent, View
from agents.policies.base import Completion, End
from agents.policies.local import LocalPolicy
from agents.policies.tiny import build_model, build_tokenizer, vocabulary_size
from tests.agents.corridors import ACTIONS

TEXTS = [
    *(f"You are in room {i} of 4. Open the door 1." for i in range(1, 5)),
    *(f"You are in room {i}." for i in range(1, 5)),
    "Nothing happens.",
    "The door 1 is open.",
    *ACTIONS,
]


def random_policy(seed: int = 0, context: int = 512, layers: int = 2, width: int = 32) -> LocalPolicy:
    """A small untrained transformer with a tokenizer for the corridor."""
    tokenizer = build_tokenizer(TEXTS * 20)
    size = vocabulary_size(tokenizer)
    model = build_model(size, width=width, layers=layers, heads=2, feed_forward=2 * width, context=context, seed=seed)
    return LocalPolicy(model, tokenizer)


class Wanderer(PolicyAgent):
    """Plays any of the corridor's actions with equal probability, the same on all machines, and keeps its ids.

    Its policy lends the tokenizer alone. No first turn opens a door.
    """

    def _decide(self, views: Sequence[View], prompts: Sequence[list[int]]) -> list[Decision]:
        drawn = torch.randint(len(ACTIONS), (len(views),), generator=self.generator).tolist()
        ids = [self.prompter.action_ids(self.policy.tokenizer, ACTIONS[i]) for i in drawn]
        self.written = [*getattr(self, "written", ()), *ids]
        return [
            self._read(prompt, Completion(of, [-1.0] * len(of), End.TOKEN), view.info)
            for view, prompt, of in zip(views, prompts, ids, strict=True)
        ]
