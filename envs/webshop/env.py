"""WebShop as a Gymnasium environment: `polyturn/WebShop-v0`.

Actions are `search[words]` and `click[a listed text]`; anything else changes nothing. Buying ends the episode; it is a
success if its score is 1. With the protocol `official` the reward is the score of the purchase. With `verl_agent` it is
10 for the score 1 and otherwise 0, as in that project's training.

`info["state_key"]` contains everything that determines a page: its kind, the search, the product and the chosen options
(which observations in text mode do not show). With `verl_agent` it is that project's anchor, the observation after the
task. `info["type"]` is the category of the wanted product. `info["admissible"]` lists the possible actions, with a
search as `search[<your query>]`. `info["brief"]` is the new part: the page in lower case, one line per text, with the
instruction only on the first page, so that clickable texts appear as they are written in a click. For a page that was
shown before in the episode, it is only one button that identifies the kind of page.
"""

from __future__ import annotations

import random
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from envs.core import BRIEF, Info, Task, TextEnv, UnknownNameError
from envs.webshop.catalogue import load_catalogue
from envs.webshop.goals import Goal, sample_prices
from envs.webshop.nouns import NounsNotFoundError
from envs.webshop.pages import BUY, NEXT, PREVIOUS, SEARCH, SEPARATOR, Page, Shop, UnansweredError, quoted
from envs.webshop.search import open_index

OBSERVATIONS = ("text", "text_rich")
PROTOCOLS = ("official", "verl_agent")
ANY_SEARCH = "search[<your query>]"
_WON = 10.0  # verl-agent's reward
_SIGN = {"search": SEARCH, "results": NEXT, "item": BUY, "sub": PREVIOUS}  # a button that identifies the kind of page


@lru_cache(maxsize=2)
def open_shop(folder: Path, size: str | None = None, show_attributes: bool = False) -> Shop:
    """The shop for a folder's catalogue, opened once per process. For `size` see `load_catalogue`.

    Raises the errors of `load_catalogue`, and `NounsNotFoundError` if purchases could not be scored.
    """
    catalogue = load_catalogue(folder, size)
    if not catalogue.has_nouns:
        raise NounsNotFoundError(catalogue.content_hash)
    return Shop(catalogue, open_index(catalogue), show_attributes)


@lru_cache(maxsize=16)
def _prices(shop: Shop, seed: int) -> npt.NDArray[np.float64]:
    return sample_prices(shop.catalogue, seed)


class _Place(NamedTuple):
    """The shop and prices of an episode."""

    folder: str
    size: str | None
    price_seed: int


class WebShopEnv(TextEnv):
    """Shops in the catalogue that a task names.

    The payload of a task has `catalogue`, the folder of the catalogue; `price_seed`, from which prices are drawn as in
    `envs.webshop.goals.sample_prices`; `goal`, in the form of `Goal.to_json`; and `size`, if the folder has two
    catalogues.
    """

    def __init__(
        self,
        max_turns: int = 15,
        observation: str = "text",
        protocol: str = "official",
        show_attributes: bool = False,
        render_mode: str | None = None,
    ) -> None:
        """`observation` is one of `OBSERVATIONS`, `protocol` one of `PROTOCOLS`. Raises `UnknownNameError`."""
        super().__init__(max_turns, render_mode)
        if observation not in OBSERVATIONS:
            raise UnknownNameError("observation", observation, OBSERVATIONS)
        if protocol not in PROTOCOLS:
            raise UnknownNameError("protocol", protocol, PROTOCOLS)
        self.observation, self.protocol, self.show_attributes = observation, protocol, show_attributes
        self._place: _Place | None = None
        self._page: Page | None = None
        self._shown: frozenset[str] = frozenset()  # texts of this episode
        self._rng = random.Random()  # for the search `<r>`

    def _begin(self, task: Any, seed: int | None) -> tuple[str, Info]:
        payload = task.payload if isinstance(task, Task) else {}
        missing = sorted({"catalogue", "price_seed", "goal"} - set(payload))
        if missing:
            raise ValueError(
                "WebShop needs a goal: reset(options={'task': …}) with a Task whose payload has a "
                f"'catalogue', a 'price_seed' and a 'goal'; got {task!r:.200}, without {', '.join(missing)}"
            )
        goal = Goal.from_json(payload["goal"])
        self._enter(_Place(payload["catalogue"], payload.get("size"), payload["price_seed"]))
        self._shop.catalogue.index(goal.asin)  # raises for a goal of another catalogue
        self._rng.seed(task.seed if seed is None else seed)
        self._shown = frozenset()
        return self._show(self._shop.start(goal))

    def _enter(self, place: _Place) -> None:
        if place != self._place:
            self._shop = open_shop(Path(place.folder), place.size, self.show_attributes)
            self._prices = _prices(self._shop, place.price_seed)
            self._place = place

    def _act(self, action: str) -> tuple[str, float, bool, Info]:
        assert self._page is not None  # `step` is not called before a reset
        page = self._page
        with suppress(UnansweredError):  # where the official environment fails, nothing happens
            page = self._shop.step(self._page, action, self._prices, self._rng)
        observation, info = self._show(page)
        if page.reward is None:
            return observation, 0.0, False, info
        reward = page.reward.total if self.protocol == "official" else _WON * info["success"]
        return observation, reward, True, info

    def _show(self, page: Page) -> tuple[str, Info]:
        shop, self._page = self._shop, page
        goal, text = page.goal.instruction_text, shop.text(page)
        observation = text if self.observation == "text" else shop.text_rich(page)
        if text in self._shown:
            news = _SIGN[page.kind]
        else:
            _, found, rest = text.partition(f"{SEPARATOR}{goal.strip()}{SEPARATOR}")
            news = f"{goal}{SEPARATOR}{rest}" if page.kind == "search" else rest if found else text
            self._shown |= {text}
        clicks = [f"click[{name}]" for name in shop.clickables(page)]
        score = page.reward.total if page.reward else 0.0
        return observation, {
            "goal": goal,
            "type": page.goal.category,
            "admissible": [ANY_SEARCH] if page.kind == "search" else clicks,
            "score": score,
            "success": score == 1.0,
            "state_key": shop.key(page) if self.protocol == "official" else quoted(observation, goal.strip()),
            BRIEF: news.replace(SEPARATOR, "\n").lower(),
        }

    def _save(self) -> Any:
        return self._place, self._page, self._shown, self._rng.getstate()

    def _load(self, saved: Any) -> None:
        place, self._page, self._shown, state = saved
        self._enter(place)
        self._rng.setstate(state)
