"""A user that is a model behind an OpenAI-compatible endpoint, for `env=tau_bench env/user=endpoint`."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

from agents.endpoint import Endpoint, EndpointError, Refusal
from agents.policies.base import Sampling
from envs.services import Service, ServiceError

# The prompt of `LLMUserSimulationEnv` in sierra-research/tau-bench @ 59a200c (MIT).
PROMPT = """You are a user interacting with an agent.

Instruction: {instruction}

Rules:
- Just generate one line at a time to simulate the user's message.
- Do not give away all the instruction at once. Only provide the information that is necessary for the current step.
- Do not hallucinate information that is not provided in the instruction. For example, if the agent asks for the order \
id but it is not mentioned in the instruction, do not make up an order id, just say you do not remember or have it.
- If the instruction goal is satisified, generate '###STOP###' as a standalone message without anything else to end \
the conversation.
- Do not repeat the exact instruction in the conversation. Instead, use your own words to convey the same information.
- Try to make the conversation as natural as possible, and stick to the personalities in the instruction."""


class EndpointUser:
    """A `User` of `envs.tau_bench.users`. Its connection is opened with the first message, in each process."""

    def __init__(
        self,
        name: str,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        timeout: float = 120.0,
        max_retries: int = 5,
        temperature: float = 1.0,
        max_tokens: int = 256,
        parameters: Mapping[str, Any] | None = None,
    ) -> None:
        """See `agents.endpoint.Endpoint`."""
        self.name = f"endpoint {name}"
        self._model, self._sampling = name, Sampling(temperature=temperature, max_tokens=max_tokens)
        self._options: dict[str, Any] = {
            "base_url": base_url, "api_key": api_key, "timeout": timeout, "max_retries": max_retries,
            "parameters": parameters,
        }  # fmt: skip
        self._endpoint: Endpoint | None = None
        self._service = Service(f"the user ({self.name})")
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        """Without the connection: a worker opens its own."""
        return {**self.__dict__, "_endpoint": None, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= {**state, "_lock": threading.Lock()}

    def answer(self, instruction: str, said: Sequence[str]) -> str:
        """See `envs.tau_bench.users.User`.

        Raises `ServiceError` if there is no answer, `NoDataError` if this happens too often in a row, and
        `EndpointError` if the endpoint refuses the conversation.
        """
        messages = [{"role": "system", "content": PROMPT.format(instruction=instruction)}]
        # To this model the agent is the user, and its own messages are the answers.
        roles = ("user", "assistant")
        messages += [{"role": roles[place % 2], "content": text} for place, text in enumerate(said)]
        with self._service.call():
            try:
                [reply] = self._connected().ask([messages], self._sampling)
            except EndpointError as error:
                raise ServiceError(str(error)) from error
        if isinstance(reply, Refusal):
            raise EndpointError(f"{self.name} refused to play the user: {reply.error}")
        return reply.text

    def _connected(self) -> Endpoint:
        with self._lock:
            if self._endpoint is None:
                self._endpoint = Endpoint(self._model, **self._options)
            return self._endpoint
