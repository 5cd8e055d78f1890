"""The texts of policies are parsed in linear time."""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.parsing import MOST_BROKEN, Json, Tagged, json_objects
from agents.prompts import WebShopTemplate
from agents.ragen import Ragen
from agents.tool_chat import MOST_CALLS, Syntax, read_calls
from envs.search import igpo, search_r1
from envs.search.dialogue import PROTOCOLS, Dialogue
from envs.textcraft.protocols import AgentGym
from envs.tools.calls import FORMATS

LENGTH = 400_000
TAGS = ("search", "answer", "think", "tool", "tool_call", "action", "result")
SIGNS = ["<tool></tool>", "<tool_call>[]", "<", "\n", '{"a":', '{"', "[],", "Action: "]
REPEATED = [*(f"<{tag}>" for tag in TAGS), *SIGNS]
MARKED, BARE = Syntax("<tool_call>", "</tool_call>", "name", "arguments"), Syntax("", "", "name", "parameters")


def _play(name: str) -> Callable[[str], Any]:
    def play(text: str) -> Any:
        return PROTOCOLS[name].play(Dialogue("Who?", ("Ann",), 4), text, lambda queries: [[] for _ in queries])

    return play


READERS: dict[str, Callable[[str], Any]] = {
    **{name: _play(name) for name in PROTOCOLS},
    **{name: lambda text, form=form: form.parse(text, {}) for name, form in FORMATS.items()},
    "grades": lambda text: (search_r1.format_em(text, ["a"]), igpo.score(text, "a")),
    "tagged": Tagged().parse,
    "json objects": Json().parse,
    "webshop": WebShopTemplate().parse,
    "ragen": Ragen("sokoban").parse,
    "textcraft": AgentGym().read,
    "calls with marks": lambda text: read_calls(text, MARKED),
    "calls without": lambda text: read_calls(text, BARE),
}


@pytest.mark.timeout(120)  # hours, if every tag looked for its end
@pytest.mark.parametrize("name", READERS)
def test_a_long_text_is_read(name: str) -> None:
    for piece in REPEATED:
        READERS[name](piece * (LENGTH // len(piece)))
    for tag in TAGS:
        READERS[name](f"<{tag}>" * 20_000 + f"</{tag}>" * 20_000)


PIECES = ["<think>", "</think>", "<answer>", "</answer>", "a", " ", "\n", "||"]


@given(text=st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
def test_ragens_answers_are_those_of_its_pattern(text: str) -> None:
    found = re.search(r"<think>(.*?)</think>\s*<answer>(.*?)</answer>", text, re.DOTALL)
    said, actions = Ragen("sokoban", actions_per_turn=20).split(text)
    if found is None:
        assert (said, actions) == (text, [])
    else:
        answer = found[2]
        for mark in ("<think>", "</think>", "<answer>", "</answer>"):
            answer = answer.replace(mark, "").strip()
        assert actions == [part.strip() for part in answer.split("||") if part.strip()]


def _one_by_one(text: str) -> Iterator[Any]:
    place, decoder = text.find("{"), json.JSONDecoder()
    while place >= 0:
        try:
            value, end = decoder.raw_decode(text, place)
        except json.JSONDecodeError:
            end = place + 1
        else:
            yield value
        place = text.find("{", end)


OBJECTS = ["{", "}", '"a"', ":", "1", ",", "[", "]", " ", "\n", '{"a":1}', '{"a":{"b":2}}', "x"]


@given(text=st.lists(st.sampled_from(OBJECTS), max_size=14).map("".join))
def test_objects_are_those_that_begin_at_any_brace(text: str) -> None:
    assert list(json_objects(text)) == list(_one_by_one(text))


def test_text_that_is_not_valid_json_is_not_an_object() -> None:
    assert list(json_objects('{"a":' + "9" * 5000 + '} {"a":' * 3 + "1} " + '{"b": 2}')) == [{"a": 1}, {"b": 2}]
    assert list(json_objects('{"a":' * 100_000)) == []
    assert Json().parse(json.dumps({"arguments": "9" * 5000})) is None
    assert list(json_objects('{"a" ' * MOST_BROKEN + '{"b": 2}')) == []


VALUES = ['{"name": "f"}', "[]", "[1]", "null", "1", ",", ";", " ", "x", "<tool_call>", "</tool_call>"]


def _calls_by_parts(text: str) -> list[Any]:
    """The calls of a text in which what is left is cut off again and again."""
    calls: list[Any] = []
    _, mark, rest = text.partition("<tool_call>")
    while mark:
        try:
            value, end = json.JSONDecoder().raw_decode(rest, len(rest) - len(rest.lstrip()))
        except ValueError:
            value, end = None, 0
        if value is None:
            part = rest.partition("<tool_call>")[0].partition("</tool_call>")[0]
            calls.append(part.strip())
            end = len(part)
        else:
            calls += value if isinstance(value, list) else [value]
        _, mark, rest = rest[end:].partition("<tool_call>")
    return calls


@given(text=st.lists(st.sampled_from(VALUES), max_size=10).map("".join))
def test_calls_behind_marks_are_all_read(text: str) -> None:
    assert read_calls(text, MARKED) == _calls_by_parts(text)


def test_values_in_a_row_are_calls() -> None:
    assert read_calls(' {"a": 1} ;, {"a": 2},\n[3, 4] ', BARE) == [{"a": 1}, {"a": 2}, 3, 4]
    assert read_calls('{"a": 1} and more', BARE) == [{"a": 1}, "and more"]
    assert len(read_calls('{"a": 1}' * 1000, BARE)) == MOST_CALLS
