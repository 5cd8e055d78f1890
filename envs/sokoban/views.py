"""Ways to show a board: RAGEN's `grid`, `coord` and `grid_coord`, and verl-agent's text."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from envs.sokoban.board import BOX, BOX_ON_TARGET, FLOOR, PLAYER, PLAYER_ON_TARGET, TARGET, Board, Room


def grid(board: Board) -> str:
    """One character a cell."""
    return board.text


def coord(board: Board) -> str:
    """Where things are, as (row, column) from zero. Walls are not shown."""
    text = board.text
    rows, columns = text.count("\n") + 1, board.room.width - 1
    lines = [f"Board size: {rows} rows x {columns} cols (zero-indexed)."]
    kinds = [
        ("Targets", board.room.bare, TARGET),
        ("Boxes", text, BOX),
        ("Boxes on target", text, BOX_ON_TARGET),
        ("Player", text, PLAYER),
        ("Player on target", text, PLAYER_ON_TARGET),
    ]
    for label, shown, symbol in kinds:
        places = [divmod(cell, board.room.width) for cell, found in enumerate(shown) if found == symbol]
        if places:
            lines.append(f"{label}: {', '.join(f'({row}, {column})' for row, column in places)}")
    return "\n".join(lines)


def grid_coord(board: Board) -> str:
    """Both."""
    return f"Coordinates: \n{coord(board)}\nGrid Map: \n{board.text}"


def verl_agent(board: Board) -> str:
    """The grid with blanks around each cell."""
    return "\n".join("".join(f" {cell} \t" for cell in row) for row in board.text.split("\n"))


VIEWS: dict[str, Callable[[Board], str]] = {
    "grid": grid,
    "coord": coord,
    "grid_coord": grid_coord,
    "verl_agent": verl_agent,
}


def brief_moving(board: Board) -> str:
    """Player and boxes by row and column, as "player 24 box 33". Each is one token of a small policy."""
    width = board.room.width
    return " ".join([_names("player", width)[board.player], *map(_names("box", width).__getitem__, board.boxes)])


@lru_cache(maxsize=4096)
def brief_room(room: Room) -> str:
    """The targets and the rest of the floor in the same form: what never moves."""
    kinds = {TARGET: "target", FLOOR: "floor"}
    return " ".join(_names(kinds[found], room.width)[cell] for cell, found in enumerate(room.bare) if found in kinds)


class _Names(dict[int, str]):
    """What a kind of thing is called on each cell."""

    def __init__(self, kind: str, width: int) -> None:
        super().__init__()
        self.kind, self.width = kind, width

    def __missing__(self, cell: int) -> str:
        row, column = divmod(cell, self.width)
        self[cell] = f"{self.kind} {row}{column}" if self.width <= 11 else f"{self.kind} {row}{column:02}"
        return self[cell]


_names = lru_cache(maxsize=None)(_Names)
