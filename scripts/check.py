"""Check an environment against the contract: `python -m scripts.check env=NAME`.

The command runs the rules of `envs.conformance` one after the other, and prints each with its result. For a broken rule
it prints the rule, what was found, and where the environment raised. The exit code is 1 if a rule is broken.
"""

from __future__ import annotations

import re
import time
import traceback
from collections.abc import Callable
from functools import partial

from omegaconf import DictConfig

from envs import conformance
from envs.conformance import ENV_RULES, TASK_SET_RULES, ConformanceError, check_env_rule, check_task_set_rule
from envs.core import NoDataError, counted
from scripts.common import Terminal, command, make_task_set, printable
from scripts.doctor import MARKS


@command("check")
def main(cfg: DictConfig) -> None:
    """Check the task set and its environments."""
    console = Terminal(soft_wrap=True)

    task_set = make_task_set(cfg)
    console.print(task_set.describe())
    subject = conformance.subject_of(task_set)
    checks: dict[str, Callable[[], None]] = {
        **{rule: partial(check_env_rule, rule, subject) for rule in ENV_RULES},
        **{rule: partial(check_task_set_rule, rule, partial(make_task_set, cfg)) for rule in TASK_SET_RULES},
    }
    texts, broken = rule_texts(), 0
    for number, (rule, check) in enumerate(checks.items(), start=1):
        began = time.monotonic()
        try:
            check()
        except ConformanceError as error:
            if isinstance(error.__cause__, NoDataError):  # without data every rule would be broken
                raise error.__cause__ from error
            broken += 1
            console.print(f"{MARKS['bad']} {number:2} {rule}")
            console.print(f"     the rule: {texts[rule]}")
            console.print(f"     found: {printable(error.found)}{_place(error)}", markup=False)
        else:
            console.print(f"{MARKS['ok']} {number:2} {rule} ({time.monotonic() - began:.1f} s)")
    if broken:
        console.print(f"{counted(broken, 'rule')} of {len(checks)} broken; docs/environments/your_own.md explains them")
        raise SystemExit(1)
    console.print(f"all {len(checks)} rules hold, on {counted(len(subject.tasks), 'task')}")


def rule_texts() -> dict[str, str]:
    """What each rule says, from the list in the documentation of `envs.conformance`."""
    found = re.findall(r"^ ?\d+\. (\w+): (.+?)(?=\n ?\d+\. |\n\n|\Z)", conformance.__doc__ or "", re.M | re.S)
    return {name: " ".join(text.split()) for name, text in found}


def _place(error: ConformanceError) -> str:
    """Where the environment raised the exception; empty if the rule itself raised it."""
    if error.__cause__ is None:
        return ""
    frame = traceback.extract_tb(error.__cause__.__traceback__)[-1]
    return f", in {frame.filename}, line {frame.lineno}: {frame.line}"


if __name__ == "__main__":
    main()
