"""Generated ALFWorld games: equal on all machines, by ALFRED's rules, and solved by their walkthroughs."""

import hashlib
import importlib.util
import json
import os
import re
import runpy
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.alfworld import generate
from envs.alfworld.engine import Engine
from envs.alfworld.game import parse_game
from envs.alfworld.generate import (
    FLOOR_PLANS,
    GENERATOR_VERSION,
    HELD_OUT_FLOOR_PLANS,
    TASK_TYPES,
    TRAIN_FLOOR_PLANS,
    GeneratedGame,
    generate_game,
)
from envs.core import UnknownNameError

pytest.importorskip("textworld", reason="needs polyturn[alfworld]")
SPEC = importlib.util.find_spec("alfworld")
if SPEC is None or not SPEC.submodule_search_locations:
    pytest.skip("needs polyturn[alfworld]", allow_module_level=True)
PACKAGE = Path(SPEC.submodule_search_locations[0])
ALFRED = runpy.run_path(str(PACKAGE / "gen" / "constants.py"))
STANDING = {"DeskLamp", "HousePlant", "Television"}  # not for taking; ALFRED has no containment rule for them

Facts = dict[str, list[tuple[str, ...]]]


def facts_of(game: GeneratedGame) -> Facts:
    problem = game.content["pddl_problem"]
    facts: Facts = {}
    for text in re.findall(r"\(([a-zA-Z][^()]*)\)", problem[problem.index("(:init") : problem.index("(:goal")]):
        predicate, *arguments = text.split()
        facts.setdefault(predicate, []).append(tuple(arguments))
    return facts


def types_of(facts: Facts) -> dict[str, str]:
    pairs = facts["objectType"] + facts["receptacleType"]
    return {name: kind.removesuffix("Type") for name, kind in pairs}


def digest(seeds: range) -> str:
    games = [generate_game(seed) for seed in seeds]
    parts = [[g.id, g.content["pddl_problem"], g.content["walkthrough"]] for g in games]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


games = st.builds(
    generate_game,
    st.integers(0, 2**40),
    task_type=st.none() | st.sampled_from(TASK_TYPES),
    size=st.none() | st.floats(0.01, 1.0),
)


# -- the same everywhere ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_games_are_the_same_in_any_process(hash_seed: str) -> None:
    code = "from tests.envs.test_alfworld_generate import digest; print(digest(range(40)))"
    root = Path(generate.__file__).parents[2]
    env = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, "-c", code], cwd=root, env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == digest(range(40))


def test_a_game_does_not_depend_on_the_games_before_it() -> None:
    alone = generate_game(11, task_type="look_at_obj_in_light")
    for seed in range(5):
        generate_game(seed, floor_plans=[1, 201, 301, 401])
    assert generate_game(11, task_type="look_at_obj_in_light") == alone


def test_other_games_need_another_version() -> None:
    known = {"1": "4feb4270d98815bb873131f5ed0b47730e7781eb071b7186224a63c4f0682602"}
    assert digest(range(40)) == known[GENERATOR_VERSION]


def test_ids_are_unique_and_contain_the_type() -> None:
    made = [generate_game(seed) for seed in range(300)]
    assert len({g.id for g in made}) == 300
    for seed, game in enumerate(made):
        task, kind, nothing, target, plan = game.id.removesuffix(f"/seed-{seed:06d}").split("-")
        assert (task, nothing) == (game.type, "None")
        assert int(plan) in {n for plans in FLOOR_PLANS.values() for n in plans}
        assert f"(objectType ?o {kind}Type)" in game.content["pddl_problem"].replace("?o1", "?o")
        assert f"{target}Type)" in game.content["pddl_problem"]


# -- after the rules --------------------------------------------------------------------------------------------------
@settings(max_examples=150)
@given(games)
def test_objects_lie_where_the_rules_allow(game: GeneratedGame) -> None:
    facts = facts_of(game)
    kinds = types_of(facts)
    rules = ALFRED["VAL_RECEPTACLE_OBJECTS"]
    for item, receptacle in facts["inReceptacle"]:
        assert kinds[item] in STANDING or kinds[item] in rules[kinds[receptacle]]
    for holder, kind in facts["canContain"]:
        assert kind.removesuffix("Type") in rules[holder.removesuffix("Type")]
    assert Counter(item for item, _ in facts["inReceptacle"]) == Counter(item for item, _ in facts["objectType"])
    assert {item for (item,) in facts["pickupable"]} == {i for i, k in facts["objectType"] if kinds[i] not in STANDING}


@settings(max_examples=150)
@given(games)
def test_every_object_has_a_place(game: GeneratedGame) -> None:
    facts = facts_of(game)
    places = dict(facts["receptacleAtLocation"])
    assert set(places) == {name for name, _ in facts["receptacleType"]}
    assert len(places) == len(facts["receptacleType"])
    homes = dict(facts["inReceptacle"])
    assert dict(facts["objectAtLocation"]) == {item: places[home] for item, home in homes.items()}
    ((agent, start),) = facts["atLocation"]
    assert agent == "agent1"
    assert start not in places.values()


@settings(max_examples=150)
@given(games)
def test_the_goal_is_not_met_at_the_start_and_its_objects_exist(game: GeneratedGame) -> None:
    facts = facts_of(game)
    kinds = types_of(facts)
    task, kind, _, target, _ = game.id.split("/")[0].split("-")
    homes = [kinds[home] for item, home in facts["inReceptacle"] if kinds[item] == kind]
    assert len(homes) >= (2 if task == "pick_two_obj_and_place" else 1)
    if task in ("pick_and_place_simple", "pick_two_obj_and_place"):
        assert target not in homes
    if task == "pick_cool_then_place_in_recep":
        assert "isCool" not in facts
    present = Counter(kinds.values())
    tool = {"clean": "SinkBasin", "heat": "Microwave", "cool": "Fridge"}.get(task.split("_")[1])
    assert present[target] > 0
    assert tool is None or present[tool] > 0
    if task == "look_at_obj_in_light":
        lamps = {lamp for (lamp,) in facts["toggleable"]}
        assert any(item in lamps for item, _ in facts["inReceptacle"])
    else:
        assert (f"{target}Type", f"{kind}Type") in facts["canContain"]


def test_task_sentences_are_the_official_ones() -> None:
    templates = runpy.run_path(str(PACKAGE / "gen" / "goal_library.py"))["gdict"]
    seen = set()
    for seed in range(200):
        game = generate_game(seed)
        _, kind, _, target, _ = game.id.lower().split("/")[0].split("-")
        (sentence,) = re.findall(r'"rhs": "Your task is to: (.*)\."', game.content["grammar"])
        wordings = {
            template.format(obj=kind, recep=target, toggle=target): template
            for template in templates[game.type]["templates"]
        }
        assert sentence in wordings
        seen.add((game.type, wordings[sentence]))
    assert len(seen) == 2 * len(TASK_TYPES)


def test_facts_are_those_of_official_games() -> None:
    root = os.environ.get("POLYTURN_DATA")
    official = sorted(Path(root, "alfworld/json_2.1.1/valid_seen").glob("*/*/game.tw-pddl")) if root else []
    if not official:
        pytest.skip("set POLYTURN_DATA to a folder with alfworld/json_2.1.1/valid_seen")
    arities: dict[str, int] = {}
    goals = {}
    for path in official:
        content = json.loads(path.read_text())
        arities |= {k: len(v[0]) for k, v in facts_of(GeneratedGame("", "", content)).items()}
        goals[path.parts[-3].rsplit("-", 1)[0]] = content["pddl_problem"].split("(:goal")[1].split()
    compared = 0
    for seed in range(300):
        game = generate_game(seed)
        assert {k: len(v[0]) for k, v in facts_of(game).items()}.items() <= arities.items()
        if (official_goal := goals.get(game.id.split("/")[0].rsplit("-", 1)[0])) is not None:
            assert game.content["pddl_problem"].split("(:goal")[1].split() == official_goal
            compared += 1
    assert compared > 10


# -- rooms and sizes --------------------------------------------------------------------------------------------------
def test_every_task_type_is_drawn() -> None:
    assert {generate_game(seed).type for seed in range(100)} == set(TASK_TYPES)


@pytest.mark.parametrize("size", [0.01, 1.0])
def test_every_floor_plan_gives_games(size: float) -> None:
    for number in (n for plans in FLOOR_PLANS.values() for n in plans):
        for seed in range(5):
            assert generate_game(seed, floor_plans=[number], size=size).id.split("/")[0].endswith(f"-{number}")


def test_a_whole_room_has_the_receptacles_of_its_floor_plan() -> None:
    for number in (1, 201, 301, 401):
        spots = json.loads((PACKAGE / "gen" / "layouts" / f"FloorPlan{number}-openable.json").read_text())
        kinds = set(json.loads((PACKAGE / "gen" / "layouts" / f"FloorPlan{number}-objects.json").read_text()))
        facts = facts_of(generate_game(3, floor_plans=[number], size=1.0))
        names = {name for name, _ in facts["receptacleType"]}
        for key in spots:
            mangled = key.replace("-", "_minus_").replace("|", "_bar_").replace("+", "_plus_").replace(".", "_dot_")
            assert mangled in names
        fixed = ALFRED["RECEPTACLES"] - ALFRED["MOVABLE_RECEPTACLES_SET"]
        assert {kind.removesuffix("Type") for _, kind in facts["receptacleType"]} == kinds & fixed


def test_size_is_the_share_of_the_receptacles_kept() -> None:
    whole, half = (len(facts_of(generate_game(5, floor_plans=[8], size=s))["receptacleType"]) for s in (1.0, 0.5))
    assert half == -(-whole // 2)
    smallest = facts_of(generate_game(5, floor_plans=[8], size=0.01, task_type="pick_heat_then_place_in_recep"))
    assert len(smallest["receptacleType"]) <= 3  # where the object is, the microwave, the target


def test_sizes_are_drawn_from_parts_of_a_room_to_all_of_it() -> None:
    counts = Counter(len(facts_of(generate_game(seed, floor_plans=[8]))["receptacleType"]) for seed in range(150))
    whole = max(counts)
    assert 0.2 < counts[whole] / 150 < 0.5
    assert min(counts) < 0.4 * whole


def test_splits_are_disjoint_and_cover_every_room() -> None:
    every = {n for plans in FLOOR_PLANS.values() for n in plans}
    assert len(every) == 120
    assert set(TRAIN_FLOOR_PLANS) | set(HELD_OUT_FLOOR_PLANS) == every
    assert not set(TRAIN_FLOOR_PLANS) & set(HELD_OUT_FLOOR_PLANS)
    for plans in FLOOR_PLANS.values():
        assert len(set(plans) & set(HELD_OUT_FLOOR_PLANS)) == 3
    assert {generate_game(seed, floor_plans=HELD_OUT_FLOOR_PLANS).type for seed in range(100)} == set(TASK_TYPES)


# -- errors -----------------------------------------------------------------------------------------------------------
def test_errors_name_what_was_wrong() -> None:
    with pytest.raises(UnknownNameError, match=r"'130'.*did you mean"):
        generate_game(0, floor_plans=[130])
    with pytest.raises(UnknownNameError, match="pick_heat_then_place_in_recep"):
        generate_game(0, task_type="pick_heat")
    with pytest.raises(ValueError, match=r"401.*pick_heat.*Kitchen"):
        generate_game(0, floor_plans=[401], task_type="pick_heat_then_place_in_recep")
    with pytest.raises(ValueError, match="size"):
        generate_game(0, size=1.5)
    with pytest.raises(ValueError, match="seed"):
        generate_game(-1)


def test_the_error_of_a_missing_package_names_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    generate._package.cache_clear()
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "alfworld", None)  # what Python itself keeps for a module that is not to be found
        with pytest.raises(ModuleNotFoundError, match=r"pip install polyturn\[alfworld\]"):
            generate_game(0)
    assert generate_game(0)


# -- played -----------------------------------------------------------------------------------------------------------
def play_natively(game: GeneratedGame) -> list[bool]:
    """Play a game's walkthrough in the native engine; whether it was won after the start and after every command."""
    engine = Engine(parse_game(game.id, game.content))
    won = [engine.won]
    for command in game.content["walkthrough"]:
        assert command in engine.admissible, game.id
        won.append(engine.step(command)[2])
    return won


def test_walkthroughs_win_on_every_floor_plan() -> None:
    for number in (n for plans in FLOOR_PLANS.values() for n in plans):
        for seed, size in ((1, 0.2), (2, 0.6), (3, 1.0)):
            won = play_natively(generate_game(seed, floor_plans=[number], size=size))
            assert won[-1]
            assert not any(won[:-1])


@settings(max_examples=200)
@given(games)
def test_walkthroughs_win(game: GeneratedGame) -> None:
    won = play_natively(game)
    assert won[-1]
    assert not any(won[:-1])


def play_in_textworld(game: GeneratedGame, path: Path) -> list[bool]:
    """Play a game's walkthrough in TextWorld; whether it was won after the start and after every command."""
    import textworld
    from alfworld.agents.utils.misc import Demangler
    from textworld.envs import PddlEnv

    path.write_text(json.dumps(game.content))
    env = PddlEnv(textworld.EnvInfos(admissible_commands=True, won=True))
    env.load(str(path))
    demangler = Demangler(game_infos=env._entity_infos)
    for entity in env._entity_infos.values():
        entity.name = demangler.demangle_alfred_name(entity.id)
    state = env.reset()
    won = [state["won"]]
    for command in game.content["walkthrough"]:
        assert command in state["admissible_commands"], game.id
        state, _, _ = env.step(command)
        won.append(state["won"])
    return won


@pytest.mark.parametrize("task_type", TASK_TYPES)
@pytest.mark.parametrize(("seed", "size"), [(0, 0.3), (2, 1.0)])
def test_walkthroughs_win_in_textworld(task_type: str, seed: int, size: float, tmp_path: Path) -> None:
    won = play_in_textworld(generate_game(seed, task_type=task_type, size=size), tmp_path / "game.tw-pddl")
    assert won[-1]
    assert not any(won[:-1])
