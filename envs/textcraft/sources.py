"""Where recipes come from: the published files in the data folder, or the generated ones.

source = open_source("/data/textcraft/recipes.json")     # or EMBEDDED; read once in a process
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from envs.core import NoDataError
from envs.textcraft.game import Game, Moves
from envs.textcraft.generate import recipe_files
from envs.textcraft.recipes import RecipeTree

EMBEDDED, PUBLISHED = "embedded", "published"
FOLDER, RECIPES, GAMES = "textcraft", "recipes.json", "adapt_test_200.json"
KEPT_GAMES = 2000
# The published games of ADaPT were made from recipes in another order. With these read first and the others by name,
# every command that the games show is there, and nothing is missing that a goal needs.
READ_FIRST = ("honey_bottle", "iron_nugget", "gold_nugget")
GET_DATA = "get it with: python -m scripts.download textcraft"


class Source:
    """Recipes, and the games over them."""

    def __init__(self, tree: RecipeTree) -> None:
        self.tree = tree
        self.game = Game(tree)
        self._made = lru_cache(KEPT_GAMES)(self._make)

    def commands(self, payload: Mapping[str, Any]) -> tuple[list[str], Moves]:
        """The commands of a game, and the moves that they name.

        A payload has the commands themselves, or the `seed` and the `walk` that they are drawn by.
        """
        if "commands" in payload:
            return self._named(list(payload["commands"]))
        return self._made(payload["goal"], payload["seed"], payload.get("walk") == "adapt")

    def _make(self, goal: str, seed: int, adapt: bool) -> tuple[list[str], Moves]:
        return self._named(self.tree.commands(goal, seed, adapt=adapt))

    def _named(self, commands: list[str]) -> tuple[list[str], Moves]:
        return commands, Moves(self.tree, commands)


@lru_cache(maxsize=8)
def open_source(recipes: str, order: str = "") -> Source:
    """`recipes` is `EMBEDDED` or a file; `order` is `PUBLISHED` for the recipes in the order of the published games.

    Raises `NoDataError` for a file that does not exist, and `ValueError` for one that has no recipes.
    """
    if recipes == EMBEDDED:
        return Source(RecipeTree.of(recipe_files()))
    files = read_json(Path(recipes))
    if not isinstance(files, dict) or not files:
        raise ValueError(f"{recipes} has no recipes by name")
    return Source(RecipeTree.of(files, READ_FIRST if order == PUBLISHED else ()))


def read_json(path: Path) -> Any:
    """Raises `NoDataError` for a file that does not exist, and `ValueError` for one that is no JSON."""
    if not path.is_file():
        raise NoDataError(f"{path} does not exist; {GET_DATA}")
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}; {GET_DATA}") from error
