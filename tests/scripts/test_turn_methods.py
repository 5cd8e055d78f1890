"""Methods that judge single turns run by name on the environment that tells what they need."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs_pages import is_documented

ROOT = Path(__file__).parents[2]
SMALL = [
    "eval.splits=[valid]", "eval.selection_tasks=0", "env.train_tasks=32", "env.valid_tasks=4",
    "policy.width=64", "policy.layers=2",
    "policy.warm_start.episodes=64", "policy.warm_start.steps=20", "trainer.updates=2", "trainer.groups=2",
    "trainer.group_size=4", "trainer.max_turns=4",
]  # fmt: skip


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


# What each method logs of its signals.
MEASURED = {
    "igpo": ["signal/answer_logprob", "signal/answer_tokens", "time/answer_gain_s"],
    "mt_grpo": ["signal/turn_reward", "signal/tool_result"],
}


@pytest.mark.parametrize(("algo", "measured"), MEASURED.items())
def test_two_updates_on_lookup(cache: Path, tmp_path: Path, algo: str, measured: list[str]) -> None:
    command = [sys.executable, "-m", "scripts.train", "env=lookup", f"algo={algo}", *SMALL]
    done = subprocess.run(
        [*command, f"hydra.run.dir={tmp_path / 'run'}"], cwd=ROOT, env={**os.environ, "POLYTURN_CACHE": str(cache)},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    updates = [line for line in lines if "train/loss" in line]
    assert [line["update"] for line in updates] == [1, 2]
    assert all(name in line for line in updates for name in measured)
    assert [key for line in lines for key in line if not is_documented(key)] == []
