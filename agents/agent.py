"""The agent contract, and `PolicyAgent`: a policy together with the prompter that writes its prompts."""

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
    """What an agent sees before it acts: one running episode, and the environment's newest observation and info."""

    key: int  # identifies the running episode; the next episode in the same slot has another key
    episode: Episode
    observation: str
    info: Info


@dataclass(frozen=True)
class Decision:
    """What an agent does. With `status` None it does nothing, and the episode ends with `stop_reason`.

    With `actions`, these are played in place of `action`, one after the other until the episode ends, all in one turn.
    There may be none; then the environment is not asked.
    """

    action: str
    status: ParseStatus | None = ParseStatus.OK
    prompt_ids: list[int] = field(default_factory=list)
    completion_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    choice: Choice | None = None
    nodes: list[Node] = field(default_factory=list)
    stop_reason: StopReason = StopReason.CONTEXT_LIMIT
    error: str = ""  # the error that ended the episode, if any
    actions: tuple[str, ...] | None = None


class Agent(Protocol):
    """Anything that answers observations with actions."""

    def act(self, views: Sequence[View]) -> list[Decision]:
        """One decision for each view, in their order."""

    def finish(self, key: int) -> None:
        """The episode with this key has ended or will be restarted: forget everything about it."""


def without_actions(view: View) -> Decision | None:
    """The decision that ends an episode without admissible actions, for agents that need them; None if there are any.

    It ends this episode only: the environment may list them in all others.
    """
    if view.info["admissible"]:
        return None
    error = f"this agent needs info['admissible'], and {view.episode.task.env} gives none in this state"
    return Decision("", None, stop_reason=StopReason.ENV_ERROR, error=error)


def prompt_within(
    context_length: int, prompter: Prompter, tokenizer: Any, turns: Sequence[Turn], observation: str, info: Info
) -> list[int] | None:
    """The prompt of a turn, or None if it leaves no room in the context or exceeds the prompter's limit.

    An observation that cannot fit is not encoded: a million words would take seconds and hundreds of megabytes.
    """
    limit = min(context_length - 1, prompter.max_prompt_tokens or context_length)
    shown = min(len(observation), len(info.get(BRIEF, observation)))
    if not may_fit(tokenizer, shown, limit):
        _warn_once(limit)
        return None
    ids = prompter.prompt_ids(tokenizer, turns, observation, info)
    return ids if len(ids) <= limit else None


def may_fit(tokenizer: Any, characters: int, limit: int) -> bool:
    """Whether a text with this number of characters could have at most `limit` ids."""
    return characters <= limit * _longest_token(tokenizer, len(tokenizer))


@lru_cache(maxsize=8)
def _longest_token(tokenizer: Any, size: int) -> int:  # noqa: ARG001 - tokens may be added later
    return max(map(len, tokenizer.get_vocab()))


@cache
def _warn_once(limit: int) -> None:
    logger.warning("an observation does not fit into %d ids: the episode ends with context_limit (logged once)", limit)


@dataclass(eq=False)
class PolicyAgent:
    """A policy together with its prompter. It samples with `generator`, which the caller owns and may save."""

    masked: ClassVar[bool] = False  # whether it samples under a mask, see `agents.masking`
    needs: ClassVar[frozenset[Need]] = frozenset()  # what the environment must provide

    policy: Policy
    prompter: Prompter
    sampling: Sampling
    generator: torch.Generator

    @property
    def layout(self) -> str:
        """The layout of the training samples made from its episodes, see `agents.samples`."""
        return self.prompter.layout

    def act(self, views: Sequence[View]) -> list[Decision]:
        """Prompt, sample and parse, in one batch."""
        ended = [without_actions(view) if Need.ADMISSIBLE in self.needs else None for view in views]
        prompts = [
            None if end else self.prompt(view.episode.turns, view.observation, view.info)
            for view, end in zip(views, ended, strict=True)
        ]
        fits = [(view, prompt) for view, prompt in zip(views, prompts, strict=True) if prompt is not None]
        decisions = iter(self._decide([view for view, _ in fits], [prompt for _, prompt in fits]))
        return [
            next(decisions) if prompt is not None else end or Decision("", None)
            for prompt, end in zip(prompts, ended, strict=True)
        ]

    def prompt(self, turns: Sequence[Turn], observation: str, info: Info) -> list[int] | None:
        """The ids to continue, or None if they do not fit: the episode then ends with `context_limit`."""
        policy = self.policy
        return prompt_within(policy.context_length, self.prompter, policy.tokenizer, turns, observation, info)

    def _decide(self, views: Sequence[View], prompts: Sequence[list[int]]) -> list[Decision]:
        """Decide on the prompts that fit."""
        requests = [Request(view.key, prompt) for view, prompt in zip(views, prompts, strict=True)]
        completions = self.policy.generate(requests, self.sampling, self.generator)
        return [
            self._read(prompt, done, view.info) for view, prompt, done in zip(views, prompts, completions, strict=True)
        ]

    def _read(self, prompt: list[int], done: Completion, info: Info) -> Decision:
        # Keep special tokens in the text, except the one that ended it: text that contains one is not an action.
        text = self.policy.tokenizer.decode(done.text_ids, skip_special_tokens=False)
        action, status = self.prompter.read(text, done.finished, info)
        return Decision(action, status, prompt, done.ids, done.logprobs, nodes=done.nodes)

    def repeated(self, turn: Turn, prompt: list[int]) -> Decision:
        """The decision of a turn that was played before, after the same prompt."""
        return Decision(turn.action, turn.status, prompt, turn.completion_ids, turn.logprobs)

    def finish(self, key: int) -> None:
        self.policy.release(key)
