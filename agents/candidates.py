"""An agent that chooses among the admissible actions: each is scored as a whole, and nothing else can be said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from agents.agent import Decision, PolicyAgent, View, admissible_actions
from agents.episode import Choice, ParseStatus
from agents.policies.models import sample
from agents.samples import TURNS
from envs.core import Need, UnknownNameError

NORMALIZATIONS = ("word", "token", "sum")


def candidate_logprobs(logprob_sums: Tensor, lengths: Tensor, mask: Tensor) -> Tensor:
    """TWOSOME's policy over the K admissible actions of each of B states, [B, K], as log-probabilities.

        log softmax over the candidates of (sum of the action's token log-probabilities / its length)

    Candidates without `mask` have -inf. `lengths` [B, K] count words, with which TWOSOME (Tan et al., arXiv
    2401.14151) evens out long actions, or tokens; lengths of 1 give GLAM's policy (Carta et al., arXiv 2302.02662).
    """
    return (logprob_sums / lengths).masked_fill(~mask, -torch.inf).log_softmax(-1)


@dataclass(eq=False)
class CandidateAgent(PolicyAgent):
    """A `PolicyAgent` that samples one of `info["admissible"]` by `candidate_logprobs`, at the sampling's temperature.

    A candidate's ids are the completion that it would be, with the token that ends it: without, "go to desk 1" could
    not be less likely than "go to desk 10". An episode ends where its longest candidate no longer fits, or where all of
    them together, which are read side by side, have more ids than the context.
    """

    needs = frozenset({Need.ADMISSIBLE})
    normalization: str = "word"  # what divides an action's log-probability: its words, its "token"s, or ("sum") nothing

    def __post_init__(self) -> None:
        if self.normalization not in NORMALIZATIONS:
            raise UnknownNameError("normalization", self.normalization, NORMALIZATIONS)

    @property
    def layout(self) -> str:
        """Every choice is a sample of its own."""
        return TURNS

    def _decide(self, views: Sequence[View], prompts: Sequence[list[int]]) -> list[Decision]:
        """Raises `ValueError` where an environment does not say what is admissible."""
        context = self.policy.context_length
        actions = [admissible_actions(view) for view in views]
        actions = [these if len(these) <= context else [] for these in actions]  # each has an id or more
        ids = [[self.prompter.action_ids(self.policy.tokenizer, action) for action in these] for these in actions]
        decisions = [Decision("", None, prompt) for prompt in prompts]
        counts = [[len(one) for one in these] for these in ids]
        fits = [i for i, n in enumerate(counts) if n and sum(n) <= context and len(prompts[i]) + max(n) < context]
        if not fits:
            return decisions
        sums = self.policy.score_candidates([prompts[i] for i in fits], [ids[i] for i in fits])
        lengths = [[self._length(action, c) for action, c in zip(actions[i], ids[i], strict=True)] for i in fits]
        scores = candidate_logprobs(*_padded(sums, lengths)).to(self.generator.device)
        chosen, logprobs = sample(scores, self.sampling.temperature, self.generator)
        for i, row, k, logprob in zip(fits, lengths, chosen.tolist(), logprobs.tolist(), strict=True):
            order = [k, *(j for j in range(len(row)) if j != k)]
            choice = Choice([ids[i][j] for j in order], [row[j] for j in order])
            decisions[i] = Decision(actions[i][k], ParseStatus.OK, prompts[i], ids[i][k], [logprob], choice)
        return decisions

    def _length(self, action: str, ids: Sequence[int]) -> int:
        return {"word": max(len(action.split()), 1), "token": len(ids), "sum": 1}[self.normalization]


def _padded(sums: Sequence[Tensor], lengths: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor, Tensor]:
    """What `candidate_logprobs` takes: the log-probabilities of each state's candidates and their lengths."""
    pad = torch.nn.utils.rnn.pad_sequence
    counts = [torch.tensor(row) for row in lengths]
    divisors = pad(counts, batch_first=True)
    return pad(list(sums), batch_first=True), divisors.clamp(min=1), divisors > 0
