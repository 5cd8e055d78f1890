"""Positions that cannot be solved any more, as far as they can be recognised without a search.

A position is a dead end if a box is on a square from which it cannot be pushed to any target even in an empty room, or
if boxes that block each other can never move again and one of them is on no target. Every position that is recognised
is a dead end; some dead ends are not recognised.
"""

from __future__ import annotations

from functools import lru_cache

from envs.sokoban.board import WALL, Board, Room


def is_dead_end(board: Board) -> bool:
    """Whether the position is recognised as a dead end."""
    if board.solved:
        return False
    room, boxes = board.room, frozenset(board.boxes)
    live = pull_distances(room)
    if any(cell not in live for cell in boxes):
        return True
    return any(is_frozen(room, boxes, cell) for cell in boxes - room.targets)


def is_frozen(room: Room, boxes: frozenset[int], cell: int, fixed: frozenset[int] = frozenset()) -> bool:
    """Whether the box on `cell` can move along neither axis. Boxes in `fixed` count as walls."""
    live = pull_distances(room)
    fixed |= {cell}
    for step in (1, room.width):
        sides = (cell - step, cell + step)
        if any(room.bare[side] == WALL or side in fixed for side in sides):
            continue
        if all(side not in live for side in sides):
            continue
        if any(side in boxes and is_frozen(room, boxes, side, fixed) for side in sides):
            continue
        return False
    return True


@lru_cache(maxsize=4096)
def pull_distances(room: Room) -> dict[int, int]:
    """The fewest pushes from each square to the nearest target in the empty room; squares without one are missing."""
    distances = dict.fromkeys(sorted(room.targets), 0)
    queue = list(distances)
    for cell in queue:
        for step in room.steps:
            # Pushed from `came` to `cell`, by a player who stood behind it.
            came, behind = cell - step, cell - 2 * step
            if came not in distances and room.bare[came] != WALL and room.bare[behind] != WALL:
                distances[came] = distances[cell] + 1
                queue.append(came)
    return distances
