"""The native ALFWorld engine: TextWorld's transcript on real and on odd games, files that are no games, snapshots."""

import importlib.util
import json
import logging
import os
import pickle
import random
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest

from benchmarks.alfworld import play_both
from envs.alfworld import engine as engine_module
from envs.alfworld import game as game_module
from envs.alfworld.engine import NOTHING_HAPPENS, Engine
from envs.alfworld.env import ALFWorldEnv
from envs.alfworld.game import GAME_FILE, TASK_TYPES, Game, GameFileError, load_game, load_games, parse_game
from envs.alfworld.reference import ReferenceEngine
from envs.alfworld.tasks import ALFWorldTasks
from envs.core import StopReason, Task, UnknownNameError

SPEC = importlib.util.find_spec("alfworld")
PACKAGE = Path(SPEC.submodule_search_locations[0]) if SPEC and SPEC.submodule_search_locations else None
SENTENCES = {
    "pick_and_place_simple": "put a {} in {}.",
    "look_at_obj_in_light": "look at {} under the {}.",
    "pick_clean_then_place_in_recep": "put a clean {} in {}.",
    "pick_heat_then_place_in_recep": "put a hot {} in {}.",
    "pick_cool_then_place_in_recep": "put a cool {} in {}.",
    "pick_two_obj_and_place": "put two {} in {}.",
}
OBJECT_TYPES = ("Mug", "Apple", "Knife", "ButterKnife", "DeskLamp", "Bowl", "Egg")
RECEPTACLE_TYPES = ("Drawer", "Fridge", "Microwave", "SinkBasin", "BathtubBasin", "Shelf", "Sink", "CounterTop")


def content(objects: str, facts: str, task_type: str, goal: tuple[str, str]) -> dict[str, Any]:
    """A game as its file holds it, with the domain and the grammar of the alfworld package."""
    if PACKAGE is None:
        pytest.skip("needs the domain and the grammar of the alfworld package: pip install polyturn[alfworld]")
    domain, grammar = ((PACKAGE / "data" / name).read_text(encoding="utf-8") for name in ("alfred.pddl", "alfred.twl2"))
    wanted = (
        game_module._GOALS[task_type].replace("object-type", f"{goal[0]}Type").replace("target-type", f"{goal[1]}Type")
    )
    sentence = SENTENCES[task_type].format(goal[0].lower(), goal[1].lower())
    return {
        "pddl_domain": domain,
        "grammar": grammar.replace("UNKNOWN GOAL.", sentence),
        "pddl_problem": f"(define (problem p) (:domain alfred) (:objects\n{objects}) (:init\n{facts}\n) {wanted}\n)",
        "solvable": True,
        "walkthrough": [],
    }


def write(folder: Path, game: Any) -> str:
    folder.mkdir(exist_ok=True)
    path = folder / GAME_FILE
    path.write_text(game if isinstance(game, str) else json.dumps(game), encoding="utf-8")
    return str(path)


# -- one small house, with all rules in it ----------------------------------------------------------------------------
def house() -> dict[str, Any]:
    """Three receptacles share a place; the drawer there is closed and has a lamp and an apple in it."""
    receptacles = {
        "CounterTop_bar_1": ("CounterTop", 1),
        "CounterTop_bar_2": ("CounterTop", 1),
        "Drawer_bar_1": ("Drawer", 1),
        "Fridge_bar_1": ("Fridge", 2),
        "Microwave_bar_1": ("Microwave", 3),
        "Sink_bar_1_bar_SinkBasin": ("SinkBasin", 4),
        "Bathtub_bar_1_bar_BathtubBasin": ("BathtubBasin", 5),
    }
    objects = {
        "Mug_bar_1": ("Mug", "CounterTop_bar_1"),
        "Mug_bar_2": ("Mug", "Fridge_bar_1"),
        "Knife_bar_1": ("Knife", "CounterTop_bar_1"),
        "Apple_bar_1": ("Apple", "Drawer_bar_1"),
        "DeskLamp_bar_1": ("DeskLamp", "Drawer_bar_1"),
        "Bowl_bar_1": ("Bowl", "CounterTop_bar_2"),
        "Egg_bar_1": ("Egg", "CounterTop_bar_2"),
    }
    facts = [
        "(atLocation agent1 loc_bar_0)",
        "(isReceptacleObject Bowl_bar_1)",
        "(inReceptacleObject Egg_bar_1 Bowl_bar_1)",
    ]
    facts += ["(toggleable DeskLamp_bar_1)", "(sliceable Apple_bar_1)", "(isCool Mug_bar_2)"]
    facts += [f"(openable {name}_bar_1)" for name in ("Drawer", "Fridge", "Microwave")]
    for name, (kind, location) in receptacles.items():
        facts += [f"(receptacleType {name} {kind}Type)", f"(receptacleAtLocation {name} loc_bar_{location})"]
        facts += [f"(canContain {kind}Type {o}Type)" for o, _ in objects.values()]
    for name, (kind, home) in objects.items():
        facts += [f"(objectType {name} {kind}Type)", f"(inReceptacle {name} {home})"]
        facts += [f"(objectAtLocation {name} loc_bar_{receptacles[home][1]})"]
        facts += [
            f"({trait} {name})" for trait in ("pickupable", "cleanable", "heatable", "coolable") if kind != "DeskLamp"
        ]
    return content(
        declared(receptacles, objects, range(6)), "\n".join(facts), "pick_cool_then_place_in_recep", ("Apple", "Fridge")
    )


def declared(receptacles: Iterable[str], objects: Iterable[str], locations: Iterable[object]) -> str:
    kinds = {"agent1": "agent"} | dict.fromkeys(receptacles, "receptacle") | dict.fromkeys(objects, "object")
    kinds |= {f"loc_bar_{location}": "location" for location in locations}
    kinds |= {f"{kind}Type": "otype" for kind in OBJECT_TYPES} | {f"{kind}Type": "rtype" for kind in RECEPTACLE_TYPES}
    return "\n".join(f"{name} - {kind}" for name, kind in kinds.items())


TRANSCRIPT = """
look
    You are in the middle of a room. Looking quickly around you, you see nothing.
inventory
    You are not carrying anything.
go to countertop 2
    You arrive at countertop 2. On the countertop 2, you see a knife 1, and a mug 2.
go to countertop 1
    Nothing happens.
  examine countertop 1
    On the countertop 1, you see a bowl 1, and a egg 1.
Examine countertop 1
    Nothing happens.
examine drawer 1
    The drawer 1 is closed.
use desklamp 1
    You turn on the desklamp 1.
use desklamp 1
    You turn on the desklamp 1.
look
    You are facing the countertop 2, countertop 1, and drawer 1. Next to it, you see nothing.
slice apple 1 with knife 1
    Nothing happens.
take knife 1 from countertop 2
    You pick up the knife 1 from the countertop 2.
inventory
    You are carrying: a knife 1.
slice apple 1 with knife 1
    You sliced the apple 1 with the knife 1.
examine knife 1
    There's nothing special about knife 1.
examine mug 2
    Nothing happens.
move knife 1 to countertop 1
    You move the knife 1 to the countertop 1.
look
    You are facing the countertop 2, countertop 1, and drawer 1. Next to it, you see a knife 1.
take knife 1 from countertop 1
    You pick up the knife 1 from the countertop 1.
move knife 1 to drawer 1
    Nothing happens.
open drawer 1
    You open the drawer 1. The drawer 1 is open. In it, you see a apple 1, and a desklamp 1.
move knife 1 to drawer 1
    You move the knife 1 to the drawer 1.
look
    You are facing the countertop 2, countertop 1, and drawer 1. Next to it, you see a knife 1, and a knife 1.
take desklamp 1 from drawer 1
    Nothing happens.
take bowl 1 from countertop 1
    You pick up the bowl 1 from the countertop 1.
examine bowl 1
    This is a normal bowl 1. In it, you see a egg 1.
move bowl 1 to countertop 2
    You move the bowl 1 to the countertop 2.
take apple 1 from drawer 1
    You pick up the apple 1 from the drawer 1.
examine apple 1
    This is a sliced apple 1.
close drawer 1
    You close the drawer 1.
go to microwave 1
    You arrive at microwave 1. The microwave 1 is closed.
heat apple 1 with microwave 1
    You heat the apple 1 using the microwave 1.
examine apple 1
    This is a hot sliced apple 1.
go to bathtubbasin 1
    You arrive at bathtubbasin 1. On the bathtubbasin 1, you see nothing.
clean apple 1 with bathtubbasin 1
    Nothing happens.
go to sinkbasin 1
    You arrive at sinkbasin 1. On the sinkbasin 1, you see nothing.
clean apple 1 with sinkbasin 1
    You clean the apple 1 using the sinkbasin 1.
examine apple 1
    This is a hot and clean sliced apple 1.
go to fridge 1
    You arrive at fridge 1. The fridge 1 is closed.
cool apple 1 with fridge 1
    You cool the apple 1 using the fridge 1.
examine apple 1
    This is a cool and clean sliced apple 1.
open fridge 1
    You open the fridge 1. The fridge 1 is open. In it, you see a mug 1.
move apple 1 to fridge 1
    You move the apple 1 to the fridge 1. (won)
look
    You are facing the fridge 1. Next to it, you see nothing. (won)
take mug 1 from fridge 1
    You pick up the mug 1 from the fridge 1. (won)
examine mug 1
    This is a cold mug 1. (won)
move mug 1 to fridge 1
    You move the mug 1 to the fridge 1. (won)
take apple 1 from fridge 1
    You pick up the apple 1 from the fridge 1.
"""


@pytest.mark.parametrize("player", ["native", "textworld"])
def test_the_transcript_of_the_house(player: str, tmp_path: Path) -> None:
    path = write(tmp_path, house())
    if player == "textworld":
        pytest.importorskip("textworld", reason="needs polyturn[alfworld]")
    engine = Engine(load_game(path)) if player == "native" else ReferenceEngine(path)
    assert engine.reset() == (
        "-= Welcome to TextWorld, ALFRED! =-\n\nYou are in the middle of a room. Looking quickly around you, you see a "
        "bathtubbasin 1, a countertop 2, a countertop 1, a drawer 1, a fridge 1, a microwave 1, and a sinkbasin 1.\n\n"
        "Your task is to: put a cool apple in fridge."
    )
    lines = TRANSCRIPT.strip("\n").split("\n")
    for command, expected in zip(lines[::2], lines[1::2], strict=True):
        won = expected.endswith(" (won)")
        assert engine.step(command) == (expected.strip().removesuffix(" (won)"), float(won), won), command
        assert engine.won == won


def test_the_admissible_commands_of_the_house() -> None:
    engine = Engine(parse_game("house", house()))
    ways = ["go to bathtubbasin 1", "go to fridge 1", "go to microwave 1", "go to sinkbasin 1"]
    for command in ("go to drawer 1", "open drawer 1", "take knife 1 from countertop 2"):
        engine.step(command)
    assert engine.admissible == [
        "close drawer 1",
        "examine countertop 1",
        "examine countertop 2",
        "examine drawer 1",
        "examine knife 1",
        *ways,
        "help",
        "inventory",
        "look",
        "move knife 1 to countertop 1",
        "move knife 1 to countertop 2",
        "move knife 1 to drawer 1",
        "slice apple 1 with knife 1",
        "use desklamp 1",
    ]


# -- beside TextWorld -------------------------------------------------------------------------------------------------
def odd_game(rng: random.Random) -> dict[str, Any]:
    """A small game with facts that official ones do not have: things in several receptacles or none, shared places,
    untyped objects, lamps to carry, doors open at the start, things hot and cool at once."""
    places = range(rng.randint(1, 3))
    kinds = rng.sample(RECEPTACLE_TYPES, rng.randint(2, 5)) + ["Shelf"] * rng.randint(0, 2)
    receptacles = {
        f"{kind}_bar_{number}" + (f"_bar_{kind}" if kind.endswith("Basin") else ""): kind
        for number, kind in enumerate(kinds)
    }
    objects = {f"{(kind := rng.choice(OBJECT_TYPES))}_bar_{number}": kind for number in range(rng.randint(2, 8))}
    at = {name: rng.choice(places) for name in receptacles}
    start = rng.choice([*places, len(places)])

    def often(share: float, facts: Iterable[str]) -> list[str]:
        return [fact for fact in facts if rng.random() < share]

    facts = [f"(atLocation agent1 loc_bar_{start})"]
    facts += [f"(receptacleType {name} {kind}Type)" for name, kind in receptacles.items()]
    facts += [f"(receptacleAtLocation {name} loc_bar_{place})" for name, place in at.items()]
    facts += often(0.4, (f"(openable {name})" for name in receptacles)) + often(
        0.1, (f"(opened {n})" for n in receptacles)
    )
    facts += often(0.7, (f"(canContain {k}Type {o}Type)" for k in receptacles.values() for o in OBJECT_TYPES))
    facts += often(0.95, (f"(objectType {name} {kind}Type)" for name, kind in objects.items()))
    for trait, share in {
        "pickupable": 0.85,
        "cleanable": 0.7,
        "heatable": 0.7,
        "coolable": 0.7,
        "toggleable": 0.3,
    }.items():
        facts += often(share, (f"({trait} {name})" for name in objects))
    for trait in ("sliceable", "isReceptacleObject", "isHot", "isCool", "isClean", "isSliced", "isToggled", "isOn"):
        facts += often(0.15, (f"({trait} {name})" for name in objects))
    for name in objects:
        for home in rng.sample(list(receptacles), rng.choice([0, 1, 1, 1, 2])):
            facts += [f"(inReceptacle {name} {home})", *often(0.85, [f"(objectAtLocation {name} loc_bar_{at[home]})"])]
        facts += often(0.15, [f"(inReceptacleObject {name} {rng.choice(list(objects))})"])
    facts += rng.sample(facts, 2)
    rng.shuffle(facts)
    task_type = rng.choice(TASK_TYPES)
    target = rng.choice(list((objects if task_type == "look_at_obj_in_light" else receptacles).values()))
    names = declared(receptacles, objects, range(len(places) + 1))
    return content(names, "\n".join(facts), task_type, (rng.choice(list(objects.values())), target))


def test_odd_games_play_as_in_textworld(tmp_path: Path) -> None:
    pytest.importorskip("textworld", reason="needs polyturn[alfworld]")
    played: list[str] = []
    for seed in range(200):
        path = write(tmp_path / str(seed), odd_game(random.Random(seed)))
        try:
            play = play_both(path, 40, walkthrough_first=True, rng=random.Random(seed))
        except KeyError:  # TextWorld's answer to a goal that can never be reached
            continue
        assert not play.difference
        played.append(path)
        if len(played) == 5:
            return
    raise AssertionError(f"only {len(played)} games were playable")


def official_games() -> list[str]:
    """Two official games of each task type."""
    root = os.environ.get("POLYTURN_DATA")
    found = sorted(Path(root, "alfworld", "json_2.1.1").glob(f"valid_*/*/*/{GAME_FILE}")) if root else []
    by_type = {kind: [path for path in found if path.parts[-3].startswith(kind)] for kind in TASK_TYPES}
    return [str(paths[i]) for paths in by_type.values() if paths for i in (0, len(paths) // 2)]


@pytest.mark.parametrize("number", range(3))
def test_official_games_play_as_in_textworld(number: int) -> None:
    pytest.importorskip("textworld", reason="needs polyturn[alfworld]")
    games = official_games()
    if not games:
        pytest.skip("needs official games in POLYTURN_DATA")
    path = games[number * 5 % len(games)]
    play = play_both(path, 25, walkthrough_first=number % 2 == 0, rng=random.Random(number))
    assert not play.difference


def test_walkthroughs_win_official_games() -> None:
    games = official_games()
    if not games:
        pytest.skip("needs official games in POLYTURN_DATA")
    for path in games:
        engine = Engine(load_game(path))
        engine.reset()
        results = [engine.step(command) for command in json.loads(Path(path).read_bytes())["walkthrough"]]
        assert [score for _, score, _ in results] == [0.0] * (len(results) - 1) + [1.0]
        assert load_game(path).type == Path(path).parts[-3].partition("-")[0]


# -- the engine by itself ---------------------------------------------------------------------------------------------
def transcript(engine: Engine, commands: Iterable[str]) -> list[Any]:
    return [engine.reset(), *((engine.step(c), engine.admissible) for c in commands)]


def random_commands(game: Game, count: int, seed: int) -> list[str]:
    engine, rng, commands = Engine(game), random.Random(seed), []
    for _ in range(count):
        commands.append(rng.choice(engine.admissible))
        engine.step(commands[-1])
    return commands


def test_engines_of_one_game_do_not_disturb_each_other() -> None:
    game = parse_game("house", house())
    plays = [random_commands(game, 300, seed) for seed in (1, 2)]
    alone = [transcript(Engine(parse_game("house", house())), commands) for commands in plays]
    engines = [Engine(game) for _ in plays]
    together: list[list[Any]] = [[engine.reset()] for engine in engines]
    for pair in zip(*plays, strict=True):
        for engine, command, record in zip(engines, pair, together, strict=True):
            record.append((engine.step(command), engine.admissible))
    assert together == alone


def test_a_small_cache_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    commands = random_commands(parse_game("house", house()), 500, seed=3)
    expected = transcript(Engine(parse_game("house", house())), commands)
    monkeypatch.setattr(engine_module, "_MAX_SPOTS", 2)
    assert transcript(Engine(parse_game("house", house())), commands) == expected


def test_admissible_commands_are_the_callers_to_change() -> None:
    engine = Engine(parse_game("house", house()))
    engine.admissible.clear()
    assert "look" in engine.admissible


@pytest.mark.parametrize(
    "command",
    [
        "",
        " ",
        "x" * 1_000_000,
        "go to drawer 1" * 70_000,
        "\0",
        "look\0",
        "go to dräwer 1",
        "\ud800",
        "🍎",
        "\x1b[2J",
        "LOOK",
        "go to",
    ],
    ids=lambda command: ascii(command[:20]),
)
def test_a_command_without_effect_answers_nothing_happens(command: str) -> None:
    engine = Engine(parse_game("house", house()))
    before = engine.snapshot()
    assert engine.step(command) == (NOTHING_HAPPENS, 0.0, False)
    assert engine.snapshot() == before


@pytest.mark.parametrize("steps", [0, 1, 40, 200])
def test_a_restored_game_continues_like_the_original(steps: int) -> None:
    game = parse_game("house", house())
    commands = random_commands(game, steps + 60, seed=steps)
    expected = transcript(Engine(game), commands)[1 + steps :]
    engine, other = Engine(game), Engine(parse_game("house", house()))
    transcript(engine, commands[:steps])
    taken = engine.snapshot()
    packed = pickle.dumps(taken)
    for player, snapshot in ((engine, taken), (engine, taken), (other, pickle.loads(packed))):
        player.restore(snapshot)
        assert [(player.step(command), player.admissible) for command in commands[steps:]] == expected
    assert pickle.dumps(taken) == packed


# -- files ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda game: json.dumps(game)[:-50], "JSON"),
        (lambda game: "", "JSON"),
        (lambda game: "[" * 100_000, "JSON"),
        (lambda game: [1, 2], "JSON object with pddl_domain"),
        (lambda game: {k: v for k, v in game.items() if k != "grammar"}, "'grammar' is missing"),
        (lambda game: {k: v for k, v in game.items() if k != "solvable"}, "'solvable' is missing"),
        (lambda game: game | {"pddl_problem": 7}, "'pddl_problem' should be a str"),
        (lambda game: game | {"pddl_problem": "take the mug"}, "'pddl_problem' has no (define"),
    ],
)
def test_file_that_is_no_game_is_named(damage: Any, named: str, tmp_path: Path) -> None:
    path = write(tmp_path, damage(house()))
    for load in (load_game, lambda p: load_games([p], cache_dir=tmp_path / "cache")):
        with pytest.raises(GameFileError) as raised:
            load(path)
        assert path in str(raised.value)
        assert named in str(raised.value)
    with pytest.raises(GameFileError, match="nowhere"):
        load_game(tmp_path / "nowhere")


def test_layout_and_comments_do_not_matter() -> None:
    game = house()
    plain = parse_game("house", game)
    game["pddl_domain"] = "; a domain\n" + game["pddl_domain"].replace("\n", "  \n\n").replace(
        "(:action", "( :ACTION".replace(" ", "")
    )
    game["grammar"] = game["grammar"].replace('"intro": [', '"intro":\n[')
    game["pddl_problem"] = game["pddl_problem"].replace("(openable", "; a fact\n  (OPENABLE", 1)
    again = parse_game("house", game)
    assert not plain.foreign
    assert not again.foreign
    commands = random_commands(plain, 100, seed=0)
    assert transcript(Engine(again), commands) == transcript(Engine(plain), commands)


@pytest.mark.parametrize(
    ("key", "old", "new"),
    [
        ("pddl_domain", "(receptacleType ?r MicrowaveType)", "(receptacleType ?r FridgeType)"),
        ("grammar", "You arrive at", "You are at"),
        ("grammar", "put a cool apple in fridge", "put a {o.name} in fridge"),
        ("pddl_problem", "(isCool Mug_bar_2)", "(holds agent1 Mug_bar_2)"),
        ("pddl_problem", "(isCool Mug_bar_2)", "(isCool Fridge_bar_1)"),
        ("pddl_problem", "(isCool Mug_bar_2)", "(not (isCool Mug_bar_2))"),
        ("pddl_problem", "(isCool Mug_bar_2)", "(isCool)"),
        ("pddl_problem", "(isCool Mug_bar_2)", "(receptacleAtLocation Fridge_bar_1 loc_bar_1)"),
        ("pddl_problem", "(iscool ?o)", "(ishot ?o)"),
        ("pddl_problem", "agent1 - agent", "agent1 - agent\nagent2 - agent"),
    ],
)
def test_unknown_rules_are_left_to_textworld(key: str, old: str, new: str) -> None:
    game = house()
    assert old in game[key]
    game[key] = game[key].replace(old, new)
    foreign = parse_game("house", game)
    assert foreign.foreign
    with pytest.raises(ValueError, match="house: the native engine cannot play this game"):
        Engine(foreign)


@pytest.fixture
def forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clear the cache of games, as in a new process."""
    monkeypatch.setattr(game_module, "_read_games", {})


def facts_of(game: Game) -> list[Any]:
    return [getattr(game, name) for name in Game.__slots__]


def test_cache_gives_the_games_that_the_files_give(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [write(tmp_path / str(i), odd_game(random.Random(i))) for i in range(5)]
    paths = [paths[3], paths[0], paths[0], *paths[1:]]
    direct = [facts_of(load_game(path)) for path in paths]
    for _ in range(2):
        monkeypatch.setattr(game_module, "_read_games", {})
        assert [facts_of(game) for game in load_games(paths, cache_dir=tmp_path / "cache")] == direct
    monkeypatch.setattr(game_module, "_read_games", {})
    monkeypatch.setattr(game_module, "_read_file", lambda path: pytest.fail(f"{path} was read again"))
    assert [facts_of(game) for game in load_games(paths, cache_dir=tmp_path / "cache")] == direct


@pytest.mark.usefixtures("forgetful")
def test_changed_file_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, other = (write(tmp_path / name, house()) for name in "ab")
    load_games([path, other], cache_dir=tmp_path / "cache")
    changed = house()
    changed["grammar"] = changed["grammar"].replace("put a cool apple", "put some cool apple")
    write(tmp_path / "a", changed)
    assert load_games([path, other], cache_dir=tmp_path / "cache")[0].task == "put some cool apple in fridge."
    assert load_game(path).task == "put some cool apple in fridge."
    monkeypatch.setattr(game_module, "_read_games", {})
    assert load_games([path], cache_dir=tmp_path / "cache")[0].task == "put some cool apple in fridge."


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-9],
        lambda data: b"",
        lambda data: data.replace(b"mug 1", b"mug 9"),
        lambda data: b"\x80\x04]",
    ],
)
def test_damaged_cache_is_made_again(
    damage: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path, house())
    expected = facts_of(load_game(path))
    for attempt in range(3):
        monkeypatch.setattr(game_module, "_read_games", {})
        caplog.clear()
        assert facts_of(load_games([path], cache_dir=tmp_path / "cache")[0]) == expected
        assert ("damaged" in caplog.text) == (attempt == 1)
        (cache,) = (tmp_path / "cache").iterdir()
        if attempt == 0:
            cache.write_bytes(damage(cache.read_bytes()))


@pytest.mark.usefixtures("forgetful")
def test_a_cache_that_cannot_be_written_is_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path, house())
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert load_games([path], cache_dir=tmp_path / "cache")[0].task == "put a cool apple in fridge."
    assert "cannot write the cache" in caplog.text


# -- the environment --------------------------------------------------------------------------------------------------
WINNING = [
    "go to drawer 1",
    "open drawer 1",
    "take apple 1 from drawer 1",
    "go to fridge 1",
    "cool apple 1 with fridge 1",
    "open fridge 1",
    "move apple 1 to fridge 1",
]


def test_winning_pays_one_and_ends_the_episode(tmp_path: Path) -> None:
    path = write(tmp_path, house())
    env = gym.make("polyturn/ALFWorld-v0")
    for task in (path, tmp_path, Task("house", "polyturn/ALFWorld-v0", payload={"path": path})):
        observation, info = env.reset(options={"task": task})
        assert observation.endswith("Your task is to: put a cool apple in fridge.")
        assert info["goal"] == "put a cool apple in fridge."
        assert info["type"] == "pick_cool_then_place_in_recep"
        steps = [env.step(action) for action in WINNING]
        assert [reward for _, reward, *_ in steps] == [0.0] * 6 + [1.0]
        assert [terminated for _, _, terminated, *_ in steps] == [False] * 6 + [True]
        assert steps[-1][4]["success"]
        assert steps[-1][4]["score"] == 1.0
        assert steps[-1][4]["stop_reason"] == StopReason.SUCCESS
        assert "take apple 1 from fridge 1" in steps[-1][4]["admissible"]


def test_state_key_is_the_last_observation_and_the_held_object(tmp_path: Path) -> None:
    env = ALFWorldEnv()
    _, info = env.reset(options={"task": write(tmp_path, house())})
    keys = [info["state_key"]]

    def after(action: str) -> str:
        keys.append(env.step(action)[4]["state_key"])
        return keys[-1]

    assert after("go to drawer 1") != keys[0]
    assert after("take apple 1 from drawer 1") == keys[1]  # it is closed: nothing happens, nothing changes
    assert after("go to fridge 1") not in keys[:-1]
    empty_handed = keys[-1]
    after("go to drawer 1")
    after("open drawer 1")
    taken = after("take apple 1 from drawer 1")
    assert after("open drawer 1") == taken
    snapshot = env.snapshot()
    holding = after("go to fridge 1")
    assert holding != empty_handed
    env.restore(snapshot)
    assert after("fly") == taken
    assert after("go to fridge 1") == holding
    after("open fridge 1")
    after("move apple 1 to fridge 1")
    after("go to drawer 1")
    after("close drawer 1")
    assert after("go to fridge 1").endswith("\n")  # nothing is held again


def test_snapshot_goes_to_another_environment(tmp_path: Path) -> None:
    env, other = ALFWorldEnv(max_turns=8), ALFWorldEnv(max_turns=8)
    env.reset(options={"task": write(tmp_path / "a", house())})
    other.reset(options={"task": write(tmp_path / "b", odd_game(random.Random(0)))})
    for action in WINNING[:4]:
        env.step(action)
    other.restore(pickle.loads(pickle.dumps(env.snapshot())))
    for action in WINNING[4:]:
        assert env.step(action) == other.step(action)
    assert other.reset(options={"task": tmp_path / "a"})[1]["goal"] == "put a cool apple in fridge."


@pytest.mark.parametrize("task", [None, 7, Task("house", "polyturn/ALFWorld-v0")])
def test_reset_without_a_task_raises(task: Any) -> None:
    with pytest.raises(ValueError, match=r"options=\{'task': …\}\) with a Task whose payload has a 'path'"):
        ALFWorldEnv().reset(options={"task": task})


def test_an_unknown_engine_is_named_with_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match="native, textworld"):
        ALFWorldEnv(engine="textwrld")


def test_foreign_game_is_played_by_textworld_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("textworld", reason="needs polyturn[alfworld]")
    game = house()
    game["grammar"] = game["grammar"].replace("You arrive at", "You are at")
    env = ALFWorldEnv()
    for _ in range(2):
        _, info = env.reset(options={"task": write(tmp_path, game)})
    assert env.step("go to drawer 1")[0] == "You are at drawer 1. The drawer 1 is closed."
    assert env.playing == "textworld"
    assert info["goal"] == "put a cool apple in fridge."
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert str(tmp_path) in warnings[0].getMessage()
    with pytest.raises(NotImplementedError, match="native engine"):
        env.snapshot()


def test_textworld_engine_gives_what_the_native_one_gives(tmp_path: Path) -> None:
    pytest.importorskip("textworld", reason="needs polyturn[alfworld]")
    path = write(tmp_path, house())
    native, textworld = ALFWorldEnv(), ALFWorldEnv(engine="textworld")
    assert native.reset(options={"task": path}) == textworld.reset(options={"task": path})
    for action in WINNING:
        assert native.step(action) == textworld.step(action)
    assert (native.playing, textworld.playing) == ("native", "textworld")


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "textworld", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'polyturn\[alfworld\]'"):
        ReferenceEngine("game.tw-pddl")
    with pytest.raises(ModuleNotFoundError, match=r"textworld: pip install 'polyturn\[alfworld\]'"):
        ALFWorldTasks(engine="textworld")
