"""Rooms made from seeds, as RAGEN and verl-agent make them.

A random walk with 3x3 masks clears the floor, the player and the targets are placed, and the boxes begin on the targets
and are pulled away in a depth-first search for the state with the largest product of pulls and distances. Then the
player walks up to three steps. The same seed gives the same room as their code (`ragen/env/sokoban` of
mll-lab-nu/RAGEN @ 20daedc; `room_utils.py` of gym-sokoban 0.0.6, MIT) wherever its first attempt succeeds.

Different here is the retry. Theirs takes the seed `abs(hash(str(seed))) % 2**32`, and Python's hash of a text is
another one in every process; ours takes the first four bytes of the SHA-256 of the seed as a decimal number.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass

import numpy as np

from envs.sokoban.board import BOX, FLOOR, PLAYER, PLAYER_ON_TARGET, TARGET, WALL

TURN_PROBABILITY = 0.35  # of another direction at a step of the walk
MODELS = 4  # rooms drawn in an attempt until one has a score
MOST_STATES = 300_000  # of a search
MOST_ATTEMPTS = 200
DOWN_RIGHT_UP_LEFT = [(1, 0), (0, 1), (-1, 0), (0, -1)]  # the directions of the walk
# The masks of the walk, as the offsets that are cleared around its place.
MASKS = [
    [(0, -1), (0, 0), (0, 1)],
    [(-1, 0), (0, 0), (1, 0)],
    [(0, -1), (0, 0), (1, 0)],
    [(0, -1), (0, 0), (1, -1), (1, 0)],
    [(0, 0), (0, 1), (1, 0)],
]


@dataclass(frozen=True)
class RoomSize:
    """What a room is made of. `depth` bounds the moves of the search that pulls the boxes away."""

    rows: int = 6
    columns: int = 6
    boxes: int = 1
    depth: int = 300

    def __post_init__(self) -> None:
        if min(self.rows, self.columns) < 4 or self.boxes < 1 or self.depth < 2:
            raise ValueError(
                "a room needs at least 4 rows and columns, 1 box and a search depth of 2, got "
                f"rows={self.rows}, columns={self.columns}, boxes={self.boxes}, depth={self.depth}"
            )


class _FailedError(Exception):
    """An attempt gave no room."""


def make_room(seed: int, size: RoomSize) -> tuple[str, int]:
    """The room of a seed in the symbols of `envs.sokoban.board`, and how many attempts it took.

    Raises `ValueError` for sizes that no attempt succeeds with.
    """
    for attempt in range(1, MOST_ATTEMPTS + 1):
        try:
            return _attempt(seed, size), attempt
        except _FailedError:
            seed = int.from_bytes(hashlib.sha256(str(seed).encode()).digest()[:4], "big")
    raise ValueError(f"{MOST_ATTEMPTS} attempts gave no room of {size}: it needs fewer boxes, or more space")


def _attempt(seed: int, size: RoomSize) -> str:
    # The references seed two global generators: `random` (walks) and numpy's (places). These draw the same.
    walks, places = random.Random(seed), np.random.RandomState(seed)
    for _ in range(MODELS):
        floor = _clear_floor(walks, size)
        if len(floor) <= size.boxes + 1:
            raise _FailedError
        free = sorted(floor)
        player = free.pop(places.randint(len(free)))
        targets = [free.pop(places.randint(len(free))) for _ in range(size.boxes)]
        score, displacement, player, boxes = _pull_away(floor, targets, player, size)
        if score:
            player = _walk_on(walks, floor - boxes, player, size.columns, 0.8 if displacement == 1 else 0.5)
            return _draw(floor, frozenset(targets), boxes, player, size)
    raise _FailedError


def _clear_floor(rng: random.Random, size: RoomSize) -> set[int]:
    """The cells that the walk clears. A cell is `row * columns + column`; the border stays wall."""
    rows, columns = size.rows, size.columns
    cleared: set[int] = set()
    down, right = rng.sample(DOWN_RIGHT_UP_LEFT, 1)[0]
    row, column = rng.randint(1, rows - 1), rng.randint(1, columns - 1)
    for _ in range(int(1.7 * (rows + columns))):
        if rng.random() < TURN_PROBABILITY:
            down, right = rng.sample(DOWN_RIGHT_UP_LEFT, 1)[0]
        row = max(min(row + down, rows - 2), 1)
        column = max(min(column + right, columns - 2), 1)
        cleared.update((row + y) * columns + column + x for y, x in rng.sample(MASKS, 1)[0])
    return {cell for cell in cleared if 0 < cell // columns < rows - 1 and 0 < cell % columns < columns - 1}


def _pull_away(
    floor: set[int], targets: list[int], player: int, size: RoomSize
) -> tuple[int, int, int, frozenset[int]]:
    """The state with the best score: its score, its displacement, the player and the boxes.

    A box that was pulled differs from one that never was, also where it stands on a target again. The score is zero
    while something stands on a target.
    """
    columns = size.columns
    homes = [divmod(target, columns) for target in sorted(targets)]
    on_target = frozenset(targets)
    best = (-1, 0, player, on_target)
    seen: set[tuple[int, frozenset[int], frozenset[int]]] = set()
    # The player, the boxes in the order of their targets, those that were pulled, the box pulled last, how often that
    # was another box than before, and the moves left.
    stack = [(player, tuple(sorted(targets)), frozenset[int](), -1, 0, size.depth - 1)]
    while stack:
        player, boxes, pulled, last, changes, left = stack.pop()
        if left <= 0 or len(seen) >= MOST_STATES:
            continue
        places = frozenset(boxes)
        key = (player, places, pulled)
        if key in seen:
            continue
        seen.add(key)
        displacement = sum(
            abs(row - box // columns) + abs(column - box % columns)
            for (row, column), box in zip(homes, boxes, strict=True)
        )
        score = 0 if player in on_target or not on_target.isdisjoint(places) else changes * displacement
        if score > best[0]:
            best = (score, displacement, player, places)
        for step in (1, -1, columns, -columns):  # the last one pushed is searched first: up, down, left, right
            ahead, behind = player + step, player - step
            if ahead not in floor or ahead in places:
                continue
            if behind in places:
                moved = tuple(player if box == behind else box for box in boxes)
                box = boxes.index(behind)
                stack.append((ahead, moved, pulled - {behind} | {player}, box, changes + (box != last), left - 1))
            else:
                stack.append((ahead, boxes, pulled, last, changes, left - 1))
    return best


def _walk_on(rng: random.Random, free: set[int], player: int, columns: int, probability: float) -> int:
    """The player after up to three more steps, none of them back."""
    if rng.random() > probability:
        return player
    visited = {player}
    for walked in range(3):
        steps = [cell for step in (-columns, columns, -1, 1) if (cell := player + step) in free - visited]
        if not steps:
            break
        player = rng.choice(steps)
        visited.add(player)
        if walked < 2 and rng.random() > 0.5:
            break
    return player


def _draw(floor: set[int], targets: frozenset[int], boxes: frozenset[int], player: int, size: RoomSize) -> str:
    cells = [FLOOR if cell in floor else WALL for cell in range(size.rows * size.columns)]
    for cell in targets:
        cells[cell] = TARGET
    for cell in boxes:
        cells[cell] = BOX
    cells[player] = PLAYER_ON_TARGET if player in targets else PLAYER
    return "\n".join("".join(cells[start : start + size.columns]) for start in range(0, len(cells), size.columns))
