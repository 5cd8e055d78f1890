"""`python -m scripts.train env=alfworld algo=NAME` runs for every method that needs no right answers or tools."""

import json
import math
import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

import conf
from tests.agents.endpoint_server import Server, said
from tests.docs_pages import is_documented
from tests.scripts.test_turn_methods import MEASURED

ROOT = Path(__file__).parents[2]
NAMES = sorted(path.stem for path in (Path(conf.__path__[0]) / "algo").glob("*.yaml"))
JUDGED = ["capo", "pure"]
SMALL = [
    "env=alfworld", "env.games=embedded", "env.embedded_train=8", "env.embedded_valid_seen=1", "eval.limit=1",
    "eval.selection_tasks=0",
    "eval.splits=[valid_seen]", "policy.width=32", "policy.layers=1", "policy.warm_start.episodes=16",
    "policy.warm_start.max_turns=4", "policy.warm_start.steps=8", "trainer.updates=2", "trainer.groups=2",
    "trainer.group_size=4", "trainer.max_turns=3", "env.max_turns=3",
]  # fmt: skip


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, float]]]:
    """What each method has logged, all of them run by one command."""
    folder = tmp_path_factory.mktemp("sweep")
    names = [name for name in NAMES if name not in MEASURED]
    environment = {**os.environ, "POLYTURN_CACHE": str(folder / "cache")}
    with closing(Server(lambda _: said('{"wrong": [1]}'))) as judge:
        for these, more in (
            ([name for name in names if name not in JUDGED], []),
            # Hydra reads the overrides of a sweep with the default method first, which has no judge: hence ++.
            (JUDGED, [f"++algo.signals.judge.model.base_url={judge.url}", "++algo.signals.judge.model.name=m"]),
        ):
            command = [sys.executable, "-m", "scripts.train", "-m", f"algo={','.join(these)}", *SMALL, *more]
            command += [f"hydra.sweep.dir={folder}", "hydra.sweep.subdir=${hydra:runtime.choices.algo}"]
            done = subprocess.run(
                command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500, check=False
            )
            assert done.returncode == 0, done.stderr
    return {
        name: [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
        for name in names
    }


@pytest.mark.parametrize("name", [name for name in NAMES if name not in MEASURED])
def test_two_updates_on_alfworld(sweep: dict[str, list[dict[str, float]]], name: str) -> None:
    updates = [line for line in sweep[name] if "train/loss" in line]
    assert [line["update"] for line in updates] == [1, 2]
    assert all(math.isfinite(value) for line in updates for value in line.values())
    assert all(line["rollout/episodes"] >= 8 for line in updates)


def test_every_key_that_a_method_writes_is_documented(sweep: dict[str, list[dict[str, float]]]) -> None:
    written = {key for lines in sweep.values() for line in lines for key in line}
    assert [key for key in sorted(written) if not is_documented(key)] == []
