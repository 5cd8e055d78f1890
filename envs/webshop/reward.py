"""The reward of a purchase: how well type, attributes, options and price of the product match the goal.

    total = r_type * (attributes met + options met + (price within the limit)) / (attributes + options + 1)

This is the formula of WebShop (arXiv 2207.01206, section 3.1) as the official code computes it; its accidents affect
every published score and are kept. Texts match if `token_set_ratio` is above 85: thefuzz 0.19 on difflib, which later
versions and rapidfuzz do not reproduce. Nouns of names are arguments: the official ones come from a tagger and depend
on its model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import lru_cache
from typing import Any

from envs.webshop.catalogue import Product
from envs.webshop.goals import Goal

ALIKE = 85  # a score above this is a match
# Tried in this order: the first one in an option's text replaces the whole option.
_COLORS = """
    alabaster apricot aqua ash asphalt azure banana beige black blue blush bordeaux bronze brown burgundy camel camo
    caramel champagne charcoal cheetah chestnut chocolate christmas coffee cognac copper coral cranberry cream
    crystal dark denim eggplant elephant espresso fuchsia gold granite grape graphite grass gray green grey heather
    indigo ivory ivy khaki lavender lemon leopard light lilac lime magenta maroon mauve merlot midnight mint mocha
    multicolor mushroom mustard natural navy nude olive orange peach pewter pink plum purple rainbow red rose royal
    rust sand sapphire seashell silver skull slate steel stone stonewash sunflower tan taupe teal tiger turquoise
    violet walnut wheat white wine yellow
"""
COLORS = tuple(_COLORS.split())
_LATIN_1 = dict.fromkeys(range(128, 256))
_NO_WORD = re.compile(r"\W")


@dataclass(frozen=True, slots=True)
class Reward:
    """The score of a purchase. Fractions `r_…` are of what the goal asks for, `w_…` their shares in the total."""

    total: float
    r_type: float  # 1.0, 0.5, 0.1 or 0.0
    query_match: bool
    category_match: bool
    title_score: float
    attributes: int  # number that the goal asks for
    attributes_met: int
    options: int
    options_met: int
    price_met: bool

    def details(self) -> dict[str, Any]:
        """The parts by their official names; those of options are absent if the goal asks for none."""
        parts = self.attributes + self.options + 1
        details = {
            "r_type": self.r_type,
            "r_att": self.attributes_met / self.attributes,
            "w_att": self.attributes / parts,
            "query_match": self.query_match,
            "category_match": self.category_match,
            "title_score": self.title_score,
            "r_price": self.price_met,
            "w_price": 1 / parts,
        }
        if self.options:
            details |= {"r_option": self.options_met / self.options, "w_option": self.options / parts}
        return details


def score_purchase(
    product: Product,
    goal: Goal,
    price: float,
    options: Sequence[str],
    product_nouns: Sequence[str],
    goal_nouns: Sequence[str],
) -> Reward:
    """Score the purchase of `product` at `price` with the chosen `options`; nouns are of both names, with repeats."""
    query_match = product.query == goal.query
    category_match = len(_categories(product.product_category) & _categories(goal.product_category)) >= 2
    # Over all nouns of the goal, with repeats: even the requested product may score below 1.
    title_score = len(set(product_nouns) & set(goal_nouns)) / len(goal_nouns) if goal_nouns else 0.2
    r_type = 1.0 if query_match or category_match or title_score > 0.2 else 0.5
    if title_score < 0.1:
        r_type = 0.1 if title_score else 0.0
    attributes_met = _attributes_met(product, goal.attributes)
    options_met = _options_met(options, goal)
    price_met = price <= goal.price_upper
    parts = len(goal.attributes) + len(goal.goal_options) + 1
    return Reward(
        (attributes_met + options_met + price_met) / parts * r_type,
        r_type,
        query_match,
        category_match,
        title_score,
        len(goal.attributes),
        attributes_met,
        len(goal.goal_options),
        options_met,
        price_met,
    )


def _categories(path: str) -> set[str]:
    return {part.strip() for part in path.split("›")}


def _attributes_met(product: Product, wanted: Sequence[str]) -> int:
    texts = (product.name.lower(), " ".join(product.bullets).lower(), product.description.lower())
    return sum(
        any(_alike(has, asked) for has in product.attributes) or any(asked in text for text in texts)
        for asked in wanted
    )


def _options_met(chosen: Sequence[str], goal: Goal) -> int:
    """The number of the goal's options that match a chosen value.

    Options of a synthetic goal are pairs (name, value) here, and the comparison uses the pair's written form: a colour
    replaces the option only if it equals the whole name or value.
    """
    asked = goal.goal_options.items() if isinstance(goal.goal_options, Mapping) else goal.goal_options
    wanted = [str(normalize_color(option)) for option in asked]
    has = [str(normalize_color(value)) for value in chosen]
    return sum(any(_alike(value, option) for value in has) for option in wanted)


def normalize_color(option: str | tuple[str, str]) -> str | tuple[str, str]:
    """The first colour in `option`, if there is any: "x-large tan" is "tan", and "embroidered" is "red"."""
    return next((color for color in COLORS if color in option), option)


def token_set_ratio(a: str, b: str) -> int:
    """thefuzz 0.19: similarity of the sets of words, 0 to 100; 100 if one contains the other."""
    return max((_ratio(x, y) for x, y in _pairs(a, b)), default=0)


@lru_cache(maxsize=16384)
def _alike(a: str, b: str) -> bool:
    """`token_set_ratio(a, b) > ALIKE`, but bounds avoid most of the work."""
    return any(_could_be(x, y) and _ratio(x, y) > ALIKE for x, y in _pairs(a, b))


def _pairs(a: str, b: str) -> list[tuple[str, str]]:
    """The texts that are compared: the common words, and these with the other words of either text, each sorted."""
    words_a, words_b = _words(a), _words(b)
    if not words_a or not words_b:
        return []
    common = sorted(words_a & words_b)
    shared = " ".join(common)
    with_a = " ".join([*common, *sorted(words_a - words_b)])
    with_b = " ".join([*common, *sorted(words_b - words_a)])
    return [(shared, with_a), (shared, with_b), (with_a, with_b)] if common else [(with_a, with_b)]


@lru_cache(maxsize=16384)
def _words(text: str) -> frozenset[str]:
    return frozenset(_NO_WORD.sub(" ", text.translate(_LATIN_1)).lower().split())


def _ratio(a: str, b: str) -> int:
    return 100 if a == b else round(100 * SequenceMatcher(None, a, b).ratio())


def _could_be(a: str, b: str) -> bool:
    """Whether a match is possible, judging first by the lengths and then by the letters."""
    enough = ALIKE * (len(a) + len(b)) / 200
    return min(len(a), len(b)) > enough and sum(min(a.count(c), b.count(c)) for c in set(a)) > enough
