"""Goals and prices of WebShop, drawn from a catalogue exactly as the official server draws them.

    goals = build_goals(catalogue, seed=0)      # synthetic: one for each combination of an instructed product's options
    goals[17].instruction_text                  # "Find me … with color: black, and price lower than 50.00 dollars"

The official server draws prices and price limits from Python's global generator without a seed, and then shuffles with
the seed 233: its order of goals is the same in every run, its prices are not. Here both follow from `seed`, as they do
there after `random.seed(seed)`. verl-agent's fork also shuffles with the seed of the worker. Goals are made on demand:
a catalogue of a million products has millions.
"""

from __future__ import annotations

import random
from array import array
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import isnan, nan, prod
from typing import Any, NamedTuple, overload

import numpy as np
import numpy.typing as npt

from envs.webshop.catalogue import Catalogue, Product

OFFICIAL_SHUFFLE = 233
NO_LIMIT = 1_000_000  # price limit of goals without one
_STEPS = [10.0 * i for i in range(1, 100)]  # the possible price limits


@dataclass(frozen=True, slots=True)
class Goal:
    """One instruction and its requirements, under the official names.

    `goal_options` maps names to values in a synthetic goal, and is a list of values in a human one; rewards treat the
    two differently.
    """

    asin: str  # the product that the instruction describes
    category: str
    query: str
    name: str
    product_category: str
    instruction_text: str
    attributes: tuple[str, ...]
    price_upper: float
    goal_options: Mapping[str, str] | tuple[str, ...]
    weight: float  # the official server draws goals with these weights

    def to_json(self) -> dict[str, Any]:
        """Plain data; `from_json` is the inverse."""
        options = self.goal_options
        return {name: getattr(self, name) for name in self.__slots__} | {
            "attributes": list(self.attributes),
            "goal_options": dict(options) if isinstance(options, Mapping) else list(options),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Goal:
        """Raises `ValueError` naming missing and unknown fields."""
        if set(data) != set(cls.__slots__):
            odd = sorted(set(data) ^ set(cls.__slots__))
            raise ValueError(f"a goal has the fields {', '.join(cls.__slots__)}; missing or unknown: {', '.join(odd)}")
        options = data["goal_options"]
        if not data["attributes"]:
            raise ValueError(f"the goal {data['instruction_text']!r:.80} asks for no attributes")
        return cls(
            **{
                **data,
                "attributes": tuple(data["attributes"]),
                "goal_options": dict(options) if isinstance(options, Mapping) else tuple(options),
            }
        )


def sample_prices(catalogue: Catalogue, seed: int) -> npt.NDArray[np.float64]:
    """The price of every product, [N]: its price, or one drawn between its two. It is never shown; rewards use it."""
    return _sample_prices(catalogue, random.Random(seed))


def _sample_prices(catalogue: Catalogue, rng: random.Random) -> npt.NDArray[np.float64]:
    prices = np.array(catalogue.prices[:, 0], dtype=np.float64)
    for i in np.flatnonzero(~np.isnan(catalogue.prices[:, 1])):
        prices[i] = rng.uniform(*catalogue.prices[i].tolist())
    return prices


class Goals(Sequence[Goal]):
    """All goals of a catalogue in order. `weights` [G] are their weights in the same order."""

    def __init__(
        self,
        catalogue: Catalogue,
        sources: _Sources,
        limits: npt.NDArray[np.float64],
        order: Sequence[int],
    ) -> None:
        """`limits` [S] are the sources' price limits, NaN for none; `order` [G] numbers goals source by source."""
        self._catalogue, self._sources, self._limits, self._order = catalogue, sources, limits, order
        self._ends = np.cumsum(sources.counts)  # [S]

    @property
    def weights(self) -> npt.NDArray[np.float64]:
        return np.repeat(self._sources.weights, self._sources.counts)[np.asarray(self._order, dtype=np.int64)]

    def __len__(self) -> int:
        return len(self._order)

    @overload
    def __getitem__(self, index: int) -> Goal: ...
    @overload
    def __getitem__(self, index: slice) -> list[Goal]: ...
    def __getitem__(self, index: int | slice) -> Goal | list[Goal]:
        if isinstance(index, slice):
            return [self._make(number) for number in self._order[index]]
        return self._make(self._order[index])

    def _make(self, number: int) -> Goal:
        """The goal at `number` before the shuffle."""
        source = int(np.searchsorted(self._ends, number, side="right"))
        product = self._catalogue.product(int(self._sources.products[source]))
        limit = float(self._limits[source])
        price_text = "" if isnan(limit) else f", and price lower than {limit:.2f} dollars"
        written = int(self._sources.instructions[source])
        options: Mapping[str, str] | tuple[str, ...]
        if written >= 0:
            human = product.human[written]
            text, attributes, options = human.instruction.strip("."), human.attributes, human.options
        else:
            first = int(self._ends[source] - self._sources.counts[source])
            options = chosen = _combination(product, number - first)
            wanted = ", and ".join(f"{name}: {value}" for name, value in chosen.items())
            text = f"{product.instruction} with {wanted}" if wanted else str(product.instruction)
            attributes = product.instruction_attributes
        return Goal(
            product.asin,
            product.category,
            product.query,
            product.name,
            product.product_category,
            text + price_text,
            attributes,
            NO_LIMIT if isnan(limit) else limit,
            options,
            1 if written >= 0 else float(self._sources.weights[source]),
        )


def build_goals(catalogue: Catalogue, seed: int, *, human: bool = False, shuffle_seed: int = OFFICIAL_SHUFFLE) -> Goals:
    """All goals of a catalogue in the official order. Raises `ValueError` for an instruction without attributes."""
    rng = random.Random(seed)
    prices = _sample_prices(catalogue, rng)
    sources = _human_sources(catalogue) if human else _synthetic_sources(catalogue)
    limits = np.array([_draw_limit(price, rng) for price in prices[sources.products].tolist()])
    order = array("q", range(int(sources.counts.sum())))
    random.Random(shuffle_seed).shuffle(order)
    return Goals(catalogue, sources, limits, order)


def _draw_limit(price: float, rng: random.Random) -> float:
    """The larger of two of the four steps above `price`; NaN if there are fewer than two."""
    above = _STEPS[bisect_right(_STEPS, price) :][:4]
    return max(rng.sample(above, 2)) if len(above) >= 2 else nan


def _combination(product: Product, number: int) -> dict[str, str]:
    """The `number`th combination of options: names in sorted order, the last changes fastest."""
    chosen = {}
    for name in sorted(product.options, reverse=True):
        number, place = divmod(number, len(product.options[name]))
        chosen[name] = product.options[name][place]
    return dict(reversed(chosen.items()))


class _Sources(NamedTuple):
    """The instructions that goals are made from, in the order of the catalogue. Independent of seeds."""

    products: npt.NDArray[np.int64]  # [S]
    instructions: npt.NDArray[np.int64]  # [S]: index of the product's human instruction; -1 for the synthetic one
    counts: npt.NDArray[np.int64]  # [S]: number of goals made from it
    weights: npt.NDArray[np.float64]  # [S]: weight of each of these goals


@lru_cache(maxsize=2)
def _synthetic_sources(catalogue: Catalogue) -> _Sources:
    products = np.flatnonzero(catalogue.instructed)
    counts, attributes = array("q"), []
    ids: dict[str, int] = {}
    asked = array("q")  # by attribute: the number of goals that ask for it
    for index in products.tolist():
        product = catalogue.product(index)
        if not product.instruction_attributes:
            raise ValueError(f"the instruction of product {product.asin} asks for no attributes")
        counts.append(prod(map(len, product.options.values())))
        attributes.append(array("q", [ids.setdefault(name, len(ids)) for name in product.instruction_attributes]))
        asked.extend([0] * (len(ids) - len(asked)))
        for attribute in attributes[-1]:
            asked[attribute] += counts[-1]
    # If an option has no values there is no goal, and the weight would divide by zero.
    weights = [
        sum(1.0 / asked[attribute] for attribute in wanted) / len(wanted) if count else 0.0
        for wanted, count in zip(attributes, counts, strict=True)
    ]
    return _Sources(products, np.full(len(products), -1), np.array(counts, dtype=np.int64), np.array(weights))


@lru_cache(maxsize=2)
def _human_sources(catalogue: Catalogue) -> _Sources:
    """Instructions without attributes are skipped."""
    found = [
        (index, number)
        for index in np.flatnonzero(catalogue.human_instructed).tolist()
        for number, human in enumerate(catalogue.product(index).human)
        if human.attributes
    ]
    products, numbers = np.array(found, dtype=np.int64).reshape(-1, 2).T
    return _Sources(products, numbers, np.ones(len(found), dtype=np.int64), np.ones(len(found)))
