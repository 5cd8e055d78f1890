"""A catalogue generated from a vocabulary, so that WebShop runs without a download.

It has the official files' names and schema and uses the same loader: five departments, kinds of products with brands,
attributes, options and prices, and instructions in the official style. The products of a kind draw their attributes
from one short list, and some differ from another only in one attribute, in options or in price. A search therefore
finds the right kind at once, but the right product only with care. A title states some of the attributes; description
and features state the others.

The same version and size give the same files, byte for byte. The nouns of titles, by which rewards compare products,
are known from the vocabulary, so no tagger is needed.
"""

from __future__ import annotations

import json
import random
import string
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from envs.checksums import found_whole, write_checksums
from envs.core import cache_root
from envs.files import made_once
from envs.webshop.files import EMBEDDED

GENERATOR_VERSION = 1  # raise it when the same size would give other files
ITEMS, INSTRUCTIONS, HUMAN = "items_shuffle.json", "items_ins_v2.json", "items_human_ins.json"
NOUNS = "title_nouns.json"
INSTRUCTED = 0.5  # share of products with an instruction
VARIANTS = 0.35  # share of products that differ only slightly from another of their kind
_ASIN = string.ascii_uppercase + string.digits


@dataclass(frozen=True)
class Kind:
    """What the products of one query have in common: a record of `vocabulary.json`."""

    category: str
    query: str
    path: str  # of departments
    names: list[str]
    before: list[str]  # attributes before the name: "waterproof"
    with_: list[str]  # … after "with"
    for_: list[str]  # … after "for"
    options: dict[str, str]  # name -> list of values
    prices: tuple[float, float]

    @property
    def wearer(self) -> str:
        """ "Women's ", "Men's ", or nothing."""
        first = self.query.partition(" ")[0]
        return f"{first.capitalize()} " if first.endswith("'s") else ""


@dataclass(frozen=True)
class Draft:
    """The random choices for a product, from which its texts are written."""

    kind: Kind
    brand: str
    name: str
    before: tuple[str, ...]
    with_: tuple[str, ...]
    for_: tuple[str, ...]
    options: tuple[tuple[str, tuple[str, ...]], ...]
    prices: tuple[float, ...]

    @property
    def attributes(self) -> tuple[str, ...]:
        return (*self.before, *self.with_, *self.for_)


@cache
def vocabulary() -> dict[str, Any]:
    """Brands, lists of option values, and kinds."""
    words: dict[str, Any] = json.loads(Path(__file__).with_name("vocabulary.json").read_text(encoding="utf-8"))
    words["kinds"] = [
        Kind(**{{"with": "with_", "for": "for_"}.get(key, key): value for key, value in kind.items()})
        for kind in words["kinds"]
    ]
    return words


def embedded_catalogue(size: int = 1000) -> Path:
    """The folder of the embedded catalogue of `size` products. It is made if it does not exist."""
    folder = cache_root() / "webshop" / f"{EMBEDDED}{GENERATOR_VERSION}-{size}"
    if found_whole(folder, "the embedded catalogue"):
        return folder
    with made_once(folder) as whole:
        for name, content in make_files(size).items():
            (whole / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
        write_checksums(whole)
    return folder


def make_files(size: int, seed: int = 0) -> dict[str, Any]:
    """The contents of the files by name. Raises `ValueError` if some kind would have no product."""
    kinds: list[Kind] = vocabulary()["kinds"]
    if size < len(kinds):
        raise ValueError(f"an embedded catalogue needs at least {len(kinds)} products, got {size}")
    rng = random.Random(seed)
    drafts: list[Draft] = []
    for number in range(size):
        kind = kinds[number % len(kinds)]
        siblings = drafts[number % len(kinds) :: len(kinds)]
        if siblings and rng.random() < VARIANTS:
            drafts.append(_vary(rng.choice(siblings), rng))
        else:
            drafts.append(_draw(kind, rng))
    rng.shuffle(drafts)
    files: dict[str, Any] = {ITEMS: [], INSTRUCTIONS: {}, HUMAN: {}, NOUNS: {}}
    for draft in drafts:
        asin = "B0" + "".join(rng.choices(_ASIN, k=8))
        while asin in files[NOUNS]:
            asin = "B0" + "".join(rng.choices(_ASIN, k=8))
        title, files[NOUNS][asin] = _title(draft, rng)
        files[ITEMS].append(_record(draft, asin, title, rng))
        files[INSTRUCTIONS][asin] = {"attributes": list(draft.attributes)}
        if rng.random() < INSTRUCTED:
            files[INSTRUCTIONS][asin] |= _instruction(draft, rng)
        files[HUMAN][asin] = [_human(draft, asin, rng)]
    return files


# -- products ---------------------------------------------------------------------------------------------------------
def _draw(kind: Kind, rng: random.Random) -> Draft:
    return Draft(
        kind=kind,
        brand=rng.choice(vocabulary()["brands"]),
        name=rng.choice(kind.names),
        before=_some(kind.before, 1, 3, rng),
        with_=_some(kind.with_, 1, 3, rng),
        for_=_some(kind.for_, 0, 1, rng),
        options=tuple((name, _values(name, values, rng)) for name, values in kind.options.items()),
        prices=_prices(kind, rng),
    )


def _vary(draft: Draft, rng: random.Random) -> Draft:
    """Another product of the same name, with another price and either one other attribute or other options."""
    kind = draft.kind
    changed = replace(draft, brand=rng.choice(vocabulary()["brands"]), prices=_prices(kind, rng))
    match rng.choice(["before", "with", "options"] if kind.options else ["before", "with"]):
        case "before":
            return replace(changed, before=_swap(draft.before, kind.before, rng))
        case "with":
            return replace(changed, with_=_swap(draft.with_, kind.with_, rng))
        case _:
            return replace(changed, options=tuple((n, _values(n, v, rng)) for n, v in kind.options.items()))


def _some(choices: Sequence[str], least: int, most: int, rng: random.Random) -> tuple[str, ...]:
    chosen = rng.sample(choices, rng.randint(least, most))
    return tuple(choice for choice in choices if choice in chosen)


def _swap(have: tuple[str, ...], choices: Sequence[str], rng: random.Random) -> tuple[str, ...]:
    """Replace one of `have` by another choice."""
    gone, come = rng.choice(have), rng.choice([choice for choice in choices if choice not in have])
    return tuple(choice for choice in choices if choice == come or (choice in have and choice != gone))


def _values(name: str, values: str, rng: random.Random) -> tuple[str, ...]:
    """Some values of an option: a run of sizes, or any colours."""
    every: list[str] = vocabulary()["values"][values]
    count = rng.randint(2, min(5, len(every)))
    if name == "Size":
        first = rng.randrange(len(every) - count + 1)
        return tuple(every[first : first + count])
    return tuple(rng.sample(every, count))


def _prices(kind: Kind, rng: random.Random) -> tuple[float, ...]:
    """One price; sometimes two, which depend on options, or none."""
    low, high = kind.prices
    price = int(low * (high / low) ** rng.random()) + rng.choice([0.0, 0.49, 0.95, 0.99, 0.99])
    kinds_of_tags = rng.random()
    if kinds_of_tags < 0.02:
        return ()
    return (price, round(price * rng.uniform(1.1, 1.6), 2)) if kinds_of_tags < 0.12 else (price,)


# -- texts ------------------------------------------------------------------------------------------------------------
def _title(draft: Draft, rng: random.Random) -> tuple[str, list[str]]:
    """The title, and its nouns: the brand, the words of the name, and those after "with" and "for"."""
    before, with_ = rng.choice(draft.before), rng.choice(draft.with_)
    for_ = rng.choice(draft.for_) if draft.for_ else ""
    brand, name = draft.brand, draft.kind.wearer + draft.name
    own, trait = [brand, *draft.name.split()], with_.split()
    forms = [
        (f"{brand} {before.title()} {name} with {with_.title()}", [*own, *trait]),
        (f"{brand} {name}, {before.title()}, {with_.title()}", [*own, *trait]),
        (f"{brand} {name} with {with_.title()}", [*own, *trait]),
    ]
    if for_:
        forms.append((f"{brand} {before.title()} {name} for {for_.title()}", [*own, *for_.split()]))
    title, nouns = rng.choice(forms)
    return title, [noun.lower() for noun in nouns]


def _record(draft: Draft, asin: str, title: str, rng: random.Random) -> dict[str, Any]:
    """A record of the catalogue's file."""
    name = f"{draft.kind.wearer}{draft.name}".lower()
    phrases = [*draft.before, *(f"with {attribute}" for attribute in draft.with_)]
    rng.shuffle(phrases)
    uses = "".join(f" Made for {use}." for use in draft.for_)
    half = max(1, len(phrases) // 2)
    return {
        "asin": asin,
        "name": title,
        "full_description": f"{draft.brand} {name}: {', '.join(phrases[:half])}.{uses} {rng.choice(_CLOSINGS)}",
        "small_description": [
            rng.choice(_BULLETS).format(t.capitalize(), name) for t in phrases[half:] + phrases[:half]
        ],
        "pricing": "".join(f"${price:.2f}" for price in draft.prices),
        "product_category": draft.kind.path,
        "category": draft.kind.category,
        "query": draft.kind.query,
        "images": [f"https://example.com/{asin}.jpg"],
        "customization_options": {n: [{"value": v} for v in values] for n, values in draft.options} or "",
    }


_CLOSINGS = (
    "Packed with care and shipped within two days.",
    "A year of guarantee comes with every order.",
    "Small differences of shade come from the light of the photo.",
    "Designed in a small workshop and tested by hand.",
    "Please check the measures before you order.",
)
_BULLETS = (
    "{0}: what people praise most in our {1}.",
    "{0}, as it should be for {1}.",
    "{0} - made to last through many seasons.",
    "{0}. Write to us, and we answer within a day.",
    "{0}: you will notice the difference.",
)


def _instruction(draft: Draft, rng: random.Random) -> dict[str, Any]:
    """A synthetic instruction in the official form: the query, with two to four of the attributes."""
    asked = set(rng.sample(draft.attributes, min(len(draft.attributes), rng.choice([2, 2, 3, 3, 4]))))
    before, with_, for_ = ([a for a in group if a in asked] for group in (draft.before, draft.with_, draft.for_))
    text = " ".join(["Find me", *([", ".join(before)] if before else []), draft.kind.query])
    text += f" with {', '.join(with_)}" if with_ else ""
    text += f" for {', '.join(for_)}" if for_ else ""
    return {"instruction": text, "instruction_attributes": [*before, *with_, *for_]}


def _human(draft: Draft, asin: str, rng: random.Random) -> dict[str, Any]:
    """An instruction as a person would type it: some attributes and options in a sentence."""
    with_ = rng.choice(draft.with_)
    asked = [with_]
    name = f"{draft.kind.wearer}{draft.name}".lower()
    if rng.random() < 0.6:
        asked.insert(0, rng.choice(draft.before))
        name = f"{asked[0]} {name}"
    options = {option.lower(): rng.choice(values).lower() for option, values in draft.options if rng.random() < 0.8}
    wish = f"{name} with {with_}"
    if options:
        wish += rng.choice([", in ", ". i want it in ", " in "]) + " and ".join(options.values())
    form = rng.choice(["i am looking for {}.", "i need {}", "show me {}.", "i would like to buy {}.", "please find {}"])
    return {
        "asin": asin,
        "instruction": form.format(wish),
        "attributes": list(draft.attributes),
        "options": [f"{option}: {value}" for option, value in options.items()],
        "instruction_attributes": asked,
        "instruction_options": list(options.values()),
        "assignment_id": "",
        "worker_id": "",
    }
