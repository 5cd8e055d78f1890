"""`python -m scripts.train algo=NAME agent=…` runs for every method.

Under the mask, which is the default, `test_pages` runs those that a page shows a command of. One method for each kind
of part also runs with a free policy, as tests/algorithms/test_algo_conf.py trains all.
"""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

import conf
from tests.agents.endpoint_server import Server, answered
from tests.docs_pages import checked_updates
from tests.scripts.test_commands import Cli
from tests.scripts.test_pages import PAGES, commands

NAMES = sorted(path.stem for path in (Path(conf.__path__[0]) / "algo").glob("*.yaml"))
SHOWN = {a.removeprefix("algo=") for page in PAGES for shown in commands(page) for a in shown.arguments}
# A critic, trees, a judge, a reward model, signals of the environment, another player
WITH_PARTS = ("capo", "igpo", "istar", "mt_grpo", "poad", "tree_grpo", "twosome", "vineppo")
RUNS = [(name, "transcript") for name in WITH_PARTS]
RUNS += [(name, "masked") for name in NAMES if name not in SHOWN]
# What these methods log of signals that need the right answers and the tool of search; all others play ALFWorld.
MEASURED = {
    "igpo": ["signal/answer_logprob", "signal/answer_tokens", "time/answer_gain_s"],
    "mt_grpo": ["signal/turn_reward", "signal/tool_result"],
    "fine_grained": ["signal/turn_reward", "signal/value"],
    "trace": ["signal/answer_logprob", "signal/answer_tokens"],
}
JUDGED = ["capo", "pure", "tp_grpo"]
SMALL = [
    "eval.limit=1", "eval.selection_tasks=0", "policy.width=32", "policy.layers=1", "policy.warm_start.episodes=16",
    "policy.warm_start.max_turns=4", "policy.warm_start.steps=8", "trainer.updates=2", "trainer.groups=2",
    "trainer.group_size=4", "trainer.max_turns=3",
]  # fmt: skip
GAMES = [
    "env=alfworld", "env.games=embedded", "env.embedded_train=8", "env.embedded_valid_seen=1", "env.max_turns=3",
    "eval.splits=[valid_seen]",
]  # fmt: skip
QUESTIONS = ["env=search", "env.embedded_people=48", "env.train_tasks=32", "env.valid_tasks=4"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Games and warm starts, which all methods share."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def cli(cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    monkeypatch.setenv("POLYTURN_CACHE", str(cache))
    return Cli(tmp_path, capsys, monkeypatch)


@pytest.fixture(scope="module")
def judge() -> Iterator[str]:
    """The endpoint of a judge."""
    with closing(Server(lambda _: answered('{"wrong": [1]}'))) as server:
        yield server.url


def settings(name: str, agent: str, judge: str) -> list[str]:
    judged = [f"algo.signals.judge.model.base_url={judge}", "algo.signals.judge.model.name=m"]
    written = ["agent.sampling.max_tokens=8"] if name != "twosome" else []
    tasks = QUESTIONS if name in MEASURED else GAMES
    return [f"algo={name}", f"agent={agent}", *written, *tasks, *SMALL, *(judged if name in JUDGED else [])]


@pytest.mark.parametrize(("name", "agent"), RUNS)
def test_two_updates(name: str, agent: str, cli: Cli, judge: str) -> None:
    run = cli.folder / "run"
    code, _, err = cli("train", *settings(name, agent, judge), f"hydra.run.dir={run}")
    if (name, agent) == ("twosome", "masked"):
        assert code == 2
        assert "algo=twosome has agent/player=candidates, which is not that of agent=masked" in err
        return
    assert code == 0, err
    updates = checked_updates(run / "metrics.jsonl")
    assert [line["update"] for line in updates] == [1, 2]
    assert all(line["rollout/episodes"] >= 8 for line in updates)
    assert all(key in line for line in updates for key in MEASURED.get(name, []))
