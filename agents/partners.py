"""Partners that are models: behind an endpoint, or on this machine (docs/environments/partners.md)."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib import resources
from typing import TYPE_CHECKING, Any

import jinja2

from agents.chat import fold_system
from agents.chat_templates import ChatTemplateError, render_chat
from agents.endpoint import Endpoint, EndpointError, Refusal
from agents.policies.base import Request, Sampling
from agents.policies.names import find_parts
from agents.prompts import read_template
from agents.quoting import encode, quote
from envs.services import Service, ServiceError

if TYPE_CHECKING:  # it imports torch
    from agents.policies.pretrained import Pretrained


@lru_cache(maxsize=16)
def _prompt(template: str) -> jinja2.Template:
    """A file of `agents/templates/partner`, which sees `instruction`. Raises `UnknownNameError`."""
    return read_template("prompt of a partner", resources.files("agents") / "templates" / "partner", template)


def messages(template: str, instruction: str, said: Sequence[str]) -> list[dict[str, str]]:
    """The conversation. To the model the other side is the user, and its own texts are the answers."""
    roles = ("user", "assistant")
    system = {"role": "system", "content": _prompt(template).render(instruction=instruction)}
    return [system, *({"role": roles[place % 2], "content": text} for place, text in enumerate(said))]


class EndpointPartner:
    """A model behind an OpenAI-compatible endpoint, as an `envs.partners.Partner`."""

    def __init__(
        self,
        name: str,
        *,
        template: str = "plain",
        base_url: str | None = None,
        api_key: str | None = None,
        timeout: float = 120.0,
        max_retries: int = 5,
        temperature: float = 1.0,
        max_tokens: int = 256,
        parameters: Mapping[str, Any] | None = None,
    ) -> None:
        """See `agents.endpoint.Endpoint`. `template` names a file of `agents/templates/partner`."""
        _prompt(template)
        self.name, self._template = f"endpoint {name}", template
        self._sampling = Sampling(temperature=temperature, max_tokens=max_tokens)
        self._endpoint = Endpoint(
            name, base_url=base_url, api_key=api_key, timeout=timeout, max_retries=max_retries, parameters=parameters
        )
        self._service = Service(f"the partner ({self.name})")

    def answer(self, instruction: str, said: Sequence[str]) -> str:
        """See `envs.partners.Partner`.

        Raises `ServiceError` if there is no answer, `NoDataError` if this happens too often in a row, and
        `EndpointError` if the endpoint refuses the conversation.
        """
        with self._service.call():
            try:
                [reply] = self._endpoint.ask([messages(self._template, instruction, said)], self._sampling)
            except EndpointError as error:
                raise ServiceError(str(error)) from error
        if isinstance(reply, Refusal):
            raise EndpointError(f"{self.name} refused to answer as the partner: {reply.error}")
        return reply.text


class LocalPartner:
    """A model on this machine, through its chat template, as an `envs.partners.Partner`.

    Its draws depend on the conversation and `seed` alone. Each process that plays loads the model once.
    """

    def __init__(
        self,
        name: str,
        *,
        template: str = "plain",
        temperature: float = 1.0,
        max_tokens: int = 256,
        seed: int = 0,
        pretrained: Pretrained | None = None,
    ) -> None:
        """`name` is a folder or any other name of a model, see `agents.policies.names`; `pretrained` says how it is
        loaded. Raises what the name or the template deserves before anything is loaded.
        """
        _prompt(template)
        find_parts(name)
        self.name, self._template = f"local {name}", template
        self._model, self._pretrained, self._seed = name, pretrained, seed
        self._sampling = Sampling(temperature=temperature, max_tokens=max_tokens)
        self._policy: Any = None
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        """Without the model: a worker loads its own."""
        return {**self.__dict__, "_policy": None, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= {**state, "_lock": threading.Lock()}

    def answer(self, instruction: str, said: Sequence[str]) -> str:
        """See `envs.partners.Partner`. Raises `ValueError` if the conversation does not fit into the context."""
        import torch

        with self._lock:
            policy = self._loaded()
            ids = self._encode(policy.tokenizer, instruction, said)
            if len(ids) >= policy.context_length:
                raise ValueError(
                    f"{self.name}: the conversation has {len(ids)} ids, which leaves no room for an answer in the "
                    f"{policy.context_length} of the model"
                )
            key = hashlib.sha256(repr((self._seed, instruction, tuple(said))).encode()).digest()
            generator = torch.Generator(policy.device).manual_seed(int.from_bytes(key[:7], "big"))
            [done] = policy.generate([Request(0, ids)], self._sampling, generator)
            policy.release(0)
            return str(policy.tokenizer.decode(done.text_ids)).strip()

    def _loaded(self) -> Any:
        if self._policy is None:
            from agents.policies.pretrained import Pretrained

            self._policy = (self._pretrained or Pretrained()).load(self._model)
        return self._policy

    def _encode(self, tokenizer: Any, instruction: str, said: Sequence[str]) -> list[int]:
        quoted = [
            {**message, "content": quote(message["content"])} for message in messages(self._template, instruction, said)
        ]
        try:
            text = render_chat(tokenizer, quoted, add_generation_prompt=True)
        except ChatTemplateError:  # some templates have no system role
            text = render_chat(tokenizer, fold_system(quoted), add_generation_prompt=True)
        return list(encode(tokenizer, text))
