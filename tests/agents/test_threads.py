"""Waiting threads sleep in every command, unless the user sets it otherwise."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


def run(code: str, **environment: str) -> tuple[str, str]:
    """The stdout and stderr of a new process."""
    clean = {name: value for name, value in os.environ.items() if name not in NAMES}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={**clean, **environment}, capture_output=True, text=True, check=True
    )
    return done.stdout, done.stderr


@pytest.mark.parametrize("package", ["agents", "algorithms", "scripts", "benchmarks"])
def test_every_package_sets_the_wait_policy_before_torch_is_imported(package: str) -> None:
    output, _ = run(f"import {package}, os, sys; print('torch' in sys.modules, *map(os.environ.get, {NAMES}))")
    assert output.split() == ["False", "PASSIVE", "0"]


@pytest.mark.parametrize("own", [{"OMP_WAIT_POLICY": "ACTIVE"}, {"GOMP_SPINCOUNT": "1000"}])
def test_the_users_own_setting_is_not_changed(own: dict[str, str]) -> None:
    output, _ = run(
        f"import algorithms, os; print({{n: os.environ[n] for n in {NAMES} if n in os.environ}} == {own})", **own
    )
    assert output.split() == ["True"]


def test_openmp_reads_the_variable() -> None:
    _, output = run("import scripts.train", OMP_DISPLAY_ENV="true")
    if not output:
        pytest.skip("this torch computes without OpenMP")
    assert re.search(r"OMP_WAIT_POLICY\s*=\s*'PASSIVE'", output)
