"""The generated catalogue: the official schema, equal on all machines, with goals that need care."""

from __future__ import annotations

import json
from collections import Counter
from math import prod
from pathlib import Path

import pytest

from envs.checksums import SUMS
from envs.webshop.catalogue import load_catalogue
from envs.webshop.generate import HUMAN, INSTRUCTIONS, ITEMS, NOUNS, embedded_catalogue, make_files, vocabulary
from envs.webshop.goals import NO_LIMIT, build_goals, sample_prices
from envs.webshop.reward import score_purchase


@pytest.fixture(scope="module")
def files() -> dict:
    return make_files(1000)


def test_the_same_size_gives_the_same_files(files: dict) -> None:
    assert make_files(1000) == files
    assert make_files(60) != make_files(60, seed=1)


def test_products_have_the_official_fields_and_differ(files: dict) -> None:
    asins = [item["asin"] for item in files[ITEMS]]
    assert len(set(asins)) == 1000
    assert all(len(asin) == 10 and asin.startswith("B0") and asin == asin.upper() for asin in asins)
    assert set(files[INSTRUCTIONS]) == set(files[HUMAN]) == set(files[NOUNS]) == set(asins)
    assert Counter(item["category"] for item in files[ITEMS]).keys() == {
        "fashion", "garden", "beauty", "electronics", "grocery"
    }  # fmt: skip
    assert len({item["query"] for item in files[ITEMS]}) == len(vocabulary()["kinds"])
    assert len({item["name"] for item in files[ITEMS]}) > 900
    tags = Counter(item["pricing"].count("$") for item in files[ITEMS])
    assert tags[1] > 800
    assert tags[2] > 50
    assert tags[0] > 5  # no price is known


def test_the_text_of_a_product_contains_its_attributes(files: dict) -> None:
    for item in files[ITEMS]:
        text = " ".join([item["name"], item["full_description"], *item["small_description"]]).lower()
        entry = files[INSTRUCTIONS][item["asin"]]
        assert all(attribute in text for attribute in entry["attributes"])
        if "instruction" in entry:
            assert entry["instruction"].startswith("Find me ")
            assert item["query"] in entry["instruction"]
            assert set(entry["instruction_attributes"]) <= set(entry["attributes"])
            assert all(attribute in entry["instruction"] for attribute in entry["instruction_attributes"])
        (human,) = files[HUMAN][item["asin"]]
        assert all(wanted in human["instruction"] for wanted in human["instruction_attributes"])
        assert all(wanted in human["instruction"] for wanted in human["instruction_options"])
        assert set(files[NOUNS][item["asin"]]) <= set(item["name"].lower().replace(",", "").split())


def test_every_kind_has_products_that_share_attributes(files: dict) -> None:
    """Else the search alone would find the right one."""
    kinds: dict[str, list[set[str]]] = {}
    for item in files[ITEMS]:
        kinds.setdefault(item["query"], []).append(set(files[INSTRUCTIONS][item["asin"]]["attributes"]))
    alike = [max(len(a & b) for b in others if b is not a) for others in kinds.values() for a in others]
    assert min(alike) >= 1
    assert sum(count >= 2 for count in alike) > 0.9 * len(alike)


def test_every_goal_can_be_reached_by_its_product(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYTURN_CACHE", str(tmp_path))
    folder = embedded_catalogue()
    assert embedded_catalogue() == folder
    catalogue = load_catalogue(folder)
    goals, prices = build_goals(catalogue, 0), sample_prices(catalogue, 0)
    made = make_files(1000)
    options = {item["asin"]: item["customization_options"] or {} for item in made[ITEMS]}
    assert len(goals) == sum(
        prod(len(values) for values in options[asin].values())
        for asin, entry in made[INSTRUCTIONS].items()
        if "instruction" in entry
    )
    assert sum(goal.price_upper == NO_LIMIT for goal in goals) < len(goals) / 50
    for goal in goals[::7]:
        index = catalogue.index(goal.asin)
        nouns = catalogue.nouns(index)
        bought = score_purchase(
            catalogue.product(index), goal, float(prices[index]), list(goal.goal_options.values()), nouns, nouns
        )
        assert bought.total == 1.0, goal.instruction_text


def test_files_are_there_whole_and_too_small_a_catalogue_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POLYTURN_CACHE", str(tmp_path))
    folder = embedded_catalogue(60)
    assert {path.name for path in folder.iterdir()} == {ITEMS, INSTRUCTIONS, HUMAN, NOUNS, SUMS}
    assert len(json.loads((folder / ITEMS).read_text())) == 60
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    with pytest.raises(ValueError, match=f"at least {len(vocabulary()['kinds'])} products, got 10"):
        embedded_catalogue(10)
