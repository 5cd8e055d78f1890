"""BFCL multi-turn: verdicts and their speed, compared with the official checker.

    python -m benchmarks.bfcl                      # the ground truth of all 800 tasks, and answers without calls
    python -m benchmarks.bfcl --mutations 5000     # also random changes of the ground truth, judged by both

Seconds are those of the process, without imports and reading of files. The official checker is imported from the
package `bfcl-eval`; it evaluates calls, which here are those of the ground truth only. Ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Sequence
from itertools import count
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from envs.tools.bfcl import SETS, BfclTask, Verdict, check, function_docs, read_tasks

_OTHER_CALLS = ("pwd()", "ls()", "get_account_info()", "view_messages_sent()", "no_such_function(a=1)", "broken(")
_unused = count()  # for names under which the official checker keeps its simulators

Calls = list[list[list[str]]]  # [turn][step][call]


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and tell."""
    parser = argparse.ArgumentParser(prog="benchmarks.bfcl", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--mutations", type=int, default=0, help="how many to compare (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the mutations (%(default)s)")
    options = parser.parse_args(argv)
    console = Console()
    table = Table("set", "tasks", "ground truth right", "silence right", "checks/s", "official checks/s", box=None)
    figures = {name: _measure(list(read_tasks(name).values())) for name in SETS}
    for name, row in figures.items():
        table.add_row(name, *map(str, row.values()))
    console.print(table)
    report: dict[str, Any] = {"benchmark": "bfcl", "sets": figures}
    if options.mutations:
        tally = _compare(options.mutations, random.Random(options.seed), console)
        console.print(f"{options.mutations:,} mutations: {tally}", markup=False)
        report |= {"seed": options.seed, "mutations": tally}
    print(json.dumps(report))


def _measure(tasks: Sequence[BfclTask]) -> dict[str, int]:
    truths = [ground_truth(task) for task in tasks]
    _official(tasks[0], truths[0])  # imports
    start = time.process_time()
    right = sum(check(task, calls).valid for task, calls in zip(tasks, truths, strict=True))
    ours = time.process_time() - start
    silent = sum(check(task, [[] for _ in calls]).valid for task, calls in zip(tasks, truths, strict=True))
    start = time.process_time()
    for task, calls in zip(tasks, truths, strict=True):
        _official(task, calls)
    official = time.process_time() - start
    return {
        "tasks": len(tasks),
        "ground_truth_right": right,
        "silence_right": silent,
        "checks_per_s": round(len(tasks) / ours),
        "official_checks_per_s": round(len(tasks) / official),
    }


def _compare(number: int, rng: random.Random, console: Console) -> dict[str, int]:
    """How many mutations are right, and how many verdicts differ in any part."""
    tasks = [task for name in SETS for task in read_tasks(name).values()]
    calls_of: dict[str, list[str]] = {}
    for task in tasks:
        for class_name in task.classes:
            calls_of.setdefault(class_name, []).extend(text for calls in task.ground_truth for text in calls)
    tally = {"right": 0, "wrong": 0, "different": 0}
    for _ in track(range(number), "mutations", console=console):
        task = rng.choice(tasks)
        calls = mutate(task, calls_of, rng)
        ours = check(task, calls)
        tally["right" if ours.valid else "wrong"] += 1
        if ours != _official(task, calls):
            tally["different"] += 1
            console.print(f"different: {task.id} {calls}", markup=False)
    return tally


def ground_truth(task: BfclTask) -> Calls:
    """One step a turn."""
    return [[list(calls)] if calls else [] for calls in task.ground_truth]


def mutate(task: BfclTask, calls_of: dict[str, list[str]], rng: random.Random) -> Calls:
    """Up to three random changes of the ground truth; `calls_of` are calls of each class in any task."""
    calls = ground_truth(task)
    for _ in range(rng.choice([1, 1, 2, 3])):
        turn = rng.randrange(len(calls))
        step = calls[turn][-1] if calls[turn] else []
        kind = rng.randrange(8)
        if kind == 0:
            calls[turn] = []
        elif kind == 1 and step:
            step.pop()
        elif kind == 2:
            rng.shuffle(step)
        elif kind == 3 and step:
            place = rng.randrange(len(step))
            step[place] = step[place].replace("')", "_x')", 1)
        elif kind == 4:
            others = calls_of[rng.choice(task.classes)]
            calls[turn].append([rng.choice(others) for _ in range(rng.randint(1, 3))])
        elif kind == 5:
            calls[turn] = [[text] for step in calls[turn] for text in step]
        elif kind == 6:
            functions = [name for class_name in task.classes for name in function_docs(class_name)]
            calls[turn].append([rng.choice([*_OTHER_CALLS, f"{rng.choice(functions)}()"])])
        elif kind == 7 and turn + 1 < len(calls):
            calls[turn] += calls[turn + 1]
            calls[turn + 1] = rng.choice([[], [["pwd()"]], [[]]])
    return calls


def _official(task: BfclTask, calls: Calls) -> Verdict:
    from bfcl_eval.eval_checker.multi_turn_eval.multi_turn_checker import multi_turn_checker

    entry = {"id": task.id, "initial_config": task.initial_config, "involved_classes": list(task.classes)}
    found = multi_turn_checker(calls, [list(turn) for turn in task.ground_truth], entry, "", f"run{next(_unused)}")
    details = found.get("details", {})
    return Verdict(
        valid=found["valid"],
        error_type=found.get("error_type", ""),
        error_message=found.get("error_message", ""),
        missing=tuple(details.get("missing_items", ())),
        differing=tuple(details.get("differences", ())),
    )


if __name__ == "__main__":
    main()
