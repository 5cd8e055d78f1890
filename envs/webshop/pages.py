"""The shop as a state machine: the page after a page and an action, and the texts of pages.

    page = shop.start(goal)
    page = shop.step(page, "search[black shoes]", prices, rng)      # the same page object if nothing happens
    shop.text(page); shop.clickables(page); page.reward             # None before a purchase

A page contains the whole state of an episode and never changes: a snapshot is the page itself. Everything here follows
the official server and its text environment (https://github.com/princeton-nlp/WebShop, `web_agent_text_env.py`),
including its accidents; comments mark some of them.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import chain
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from envs.webshop.catalogue import Catalogue
from envs.webshop.goals import Goal
from envs.webshop.reward import Reward, score_purchase
from envs.webshop.search import SearchIndex

SEPARATOR = " [SEP] "
MOST_RESULTS, PER_PAGE = 50, 10
SUB_PAGES = ("Description", "Features", "Reviews", "Attributes")
SEARCH, BACK, NEXT, PREVIOUS, BUY = "Search", "Back to Search", "Next >", "< Prev", "Buy Now"
_BASE_URL = "http://127.0.0.1:3000"
# The order in which these are searched in a URL, including its keywords, to find where `< Prev` leads.
_PLACES = ("search_results", "item_page", "item_sub_page", "done")
_LONGEST_KEPT = 1000  # results are cached for queries of up to this many characters
_NOTHING: Mapping[str, str] = {}


class UnansweredError(Exception):
    """A search at which the official server fails; `official` is the name of the exception that it raises."""

    def __init__(self, official: str) -> None:
        super().__init__(f"the official server raises {official}")
        self.official = official


class Page(NamedTuple):
    """What the shopper sees, and what the server remembers of the session."""

    goal: Goal
    session: str  # a name that is part of URLs
    kind: str = "search"  # or "results", "item", "sub", "done"
    keywords: tuple[str, ...] = ()
    number: int = 1  # of the results page
    hits: Sequence[int] = ()  # products found, on all results pages
    product: int = -1
    sub: str = ""  # one of SUB_PAGES
    options: Mapping[str, str] = _NOTHING  # chosen: name -> value; never changed in place
    visited: frozenset[int] = frozenset()  # products opened since the search page
    reward: Reward | None = None  # on the page after a purchase

    @property
    def shown(self) -> Sequence[int]:
        """The products on this results page."""
        return self.hits[(self.number - 1) * PER_PAGE : self.number * PER_PAGE]


def parse_action(action: str) -> tuple[str, str]:
    r"""Name and lower-cased argument of `name[argument]`; two empty strings if it has another form.

    Equals the official greedy `(.+)\[(.+)\]`: in the first line, from the last bracket that opens before the last one
    that closes. That expression itself takes quadratic time on a million brackets.
    """
    line = action.partition("\n")[0]
    end = line.rfind("]")
    start = line.rfind("[", 1, max(end - 1, 0))
    return (line[:start], line[start + 1 : end].lower()) if start > 0 else ("", "")


def quoted(observation: str, task: str) -> str:
    """The observation as verl-agent shows it: the parts after the task, in quotes; unchanged if the task is absent."""
    parts = observation.split(SEPARATOR)
    if task not in parts:
        return observation
    return SEPARATOR.join(f"'{part}'" for part in parts[parts.index(task) + 1 :])


# A visible text of the page's HTML, and its kind: "" or one of these.
_Node: TypeAlias = tuple[str, str]
_BUTTON, _LINK, _OPTION = "button", "link", "option"  # a link is a product


class _Part(NamedTuple):
    """A part of a page, rendered as far as it does not depend on the other parts."""

    nodes: tuple[_Node, ...]
    text: str  # in text mode
    clickables: tuple[str, ...]


def _part(nodes: Iterable[_Node], values: Iterable[str] = ()) -> _Part:
    """Nodes as BeautifulSoup finds them: an empty text gives none, blanks give one blank, or none with a newline.

    `values` are those of options, which can be clicked even if they have no visible text.
    """
    kept, texts = [], []
    for text, kind in nodes:
        stripped = text.strip()
        if not stripped and not text.strip(" \t\n\f\r"):
            if not text or "\n" in text:
                continue
            text = " "
        kept.append((text, kind))
        texts.append(stripped)
    names = [text.lower() for text, kind in kept if kind in (_BUTTON, _LINK)]
    return _Part(tuple(kept), SEPARATOR.join(texts), (*names, *values))


def _plain(*texts: str) -> list[_Node]:
    return [(text, "") for text in texts]


def _buttons(*texts: str) -> list[_Node]:
    return [(text, _BUTTON) for text in texts]


class Shop:
    """A catalogue with a search. It serves any number of episodes and caches only renderings."""

    def __init__(self, catalogue: Catalogue, index: SearchIndex, show_attributes: bool = False) -> None:
        """`show_attributes` adds the official sub page that shows a product's attributes."""
        self.catalogue, self.index, self.show_attributes = catalogue, index, show_attributes
        self._ranked = lru_cache(maxsize=2048)(self._rank)
        self._listed = lru_cache(maxsize=16)(self._list)
        self._entry = lru_cache(maxsize=4096)(self._make_entry)
        self._item = lru_cache(maxsize=512)(self._make_item)
        self._sub = lru_cache(maxsize=512)(self._make_sub)
        self._last: tuple[Page, list[_Part]] | None = None  # the same page is rendered several times in a row

    def start(self, goal: Goal, session: str = "") -> Page:
        """The search page of a new session."""
        return Page(goal, session)

    # -- moving -------------------------------------------------------------------------------------------------------
    def step(self, page: Page, action: str, prices: npt.NDArray[np.float64], rng: random.Random) -> Page:
        """The page after `action`; `page` itself if the action is invalid or impossible here.

        `prices` [N] are the products' prices, `rng` draws for the search `<r>`. A search is possible on every page,
        even without a search bar and after a purchase. Raises `UnansweredError`.
        """
        name, argument = parse_action(action)
        if name == "search":
            return self._search(page, tuple(argument.split(" ")), 1, rng)
        if name == "click" and argument != "search" and argument in self.clickables(page):
            return self._click(page, argument, prices, rng)
        return page

    def _search(self, page: Page, keywords: tuple[str, ...], number: int, rng: random.Random) -> Page:
        hits = self._find(keywords, rng)
        return Page(page.goal, page.session, "results", keywords, number, hits, visited=page.visited)

    def _find(self, keywords: tuple[str, ...], rng: random.Random) -> Sequence[int]:
        """The products for a query. A first keyword in angle brackets asks for something other than a ranking."""
        rest = " ".join(keywords[1:]).strip()
        match keywords[0]:
            case "<r>":  # drawn again for every results page
                return rng.sample(range(len(self.catalogue)), min(MOST_RESULTS, len(self.catalogue)))
            case "<a>":
                raise UnansweredError("TypeError")
            case "<c>":
                if len(keywords) == 1:
                    raise UnansweredError("IndexError")
                return self._listed("category", keywords[1].strip())
            case "<q>":
                return self._listed("query", rest)
        query = " ".join(keywords)
        return self._ranked(query) if len(query) <= _LONGEST_KEPT else self._rank(query)

    def _rank(self, query: str) -> Sequence[int]:
        return self.index.search(query, MOST_RESULTS)

    def _list(self, field: str, text: str) -> Sequence[int]:
        return self.catalogue.of_category(text) if field == "category" else self.catalogue.of_query(text)

    def _click(self, page: Page, name: str, prices: npt.NDArray[np.float64], rng: random.Random) -> Page:
        """The name of a clickable is compared with those of buttons first, then with products and options."""
        if name == BUY.lower():
            return page._replace(kind="done", reward=self._buy(page, prices))
        if name == BACK.lower():
            return self.start(page.goal, page.session)
        if name in (NEXT.lower(), PREVIOUS.lower()):
            place = next((place for place in _PLACES if place in self.url(page)), "")
            if place == "search_results":
                return self._search(page, page.keywords, page.number + (1 if name == NEXT.lower() else -1), rng)
            if place == "item_page" and name == PREVIOUS.lower():
                return self._search(page, page.keywords, page.number, rng)
            if place == "item_sub_page" and name == PREVIOUS.lower():
                return page._replace(kind="item", sub="")
        if name.title() in SUB_PAGES:
            return page._replace(kind="sub", sub=name.title())
        if page.kind == "results":
            product = next(i for i in page.shown if self.catalogue.asins[i].lower() == name)
            return page._replace(kind="item", hits=(), product=product, visited=page.visited | {product})
        # If two groups of options share a value, it belongs to the last one.
        options = self.catalogue.product(page.product).options
        group = next(group for group in reversed(list(options)) if name in options[group])
        return page._replace(options={**page.options, group: name})

    def _buy(self, page: Page, prices: npt.NDArray[np.float64]) -> Reward:
        product, catalogue = page.product, self.catalogue
        return score_purchase(
            catalogue.product(product),
            page.goal,
            float(prices[product]),
            list(page.options.values()),
            catalogue.nouns(product),
            catalogue.nouns(catalogue.index(page.goal.asin)),
        )

    # -- reading ------------------------------------------------------------------------------------------------------
    def clickables(self, page: Page) -> tuple[str, ...]:
        """The clickable texts: buttons, products, options. `search` is listed, but clicking it does nothing."""
        return tuple(dict.fromkeys(chain.from_iterable(part.clickables for part in self._parts(page))))

    def text(self, page: Page) -> str:
        """The official observation in `text` mode. It does not show the chosen options."""
        return SEPARATOR.join(part.text for part in self._parts(page) if part.nodes)

    def text_rich(self, page: Page) -> str:
        """The official observation in `text_rich` mode: one line per text, with buttons marked."""
        url = self.url(page)
        asins = {self.catalogue.asins[i] for i in page.visited}
        lines: list[str] = []
        clicked: list[str] = []
        for text, kind in chain.from_iterable(part.nodes for part in self._parts(page)):
            if kind == _BUTTON:
                text = f"[button] {text} [button_]"
            elif kind == _LINK:
                text = (
                    f"\n[clicked button] {text} [clicked button_]" if text in asins else f"\n[button] {text} [button_]"
                )
            elif kind == _OPTION:
                # Chosen options are found in the URL's JSON, except those with a quote or a character beyond ASCII.
                if f'"{text}"' in url:
                    clicked.append(f"You have clicked {text}.")
                    text = f"  [clicked button] {text} [clicked button_]"
                else:
                    text = f"  [button] {text} [button_]"
            lines.append(text)
        return "".join(f"{line}\n" for line in [*reversed(clicked), *lines])

    def url(self, page: Page) -> str:
        """The official URL of a page."""
        if page.kind == "search":
            return f"{_BASE_URL}/{page.session}"
        words = "+".join(page.keywords)
        if page.kind == "results":
            return f"{_BASE_URL}/search_results/{page.session}/{words}/{page.number}"
        asin = self.catalogue.asins[page.product]
        if page.kind == "done":
            return f"{_BASE_URL}/done/{page.session}/{asin}/{dict(page.options)}"
        if page.kind == "item":
            chosen = json.dumps(dict(page.options))
            return f"{_BASE_URL}/item_page/{page.session}/{asin}/{words}/{page.number}/{chosen}"
        return f"{_BASE_URL}/item_sub_page/{page.session}/{asin}/{words}/{page.number}/{page.sub}/{dict(page.options)}"

    def key(self, page: Page) -> str:
        """Everything that determines the page and its future, as a text without the session's name."""
        lines = [page.kind, "+".join(page.keywords), str(page.number), page.sub]
        if page.product >= 0:
            lines.append(self.catalogue.asins[page.product])
        lines += sorted(f"{name}: {value}" for name, value in page.options.items())
        if page.keywords[:1] == ("<r>",):
            lines += [self.catalogue.asins[i] for i in page.shown]
        return "\n".join(lines)

    def _parts(self, page: Page) -> list[_Part]:
        last = self._last  # read once: an abandoned episode may still play in another thread
        if last is None or last[0] is not page:
            self._last = last = page, self._make_parts(page)
        return last[1]

    def _make_parts(self, page: Page) -> list[_Part]:
        if page.kind == "done":
            return [_receipt(self.catalogue.asins[page.product], page.options, page.reward)]
        head = _head(page.goal.instruction_text, page.kind == "search")
        if page.kind == "search":
            return [head]
        if page.kind == "results":
            return [head, _navigation(page.number, len(page.hits)), *map(self._entry, page.shown)]
        if page.kind == "item":
            return [head, self._item(page.product)]
        return [head, self._sub(page.product, page.sub)]

    def _make_entry(self, index: int) -> _Part:
        product = self.catalogue.product(index)
        return _part([(product.asin, _LINK), *_plain(product.name, product.price_tag)])

    def _make_item(self, index: int) -> _Part:
        """A product's page without its head."""
        product = self.catalogue.product(index)
        options: list[_Node] = []
        for name, values in product.options.items():
            options.append((name, ""))
            options += [(value, _OPTION) for value in values]
        subs = SUB_PAGES if self.show_attributes else SUB_PAGES[:-1]
        details = _plain(product.name, f"Price: {product.price_tag}", "Rating: N.A.")
        nodes = [*_buttons(PREVIOUS), *options, *details, *_buttons(*subs, BUY)]
        return _part(nodes, chain.from_iterable(product.options.values()))

    def _make_sub(self, index: int, sub: str) -> _Part:
        product = self.catalogue.product(index)
        texts: dict[str, Sequence[str]] = {
            "Description": [product.description],
            "Features": [f" {bullet}" for bullet in product.bullets],
            "Reviews": [],
            "Attributes": [
                *(f" {attribute}" for attribute in product.attributes),
                product.category,
                product.query,
                product.product_category,
            ],
        }
        return _part([*_buttons(PREVIOUS), *_plain(*texts[sub])])


@lru_cache(maxsize=256)
def _head(instruction: str, searching: bool) -> _Part:
    if searching:
        return _part([*_plain("WebShop", "Instruction: ", instruction), *_buttons(SEARCH)])
    return _part([*_plain("Instruction:", instruction), *_buttons(BACK)])


@lru_cache(maxsize=256)
def _navigation(number: int, total: int) -> _Part:
    """There is always a next page, which is empty if there are no more results."""
    buttons = (PREVIOUS, NEXT) if number > 1 else (NEXT,)
    return _part([*_plain(f"Page {number} (Total results: {total})"), *_buttons(*buttons)])


_BOUGHT = ("attrs", "None", "category", "None", "query", "None", "product category", "None")
_TARGET = ("asin", "options", "attrs", "price upper", "instuction text", "category", "product category", "query")


def _receipt(asin: str, options: Mapping[str, str], reward: Reward | None) -> _Part:
    """The page after a purchase; its template asks for much that the server does not provide."""
    chosen = json.dumps(dict(options), sort_keys=True)
    for letter in "<>&'":
        chosen = chosen.replace(letter, f"\\u{ord(letter):04x}")
    texts = [
        *("Thank you for shopping with us!", "Your code: ", "None", " (Paste it in your MTurk interface.)"),
        *("Purchased", "asin", asin, "options", chosen, *_BOUGHT, "Target", *_TARGET, "Goal ", "None"),
        *("Reward", "Your score (min 0.0, max 1.0)", str(reward.total if reward else 0.0), "Reward Details ", "None"),
    ]
    return _part(_plain(*texts))
