"""An agent that scores every admissible action as a whole and samples one of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING

from agents.agent import Decision, PolicyAgent, View
from agents.episode import Choice, ParseStatus
from agents.samples import TURNS
from envs.core import Need, UnknownNameError

if TYPE_CHECKING:  # what an agent needs is asked before torch is imported, which takes seconds
    from torch import Tensor

NORMALIZATIONS = ("word", "token", "sum")


def candidate_logprobs(logprob_sums: Tensor, lengths: Tensor, mask: Tensor) -> Tensor:
    """TWOSOME's policy over the K admissible actions of each of B states, [B, K], as log-probabilities.

        log softmax over the candidates of (sum of the action's token log-probabilities / its length)

    Candidates outside `mask` get -inf. `lengths` [B, K] count words or tokens. TWOSOME (Tan et al., arXiv 2401.14151)
    divides by words, so that long actions are not at a disadvantage; lengths of 1 give GLAM (Carta et al., arXiv
    2302.02662).
    """
    return (logprob_sums / lengths).masked_fill(~mask, -inf).log_softmax(-1)


@dataclass(eq=False)
class CandidateAgent(PolicyAgent):
    """A `PolicyAgent` that samples one of `info["admissible"]` by `candidate_logprobs`, at the sampling temperature.

    With truncated sampling, an action that is left out is no candidate: the turn's choice has those that were kept.
    A candidate's ids include the token that ends the completion. Without it, "go to desk 1" would always be at least as
    likely as "go to desk 10". The candidates of a state are read side by side: an episode ends if its longest candidate
    does not fit, or if all candidates together have more ids than the context.
    """

    needs = frozenset({Need.ADMISSIBLE})
    normalization: str = "word"  # divide an action's log-probability by its words, its "token"s, or nothing ("sum")

    def __post_init__(self) -> None:
        if self.normalization not in NORMALIZATIONS:
            raise UnknownNameError("normalization", self.normalization, NORMALIZATIONS)

    @property
    def layout(self) -> str:
        """Every choice is a separate sample."""
        return TURNS

    def _decide(self, views: Sequence[View], prompts: Sequence[list[int]]) -> list[Decision]:
        from agents.policies.models import masked_logits, sample, truncated

        context = self.policy.context_length
        admissible: list[list[str]] = [view.info["admissible"] for view in views]
        actions = [row if len(row) <= context else [] for row in admissible]  # each has at least one id
        ids = [[self.prompter.action_ids(self.policy.tokenizer, action) for action in row] for row in actions]
        decisions = [Decision("", None, prompt) for prompt in prompts]
        counts = [[len(one) for one in row] for row in ids]
        fits = [i for i, n in enumerate(counts) if n and sum(n) <= context and len(prompts[i]) + max(n) < context]
        if not fits:
            return decisions
        sums = self.policy.score_candidates([prompts[i] for i in fits], [ids[i] for i in fits])
        lengths = [[self._length(action, c) for action, c in zip(actions[i], ids[i], strict=True)] for i in fits]
        scores = candidate_logprobs(*_padded(sums, lengths)).to(self.generator.device)
        there = [list(range(len(row))) for row in lengths]
        if self.sampling.truncation:
            kept = truncated(scores, self.sampling)
            scores = masked_logits(scores, kept)
            there = [sorted(node.ids.tolist()) for node in kept]
        chosen, logprobs = sample(scores, self.sampling.temperature, self.generator)
        for i, row, those, k, logprob in zip(fits, lengths, there, chosen.tolist(), logprobs.tolist(), strict=True):
            order = [k, *(j for j in those if j != k)]
            choice = Choice([ids[i][j] for j in order], [row[j] for j in order])
            decisions[i] = Decision(actions[i][k], ParseStatus.OK, prompts[i], ids[i][k], [logprob], choice)
        return decisions

    def _length(self, action: str, ids: Sequence[int]) -> int:
        return {"word": max(len(action.split()), 1), "token": len(ids), "sum": 1}[self.normalization]


def _padded(sums: Sequence[Tensor], lengths: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor, Tensor]:
    """The arguments of `candidate_logprobs`: log-probabilities and lengths of each state's candidates, padded."""
    import torch

    pad = torch.nn.utils.rnn.pad_sequence
    counts = [torch.tensor(row) for row in lengths]
    divisors = pad(counts, batch_first=True)
    return pad(list(sums), batch_first=True), divisors.clamp(min=1), divisors > 0
