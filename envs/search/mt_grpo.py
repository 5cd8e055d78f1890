"""MT-GRPO's search tool (Zeng et al. 2025, arXiv 2505.11821): `SiliangZeng/Multi-Turn-RL-Agent` at 7dbdd08.

The prompt asks for one search and an answer. At most two messages with a tool call are played, and the second one is
not executed; messages without a tool are not limited. A search returns one whole article. An error of the search
itself ("Error during search: …") counts as a successful call, as only texts that begin with "Error:" do not.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from envs.tags import PairedTags

TOOL = "wiki_search: Searches Wikipedia and returns the top matching article content.\n\nArguments:\n  - query: "
SYSTEM = f"""\
You have access to the following tools to help solve problems:

{TOOL}

Follow these steps exactly once:
1. Think through your reasoning inside <reasoning> tags
2. Use a tool by writing a JSON command inside <tool> tags with:
   - "name": the tool to use
   - "args": the arguments for the tool
3. You will see the tool's output inside <result> tags
4. Think through the tool's output inside <reasoning> tags
5. Based on your reasoning, provide your final answer inside <answer> tags

Important:
- Use the tool exactly once - DO NOT attempt to call the tool again even if the first search doesn't give helpful results
- You must work with both your prior knowledge and whatever information the single tool call provides
- If the tool doesn't return useful information, rely on your prior knowledge to answer
- Tools expect specific JSON input formats. Follow the examples carefully
- Do not make up tools or arguments that aren't listed
- After getting the tool result, analyze it in a reasoning step before giving your answer
- Your answer should match the expected ground-truth
"""  # noqa: E501 - character for character
NO_TOOL = "Error: Tool command not found or invalid XML format. Please ensure correct formatting."
EMPTY = "Error: Tool execution returned empty output."
NOTHING_FOUND = "No relevant Wikipedia content found."
MAX_CALLS = 2  # messages with a tool call
TOP_K = 1
_FIELDS = (("reasoning",), ("tool", "answer"))  # sets of tags, one of each of which is expected in a message

Message = Mapping[str, str]  # {"role": "assistant" or "user", "content": "…"}


class Parsed(NamedTuple):
    """The fields of a message, without blanks around them; None for a missing one."""

    reasoning: str | None
    tool: str | None
    answer: str | None


class Grades(NamedTuple):
    """The rewards of a conversation; the first two are of its turn with the tool."""

    tool_execution: float
    answer_in_search_results: float
    answer_contains_gold: float
    exact_match: float
    format: float
    xml: float

    @property
    def turn_reward(self) -> float:
        """At most 0.7."""
        return self.tool_execution + self.answer_in_search_results

    @property
    def outcome_reward(self) -> float:
        """At most 1.9."""
        return self.answer_contains_gold + self.exact_match + self.format + self.xml


def prompt(question: str) -> str:
    """The message of the user."""
    return f"Question: {question}\n"


def field(text: str, tag: str) -> str | None:
    """The content of the first pair of tags."""
    found = PairedTags(tag).search(text)
    return found.content.strip() if found else None


def parse(text: str) -> Parsed:
    """The fields of a message of the assistant."""
    return Parsed(field(text, "reasoning"), field(text, "tool"), field(text, "answer"))


def call_tool(command: str, tools: Mapping[str, Callable[..., str]]) -> str:
    """What a tool command returns: the tool's text, or an error."""
    try:
        call = json.loads(command)
        if not isinstance(call, dict):
            return "Error: Tool command must be a JSON object"
        name = call.get("name")
        if not name:
            return "Error: Tool command must specify 'name'"
        if name not in tools:
            return f"Error: Unknown tool '{name}'"
        return str(tools[name](**call.get("args", {})))
    except json.JSONDecodeError:
        return "Error: Invalid JSON format"
    except Exception as error:  # its text is shown
        return f"Error: {error}"


def wiki_search(find: Callable[[str], str]) -> Callable[..., str]:
    """The tool, whose articles come from `find`. Errors of its arguments name the function as there."""

    def tool(query: str) -> str:
        return find(query)

    tool.__name__ = tool.__qualname__ = "wiki_search"
    tool.__module__ = "verifiers.tools.local_wiki_search"
    return tool


def is_over(messages: Sequence[Message]) -> bool:
    """Whether the conversation ends with its last message."""
    calls = sum(parse(m["content"]).tool is not None for m in messages if m["role"] == "assistant")
    return calls >= MAX_CALLS or parse(messages[-1]["content"]).answer is not None


def respond(text: str, tools: Mapping[str, Callable[..., str]]) -> str:
    """The message that follows one of the assistant."""
    command = parse(text).tool
    if command is None:
        return NO_TOOL
    result = call_tool(command, tools)
    return f"<result>\n{result}\n</result>" if result.strip() else EMPTY


# -- grades -----------------------------------------------------------------------------------------------------------
def grade(messages: Sequence[Message], golds: Sequence[Any] | str) -> Grades:
    """All rewards. `golds` are lower-case aliases; a single text is taken apart into its characters there."""
    said = [message["content"] for message in messages if message["role"] == "assistant"]
    results = [
        field(after["content"], "result")
        for message, after in pairwise(messages)
        if message["role"] == "assistant" and after["role"] == "user" and parse(message["content"]).tool is not None
    ]
    executed = sum(result is not None and not result.startswith("Error:") for result in results)
    first = next((result for result in results if result is not None), None)
    answers = [answer for text in said if (answer := parse(text).answer) is not None]
    answer = answers[-1].lower() if answers else None
    wanted = [str(gold).lower() for gold in golds]
    return Grades(
        tool_execution=0.2 * (executed / len(results)) if results else 0.0,
        answer_in_search_results=0.5 if first is not None and any(g in first.lower() for g in wanted) else 0.0,
        answer_contains_gold=0.5 if answer is not None and any(gold in answer for gold in wanted) else 0.0,
        exact_match=float(answer is not None and answer.strip() in [gold.strip() for gold in wanted]),
        format=0.2 * _mean([_format(text) for text in said]),
        xml=max(0.0, 0.2 * _mean([_xml(text) for text in said])),
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _format(text: str) -> float:
    """Fields that are there, and where the message begins and ends."""
    parsed = parse(text)
    whole = any(value is not None for value in parsed)
    present = sum(any(_tags(text, tag) != (0, 0) for tag in tags) for tags in _FIELDS)
    score = 0.4 * (present / len(_FIELDS)) if whole else 0.0
    score += 0.2  # for spacing, which is never wrong
    score += 0.2 * any(text.strip().startswith(f"<{tag}>") for tag in _FIELDS[0])
    return score + 0.2 * any(text.strip().endswith(f"</{tag}>") for tag in _FIELDS[-1])


def _xml(text: str) -> float:
    """How often tags are opened and closed exactly once."""
    counts = [count for tags in _FIELDS for tag in tags if _tags(text, tag) != (0, 0) for count in _tags(text, tag)]
    return _mean([1 - abs(count - 1) for count in counts])


def _tags(text: str, tag: str) -> tuple[int, int]:
    return text.count(f"<{tag}>"), text.count(f"</{tag}>")
