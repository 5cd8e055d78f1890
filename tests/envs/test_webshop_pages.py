"""Pages, their texts, and the actions that lead from one to another."""

from __future__ import annotations

import random
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.webshop.env import open_shop
from envs.webshop.goals import Goal, build_goals, sample_prices
from envs.webshop.pages import Shop, UnansweredError, parse_action, quoted

LAMP = "click[lamp000001]"


class Walk:
    """Steps through a shop with fixed prices, one page after another."""

    def __init__(self, shop, goal, session="me"):
        self.shop, self.page, self.rng = shop, shop.start(goal, session), random.Random(0)
        self.prices = np.full(len(shop.catalogue), 25.0)

    def __call__(self, *actions):
        for action in actions:
            self.page = self.shop.step(self.page, action, self.prices, self.rng)
        return self.page

    @property
    def clickables(self):
        return self.shop.clickables(self.page)

    @property
    def text(self):
        return self.shop.text(self.page)

    @property
    def rich(self):
        return self.shop.text_rich(self.page)

    @property
    def url(self):
        return self.shop.url(self.page)

    @property
    def shown(self):
        return [self.shop.catalogue.asins[i] for i in self.page.shown]


@pytest.fixture(scope="module")
def shop(shop_folder):
    return open_shop(shop_folder)


@pytest.fixture
def goal(shop):
    return Goal.from_json(
        {
            "asin": "LAMP000001",
            "category": "garden",
            "query": "lamps",
            "name": "Red Desk Lamp",
            "product_category": "Home › Lights",
            "instruction_text": "Find me a lamp",
            "attributes": ["dimmable", "solid brass"],
            "price_upper": 25.0,
            "goal_options": {"color": "red", "size": "large"},
            "weight": 1,
        }
    )


@pytest.fixture
def walk(shop, goal):
    return Walk(shop, goal)


# -- actions ----------------------------------------------------------------------------------------------------------
@given(st.text(alphabet=st.sampled_from("ab[] \n\r\u2028]["), max_size=12))
def test_actions_are_read_as_the_official_expression_reads_them(action):
    found = re.match(r"(.+)\[(.+)\]", action)
    assert parse_action(action) == ((found[1], found[2].lower()) if found else ("", ""))


@pytest.mark.parametrize(
    "action",
    [
        " search[lamp]",
        "Search[lamp]",
        "I search[lamp]",
        "search [lamp]",
        "search[]",
        "search[a [b]]",
        "search[a] click[b]",
        "click[search]",
        "click[buy now]",
        "click[ search ]",
        "",
        "search",
        "\nsearch[lamp]",
    ],
)
def test_invalid_actions_do_not_change_the_page(walk, action):
    before = walk.page
    assert walk(action) is before


def test_text_after_an_action_does_not_matter(walk):
    assert walk("search[LAMP] please\n").keywords == ("lamp",)
    assert walk("click[Back To Search] now").kind == "search"


@pytest.mark.parametrize("action", ["[" * 10**6, "]" * 10**6, "click" + "[" * 10**6 + "a]", "[]" * 10**6])
def test_a_million_brackets_are_read_at_once(action):
    parse_action(action)  # a backtracking expression would take hours for the first


# -- the search page --------------------------------------------------------------------------------------------------
def test_the_search_page(walk):
    assert walk.text == "WebShop [SEP] Instruction: [SEP] Find me a lamp [SEP] Search"
    assert walk.rich == "WebShop\nInstruction: \nFind me a lamp\n[button] Search [button_]\n"
    assert walk.clickables == ("search",)
    assert walk.url == "http://127.0.0.1:3000/me"


# -- results ----------------------------------------------------------------------------------------------------------
def test_results_are_pages_of_ten(walk):
    walk("search[bulb]")
    assert walk.text.startswith(
        "Instruction: [SEP] Find me a lamp [SEP] Back to Search [SEP] Page 1 (Total results: 50) [SEP] Next > [SEP] B"
    )
    assert walk.text.count("$100.0") == 10  # the price of what has none
    assert walk.clickables == ("back to search", "next >", *(asin.lower() for asin in walk.shown))
    first = walk.shown
    walk("click[next >]")
    assert walk.clickables[:3] == ("back to search", "< prev", "next >")
    assert not set(walk.shown) & set(first)
    assert walk.url == "http://127.0.0.1:3000/search_results/me/bulb/2"
    walk("click[< prev]")
    assert walk.shown == first


def test_past_the_last_page_there_is_nothing_and_a_next_page(walk):
    walk("search[bulb]", *["click[next >]"] * 5)
    assert walk.shown == []
    assert walk.clickables == ("back to search", "< prev", "next >")
    assert "Page 6 (Total results: 50)" in walk.text


def test_blanks_between_words_are_words(walk):
    assert walk("search[ ]").keywords == ("", "")
    assert "Total results: 0" in walk.text
    assert walk("search[ lamp]").keywords == ("", "lamp")
    assert walk.url == "http://127.0.0.1:3000/search_results/me/+lamp/1"


def test_products_looked_at_are_marked_until_the_next_search_page(walk):
    walk("search[lamp]", LAMP, "click[< prev]")
    assert "\n[clicked button] LAMP000001 [clicked button_]\nRed Desk Lamp\n$20.0 to $30.0\n" in walk.rich
    assert "\n[button] LAMP000002 [button_]\n" in walk.rich
    walk("search[lamp]")
    assert "[clicked button] LAMP000001" in walk.rich
    walk("click[back to search]", "search[lamp]")
    assert "[clicked button]" not in walk.rich


def test_a_first_word_may_ask_for_a_category_or_a_query(walk, shop):
    walk("search[<c> furniture]")
    assert walk.shown == ["CHAIR00001"]
    walk("search[<q> chairs]")
    assert walk.shown == ["CHAIR00001"]
    assert len(walk("search[<c> bulbs]").hits) == 60  # no limit here
    assert walk("search[<c> furniture and more]").hits == [shop.catalogue.index("CHAIR00001")]  # one word counts
    assert walk("search[<q>]").hits == []


def test_random_products_are_drawn_for_every_page(walk):
    first = walk("search[<r>]").hits
    assert len(set(first)) == 50
    second = walk("click[next >]").hits
    assert second != first
    walk.rng.seed(0)
    assert walk("search[<r>]").hits == first


@pytest.mark.parametrize(("action", "error"), [("search[<a> dimmable]", "TypeError"), ("search[<c>]", "IndexError")])
def test_searches_that_break_the_official_server_raise(walk, action, error):
    before = walk.page
    with pytest.raises(UnansweredError) as caught:
        walk(action)
    assert caught.value.official == error
    assert walk.page is before


# -- products ---------------------------------------------------------------------------------------------------------
def test_the_page_of_a_product(walk):
    walk("search[lamp]", LAMP)
    assert walk.text == (
        "Instruction: [SEP] Find me a lamp [SEP] Back to Search [SEP] < Prev [SEP] color [SEP] red [SEP] navy | white"
        " [SEP] size [SEP] small [SEP] large [SEP] Red Desk Lamp [SEP] Price: $20.0 to $30.0 [SEP] Rating: N.A."
        " [SEP] Description [SEP] Features [SEP] Reviews [SEP] Buy Now"
    )
    buttons = ("back to search", "< prev", "description", "features", "reviews", "buy now")
    assert walk.clickables == (*buttons, "red", "navy | white", "small", "large")
    assert walk.url == "http://127.0.0.1:3000/item_page/me/LAMP000001/lamp/1/{}"


def test_options_replace_each_other_within_their_group(walk):
    walk("search[lamp]", LAMP, "click[small]", "click[red]", "click[Large]")
    assert list(walk.page.options.items()) == [("size", "large"), ("color", "red")]
    assert walk.url.endswith('/1/{"size": "large", "color": "red"}')
    assert walk.rich.startswith("You have clicked large.\nYou have clicked red.\nInstruction:\n")
    assert "color\n  [clicked button] red [clicked button_]\n  [button] navy | white [button_]\n" in walk.rich
    assert "color" in walk.text
    assert "clicked" not in walk.text


def test_odd_options(walk):
    walk("search[desk]", "click[lamp000002]")
    assert walk.clickables[5:] == ("buy now", "x", "same", 'y "z"', "café")  # `features` is a button already
    walk("click[same]")
    assert walk.page.options == {"second": "same"}  # the last group that has it
    walk('click[y "z"]', "click[café]")
    assert walk.page.options == {"second": "café"}
    assert "clicked" not in walk.rich  # the URL writes both otherwise
    walk("click[features]")
    assert walk.page.sub == "Features"  # names of pages come before options


def test_words_of_the_search_may_look_like_a_chosen_option(walk):
    walk('search[lamp "large"]', LAMP)
    assert walk.rich.startswith("You have clicked large.\n")
    assert walk.page.options == {}


@pytest.mark.parametrize(
    ("sub", "text", "rich"),
    [
        ("description", " [SEP] A lamp of <b>brass</b> & glass.", "A lamp of <b>brass</b> & glass.\n"),
        ("features", " [SEP] dimmable [SEP]  [SEP] energy  efficient", " dimmable\n \n energy  efficient\n"),
        ("reviews", "", ""),
    ],
)
def test_sub_pages(walk, sub, text, rich):
    walk("search[lamp]", LAMP, "click[red]", f"click[{sub}]")
    assert walk.text == f"Instruction: [SEP] Find me a lamp [SEP] Back to Search [SEP] < Prev{text}"
    assert walk.rich.endswith(f"[button] < Prev [button_]\n{rich}")
    assert walk.clickables == ("back to search", "< prev")
    assert walk.url.endswith(f"/item_sub_page/me/LAMP000001/lamp/1/{sub.title()}/{{'color': 'red'}}")
    assert walk("click[buy now]", "click[red]").kind == "sub"
    assert walk("click[< prev]").kind == "item"
    assert walk.page.options == {"color": "red"}


def test_attributes_are_shown_if_configured(shop, goal):
    telling = Walk(Shop(shop.catalogue, shop.index, show_attributes=True), goal)
    telling("search[lamp]", LAMP)
    assert telling.clickables[4:7] == ("reviews", "attributes", "buy now")
    telling("click[attributes]")
    expected = (
        "< Prev [SEP] dimmable [SEP] energy efficient [SEP] solid brass [SEP] garden [SEP] lamps [SEP] Home › Lights"
    )
    assert telling.text.endswith(expected)


def test_back_from_a_product_forgets_its_options(walk):
    walk("search[bulb]", "click[next >]")
    click = f"click[{walk.shown[0].lower()}]"
    page = walk(click, "click[< prev]")
    assert (page.kind, page.number, page.options, page.product) == ("results", 2, {}, -1)
    walk("search[lamp]", LAMP, "click[red]", "click[< prev]", LAMP)
    assert walk.page.options == {}


def test_the_way_back_goes_by_the_first_name_of_a_page_in_the_url(walk):
    walk("search[lamp search_results]", LAMP, "click[< prev]")
    assert (walk.page.kind, walk.page.number) == ("results", 0)
    assert walk.shown == []
    assert walk.clickables == ("back to search", "next >")
    walk("search[lamp item_page]", LAMP, "click[features]", "click[< prev]")
    assert walk.page.kind == "results"


def test_the_way_back_goes_by_the_session_too(shop, goal):
    walk = Walk(shop, goal, session="search_results")
    walk("search[bulb]", "click[next >]")
    walk(f"click[{walk.shown[0].lower()}]", "click[< prev]")
    assert (walk.page.kind, walk.page.number) == ("results", 1)


# -- buying -----------------------------------------------------------------------------------------------------------
def test_a_purchase_is_scored(walk):
    page = walk("search[lamp]", LAMP, "click[large]", "click[red]", "click[buy now]")
    assert page.reward.total == 1.0
    assert walk.clickables == ()
    assert walk.text.startswith(
        "Thank you for shopping with us! [SEP] Your code: [SEP] None [SEP] (Paste it in your MTurk"
    )
    assert '[SEP] asin [SEP] LAMP000001 [SEP] options [SEP] {"color": "red", "size": "large"} [SEP]' in walk.text
    assert walk.text.endswith("[SEP] Your score (min 0.0, max 1.0) [SEP] 1.0 [SEP] Reward Details [SEP] None")
    assert walk.url == "http://127.0.0.1:3000/done/me/LAMP000001/{'size': 'large', 'color': 'red'}"


def test_options_on_the_receipt_are_json_for_html(walk):
    walk("search[desk]", "click[lamp000002]", "click[café]", "click[x]", "click[buy now]")
    assert '{"first": "x", "second": "caf\\u00e9"}' in walk.text


def test_a_search_works_after_a_purchase(walk):
    bought = walk("search[lamp]", LAMP, "click[buy now]")
    assert walk("click[buy now]", "click[back to search]") is bought
    page = walk("search[lamp]")
    assert (page.kind, page.reward) == ("results", None)
    assert walk(LAMP, "click[red]", "click[large]", "click[buy now]").reward.total == 1.0


# -- keys and quotes --------------------------------------------------------------------------------------------------
def test_equal_keys_are_equal_states(walk, shop):
    walk("search[lamp]", LAMP, "click[red]", "click[large]")
    key = shop.key(walk.page)
    walk("click[back to search]", "search[lamp]", LAMP, "click[large]", "click[red]")
    assert shop.key(walk.page) == key
    others = [walk("click[small]"), walk("click[features]"), walk("click[back to search]"), walk("search[bulb]")]
    assert len({key, *map(shop.key, others), shop.key(walk("click[next >]"))}) == 6


def test_verl_agent_quotes_what_follows_the_task(walk):
    assert quoted(walk.text, "Find me a lamp") == "'Search'"
    walk("search[lamp]", LAMP, "click[buy now]")
    assert quoted(walk.text, "Find me a lamp") == walk.text


# -- goals ------------------------------------------------------------------------------------------------------------
def test_goals_are_combinations_of_options(shop):
    goals = build_goals(shop.catalogue, 0)
    lamps = [goal for goal in goals if goal.asin == "LAMP000001"]
    assert len(goals) == 5
    assert {tuple(goal.goal_options.items()) for goal in lamps} == {
        (("color", color), ("size", size)) for color in ("red", "navy | white") for size in ("small", "large")
    }
    limit = lamps[0].price_upper
    assert lamps[0].instruction_text.startswith("Find me dimmable lamps with solid brass with color: ")
    assert lamps[0].instruction_text.endswith(f", and price lower than {limit:.2f} dollars")
    chair = next(goal for goal in goals if goal.asin == "CHAIR00001")
    assert chair.instruction_text.startswith("Find me chairs, and price lower than ")
    assert [goal.weight for goal in lamps] == [0.25] * 4  # the mean of 1/4 and 1/4
    assert chair.weight == 1.0


def test_human_goals_are_instructions_with_attributes(shop):
    [goal] = build_goals(shop.catalogue, 0, human=True)
    assert goal.instruction_text.startswith("i want a red lamp, and price lower than ")
    assert goal.goal_options == ("red",)


def test_a_limit_is_the_larger_of_two_of_the_next_four_tens(shop):
    chairs = [goal for seed in range(60) for goal in build_goals(shop.catalogue, seed) if goal.asin == "CHAIR00001"]
    assert {goal.price_upper for goal in chairs} == {30.0, 40.0, 50.0}  # the chair is 10 dollars: of 20, 30, 40, 50


def test_prices_and_goals_follow_the_seed(shop):
    catalogue = shop.catalogue
    assert list(build_goals(catalogue, 1)) == list(build_goals(catalogue, 1))
    prices = [float(sample_prices(catalogue, seed)[0]) for seed in range(5)]
    assert all(20.0 <= price <= 30.0 for price in prices)
    assert len(set(prices)) == 5
    orders = {
        tuple(goal.goal_options.items())
        for seed in range(9)
        for goal in build_goals(catalogue, 0, shuffle_seed=seed)[:1]
    }
    assert len(orders) > 1


def test_goals_are_plain_data(shop):
    for human in (False, True):
        for goal in build_goals(shop.catalogue, 0, human=human):
            assert Goal.from_json(goal.to_json()) == goal
    with pytest.raises(ValueError, match="missing or unknown: weight"):
        Goal.from_json({name: value for name, value in goal.to_json().items() if name != "weight"})
    with pytest.raises(ValueError, match="asks for no attributes"):
        Goal.from_json(goal.to_json() | {"attributes": []})
