"""The rules of Sokoban on a text grid.

    ######      # wall            X box
    #____#      _ floor           √ box on a target
    ##O_P#      O target          P player
    ###X_#                        S player on a target
    ######

A move that runs into a wall, or into a box that cannot be pushed, changes nothing. Every move costs 0.1; covering a
target gives 1, uncovering one takes 1, and 10 more are given for each move after which all are covered. These are the
rules and rewards of gym-sokoban 0.0.6 (MIT), with the symbols of RAGEN.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

WALL, FLOOR, TARGET, BOX_ON_TARGET, BOX, PLAYER, PLAYER_ON_TARGET = SYMBOLS = "#_O√XPS"
MOVES = ("up", "down", "left", "right")
COST, COVERED, SOLVED = -0.1, 1.0, 10.0
MOST_CELLS = 10_000

BOXES = frozenset({BOX, BOX_ON_TARGET})
# What a cell becomes when something enters it, and when it leaves again.
_WITH_PLAYER = {FLOOR: PLAYER, TARGET: PLAYER_ON_TARGET, BOX: PLAYER, BOX_ON_TARGET: PLAYER_ON_TARGET}
_WITHOUT_PLAYER = {PLAYER: FLOOR, PLAYER_ON_TARGET: TARGET}
_WITH_BOX = {FLOOR: BOX, TARGET: BOX_ON_TARGET}
_BARE = str.maketrans(f"{BOX}{PLAYER}{BOX_ON_TARGET}{PLAYER_ON_TARGET}", FLOOR * 2 + TARGET * 2)


@dataclass(frozen=True)
class Room:
    """What never changes: a room without boxes and player."""

    bare: str
    width: int  # of a line with its end
    steps: tuple[int, int, int, int]  # of `MOVES`
    targets: frozenset[int]


class Board:
    """A room and everything in it. Cells are numbered through the text, with one for each end of a line."""

    __slots__ = ("boxes", "cells", "covered", "player", "room")

    def __init__(self, text: str) -> None:
        """Raises `ValueError` for a text that is no room."""
        self.room, self.player, boxes = read_room(text)
        self.boxes = list(boxes)  # in order
        self.cells = list(text)
        self.covered = text.count(BOX_ON_TARGET)

    @property
    def text(self) -> str:
        """The grid, which is the whole state."""
        return "".join(self.cells)

    @property
    def solved(self) -> bool:
        return self.covered == len(self.boxes)

    def move(self, direction: int) -> tuple[float, bool]:
        """Make a move, a place in `MOVES`. Returns the reward, and whether anything changed."""
        cells, step = self.cells, self.room.steps[direction]
        ahead = self.player + step
        cell, covered = cells[ahead], self.covered
        if cell in BOXES:
            beyond = cells[ahead + step]
            if beyond not in _WITH_BOX:
                return self._reward(covered), False
            cells[ahead + step] = _WITH_BOX[beyond]
            self.boxes[self.boxes.index(ahead)] = ahead + step
            self.boxes.sort()
            self.covered += (beyond == TARGET) - (cell == BOX_ON_TARGET)
        elif cell == WALL:
            return self._reward(covered), False
        cells[ahead] = _WITH_PLAYER[cell]
        cells[self.player] = _WITHOUT_PLAYER[cells[self.player]]
        self.player = ahead
        return self._reward(covered), True

    def _reward(self, covered_before: int) -> float:
        reward = COST
        if self.covered > covered_before:
            reward += COVERED
        elif self.covered < covered_before:
            reward -= COVERED
        return reward + SOLVED if self.covered == len(self.boxes) else reward

    def possible(self) -> list[str]:
        """The moves that change something."""
        cells, player, found = self.cells, self.player, []
        for move, step in zip(MOVES, self.room.steps, strict=True):
            cell = cells[player + step]
            if cell in _WITH_BOX or (cell != WALL and cells[player + 2 * step] in _WITH_BOX):
                found.append(move)
        return found


@lru_cache(maxsize=4096)
def read_room(text: str) -> tuple[Room, int, tuple[int, ...]]:
    """The room of a text, the player and the boxes. Raises `ValueError` for a text that is no room."""
    rows = text.split("\n")
    if len(text) > MOST_CELLS:
        raise ValueError(f"a room may have {MOST_CELLS:,} cells, got {len(text):,}")
    if unknown := sorted(set(text) - {*SYMBOLS, "\n"}):
        raise ValueError(f"a room consists of {SYMBOLS}, got {unknown[0]!r} in:\n{text}")
    if len(set(map(len, rows))) > 1:
        raise ValueError(f"the rows of a room must be of one length, got:\n{text}")
    if {*rows[0], *rows[-1], *(row[0] for row in rows if row), *(row[-1] for row in rows if row)} != {WALL}:
        raise ValueError(f"a room must have walls ({WALL}) all around, got:\n{text}")
    players = [cell for cell, found in enumerate(text) if found in _WITHOUT_PLAYER]
    boxes = tuple(cell for cell, found in enumerate(text) if found in BOXES)
    bare, width = text.translate(_BARE), len(rows[0]) + 1
    targets = frozenset(cell for cell, found in enumerate(bare) if found == TARGET)
    if len(players) != 1 or not boxes or len(boxes) != len(targets):
        raise ValueError(
            "a room needs one player, and one box or more with as many targets; "
            f"got {len(players)} players, {len(boxes)} boxes and {len(targets)} targets in:\n{text}"
        )
    return Room(bare, width, (-width, width, -1, 1), targets), players[0], boxes
