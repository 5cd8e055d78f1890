"""Generated ALFWorld games, so that the environment runs without a download.

    game = generate_game(seed=4)       # the same seed gives the same bytes, in any process
    game.id                            # 'look_at_obj_in_light-Watch-None-DeskLamp-205/seed-000004'
    game.content["walkthrough"]        # ['go to diningtable 1', 'take watch 1 from diningtable 1', …]: it wins

The rooms are the 120 floor plans of the `alfworld` package. Objects are placed by ALFRED's own containment rules.
Goals, task sentences, domain and grammar are the package's (https://github.com/alfworld/alfworld, MIT licence).
`content` has the format of an official `game.tw-pddl` file, so TextWorld can play it too.

Frequencies (of task types by room, of objects of a type, of filled receptacles) follow counts over the 3,553 official
training games. Left out: objects inside other objects, and things that no receptacle holds, which a game's text never
shows.
"""

from __future__ import annotations

import importlib.util
import json
import math
import random
import runpy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np

from envs.alfworld.game import display_names
from envs.core import UnknownNameError

# Part of the identity of generated games. Raise it whenever a seed would give another game.
GENERATOR_VERSION = "1"

# Numbers of the floor plans, by room.
FLOOR_PLANS: dict[str, tuple[int, ...]] = {
    "Kitchen": tuple(range(1, 31)),
    "LivingRoom": tuple(range(201, 231)),
    "Bedroom": tuple(range(301, 331)),
    "Bathroom": tuple(range(401, 431)),
}
# The rooms that ALFRED reserves for its unseen splits, so that an agent trained on the others can also be evaluated on
# the official "unseen" games.
HELD_OUT_FLOOR_PLANS = (9, 10, 29, 215, 219, 226, 308, 315, 325, 404, 424, 425)
TRAIN_FLOOR_PLANS = tuple(n for plans in FLOOR_PLANS.values() for n in plans if n not in HELD_OUT_FLOOR_PLANS)

# Frequencies of the task types, by room, in the official training games.
_ROOMS_OF_TASK = {
    "pick_and_place_simple": {"Kitchen": 79, "LivingRoom": 210, "Bedroom": 237, "Bathroom": 264},
    "look_at_obj_in_light": {"LivingRoom": 51, "Bedroom": 257},
    "pick_clean_then_place_in_recep": {"Kitchen": 501, "Bathroom": 149},
    "pick_heat_then_place_in_recep": {"Kitchen": 459},
    "pick_cool_then_place_in_recep": {"Kitchen": 533},
    "pick_two_obj_and_place": {"Kitchen": 124, "LivingRoom": 216, "Bedroom": 240, "Bathroom": 233},
}
TASK_TYPES = tuple(_ROOMS_OF_TASK)


@dataclass(frozen=True)
class _Treatment:
    treatable: str  # key in ALFRED's table of treatable objects
    tool: str  # type of receptacle
    command: str


_TREATMENTS = {
    "pick_clean_then_place_in_recep": _Treatment("Cleanable", "SinkBasin", "clean"),
    "pick_heat_then_place_in_recep": _Treatment("Heatable", "Microwave", "heat"),
    "pick_cool_then_place_in_recep": _Treatment("Coolable", "Fridge", "cool"),
}
_LAMP = "DeskLamp"
# Objects that never move, and what they stand on.
_FURNISHINGS = {
    _LAMP: ("CoffeeTable", "Desk", "Dresser", "Shelf", "SideTable"),
    "HousePlant": ("CoffeeTable", "CounterTop", "Desk", "DiningTable", "Dresser", "Shelf", "SideTable"),
    "Television": ("Dresser", "TVStand"),
}
# Objects on the floor of ALFRED's rooms, which no command reaches, and objects that come in ones and twos.
_ON_THE_FLOOR = frozenset({"BaseballBat", "BasketBall", "Plunger", "TennisRacket"})
_FEW = frozenset({"Box", "Bread", "HandTowel", "Laptop", "Pan", "Pillow", "Pot", "Towel", "WateringCan"})
# Receptacles that hold one object at the start, and those that no official goal uses.
_HOLDS_ONE = frozenset(
    {"CoffeeMachine", "HandTowelHolder", "StoveBurner", "Toaster", "ToiletPaperHanger", "TowelHolder"}
)
_NO_TARGET = frozenset({"BathtubBasin", "HandTowelHolder", "LaundryHamper", "SinkBasin", "Toaster", "TowelHolder"})
# How strongly a type of receptacle attracts an object type relative to others that may hold it (1 if not listed).
# Fitted to the positions of objects in the official training games.
_DRAW = {
    "ArmChair": 0.3,
    "Bed": 2.0,
    "Drawer": 0.5,
    "Dresser": 0.6,
    "Fridge": 0.6,
    "GarbageCan": 0.2,
    "HandTowelHolder": 50.0,
    "Microwave": 0.2,
    "Ottoman": 0.3,
    "Safe": 0.3,
    "Shelf": 0.6,
    "SideTable": 0.5,
    "SinkBasin": 0.2,
    "StoveBurner": 5.0,
    "Toilet": 0.5,
    "ToiletPaperHanger": 0.4,
}
_COUNT_WEIGHTS = (5, 4, 3, 2)  # for 1, 2, 3, 4 objects of the goal's type; other types have 1 to 3


@dataclass(frozen=True)
class GeneratedGame:
    """A game: `id` identifies it among games made with the same arguments, `content` is that of a `game.tw-pddl`.

    Example: `GeneratedGame(id="pick_heat_then_place_in_recep-Potato-None-Fridge-12/seed-000123",
    type="pick_heat_then_place_in_recep", content={"pddl_domain": "…", "grammar": "…", "pddl_problem": "…",
    "solvable": True, "walkthrough": ["go to countertop 1", …]})`.
    """

    id: str
    type: str
    content: dict[str, Any]


def generate_game(
    seed: int,
    *,
    floor_plans: Sequence[int] | None = None,
    task_type: str | None = None,
    size: float | None = None,
) -> GeneratedGame:
    """Make one solvable game; equal arguments give an equal game.

    `floor_plans` are the rooms to choose from (None: all 120) and `task_type` is one of `TASK_TYPES` (None: drawn).
    `size` in (0, 1] is the share of the room's receptacles and kinds of objects that are kept. None means drawn: a
    third of the games have the whole room, the others any share from a fifth.

    Raises `UnknownNameError` for a floor plan or task type that does not exist, `ValueError` for a size or seed out of
    range or if no given floor plan can host the task, and `ModuleNotFoundError` without the `alfworld` package.
    """
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    if size is not None and not 0 < size <= 1:
        raise ValueError(f"size is a share of the room and must be in (0, 1], got {size}")
    if task_type is not None and task_type not in TASK_TYPES:
        raise UnknownNameError("task type", task_type, TASK_TYPES)
    rng = random.Random(seed)
    goal = _draw_goal(rng, _known_plans(None if floor_plans is None else tuple(floor_plans)), task_type)
    room = _furnish(rng, goal, min(1.0, rng.uniform(0.2, 1.4)) if size is None else size)
    package = _package()
    words = {"obj": goal.object, "recep": goal.target, "toggle": goal.target}
    wording = package.goals[goal.task]
    sentence = rng.choice(wording["templates"]).format(**{k: v.lower() for k, v in words.items()})
    content = {
        "pddl_domain": package.domain,
        "grammar": package.grammar.replace("UNKNOWN GOAL", sentence),
        "pddl_problem": _problem(seed, goal, room, wording["pddl"].replace("#", "-").format(**words)),
        "solvable": True,
        "walkthrough": _walkthrough(goal, room),
    }
    game_id = f"{goal.task}-{goal.object}-None-{goal.target}-{goal.plan.number}/seed-{seed:06d}"
    return GeneratedGame(game_id, goal.task, content)


# -- data of the alfworld package -----------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Package:
    layouts: Path
    domain: str
    grammar: str
    declarations: tuple[str, ...]  # every type of object and receptacle as a PDDL object; the domain names some of them
    goals: Mapping[str, Any]  # task type -> {"pddl": goal with {obj}, {recep}, {toggle} and # for -, "templates": […]}
    holds: Mapping[str, frozenset[str]]  # receptacle type -> object types that it may hold
    treatable: Mapping[str, frozenset[str]]  # "Cleanable", "Heatable", … -> object types
    receptacle_types: frozenset[str]
    container_types: frozenset[str]  # objects that can contain others
    openable_types: frozenset[str]


@cache
def _package() -> _Package:
    # The files are found and run without importing `alfworld`, which would create a folder in the user's home.
    spec = importlib.util.find_spec("alfworld")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            "generated ALFWorld games need the floor plans of the alfworld package: pip install polyturn[alfworld]"
        )
    root = Path(spec.submodule_search_locations[0])
    constants = runpy.run_path(str(root / "gen" / "constants.py"))
    containers = frozenset(constants["MOVABLE_RECEPTACLES"])
    receptacles = frozenset(constants["RECEPTACLES"]) - containers
    objects = sorted(set(constants["OBJECTS"]) - receptacles)
    return _Package(
        layouts=root / "gen" / "layouts",
        domain=(root / "data" / "alfred.pddl").read_text(encoding="utf-8"),
        grammar=(root / "data" / "alfred.twl2").read_text(encoding="utf-8"),
        declarations=tuple(
            [f"{kind}Type - otype" for kind in objects] + [f"{kind}Type - rtype" for kind in sorted(receptacles)]
        ),
        goals=runpy.run_path(str(root / "gen" / "goal_library.py"))["gdict"],
        holds={t: frozenset(objects) for t, objects in constants["VAL_RECEPTACLE_OBJECTS"].items()},
        treatable={t: frozenset(objects) for t, objects in constants["VAL_ACTION_OBJECTS"].items()},
        receptacle_types=receptacles,
        container_types=containers,
        openable_types=frozenset(constants["OPENABLE_CLASS_SET"]) - containers,
    )


@dataclass(frozen=True)
class _Receptacle:
    id: str  # "Drawer_bar__plus_01_dot_95_bar__plus_00_dot_40_bar__minus_01_dot_21"
    type: str
    place: str  # where the agent stands to use it, see `_place`
    position: tuple[float, float, float]  # metres


@dataclass(frozen=True)
class _FloorPlan:
    number: int
    receptacles: tuple[_Receptacle, ...]
    object_types: tuple[str, ...]
    starts: tuple[str, ...]  # places without a receptacle

    @cached_property
    def receptacle_types(self) -> frozenset[str]:
        return frozenset(r.type for r in self.receptacles)


@cache
def _floor_plan(number: int) -> _FloorPlan:
    package = _package()
    types = set(json.loads((package.layouts / f"FloorPlan{number}-objects.json").read_text(encoding="utf-8")))
    spots = json.loads((package.layouts / f"FloorPlan{number}-openable.json").read_text(encoding="utf-8"))
    points = sorted((float(x), float(z)) for x, z in np.load(package.layouts / f"FloorPlan{number}-layout.npy"))
    receptacles = []
    for key, (x, z, turn, tilt) in sorted(spots.items()):
        parts = key.split("|")  # a basin is a part of something: "Sink|-01.90|+00.97|-01.50|SinkBasin"
        position = (float(parts[1]), float(parts[2]), float(parts[3]))
        kind = parts[4] if len(parts) > 4 else parts[0]
        receptacles.append(_Receptacle(_pddl_name(key), kind, _place(x, z, turn, tilt), position))
        # The package gives some receptacles of a room (burners, garbage cans, …) no place: they get a random one.
    rng = random.Random(number)
    for kind in sorted((package.receptacle_types & types) - {r.type for r in receptacles}):
        x, z = rng.choice(points)
        place = _place(x, z, rng.choice((0, 90, 180, 270)), 30)
        for dx, dz in ((0.6, 0.2), (0.6, 0.5), (0.9, 0.2), (0.9, 0.5))[: 4 if kind == "StoveBurner" else 1]:
            position = (x + dx, 0.9, z + dz)
            name = _id_at(kind.removesuffix("Basin"), position)
            name += f"_bar_{kind}" if kind.endswith("Basin") else ""
            receptacles.append(_Receptacle(name, kind, place, position))
    taken = {r.place for r in receptacles}
    starts = [p for x, z in points if (p := _place(x, z, 0, 30)) not in taken]
    object_types = sorted(kind for kind in types - _ON_THE_FLOOR if _homes(kind))
    return _FloorPlan(number, tuple(receptacles), tuple(object_types), tuple(starts))


def _pddl_name(raw: str) -> str:
    return raw.replace("-", "_minus_").replace("|", "_bar_").replace("+", "_plus_").replace(".", "_dot_")


def _place(x: float, z: float, turn: float, tilt: float) -> str:
    """The PDDL name of a place to stand: metres in steps of 0.25, body and head angles in degrees."""
    return _pddl_name(f"loc|{round(x / 0.25)}|{round(z / 0.25)}|{round(turn / 90)}|{round(tilt)}")


def _id_at(kind: str, position: Iterable[float]) -> str:
    return _pddl_name("|".join([kind, *(f"{v:+06.2f}" for v in position)]))


@cache
def _known_plans(floor_plans: tuple[int, ...] | None) -> tuple[int, ...]:
    known = [n for plans in FLOOR_PLANS.values() for n in plans]
    for number in floor_plans or ():
        if number not in known:
            raise UnknownNameError("floor plan", str(number), map(str, known))
    return tuple(known) if floor_plans is None else floor_plans


# -- the goal ---------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Goal:
    task: str
    plan: _FloorPlan
    object: str  # type of the objects to bring
    target: str  # type of the receptacle to fill, or the lamp

    @property
    def tool(self) -> str:
        """The type of receptacle that treats the object; "" if none does."""
        return _TREATMENTS[self.task].tool if self.task in _TREATMENTS else ""

    @property
    def count(self) -> int:
        """How many objects have to be brought."""
        return 2 if self.task == "pick_two_obj_and_place" else 1

    @property
    def never_at(self) -> frozenset[str]:
        """Receptacle types that hold no object of the goal's type at the start, so nothing is solved already."""
        if self.task in _TREATMENTS:
            return frozenset({"Fridge"} & {self.tool})  # objects in the fridge are cool
        return frozenset({self.target})

    @property
    def possible(self) -> bool:
        """Whether the floor plan has what the task needs and enough places for the objects at the start."""
        receptacles = self.plan.receptacle_types
        waiting = (receptacles & _homes(self.object)) - self.never_at
        if self.target == _LAMP:
            return bool(waiting and receptacles & _homes(_LAMP))
        if self.count > 1:
            return self.target not in _HOLDS_ONE and bool(waiting - _HOLDS_ONE)
        return bool(waiting) and (not self.tool or self.tool in receptacles - {self.target})


@cache
def _goals(number: int, task: str) -> dict[str, tuple[_Goal, ...]]:
    """Every goal of a task type on a floor plan, by target."""
    plan = _floor_plan(number)
    objects = set(plan.object_types) - set(_FURNISHINGS)
    if task in _TREATMENTS:
        objects &= _package().treatable[_TREATMENTS[task].treatable]
    lamps = frozenset({_LAMP}).intersection(plan.object_types)
    targets = lamps if task == "look_at_obj_in_light" else plan.receptacle_types - _NO_TARGET
    goals = {}
    for target in sorted(targets):
        kinds = [kind for kind in sorted(objects) if target == _LAMP or target in _homes(kind)]
        found = tuple(g for kind in kinds if (g := _Goal(task, plan, kind, target)).possible)
        if found:
            goals[target] = found
    return goals


def _draw_goal(rng: random.Random, floor_plans: tuple[int, ...], task_type: str | None) -> _Goal:
    """Draw the task type together with the room, then floor plan, target and object."""
    plans = {
        (task, room): numbers
        for task in (TASK_TYPES if task_type is None else (task_type,))
        for room in _ROOMS_OF_TASK[task]
        if (numbers := [n for n in FLOOR_PLANS[room] if n in floor_plans and _goals(n, task)])
    }
    if not plans:
        rooms = _ROOMS_OF_TASK[task_type] if task_type else FLOOR_PLANS
        raise ValueError(
            f"none of the floor plans {list(floor_plans)} can host {task_type or 'a game'}; "
            f"it needs a {' or '.join(rooms)} with everything that the task asks for"
        )
    task, room = rng.choices(list(plans), [_ROOMS_OF_TASK[task][room] for task, room in plans])[0]
    goals = _goals(rng.choice(plans[task, room]), task)
    return rng.choice(goals[rng.choice(list(goals))])


# -- positions --------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Object:
    id: str
    type: str
    at: _Receptacle


@dataclass(frozen=True)
class _Room:
    receptacles: list[_Receptacle]
    objects: list[_Object]  # the goal's come first
    start: str  # where the agent stands


@cache
def _homes(kind: str) -> frozenset[str]:
    """The receptacle types that may hold an object of this type."""
    if kind in _FURNISHINGS:
        return frozenset(_FURNISHINGS[kind])
    return frozenset(receptacle for receptacle, objects in _package().holds.items() if kind in objects)


class _Placer:
    """Puts objects where the rules allow it and there is room."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._full: set[str] = set()
        self._ids: set[str] = set()
        self.objects: list[_Object] = []

    def put(self, kind: str, receptacles: Sequence[_Receptacle], never_at: frozenset[str] = frozenset()) -> bool:
        """Put one object of a type into one of the receptacles; False if none can take it."""
        homes = _homes(kind) - never_at
        free: dict[str, list[_Receptacle]] = {}
        for receptacle in receptacles:
            if receptacle.type in homes and receptacle.id not in self._full:
                free.setdefault(receptacle.type, []).append(receptacle)
        if not free:
            return False
        home = self._rng.choice(free[self._rng.choices(list(free), [_DRAW.get(t, 1.0) for t in free])[0]])
        if home.type in _HOLDS_ONE:
            self._full.add(home.id)
        self.objects.append(_Object(self._new_id(kind, home), kind, home))
        return True

    def _new_id(self, kind: str, home: _Receptacle) -> str:
        while True:
            x, y, z = home.position
            name = _id_at(kind, (x + self._rng.uniform(-0.3, 0.3), y + 0.05, z + self._rng.uniform(-0.3, 0.3)))
            if name not in self._ids:
                self._ids.add(name)
                return name


def _furnish(rng: random.Random, goal: _Goal, size: float) -> _Room:
    """Keep a share of the floor plan with everything that the goal needs, and place the objects."""
    plan, placer = goal.plan, _Placer(rng)
    for _ in range(goal.count):
        placer.put(goal.object, plan.receptacles, goal.never_at)
    if goal.target == _LAMP:
        placer.put(_LAMP, plan.receptacles)
    needed = {item.at for item in placer.objects}
    for kind in (goal.tool, goal.target):
        if at_hand := [r for r in plan.receptacles if r.type == kind]:
            needed.add(rng.choice(at_hand))
    others = [r for r in plan.receptacles if r not in needed]
    kept = needed.union(rng.sample(others, max(0, math.ceil(size * len(plan.receptacles)) - len(needed))))
    receptacles = [r for r in plan.receptacles if r in kept]

    total = rng.choices(range(goal.count, 5), _COUNT_WEIGHTS[goal.count - 1 :])[0]
    for _ in range(total - goal.count):
        placer.put(goal.object, receptacles, goal.never_at)
    for kind in plan.object_types:
        if kind not in (goal.object, goal.target) and rng.random() <= size:
            for _ in range(1 if kind in _FURNISHINGS else rng.randint(1, 2 if kind in _FEW else 3)):
                placer.put(kind, receptacles)
    return _Room(receptacles, placer.objects, rng.choice(plan.starts))


# -- the files --------------------------------------------------------------------------------------------------------
def _problem(seed: int, goal: _Goal, room: _Room, goal_pddl: str) -> str:
    """The PDDL problem, with the facts in the order of the official files."""
    package = _package()
    places = sorted({r.place for r in room.receptacles} | {room.start})
    facts = [f"receptacleType {r.id} {r.type}Type" for r in room.receptacles]
    facts += [f"objectType {o.id} {o.type}Type" for o in room.objects]
    kinds = sorted({o.type for o in room.objects})
    for holder in sorted({r.type for r in room.receptacles}):
        facts += [f"canContain {holder}Type {kind}Type" for kind in kinds if kind in package.holds.get(holder, ())]
    facts += [f"pickupable {o.id}" for o in room.objects if o.type not in _FURNISHINGS]
    facts += [f"isReceptacleObject {o.id}" for o in room.objects if o.type in package.container_types]
    facts += [f"openable {r.id}" for r in room.receptacles if r.type in package.openable_types]
    facts += [f"atLocation agent1 {room.start}"]
    for treatable in ("Cleanable", "Heatable", "Coolable", "Toggleable", "Sliceable"):
        facts += [f"{treatable.lower()} {o.id}" for o in room.objects if o.type in package.treatable[treatable]]
    # ALFRED writes what the fridge cools only for the goal's type.
    facts += [f"isCool {o.id}" for o in room.objects if o.type == goal.object and o.at.type == "Fridge"]
    facts += [f"inReceptacle {o.id} {o.at.id}" for o in room.objects]
    facts += [f"receptacleAtLocation {r.id} {r.place}" for r in room.receptacles]
    facts += [f"objectAtLocation {o.id} {o.at.place}" for o in room.objects]
    declared = [f"{o.id} - object" for o in room.objects]
    declared += [f"{r.id} - receptacle" for r in room.receptacles]
    declared += [f"{place} - location" for place in places]
    lines = "\n        "
    return (
        f"\n(define (problem plan_seed_{seed:06d})\n(:domain alfred)\n(:objects\n        agent1 - agent"
        f"{lines}{lines.join(package.declarations)}{lines}{lines.join(declared)}\n        )\n\n"
        f"(:init{lines}{lines.join(f'({fact})' for fact in facts)}\n        )\n{goal_pddl}"
    )


def _walkthrough(goal: _Goal, room: _Room) -> list[str]:
    """Commands that win: fetch each object, treat it if the task says so, bring it to the target."""
    names = display_names([r.id.lower() for r in room.receptacles] + [o.id.lower() for o in room.objects])
    openable = _package().openable_types
    first = {r.type: r for r in reversed(room.receptacles)}
    commands: list[str] = []
    place = room.start

    def visit(receptacle: _Receptacle, reach_in: bool) -> str:
        nonlocal place
        name = names[receptacle.id.lower()]
        if receptacle.place != place:  # the game refuses to go to the current place
            commands.append(f"go to {name}")
            place = receptacle.place
        if reach_in and receptacle.type in openable and f"open {name}" not in commands:
            commands.append(f"open {name}")
        return name

    for item in room.objects[: goal.count]:
        name = names[item.id.lower()]
        commands.append(f"take {name} from {visit(item.at, reach_in=True)}")
        if goal.tool:
            tool = visit(first[goal.tool], reach_in=False)
            commands.append(f"{_TREATMENTS[goal.task].command} {name} with {tool}")
        if goal.target == _LAMP:
            lamp = next(o for o in room.objects if o.type == _LAMP)
            visit(lamp.at, reach_in=False)
            commands.append(f"use {names[lamp.id.lower()]}")
        else:
            commands.append(f"move {name} to {visit(first[goal.target], reach_in=True)}")
    return commands
