"""Calls, results, states and verdicts of BFCL's own code, compared with the project's for the same tasks."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from envs.tools.bfcl import BfclTask, Grader, check, read_tasks
from tests.recordings import Recorder

LONGEST = 300  # longer texts are recorded as a hash and a length


def replay_task(where: str, case: dict[str, Any], recorder: Recorder) -> None:
    """A task, its ground truth, and every mutation of it."""
    task = read_tasks(case["category"]).get(case["id"])
    if task is None:
        recorder.check(f"{where}, id", "no such task", case["id"])
        return
    ours = {
        "category": case["category"],
        "id": task.id,
        "involved_classes": list(task.classes),
        "missed_function": {str(turn): list(names) for turn, names in task.added.items()} or None,
        "user_turns": [None if turn in task.added else text for turn, text in enumerate(task.user_turns)],
        "ground_truth": [list(calls) for calls in task.ground_truth],
        **_played(task),
    }
    # Functions that are excluded are used nowhere.
    recorded = {name: value for name, value in case.items() if name not in ("mutations", "excluded_function")}
    recorder.check_fields(where, ours, recorded)
    for mutation in case["mutations"]:
        recorded = {name: value for name, value in mutation.items() if name not in ("kind", "calls")}
        recorder.check_fields(f"{where}, {mutation['kind']}", _verdict(task, mutation["calls"]), recorded)


def _played(task: BfclTask) -> dict[str, Any]:
    """What the ground truth does, as one step a turn."""
    grader = Grader(task)
    initial = _data(grader.policy.state())
    results = [[grader.call_text(text) for text in calls] for calls in task.ground_truth]
    calls = [[list(calls)] if calls else [] for calls in task.ground_truth]
    return {
        "ground_truth_results": _data(results),
        "initial_state": initial,
        "final_state": _data(grader.policy.state()),
        "ground_truth_verdict": check(task, calls).valid,
        "irrelevance_checker_on_ground_truth": _is_silent_where_nothing_is_right(task, calls),
    }


def _is_silent_where_nothing_is_right(task: BfclTask, calls: Sequence[Sequence[Sequence[str]]]) -> bool:
    """The official check of turns without a ground truth, which their program never calls."""
    return not any(any(steps) for steps, truth in zip(calls, task.ground_truth, strict=True) if not truth)


def _verdict(task: BfclTask, calls: Sequence[Sequence[Sequence[str]]]) -> dict[str, Any]:
    try:
        verdict = check(task, calls)
    except ValueError:  # for which the official checker raises, too
        return {"valid": None}
    fields: dict[str, Any] = {"valid": verdict.valid}
    if not verdict.valid:
        fields |= {"error_type": verdict.error_type, "error_message": verdict.error_message}
    if verdict.missing:
        fields["missing_items"] = _data(verdict.missing)
    if verdict.differing:
        fields["differing_attributes"] = sorted(verdict.differing)
    return fields


def _data(value: Any) -> Any:
    """A value as it was recorded."""
    if isinstance(value, str) and len(value) > LONGEST:
        return f"sha256:{hashlib.sha256(value.encode()).hexdigest()} len:{len(value)}"
    if isinstance(value, dict):
        return {str(key): _data(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_data(part) for part in value]
    if isinstance(value, set):
        return {"set": sorted(value)}
    if hasattr(value, "contents"):
        return {"dir": value.name, "contents": _data(value.contents)}
    if hasattr(value, "content"):
        return {"file": value.name, "content": _data(value.content)}
    return value
