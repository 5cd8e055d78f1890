"""Models behind OpenAI-compatible endpoints, and the agent that uses them. They can be evaluated, not trained.

The official client handles retries with backoff, the server's retry-after headers, and timeouts. Two kinds of failure
remain. A failure that affects every conversation (a wrong key, an unknown model, a server that is down) raises
`EndpointError`: the run stops, keeps its finished episodes and can be resumed. A failure of one conversation (it is too
long, or a content filter rejects it) is a `Refusal`: that episode ends with a named reason.
"""

from __future__ import annotations

import json
import logging
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import openai

from agents.agent import Decision, View
from agents.chat import Chat, call_id, fold_system
from agents.policies.base import Sampling, Usage
from agents.tool_chat import ToolChat, tools_of
from envs.core import StopReason

logger = logging.getLogger(__name__)

RESERVED = ("model", "messages", "stream")  # `parameters` cannot set these
# Finish reasons, in lower case, of an incomplete answer.
CUT_OFF = frozenset(
    {"length", "model_length", "max_tokens", "max_output_tokens", "incomplete", "content_filter", "safety"}
)
# Statuses that do not concern the conversation: key, account, model, time, load, and gateways before the server.
RUN_STATUSES = frozenset({401, 402, 404, 408, 409, 429, *range(501, 600)})
SHORT_QUESTION = "Say ok."
LONGEST_ERROR = 500  # characters
MOST_TOKENS = 10**12  # larger token counts of a request are not believed

# Servers have no common code for these errors, and their words differ: OpenAI, vLLM, SGLang, llama.cpp, TGI, Gemini …
_TOO_LONG = re.compile(
    r"context.?(length|size|window|limit)|maximum (model|prompt) length|inputs.? tokens|too many tokens"
    r"|(prompt|input|request|messages)\b.{0,40}\btoo (long|large)|token count.{0,60}exceed|reduce the length",
    re.IGNORECASE,
)
_FILTERED = re.compile(
    r"content.?(filter|management|policy|exists.risk)|responsible.?ai|moderation|flagged|data.?inspection"
    r"|prohibited.content|safety",
    re.IGNORECASE,
)
_SURROGATES = re.compile("[\ud800-\udfff]")


class EndpointError(OSError):
    """The endpoint cannot be reached, refuses the request, or answers with something unreadable."""


class UnansweredError(EndpointError):
    """The endpoint works but did not answer this conversation; it may answer others."""

    def __init__(self, text: str, status: int, server_text: str = "") -> None:
        """`text` is the message; `server_text` is the part of it that the server wrote about the conversation."""
        super().__init__(text)
        self.status, self.server_text = status, server_text  # the HTTP status

    @property
    def reason(self) -> StopReason | None:
        """The stop reason, if the server says that this conversation is the cause."""
        if self.status == 413 or _TOO_LONG.search(self.server_text):
            return StopReason.CONTEXT_LIMIT
        return StopReason.REFUSED if _FILTERED.search(self.server_text) else None

    @property
    def may_pass(self) -> bool:
        """Whether a retry may succeed: the server failed instead of refusing."""
        return not 400 <= self.status < 500


@contextmanager
def endpoint_errors(who: str) -> Iterator[None]:
    """Turn the client's errors, and errors from reading an unexpected answer, into `EndpointError`."""
    try:
        yield
    except openai.APIStatusError as error:
        wait = error.response.headers.get("retry-after")
        text = _line(f"{who}: {type(error).__name__}: {error}") + (f" (it asks to wait {wait} s)" if wait else "")
        if error.status_code in RUN_STATUSES:
            raise EndpointError(text) from error
        raise UnansweredError(text, error.status_code, str(error)) from error
    except openai.APITimeoutError as error:  # perhaps of this conversation alone, as from a gateway (504)
        raise UnansweredError(_line(f"{who}: {type(error).__name__}: {error}"), 504) from error
    except openai.OpenAIError as error:
        raise EndpointError(f"{who}: {type(error).__name__}: {error}") from error
    # Not JSON, without the expected fields, or too deep or large to read.
    except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RecursionError) as error:
        raise UnansweredError(
            _line(f"{who} gave an answer that cannot be read: {type(error).__name__}: {error}"), 200
        ) from error


@dataclass(frozen=True)
class Answer:
    """The model's answer. `text` contains tool calls as JSON, but not reasoning that the server returns separately."""

    text: str
    finished: bool  # False if a limit or a filter cut it off
    message: Mapping[str, Any] = field(default_factory=dict)  # its content and `tool_calls`, as they are sent again
    calls: Sequence[Any] = ()  # names and arguments as they came


@dataclass(frozen=True)
class Refusal:
    """A conversation that the endpoint refuses although it answers others: the reason, and the server's message."""

    reason: StopReason
    error: str


class Endpoint:
    """The model `name` at `base_url`, with up to `concurrency` requests at a time. `usage` counts tokens and cost."""

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
        parameters: Mapping[str, Any] | None = None,
    ) -> None:
        """`base_url` and `api_key` default to the client's own, OPENAI_BASE_URL and OPENAI_API_KEY.

        `timeout` in seconds is for one try. `prices` are two numbers: of a million prompt tokens and of a million
        completion tokens. `parameters` are added to every request, as in `{"seed": 7, "reasoning_effort": "low"}`. They
        override the sampling's own, and None removes one: `{"temperature": None}`.
        """
        if concurrency < 1:
            raise ValueError(f"concurrency must be at least 1, got {concurrency}")
        if prices is not None and len(prices) != 2:
            raise ValueError(f"prices are two numbers, for a million prompt and completion tokens; got {prices}")
        self.parameters = dict(parameters or {})
        if taken := sorted(self.parameters.keys() & set(RESERVED)):
            raise ValueError(f"parameters cannot set {', '.join(taken)}: polyturn sets {', '.join(RESERVED)} itself")
        self._connection: dict[str, Any] = {
            "base_url": base_url, "api_key": api_key, "timeout": timeout, "max_retries": max_retries,
        }  # fmt: skip
        self._concurrency = concurrency
        self.name, self.prices = name, prices
        self.usage = Usage(cost=None if prices is None else 0.0)
        self._has_answered = False  # at least once
        self._limit = "max_tokens"  # the name of the length limit that this model accepts
        self._connect()

    def _connect(self) -> None:
        try:
            self.client = openai.OpenAI(**self._connection)
        except openai.OpenAIError as error:
            raise EndpointError(f"{error} (an endpoint that needs no key accepts any text)") from error
        self._threads = ThreadPoolExecutor(self._concurrency)
        self._lock = threading.Lock()  # protects what the threads change

    def __getstate__(self) -> dict[str, Any]:
        """Without the connection: another process has its own."""
        own = {"client", "_threads", "_lock"}
        return {name: value for name, value in self.__dict__.items() if name not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._connect()

    def ask(
        self,
        conversations: Sequence[Sequence[dict[str, Any]]],
        sampling: Sampling,
        tools: Sequence[Sequence[dict[str, Any]]] | None = None,
    ) -> list[Answer | Refusal]:
        """The answer or refusal of each conversation, in order; `tools` are schemas that the model may call in each.

        Raises `EndpointError` if the run cannot go on.
        """
        offered = tools or [()] * len(conversations)
        return list(
            self._threads.map(lambda messages, schemas: self._ask(messages, schemas, sampling), conversations, offered)
        )

    def check(self) -> None:
        """Send one short request without retries. Raises `EndpointError` if there is no answer."""
        patient, self.client = self.client, self.client.with_options(max_retries=0)
        try:
            self.answers(["Say yes."], Sampling(temperature=0.0, max_tokens=16), seed=0)
        finally:
            self.client = patient

    def answers(self, prompts: Sequence[str], sampling: Sampling, seed: int) -> list[str | None]:  # noqa: ARG002
        """The answer to each prompt, or None if it was cut off or refused. The endpoint uses its own random seeds."""
        replies = self.ask([[{"role": "user", "content": prompt}] for prompt in prompts], sampling)
        return [reply.text if isinstance(reply, Answer) and reply.finished else None for reply in replies]

    def _ask(
        self, messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]], sampling: Sampling
    ) -> Answer | Refusal:
        try:
            return self._answer(messages, tools, sampling)
        except UnansweredError as error:
            refused = error
        if refused.reason is StopReason.CONTEXT_LIMIT or (refused.reason is not None and self._has_answered):
            return Refusal(refused.reason, str(refused))
        # Perhaps the conversation is not the cause. A short one shows it: if that fails too, all of them would.
        system = [message for message in messages if message["role"] not in ("user", "assistant", "tool")]
        try:
            self._answer([*system, {"role": "user", "content": SHORT_QUESTION}], tools, sampling)
        except EndpointError:
            raise refused from None
        if refused.reason is None and refused.may_pass:
            try:
                return self._answer(messages, tools, sampling)
            except UnansweredError as error:
                refused = error
        return Refusal(refused.reason or StopReason.REFUSED, str(refused))

    def _answer(
        self, messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]], sampling: Sampling
    ) -> Answer:
        """Raises `EndpointError`, and `UnansweredError` if these messages may be the cause."""
        limit = self._limit
        try:
            return self._request(messages, tools, self._settings(sampling, limit))
        except UnansweredError as error:
            other = "max_completion_tokens"
            if limit == other or error.reason or other not in str(error) or limit in self.parameters:
                raise
        with self._lock:
            if self._limit != other:
                logger.warning("%s accepts %s instead of %s, which is sent from now on", self.name, other, limit)
            self._limit = other
        return self._request(messages, tools, self._settings(sampling, other))

    def _settings(self, sampling: Sampling, limit: str) -> dict[str, Any]:
        """The parameters of a request. A limit in `parameters`, under either name, replaces the sampling's."""
        settings: dict[str, Any] = {"temperature": sampling.temperature, **sampling.truncation}
        if self.parameters.keys().isdisjoint({"max_tokens", "max_completion_tokens"}):
            settings[limit] = sampling.max_tokens
        settings |= self.parameters
        return {name: value for name, value in settings.items() if value is not None}

    def _request(
        self, messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]], settings: dict[str, Any]
    ) -> Answer:
        # Read as plain JSON: servers add fields that the client's types do not know.
        with endpoint_errors(who := f"{self.name} at {self.client.base_url}"):
            body = {"model": self.name, "messages": messages, **({"tools": tools} if tools else {}), **settings}
            reply = self.client.post("/chat/completions", cast_to=httpx.Response, body=body).json()
            self._count(reply.get("usage"))
            choices = reply.get("choices")
            if not choices or choices[0].get("message") is None or choices[0].get("finish_reason") == "error":
                parts = reply.get("error"), choices and choices[0].get("finish_reason")
                server_text = " ".join(map(str, parts))
                raise UnansweredError(_line(f"{who} sent an answer without a message: {reply}"), 200, server_text)
            self._has_answered = True
            reason = str(choices[0].get("finish_reason")).lower()
            message = choices[0]["message"]
            return Answer(_text(message), reason not in CUT_OFF, _to_send_again(message), _calls(message))

    def _count(self, usage: Any) -> None:
        counts = usage if isinstance(usage, dict) else {}
        prompt, completion = (counts.get(f"{part}_tokens") for part in ("prompt", "completion"))
        with self._lock:
            self.usage.add(*(n if isinstance(n, int) and 0 <= n < MOST_TOKENS else None for n in (prompt, completion)))
            if self.prices is not None:
                self.usage.cost = (
                    self.usage.prompt_tokens * self.prices[0] + self.usage.completion_tokens * self.prices[1]
                ) / 1e6


def _text(message: dict[str, Any]) -> str:
    """The text of a message for the parser: its content or refusal, then its tool calls, each as a JSON object."""
    content = _content(message.get("content")) or message.get("refusal") or ""
    written = [json.dumps(call, ensure_ascii=False) for call in _calls(message)]
    return _SURROGATES.sub("\ufffd", "\n".join(part for part in (content, *written) if part))


def _calls(message: dict[str, Any]) -> list[dict[str, Any]]:
    calls = [call["function"] for call in message.get("tool_calls") or [] if call and call.get("function")]
    calls += [message["function_call"]] if message.get("function_call") else []
    return [{"name": call.get("name"), "arguments": call.get("arguments")} for call in calls]


def _to_send_again(message: dict[str, Any]) -> dict[str, Any]:
    """An answer as a part of the next request. Arguments that servers would refuse become an empty object."""
    calls = [call for call in message.get("tool_calls") or [] if call and call.get("function")]
    text = _SURROGATES.sub("\ufffd", _content(message.get("content")) or message.get("refusal") or "")
    if not calls:
        return {"role": "assistant", "content": text}
    made = [
        {
            "id": str(call.get("id") or call_id(place)),
            "type": "function",
            "function": {"name": str(call["function"].get("name")), "arguments": _arguments(call["function"])},
        }
        for place, call in enumerate(calls)
    ]
    return {"role": "assistant", "content": text, "tool_calls": made}


def _arguments(function: Mapping[str, Any]) -> str:
    arguments = function.get("arguments")
    try:
        read = json.loads(arguments) if isinstance(arguments, str) else arguments
        return json.dumps(read) if isinstance(read, dict) else "{}"
    except (ValueError, RecursionError):
        return "{}"


def _content(content: Any) -> str:
    """The text of a message's content. If it has parts, only text parts count, not reasoning or images."""
    if content is None or isinstance(content, str):
        return content or ""
    parts = [content] if isinstance(content, dict) else content
    parts = [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]
    read = (part for part in parts if isinstance(part, dict) and part.get("type") in _TEXTS)
    return "".join(part.get("text") or part.get("refusal") or "" for part in read)


_TEXTS = ("text", "output_text", "refusal", None)


def _line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= LONGEST_ERROR else line[: LONGEST_ERROR - 1] + "…"


class EndpointAgent:
    """An `Endpoint` together with its prompter."""

    def __init__(
        self, model: str, prompter: Chat, sampling: Sampling, *, system_role: str | None = "system", **connection: Any
    ) -> None:
        """`model` and `connection` are the arguments of `Endpoint`.

        `system_role` is the role of the system prompt ("developer" for some models). With None, for models without such
        a role, the system prompt is put in front of the first user message.
        """
        if prompter.history.max_tokens is not None:
            raise ValueError("an endpoint's tokens cannot be counted in advance: set history.turns, not max_tokens")
        if sampling.stop:
            raise ValueError("sampling.stop does not work with endpoints: they remove the stop string from the answer")
        self.endpoint = Endpoint(model, **connection)
        self.prompter, self.sampling, self.system_role = prompter, sampling, system_role
        self._answers: dict[int, list[Answer]] = {}  # key of the episode -> the model's answers, turn by turn

    @property
    def usage(self) -> Usage:
        """Tokens and cost so far."""
        return self.endpoint.usage

    def act(self, views: Sequence[View]) -> list[Decision]:
        """Ask for all views at once, up to the endpoint's concurrency. Raises `EndpointError`."""
        tools = [tools_of(view.info) for view in views] if isinstance(self.prompter, ToolChat) else None
        replies = self.endpoint.ask([self._messages(view) for view in views], self.sampling, tools)
        return [self._decide(view, reply) for view, reply in zip(views, replies, strict=True)]

    def _messages(self, view: View) -> list[dict[str, Any]]:
        kept = self._answers.setdefault(view.key, [])
        answers = [answer.message if isinstance(self.prompter, ToolChat) else answer.text for answer in kept]
        messages = self.prompter.messages(view.episode.turns, answers, view.observation, view.info)
        if self.system_role is None:
            return fold_system(messages)
        return [{**messages[0], "role": self.system_role}, *messages[1:]]

    def _decide(self, view: View, reply: Answer | Refusal) -> Decision:
        if isinstance(reply, Refusal):
            return Decision("", None, stop_reason=reply.reason, error=reply.error)
        self._answers[view.key].append(reply)
        if isinstance(self.prompter, ToolChat):
            return Decision(*self.prompter.read_message(reply.text, reply.calls, reply.finished, view.info))
        return Decision(*self.prompter.read(reply.text, reply.finished, view.info))

    def finish(self, key: int) -> None:
        """The episode is over."""
        self._answers.pop(key, None)
