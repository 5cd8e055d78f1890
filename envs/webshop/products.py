"""Products: read from the official files, converted to search text, and packed to bytes."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

NO_PRICE = 100.0  # price of a product without one
_NO_ATTRIBUTES = ("DUMMY_ATTR",)  # attributes of a product that is not in the attributes file


@dataclass(frozen=True, slots=True)
class HumanInstruction:
    """An instruction that a person wrote for a product: the text, and its requirements."""

    instruction: str
    attributes: tuple[str, ...]
    options: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Product:
    """One product, as the shop shows it.

    Example: `Product(asin="B06Y3VLDFB", name="Vhomes Lights …", …, prices=(20.66, 29.2), price_tag="$20.66 to $29.2",
    options={"color": ("navy | white", "red")}, attributes=("solid wood",), instruction=None, …)`.
    """

    asin: str
    name: str
    description: str
    bullets: tuple[str, ...]
    category: str
    query: str  # lower case: the query that found it
    product_category: str  # "Home & Kitchen › Furniture › …"
    image: str  # "" if there is none
    prices: tuple[float, ...]  # one, or two to draw between; the first may be the higher
    price_tag: str
    options: Mapping[str, tuple[str, ...]]  # lower-case names and values, in the order of the file
    attributes: tuple[str, ...]
    instruction: str | None  # synthetic
    instruction_attributes: tuple[str, ...]
    human: tuple[HumanInstruction, ...]


class ProductError(ValueError):
    """A record that is not a product; the message states the problem."""


def parse_product(record: Mapping[str, Any], attributes: Mapping[str, Any], human: list[Any]) -> Product:
    """The product of a record of `items_shuffle` and its data in the two other files. Raises `ProductError`."""
    prices, price_tag = _parse_pricing(record.get("pricing"))
    bullets = record.get("small_description")
    images = record.get("images")
    instruction = attributes.get("instruction")
    instruction_attributes = _strings(attributes.get("instruction_attributes") or [], "instruction_attributes")
    if instruction is not None and not (isinstance(instruction, str) and instruction_attributes):
        raise ProductError("its synthetic instruction is not a text, or has no instruction_attributes")
    return Product(
        asin=_text(record, "asin"),
        name=_text(record, "name"),
        description=_text(record, "full_description"),
        bullets=_strings(bullets if isinstance(bullets, list) else [bullets], "small_description"),
        category=_text(record, "category"),
        query=_text(record, "query").lower().strip(),
        product_category=_text(record, "product_category"),
        image=images[0] if isinstance(images, list) and images and isinstance(images[0], str) else "",
        prices=prices,
        price_tag=price_tag,
        options=_parse_options(record.get("customization_options")),
        attributes=_strings(attributes["attributes"], "attributes") if "attributes" in attributes else _NO_ATTRIBUTES,
        instruction=instruction,
        instruction_attributes=instruction_attributes,
        human=tuple(_parse_human(entry) for entry in human),
    )


def _text(record: Mapping[str, Any], key: str) -> str:
    value = record.get(key)
    if not isinstance(value, str):
        raise ProductError(f"its {key} is {value!r:.60}, expected a text")
    return value


def _strings(values: Any, key: str) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ProductError(f"its {key} is {values!r:.60}, expected a list of texts")
    return tuple(values)


def _parse_pricing(pricing: Any) -> tuple[tuple[float, ...], str]:
    """Prices and their tag; of more than two prices, the first two."""
    if not pricing:
        return (NO_PRICE,), f"${NO_PRICE}"
    try:
        prices = [float(Decimal(re.sub(r"[^\d.]", "", price))) for price in pricing.split("$")[1:]]
        tag = f"${prices[0]}" if len(prices) == 1 else f"${prices[0]} to ${prices[1]}"
    except (InvalidOperation, IndexError, AttributeError, TypeError) as error:
        raise ProductError(f"its pricing is {pricing!r:.60}, expected a text such as '$20.66$29.20'") from error
    return tuple(prices[:2]), tag


def _parse_options(groups: Any) -> dict[str, tuple[str, ...]]:
    if not groups:
        return {}
    try:
        return {
            name.lower(): tuple(content["value"].strip().replace("/", " | ").lower() for content in contents)
            for name, contents in groups.items()
            if contents is not None
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise ProductError(
            f"its customization_options are {groups!r:.60}, expected {{name: [{{'value': text, …}}, …]}}"
        ) from error


def _parse_human(entry: Any) -> HumanInstruction:
    if not isinstance(entry, dict):
        raise ProductError(f"a human instruction is {entry!r:.60}, expected an object")
    keys = ("instruction_attributes", "instruction_options")
    attributes, options = (_strings(entry.get(key) or [], key) for key in keys)
    return HumanInstruction(_text(entry, "instruction"), attributes, options)


def document(product: Product) -> str:
    """The search text of a product."""
    options = ", and ".join(f"{name}: {', '.join(values)}" for name, values in product.options.items())
    return " ".join([product.name, product.description, product.bullets[0] if product.bullets else "", options]).lower()


def pack(product: Product) -> bytes:
    """The product as bytes, for `unpack`."""
    values = [getattr(product, name) for name in Product.__dataclass_fields__]
    values[-1] = [astuple(instruction) for instruction in product.human]
    return json.dumps(values, separators=(",", ":")).encode()


def unpack(packed: bytes) -> Product:
    """The product of `pack`."""
    values: list[Any] = json.loads(packed.decode())
    product = dict(zip(Product.__dataclass_fields__, values, strict=True))
    for name in ("bullets", "prices", "attributes", "instruction_attributes"):
        product[name] = tuple(product[name])
    product["options"] = {name: tuple(choices) for name, choices in product["options"].items()}
    product["human"] = tuple(
        HumanInstruction(text, tuple(attributes), tuple(options)) for text, attributes, options in product["human"]
    )
    return Product(**product)
