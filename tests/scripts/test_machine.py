"""What rounds otherwise is recorded with a run, and a start that goes on elsewhere says so."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch

from scripts import evaluate, train
from scripts.common import Terminal, machine


def test_threads_and_instructions_are_those_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "NEON")
    assert machine() == {"instructions": "NEON", "threads": 7}


def test_training_goes_on_with_other_threads_and_says_so() -> None:
    console = Terminal(file=io.StringIO(), width=200)
    before, now = ({"manifests": {}, "machine": {"threads": n, "instructions": "AVX2"}} for n in (99, 2))
    train._compare(before, now, console)
    assert console.file.getvalue() == "changed since the last start: machine.threads was 99 and is 2\n"


def test_an_evaluation_goes_on_with_other_threads_and_says_so(tmp_path: Path) -> None:
    console, file = Terminal(file=io.StringIO(), width=200), tmp_path / "run.json"
    facts = {"split": "valid", "machine": {"threads": 1, "instructions": "AVX2"}}
    evaluate._keep_facts(file, facts, console)
    evaluate._keep_facts(file, facts, console)
    assert console.file.getvalue() == ""
    evaluate._keep_facts(file, {**facts, "machine": {"threads": 2, "instructions": "AVX2"}}, console)
    assert console.file.getvalue() == "changed since the last start: machine.threads was 1 and is 2\n"
    with pytest.raises(ValueError, match=r"played otherwise, start a new run: split was 'valid' and is 'train'$"):
        evaluate._keep_facts(file, {**facts, "split": "train", "machine": {}}, console)
