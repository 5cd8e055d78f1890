"""Who acts: the agent contract, and the agent that is a policy with a way of prompting it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from agents.episode import Episode, ParseStatus
from agents.policies.base import Completion, Policy, Request, Sampling
from envs.core import Info

if TYPE_CHECKING:  # agents without a policy start without torch, which takes seconds to import
    import torch

    from agents.prompts import Prompter


@dataclass
class View:
    """What an agent may look at when it is its turn: one running episode and what the environment says now."""

    key: int  # names the running episode; the next one in the same place has another
    episode: Episode
    observation: str
    info: Info


@dataclass(frozen=True)
class Decision:
    """What an agent does. `status` is None when the prompt did not fit, which ends the episode (`context_limit`)."""

    action: str
    status: ParseStatus | None = ParseStatus.OK
    prompt_ids: list[int] = field(default_factory=list)
    completion_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


class Agent(Protocol):
    """Anything that answers observations with actions."""

    def act(self, views: Sequence[View]) -> list[Decision]:
        """One decision for each view, in their order."""

    def finish(self, key: int) -> None:
        """The episode of this key is over; `key` will not come back."""


class PolicyAgent:
    """A policy behind a prompter. It samples with `generator`, which the caller owns and may save."""

    def __init__(self, policy: Policy, prompter: Prompter, sampling: Sampling, generator: torch.Generator) -> None:
        self.policy = policy
        self.prompter = prompter
        self.sampling = sampling
        self.generator = generator

    def act(self, views: Sequence[View]) -> list[Decision]:
        """Prompt, sample and parse, in one batch."""
        tokenizer = self.policy.tokenizer
        prompts = [self.prompter.prompt_ids(tokenizer, v.episode.turns, v.observation, v.info) for v in views]
        most = min(self.policy.context_length - 1, self.prompter.max_prompt_tokens or self.policy.context_length)
        fits = [i for i, prompt in enumerate(prompts) if len(prompt) <= most]
        requests = [Request(views[i].key, prompts[i]) for i in fits]
        decisions = [Decision("", None, prompt) for prompt in prompts]
        for i, done in zip(fits, self.policy.generate(requests, self.sampling, self.generator), strict=True):
            decisions[i] = self._decide(prompts[i], done, views[i].info)
        return decisions

    def _decide(self, prompt: list[int], done: Completion, info: Info) -> Decision:
        # Special tokens stay in the text, all but the one that ended it: an action with one inside is no action.
        text = self.policy.tokenizer.decode(done.text_ids, skip_special_tokens=False)
        action, status = self.prompter.read(text, done.finished, info)
        return Decision(action, status, prompt, done.ids, done.logprobs)

    def finish(self, key: int) -> None:
        self.policy.release(key)
