"""The facts that results depend on: how they are compared and hashed, and which are left out."""

import json
import sys
from pathlib import Path

import pytest

from envs.alfworld.tasks import ALFWorldTasks
from envs.core import TaskSet
from envs.facts import code_hash, differences, environment_facts, key_of, without
from envs.gym_tasks import GymTasks
from envs.key_corridor.env import KeyCorridorTasks
from envs.search.tasks import SearchTasks
from envs.tools.tasks import ToolTasks
from envs.webshop.tasks import WebShopTasks
from tests.agents.corridors import Corridors


def test_excluded_keys_are_removed_and_the_others_kept() -> None:
    facts = {"a": 1, "b": {"c": 2, "d": {"e": 3}}, "bc": 4}
    assert without(facts, ["b.c", "b.d.e", "nothing"]) == {"a": 1, "b": {"d": {}}, "bc": 4}
    assert without(facts, ["b"]) == {"a": 1, "bc": 4}
    assert facts["b"] == {"c": 2, "d": {"e": 3}}


def test_differences_are_named_on_both_sides() -> None:
    before = {"env": {"a": 1, "gone": True}, "same": [1, 2]}
    assert differences(before, {"env": {"a": 2, "new": None}, "same": (1, 2)}) == {
        "env.a": "was 1 and is 2",
        "env.new": "was not there and is None",
        "env.gone": "was True and is not there",
    }
    assert not differences(before, json.loads(json.dumps(before)))


def test_a_key_does_not_depend_on_the_order_of_facts() -> None:
    assert key_of({"a": 1, "b": 2}) == key_of({"b": 2, "a": 1}) != key_of({"a": 1, "b": 3})


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "somebodys").mkdir()
    for name in ("__init__", "tasks", "expert"):
        (tmp_path / "somebodys" / f"{name}.py").write_text("class Tasks: ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path / "somebodys"


def test_the_code_of_a_task_set_is_that_of_its_whole_package(source: Path) -> None:
    from somebodys.tasks import Tasks  # type: ignore[import-not-found]

    before = code_hash(Tasks)
    assert code_hash(Tasks) == before
    (source / "expert.py").write_text("another = True\n")
    assert code_hash(Tasks) != before
    del sys.modules["somebodys.tasks"], sys.modules["somebodys"]
    assert len(code_hash(type("Typed", (), {"__module__": "nowhere"}))) == 64


def task_sets() -> list[TaskSet]:
    return [
        Corridors(),
        KeyCorridorTasks(),
        SearchTasks(embedded_people=48, train_tasks=20, valid_tasks=8),
        ToolTasks(embedded_people=48, train_tasks=14, valid_tasks=7),
        ALFWorldTasks(games="embedded"),
        WebShopTasks(catalogue="embedded", embedded_products=60),
        GymTasks("CartPole-v1"),
    ]


def test_facts_contain_the_choice_of_auto(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`auto` may choose another thing the next time."""
    monkeypatch.setenv("POLYTURN_DATA", str(tmp_path))
    monkeypatch.setenv("POLYTURN_CACHE", str(tmp_path))
    asked = {"games": "auto", "other": 1}
    facts = environment_facts(ALFWorldTasks(games="auto"), asked)
    assert (facts["games"], facts["other"], facts["turn_limit"]) == ("embedded", 1, 50)
    shop = WebShopTasks(embedded_products=60, protocol="verl_agent", observation="text_rich")
    facts = environment_facts(shop, {"catalogue": "auto", "instructions": "auto"})
    assert [facts[key] for key in ("catalogue", "protocol", "observation")] == ["embedded", "verl_agent", "text_rich"]
    assert "verl_agent" in shop.describe()
    assert "text_rich" in shop.describe()


def test_facts_are_plain_data_and_those_of_different_sets_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also for a task set without facts."""
    monkeypatch.setenv("POLYTURN_CACHE", str(tmp_path))
    facts = [environment_facts(task_set) for task_set in task_sets()]
    assert json.loads(json.dumps(facts)) == facts
    assert len({key_of(of) for of in facts}) == len(facts)
    assert key_of(environment_facts(KeyCorridorTasks(rooms=9))) != key_of(environment_facts(KeyCorridorTasks()))
