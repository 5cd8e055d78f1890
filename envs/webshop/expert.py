"""A scripted shopper that knows only what it was shown.

It searches for the words of the instruction, opens the first result that may be affordable, goes back if a requested
option is missing, chooses the options and buys. It does not compare products by everything on their pages, which leaves
room for a trained agent to do better.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from envs.core import Info
from envs.webshop.pages import BACK, NEXT, PREVIOUS, SEPARATOR

_PRICE_LIMIT = re.compile(r",? and price lower than ([\d.]+) dollars")
_FIRST_OPTION = re.compile(r" with (?=(?:(?! with )[^:,]){1,40}: )")
_NEXT_OPTION = re.compile(r", and (?=[^:,]{1,40}: )")
_EMPTY_WORDS = re.compile(
    r"(?:an?|and|are|as|at|be|buy|can|do|find|for|i|in|is|it|like|looking|me|my|need|of|or|please|show|some|that|the|to"
    r"|want|with|would)"
)
_MOST_WORDS = 40  # of a query


@dataclass(frozen=True)
class Wish:
    """What an instruction asks for, as far as its form shows."""

    text: str  # without the price
    options: Mapping[str, str]  # by name, if they are named
    limit: float

    @classmethod
    def parse(cls, instruction: str) -> Wish:
        """Read an instruction: a synthetic one by its form, any other one as words."""
        limit = _PRICE_LIMIT.search(instruction)
        text = _PRICE_LIMIT.sub("", instruction)
        named = _FIRST_OPTION.split(text, maxsplit=1)[1:]
        options = dict(part.split(": ", 1) for part in _NEXT_OPTION.split(named[0])) if named else {}
        return cls(text.lower(), options, float(limit[1]) if limit else float("inf"))

    @property
    def query(self) -> str:
        """The words to search for."""
        words = re.findall(r"[^\s,:;\[\]]+", self.text)
        names = {word for name in self.options for word in name.split()}
        return " ".join([w for w in words if w not in names and not _EMPTY_WORDS.fullmatch(w)][:_MOST_WORDS])

    def choose(self, group: str, values: Sequence[str]) -> str | None:
        """The requested value of a group of options; None if none is requested, "" if it is not available."""
        if group in self.options:
            return self.options[group] if self.options[group] in values else ""
        if self.options:
            return None
        matches = [value for value in values if re.search(rf"(?<!\w){re.escape(value)}(?!\w)", self.text)]
        return max(matches, key=len, default=None)


class Shopper:
    """Shops from the pages' text, in `text` mode; see `envs.core.Expert`."""

    def __init__(self, max_turns: int = 15) -> None:
        """When the turns run out (`max_turns`), the shopper buys the current product."""
        self.max_turns = max_turns

    def reset(self, observation: str, info: Info) -> None:
        """A new episode. Raises `ValueError` if `observation` is not the first page of the shop."""
        parts = observation.split(SEPARATOR)
        if len(parts) < 4 or parts[1].strip() != "Instruction:":
            raise ValueError(f"expected the first page of WebShop in text mode, got {observation!r:.200}")
        self._wish = Wish.parse(SEPARATOR.join(parts[2:-1]))
        self._rejected: set[str] = set()
        self._turns = 0
        self._opened = ""  # the product opened last
        self._chosen: set[str] = set()  # options chosen on its page
        self._see(observation, info)

    def observe(self, action: str, observation: str, info: Info) -> None:
        """Remember which product was opened and what was chosen there."""
        name = action.lower().partition("[")[2].removesuffix("]")
        if name.upper() in self._results:
            self._opened, self._chosen = name.upper(), set()
        elif any(name in values for values in self._options.values()):
            self._chosen.add(name)
        self._turns += 1
        self._see(observation, info)

    def _see(self, observation: str, info: Info) -> None:
        """Read the page."""
        parts = [part.strip() for part in observation.split(SEPARATOR)]
        clickable = {action[len("click[") : -1] for action in info["admissible"] or () if action.startswith("click[")}
        self._clickable = clickable
        self._results: dict[str, float] = {}  # asin -> lowest price, in order
        self._options: dict[str, list[str]] = {}
        self._on_item = "buy now" in clickable
        if NEXT.lower() in clickable:
            for asin, price in zip(parts, parts[2:], strict=False):
                if asin.lower() in clickable and price.startswith("$"):
                    self._results[asin] = float(price.split()[0].lstrip("$"))
        elif self._on_item:
            group = ""
            for part in parts[parts.index(PREVIOUS) + 1 :]:
                if part.startswith("Price: "):
                    break
                if part in clickable:
                    self._options.setdefault(group, []).append(part)
                else:
                    group = part

    def act(self) -> str:
        """Search, open, choose, buy."""
        if self._on_item:
            return self._shop()
        if self._results:
            wanted = [asin for asin, price in self._results.items() if price <= self._wish.limit]
            fresh = [asin for asin in wanted if asin not in self._rejected]
            if not fresh and NEXT.lower() in self._clickable and not self._hurried:
                return f"click[{NEXT.lower()}]"
            return f"click[{(fresh or wanted or list(self._results))[0].lower()}]"
        for way in (PREVIOUS, BACK):
            if way.lower() in self._clickable:
                return f"click[{way.lower()}]"
        return f"search[{self._wish.query}]"

    @property
    def _hurried(self) -> bool:
        """Whether the remaining turns are needed for options and the purchase."""
        return self._turns >= self.max_turns - 5

    def _shop(self) -> str:
        """On the page of a product: reject it, choose an option, or buy."""
        chosen = {group: self._wish.choose(group, values) for group, values in self._options.items()}
        missing = "" in chosen.values() or set(self._wish.options) - set(self._options)
        if missing and not self._hurried:
            self._rejected.add(self._opened)
            return f"click[{PREVIOUS.lower()}]"
        left = [value for value in chosen.values() if value and value not in self._chosen]
        return f"click[{left[0]}]" if left else "click[buy now]"
