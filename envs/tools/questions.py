"""Questions with an answer to grade, and the built-in tools to find it with.

A payload has `question` and `answers`; `tables` are what the tool `sql` reads, `corpus` is the file that the tool
`search` finds passages in. With `notes`, the task is solved only if the note pad holds them, and nothing else. `needed`
are values that the solution takes from results: a turn that brings a new one is worth 1. With `named`, policies that
choose from a list are offered answers and notes that results have named so far.

An answer is right if it is the same number, or if it equals a right answer after SQuAD's normalisation.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import MethodType
from typing import Any

from envs.search import polyturn
from envs.search.grading import exact_match, normalize
from envs.search.retrieval import RetrieverSpec, open_retriever
from envs.tools.calculator import calculator
from envs.tools.sandbox import CodeError, SandboxLimits, run_python
from envs.tools.scenario import Reply, Scenario
from envs.tools.tables import Tables, cell, write_rows
from envs.tools.tool import Call, Limits, Result, Tool, ToolError, tool_of

NO_ANSWER = "Nothing was done: call a tool, or write answer[…] or <answer>…</answer>."
MOST_NOTES, MOST_NOTE = 50, 1000  # notes, and characters of one
MOST_NAMED, LONGEST_NAMED = 40, 60  # names that one result adds to the list of answers, and their characters
LONGEST_KEY = 400  # of a state; a longer one is hashed
TOLERANCE = 1e-6  # of numbers, relative
STATEFUL = ("python", "note")  # tools whose order of calls matters
_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?:e[+-]?\d+)?(?![\w])", re.IGNORECASE)


@dataclass(frozen=True)
class _State:
    """Everything that an episode changes."""

    python: bytes | None = None  # the session
    notes: tuple[str, ...] = ()
    named: tuple[str, ...] = ()  # what results have named
    found: frozenset[str] = frozenset()  # of `needed`
    reads: frozenset[str] = frozenset()  # calls that gave a result and changed nothing
    writes: tuple[str, ...] = ()  # those that may have changed something


class Questions(Scenario):
    """One question."""

    instructions = "When you know the answer, write <answer>…</answer> with nothing but the answer inside."

    def __init__(self, payload: Mapping[str, Any], limits: Limits) -> None:
        """Raises `ValueError` for a payload without a question."""
        missing = sorted({"question", "answers"} - set(payload))
        if missing:
            raise ValueError(f"a question needs {' and '.join(missing)} in the task's payload, got {sorted(payload)}")
        self.goal, self.answers = payload["question"], list(payload["answers"])
        self.least_calls = payload.get("least_calls")
        self._needed: Sequence[str] = payload.get("needed", ())
        self._expected_notes: Sequence[str] | None = payload.get("notes")
        self._lists_answers = bool(payload.get("named"))
        self._sandbox = SandboxLimits(seconds=limits.seconds)
        self._tables = Tables(payload["tables"]) if "tables" in payload else None
        self._corpus: str | None = payload.get("corpus")
        self._state = _State()
        methods: dict[str, Any] = {"calculator": self._calculate}
        if self._tables is not None:
            methods["sql"] = self._query
        if self._corpus is not None:
            methods["search"] = self._search
        methods |= {"python": self._run_python, "note": self._note, "read_notes": self._read_notes}
        self._tools = {name: _tool(name, method) for name, method in methods.items()}

    @property
    def tools(self) -> Mapping[str, Tool]:
        return self._tools

    def begin(self) -> str:
        return self.goal if self._tables is None else f"Tables: {self._tables.describe()}\n{self.goal}"

    def reply(self, text: str) -> Reply:
        answer = read_answer(text)
        if answer is None:
            return Reply(NO_ANSWER, signals=self._signals(no_answer=True))
        right = any(is_right(answer, gold) for gold in self.answers or ())
        if right and self._expected_notes is not None:
            right = sorted(map(normalize, self._state.notes)) == sorted(map(normalize, self._expected_notes))
        score = float(right)
        return Reply("Right." if right else "Wrong.", True, score, score, signals=self._signals())

    def called(self, calls: Sequence[tuple[Call, Result]]) -> Reply:
        texts = [(call, result.text) for call, result in calls if not result.is_error]
        new = {
            value for value in self._needed if any(_says(call, text, value) for call, text in texts)
        } - self._state.found
        reads = {_key(call) for call, _ in texts if call.name not in STATEFUL}
        writes = [_key(call) for call, _ in calls if call.name in STATEFUL]
        self._state = replace(
            self._state,
            found=self._state.found | new,
            reads=self._state.reads | reads,
            writes=(*self._state.writes, *writes),
        )
        answer_found = any(_says(call, text, answer) for call, text in texts for answer in self.answers or ())
        return Reply(turn_reward=float(bool(new)), signals=self._signals(len(new), answer_found))

    def _signals(self, new: int = 0, answer_found: bool = False, no_answer: bool = False) -> dict[str, Any]:
        return {"new_needed": new, "answer_found": answer_found, "no_answer": no_answer}

    def state_key(self) -> str:
        key = json.dumps([sorted(self._state.reads), self._state.writes], ensure_ascii=False)
        return key if len(key) <= LONGEST_KEY else hashlib.sha256(key.encode(errors="replace")).hexdigest()

    def admissible(self) -> list[tuple[str, str]]:
        listed = ("answer", "note") if self._lists_answers else ()
        offered = []
        for name, tool in self.tools.items():
            if name not in listed:
                offered.append((name, "".join(f"<{argument}>" for argument in tool.parameters["properties"])))
        if not listed:
            return [*offered, ("answer", "<your answer>")]
        return [*offered, *((name, value) for name in listed for value in self._state.named)]

    def save(self) -> Any:
        return self._state

    def load(self, saved: Any) -> None:
        self._state = saved

    def close(self) -> None:
        if self._tables is not None:
            self._tables.close()

    # -- tools --------------------------------------------------------------------------------------------------------
    def _calculate(self, expression: str) -> str:
        """The value of an arithmetic expression, such as (3 + 4.5) * 2 ** 3.

        Args:
            expression: numbers with + - * / // % ** and parentheses; abs, ceil, cos, exp, floor, gcd, lcm, log, log10,
                log2, max, min, round, sin, sqrt, tan; e and pi
        """
        value = calculator(expression)
        self._naming([value])
        return value

    def _query(self, query: str) -> str:
        """The rows that a SELECT finds in the tables of the task. Nothing can be written.

        Args:
            query: one statement in SQLite's SQL
        """
        assert self._tables is not None
        names, rows = self._tables.query(query)
        self._naming(cell(value) for row in rows for value in row)
        return write_rows(names, rows)

    def _search(self, query: str) -> str:
        """The passages that have most to do with some words.

        Args:
            query: words to find
        """
        assert self._corpus is not None
        [hits] = open_retriever(RetrieverSpec(corpus=Path(self._corpus))).search([query], polyturn.TOP_K)
        self._naming(name for hit in hits for name in hit.passage.names)
        return polyturn.observation([hit.passage for hit in hits])

    def _run_python(self, code: str) -> str:
        """What Python code prints, and the value of its last expression. Variables stay; there are no files.

        Args:
            code: the code; math, re, json, itertools, collections and a few more modules can be imported
        """
        try:
            ran = run_python(code, self._state.python, self._sandbox)
        except CodeError as error:
            self._state = replace(self._state, python=error.state)
            raise
        self._state = replace(self._state, python=ran.state)
        self._naming(ran.text.splitlines()[:MOST_NAMED])
        return ran.text or "(no output)"

    def _note(self, text: str) -> str:
        """Write a note on the note pad.

        Args:
            text: the note
        """
        if len(text) > MOST_NOTE or len(self._state.notes) == MOST_NOTES:
            raise ToolError(f"the note pad holds {MOST_NOTES} notes of {MOST_NOTE:,} characters")
        self._state = replace(self._state, notes=(*self._state.notes, text))
        return "Noted."

    def _read_notes(self) -> str:
        """All notes on the note pad."""
        return "\n".join(self._state.notes) or "(no notes)"

    def _naming(self, names: Iterable[str]) -> None:
        """Add names to the list of answers."""
        fitting = [name for name in dict.fromkeys(names) if name and len(name) <= LONGEST_NAMED][:MOST_NAMED]
        fitting = [name for name in fitting if not set(name) & set("[]<>\n")]
        self._state = replace(self._state, named=tuple(dict.fromkeys([*self._state.named, *fitting])))


def _tool(name: str, method: MethodType) -> Tool:
    """The tool that a method is; what it is called and takes is found out once, as that takes a millisecond."""
    return replace(_described(name, method.__func__), run=method)


@cache
def _described(name: str, function: Callable[..., Any]) -> Tool:
    return replace(tool_of(MethodType(function, object()), name), bounded=True)


def read_answer(text: str) -> str | None:
    """The answer in a message, `answer[…]` or the first `<answer>…</answer>`; None if there is none."""
    if re.match(r"answer\[", text, re.IGNORECASE) and text.endswith("]"):
        return text[len("answer[") : -1].strip()
    _, opened, rest = text.partition("<answer>")
    answer, closed, _ = rest.partition("</answer>")
    return answer.strip() if opened and closed else None


def is_right(answer: str, gold: str) -> bool:
    """Whether an answer is the same number, or the same text after normalisation."""
    number, wanted = _as_number(answer), _as_number(gold)
    if number is not None and wanted is not None:
        return math.isclose(number, wanted, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    return exact_match(answer, gold)


def _as_number(text: str) -> float | None:
    """The number that a text is: 1,324.50 has a comma, and $12 a sign of its unit."""
    try:
        number = float(re.sub(r"(?<=\d),(?=\d{3})|^[$€£]|%$", "", text.strip()))
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _has(text: str, value: str) -> bool:
    """Whether a text says a value: its number, or its words."""
    number = _as_number(value)
    if number is not None:
        return any(math.isclose(float(found), number, rel_tol=TOLERANCE) for found in _NUMBER.findall(text))
    return f" {normalize(value)} " in f" {normalize(text)} "


def _says(call: Call, text: str, value: str) -> bool:
    """Whether a result says a value. Python says its last line: printing all numbers is no way to find one."""
    return is_right(text.rpartition("\n")[2].strip("'"), value) if call.name == "python" else _has(text, value)


def _key(call: Call) -> str:
    return f"{call.name}[{', '.join(map(str, call.arguments.values()))}]"
