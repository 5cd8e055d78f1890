"""A run records what its rounding depends on, and prints a line if it is resumed with another value."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch

from scripts import evaluate
from scripts.common import Terminal, compare_machines, machine


def test_threads_and_instructions_are_those_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "NEON")
    assert machine() == {"instructions": "NEON", "threads": 7}


def test_a_start_on_another_machine_is_logged() -> None:
    console = Terminal(file=io.StringIO(), width=200)
    before, now = ({"machine": {"threads": n, "instructions": "AVX2"}} for n in (99, 2))
    compare_machines(before, before, console)
    compare_machines(before, now, console)
    assert console.file.getvalue() == "changed since the last start: machine.threads was 99 and is 2\n"


def test_an_evaluation_resumes_on_another_machine_but_not_with_other_facts(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    assert evaluate._read_facts(file, {"split": "valid"}) is None
    before = {"split": "valid", "machine": {"threads": 1}}
    file.write_text(json.dumps(before))
    assert evaluate._read_facts(file, {"split": "valid"}) == before
    with pytest.raises(ValueError, match=r"with other settings, so start a new run: split was 'valid' and is 'train'$"):
        evaluate._read_facts(file, {"split": "train"})
