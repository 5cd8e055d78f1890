"""Plays a game of ALFWorld with exactly TextWorld's transcript, but several thousand times as fast.

    engine = Engine(load_game(path))
    text = engine.reset()
    text, score, done = engine.step(engine.admissible[0])

What happens at a place depends only on that place and on what the agent holds. A `_Spot` is a place in one condition
(what is open, what lies where). It caches its admissible commands, its texts, and the spots that commands lead to, so
most steps are two lookups. Spots belong to a game and are shared by its engines; they are dropped when they are many.

The rules are those of ALFWorld's PDDL domain as TextWorld 1.7 plays it (https://github.com/alfworld/alfworld,
https://github.com/microsoft/TextWorld, both MIT licence). Some are surprising:

- `go to` leads only to other places: an action that would change nothing does not exist.
- `examine` works on receptacles here and the held object, but not on other objects here.
- `use` only turns things on; `heat`, `cool` and `clean` need no open door; `slice` and `use` need no visible object.
- "Next to it" lists objects that were taken from a receptacle here and put into another one here. An object next to two
  such receptacles is listed twice.
- After winning the game continues, and the winning state can be undone.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import NamedTuple, TypeAlias

from envs.alfworld.game import Game

NOTHING_HAPPENS = "Nothing happens."
HELP = """Available commands:
  look:                             look around your current location
  inventory:                        check your current inventory
  go to (receptacle):               move to a receptacle
  open (receptacle):                open a receptacle
  close (receptacle):               close a receptacle
  take (object) from (receptacle):  take an object from a receptacle
  move (object) to (receptacle):  place an object in or on a receptacle
  examine (something):              examine a receptacle or an object
  use (object):                     use an object
  heat (object) with (receptacle):  heat an object using a receptacle
  clean (object) with (receptacle): clean an object using a receptacle
  cool (object) with (receptacle):  cool an object using a receptacle
  slice (object) with (object):     slice an object using a sharp object
"""
_MIDDLE = "You are in the middle of a room. Looking quickly around you, you see "
_EMPTY_HANDED = -1
_STATES = ("clean", "hot", "cool", "sliced", "toggled")
# What the goal's object must be, in addition to being in the right place.
_GOAL_STATES = {
    f"pick_{verb}_then_place_in_recep": state for verb, state in (("clean", "clean"), ("heat", "hot"), ("cool", "cool"))
}
_MAX_WORLDS = 64  # games whose spots are cached
_MAX_SPOTS = 500  # spots cached for each game; one takes about 5 kB


def _bits(mask: int) -> Iterator[int]:
    """The indices of the set bits in a mask, ascending."""
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


def _listed(names: list[str]) -> str:
    """A list in the grammar's style: `a, and b`, `a, b, and c`, `nothing`."""
    *rest, last = names or ["nothing"]
    return f"{', '.join(rest)}, and {last}" if rest else last


class _Condition(NamedTuple):
    """What can change at a place. Receptacles are identified by their slot: 0 is the place's first."""

    opened: int  # mask of slots
    contents: tuple[int, ...]  # by slot
    lying: int  # `objectAtLocation`
    taken: tuple[int, ...]  # by slot: objects taken out and not put back

    def without(self, item: int, slot: int) -> _Condition:
        bit = 1 << item
        contents = _replaced(self.contents, slot, self.contents[slot] & ~bit)
        return _Condition(self.opened, contents, self.lying & ~bit, _replaced(self.taken, slot, self.taken[slot] | bit))

    def having(self, item: int, slot: int) -> _Condition:
        bit = 1 << item
        contents = _replaced(self.contents, slot, self.contents[slot] | bit)
        return _Condition(self.opened, contents, self.lying | bit, _replaced(self.taken, slot, self.taken[slot] & ~bit))

    def door_moved(self, _item: int, slot: int) -> _Condition:
        return self._replace(opened=self.opened ^ 1 << slot)


def _replaced(values: tuple[int, ...], slot: int, value: int) -> tuple[int, ...]:
    return (*values[:slot], value, *values[slot + 1 :])


# What a command does: a method of `Engine`, and its object and slot.
_Action: TypeAlias = "tuple[Callable[[Engine, str, int, int], str], int, int]"


class _View(NamedTuple):
    """What an agent can do at a spot, depending on what it holds."""

    admissible: list[str]  # sorted
    actions: dict[str, _Action]  # without `go to`


class _Spot:
    """A place in one condition."""

    __slots__ = ("after", "condition", "place", "texts", "views")

    def __init__(self, place: int, condition: _Condition) -> None:
        self.place = place
        self.condition = condition
        self.views: dict[int, _View] = {}  # by held object
        self.texts: dict[int, str] = {}  # by slot: what is visible there
        self.after: dict[str, _Spot] = {}  # by command


class _World:
    """Data shared by the engines of one game."""

    def __init__(self, game: Game) -> None:
        self.game = game
        self.routes: dict[str, tuple[int, int, str]] = {}  # command -> place, slot, text of arrival
        self.goal_slots: list[tuple[int, int, int]] = []  # place, slot and number of the receptacles the goal is about
        for place, receptacles in enumerate(game.places):
            for slot, receptacle in enumerate(receptacles):
                name = game.receptacles[receptacle]
                self.routes[f"go to {name}"] = (place, slot, f"You arrive at {name}. ")
                if game.goal_receptacles >> receptacle & 1:
                    self.goal_slots.append((place, slot, receptacle))
        self._ways: dict[int, list[str]] = {}  # by place
        self._start: dict[int, _Spot] = {}  # by place
        self._spots: dict[tuple[int, _Condition], _Spot] = {}

    def ways_from(self, place: int) -> list[str]:
        """The `go to` commands at a place, sorted."""
        ways = self._ways.get(place)
        if ways is None:
            ways = self._ways[place] = sorted([command for command, route in self.routes.items() if route[0] != place])
        return ways

    def start(self, place: int) -> _Spot:
        """The place in its initial condition."""
        spot = self._start.get(place)
        if spot is None:
            game, receptacles = self.game, self.game.places[place]
            opened = sum([1 << slot for slot, r in enumerate(receptacles) if game.opened >> r & 1])
            contents = tuple([game.contents[r] for r in receptacles])
            condition = _Condition(opened, contents, game.lying[place], (0,) * len(receptacles))
            spot = self._start[place] = self.spot(place, condition)
        return spot

    def spot(self, place: int, condition: _Condition) -> _Spot:
        """The one spot for this place in this condition."""
        spot = self._spots.get((place, condition))
        if spot is None:
            if len(self._spots) >= _MAX_SPOTS:
                self._forget()
            spot = self._spots[place, condition] = _Spot(place, condition)
        return spot

    def _forget(self) -> None:
        """Drop all spots. Engines continue from their current spots, whose cached successors are dropped too."""
        for spot in list(self._spots.values()):  # other threads may continue to play
            spot.after.clear()
        self._spots.clear()
        self._start.clear()


@lru_cache(maxsize=_MAX_WORLDS)
def _world(game: Game) -> _World:
    return _World(game)


class Snapshot(NamedTuple):
    """The state of a game, as plain values."""

    place: int
    held: int
    changed: dict[int, _Condition]  # places that were changed
    states: dict[str, int]  # masks of the objects that are clean, hot, …


class Engine:
    """One play of a game. `admissible` and `won` describe the state after the last `reset` or `step`."""

    def __init__(self, game: Game) -> None:
        """Raises `ValueError` for a foreign game, which only TextWorld can play."""
        if game.foreign:
            raise ValueError(f"{game.path}: the native engine cannot play this game: {game.foreign}")
        self.game = game
        self._world = _world(game)
        self._routes = self._world.routes
        self.reset()

    def reset(self) -> str:
        """Back to the start. Returns the first observation: what is in the room, and the task."""
        game = self.game
        self._held = _EMPTY_HANDED
        self._is = {state: getattr(game, state) for state in _STATES}  # masks of objects
        self._changed: dict[int, _Spot] = {}  # places that were changed
        self._spot = self._world.start(game.start)
        self._view = self._find_view()
        self.won = self._goal_reached()
        if game.places[game.start]:
            around = self._look()
        else:
            around = _MIDDLE + _listed([f"a {name}" for name in game.receptacles]) + "."
        return f"-= Welcome to TextWorld, ALFRED! =-\n\n{around}\n\nYour task is to: {game.task}"

    def step(self, command: str) -> tuple[str, float, bool]:
        """Play a command. Returns feedback, score, and whether the goal is reached; the game can continue."""
        command = command.strip()
        route = self._routes.get(command)
        if route is not None and route[0] != self._spot.place:
            place, slot, arrival = route
            self._spot = self._changed.get(place) or self._world.start(place)
            text = arrival + self._seen(slot)
            if self.game.goal_lamps:
                self.won = self._goal_reached()
        else:
            action = self._view.actions.get(command)
            if action is None:
                return NOTHING_HAPPENS, float(self.won), self.won
            act, item, slot = action
            text = act(self, command, item, slot)
        self._view = self._spot.views.get(self._held) or self._find_view()
        return text, float(self.won), self.won

    @property
    def admissible(self) -> list[str]:
        """The commands that have an effect, sorted."""
        return self._view.admissible.copy()

    def snapshot(self) -> Snapshot:
        """The state; later steps do not change it."""
        changed = {place: spot.condition for place, spot in self._changed.items()}
        return Snapshot(self._spot.place, self._held, changed, self._is.copy())

    def restore(self, snapshot: Snapshot) -> None:
        """Go back to a snapshot of the same game, of this engine or another."""
        self._held = snapshot.held
        self._is = snapshot.states.copy()
        self._changed = {place: self._world.spot(place, condition) for place, condition in snapshot.changed.items()}
        self._spot = self._changed.get(snapshot.place) or self._world.start(snapshot.place)
        self._view = self._find_view()
        self.won = self._goal_reached()

    def _goal_reached(self) -> bool:
        game = self.game
        if game.goal_lamps:
            lamps = game.goal_lamps & self._is["toggled"]
            held = self._held >= 0 and game.goal_objects >> self._held & 1
            return bool(held) and any(content & lamps for content in self._spot.condition.contents)
        needed = game.goal_objects
        if game.type in _GOAL_STATES:
            needed &= self._is[_GOAL_STATES[game.type]]
        count = 2 if game.type == "pick_two_obj_and_place" else 1
        for place, slot, receptacle in self._world.goal_slots:
            spot = self._changed.get(place)
            content = spot.condition.contents[slot] if spot is not None else game.contents[receptacle]
            if (content & needed).bit_count() >= count:
                return True
        return False

    # -- what can be done ---------------------------------------------------------------------------------------------
    def _find_view(self) -> _View:
        """The view of the agent's spot for what it holds; cached there."""
        view = self._spot.views.get(self._held)
        if view is None:
            actions: dict[str, _Action] = {
                "look": (Engine._look, 0, 0),
                "inventory": (Engine._inventory, 0, 0),
                "help": (Engine._help, 0, 0),
            }
            for slot, receptacle in enumerate(self.game.places[self._spot.place]):
                self._add_actions(actions, slot, receptacle)
            if self._held >= 0:
                self._add_held_actions(actions)
            commands = sorted(actions)
            middle = bisect(commands, "go to ")
            commands[middle:middle] = self._world.ways_from(self._spot.place)
            view = self._spot.views[self._held] = _View(commands, actions)
        return view

    def _add_actions(self, actions: dict[str, _Action], slot: int, receptacle: int) -> None:
        """What can be done at one receptacle."""
        game, held = self.game, self._held
        name = game.receptacles[receptacle]
        actions[f"examine {name}"] = (Engine._examine, 0, slot)
        content = self._spot.condition.contents[slot]
        is_open = True
        if game.openable >> receptacle & 1:
            is_open = bool(self._spot.condition.opened >> slot & 1)
            actions[f"{'close' if is_open else 'open'} {name}"] = (Engine._close if is_open else Engine._open, 0, slot)
        for item in _bits(content & game.toggleable):
            actions[f"use {game.objects[item]}"] = (Engine._use, item, slot)
        if held < 0:
            for item in _bits(content & game.pickupable) if is_open else ():
                actions[f"take {game.objects[item]} from {name}"] = (Engine._take, item, slot)
            return
        thing = game.objects[held]
        if is_open and game.accepts[receptacle] >> held & 1:
            actions[f"move {thing} to {name}"] = (Engine._move, held, slot)
        for verb, treatable, tools, act in (
            ("clean", game.cleanable, game.cleaners, Engine._clean),
            ("heat", game.heatable, game.heaters, Engine._heat),
            ("cool", game.coolable, game.coolers, Engine._cool),
        ):
            if tools >> receptacle & 1 and treatable >> held & 1:
                actions[f"{verb} {thing} with {name}"] = (act, held, slot)

    def _add_held_actions(self, actions: dict[str, _Action]) -> None:
        """What can be done with the held object anywhere."""
        game, held = self.game, self._held
        actions[f"examine {game.objects[held]}"] = (Engine._examine_held, held, 0)
        if game.knives >> held & 1:
            for item in _bits(self._spot.condition.lying & game.sliceable):
                actions[f"slice {game.objects[item]} with {game.objects[held]}"] = (Engine._slice, item, 0)

    # -- effects of commands ------------------------------------------------------------------------------------------
    # Each takes the command, an object and a slot at the agent's place, and returns the feedback.
    def _look(self, _command: str = "look", _item: int = 0, _slot: int = 0) -> str:
        receptacles = self.game.places[self._spot.place]
        if not receptacles:
            return _MIDDLE + "nothing."
        condition = self._spot.condition
        beside = [
            f"a {self.game.objects[item]}"
            for item in _bits(condition.lying)
            for taken in condition.taken
            if taken >> item & 1
        ]
        facing = _listed([self.game.receptacles[r] for r in receptacles])
        return f"You are facing the {facing}. Next to it, you see {_listed(beside)}."

    def _inventory(self, _command: str, _item: int, _slot: int) -> str:
        if self._held < 0:
            return "You are not carrying anything."
        return f"You are carrying: a {self.game.objects[self._held]}."

    def _help(self, _command: str, _item: int, _slot: int) -> str:
        return HELP

    def _examine(self, _command: str, _item: int, slot: int) -> str:
        return self._seen(slot)

    def _examine_held(self, _command: str, item: int, _slot: int) -> str:
        game, name = self.game, self.game.objects[item]
        inside = dict(game.inside).get(item)
        if inside is not None:
            content = _listed([f"a {game.objects[i]}" for i in _bits(inside)])
            return f"This is a normal {name}. In it, you see {content}."
        clean, hot, cool, sliced, toggled = (bool(mask >> item & 1) for mask in self._is.values())
        words = ["hot"] if hot else ["cool"] if cool else []
        state = " and ".join(words + ["clean"] * clean)
        if state == "cool" and not sliced:
            state = "cold"
        if state:
            return f"This is a {state}{' sliced' if sliced else ''} {name}."
        if toggled and game.toggleable >> item & 1:
            return f"This {name} is on."
        if sliced and game.sliceable >> item & 1:
            return f"This is a sliced {name}."
        return f"There's nothing special about {name}."

    def _open(self, command: str, item: int, slot: int) -> str:
        self._change(command, _Condition.door_moved, item, slot)
        return f"You open the {self._name(slot)}. {self._seen(slot)}"

    def _close(self, command: str, item: int, slot: int) -> str:
        self._change(command, _Condition.door_moved, item, slot)
        return f"You close the {self._name(slot)}."

    def _take(self, command: str, item: int, slot: int) -> str:
        self._change(command, _Condition.without, item, slot)
        self._held = item
        self._update_won(item)
        return f"You pick up the {self.game.objects[item]} from the {self._name(slot)}."

    def _move(self, command: str, item: int, slot: int) -> str:
        self._change(command, _Condition.having, item, slot)
        self._held = _EMPTY_HANDED
        self._update_won(item)
        return f"You move the {self.game.objects[item]} to the {self._name(slot)}."

    def _clean(self, _command: str, item: int, slot: int) -> str:
        self._is["clean"] |= 1 << item
        self._update_won(item)
        return f"You clean the {self.game.objects[item]} using the {self._name(slot)}."

    def _heat(self, _command: str, item: int, slot: int) -> str:
        self._is["hot"] |= 1 << item
        self._is["cool"] &= ~(1 << item)
        self._update_won(item)
        return f"You heat the {self.game.objects[item]} using the {self._name(slot)}."

    def _cool(self, _command: str, item: int, slot: int) -> str:
        self._is["cool"] |= 1 << item
        self._is["hot"] &= ~(1 << item)
        self._update_won(item)
        return f"You cool the {self.game.objects[item]} using the {self._name(slot)}."

    def _use(self, _command: str, item: int, _slot: int) -> str:
        self._is["toggled"] |= 1 << item
        self._update_won(item)
        return f"You turn on the {self.game.objects[item]}."

    def _slice(self, _command: str, item: int, _slot: int) -> str:
        self._is["sliced"] |= 1 << item
        return f"You sliced the {self.game.objects[item]} with the {self.game.objects[self._held]}."

    # -- helpers of these ---------------------------------------------------------------------------------------------
    def _name(self, slot: int) -> str:
        return self.game.receptacles[self.game.places[self._spot.place][slot]]

    def _seen(self, slot: int) -> str:
        """What is visible at a receptacle."""
        text = self._spot.texts.get(slot)
        if text is None:
            receptacle = self.game.places[self._spot.place][slot]
            condition, name = self._spot.condition, self.game.receptacles[receptacle]
            content = _listed([f"a {self.game.objects[item]}" for item in _bits(condition.contents[slot])])
            if not self.game.openable >> receptacle & 1:
                text = f"On the {name}, you see {content}."
            elif condition.opened >> slot & 1:
                text = f"The {name} is open. In it, you see {content}."
            else:
                text = f"The {name} is closed."
            self._spot.texts[slot] = text
        return text

    def _change(self, command: str, change: Callable[[_Condition, int, int], _Condition], item: int, slot: int) -> None:
        """Change the condition of the agent's place."""
        spot = self._spot.after.get(command)
        if spot is None:
            spot = self._world.spot(self._spot.place, change(self._spot.condition, item, slot))
            self._spot.after[command] = spot
        self._spot = self._changed[spot.place] = spot

    def _update_won(self, item: int) -> None:
        """See whether the goal is reached, after something was done with an object."""
        if (self.game.goal_objects | self.game.goal_lamps) >> item & 1:
            self.won = self._goal_reached()
