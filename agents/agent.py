"""The agent contract, and the agent that is a policy behind a prompter."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from agents.episode import Choice, Episode, ParseStatus, Turn
from agents.policies.base import Completion, Policy, Request, Sampling
from envs.core import BRIEF, Info, Need, StopReason

if TYPE_CHECKING:  # agents without a policy start without torch, which takes seconds to import
    import torch

    from agents.masking import Node
    from agents.prompts import Prompter

logger = logging.getLogger(__name__)


@dataclass
class View:
    """What an agent may look at when it is its turn: one running episode and what the environment says now."""

    key: int  # names the running episode; the next one in the same place has another
    episode: Episode
    observation: str
    info: Info


@dataclass(frozen=True)
class Decision:
    """What an agent does. Where `status` is None it does nothing, and the episode ends by `stop_reason`."""

    action: str
    status: ParseStatus | None = ParseStatus.OK
    prompt_ids: list[int] = field(default_factory=list)
    completion_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    choice: Choice | None = None
    nodes: list[Node] = field(default_factory=list)
    stop_reason: StopReason = StopReason.CONTEXT_LIMIT
    error: str = ""  # what ended the episode, where it was an error


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


def prompt_within(
    context_length: int, prompter: Prompter, tokenizer: Any, turns: Sequence[Turn], observation: str, info: Info
) -> list[int] | None:
    """The prompt of a turn; None where it leaves no room in the context, or is longer than its prompter allows.

    An observation that cannot fit is not encoded, which takes seconds and hundreds of megabytes for a million words.
    """
    limit = min(context_length - 1, prompter.max_prompt_tokens or context_length)
    shown = min(len(observation), len(info.get(BRIEF, observation)))
    if not may_fit(tokenizer, shown, limit):
        _say_once(limit)
        return None
    ids = prompter.prompt_ids(tokenizer, turns, observation, info)
    return ids if len(ids) <= limit else None


def may_fit(tokenizer: Any, characters: int, limit: int) -> bool:
    """Whether a text of so many characters may have `limit` ids or fewer."""
    return characters <= limit * _longest_token(tokenizer, len(tokenizer))


@lru_cache(maxsize=8)
def _longest_token(tokenizer: Any, size: int) -> int:  # noqa: ARG001 - tokens may be added later
    return max(map(len, tokenizer.get_vocab()))


@cache
def _say_once(limit: int) -> None:
    logger.warning("an observation cannot fit into %d ids: its episode ends with context_limit (said once)", limit)


@dataclass(eq=False)
class PolicyAgent:
    """A policy behind a prompter. It samples with `generator`, which the caller owns and may save."""

    masked: ClassVar[bool] = False  # whether it samples under a mask, see `agents.masking`
    needs: ClassVar[frozenset[Need]] = frozenset()  # of the environment

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
        prompts = [self.prompt(view.episode.turns, view.observation, view.info) for view in views]
        fits = [(view, prompt) for view, prompt in zip(views, prompts, strict=True) if prompt is not None]
        decisions = iter(self._decide([view for view, _ in fits], [prompt for _, prompt in fits]))
        return [Decision("", None) if prompt is None else next(decisions) for prompt in prompts]

    def prompt(self, turns: Sequence[Turn], observation: str, info: Info) -> list[int] | None:
        """What the policy goes on from; None where that does not fit, so that the episode ends (`context_limit`)."""
        policy = self.policy
        return prompt_within(policy.context_length, self.prompter, policy.tokenizer, turns, observation, info)

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
