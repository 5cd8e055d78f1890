"""What an agent sees in words, and the actions that it can take, as AgentGym's BabyAI has them.

The rules are those of https://github.com/WooooDyy/AgentGym (MIT licence), surprising ones included: objects of one name
are numbered by their distance, actions that several moves make are found in what is seen, and they may fail on the way.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

Cell: TypeAlias = "tuple[int, int]"
LEFT, RIGHT, FORWARD, PICK_UP, DROP, TOGGLE = range(6)  # moves of minigrid
CHECK = "check available actions"
KINDS = {
    2: "wall",
    4: "door",
    5: "key",
    6: "ball",
    7: "box",
    8: "goal",
    9: "lava",
}  # that are named, by minigrid's numbers
COLORS = ("red", "green", "blue", "purple", "yellow", "grey")
STATES = ("open", "closed", "locked")  # of doors
DIRECTIONS = ((1, 0), (0, 1), (-1, 0), (0, -1))  # right, down, left, up
_SOLID = ("wall", "box", "lava", "ball", "key")
_DROP_ON = ("wall", "box", "lava", "ball", "key")


class Thing(NamedTuple):
    """Something in view."""

    kind: str
    name: str
    cell: Cell
    distance: int


@dataclass
class Scene:
    """A view in words."""

    text: str
    moves: dict[str, list[int]]  # by action
    refusals: dict[str, str] = field(default_factory=dict)  # by action that cannot be taken


def describe(world: Any, seen: dict[str, Any]) -> Scene:
    """The scene that minigrid's world (`env.unwrapped`) shows with the observation `seen`."""
    view = _View(world, seen)
    carrying = world.carrying
    held = f"You are carrying a {carrying.color} {carrying.type}." if carrying else "You are not carrying anything."
    scene = Scene(view.text() + held, {"turn left": [LEFT], "turn right": [RIGHT]})
    if view.barrier is None or view.barrier[1] > 1:
        scene.moves["move forward"] = [FORWARD]
    else:
        scene.refusals["move forward"] = "There is a barrier in front of you, you can't move forward."
    if carrying is None:
        _add_pickups(scene, view)
        scene.refusals["drop"] = "You cannot drop the object, as you are not carrying anything."
    else:
        _add_drop(scene, view)
    _add_doors(scene, view, carrying)
    _add_goals(scene, view)
    _add_ways(scene, view)
    scene.moves[CHECK] = []
    return scene


class _View:
    """What is in view, from near to far, and ways through it."""

    def __init__(self, world: Any, seen: dict[str, Any]) -> None:
        size = world.agent_view_size
        self.position: Cell = (int(world.agent_pos[0]), int(world.agent_pos[1]))
        self.direction = int(seen["direction"])
        forward = DIRECTIONS[self.direction]
        right = DIRECTIONS[(self.direction + 1) % 4]
        corner = tuple(self.position[k] + forward[k] * (size - 1) - right[k] * (size // 2) for k in (0, 1))
        other = tuple(corner[k] + size * (right[k] - forward[k]) for k in (0, 1))
        self.ranges = [
            range(other[k], corner[k] + 1) if other[k] < corner[k] else range(corner[k], other[k]) for k in (0, 1)
        ]
        self.things: list[Thing] = []
        ahead: list[tuple[str, int]] = []  # walls and boxes in the line of sight, with steps to them
        self.barriers: list[Thing] = []
        for row in range(size):
            for column in range(size):
                cell = tuple(corner[k] - forward[k] * row + right[k] * column for k in (0, 1))
                offset = (cell[0] - self.position[0], cell[1] - self.position[1])
                distance = abs(offset[0]) + abs(offset[1])
                kind = KINDS.get(int(seen["image"][column, row, 0]))
                if min(cell) < 0 or distance == 0 or kind is None:
                    continue
                color, state = COLORS[seen["image"][column, row, 1]], STATES[seen["image"][column, row, 2]]
                name = f"{color} {state} {kind}" if kind == "door" else f"{color} {kind}"
                thing = Thing(kind, name, (cell[0], cell[1]), distance)
                self.things.append(thing)
                if kind in ("box", "wall") and forward[0] * offset[1] == forward[1] * offset[0]:
                    ahead.append((kind, forward[0] * offset[0] + forward[1] * offset[1]))
        self.things.sort(key=lambda thing: thing.distance)
        self.barrier = min(ahead, key=lambda one: one[1], default=None)
        self._blocked = {thing.cell for thing in self.things if thing.kind in _SOLID}

    @property
    def objects(self) -> list[Thing]:
        """Things without walls."""
        return [thing for thing in self.things if thing.kind != "wall"]

    def text(self) -> str:
        """The description, without what is carried."""
        if not self.things:
            text = "You cannot see any objects within sight."
        else:
            text = "In front of you in this room, you can see several objects: "
            for thing, number in _numbered(self.objects):
                text += f"There is a {thing.name} {number} {self._place(thing)}  "
        text += "The room has walls around you. "
        if self.barrier:
            text += f"You are facing a {self.barrier[0]} {self.barrier[1]} steps away. "
        return text

    def _place(self, thing: Thing) -> str:
        offset = (thing.cell[0] - self.position[0], thing.cell[1] - self.position[1])
        forward, right = DIRECTIONS[self.direction], DIRECTIONS[(self.direction + 1) % 4]
        ahead = forward[0] * offset[0] + forward[1] * offset[1]
        aside = right[0] * offset[0] + right[1] * offset[1]
        if aside == 0:
            return f"right in front of you {ahead} steps away."
        side = "right" if aside > 0 else "left"
        return f"{ahead} steps in front of you and {abs(aside)} steps to your {side}."

    def way(self, goal: Cell, *, arrive: bool = False) -> list[int] | None:
        """Moves to a cell, or to where it is in front; None if no way is seen."""
        start = (self.position, self.direction)
        queue, done = deque([start]), set()
        came_from: dict[Any, Any] = {}  # the place before, and the move
        while queue:
            here = queue.popleft()
            done.add(here)
            (x, y), direction = here
            step = DIRECTIONS[direction]
            if (x, y) == goal if arrive else (goal[0] - x, goal[1] - y) == step:
                return _back(start, here, came_from)
            for move, there in (
                (FORWARD, ((x + step[0], y + step[1]), direction)),
                (LEFT, ((x, y), (direction - 1) % 4)),
                (RIGHT, ((x, y), (direction + 1) % 4)),
            ):
                if there not in done and self._is_free(there[0]):
                    queue.append(there)
                    came_from[there] = (here, move)  # also if it is in the queue already
        return None

    def _is_free(self, cell: Cell) -> bool:
        inside = cell[0] in self.ranges[0] and cell[1] in self.ranges[1]
        return inside and cell not in self._blocked


def _back(start: Any, here: Any, came_from: dict[Any, Any]) -> list[int]:
    moves = []
    while here != start:
        here, move = came_from[here]
        moves.append(move)
    return moves[::-1]


def _numbered(things: Iterable[Thing]) -> list[tuple[Thing, int]]:
    counts: dict[str, int] = {}
    numbered = []
    for thing in things:
        counts[thing.name] = counts.get(thing.name, 0) + 1
        numbered.append((thing, counts[thing.name]))
    return numbered


def _add_pickups(scene: Scene, view: _View) -> None:
    takeable = [thing for thing in view.objects if thing.kind not in ("door", "goal")]
    _add_each(scene, view, takeable, "pickup", [PICK_UP])


def _add_ways(scene: Scene, view: _View) -> None:
    _add_each(scene, view, [thing for thing in view.objects if thing.kind != "goal"], "go to", [])


def _add_each(scene: Scene, view: _View, things: Iterable[Thing], verb: str, then: list[int]) -> None:
    """Things to which a way is seen are numbered among themselves, here."""
    counts: dict[str, int] = {}
    for thing in things:
        way = view.way(thing.cell)
        number = counts.get(thing.name, 0) + 1
        action = f"{verb} {thing.name} {number}"
        if way is None:
            scene.refusals[action] = f"You cannot {action}, as there is no path leading to it."
        else:
            counts[thing.name] = number
            scene.moves[action] = [*way, *then]


def _add_drop(scene: Scene, view: _View) -> None:
    step = DIRECTIONS[view.direction]
    front = (view.position[0] + step[0], view.position[1] + step[1])
    if any(thing.cell == front and thing.kind in _DROP_ON for thing in view.things):
        scene.refusals["drop"] = "You cannot drop the object, as there is already an object in front of you."
    else:
        scene.moves["drop"] = [DROP]


def _add_doors(scene: Scene, view: _View, carrying: Any) -> None:
    counts: dict[str, int] = {}
    for thing in view.things:
        if thing.kind != "door":
            continue
        counts[thing.name] = counts.get(thing.name, 0) + 1
        name, state = f"{thing.name} {counts[thing.name]}", thing.name.split()[1]
        through, toggled = f"go through {name}", f"toggle and go through {name}"
        if state == "open":
            way = view.way(thing.cell, arrive=True)
            if way is None:
                scene.refusals[through] = f"You cannot {through}, as there is no path leading to it."
            else:
                scene.moves[through] = way
            continue
        if state == "locked":
            if carrying is None or carrying.type != "key":
                scene.refusals[toggled] = f"You cannot {toggled}, as you are not carrying a key."
                continue
            if carrying.color != thing.name.split()[0]:
                scene.refusals[toggled] = (
                    f"You cannot {toggled}, as the color of the key you are carrying does not match the color of door."
                )
                continue
        way = view.way(thing.cell)
        if way is None:  # the reference says all of its counts here
            scene.refusals[toggled] = (
                f"You cannot toggle and go through {thing.name} {counts}, as there is no path leading to it."
            )
        else:
            scene.moves[toggled] = [*way, TOGGLE, FORWARD]
        if way == []:
            scene.moves["toggle"] = [TOGGLE]
        if state == "closed":
            scene.refusals[through] = f"You cannot {through}, as it is closed. You should toggle it first."


def _add_goals(scene: Scene, view: _View) -> None:
    for thing in view.things:
        if thing.kind == "goal":
            way = view.way(thing.cell, arrive=True)
            if way is None:
                scene.refusals["go to goal"] = "You cannot go to the goal, as there is no path leading to it."
            else:
                scene.moves["go to goal"] = way


def listed(actions: Iterable[str]) -> str:
    """The line of available actions."""
    return "Available actions: [" + ", ".join(f'"{action}"' for action in actions) + "]"
