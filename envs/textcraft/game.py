"""The rules of TextCraft: what an action does to an inventory, and what is said to it.

Actions are `get N ITEM`, `craft N ITEM using N ITEM, N ITEM` and `inventory`. They are read as the references do it:
from the beginning of the text, case and spaces as they stand, and what follows a whole action does not matter. The
count in front of an output is ignored: a recipe gives what it gives.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import product
from typing import NamedTuple, TypeAlias

from envs.textcraft.recipes import Ingredient, Recipe, RecipeTree, item_id, words

Inventory: TypeAlias = Mapping[str, int]  # counts by item, in the order in which items came

NOTHING = "Inventory: You are not carrying anything."
MOST_STATES = 10_000  # of a game that are kept
MOST_DIGITS = 1000  # of a count: Python reads at most 4,300
_CRAFT = re.compile(r"craft (.*) using (.*)")
_GET = re.compile(r"get ([0-9]+) (.*)")
_COUNTED = re.compile(r"([0-9]+) (.*)")


class Effect(NamedTuple):
    """What an action leads to."""

    text: str
    inventory: Inventory  # a new one, or the same if nothing changed
    crafted: str | None = None  # the item


class Get(NamedTuple):
    """`get N ITEM`, of an item that can be got."""

    item: str
    amount: int
    text: str  # what is said


class Craft(NamedTuple):
    """`craft … using …`, with names of items; None stands for a tag, which nobody has."""

    inputs: tuple[tuple[str | None, int], ...]
    output: str | None
    recipe: Recipe | None  # that makes it
    refusal: str  # if there is none, and enough items


Move: TypeAlias = Get | Craft | str | None  # a text says why nothing happens; None is a look at the inventory


class Game:
    """The rules over a tree. It has no state; actions that were read once are kept."""

    def __init__(self, tree: RecipeTree) -> None:
        self.tree = tree
        self.read = lru_cache(maxsize=100_000)(self._read)

    def play(self, action: str, inventory: Inventory) -> Effect:
        """Never raises, and never changes `inventory`."""
        move = self.read(action) if len(action) < 1000 else self._read(action)
        if move is None:
            return Effect(inventory_text(inventory), inventory)
        if isinstance(move, str):
            return Effect(move, inventory)
        if isinstance(move, Get):
            return Effect(move.text, {**inventory, move.item: inventory.get(move.item, 0) + move.amount})
        return _craft(move, inventory)

    def _read(self, action: str) -> Move:
        if found := _CRAFT.match(action):
            return self._read_craft(found[1], found[2])
        if found := _GET.match(action):
            name = item_id(found[2])
            if len(found[1]) > MOST_DIGITS or not self.tree.can_get(name):
                return f"Could not find {found[2]}"
            return Get(name, int(found[1]), f"Got {int(found[1])} {found[2]}")
        return None if action.startswith("inventory") else f"Could not execute {action}"

    def _read_craft(self, output_text: str, inputs_text: str) -> Move:
        found = _COUNTED.match(output_text)
        count, name = (found[1], item_id(found[2])) if found else ("1", item_id(output_text))
        output = None if name in self.tree.tags else name
        inputs: list[tuple[str | None, int]] = []
        for part in inputs_text.split(","):
            found = _COUNTED.match(part.strip())
            if found is None or max(len(found[1]), len(count)) > MOST_DIGITS:
                return f"Wrong item format: {part.strip()}"
            one = item_id(found[2])
            inputs.append((None if one in self.tree.tags else one, int(found[1])))
        tag = None if output else name
        refusal = (
            "Could not find a valid recipe for ItemTagWithCount("
            f"item_tag=ItemTag(tag={tag!r}, item_id={output!r}), count={int(count)})"
        )
        return Craft(tuple(inputs), output, self._recipe(output, inputs), refusal)

    def _recipe(self, output: str | None, inputs: list[tuple[str | None, int]]) -> Recipe | None:
        """The first recipe that takes exactly these inputs, in any order."""
        for recipe in self.tree.recipes.get(output or "", ()):
            rest = list(inputs)
            for one in recipe.inputs:
                given = next((pair for pair in rest if pair[0] and self.tree.fits(one, pair[0])), None)
                if given is None or given[1] != one.amount:
                    break
                rest.remove(given)
            else:
                if not rest:
                    return recipe
        return None


def _craft(move: Craft, inventory: Inventory) -> Effect:
    left = dict(inventory)
    for item, count in move.inputs:
        if item is None or item not in left or inventory[item] < count:
            return Effect(f"Could not find enough items to craft {move.output}", inventory)
    recipe = move.recipe
    if recipe is None:
        return Effect(move.refusal, inventory)
    for item, count in move.inputs:
        assert item is not None, "a recipe takes items"
        left[item] -= count
        if not left[item]:
            del left[item]
    left[recipe.output] = left.get(recipe.output, 0) + recipe.count
    return Effect(f"Crafted {recipe.count} {recipe.output}", left, recipe.output)


def inventory_text(inventory: Inventory) -> str:
    """The answer to `inventory`, with the space at its end that the references write."""
    if not inventory:
        return NOTHING
    return "Inventory: " + "".join(f"[{words(item)}] ({count}) " for item, count in inventory.items())


class Seen(NamedTuple):
    """What there is to say about an inventory in a game."""

    text: str  # "2 coal, 1 stick", equal for equal inventories
    admissible: list[str]  # see `Moves.admissible`; not to be changed


class Moves:
    """The actions that are worth a thought in a game: those that its commands name."""

    def __init__(self, tree: RecipeTree, commands: Sequence[str]) -> None:
        """Of the commands of a game, in their order."""
        self._tree = tree
        recipes = [tree.by_text[command] for command in commands if command in tree.by_text]
        needed = (one for recipe in recipes for one in recipe.inputs if not one.is_tag and tree.can_get(one.name))
        gets = sorted({(words(one.name), one.amount) for one in needed})
        self._gets = [f"get {count} {item}" for item, count in gets]
        # By the first ingredient, since most are not there: places, other ingredients, and texts of the recipes.
        self._by_first: dict[str, list[tuple[int, tuple[Ingredient, ...], str]]] = {}
        self._of_tags: list[tuple[int, Recipe]] = []
        for place, recipe in enumerate(recipes):
            if any(one.is_tag for one in recipe.inputs):
                self._of_tags.append((place, recipe))
            else:
                first, *_ = recipe.inputs
                self._by_first.setdefault(first.name, []).append((place, recipe.inputs, recipe.text))

        self._seen: dict[tuple[tuple[str, int], ...], Seen] = {}

    def seen(self, inventory: Inventory) -> Seen:
        """What there is to say about an inventory; kept, since attempts at a game meet the same ones."""
        state = tuple(sorted(inventory.items()))
        seen = self._seen.get(state)
        if seen is None:
            if len(self._seen) >= MOST_STATES:
                self._seen.clear()
            brief = ", ".join([f"{count} {words(item)}" for item, count in state]) or "nothing"
            seen = self._seen[state] = Seen(brief, self.admissible(inventory))
        return seen

    def admissible(self, inventory: Inventory) -> list[str]:
        """What can be got, what can be crafted from the inventory, and a look at it."""
        found = [
            (place, text)
            for item in inventory
            for place, inputs, text in self._by_first.get(item, ())
            if all(inventory.get(name, 0) >= count for name, count, _ in inputs)
        ]
        if self._of_tags and not self._tree.tag_of.keys().isdisjoint(inventory):
            found += [(place, text) for place, recipe in self._of_tags for text in self._commands(recipe, inventory)]
        found.sort()
        return [*self._gets, *dict.fromkeys([text for _, text in found]), "inventory"]

    def _commands(self, recipe: Recipe, inventory: Inventory) -> Iterator[str]:
        """The recipe with items of the inventory in place of tags."""
        for items in product(*(self._items(one, inventory) for one in recipe.inputs)):
            if len(set(items)) == len(items):
                inputs = zip(recipe.inputs, items, strict=True)
                using = ", ".join(f"{one.amount} {words(item)}" for one, item in inputs)
                yield f"{recipe.text.partition(' using ')[0]} using {using}"

    def _items(self, one: Ingredient, inventory: Inventory) -> list[str]:
        return [item for item, count in inventory.items() if count >= one.amount and self._tree.fits(one, item)]
