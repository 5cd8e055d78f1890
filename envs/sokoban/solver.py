"""A solver: the moves from a position to the end.

Small rooms are searched breadth first, which gives a shortest solution; of several, the first in the order of
`envs.sokoban.board.MOVES`, so the moves of a position do not depend on how it was reached. Others are searched over
pushes with A*: a state's estimate is the pushes so far and twice the sum of each box's distance to the nearest target,
which is fast, and gives solutions that are not the shortest.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from itertools import count
from math import comb
from typing import TypeAlias

from envs.sokoban.board import FLOOR, MOVES, TARGET, WALL, Board
from envs.sokoban.dead_ends import is_frozen, pull_distances

SMALL = 300_000  # positions that may be searched breadth first; few of them are, where the solution is short
MOST_EXPANDED = 200_000  # states of A*
WEIGHT = 2
State: TypeAlias = tuple[int, frozenset[int]]  # player and boxes


def solve(text: str, most_expanded: int = MOST_EXPANDED) -> list[str] | None:
    """The moves that solve a room; None if there are none, or none was found among `most_expanded` states."""
    search = _Search(Board(text))
    if search.boxes == search.targets:
        return []
    free = sum(found in (FLOOR, TARGET) for found in search.bare)
    moves = search.breadth_first() if free * comb(free, len(search.boxes)) <= SMALL else search.a_star(most_expanded)
    return None if moves is None else [MOVES[move] for move in moves]


class _Search:
    """The room of a search, and the position where it begins."""

    def __init__(self, board: Board) -> None:
        self.room, self.player, self.boxes = board.room, board.player, frozenset(board.boxes)
        self.bare, self.steps, self.targets = self.room.bare, self.room.steps, self.room.targets
        self.distances = pull_distances(self.room)  # squares without one are dead

    # -- breadth first ------------------------------------------------------------------------------------------------
    def breadth_first(self) -> list[int] | None:
        """A shortest solution as places in `MOVES`."""
        start: State = (self.player, self.boxes)
        came: dict[State, tuple[State, int]] = {}
        seen = {start}
        queue = [start]
        for state in queue:
            for move, following in self._moves(state):
                if following in seen:
                    continue
                seen.add(following)
                came[following] = (state, move)
                if following[1] == self.targets:
                    return [move for move, _ in self._back(following, came)]
                queue.append(following)
        return None

    def _moves(self, state: State) -> Iterator[tuple[int, State]]:
        player, boxes = state
        for move, step in enumerate(self.steps):
            ahead = player + step
            if self.bare[ahead] == WALL:
                continue
            if ahead not in boxes:
                yield move, (ahead, boxes)
            elif (beyond := ahead + step) in self.distances and beyond not in boxes:
                yield move, (ahead, boxes - {ahead} | {beyond})

    # -- A* over pushes -----------------------------------------------------------------------------------------------
    def a_star(self, most_expanded: int) -> list[int] | None:
        """A solution as places in `MOVES`."""
        start: State = (self.player, self.boxes)
        came: dict[State, tuple[State, int]] = {}
        pushes = {self._named(start): 0}
        ticket = count()  # of equal estimates, the newest first
        queue = [(self._estimate(start), 0, start)]
        expanded: set[State] = set()
        while queue and len(expanded) < most_expanded:
            _, _, state = heapq.heappop(queue)
            player, boxes = state
            area = self._area(player, boxes)
            name = (min(area), boxes)
            if name in expanded:
                continue
            expanded.add(name)
            for cell in sorted(boxes):
                for move, step in enumerate(self.steps):
                    beyond = cell + step
                    if cell - step not in area or beyond in boxes or beyond not in self.distances:
                        continue
                    moved = boxes - {cell} | {beyond}
                    following = (cell, moved)
                    if moved != self.targets and self._is_dead(beyond, moved):
                        continue
                    known, made = self._named(following), pushes[name] + 1
                    if made >= pushes.get(known, made + 1):
                        continue
                    pushes[known] = made
                    came[following] = (state, move)
                    if moved == self.targets:
                        return self._walked(following, came)
                    heapq.heappush(queue, (made + self._estimate(following), -next(ticket), following))
        return None

    def _estimate(self, state: State) -> int:
        return WEIGHT * sum(self.distances.get(cell, 0) for cell in state[1])

    def _is_dead(self, pushed: int, boxes: frozenset[int]) -> bool:
        near = [cell for cell in (pushed, *(pushed + step for step in self.steps)) if cell in boxes]
        return any(cell not in self.targets and is_frozen(self.room, boxes, cell) for cell in near)

    def _area(self, player: int, boxes: frozenset[int]) -> set[int]:
        """The cells that the player can walk to."""
        area, queue = {player}, [player]
        for cell in queue:
            for step in self.steps:
                ahead = cell + step
                if ahead not in area and ahead not in boxes and self.bare[ahead] != WALL:
                    area.add(ahead)
                    queue.append(ahead)
        return area

    def _named(self, state: State) -> State:
        """One name for all positions between which the player can walk."""
        return min(self._area(*state)), state[1]

    def _walked(self, solved: State, came: dict[State, tuple[State, int]]) -> list[int]:
        """The moves of the pushes that led to a state, with a shortest walk to each."""
        moves: list[int] = []
        made = self._back(solved, came)
        for (move, (player, boxes)), (pushed, _) in zip(made, [*(state for _, state in made[1:]), solved], strict=True):
            # After a push the player stands where the box was, so it pushes from one step before.
            moves += [*self._walk(player, pushed - self.steps[move], boxes), move]
        return moves

    def _walk(self, player: int, goal: int, boxes: frozenset[int]) -> list[int]:
        came: dict[int, tuple[int, int]] = {}
        queue = [player]
        for cell in queue:
            if cell == goal:
                break
            for move, step in enumerate(self.steps):
                ahead = cell + step
                if ahead != player and ahead not in came and ahead not in boxes and self.bare[ahead] != WALL:
                    came[ahead] = (cell, move)
                    queue.append(ahead)
        moves: list[int] = []
        while goal != player:
            goal, move = came[goal]
            moves.append(move)
        return moves[::-1]

    def _back(self, state: State, came: dict[State, tuple[State, int]]) -> list[tuple[int, State]]:
        """The moves that led to a state, each with the state before it."""
        made: list[tuple[int, State]] = []
        while state in came:
            state, move = came[state]
            made.append((move, state))
        return made[::-1]
