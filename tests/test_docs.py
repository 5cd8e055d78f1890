"""The documentation: its links have targets, its examples run, and its lists are complete."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from agents.evaluation import Evaluation, Rate
from algorithms.turn_table import MissingSignalError, TurnTable
from envs.search.tasks import SearchTasks
from envs.tools.tasks import ToolTasks
from examples.novelty import Novelty, novelty_grpo
from tests.docs_pages import PAGES, ROOT, blocks, is_documented, metric_keys

INDEX = ROOT / "docs" / "README.md"
LAYERS = ("agents", "algorithms", "scripts")
PREFIXES = "rollout|stop|groups|tokens|train|mismatch|sync|signal|time|perf"


def links(page: Path) -> list[str]:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if not link.startswith("http")]


def anchors(page: Path) -> set[str]:
    """The anchors of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_has_a_target(page: Path) -> None:
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_the_index_links_every_page() -> None:
    linked = {(INDEX.parent / link.partition("#")[0]).resolve() for link in links(INDEX)}
    pages = {page for page in PAGES if page.is_relative_to(INDEX.parent)} - {INDEX}
    assert pages - linked == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_file_is_shown_as_it_is(page: Path) -> None:
    for name, shown in re.findall(r"<!-- (\S+) -->\n```\w+\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        assert shown == (ROOT / name).read_text(encoding="utf-8"), name


@pytest.mark.parametrize(("page", "task_set"), [("search", SearchTasks), ("tools", ToolTasks)])
def test_the_played_example_is_an_episode(page: str, task_set: type[SearchTasks] | type[ToolTasks]) -> None:
    text = (ROOT / "docs" / "environments" / f"{page}.md").read_text(encoding="utf-8")
    found = re.search(r"This is task `task=(\w+)`:\n\n((?:    .+\n)+)", text)
    assert found
    shown = found[2].replace("    ", "")
    tasks = task_set()
    [task_id] = [name for name in tasks.manifest("valid").ids if found[1] in name]
    env = tasks.make()
    played = [env.reset(options={"task": tasks.task("valid", task_id)})[0]]
    for action in re.findall("^> (.+)$", shown, re.MULTILINE):
        played += [f"> {action}", env.step(action)[0]]
    assert "\n".join(played) + "\n" == shown


# -- every key of metrics.jsonl ---------------------------------------------------------------------------------------
def written_keys() -> Iterator[str]:
    """The names of metrics in the code, with a * for each part that is computed."""
    for layer in LAYERS:
        for path in (ROOT / layer).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                text = ""
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    text = node.value
                elif isinstance(node, ast.JoinedStr):
                    text = "".join(str(part.value) if isinstance(part, ast.Constant) else "*" for part in node.values)
                if re.fullmatch(rf"({PREFIXES})/[\w*]+", text):
                    yield text


def test_every_metric_in_the_code_is_documented_and_no_other() -> None:
    documented = {re.sub("[A-Z]+", "*", key) for key in metric_keys()}
    written = set(written_keys())
    assert len(written) > 50
    missing = [key for key in written if not any(fnmatchcase(known, key) for known in documented)]
    assert not missing, f"docs/metrics.md lacks {missing}"
    stale = [
        key
        for key in documented
        if re.match(rf"({PREFIXES})/", key) and not any(fnmatchcase(key, name) for name in written)
    ]
    assert not stale, f"docs/metrics.md has keys that nothing writes: {stale}"


def test_every_metric_of_an_evaluation_is_documented() -> None:
    rate = Rate(1, 2, 0.5, 0.1, 0.9, 2.0)
    evaluation = Evaluation("e", "s", 2, rate, {"a type": rate}, {0: rate}, 0.5, None, 0.5, (0.1, 0.9), 1.0, 3.0, 0.0,
                            {"success": 1, "turn_limit": 1})  # fmt: skip
    keys = evaluation.metrics("eval/alfworld/valid")
    assert [key for key in keys if not is_documented(key)] == []
    documented = {key.replace("ENV/SPLIT", "alfworld/valid") for key in metric_keys() if key.startswith("eval/")}
    for name in documented:
        assert any(re.fullmatch(re.sub("[A-Z]+", "[^/]+", name), key) for key in keys), name


# -- examples ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("number", range(3))
def test_the_calls_that_check_an_environment_run(number: int) -> None:
    page = blocks(ROOT / "docs" / "environments" / "your_own.md", "python")
    assert ["check_text_env" in page[0], "check_task_set" in page[1], "TaskSetConformance" in page[2]] == [True] * 3
    space: dict = {"__name__": "page"}
    exec(page[number], space)
    if number == 2:
        space["TestLightSwitches"]().test_09_replay_is_equal()


def test_the_example_method_gives_a_bonus_to_rare_states() -> None:
    pages = blocks(ROOT / "docs" / "signals.md", "python")
    exec(pages[-1], {"__name__": "page"})
    states = np.array(["hall", "desk", "hall"], dtype=object)
    batch = SimpleNamespace(table=SimpleNamespace(state=states))
    signal = Novelty(None)
    np.testing.assert_allclose(signal.measure(batch).signals["novelty"], [2**-0.5, 1.0, 2**-0.5])
    resumed = Novelty(None)
    resumed.load_state(json.loads(json.dumps(signal.state())))
    for one in (signal, resumed):
        np.testing.assert_allclose(one.measure(batch).signals["novelty"], [0.5, 2**-0.5, 0.5])


def test_a_user_signal_that_was_not_measured_is_named() -> None:
    column = np.array([0])
    table = TurnTable(column, column, column, np.array([1.0]), np.array(["hall"], dtype=object), np.array([True]))
    with pytest.raises(MissingSignalError, match=r"needs the signal 'novelty'.*measured were: none"):
        novelty_grpo(table, bonus=0.1)


def test_the_example_method_trains(tmp_path: Path) -> None:
    (command,) = blocks(ROOT / "docs" / "signals.md", "bash")
    words = [sys.executable, *command.split()[1:]]
    assert words[1:3] == ["-m", "scripts.train"]
    small = [
        "eval.selection_tasks=0", "env.train_tasks=4", "env.valid_tasks=1", "env.max_turns=4", "policy.width=32",
        "policy.layers=1", "policy.warm_start.episodes=8", "policy.warm_start.steps=2", "trainer.updates=1",
        "trainer.groups=2", "trainer.group_size=2", "trainer.max_turns=3", f"hydra.run.dir={tmp_path / 'run'}",
    ]  # fmt: skip
    done = subprocess.run(
        [*words, *small], cwd=ROOT, env={**os.environ, "POLYTURN_CACHE": str(tmp_path / "cache")},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    (update,) = [line for line in lines if "rollout/success" in line]
    assert 0 < update["signal/novelty"] <= 1
    assert [key for line in lines for key in line if not is_documented(key)] == ["signal/novelty"]
