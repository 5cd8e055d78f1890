"""The catalogue of a shop, from the official files."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class HumanInstruction:
    """What somebody wrote for a product: the text, and what it asks for."""

    instruction: str
    attributes: tuple[str, ...]
    options: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Product:
    """One product, as the shop shows it."""

    asin: str
    name: str
    description: str
    bullets: tuple[str, ...]
    category: str
    query: str
    product_category: str
    image: str
    prices: tuple[float, ...]
    price_tag: str
    options: Mapping[str, tuple[str, ...]]
    attributes: tuple[str, ...]
    instruction: str | None
    instruction_attributes: tuple[str, ...]
    human: tuple[HumanInstruction, ...]


class Catalogue:
    """Products by index, in the order of the file. Stub: all in memory."""

    def __init__(self, products: Sequence[Product], content_hash: str, nouns: Mapping[str, Sequence[str]]) -> None:
        self._products = products
        self.content_hash = content_hash
        self.asins: Sequence[str] = [p.asin for p in products]
        self._index = {a: i for i, a in enumerate(self.asins)}
        self._nouns = nouns
        # [N, 2]; the second is NaN where there is one price only
        self.prices = np.array([[p.prices[0], p.prices[1] if len(p.prices) > 1 else np.nan] for p in products])
        self.instructed = np.array([p.instruction is not None for p in products])  # [N] bool
        self.human_instructed = np.array([bool(p.human) for p in products])  # [N] bool

    def __len__(self) -> int:
        return len(self._products)

    def product(self, index: int) -> Product:
        return self._products[index]

    def index(self, asin: str) -> int:
        """Raises `UnknownNameError`."""
        return self._index[asin]

    def nouns(self, index: int) -> tuple[str, ...]:
        return tuple(self._nouns[self.asins[index]])

    def of_category(self, category: str) -> list[int]:
        """Indices of the products of a category, in order."""
        return [i for i, p in enumerate(self._products) if p.category == category]

    def of_query(self, query: str) -> list[int]:
        """Indices of the products of a query, in order."""
        return [i for i, p in enumerate(self._products) if p.query == query]


def load_catalogue(folder: Path, size: str | None = None) -> Catalogue:
    """The catalogue in a folder with the official files; `size` is "small" or "full" where it holds both."""
    shuffle = next(folder.glob("items_shuffle*.json"))
    raw = json.loads(shuffle.read_text())
    ins = json.loads(next(folder.glob("items_ins_v2*.json")).read_text())
    human = json.loads(next(folder.glob("items_human_ins*.json")).read_text())
    products, seen = [], set()
    for record in raw:
        asin = record["asin"]
        if asin == "nan" or len(asin) > 10 or asin in seen:
            continue
        seen.add(asin)
        products.append(_product(record, ins.get(asin, {}), human.get(asin, [])))
    nouns = json.loads(Path("/work/shared/golden/webshop/title_nouns.json").read_text())["nouns"]
    return Catalogue(products, hashlib.sha256(shuffle.read_bytes()).hexdigest(), nouns)


def _product(record: dict[str, Any], ins: dict[str, Any], human: list[dict[str, Any]]) -> Product:
    pricing = record.get("pricing")
    prices = [float(Decimal(re.sub(r"[^\d.]", "", p))) for p in pricing.split("$")[1:]] if pricing else [100.0]
    bullets = record["small_description"]
    return Product(
        asin=record["asin"],
        name=record["name"],
        description=record["full_description"],
        bullets=tuple(bullets) if isinstance(bullets, list) else (bullets,),
        category=record["category"],
        query=record["query"].lower().strip(),
        product_category=record["product_category"],
        image=record["images"][0],
        prices=tuple(prices[:2]),
        price_tag=f"${prices[0]}" if len(prices) == 1 else f"${prices[0]} to ${prices[1]}",
        options={
            name.lower(): tuple(c["value"].strip().replace("/", " | ").lower() for c in contents)
            for name, contents in (record["customization_options"] or {}).items()
            if contents is not None
        },
        attributes=tuple(ins.get("attributes", ("DUMMY_ATTR",))),
        instruction=ins.get("instruction"),
        instruction_attributes=tuple(ins.get("instruction_attributes") or ()),
        human=tuple(
            HumanInstruction(h["instruction"], tuple(h["instruction_attributes"]), tuple(h["instruction_options"]))
            for h in human
        ),
    )


def document(product: Product) -> str:
    """The text of a product that is searched."""
    options = ", and ".join(f"{name}: {', '.join(values)}" for name, values in product.options.items())
    return " ".join([product.name, product.description, product.bullets[0], options]).lower()
