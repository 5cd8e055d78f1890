"""A scripted player of ALFWorld that knows only the text it was shown.

It searches the receptacles in the order of a prior, P(object type | receptacle type), remembers what it saw, and acts
on it. It reads the goal from "Your task is to: …", and neither the admissible actions nor anything else that is hidden
from an agent. Its next action depends only on its memory, and the memory only on actions and observations. So it can
label the states of any agent's episode (DAgger): it puts a wrong object in hand away, fetches an object from where
another agent carried it, and does not repeat a refused action.

`prior.json` is `count_prior` of the 3,553 official training games; a test counts them again.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypedDict

from envs.alfworld.game import Game
from envs.core import Info

_REFUSED = "Nothing happens."
_APPLIANCES = {"clean": "sinkbasin", "heat": "microwave", "cool": "fridge"}
_UNDOES = {"heat": "cool", "cool": "heat"}


# -- statistics of the training games ---------------------------------------------------------------------------------
class Receptacles(TypedDict):
    """Statistics of one type of receptacle in the training games."""

    count: int  # how many there are
    openable: int  # how many of them have a door
    objects: dict[str, int]  # object type -> how many hold one or more at the start
    accepts: list[str]  # object types that may be put there


Prior = Mapping[str, Receptacles]  # by type of receptacle


def count_prior(games: Iterable[Game]) -> Prior:
    """Count where things are at the start of games, what has a door, and what may be put where."""
    prior: dict[str, Receptacles] = {}
    for game in games:
        for r, receptacle in enumerate(game.receptacles):
            row = prior.setdefault(_kind(receptacle), {"count": 0, "openable": 0, "objects": {}, "accepts": []})
            row["count"] += 1
            row["openable"] += game.openable >> r & 1
            for kind in _kinds(game, game.contents[r]):
                row["objects"][kind] = row["objects"].get(kind, 0) + 1
            row["accepts"] = sorted({*row["accepts"], *_kinds(game, game.accepts[r])})
    for row in prior.values():
        row["objects"] = dict(sorted(row["objects"].items()))
    return dict(sorted(prior.items()))


def _kind(thing: str) -> str:
    """The type of a thing: "mug 2" -> "mug"."""
    return thing.partition(" ")[0]


def _kinds(game: Game, mask: int) -> set[str]:
    return {_kind(thing) for i, thing in enumerate(game.objects) if mask >> i & 1}


@cache
def load_prior() -> Prior:
    """The prior that ships with the package."""
    prior: Prior = json.loads(Path(__file__).with_name("prior.json").read_text(encoding="utf-8"))
    return prior


# -- the goal ---------------------------------------------------------------------------------------------------------
_TASK = "Your task is to: "
_PLACE = re.compile(
    rf"{_TASK}(?:(?:put|find) (?P<two>two)|put (?:a|some)(?: (?P<state>clean|hot|cool))?|(?P<verb>clean|heat|cool) some"
    r") (?P<object>[a-z]+) (?:and put (?:it|them) )?(?:in|on) (?P<receptacle>[a-z]+)\b"
)
_LIGHT = re.compile(rf"{_TASK}(?:look at|examine the) (?P<object>[a-z]+) (?:under|with) the (?P<lamp>[a-z]+)\b")


@dataclass(frozen=True)
class Goal:
    """The goal of a task: a number of objects of a type, treated, in one receptacle; or one held beside a lit lamp."""

    object: str  # a type, "mug"
    receptacle: str = ""  # a type; empty if a lamp is asked for
    lamp: str = ""  # a type, "desklamp"
    treatment: str = ""  # "clean", "heat", "cool", or nothing
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Goal:
        """Read the goal from an introduction. Raises `ValueError` if it is none of ALFWorld's sentences."""
        if light := _LIGHT.search(text):
            return cls(light["object"], lamp=light["lamp"])
        if place := _PLACE.search(text):
            treatment = place["verb"] or place["state"] or ""
            return cls(
                place["object"],
                place["receptacle"],
                treatment="heat" if treatment == "hot" else treatment,
                count=2 if place["two"] else 1,
            )
        raise ValueError(
            f"the expert does not understand the task {text.rpartition(_TASK)[2]!r}; it knows ALFWorld's templates, "
            "such as 'put a clean mug in shelf.' and 'look at mug under the desklamp.'"
        )


# -- memory -----------------------------------------------------------------------------------------------------------
_THING = r"[a-z]+ \d+"
_INTRODUCED = re.compile(r"Looking quickly around you, you see ([^.]*)\.")
_ARRIVED = re.compile(rf"You arrive at ({_THING})\.")
_INSIDE = re.compile(rf"(?:On the|The) ({_THING})(?: is open\. In it)?, you see ([^.]*)\.")
_CLOSED = re.compile(rf"(?:The|You close the) ({_THING})(?: is closed)?\.")
_TAKEN = re.compile(rf"You pick up the ({_THING}) from the ({_THING})\.")
_MOVED = re.compile(rf"You move the ({_THING}) to the ({_THING})\.")
_TREATED = re.compile(rf"You (clean|heat|cool) the ({_THING}) using the {_THING}\.")
_ACTION = re.compile(rf"(go to|open|use|take|move|clean|heat|cool) ({_THING})(?: (?:from|to|with) ({_THING}))?")


class Memory:
    """What a player can know: where everything was when last seen, and which actions are useless."""

    def __init__(self, introduction: str) -> None:
        """Raises `ValueError` if `introduction` does not list the receptacles."""
        listed = _INTRODUCED.search(introduction)
        if not listed:
            raise ValueError(f"no list of receptacles in {introduction!r}; expected 'Looking quickly around you, …'")
        self.receptacles: list[str] = re.findall(_THING, listed[1])
        self.contents = defaultdict[str, list[str]](list, {r: [] for r in self.receptacles})
        self.looked: dict[str, int] = {}  # receptacle -> when its contents were last seen in full
        self.open: dict[str, bool] = {}  # receptacle -> whether it is accessible; always, if it has no door
        self.here: set[str] = set()  # receptacles known to be at the player's place
        self.held = ""
        self.treated: set[tuple[str, str]] = set()  # ("heat", "mug 1")
        self.refused: set[str] = set()  # actions refused although possible: this object cannot be taken, heated, …
        self._beside: dict[str, set[str]] = {}  # receptacle -> those known to be at the same place, including itself
        self._clock = 0

    def observe(self, action: str, observation: str) -> None:
        """Learn from an action and its observation."""
        self._clock += 1
        if observation.strip() == _REFUSED:
            self._learn_refusal(action)
            return
        if arrived := _ARRIVED.search(observation):
            self.here = self._beside.get(arrived[1], set())
        # Apart from the introduction, a text names only receptacles at the player's place.
        self._join(thing for thing in re.findall(_THING, observation) if thing in self.contents)
        for receptacle in _CLOSED.findall(observation):
            self.open[receptacle] = False
        for receptacle, objects in _INSIDE.findall(observation):
            self.open[receptacle] = True
            self.looked[receptacle] = self._clock
            self.contents[receptacle] = re.findall(_THING, objects)
        self._learn_change(observation)

    def _learn_change(self, observation: str) -> None:
        if taken := _TAKEN.search(observation):
            self.held, receptacle = taken.groups()
            self.contents[receptacle] = [o for o in self.contents[receptacle] if o != self.held]
        elif moved := _MOVED.search(observation):
            self.held = ""
            self.contents[moved[2]].append(moved[1])
        elif treated := _TREATED.search(observation):
            self.treated.add((treated[1], treated[2]))
            self.treated.discard((_UNDOES.get(treated[1], ""), treated[2]))

    def _learn_refusal(self, action: str) -> None:
        command = _ACTION.fullmatch(action)
        if not command:
            return
        verb, thing, place = command.groups()
        if verb == "go to":
            if thing in self.contents:
                self._join([thing])  # going to the current place is refused
        elif verb == "open":
            if thing in self.here:
                self.open.setdefault(thing, True)  # it is open, or has no door
        elif self._had_all_it_needs(verb, thing, place):
            self.refused.add(action)

    def _had_all_it_needs(self, verb: str, thing: str, place: str | None) -> bool:
        if verb == "use":
            return any(thing in self.contents[r] for r in self.here)
        if place not in self.here:
            return False
        if verb == "take":
            return not self.held and self.open.get(place, False) and thing in self.contents[place]
        return self.held == thing and (verb != "move" or self.open.get(place, False))

    def _join(self, receptacles: Iterable[str]) -> None:
        """Note that these receptacles are at the player's place."""
        new = set(receptacles) - self.here
        if new:
            self.here = self.here.union(new, *(self._beside.get(r, ()) for r in new))
            self._beside.update(dict.fromkeys(self.here, self.here))


# -- the player -------------------------------------------------------------------------------------------------------
class Expert:
    """Plays any game of ALFWorld from its text; see `envs.core.Expert`."""

    def __init__(self, prior: Prior | None = None) -> None:
        """`prior` is a result of `count_prior`; None means the one that ships with the package."""
        self._prior = load_prior() if prior is None else prior
        self._seen_kinds = {kind for row in self._prior.values() for kind in row["objects"]}

    def reset(self, observation: str, info: Info) -> None:  # noqa: ARG002 - the text contains everything
        """A new episode. Raises `ValueError` if `observation` is not an introduction of ALFWorld."""
        self._goal = Goal.parse(observation)
        self._memory = Memory(observation)

    def observe(self, action: str, observation: str, info: Info) -> None:  # noqa: ARG002
        self._memory.observe(action, observation)

    def act(self) -> str:
        """Use the held object, fetch one that was seen, or look where the object most likely is."""
        held = self._memory.held
        if held and self._serves(held):
            return self._finish(held)
        source = self._source()
        if held and (action := self._put_away(held, source)):
            return action
        if source is None:
            return self._search(self._goal.object)
        thing, receptacle = source
        return self._reach(receptacle) or f"take {thing} from {receptacle}"

    def _serves(self, thing: str) -> bool:
        """Whether the goal can be reached with this object."""
        failed = f"{self._goal.treatment} {thing} with "
        return _kind(thing) == self._goal.object and not any(a.startswith(failed) for a in self._memory.refused)

    def _finish(self, thing: str) -> str:
        """What to do with the right object in hand."""
        goal, memory = self._goal, self._memory
        if goal.lamp:
            return self._light()
        if goal.treatment and (goal.treatment, thing) not in memory.treated:
            appliance = self._nearest(r for r in memory.receptacles if _kind(r) == _APPLIANCES[goal.treatment])
            return self._go(appliance) or f"{goal.treatment} {thing} with {appliance}"
        target = self._target()
        return self._reach(target) or f"move {thing} to {target}"

    def _light(self) -> str:
        """Bring the held object to a lamp, and turn the lamp on."""
        memory = self._memory
        lamps = {
            receptacle: thing
            for receptacle, things in memory.contents.items()
            for thing in things
            if _kind(thing) == self._goal.lamp and f"use {thing}" not in memory.refused
        }
        if not lamps:
            return self._search(self._goal.lamp)
        receptacle = self._nearest(lamps)
        return self._go(receptacle) or f"use {lamps[receptacle]}"

    def _target(self) -> str:
        """The receptacle to fill: for two objects the one that already has one, otherwise the nearest."""
        memory, goal = self._memory, self._goal
        wanted = [r for r in memory.receptacles if _kind(r) == goal.receptacle]
        there = {r: sum(_kind(o) == goal.object for o in memory.contents[r]) if goal.count > 1 else 0 for r in wanted}
        return min(wanted, key=lambda r: (-there[r], self._steps(r)), default="")

    def _source(self) -> tuple[str, str] | None:
        """The nearest suitable object that was seen, with its receptacle; a treated one first."""
        goal, memory = self._goal, self._memory
        settled = memory.contents.get(self._target(), []) if not goal.treatment else []
        known = [
            (thing, receptacle)
            for receptacle, things in memory.contents.items()
            for thing in things
            if self._serves(thing) and thing not in settled and f"take {thing} from {receptacle}" not in memory.refused
        ]
        return min(
            known, key=lambda at: ((goal.treatment, at[0]) not in memory.treated, self._steps(at[1])), default=None
        )

    def _put_away(self, thing: str, source: tuple[str, str] | None) -> str:
        """Put down a useless object; "" if it may stay in hand for now.

        It is put down as soon as an open receptacle here accepts it. The player goes elsewhere only if its hand must be
        empty at a place that does not accept the object. Some things (a teddy bear, a roll of paper towels) can be
        picked up but never put down; such a game is lost, and the player can only look around.
        """
        memory = self._memory
        places = [r for r in memory.receptacles if self._accepts(r, thing)]
        if not places:
            return self._search(self._goal.object)
        place = self._nearest(places)
        if self._steps(place) == 0 or (source and source[1] not in places):
            return self._reach(place) or f"move {thing} to {place}"
        return ""

    def _search(self, kind: str) -> str:
        """Look into the receptacle with the best chance per step; if all were seen, the one seen longest ago."""
        memory = self._memory
        unseen = [r for r in memory.receptacles if r not in memory.looked]
        if unseen:
            chance = {r: self._chance(r, kind) for r in unseen}
            best = max(unseen, key=lambda r: chance[r] / max(1.0, self._steps(r)))
        else:
            best = min(memory.looked, key=memory.looked.__getitem__)
        return self._reach(best) or f"examine {best}"

    def _nearest(self, receptacles: Iterable[str]) -> str:
        return min(receptacles, key=self._steps, default="")

    def _steps(self, receptacle: str) -> float:
        """The expected number of actions until a receptacle is accessible."""
        memory = self._memory
        closed = not memory.open[receptacle] if receptacle in memory.open else self._has_door(receptacle)
        return (receptacle not in memory.here) + closed

    def _go(self, receptacle: str) -> str:
        """The action that leads to a receptacle; "" if the player is there."""
        if not receptacle:
            return "look"  # the game has no such receptacle, so nothing can be done
        return "" if receptacle in self._memory.here else f"go to {receptacle}"

    def _reach(self, receptacle: str) -> str:
        """The next action towards a receptacle that is accessible; "" if it is."""
        if action := self._go(receptacle):
            return action
        if self._memory.open.get(receptacle):
            return ""
        # A receptacle next to the one that the player went to has not been described yet.
        unknown = receptacle not in self._memory.open
        return f"examine {receptacle}" if unknown and self._has_door(receptacle) < 0.5 else f"open {receptacle}"

    # -- the prior ----------------------------------------------------------------------------------------------------
    def _has_door(self, receptacle: str) -> float:
        row = self._prior.get(_kind(receptacle))
        return row["openable"] / row["count"] if row else 0.0

    def _chance(self, receptacle: str, kind: str) -> float:
        row = self._prior.get(_kind(receptacle))
        return row["objects"].get(kind, 0) / row["count"] if row else 0.0

    def _accepts(self, receptacle: str, thing: str) -> bool:
        if f"move {thing} to {receptacle}" in self._memory.refused:
            return False
        row, kind = self._prior.get(_kind(receptacle)), _kind(thing)
        return row is None or kind not in self._seen_kinds or kind in row["accepts"]
