"""An agent behind an OpenAI-compatible endpoint. It speaks text, not ids: it can be evaluated, not trained.

Retries with backoff, waits that the server asks for, and timeouts are those of the official client. What it could not
get in the end is an `EndpointError`, which stops the evaluation; episodes that were finished are kept, and it resumes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import openai

from agents.agent import Decision, View, judge
from agents.chat import Chat
from agents.policies.base import Sampling


class EndpointError(OSError):
    """The endpoint cannot be reached, refuses, or answers with what is no answer."""


@contextmanager
def endpoint_errors(who: str) -> Iterator[None]:
    """What the client raises in this block, and what comes of reading an answer that is none, is an `EndpointError`."""
    try:
        yield
    except openai.OpenAIError as error:
        raise EndpointError(f"{who}: {type(error).__name__}: {error}") from error
    except (ValueError, TypeError, AttributeError, LookupError) as error:  # no JSON, or without what was asked for
        raise EndpointError(f"{who} answers nonsense: {type(error).__name__}: {error}") from error


@dataclass
class Usage:
    """What was asked of the endpoint so far. `cost` in the currency of the prices, None where there are none."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float | None = None

    def describe(self) -> str:
        """One line for a person."""
        cost = "" if self.cost is None else f", cost {self.cost:.4g}"
        return (
            f"{self.requests:,} requests, {self.prompt_tokens:,} prompt tokens, "
            f"{self.completion_tokens:,} completion tokens{cost}"
        )


class EndpointAgent:
    """A model at `base_url`, asked by `concurrency` requests at a time."""

    def __init__(
        self,
        model: str,
        prompter: Chat,
        sampling: Sampling,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        concurrency: int = 8,
        timeout: float = 120.0,
        max_retries: int = 5,
        prices: tuple[float, float] | None = None,
    ) -> None:
        """`base_url` and `api_key` default to the client's own, OPENAI_BASE_URL and OPENAI_API_KEY.

        `timeout` in seconds is for one try. `prices` are of a million prompt and completion tokens.
        """
        if concurrency < 1:
            raise ValueError(f"concurrency must be at least 1, got {concurrency}")
        if prompter.history.max_tokens is not None:
            raise ValueError("an endpoint's tokens cannot be counted beforehand: set history.turns, not max_tokens")
        if sampling.stop:
            raise ValueError("endpoints leave out the stop strings that they find: sampling.stop is not for them")
        try:
            self.client = openai.OpenAI(base_url=base_url, api_key=api_key, timeout=timeout, max_retries=max_retries)
        except openai.OpenAIError as error:
            raise EndpointError(f"{error} (an endpoint without keys takes any)") from error
        self.model, self.prompter, self.sampling, self.prices = model, prompter, sampling, prices
        self.usage = Usage(cost=None if prices is None else 0.0)
        self._threads = ThreadPoolExecutor(concurrency)
        self._answers: dict[int, list[str]] = {}  # key of the episode -> what the model said, turn by turn

    def act(self, views: Sequence[View]) -> list[Decision]:
        """Ask for every view at once, as far as `concurrency` allows. Raises `EndpointError`."""
        replies = list(self._threads.map(self._ask, views))
        for reply in replies:
            self._count(reply)
        return [self._decide(view, reply) for view, reply in zip(views, replies, strict=True)]

    def _ask(self, view: View) -> Any:
        answers = self._answers.setdefault(view.key, [])
        messages: Any = self.prompter.messages(view.episode.turns, answers, view.observation, view.info)
        with endpoint_errors(f"{self.model} at {self.client.base_url}"):
            reply = self.client.chat.completions.create(
                model=self.model,
                messages=messages,
                temperature=self.sampling.temperature,
                max_tokens=self.sampling.max_tokens,
            )
        if not getattr(reply, "choices", None) or getattr(reply.choices[0], "message", None) is None:
            raise EndpointError(f"{self.model} at {self.client.base_url} answers without a message: {str(reply)[:200]}")
        return reply

    def _count(self, reply: Any) -> None:
        self.usage.requests += 1
        if reply.usage is None:
            return
        self.usage.prompt_tokens += reply.usage.prompt_tokens
        self.usage.completion_tokens += reply.usage.completion_tokens
        if self.prices is not None:
            self.usage.cost = (
                self.usage.prompt_tokens * self.prices[0] + self.usage.completion_tokens * self.prices[1]
            ) / 1e6

    def _decide(self, view: View, reply: Any) -> Decision:
        choice = reply.choices[0]
        text = choice.message.content or ""
        self._answers[view.key].append(text)
        return Decision(*judge(text, self.prompter.parse(text), choice.finish_reason != "length", view.info))

    def finish(self, key: int) -> None:
        """The episode is over."""
        self._answers.pop(key, None)
