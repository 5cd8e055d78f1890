"""IGPO (Wang et al. 2025, arXiv 2510.14967): the authors' state 745078b, read through `debajoycs98/IGPO`.

A completion begins after a literal `<think>`. One malformed call ends the episode. The grade is the F1 of word sets
against the best right answer; it is -2 without an answer and for unbalanced tags, which are counted in the whole text,
observations included, so that a `<think>` in a web page costs the agent 2. Normalisation is not SQuAD's: punctuation
becomes blanks, articles stay, repeated words count once.
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Sequence
from typing import Any, NamedTuple

from envs.tags import PairedTags

SYSTEM = """\
## Background information 
* Today is {today}
* You are Deep AI Research Assistant

The question I give you is a complex question that requires a *deep research* to answer.
I will provide you with tools to help you answer the question:
- web_search: Search the web for information using Google or Bing.

You don't have to answer the question now, but you should first think about the research plan or what to search next.
Your output format should be one of the following two formats:

<think>
YOUR THINKING PROCESS
</think>
<answer>
YOUR ANSWER AFTER GETTING ENOUGH INFORMATION
</answer>

or

<think>
YOUR THINKING PROCESS
</think>
<tool_call>
YOUR TOOL CALL WITH CORRECT FORMAT
</tool_call>

You should always follow the above two formats strictly.
Only output the final answer (in words, numbers or phrase) inside the <answer></answer> tag, without any explanations or extra information. If this is a yes-or-no question, you should only answer yes or no.


# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
  {tools}
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call>"""  # noqa: E501, W291 - character for character
TOOLS = (
    '{"type": "function", "function": {"name": "web_search", "description": "Search the web for information using '
    'Google or Bing.", "parameters": {"type": "object", "properties": {"query": {"type": "array", "items": {"type": '
    '"string"}, "description": "A list of search queries (1-3 queries recommended)"}}, "example": {"query": ["What is '
    'the capital of France?", "Paris population 2024"]}, "uniqueItems": true}}}'
)
TODAY = "2026-02-23"  # theirs is the date of the run
OPENING = "<think>"  # stands before each completion
MAX_TURNS = 10
TOP_K = 5  # results of a query
MOST_QUERIES = 3
SPLIT = "<|answer_split|>"  # between right answers
NO_ANSWER = -2.0
# What is written around a right answer to measure how likely it is.
BELIEF = ("\nNow there's enough information to answer\n</think>\n<answer>\n", "\n</answer><|im_end|>")
LABELLED = ("Factbench", "politifact", "liar2")  # sets whose right answers are JSON lists of labels
_TAGS = ("code", "tool_call", "think", "answer")
_ANSWER = PairedTags("answer")
_BLANKS = str.maketrans(string.punctuation, " " * len(string.punctuation))


class Parsed(NamedTuple):
    """`payload` is the answer, or the tool call as a dict; with `stop`, the episode ends."""

    stop: bool
    think: str
    payload: Any


def system(today: str = TODAY) -> str:
    """The message of the system."""
    return SYSTEM.replace("{today}", today).replace("{tools}", TOOLS)


def parse(text: str) -> Parsed:
    """Reads a completion, `<think>` included."""
    ended = Parsed(True, "", "")
    if "</think>" not in text:
        return ended
    think = _between(text, "think")
    if "<answer>" in text:
        return Parsed(True, think, _between(text, "answer")) if "</answer>" in text else ended
    if "<tool_call>" not in text or "</tool_call>" not in text:
        return ended
    try:
        call = json.loads(_between(text, "tool_call"))
        # Membership as there: a list or a text may hold these words too, and fails at the name then.
        valid = "name" in call and "arguments" in call and call["name"] != ""
    except (ValueError, TypeError, LookupError, RecursionError):
        return ended
    return Parsed(False, think, call) if valid else ended


def _between(text: str, tag: str) -> str:
    """What follows the first opening tag, up to a closing one."""
    return text.split(f"<{tag}>")[1].split(f"</{tag}>")[0]


def queries_of(call: Any) -> list[str] | None:
    """The queries of a tool call; None for a tool that does not exist."""
    if call["name"] != "web_search":
        return None
    arguments = call["arguments"]
    asked = arguments.get("query", []) if isinstance(arguments, dict) else []
    asked = [asked] if isinstance(asked, str) else asked if isinstance(asked, list) else []
    return [query for query in asked[:MOST_QUERIES] if isinstance(query, str)]


def tool_content(call: Any, pages: Sequence[Sequence[dict[str, str]]]) -> list[dict[str, Any]] | str:
    """What the tool returns; `pages` are the results of each query, with title, url and quick_summary."""
    queries = queries_of(call)
    if queries is None:
        return f"Unknown tool: {call['name']}"
    return [
        {"search_query": query, "web_page_info_list": list(found[:TOP_K])}
        for query, found in zip(queries, pages, strict=True)
    ]


def observation(content: list[dict[str, Any]] | str) -> str:
    """The message of the tool. The chat template prints the list as Python does."""
    return f"<tool_response>\n{content}\n</tool_response>"


# -- grades -----------------------------------------------------------------------------------------------------------
def is_balanced(text: str) -> bool:
    """Whether each tag is opened as often as closed, and no search for the end of an opening tag fails."""
    for tag in _TAGS:
        opening, closing = f"<{tag}>", f"</{tag}>"
        if text.count(opening) != text.count(closing):
            return False
        place = -1
        while (start := text.find(opening, place + 1)) >= 0:
            place = text.find(closing, start)
            if place < 0:
                return False
    return True


def clean(text: str) -> str:
    """Punctuation becomes blanks; blanks become one."""
    return re.sub(r"\s+", " ", text.translate(_BLANKS)).strip()


def label_of(ground_truth: str) -> str:
    """The right answer of a JSON list of labels: "false" if one of them is. Raises what reading it raises."""
    return "false" if any(item["label"].lower() == "false" for item in json.loads(ground_truth)) else "true"


def score(solution: str, ground_truth: str, data_source: str = "", kind: str = "f1") -> float:
    """The grade of a whole conversation; `kind` is "f1", "em", or "noformatf1", which is 0 where others are -2."""
    if data_source in LABELLED:
        ground_truth = label_of(ground_truth)
    solution = solution.lower()
    found = _ANSWER.search(solution) if is_balanced(solution) else None
    if not found:
        return 0.0 if kind == "noformatf1" else NO_ANSWER
    answer = clean(found.content.strip())
    golds = [clean(gold) for gold in ground_truth.lower().split(SPLIT)]
    return float(answer in golds) if kind == "em" else max(_f1(answer, gold) for gold in golds)


def _f1(answer: str, gold: str) -> float:
    said, wanted = set(answer.split()), set(gold.split())
    common = len(said & wanted)
    if not common:
        return 0.0
    precision, recall = common / len(said), common / len(wanted)
    return 2 * (precision * recall) / (precision + recall)


def belief_answer(ground_truth: str) -> str:
    """The answer whose probability is measured: the first one, or the label.

    Their training grades against this one alone, too, as it replaces the others in the same record.
    """
    first = ground_truth.split(SPLIT)[0]
    if not first.strip().startswith("["):
        return first
    return label_of(first.strip())


def place(solution: str, gains: Sequence[float], grade: float) -> list[tuple[int, float]]:
    """Where the rewards of a conversation stand: (character, reward) pairs, at the last character of each turn.

    A gain of exactly 0 becomes 1e-10, as its later readers skip zeros. If the gains are not one fewer than the turns,
    only the grade is placed.
    """
    if not solution:
        return []
    separator = "\n<|im_start|>assistant\n"
    starts = [found.start() for found in re.finditer(re.escape(separator), solution)]
    ends = [*(start for start in starts if start > 0), len(solution)]
    if not gains or len(ends) == 1 or len(gains) != len(ends) - 1:
        return [(len(solution) - 1, grade)]
    values = [*(gain or 1e-10 for gain in gains), grade]
    return [(end - 1, value) for end, value in zip(ends, values, strict=True)]
