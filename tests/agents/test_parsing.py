"""Actions are parsed from the text of models. A text without an action gives None, never a guess."""

import pytest

from agents.parsing import Json, Line, MetaReasoning, Parser, Tagged, answer_part


@pytest.mark.parametrize(
    ("parser", "text", "action"),
    [
        (Tagged(), "I go. <action> go to desk 1 </action>", "go to desk 1"),
        (Tagged(), "<action>look</action> no: <ACTION>go</ACTION>", "go"),
        (Tagged(), "<action>two\nlines</action>", "two\nlines"),
        (Tagged(tag="do"), "<action>look</action>", None),
        (Tagged(), "<action>look", None),
        (Tagged(), "<action>  </action>", None),
        (Line(), "First I look.\n\n  open door 1  \n", "open door 1"),
        (Line(), " \n", None),
        (Json(), '{"action": "look"}', "look"),
        (Json(), 'Well: {"action": "look"} or {"action": " go "}', "go"),
        (Json(), '<tool_call>\n{"name": "act", "arguments": {"action": "look"}}\n</tool_call>', "look"),
        (Json(), '{"name": "act", "arguments": "{\\"action\\": \\"look\\"}"}', "look"),
        (Json(), '{"thought": {"action": "inner"}, "action": "outer"}', "outer"),
        (Json(), '{broken {"action": "look"}', "look"),
        (Json(key="command"), '{"action": "look"}', None),
        (Json(), '{"action": ["look"]}', None),
        (Json(), '{"arguments": "{"}', None),
        (Json(), '{"action": ""}', None),
        (Json(), "", None),
    ],
)
def test_parsing_gives_an_action_or_none(parser: Parser, text: str, action: str | None) -> None:
    assert parser.parse(text) == action


@pytest.mark.parametrize("parser", [Tagged(), Line(), Json(), MetaReasoning()])
def test_a_written_action_is_parsed_back(parser: Parser) -> None:
    action = 'put a "mug" 1 in/on {desk}'
    assert parser.parse(f"Let me see.\n{parser.write(action)}") == action


@pytest.mark.parametrize(
    ("text", "prefilled", "answer"),
    [
        ("<think>a</think>b", False, "b"),
        ("a</think>b", True, "b"),
        ("<think>a</think>b</think>c", False, "c"),
        ("b", False, "b"),
        ("<think>a", False, None),
        ("a", True, None),
    ],
)
def test_the_answer_is_the_text_after_the_reasoning(text: str, prefilled: bool, answer: str | None) -> None:
    assert answer_part(text, prefilled) == answer
