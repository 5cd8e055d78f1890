"""The scripted expert: what it reads in an instruction, what it does on pages, how often it succeeds."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from envs.webshop.expert import Shopper, Wish
from envs.webshop.tasks import WebShopTasks

DATA = os.environ.get("POLYTURN_DATA")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYTURN_CACHE", str(tmp_path))


def test_a_synthetic_instruction_is_read_by_its_form() -> None:
    wish = Wish.parse(
        "Find me mid century wall sconces with brushed nickel for dining room with color: red, "
        "and fit type: big & tall, and price lower than 110.00 dollars"
    )
    assert wish.options == {"color": "red", "fit type": "big & tall"}
    assert wish.limit == 110.0
    assert wish.query == "mid century wall sconces brushed nickel dining room red big & tall"


def test_any_other_instruction_is_read_as_words() -> None:
    wish = Wish.parse(
        "i am looking for a pair of dark blue ankle boots in size 7.5, and price lower than 60.00 dollars"
    )
    assert wish.options == {}
    assert wish.choose("color", ["blue", "dark blue", "red"]) == "dark blue"
    assert wish.choose("size", ["7", "7.5", "5"]) == "7.5"
    assert wish.choose("style", ["modern"]) is None
    assert Wish.parse("find red shoes").limit == float("inf")


HEAD = "Instruction: [SEP] Find me lamps with color: red, and price lower than 20.00 dollars [SEP] "
RESULTS = (
    HEAD + "Back to Search [SEP] Page 1 (Total results: 3) [SEP] Next > [SEP] B000000001 [SEP] Dear Lamp [SEP] $25.0 "
    "[SEP] B000000002 [SEP] Blue Lamp [SEP] $9.0 to $30.0 [SEP] B000000003 [SEP] Lamp [SEP] $10.0"
)


def item(name: str, *colors: str) -> str:
    options = "".join(f"{color} [SEP] " for color in colors)
    return (
        f"{HEAD}Back to Search [SEP] < Prev [SEP] color [SEP] {options}{name} [SEP] Price: $9.0 [SEP] Rating: N.A. "
        "[SEP] Description [SEP] Features [SEP] Reviews [SEP] Buy Now"
    )


def clicks(*names: str) -> dict[str, list[str]]:
    return {"admissible": [f"click[{name}]" for name in names]}


def test_it_goes_back_where_an_option_is_missing_and_buys_what_has_it() -> None:
    shopper = Shopper()
    shopper.reset("WebShop [SEP] " + HEAD + "Search", {"admissible": ["search[<your query>]"]})
    results = clicks("back to search", "next >", "b000000001", "b000000002", "b000000003")
    pages = [
        ("search[lamps red]", RESULTS, results),
        ("click[b000000002]", item("Blue Lamp", "blue"), clicks("< prev", "buy now", "blue")),
        ("click[< prev]", RESULTS, results),
        ("click[b000000003]", item("Lamp", "red", "blue"), clicks("< prev", "buy now", "red", "blue")),
        ("click[red]", item("Lamp", "red", "blue"), clicks("< prev", "buy now", "red", "blue")),
        ("click[buy now]", "Thank you", clicks()),
    ]
    for action, page, info in pages:
        assert shopper.act() == action
        shopper.observe(action, page, info)


def test_it_gives_an_action_in_an_episode_that_another_agent_plays() -> None:
    shopper = Shopper()
    shopper.reset("WebShop [SEP] " + HEAD + "Search", {"admissible": ["search[<your query>]"]})
    shopper.observe(
        "click[features]", HEAD + "Back to Search [SEP] < Prev [SEP] soft", clicks("back to search", "< prev")
    )
    assert shopper.act() == shopper.act() == "click[< prev]"
    empty = HEAD + "Back to Search [SEP] Page 1 (Total results: 0) [SEP] Next >"
    shopper.observe("search[zzz]", empty, clicks("back to search", "next >"))
    assert shopper.act() == "click[back to search]"


def test_an_unknown_page_is_refused() -> None:
    with pytest.raises(ValueError, match="expected the first page of WebShop in text mode, got 'You are in a room"):
        Shopper().reset("You are in a room.", {})


def success_of(tasks: WebShopTasks, split: str, count: int) -> float:
    env, won = tasks.make(), 0
    for task_id in tasks.manifest(split).ids[:count]:
        shopper = tasks.expert()
        observation, info = env.reset(options={"task": tasks.task(split, task_id)})
        shopper.reset(observation, info)
        while info["stop_reason"] is None:
            action = shopper.act()
            observation, _, _, _, info = env.step(action)
            shopper.observe(action, observation, info)
        won += info["success"]
    return won / count


def test_it_buys_the_right_thing_most_of_the_time() -> None:
    assert success_of(WebShopTasks(catalogue="embedded"), "test", 100) > 0.75
    assert success_of(WebShopTasks(catalogue="embedded", instructions="human"), "test", 50) > 0.7


@pytest.mark.skipif(
    not (DATA and Path(DATA, "webshop", "items_shuffle_1000.json").is_file()),
    reason="needs the official small catalogue in POLYTURN_DATA",
)
def test_it_succeeds_in_the_official_catalogue() -> None:
    assert success_of(WebShopTasks(catalogue="small"), "test", 100) > 0.6
