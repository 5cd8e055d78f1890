"""The agent contract, and the agent that is a policy behind a prompter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Protocol

from agents.episode import Choice, Episode, ParseStatus
from agents.policies.base import Completion, Policy, Request, Sampling
from envs.core import Info

if TYPE_CHECKING:  # agents without a policy start without torch, which takes seconds to import
    import torch

    from agents.masking import Node
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
    choice: Choice | None = None
    nodes: list[Node] = field(default_factory=list)


class Agent(Protocol):
    """Anything that answers observations with actions."""

    def act(self, views: Sequence[View]) -> list[Decision]:
        """One decision for each view, in their order."""

    def finish(self, key: int) -> None:
        """The episode of this key is over, or is played again from its beginning; nothing of it is to be kept."""


def admissible_actions(view: View) -> list[str]:
    """What can be done now. Raises `ValueError` where the environment does not say."""
    admissible: list[str] | None = view.info["admissible"]
    if not admissible:
        raise ValueError(
            f"this agent needs info['admissible'], and {view.episode.task.env} gives none; "
            "use another agent for this environment"
        )
    return admissible


@dataclass(eq=False)
class PolicyAgent:
    """A policy behind a prompter. It samples with `generator`, which the caller owns and may save."""

    masked: ClassVar[bool] = False  # whether it samples under a mask, see `agents.masking`

    policy: Policy
    prompter: Prompter
    sampling: Sampling
    generator: torch.Generator

    @property
    def layout(self) -> str:
        """Of the training samples that its episodes become, see `agents.samples`."""
        return self.prompter.layout

    def act(self, views: Sequence[View]) -> list[Decision]:
        """Prompt, sample and parse, in one batch."""
        tokenizer = self.policy.tokenizer
        prompts = [self.prompter.prompt_ids(tokenizer, v.episode.turns, v.observation, v.info) for v in views]
        fits = [i for i, prompt in enumerate(prompts) if self.fits(prompt)]
        decisions = [Decision("", None, prompt) for prompt in prompts]
        for i, decision in zip(fits, self._decide([views[i] for i in fits], [prompts[i] for i in fits]), strict=True):
            decisions[i] = decision
        return decisions

    def fits(self, prompt: Sequence[int]) -> bool:
        """Whether the policy can go on from `prompt`; where it cannot, its episode ends (`context_limit`)."""
        most = min(self.policy.context_length - 1, self.prompter.max_prompt_tokens or self.policy.context_length)
        return len(prompt) <= most

    def _decide(self, views: Sequence[View], prompts: Sequence[list[int]]) -> list[Decision]:
        """The decisions after prompts that fit."""
        requests = [Request(view.key, prompt) for view, prompt in zip(views, prompts, strict=True)]
        completions = self.policy.generate(requests, self.sampling, self.generator)
        return [
            self._read(prompt, done, view.info) for view, prompt, done in zip(views, prompts, completions, strict=True)
        ]

    def _read(self, prompt: list[int], done: Completion, info: Info) -> Decision:
        # Special tokens stay in the text, all but the one that ended it: an action with one inside is no action.
        text = self.policy.tokenizer.decode(done.text_ids, skip_special_tokens=False)
        action, status = self.prompter.read(text, done.finished, info)
        return Decision(action, status, prompt, done.ids, done.logprobs, nodes=done.nodes)

    def finish(self, key: int) -> None:
        self.policy.release(key)
