"""The official server and text environment around the shop: named sessions, one generator for all, no end.

What differs from `envs.webshop.env.WebShopEnv`: a session keeps its goal for ever, a new one without a number draws it,
and after a purchase the same session goes on where somebody searches.
"""

from __future__ import annotations

import random
import string
from bisect import bisect_right
from collections import Counter
from typing import Any

import numpy as np

from envs.webshop.goals import OFFICIAL_SHUFFLE, build_goals, sample_prices
from envs.webshop.pages import SEPARATOR, Page, Shop
from envs.webshop.reward import Reward


class OfficialEnv:
    """`WebAgentTextEnv` after `random.seed(seed)`. What is shown stands in `page`."""

    def __init__(
        self, shop: Shop, seed: int, human: bool = False, previous_observations: int = 0, previous_actions: int = 0
    ) -> None:
        """`previous_…`: how many of each `state` shows beside what is there now."""
        self.shop = shop
        self.goals = build_goals(shop.catalogue, seed, human=human)
        self.prices = sample_prices(shop.catalogue, seed)
        self.weights = [0.0, *np.cumsum(self.goals.weights).tolist()]
        self.rng = random.Random(OFFICIAL_SHUFFLE)
        self.rng.shuffle([None] * len(self.goals))  # the state in which shuffling the goals leaves the generator
        self.sessions: dict[str, int] = {}  # the goals that sessions keep
        self.limits = (previous_observations, previous_actions)
        self.reset()

    def reset(self, session: int | str | None = None) -> None:
        """The start of a session; a name is drawn where none is given."""
        self.session = "".join(self.rng.choices(string.ascii_lowercase, k=10)) if session is None else str(session)
        if self.session not in self.sessions:
            self.sessions[self.session] = session if isinstance(session, int) else self._draw()
        self.goal_index = self.sessions[self.session]
        self.page: Page = self.shop.start(self.goals[self.goal_index], self.session)
        self.actions: Counter[str] = Counter()  # what was done since the search page
        self.bought: Reward | None = None  # the last purchase
        self.state = self.text
        self._observations, self._acted = [self.text], list[str]()

    def _draw(self) -> int:
        """A goal by weight, off by one as upstream: it has the weight of the one before, and the first never comes."""
        place = self.rng.uniform(0, self.weights[-1])
        return min(bisect_right(self.weights, place), len(self.weights) - 2)

    def step(self, action: str) -> tuple[float, bool]:
        """Reward and done. Raises `UnansweredError` where the official server raises."""
        before, self.page = self.page, self.shop.step(self.page, action, self.prices, self.rng)
        bought = self.page is not before and self.page.kind == "done"
        if bought:
            self.bought = self.page.reward
        if self.page is not before:
            self._count(before)
        self._remember(action)
        return (self.bought.total, True) if bought and self.bought else (0.0, False)

    def _count(self, before: Page) -> None:
        match self.page.kind:
            case "search":
                self.actions.clear()
            case "results":
                self.actions["search"] += 1
            case "item" if before.kind == "results":
                self.actions["asin"] += 1
            case "item" if before.kind == "item":
                self.actions["options"] += 1
            case "sub":
                self.actions[self.page.sub] += 1
            case "done":
                self.actions["purchase"] += 1

    def _remember(self, action: str) -> None:
        observations, actions = self.limits
        self._acted.append(action)
        shown = [self.text]
        for back in range(1, max(self.limits) + 1):
            shown += self._acted[-back : len(self._acted) - back + 1] if back <= actions else []
            shown += self._observations[-back : len(self._observations) - back + 1] if back <= observations else []
        self.state = SEPARATOR.join(reversed(shown))
        self._observations.append(self.text)

    @property
    def text(self) -> str:
        return self.shop.text(self.page)

    def shown(self) -> dict[str, Any]:
        """The page as it was recorded."""
        return {
            "text": self.text,
            "text_rich": self.shop.text_rich(self.page),
            "available_actions": {
                "has_search_bar": self.page.kind == "search",
                "clickables": list(self.shop.clickables(self.page)),
            },
            "url": self.shop.url(self.page),
        }
