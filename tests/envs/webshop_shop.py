"""A small shop for tests: a few products in the official files, with oddities of real ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from envs.core import Task
from envs.webshop.env import open_shop
from envs.webshop.goals import build_goals


def record(asin: str, name: str, options: dict[str, list[str]] | None = None, **fields: Any) -> dict[str, Any]:
    """A product in the schema of items_shuffle.json."""
    chosen = {group: [{"value": value, "image": None} for value in values] for group, values in (options or {}).items()}
    return {
        "asin": asin,
        "name": name,
        "full_description": "",
        "pricing": "$10.00",
        "images": [f"https://shop/{asin}.jpg"],
        "product_category": "Home › Lights",
        "small_description": ["for any room"],
        "customization_options": chosen,
        "category": "garden",
        "query": "lamps",
        **fields,
    }


PRODUCTS = [
    record(
        "LAMP000001",
        "Red Desk Lamp",
        {"Color": ["Red", "Navy/White"], "Size": ["Small", "Large"]},
        pricing="$20.00$30.00",
        full_description="A lamp of <b>brass</b> & glass.",
        small_description=["dimmable", "", "energy  efficient"],
    ),
    record("LAMP000002", "Desk Lamp", {"First": ["x", "same"], "Second": ["same", "features", 'y "z"', "café"]}),
    record("CHAIR00001", "Oak Chair", category="furniture", query="Chairs ", product_category="Home › Seats"),
    *(record(f"BULB{i:06}", f"Bulb {i}", category="bulbs", query="bulbs", pricing="") for i in range(60)),
]
ATTRIBUTES: dict[str, dict[str, Any]] = {
    "LAMP000001": {
        "attributes": ["dimmable", "energy efficient", "solid brass"],
        "instruction": "Find me dimmable lamps with solid brass",
        "instruction_attributes": ["dimmable", "solid brass"],
    },
    "CHAIR00001": {
        "attributes": ["solid oak"],
        "instruction": "Find me chairs",
        "instruction_attributes": ["solid oak"],
    },
}
HUMAN = {
    "LAMP000001": [
        {"instruction": "i want a red lamp.", "instruction_attributes": ["dimmable"], "instruction_options": ["red"]},
        {"instruction": "anything", "instruction_attributes": [], "instruction_options": []},
    ]
}


def write_catalogue(folder: Path) -> Path:
    """The files of the shop. Returns the folder."""
    nouns = {product["asin"]: product["name"].lower().split() for product in PRODUCTS}
    attributes = {product["asin"]: {"attributes": ["indoor"]} for product in PRODUCTS} | ATTRIBUTES
    files = {"items_shuffle": PRODUCTS, "items_ins_v2": attributes, "items_human_ins": HUMAN, "title_nouns": nouns}
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def make_task(folder: Path, number: int = 0, human: bool = False, seed: int = 0) -> Task:
    """The task of a goal of the shop: numbers 0 to 3 are lamps of two colours and sizes, 4 is the chair."""
    goals = build_goals(open_shop(folder).catalogue, 0, human=human)
    goal = sorted(goals, key=lambda goal: goal.instruction_text, reverse=True)[number]
    payload = {"catalogue": str(folder), "price_seed": 0, "goal": goal.to_json()}
    return Task(f"goal-{number}", "polyturn/WebShop-v0", seed=seed, payload=payload)
