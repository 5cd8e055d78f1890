"""WebShop's splits: the official order, verl-agent's workers, and the choice of a catalogue."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest

from envs.conformance import TaskSetConformance
from envs.core import UnknownNameError, evaluation_splits
from envs.webshop.catalogue import CatalogueNotFoundError
from envs.webshop.generate import embedded_catalogue
from envs.webshop.goals import Goal
from envs.webshop.tasks import WebShopTasks, official_places, worker_draws

GOLDEN = Path(__file__).parents[1] / "golden_data" / "webshop"
DATA = os.environ.get("POLYTURN_DATA")
NEEDS_DATA = pytest.mark.skipif(
    not (DATA and Path(DATA, "webshop", "items_shuffle_1000.json").is_file()),
    reason="needs the official small catalogue in POLYTURN_DATA",
)


@pytest.fixture(scope="module")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _own_folders(shared_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYTURN_CACHE", str(shared_cache))
    monkeypatch.setenv("POLYTURN_DATA", str(tmp_path / "data"))


def small(**arguments: Any) -> WebShopTasks:
    defaults = {"embedded_products": 80, "train_workers": 3, "train_resets": 2, "valid_workers": 4}
    return WebShopTasks(**defaults | arguments)


def goals_of(tasks: WebShopTasks, split: str) -> list[Goal]:
    return [Goal.from_json(tasks.task(split, i).payload["goal"]) for i in tasks.manifest(split).ids]


class TestOfficial(TaskSetConformance):
    def make_task_set(self) -> WebShopTasks:
        return small()


class TestVerlAgent(TaskSetConformance):
    def make_task_set(self) -> WebShopTasks:
        return WebShopTasks(protocol="verl_agent", train_workers=2, train_resets=2, valid_workers=2)


# -- the official protocol --------------------------------------------------------------------------------------------
def test_a_full_order_is_split_as_the_authors_do_and_a_short_one_by_tenths() -> None:
    assert official_places(6910) == {"test": range(500), "valid": range(500, 1500), "train": range(1500, 6910)}
    assert official_places(2999) == {"test": range(299), "valid": range(299, 598), "train": range(598, 2999)}
    with pytest.raises(ValueError, match="9 goals cannot be split: at least 10"):
        official_places(9)


def test_no_goal_of_train_is_held_out() -> None:
    tasks = small()
    texts = {split: {(goal.asin, goal.instruction_text) for goal in goals_of(tasks, split)} for split in tasks.splits}
    assert not texts["train"] & (texts["valid"] | texts["test"])
    assert not texts["valid"] & texts["test"]


def test_the_seed_draws_prices_and_leaves_the_order() -> None:
    one, other = goals_of(small(), "test"), goals_of(small(seed=1), "test")
    assert [goal.asin for goal in one] == [goal.asin for goal in other]
    assert [goal.price_upper for goal in one] != [goal.price_upper for goal in other]
    assert small().manifest("test") != small(seed=1).manifest("test")


def test_a_task_holds_all_that_is_needed_to_play_it() -> None:
    tasks = small()
    task_id = tasks.manifest("valid").ids[0]
    payload = tasks.task("valid", task_id).payload
    assert payload == json.loads(json.dumps(payload))
    assert payload["type"] == payload["goal"]["category"]
    observation, info = tasks.make().reset(options={"task": tasks.task("valid", task_id)})
    assert info["goal"] == payload["goal"]["instruction_text"]
    assert info["goal"] in observation


def test_the_brief_form_shows_what_can_be_clicked_as_it_is_clicked() -> None:
    tasks = small()
    env, expert = tasks.make(), tasks.expert()
    observation, info = env.reset(options={"task": tasks.task("train", tasks.manifest("train").ids[0])})
    expert.reset(observation, info)
    goal = info["goal"].lower()
    assert info["brief"] == f"{goal}\nsearch"
    shown = {observation}
    while info["stop_reason"] is None:
        action = expert.act()
        observation, _, terminated, _, info = env.step(action)
        expert.observe(action, observation, info)
        lines = info["brief"].split("\n")
        assert goal not in lines
        if observation not in shown:
            assert {action.removeprefix("click[").removesuffix("]") for action in info["admissible"]} <= set(lines)
        shown.add(observation)
    assert terminated


def test_the_brief_form_of_a_page_that_was_shown_is_one_button() -> None:
    tasks = small()
    env = tasks.make()
    task = tasks.task("train", tasks.manifest("train").ids[0])
    first = env.reset(options={"task": task})[1]["brief"]

    def brief(action: str) -> str:
        return str(env.step(action)[4]["brief"])

    results = brief("search[red]")
    product = results.split("\n")[3]
    item = brief(f"click[{product}]")
    assert item.endswith("\nbuy now")
    snapshot = env.unwrapped.snapshot()
    for _ in range(2):
        assert brief("click[nothing of the kind]") == "buy now"
        assert brief("click[description]").startswith("back to search\n< prev")
        assert brief("click[description]") == "< prev"  # refused
        assert brief("click[< prev]") == "buy now"
        assert brief("click[< prev]") == "next >"
        assert brief("click[back to search]") == "search"
        env.unwrapped.restore(snapshot)  # the description was not shown yet
    assert env.reset(options={"task": task})[1]["brief"] == first


def test_instructions_may_be_those_that_people_wrote() -> None:
    written = small(instructions="human")
    assert sum(len(written.manifest(split).ids) for split in written.splits) == 80
    assert all(isinstance(goal.goal_options, tuple) for goal in goals_of(written, "test"))
    assert small(instructions="synthetic").manifest("test") == small().manifest("test")


@NEEDS_DATA
def test_the_official_small_catalogue_has_the_published_goals() -> None:
    tasks = WebShopTasks(data=DATA)
    assert {split: len(tasks.manifest(split).ids) for split in tasks.splits} == {
        "train": 5407, "valid": 1000, "test": 500
    }  # fmt: skip
    recorded = next(
        case
        for case in json.loads((GOLDEN / "goals.json").read_text())["cases"]
        if (case["seed"], case["human_goals"], case["mode"]) == (0, False, "official")
    )
    for goal in recorded["goals"]:
        assert tasks.task("test", f"official/goal-{goal.pop('index'):07d}").payload["goal"] == goal


# -- verl-agent's protocol --------------------------------------------------------------------------------------------
@NEEDS_DATA
def test_workers_get_the_recorded_goals() -> None:
    for run in json.loads((GOLDEN / "verl_wrapper.json").read_text())["runs"]:
        seed = run["seed"] if run["is_train"] else run["seed"] - 1000
        workers, group = run["env_num"], run["group_n"]
        tasks = WebShopTasks(
            data=DATA, protocol="verl_agent", seed=seed, train_workers=workers, train_resets=1, valid_workers=workers
        )
        split = "train" if run["is_train"] else "valid"
        for worker, task_id in enumerate(tasks.manifest(split).ids):
            payload = tasks.task(split, task_id).payload
            assert payload["price_seed"] == run["worker_seeds"][worker * group]
            assert payload["goal"] == run["goals"][worker * group]


def test_later_resets_continue_with_the_generator() -> None:
    both, first = (worker_draws(7, 5, 2000, is_train=True, resets=resets) for resets in (2, 1))
    assert both[0] == first[0]
    assert both[1] != both[0]
    assert [draw.seed for draw in both[1]] == [7, 8, 9, 10, 11]
    assert all(draw.place >= 500 for row in both for draw in row)
    assert all(draw.place < 500 for draw in worker_draws(7, 5, 2000, is_train=False, resets=1)[0])
    with pytest.raises(ValueError, match="600 workers need as many goals, but only 500"):
        worker_draws(7, 600, 2000, is_train=False, resets=1)


def test_the_reward_is_that_of_the_protocol() -> None:
    for protocol, reward in (("official", 1.0), ("verl_agent", 10.0)):
        tasks = WebShopTasks(protocol=protocol, train_workers=8, train_resets=2, valid_workers=2)
        env, expert, rewards = tasks.make(), tasks.expert(), set()
        for task_id in tasks.manifest("train").ids[:16]:
            observation, info = env.reset(options={"task": tasks.task("train", task_id)})
            expert.reset(observation, info)
            paid = 0.0
            while info["stop_reason"] is None:
                action = expert.act()
                observation, paid, _, _, info = env.step(action)
                expert.observe(action, observation, info)
            rewards.add(paid)
            assert paid == (info["score"] if protocol == "official" else 10.0 * info["success"])
        assert reward in rewards


# -- which catalogue --------------------------------------------------------------------------------------------------
def test_an_official_catalogue_is_taken_where_there_is_one(tmp_path: Path) -> None:
    assert "80 generated products" in small().describe()
    assert "synthetic instructions; protocol official, seed 0" in small().describe()
    assert "scripts.download webshop" in small().describe()
    made, folder = embedded_catalogue(80), tmp_path / "data" / "webshop"
    folder.mkdir(parents=True)
    for path in made.iterdir():
        suffix = "" if path.name == "title_nouns.json" else "_1000"
        shutil.copy(path, folder / f"{path.stem}{suffix}.json")
    there = small()
    assert f"the official small catalogue in {folder}" in there.describe()
    assert there.manifest("test") == small(catalogue="embedded").manifest("test")
    assert there.task("test", there.manifest("test").ids[0]).payload["size"] == "small"
    with pytest.raises(CatalogueNotFoundError, match="no full catalogue"):
        small(catalogue="full").manifest("test")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"catalogue": "smal"}, "did you mean 'small'"),
        ({"protocol": "verl"}, "known: official, verl_agent"),
        ({"instructions": "humans"}, "did you mean 'human'"),
        ({"observation": "html"}, "known: text, text_rich"),
    ],
)
def test_a_wrong_name_is_named_with_the_known_ones(arguments: dict[str, str], message: str) -> None:
    with pytest.raises(UnknownNameError, match=message):
        small(**arguments)


def test_wrong_sizes_and_unknown_tasks_raise() -> None:
    with pytest.raises(ValueError, match="must be at least 1"):
        small(train_workers=0)
    with pytest.raises(UnknownNameError, match="did you mean 'official/goal-"):
        small().task("test", "official/goal-000000")
    with pytest.raises(UnknownNameError, match="protocol verl_agent"):
        small(protocol="verl_agent").manifest("test")


def test_evaluations_are_on_valid() -> None:
    assert evaluation_splits(small()) == ["valid"]


def test_manifests_do_not_depend_on_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = small().manifest("test")
    monkeypatch.setenv("POLYTURN_CACHE", str(tmp_path / "elsewhere"))
    assert small().manifest("test") == here
    assert len(here.content_hash) == hashlib.sha256().digest_size * 2


def test_environments_can_be_made_in_workers() -> None:
    """Also after tasks were read, when the catalogue is open; a worker reads it itself."""
    tasks = small()
    task = tasks.task("test", tasks.manifest("test").ids[0])
    sent = pickle.dumps(tasks.make)
    assert len(sent) < 2000
    shown, _ = pickle.loads(sent)().reset(options={"task": task})
    assert shown == tasks.make().reset(options={"task": task})[0]
