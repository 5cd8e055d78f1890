"""The contract of a policy: token ids in, sampled ids and their log-probabilities out.

What was sampled is the only truth. Nobody downstream turns a completion into text and back: text is read from ids
(to find the action), ids are never made from text that the policy itself has produced.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch

    from agents.masking import Mask, Node


@dataclass(frozen=True)
class Request:
    """Continue `prompt_ids`. Requests of one `session` extend each other, so that a policy may keep its KV cache.

    With a `mask` the completion is one that it allows: `Sampling.max_tokens` ends only what is free text in it, and
    `Sampling.stop` nothing.
    """

    session: int
    prompt_ids: Sequence[int]  # [P]
    mask: Mask | None = None


class End(StrEnum):
    """What ended a completion."""

    TOKEN = "token"  # a stop token, the last of the ids
    STRING = "string"  # a stop string, with which the text of the ids ends
    LENGTH = "length"  # the limit of tokens, or of the context


@dataclass(frozen=True)
class Completion:
    """The sampled ids, with the one that ended them, and the log-probability (nats) of each when it was sampled."""

    ids: list[int]  # [C]
    logprobs: list[float]  # [C]
    end: End
    nodes: list[Node] = field(default_factory=list)  # [C] of the mask: what each id was sampled among; without one, []

    @property
    def finished(self) -> bool:
        """Whether the policy ended the completion itself."""
        return self.end is not End.LENGTH

    @property
    def text_ids(self) -> list[int]:
        """The ids without the stop token, which is no text."""
        return self.ids[:-1] if self.end is End.TOKEN else self.ids


@dataclass(frozen=True)
class Sampling:
    """How to sample: `temperature` 0 is greedy; `max_tokens` is per completion; `stop` are texts that end it."""

    temperature: float = 1.0
    max_tokens: int = 24
    stop: Sequence[str] = ()

    def __post_init__(self) -> None:
        if isinstance(self.stop, str) or not all(self.stop):
            raise ValueError(f"stop is a list of texts, as in stop=['</action>']; got {self.stop!r}")
        if self.temperature < 0:
            raise ValueError(f"temperature must be at least 0, got {self.temperature}")
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, got {self.max_tokens}")


@dataclass
class Usage:
    """What was asked of a model so far. `cost` in the currency of its prices, None where there are none."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float | None = None
    uncounted: int = 0  # requests without a count of their tokens

    def add(self, prompt_tokens: int | None, completion_tokens: int | None) -> None:
        """One more request; None for tokens that were not counted."""
        self.requests += 1
        self.prompt_tokens += prompt_tokens or 0
        self.completion_tokens += completion_tokens or 0
        self.uncounted += prompt_tokens is None or completion_tokens is None

    def describe(self) -> str:
        """One line for a person."""
        cost = "" if self.cost is None else f", cost {self.cost:.4g}"
        uncounted = f" (without {self.uncounted:,} requests that were not counted)" if self.uncounted else ""
        return (
            f"{self.requests:,} requests, {self.prompt_tokens:,} prompt tokens, "
            f"{self.completion_tokens:,} completion tokens{cost}{uncounted}"
        )


def token_limits(requests: Sequence[Request], sampling: Sampling, context_length: int) -> list[int]:
    """How many ids each completion may have. Raises `ValueError` for a prompt that leaves no room."""
    for request in requests:
        if not 1 <= len(request.prompt_ids) < context_length:
            raise ValueError(
                f"a prompt needs 1 to {context_length - 1} ids to leave room for an answer, "
                f"session {request.session} has {len(request.prompt_ids)}"
            )
    return [min(sampling.max_tokens, context_length - len(request.prompt_ids)) for request in requests]


class Policy(Protocol):
    """Anything that continues token ids."""

    takes_masks: bool  # whether it samples under the `mask` of a request

    @property
    def tokenizer(self) -> Any:
        """The Hugging Face tokenizer that its ids belong to."""

    @property
    def context_length(self) -> int:
        """How many ids, prompt and completion together, fit."""

    @property
    def device(self) -> torch.device:
        """Where the generator that it samples with lives."""

    def generate(self, requests: Sequence[Request], sampling: Sampling, generator: torch.Generator) -> list[Completion]:
        """Continue every request. The same weights, requests and generator state give the same ids."""

    def score(self, sequences: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """Log-probabilities of ids that are given: for each sequence of L ids a tensor of [L - 1], in nats."""

    def score_candidates(
        self, prompts: Sequence[Sequence[int]], candidates: Sequence[Sequence[Sequence[int]]]
    ) -> list[torch.Tensor]:
        """Log-probabilities of whole completions: for each prompt a tensor [K] of its K candidates, in nats."""

    def release(self, session: int) -> None:
        """The session will not come back: forget what was kept for it."""

    def pause(self) -> None:
        """The weights are about to be trained: forget what was kept for sessions, and free the memory that it took."""

    def sync(self) -> dict[str, float]:
        """The weights have been trained: sample from the new ones. Returns metrics of how that went."""
