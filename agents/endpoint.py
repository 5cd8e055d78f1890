"""Models behind OpenAI-compatible endpoints, and an agent that is one: it can be evaluated, not trained.

Retries with backoff, waits that the server asks for, and timeouts are those of the official client. What it could not
get in the end is an `EndpointError`, which stops the evaluation (the run); what was finished is kept, and it resumes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import openai

from agents.agent import Decision, View
from agents.chat import Chat
from agents.policies.base import Sampling, Usage


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


class Endpoint:
    """The model `name` at `base_url`, asked by `concurrency` requests at a time. What that took is in `usage`."""

    def __init__(
        self,
        name: str,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        concurrency: int = 8,
        timeout: float = 120.0,
        max_retries: int = 5,
        prices: Sequence[float] | None = None,
    ) -> None:
        """`base_url` and `api_key` default to the client's own, OPENAI_BASE_URL and OPENAI_API_KEY.

        `timeout` in seconds is for one try. `prices` are two, of a million prompt and completion tokens.
        """
        if concurrency < 1:
            raise ValueError(f"concurrency must be at least 1, got {concurrency}")
        if prices is not None and len(prices) != 2:
            raise ValueError(f"prices are two, of a million prompt and completion tokens, got {prices}")
        try:
            self.client = openai.OpenAI(base_url=base_url, api_key=api_key, timeout=timeout, max_retries=max_retries)
        except openai.OpenAIError as error:
            raise EndpointError(f"{error} (an endpoint without keys takes any)") from error
        self.name, self.prices = name, prices
        self.usage = Usage(cost=None if prices is None else 0.0)
        self._threads = ThreadPoolExecutor(concurrency)

    def ask(self, conversations: Sequence[Sequence[dict[str, str]]], sampling: Sampling) -> list[Any]:
        """The choice that the model makes to each conversation, in their order. Raises `EndpointError`."""
        replies = list(self._threads.map(lambda messages: self._ask(messages, sampling), conversations))
        for reply in replies:
            self._count(reply)
        return [reply.choices[0] for reply in replies]

    def check(self) -> None:
        """Ask for a word, without a second try. Raises `EndpointError` where nobody answers."""
        patient, self.client = self.client, self.client.with_options(max_retries=0)
        try:
            self.answers(["Say yes."], Sampling(temperature=0.0, max_tokens=16), seed=0)
        finally:
            self.client = patient

    def answers(self, prompts: Sequence[str], sampling: Sampling, seed: int) -> list[str | None]:  # noqa: ARG002
        """The text that answers each prompt, None where it was cut off. The endpoint draws by seeds of its own."""
        choices = self.ask([[{"role": "user", "content": prompt}] for prompt in prompts], sampling)
        return [None if choice.finish_reason == "length" else choice.message.content or "" for choice in choices]

    def _ask(self, messages: Any, sampling: Sampling) -> Any:
        who = f"{self.name} at {self.client.base_url}"
        with endpoint_errors(who):
            reply = self.client.chat.completions.create(
                model=self.name, messages=messages, temperature=sampling.temperature, max_tokens=sampling.max_tokens
            )
        if not getattr(reply, "choices", None) or getattr(reply.choices[0], "message", None) is None:
            raise EndpointError(f"{who} answers without a message: {str(reply)[:200]}")
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


class EndpointAgent:
    """An `Endpoint` behind a prompter."""

    def __init__(self, model: str, prompter: Chat, sampling: Sampling, **connection: Any) -> None:
        """`model` and `connection` are what `Endpoint` takes."""
        if prompter.history.max_tokens is not None:
            raise ValueError("an endpoint's tokens cannot be counted beforehand: set history.turns, not max_tokens")
        if sampling.stop:
            raise ValueError("endpoints leave out the stop strings that they find: sampling.stop is not for them")
        self.endpoint = Endpoint(model, **connection)
        self.prompter, self.sampling = prompter, sampling
        self._answers: dict[int, list[str]] = {}  # key of the episode -> what the model said, turn by turn

    @property
    def usage(self) -> Usage:
        """What was asked so far."""
        return self.endpoint.usage

    def act(self, views: Sequence[View]) -> list[Decision]:
        """Ask for every view at once, as far as the endpoint's concurrency allows. Raises `EndpointError`."""
        choices = self.endpoint.ask([self._messages(view) for view in views], self.sampling)
        return [self._decide(view, choice) for view, choice in zip(views, choices, strict=True)]

    def _messages(self, view: View) -> list[dict[str, str]]:
        answers = self._answers.setdefault(view.key, [])
        return self.prompter.messages(view.episode.turns, answers, view.observation, view.info)

    def _decide(self, view: View, choice: Any) -> Decision:
        text = choice.message.content or ""
        self._answers[view.key].append(text)
        return Decision(*self.prompter.read(text, choice.finish_reason != "length", view.info))

    def finish(self, key: int) -> None:
        """The episode is over."""
        self._answers.pop(key, None)
