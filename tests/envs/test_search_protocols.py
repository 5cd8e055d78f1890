"""Special cases of other projects' protocols. Recordings of their own code are in `test_search_replay`."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.search import grading, igpo, mt_grpo, search_r1, verl_agent
from envs.search.search_r1 import Action

TAGS = ("search", "answer", "think", "information", "tool_call", "code", "tool", "reasoning", "result")
PIECES = [f"<{mark}{tag}>" for tag in TAGS for mark in ("", "/")] + [
    "x",
    " ",
    "\n",
    "<SEARCH>",
    "</ANSWER>",
    "{",
    '"q"',
]
texts = st.lists(st.sampled_from(PIECES)).map("".join)
PROMPT = search_r1.prompt("Who? ")


@given(texts)
def test_no_text_of_a_policy_raises_an_exception(text: str) -> None:
    assert search_r1.parse(search_r1.cut(text)).kind in ("search", "answer", None)
    assert verl_agent.project(text)[0].startswith(("<search>", "<answer>", "")) is True
    assert isinstance(igpo.parse(igpo.OPENING + text).stop, bool)
    assert igpo.score(text, "x") >= igpo.NO_ANSWER
    tools = {"wiki_search": mt_grpo.wiki_search(str)}
    messages = [{"role": "assistant", "content": text}, {"role": "user", "content": mt_grpo.respond(text, tools)}]
    assert 0 <= mt_grpo.grade(messages, ["x"]).outcome_reward <= 1.9
    assert 0 <= search_r1.format_em(PROMPT + text, ["x"]) <= 1


def test_search_r1_needs_two_answers_and_verl_agent_one() -> None:
    response = "<think>t</think><answer>Paris</answer>"
    assert (search_r1.em(response, ["Paris"]), verl_agent.em(response, ["Paris"])) == (0, 1)
    assert search_r1.em(PROMPT + response, ["Paris"]) == 1
    assert search_r1.extract(f"{PROMPT}I refuse.") == "Beijing"
    assert search_r1.extract(f"{PROMPT}I refuse.{search_r1.INVALID}") == "and"


def test_both_grade_an_answer_inside_a_passage() -> None:
    passage = search_r1.observation(Action("search", "q"), ['"T"\n<answer>Paris</answer>'])
    assert search_r1.em(PROMPT + passage, ["Paris"]) == 1
    assert verl_agent.em(verl_agent.information(verl_agent.tool_text("<answer>Paris</answer>")), ["Paris"]) == 1


@pytest.mark.parametrize(
    ("message", "kept", "action"),
    [
        ("<search>a</search> then <answer>b</answer>", "<search>a</search>", Action("search", "a")),
        ("<answer>b</answer><search>a</search>", "<answer>b</answer><search>a</search>", Action("answer", "b")),
        ("</search><search>q</search>", "</search>", Action(None, "")),
        ("<think><search> q </search></think>", "<think><search> q </search>", Action("search", "q")),
        ("<SEARCH>q</SEARCH>", "<SEARCH>q</SEARCH>", Action(None, "")),
    ],
)
def test_search_r1_plays_the_first_pair_of_tags_of_what_is_kept(message: str, kept: str, action: Action) -> None:
    assert search_r1.cut(message) == kept
    assert search_r1.parse(kept) == action


def test_search_r1_writes_plain_text_and_verl_agent_json() -> None:
    contents = ['"Café"\none\ntwo']
    assert search_r1.write_passages(contents) == 'Doc 1(Title: "Café") one\ntwo\n'
    reply = {"result": [[{"document": {"contents": content}} for content in contents]]}
    assert verl_agent.tool_reply(reply) == r'{"result": "Doc 1: \"Caf\u00e9\"\none\ntwo\n"}'
    assert search_r1.observation(Action("search", "q"), []) == "\n\n<information></information>\n\n"
    assert search_r1.observation(Action("answer", "q"), []) == ""
    assert search_r1.observation(Action(None, ""), []) == search_r1.INVALID


@pytest.mark.parametrize(
    ("message", "action", "valid"),
    [
        ("<SEARCH> Q </SEARCH>", "<search>Q</search>", True),
        ("use <search> or: <search>a</search>", "<search>or: <search>a</search>", False),
        ("<search>a</search><answer>b</answer>", "<search>a</search>", False),
        ("nothing", "", False),
    ],
)
def test_verl_agent_plays_invalid_texts_too(message: str, action: str, valid: bool) -> None:
    assert verl_agent.project(message) == (action, valid)


def test_verl_agents_last_turn_does_not_search_and_its_prompt_has_the_last_turns() -> None:
    assert verl_agent.is_last("<search>a</search>", 4, 4)
    assert not verl_agent.is_last("<search>a</search>", 3, 4)
    assert verl_agent.is_last("<answer>a</answer>", 1, 4)
    steps = [verl_agent.Step(f"<search>{n}</search>", f"result {n}") for n in range(6)]
    prompt = verl_agent.prompt("Who {x}?", steps, history=2)
    assert "already taken 6 step(s)" in prompt
    assert "Step 5:<search>4</search> result 4\n\nStep 6:<search>5</search> result 5\n" in prompt
    assert "Step 4:" not in prompt
    assert verl_agent.prompt("Who {x}?", steps, history=0) == verl_agent.PROMPT.replace(
        "{task_description}", "Who {x}?"
    )


@pytest.mark.parametrize(
    ("message", "golds", "right"),
    [
        ("A&E", ["ae"], True), ("a-b", ["ab"], True), ("Vitamin A", "vitamin", True), ("A.", [""], True),
        ("the Beatles", ["Beatles!"], True), ("“x”", ["x"], False), ("x", ["y", "X"], True),
    ],
)  # fmt: skip
def test_normalisation_is_squads(message: str, golds: Any, right: bool) -> None:
    assert grading.exact_match(message, golds) is right


def test_igpo_compares_sets_of_words_and_keeps_articles() -> None:
    def score(answer: str, gold: str) -> float:
        return igpo.score(f"<answer>{answer}</answer>", gold)

    assert score("U.S.A.", "USA") == 0
    assert score("the beatles", "Beatles") == pytest.approx(2 / 3)
    assert score("a a b", "b a") == 1
    assert score("x", "y<|answer_split|>x") == 1
    assert score("", "x") == 0
    assert igpo.score("no answer", "x") == igpo.score("<think><answer>x</answer>", "x") == -2
    page = igpo.observation([{"search_query": "q", "web_page_info_list": [{"title": "<think>"}]}])
    assert igpo.score(f"<think>t</think>{page}<answer>x</answer>", "x") == -2
    assert igpo.belief_answer("x<|answer_split|>y") == "x"
    assert igpo.belief_answer('[{"label": "True"}, {"label": "FALSE"}]') == "false"


@pytest.mark.parametrize(
    ("call", "queries"),
    [
        ({"name": "web_search", "arguments": {"query": ["a", 1, "b", "c"]}}, ["a", "b"]),
        ({"name": "web_search", "arguments": {"query": "a"}}, ["a"]),
        ({"name": "web_search", "arguments": ["a"]}, []),
        ({"name": "browse", "arguments": {}}, None),
    ],
)
def test_igpo_searches_for_up_to_three_texts(call: dict[str, Any], queries: list[str] | None) -> None:
    parsed = igpo.parse(f"<think>t</think><tool_call>{json.dumps(call)}</tool_call>")
    assert parsed == (False, "t", call)
    assert igpo.queries_of(parsed.payload) == queries


@pytest.mark.parametrize("call", ["null", "[]", '["name", "arguments"]', '{"name": "", "arguments": {}}', "[" * 5000])
def test_one_bad_call_ends_igpos_episode(call: str) -> None:
    assert igpo.parse(f"<think>t</think><tool_call>{call}</tool_call>") == (True, "", "")


def test_mt_grpo_plays_one_call_and_counts_what_the_search_reports_as_success() -> None:
    def tool(command: str) -> dict[str, str]:
        return {"role": "assistant", "content": f"<reasoning>r</reasoning><tool>{command}</tool>"}

    def result(text: str) -> dict[str, str]:
        return {"role": "user", "content": f"<result>\n{text}\n</result>"}

    search = json.dumps({"name": "wiki_search", "args": {"query": "q"}})
    assert not mt_grpo.is_over([tool(search)])
    assert mt_grpo.is_over([tool(search), result("x"), tool(search)])
    assert not mt_grpo.is_over([{"role": "assistant", "content": "x"}] * 9)
    assert mt_grpo.grade([tool(search), result("Error during search: x")], []).tool_execution == 0.2
    assert mt_grpo.grade([tool(search), result("Error: x")], []).tool_execution == 0
    assert mt_grpo.grade([tool(search), result("In PARIS")], ["paris"]).turn_reward == 0.7


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("{", "Error: Invalid JSON format"),
        ("[]", "Error: Tool command must be a JSON object"),
        ('{"args": {}}', "Error: Tool command must specify 'name'"),
        ('{"name": "browse"}', "Error: Unknown tool 'browse'"),
        ('{"name": "wiki_search"}', "Error: wiki_search() missing 1 required positional argument: 'query'"),
        ('{"name": "wiki_search", "args": {"q": 1}}', "Error: wiki_search() got an unexpected keyword argument 'q'"),
        ('{"name": "wiki_search", "args": {"query": "up"}}', "UP"),
    ],
)
def test_mt_grpos_errors_are_results(command: str, message: str) -> None:
    tools = {"wiki_search": mt_grpo.wiki_search(str.upper)}
    assert mt_grpo.respond(f"<tool>{command}</tool>", tools) == f"<result>\n{message}\n</result>"
    assert mt_grpo.respond("hello", tools) == mt_grpo.NO_TOOL
    assert mt_grpo.respond(f"<tool>{command}", tools) == mt_grpo.NO_TOOL
