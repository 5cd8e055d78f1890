"""verl-agent's search environment, as GiGPO trains on it: `langfengQ/verl-agent`, read at 29e3e8b3.

Every turn has a prompt of its own, with the last turns as history. An action is cut and rebuilt (`project`), and a
search is executed even if its text was invalid. The last turn never searches. The grade is an exact match of the last
`<answer>` block of the whole conversation, observations included, so a block in a passage counts at the turn limit.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from envs.search.grading import exact_match
from envs.search.search_r1 import cut
from envs.tags import PairedTags

_TASK = (
    "\nYou are an expert agent tasked with answering the given question step-by-step.\n"
    "Your question: {task_description}\n"
)
_HISTORY = (
    "\nPrior to this step, you have already taken {step_count} step(s). Below is the interaction history where "
    "<search> </search> wrapped your past search queries and <information> </information> wrapped the corresponding "
    "search results returned by the external search engine. History:\n{memory_context}\n"
)
_NOW = (
    "\nNow it's your turn to respond for the current step.\n"
    "You should first conduct reasoning process. This process MUST be enclosed within <think> </think> tags. \n"
    "After completing your reasoning, choose only one of the following actions (do not perform both):\n"
    "(1) If you find you lack some knowledge, you can call a search engine to get more external information using "
    "format: <search> your query </search>.\n"
    "(2) If you have enough knowledge to answer the question confidently, provide your final answer within <answer> "
    "</answer> tags, without detailed illustrations. For example, <answer>Beijing</answer>.\n"
)
PROMPT, PROMPT_WITH_HISTORY = _TASK + _NOW, _TASK + _HISTORY + _NOW
MAX_TURNS = 4
HISTORY = 4
TOP_K = 3
NO_RESULTS = "No search results found."
_SEARCH, _ANSWER = (PairedTags(name, ignore_case=True) for name in ("search", "answer"))
_QUERY, _GRADED = PairedTags("search"), PairedTags("answer")


class Step(NamedTuple):
    """A turn that was played: the projected action and the observation, without blanks around it."""

    action: str
    observation: str


def prompt(question: str, steps: Sequence[Step], history: int = HISTORY) -> str:
    """The prompt of the next turn, with the last `history` turns."""
    if not steps or history <= 0:
        return PROMPT.replace("{task_description}", question)
    first = max(0, len(steps) - history)
    lines = [
        f"Step {number}:{step.action} {step.observation}\n"
        for number, step in enumerate(steps[first:], start=first + 1)
    ]
    return PROMPT_WITH_HISTORY.format(task_description=question, step_count=len(steps), memory_context="\n".join(lines))


def project(text: str) -> tuple[str, bool]:
    """The action in a completion ("" if there is none), and whether the text is valid."""
    kept = cut(text)
    searches, answers = (len(re.findall(f"<{tag}>", text, re.IGNORECASE)) for tag in ("search", "answer"))
    once = not (searches and answers) and searches <= 1 and answers <= 1
    if found := _SEARCH.search(kept):
        return f"<search>{found.content.strip()}</search>", once
    if found := _ANSWER.search(kept):
        return f"<answer>{found.content.strip()}</answer>", once
    return "", False


def query_of(action: str) -> str | None:
    """The query of a projected action; None if there is none."""
    found = _QUERY.search(action)
    return found.content.strip() if found else None


def is_last(action: str, turn: int, max_turns: int) -> bool:
    """Whether the episode ends with this action, which is then not executed."""
    return turn >= max_turns or ("<answer>" in action and "</answer>" in action)


def write_passages(contents: Sequence[str]) -> str:
    """The passages as text."""
    return "".join(f"Doc {number}: {content.strip()}\n" for number, content in enumerate(contents, start=1))


def tool_text(result: str) -> str:
    """What its search tool returns."""
    return json.dumps({"result": result})


def tool_reply(reply: Any) -> str:
    """What its search tool returns for a server's reply."""
    if not reply:
        return tool_text("Unknown API state (no response and no error message).")
    try:
        results = reply.get("result", [])
        lists = [write_passages([entry["document"]["contents"] for entry in entries]) for entries in results]
        return tool_text("\n---\n".join(lists) if results else NO_RESULTS)
    except Exception as error:  # its text is shown
        return tool_text(f"Error processing search results: {error}")


def information(text: str) -> str:
    """The observation of a search."""
    return f"\n<information>{text}</information>\n"


def extract(conversation: str) -> str | None:
    """The last answer in the texts of all turns, joined."""
    found = _GRADED.findall(conversation)
    return found[-1].content.strip() if found else None


def em(conversation: str, golds: Sequence[str] | str) -> float:
    """1 for a right answer, otherwise 0."""
    answer = extract(conversation)
    return float(answer is not None and exact_match(answer, golds))


def request(query: str, k: int) -> dict[str, Any]:
    """The body that its search tool sends."""
    return {"query": query, "topk": k, "return_scores": True}


def http_error(status: int) -> str:
    """The text of its search tool for a status that is not 200; some are tried again, ten times in all."""
    if status in (500, 502, 503, 504):
        return f"API Request Error: Server Error ({status}) on attempt 10/10"
    return f"API Request Error: {status} {'Client' if status < 500 else 'Server'} Error"
