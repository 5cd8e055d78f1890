"""A small world of recipes for the embedded default: the rules of TextCraft without its data.

Materials can be got. Each becomes a rod and a sheet; these become a frame and a box; and those a lamp and a gate, with
something of another material. Boards are made from any of four woods, and recipes take boards of any kind. Which counts
and which other materials a recipe takes is drawn once, so that it has to be read among the commands of a game.
"""

from __future__ import annotations

import random
from typing import Any

from envs.textcraft.recipes import PREFIX, item_id

VERSION = 1  # of the world; changes with it
WOODS = ("ash", "elm", "fir", "yew")
MATERIALS = (
    "amber", "basalt", "bone", "brass", "chalk", "clay", "copper", "coral", "cork", "flint", "glass", "gold", "horn",
    "iron", "ivory", "jade", "lead", "linen", "marble", "nickel", "onyx", "pearl", "quartz", "resin", "silk", "silver",
    "slate", "steel", "tin", "topaz", "wax", "zinc",
)  # fmt: skip
BOARDS = "boards"


def recipe_files() -> dict[str, dict[str, Any]]:
    """The recipes by name, in the form of Minecraft's files; the same at every call."""
    rng = random.Random(VERSION)
    files = {
        f"{wood}_boards": _file(f"{wood} boards", rng.choice((2, 4)), {f"{wood} log": 1}, BOARDS) for wood in WOODS
    }
    for place, material in enumerate(MATERIALS):
        other = MATERIALS[(place + rng.randrange(1, len(MATERIALS))) % len(MATERIALS)]
        made = {
            "rod": (rng.choice((1, 2)), {material: rng.randrange(1, 4)}),
            "sheet": (1, {material: rng.randrange(2, 5)} | rng.choice(({}, {other: 1}))),
            "frame": (1, {f"{material} rod": rng.randrange(1, 3)} | rng.choice(({other: 1}, {BOARDS: 2}))),
            "box": (1, {f"{material} sheet": rng.randrange(1, 3)} | rng.choice(({other: 2}, {BOARDS: 1}))),
            "lamp": (1, {f"{material} frame": 1} | rng.choice(({f"{other} rod": 1}, {f"{material} sheet": 1}))),
            "gate": (1, {f"{material} box": 1} | rng.choice(({f"{other} rod": 1}, {f"{material} rod": 1}))),
        }  # fmt: skip
        for form, (count, inputs) in made.items():
            files[f"{material}_{form}"] = _file(f"{material} {form}", count, inputs)
    return files


def _file(output: str, count: int, inputs: dict[str, int], group: str | None = None) -> dict[str, Any]:
    ingredients = [
        {"tag" if name == BOARDS else "item": item_id(name)} for name, number in inputs.items() for _ in range(number)
    ]
    file = {
        "type": f"{PREFIX}crafting_shapeless", "ingredients": ingredients,
        "result": {"item": item_id(output), "count": count},
    }  # fmt: skip
    return file | ({"group": group} if group else {})
