"""A conversation of BFCL multi-turn as a scenario: the user says several things, one after the other.

    Move 'final_report.pdf' within document directory to 'temp' directory …
    > <tool>{"name": "cd", "arguments": {"folder": "document"}}</tool>
    <result>{"current_working_directory": "document"}</result>
    > The report is in 'temp'.
    Perform a detailed search using grep to identify sections in the file …

A message without calls ends the user's turn, whatever it says, and the turn is judged: `info["turn_reward"]` is 1.0 if
it is right. A turn that is wrong, or takes more than `MOST_STEPS` messages with calls, ends the task. The task is
solved if all turns are right; `info["score"]` is the share of them that are. `info["signals"]` has `turn_ended`, and in
`wrong` the kind of error.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import partial
from typing import Any

from envs.core import UnknownNameError
from envs.tools.bfcl import MOST_STEPS, BfclTask, Grader, Verdict, function_docs, read_tasks
from envs.tools.scenario import Reply, Scenario
from envs.tools.tool import Call, Limits, Result, Tool

TOO_LONG = Verdict(False, "multi_turn:force_terminated", f"more than {MOST_STEPS} messages with calls in a user turn")


class _Function(Tool):
    """A function whose simulator checks its arguments: errors read as the official ones, and some wrong types pass."""

    def check(self, arguments: Mapping[str, Any]) -> None:
        pass


class Conversation(Scenario):
    """Plays the task `id` of the set `set`."""

    instructions = (
        "At each turn, complete the user's request within the turn. Call functions until it is fulfilled. Once there "
        "is nothing more to call, answer without a call: the turn is then complete, and the user goes on."
    )

    def __init__(self, payload: Mapping[str, Any], limits: Limits) -> None:  # noqa: ARG002 - no call takes long
        if not {"set", "id"} <= set(payload):
            raise ValueError(f"a conversation of BFCL needs a 'set' and an 'id', got a payload with {sorted(payload)}")
        tasks = read_tasks(payload["set"])
        if payload["id"] not in tasks:
            raise UnknownNameError("task of BFCL", payload["id"], tasks)
        self._task = tasks[payload["id"]]
        self.goal = self._task.user_turns[0]
        self._grader = Grader(self._task)
        self._steps = 0  # messages with calls in this user turn
        self._calls = 0  # in this user turn
        self._log: list[tuple[str, dict[str, Any]] | None] = []  # all calls, and None where a turn ended
        self._functions = {
            name: _Function(name, doc["description"], doc["parameters"], partial(self._run, name), bounded=True)
            for class_name in self._task.classes
            for name, doc in function_docs(class_name).items()
        }

    def _run(self, name: str, /, **arguments: Any) -> str:
        self._log.append((name, deepcopy(arguments)))
        return self._grader.call(name, **deepcopy(arguments))  # simulators keep and change what they are given

    def begin(self) -> str:
        return self._task.user_turns[0]

    @property
    def tools(self) -> Mapping[str, Tool]:
        return {name: self._functions[name] for name in shown_functions(self._task, self._grader.turn)}

    @property
    def callable_tools(self) -> Mapping[str, Tool]:
        """The simulators also accept functions that are left out."""
        return self._functions

    def called(self, calls: Sequence[tuple[Call, Result]]) -> Reply:
        self._steps += 1
        self._calls += len(calls)
        if self._steps > MOST_STEPS:
            return self._wrong(TOO_LONG)
        failed = sum(result.text.startswith("Error") for _, result in calls)
        signals = {"turn_ended": False, "wrong": "", "errors": failed}
        return Reply(score=self._score(self._grader.turn), signals=signals)

    def reply(self, text: str) -> Reply:  # noqa: ARG002 - what it says is not judged
        grader = self._grader
        self._log.append(None)
        verdict = grader.end_turn(is_silent=not self._calls)
        if not verdict.valid:
            return self._wrong(verdict)
        self._steps = self._calls = 0
        done = grader.turn == len(self._task.user_turns)
        return Reply(
            text="" if done else self._task.user_turns[grader.turn],
            done=done,
            reward=float(done),
            score=self._score(grader.turn),
            turn_reward=float(bool(self._task.ground_truth[grader.turn - 1])),
            signals={"turn_ended": True, "wrong": ""},
        )

    def _wrong(self, verdict: Verdict) -> Reply:
        right = self._grader.turn - (verdict is not TOO_LONG)
        signals = {"turn_ended": True, "wrong": verdict.error_type.removeprefix("multi_turn:")}
        return Reply(text=verdict.error_message, done=True, score=self._score(right), signals=signals)

    def _score(self, right: int) -> float:
        return right / len(self._task.user_turns)

    def state_key(self) -> str:
        """The turn, the state of all simulators, and all results so far, which a verdict may rest on."""
        grader = self._grader
        seen = repr((grader.policy.key(), sorted(grader.results)))
        return f"turn {grader.turn}: {hashlib.sha256(seen.encode()).hexdigest()[:16]}"

    def save(self) -> Any:
        return tuple(self._log), self._steps, self._calls

    def load(self, saved: Any) -> None:
        """Plays the calls again: simulators draw from generators with fixed seeds."""
        log, self._steps, self._calls = saved
        self._log, self._grader = list(log), Grader(self._task)
        for played in log:
            if played is None:
                self._grader.end_turn(is_silent=False)
            else:
                self._grader.call(played[0], **deepcopy(played[1]))


def shown_functions(task: BfclTask, turn: int) -> list[str]:
    """The names of the functions that the user offers in a turn; those that are added come last."""
    every = [name for class_name in task.classes for name in function_docs(class_name)]
    late = {name for names in task.added.values() for name in names}
    added = [name for when, names in sorted(task.added.items()) if when <= turn for name in names]
    return [name for name in every if name not in late] + added
