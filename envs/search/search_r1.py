"""Search-R1 (Jin et al. 2025, arXiv 2503.09516): `PeterGriffinJin/Search-R1` at a14dc3a.

The whole conversation is one growing text. A completion is cut after its first `</search>`, otherwise after its first
`</answer>`; what follows is thrown away. Grades are computed from prompt and response together: two `<answer>` blocks
are needed, and the last one counts, wherever it stands. The prompt has two itself, so an episode without an answer is
graded as "Beijing"; after a message about an invalid action as "and"; and a block in a passage is graded, too.

`max_turns` turns may search; one more generation follows, whose search finds nothing. Left to the player: passages are
cut at 500 tokens and prompts keep their last 4,096 tokens there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from envs.search.grading import contains_match, exact_match, normalize
from envs.tags import PairedTags

PROMPT = (
    "Answer the given question. You must conduct reasoning inside <think> and </think> first every time you get new "
    "information. After reasoning, if you find you lack some knowledge, you can call a search engine by <search> query "
    "</search> and it will return the top searched results between <information> and </information>. You can search as "
    "many times as your want. If you find no further external knowledge needed, you can directly provide the answer "
    "inside <answer> and </answer>, without detailed illustrations. For example, <answer> Beijing </answer>. Question: "
    "{q}\n"
)
INVALID = (
    "\nMy previous action is invalid. If I want to search, I should put the query between <search> and </search>. If I "
    "want to give the final answer, I should put the answer between <answer> and </answer>. Let me try again.\n"
)
MAX_TURNS = 4  # of its scripts for NQ and HotpotQA
TOP_K = 3
_ACTION = PairedTags("search", "answer")
_ANSWER = PairedTags("answer")
_INFORMATION = PairedTags("information")
_TAG = re.compile(r"(</?(?:think|search|information|answer)>)")
_MOVES = {  # state and tag -> next state, of a well-formed response
    ("start", "<think>"): "in_think",
    ("information", "<think>"): "in_think",
    ("in_think", "</think>"): "after_think",
    ("after_think", "<search>"): "in_search",
    ("in_search", "</search>"): "after_search",
    ("after_search", "<information>"): "in_information",
    ("in_information", "</information>"): "information",
    ("after_think", "<answer>"): "in_answer",
    ("in_answer", "</answer>"): "end",
}


class Action(NamedTuple):
    """`kind` is "search", "answer", or None for an invalid action."""

    kind: str | None
    content: str


def prompt(question: str) -> str:
    """The message of the user."""
    question = question.strip()
    return PROMPT.replace("{q}", question if question.endswith("?") else f"{question}?")


def cut(response: str) -> str:
    """The part of a completion that is kept."""
    for end in ("</search>", "</answer>"):
        before, found, _ = response.partition(end)
        if found:
            return before + end
    return response


def parse(response: str) -> Action:
    """The action of a completion that was cut: the first pair of tags."""
    found = _ACTION.search(response)
    return Action(found.name, found.content.strip()) if found else Action(None, "")


def write_passages(contents: Sequence[str]) -> str:
    """The passages as text; the title is the first line of the contents."""
    lines = []
    for number, content in enumerate(contents, start=1):
        title, _, text = content.partition("\n")
        lines.append(f"Doc {number}(Title: {title}) {text}\n")
    return "".join(lines)


def information(passages: str) -> str:
    """The observation of a search."""
    return f"\n\n<information>{passages.strip()}</information>\n\n"


def observation(action: Action, contents: Sequence[str]) -> str:
    """What follows an action; `contents` are those of the passages that a search found."""
    if action.kind == "search":
        return information(write_passages(contents))
    return "" if action.kind == "answer" else INVALID


# -- grades -----------------------------------------------------------------------------------------------------------
def extract(solution: str) -> str | None:
    """The answer in prompt and response: the last of two blocks or more."""
    found = _ANSWER.findall(solution)
    return found[-1].content.strip() if len(found) > 1 else None


def em(solution: str, golds: Sequence[str] | str, format_score: float = 0.0) -> float:
    """1 for a right answer, `format_score` for a wrong one, 0 without an answer."""
    answer = extract(solution)
    return 0.0 if answer is None else 1.0 if exact_match(answer, golds) else format_score


def sub_em(solution: str, golds: Sequence[str] | str, format_score: float = 0.0) -> float:
    """As `em`, with an answer right that contains a right one."""
    answer = extract(solution)
    return 0.0 if answer is None else 1.0 if contains_match(answer, golds) else format_score


def check_format(solution: str) -> tuple[bool, str]:
    """Whether the response is (think search information)* think answer, and the reason."""
    found = re.search(r"<\|im_start\|>assistant\s*", solution)
    if not found:
        return False, "Missing assistant marker"
    content = solution[found.end() :]
    for tag in ("think", "search", "information", "answer"):
        opening, closing = content.count(f"<{tag}>"), content.count(f"</{tag}>")
        if opening != closing:
            return False, f"Mismatch in {tag} tags: {opening} opening vs {closing} closing tags"
    state = "start"
    for part in _TAG.split(content):
        if not part.strip():
            continue
        if _TAG.match(part):
            following = _MOVES.get((state, part))
            if following is None:
                return False, f"Unexpected tag {part} in state {state}"
            state = following
        elif state == "end":
            return False, f"Unexpected content in state {state}"
        elif not state.startswith("in_"):
            return False, f"Unexpected content '{part.strip()}' between tags (state: {state})"
    return (
        (True, "Valid sequence format") if state == "end" else (False, f"Incomplete sequence, ended in state {state}")
    )


def information_blocks(solution: str) -> list[str]:
    """The contents of all information blocks."""
    return [block.content.strip() for block in _INFORMATION.findall(solution)]


def format_em(
    solution: str, golds: Sequence[str] | str, structure: float = 0.2, final: float = 0.1, retrieval: float = 0.0
) -> float:
    """The grade of its version 0.3, which looks at the format too; the defaults are those of its scripts."""
    valid, _ = check_format(solution)
    answer = extract(solution)
    if answer is not None and exact_match(answer, golds):
        return 1.0 if valid else 1.0 - structure
    if not valid:
        return 0.0 if answer is None else final
    # A single right answer as text is taken apart into its characters there.
    blocks = [normalize(block) for block in information_blocks(solution)]
    found = any(normalize(gold) in block for block in blocks for gold in golds)
    return structure + retrieval if found else structure
