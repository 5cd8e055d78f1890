"""`python -m scripts.train +experiment=smoke env=NAME` runs for every environment."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.engines import needs_java, needs_package
from tests.scripts.test_commands import Cli, cli  # noqa: F401 - the fixture

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf"
SMALLER = [
    "policy.width=32", "policy.layers=1", "policy.warm_start.episodes=8", "policy.warm_start.steps=4", "eval.limit=1",
    "trainer.updates=1", "trainer.groups=1", "trainer.group_size=2", "trainer.max_turns=4", "pool.size=8",
]  # fmt: skip
MORE = {
    "alfworld": ["env.embedded_train=8", "env.embedded_valid_seen=1", "env.embedded_valid_unseen=1"],
    "gym": ["env.id=examples.light_switches:LightSwitches-v0", "env.train_tasks=8"],
    "key_corridor": ["env.train_tasks=8"],
    "mcp": [
        f"env.command=[{sys.executable},-m,tests.envs.mcp_servers.suite,key_corridor]",
        "pool.size=2", "env.max_turns=6",
    ],
    "search": ["env.embedded_people=48", "env.train_tasks=8", "env.valid_tasks=3"],
    "tau_bench": [],
    "sotopia": ["env.scenarios=embedded"],
    "textcraft": ["env.embedded_train=8"],
    "textworld_express": ["env.games=[simonsays]", "env.train_tasks=8", "env.valid_tasks=3", "pool.size=2"],
    "reasoning_gym": ["env.dataset=count_bits", "env.train_tasks=8", "env.valid_tasks=3", "agent=transcript"],
    "gem": ["env.game=game:Game2048-v0-easy", "env.train_tasks=8", "env.valid_tasks=3", "agent=transcript"],
    "openenv": ["env.url=http://127.0.0.1:1"],
    "textarena": ["env.game=FrozenLake-v0", "env.train_tasks=8", "env.valid_tasks=3"],
    "babyai": ["env.levels=[GoToRedBall]", "env.train_tasks=8", "env.valid_tasks=3"],
    "textworld_cooking": ["env.cook=false", "env.train_tasks=2", "env.valid_tasks=1", "pool.step_timeout=300"],
    "frozen_lake": ["env.train_tasks=8", "env.valid_tasks=3"],
    "bandit": ["env.train_tasks=8", "env.valid_tasks=3"],
    "countdown": ["env.train_tasks=8", "env.valid_tasks=3", "agent=transcript"],
    "sokoban": ["env.train_tasks=8", "env.valid_tasks=3"],
    "tools": ["env.embedded_people=48", "env.train_tasks=14", "env.valid_tasks=7"],
    "webshop": ["env.embedded_products=60"],
}  # fmt: skip
NEEDS = {"textworld_express": needs_java("textworld_express")} | {
    "scienceworld": pytest.mark.skip(reason="its gold paths take minutes; tests/envs/test_scienceworld.py plays it"),
    "babyai": needs_package("minigrid", "babyai"),
    "reasoning_gym": needs_package("reasoning_gym", "reasoning_gym"),
    "textarena": needs_package("textarena", "textarena"),
    "gem": needs_package("gem", "gem"),
    "openenv": pytest.mark.skip(reason="needs a server; tests/envs/test_openenv.py plays in one"),
}


def environments() -> list[Any]:
    names = sorted(path.stem for path in (CONF / "env").glob("*.yaml"))
    return [pytest.param(name, marks=NEEDS.get(name, ())) for name in names]


@pytest.mark.parametrize("name", environments())
def test_smoke_runs_in_every_environment(cli: Cli, name: str) -> None:  # noqa: F811
    cli.monkeypatch.setenv("POLYTURN_CACHE", str(cli.folder / "cache"))
    cli.monkeypatch.setenv("PYTHONPATH", str(ROOT))  # the MCP server is a module of the tests
    code, _, err = cli("train", "+experiment=smoke", f"env={name}", *SMALLER, *MORE[name], "hydra.run.dir=run")
    assert code == 0, err
    lines = [json.loads(line) for line in (cli.folder / "run/metrics.jsonl").read_text().splitlines()]
    updates = [line for line in lines if "train/loss" in line]
    assert [line["update"] for line in updates] == [1]
    assert all(math.isfinite(value) for line in lines for value in line.values())
    assert any(key.startswith(f"eval/{name}/") for key in lines[0])
