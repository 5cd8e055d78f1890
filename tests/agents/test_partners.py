"""Models as partners: their prompts, and whose messages are whose."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from agents import partners
from agents.endpoint import Answer, Endpoint, EndpointError, Refusal
from agents.partners import EndpointPartner, LocalPartner
from envs.core import NoDataError, StopReason, UnknownNameError
from envs.partners import Dialogue, Lines
from envs.services import MOST_FAILURES, ServiceError
from envs.tau_bench.users import GREETING
from tests.agents.test_chat import CHATML, NO_SYSTEM
from tests.agents.toys import random_policy


class Recorder:
    """A fake endpoint that refuses a conversation of five messages."""

    def __init__(self, name: str, **options: Any) -> None:
        self.name, self.options = name, options

    def ask(self, conversations: Sequence[Sequence[dict[str, Any]]], sampling: Any) -> list[Answer | Refusal]:
        asked.append((self, list(conversations[0]), sampling))
        return [Refusal(StopReason.REFUSED, "no") if len(conversations[0]) == 5 else Answer("I want tea.", True)]


asked: list[Any] = []


def test_roles_are_swapped_in_the_prompt_of_a_simulated_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partners, "Endpoint", Recorder)
    user = EndpointPartner("model", template="tau_bench", base_url="http://x", temperature=0.5)
    assert user.name == "endpoint model"
    assert user.answer("Buy {tea}.", [GREETING]) == "I want tea."
    user.answer("Buy {tea}.", [GREETING, "I want tea.", "Which one?"])
    (first, messages, sampling), (second, later, _) = asked
    assert first is second
    assert (first.name, first.options["base_url"], sampling.temperature) == ("model", "http://x", 0.5)
    assert messages[0]["content"].startswith("You are a user interacting with an agent.\n\nInstruction: Buy {tea}.\n")
    assert messages[1:] == [{"role": "user", "content": GREETING}]
    assert [message["role"] for message in later] == ["system", "user", "assistant", "user"]
    with pytest.raises(EndpointError, match="endpoint model refused to answer as the partner: no"):
        user.answer("Buy {tea}.", [GREETING, "a", "b", "c"])


def test_a_partner_that_does_not_answer_ends_episodes_and_later_the_run() -> None:
    made = EndpointPartner("model", base_url="http://127.0.0.1:1", api_key="none", max_retries=0)
    user = pickle.loads(pickle.dumps(made))  # as in a worker of the pool
    for _ in range(MOST_FAILURES - 1):
        with pytest.raises(ServiceError, match=r"model at http://127\.0\.0\.1:1.*Connection error"):
            user.answer("Buy tea.", [GREETING])
    with pytest.raises(NoDataError, match=r"the partner \(endpoint model\) did not answer 3 calls in a row"):
        user.answer("Buy tea.", [GREETING])


def test_an_endpoint_in_another_process_has_its_own_connection() -> None:
    endpoint = Endpoint("m", base_url="http://127.0.0.1:1", api_key="k", max_retries=0, concurrency=2)
    other = pickle.loads(pickle.dumps(endpoint))
    assert (other.name, str(other.client.base_url)) == ("m", str(endpoint.client.base_url))
    assert other.client is not endpoint.client
    assert other.usage == endpoint.usage


def test_lines_are_said_in_turn_and_the_last_one_again() -> None:
    partner = Lines(["a", "b"])
    dialogue = Dialogue(partner, "")
    assert [dialogue.answer(text) for text in "xyz"] == ["a", "b", "b"]
    assert dialogue.answers == ("a", "b", "b")
    assert partner.name == Lines(["a", "b"]).name != Lines(["a b"]).name
    with pytest.raises(ValueError, match="at least one text, got 'a'"):
        Lines("a")


def test_a_continued_dialogue_does_not_ask_for_known_answers_again() -> None:
    class Counter:
        name = "counter"

        def __init__(self) -> None:
            self.seen: list[tuple[str, ...]] = []

        def answer(self, instruction: str, said: Sequence[str]) -> Any:
            self.seen.append((instruction, *said))
            return "new" if len(self.seen) == 1 else 7

    counter = Counter()
    dialogue = Dialogue(counter, "go", known=("old",))
    assert [dialogue.answer("a"), dialogue.answer("b")] == ["old", "new"]
    assert counter.seen == [("go", "a", "old", "b")]
    with pytest.raises(TypeError, match="the partner counter must answer with a str, got 7"):
        dialogue.answer("c")


@pytest.mark.parametrize("template", [CHATML, NO_SYSTEM])
def test_a_local_partner_answers_the_same_to_the_same_conversation(template: str, tmp_path: Path) -> None:
    policy = random_policy(context=2048)
    policy.tokenizer.chat_template = template
    policy.model.save_pretrained(tmp_path)
    policy.tokenizer.save_pretrained(tmp_path)
    partner = LocalPartner(str(tmp_path), max_tokens=6)
    first = partner.answer("Be kind.", ["Hello"])
    partner.answer("Be kind.", ["Hello", first, "What now?"])
    other = pickle.loads(pickle.dumps(partner))
    assert other.answer("Be kind.", ["Hello"]) == first
    assert LocalPartner(str(tmp_path), max_tokens=6, seed=1).answer("Be kind.", ["Hello"]) != first
    with pytest.raises(ValueError, match="leaves no room for an answer"):
        partner.answer("Be kind. " * 5000, ["Hello"])


def test_wrong_names_are_refused_before_a_model_is_loaded() -> None:
    with pytest.raises(UnknownNameError, match="plain"):
        LocalPartner("nope", template="plane")
