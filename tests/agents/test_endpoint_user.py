"""A model as the customer of tau-bench: its prompt, and whose messages are whose."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import Any

import pytest

from agents import endpoint_user
from agents.endpoint import Answer, EndpointError, Refusal
from agents.endpoint_user import EndpointUser
from envs.core import NoDataError, StopReason
from envs.services import MOST_FAILURES, ServiceError
from envs.tau_bench.users import GREETING


class Recorder:
    """A fake endpoint that refuses a conversation of five messages."""

    def __init__(self, name: str, **options: Any) -> None:
        self.name, self.options = name, options

    def ask(self, conversations: Sequence[Sequence[dict[str, Any]]], sampling: Any) -> list[Answer | Refusal]:
        asked.append((self, list(conversations[0]), sampling))
        return [Refusal(StopReason.REFUSED, "no") if len(conversations[0]) == 5 else Answer("I want tea.", True)]


asked: list[Any] = []


def test_roles_are_swapped_in_the_prompt_of_a_simulated_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_user, "Endpoint", Recorder)
    user = pickle.loads(pickle.dumps(EndpointUser("model", base_url="http://x", temperature=0.5)))
    assert user.name == "endpoint model"
    assert user.answer("Buy {tea}.", [GREETING]) == "I want tea."
    user.answer("Buy {tea}.", [GREETING, "I want tea.", "Which one?"][:3])
    (first, messages, sampling), (second, later, _) = asked
    assert first is second
    assert (first.name, first.options["base_url"], sampling.temperature) == ("model", "http://x", 0.5)
    assert "Instruction: Buy {tea}.\n" in messages[0]["content"]
    assert messages[1:] == [{"role": "user", "content": GREETING}]
    assert [message["role"] for message in later] == ["system", "user", "assistant", "user"]
    with pytest.raises(EndpointError, match="endpoint model refused to play the user: no"):
        user.answer("Buy {tea}.", [GREETING, "a", "b", "c"])


def test_a_user_that_does_not_answer_ends_episodes_and_later_the_run() -> None:
    user = EndpointUser("model", base_url="http://127.0.0.1:1", api_key="none", max_retries=0)
    for _ in range(MOST_FAILURES - 1):
        with pytest.raises(ServiceError, match=r"model at http://127\.0\.0\.1:1.*Connection error"):
            user.answer("Buy tea.", [GREETING])
    with pytest.raises(NoDataError, match=r"the user \(endpoint model\) did not answer 3 calls in a row"):
        user.answer("Buy tea.", [GREETING])
