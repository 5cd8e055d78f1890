"""The reward of a purchase, part by part."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.webshop import reward as module
from envs.webshop.catalogue import Product
from envs.webshop.goals import Goal
from envs.webshop.reward import COLORS, normalize_color, score_purchase, token_set_ratio

LAMP = Product(
    asin="LAMP000001",
    name="Red Desk Lamp",
    description="of solid brass",
    bullets=("dimmable", "easy to clean"),
    category="garden",
    query="lamps",
    product_category="Home › Lights › Lamps",
    image="",
    prices=(20.0,),
    price_tag="$20.0",
    options={"color": ("red", "dark blue"), "size": ("small", "large")},
    attributes=("energy efficient", "long lasting"),
    instruction=None,
    instruction_attributes=(),
    human=(),
)
GOAL = Goal(
    asin="LAMP000001",
    category="garden",
    query="lamps",
    name="Red Desk Lamp",
    product_category="Home › Lights › Lamps",
    instruction_text="Find me …",
    attributes=("energy efficient", "solid brass"),
    price_upper=20.0,
    goal_options={"color": "dark blue", "size": "large"},
    weight=1.0,
)
NOUNS = ("desk", "lamp")
# What an option is like goes by letters: `token_set_ratio` is on these, and on the words of the catalogue.
TEXTS = st.text(alphabet=st.sampled_from("ab c-_'é\u00a0ñ1×"), max_size=20)


def bought(product=LAMP, goal=GOAL, price=20.0, options=("dark blue", "large"), nouns=NOUNS, goal_nouns=NOUNS):
    return score_purchase(product, goal, price, options, nouns, goal_nouns)


def test_the_requested_product_scores_1():
    reward = bought()
    assert reward.total == 1.0
    assert reward.details() == {
        "r_type": 1.0,
        "r_att": 1.0,
        "w_att": 0.4,
        "query_match": True,
        "category_match": True,
        "title_score": 1.0,
        "r_option": 1.0,
        "w_option": 0.4,
        "r_price": True,
        "w_price": 0.2,
    }


@pytest.mark.parametrize(
    ("change", "total"),
    [
        ({"price": 20.01}, 0.8),
        ({"options": ("large",)}, 0.8),
        ({"options": ()}, 0.6),
        ({"product": replace(LAMP, description="of tin")}, 0.8),
        ({"product": replace(LAMP, description="of tin", name="SOLID BRASS lamp")}, 1.0),
        ({"product": replace(LAMP, description="of tin", bullets=("solid", "brass"))}, 1.0),  # joined by a blank
        ({"product": replace(LAMP, attributes=("energy efficient lamps",))}, 1.0),  # the words of one are in the other
        ({"product": replace(LAMP, attributes=("energetic",))}, 0.8),
    ],
)
def test_each_part_counts_alike(change, total):
    assert bought(**change).total == pytest.approx(total)


@pytest.mark.parametrize(
    ("query", "category", "nouns", "goal_nouns", "r_type"),
    [
        ("lamps", "Other", ("desk",), ("desk", "lamp"), 1.0),
        ("chairs", "Home › Seats › Lights", ("oak", "desk"), ("desk", *"abcdefgh"), 1.0),  # two parts in common
        ("chairs", "Home › Seats", ("desk",), ("desk", *"abcd"), 0.5),  # 0.2 is not above 0.2
        ("chairs", "Home › Seats", ("desk",), ("desk", *"abc"), 1.0),
        ("lamps", "Home › Lights", ("desk",), ("desk", *"abcdefghij"), 0.1),
        ("lamps", "Home › Lights", ("oak",), ("desk",), 0.0),
        ("chairs", "Home", (), (), 0.5),  # a goal without nouns has the title score 0.2
    ],
)
def test_the_type_follows_query_category_and_nouns(query, category, nouns, goal_nouns, r_type):
    reward = bought(replace(LAMP, query=query, product_category=category), nouns=nouns, goal_nouns=goal_nouns)
    assert reward.r_type == r_type
    assert reward.total == r_type


def test_repeated_nouns_of_the_goal_count_each_time():
    assert bought(nouns=("lamp", "lamp"), goal_nouns=("lamp", "lamp")).title_score == 0.5


def test_a_colour_of_a_synthetic_goal_matches_similar_ones():
    """The goal compares "('color', 'dark blue')", the purchase only "dark" for "dark navy": a subset of its words."""
    assert bought(options=("dark navy", "large")).options_met == 2
    assert bought(options=("navy", "large")).options_met == 1


def test_a_human_goal_lists_plain_values():
    goal = replace(GOAL, goal_options=("light red", "large"))
    assert bought(goal=goal, options=("light teal", "large")).options_met == 2  # both are "light"
    assert bought(goal=goal, options=("red", "large")).options_met == 1


def test_a_goal_without_options_does_not_mention_them():
    details = bought(goal=replace(GOAL, goal_options={}), options=("red",)).details()
    assert "r_option" not in details
    assert "w_option" not in details
    assert details["w_att"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("text", "color"),
    [
        ("x-large tan", "tan"),
        ("embroidered", "red"),
        ("washed", "ash"),
        ("dark blue", "blue"),
        ("medium", "medium"),
        (("color", "dark blue"), ("color", "dark blue")),
        (("color", "blue"), "blue"),
    ],
)
def test_the_first_colour_stands_for_an_option(text, color):
    assert normalize_color(text) == color


def test_colours_are_tried_in_the_order_of_the_alphabet():
    assert list(COLORS) == sorted(set(COLORS))
    assert len(COLORS) == 102


@pytest.mark.parametrize(
    ("a", "b", "ratio"),
    [
        ("Dining Room!", "room, dining", 100),
        ("blue", "light blue", 100),
        ("café", "caf", 100),  # Latin-1 is deleted …
        ("16×24inch", "1624inch", 100),
        ("naïve ☕", "nave", 100),
        ("a_b", "a b", 67),  # … and an underscore is a letter
        ("", "a", 0),
        ("!?", "!?", 0),
        ("black tea", "green tea", 50),
    ],
)
def test_words_are_compared_as_sets(a, b, ratio):
    assert token_set_ratio(a, b) == ratio


@given(TEXTS, TEXTS)
def test_the_fast_match_agrees_with_the_ratio(a, b):
    assert module._alike(a, b) == (token_set_ratio(a, b) > 85)


def test_recorded_ratios_and_colours():
    path = Path(__file__).parent.parent / "golden_data" / "webshop" / "fuzz.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    for a, b, ratio in data["token_set_ratio"]:
        other = str(tuple(b)) if isinstance(b, list) else b
        assert token_set_ratio(a, other) == ratio, (a, b)
        assert module._alike(a, other) == (ratio > 85), (a, b)
    assert [normalize_color(text) for text, _ in data["normalize_color"]] == [
        color for _, color in data["normalize_color"]
    ]
