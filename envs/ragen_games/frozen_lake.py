"""Cross a frozen lake: `polyturn/FrozenLake-v0`.

    __GP        _ ice        P player      X player in a hole
    _O__        O hole       G goal        √ player on the goal
    _O__
    ____

Actions are `left`, `down`, `right` and `up`, in any case; any other text is a turn without a move. On slippery ice a
move succeeds with a probability of `success_rate`, and slips to either side otherwise. The reward is 1 on the goal; a
hole ends the episode.

Maps, slips and views are those of RAGEN (`ragen/env/frozen_lake` of mll-lab-nu/RAGEN @ 20daedc) on FrozenLake of
Gymnasium 1.4. The map's seed is also that of the slips, so that attempts that play the same moves slip alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from gymnasium.utils import seeding

from envs.core import Info, Task, TextEnv, UnknownNameError
from envs.seed_tasks import SeedTasks

ENV_ID = "polyturn/FrozenLake-v0"
GOAL = "Reach the goal (G) and avoid the holes (O)."
MOVES = ("left", "down", "right", "up")
_NUMBERS = {move: number for number, move in enumerate(MOVES)}
DISCOUNT = 0.999  # of the expert: of two ways that are equally safe, the shorter one
SWEEPS = 1000


def make_map(seed: int, size: int, frozen: float) -> list[str]:
    """A map with a way from the start to the goal: S start, F frozen, H hole, G goal.

    Draws like RAGEN's `generate_random_map`. `frozen` is the probability of ice.
    """
    rng, _ = seeding.np_random(seed)
    while True:
        board = rng.choice(["F", "H"], (size, size), p=[frozen, 1 - frozen])
        start, goal = (tuple(map(int, rng.integers(size, size=2))) for _ in range(2))
        if start != goal:
            board[start], board[goal] = "S", "G"
            rows = ["".join(row) for row in board]
            if _has_way(rows, start):
                return rows


def _has_way(rows: Sequence[str], start: Sequence[int]) -> bool:
    """Whether the goal can be reached without a hole."""
    places, seen = [(start[0], start[1])], set()
    while places:
        row, column = places.pop()
        if not (0 <= row < len(rows) and 0 <= column < len(rows)) or rows[row][column] == "H":
            continue
        if rows[row][column] == "G":
            return True
        if (row, column) not in seen:
            seen.add((row, column))
            places += [(row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)]
    return False


class Lake:
    """A map, and what never changes on it. Cells are numbered row by row."""

    def __init__(self, rows: tuple[str, ...]) -> None:
        """Raises `ValueError` for what is no map."""
        self.rows, self.cells = rows, "".join(rows)
        self.width = len(rows[0]) if rows else 0
        if {len(row) for row in rows} != {self.width} or set(self.cells) - set("SFHG") or self.cells.count("S") != 1:
            raise ValueError(f"a map has rows of one length of S, F, H and G, with one S; got {list(rows)}")
        self.start = self.cells.index("S")
        width, height = self.width, len(rows)
        self.ahead = [
            (
                cell - (cell % width > 0),
                cell + width * (cell // width < height - 1),
                cell + (cell % width < width - 1),
                cell - width * (cell // width > 0),
            )
            for cell in range(len(self.cells))
        ]  # of each cell, by move
        self.over = [cell in "HG" for cell in self.cells]
        self.grids = [self._grid(cell) for cell in range(len(self.cells))]  # by the player's cell

    def _grid(self, player: int) -> str:
        shown = [{"S": "_", "F": "_", "H": "O", "G": "G"}[cell] for cell in self.cells]
        shown[player] = {"H": "X", "G": "√"}.get(self.cells[player], "P")
        return "\n".join("".join(shown[i : i + self.width]) for i in range(0, len(shown), self.width))

    def coordinates(self, player: int) -> str:
        """Where things are, as (row, column) from zero."""
        place = {"H": "Player in hole", "G": "Player on goal"}.get(self.cells[player], "Player")
        kinds = {
            "Start": [self.start],
            "Goal": [cell for cell, kind in enumerate(self.cells) if kind == "G"],
            place: [player],
            "Holes": [cell for cell, kind in enumerate(self.cells) if kind == "H"],
        }
        lines = [f"Board size: {len(self.rows)} rows x {self.width} cols (zero-indexed)."]
        for label, cells in kinds.items():
            if cells:
                lines.append(f"{label}: {', '.join(f'({c // self.width}, {c % self.width})' for c in cells)}")
        return "\n".join(lines)


_lake = lru_cache(maxsize=4096)(Lake)

VIEWS: dict[str, Callable[[Lake, int], str]] = {
    "grid": lambda lake, player: lake.grids[player],
    "coord": Lake.coordinates,
    "grid_coord": lambda lake, at: f"Coordinates: \n{lake.coordinates(at)}\nGrid Map: \n{lake.grids[at]}",
}


def outcomes(move: int, slippery: bool, success_rate: float) -> list[tuple[float, int]]:
    """The probabilities of the moves that one may become, in the order in which Gymnasium draws."""
    if not slippery:
        return [(1.0, move)]
    side = (1.0 - success_rate) / 2.0
    return [(side, (move - 1) % 4), (success_rate, move), (side, (move + 1) % 4)]


class FrozenLakeEnv(TextEnv):
    """Plays a map. Without a task, `reset(seed=…)` makes one of the default size."""

    def __init__(
        self,
        max_turns: int = 20,
        observation: str = "grid",
        slippery: bool = True,
        success_rate: float = 0.8,
        render_mode: str | None = None,
    ) -> None:
        """`observation` is one of `VIEWS`. Raises `UnknownNameError`, and `ValueError` for an impossible rate."""
        super().__init__(max_turns, render_mode)
        if observation not in VIEWS:
            raise UnknownNameError("observation", observation, VIEWS)
        if not 0 <= success_rate <= 1:
            raise ValueError(f"success_rate must be in [0, 1], got {success_rate}")
        self._show = VIEWS[observation]
        chances = [outcomes(move, slippery, success_rate) for move in range(4)]
        # Sums as numpy adds them up, so that the same draw falls on the same side.
        self._limits = [np.cumsum([chance for chance, _ in moves]).tolist() for moves in chances]
        self._becomes = [[move for _, move in moves] for moves in chances]

    def _begin(self, task: Any, seed: int | None) -> tuple[str, Info]:
        if task is None:
            drawn = int(self.np_random.integers(2**31))
            task = Task("", ENV_ID, seed=drawn, payload={"map": make_map(drawn, 4, 0.9)})
        if not isinstance(task, Task) or not isinstance(task.payload.get("map"), (list, tuple)):
            raise ValueError(f"{ENV_ID} needs a Task with a map in its payload, got {task!r:.200}")
        self._lake = _lake(tuple(map(str, task.payload["map"])))
        self._rng, _ = seeding.np_random(task.seed if seed is None else seed)
        self._rng.random()  # Gymnasium draws the only start
        self._player = self._lake.start
        return self._show(self._lake, self._player), self._about()

    def _act(self, action: str) -> tuple[str, float, bool, Info]:
        move = _NUMBERS[action] if action in _NUMBERS else _NUMBERS.get(action.strip().lower())
        if move is not None:
            drawn, limits = self._rng.random(), self._limits[move]
            # The first limit above the draw, as numpy's argmax finds it.
            place = 0 if drawn < limits[0] or drawn >= limits[-1] else 1 if drawn < limits[1] else 2
            self._player = self._lake.ahead[self._player][self._becomes[move][place]]
        info = self._about()
        return self._show(self._lake, self._player), info["score"], self._lake.over[self._player], info

    def _about(self) -> Info:
        lake, player = self._lake, self._player
        won = lake.cells[player] == "G"
        return {
            "goal": GOAL,
            "admissible": list(MOVES),
            "score": float(won),
            "success": won,
            "state_key": lake.grids[player],
        }

    def _save(self) -> Any:
        return self._lake, self._player, self._rng.bit_generator.state

    def _load(self, saved: Any) -> None:
        self._lake, self._player, state = saved
        self._rng = np.random.Generator(np.random.PCG64())
        self._rng.bit_generator.state = state


class ValueIteration:
    """Plays the move with the best chance to reach the goal, by value iteration over the map that is shown."""

    def __init__(self, slippery: bool = True, success_rate: float = 0.8) -> None:
        self._rules = (slippery, success_rate)

    def reset(self, observation: str, info: Info) -> None:  # noqa: ARG002
        self._see(info)

    def observe(self, action: str, observation: str, info: Info) -> None:  # noqa: ARG002
        self._see(info)

    def _see(self, info: Info) -> None:
        grid = info["state_key"].replace("\n", "")
        self._player = next((cell for cell, found in enumerate(grid) if found in "PX√"), 0)
        kinds = {"O": "H", "X": "H", "G": "G", "√": "G", "P": "F", "_": "F"}
        bare = "".join(kinds[cell] for cell in grid)
        self._policy = best_moves(bare, info["state_key"].index("\n"), *self._rules)

    def act(self) -> str:
        return MOVES[self._policy[self._player]]


@lru_cache(maxsize=4096)
def best_moves(bare: str, width: int, slippery: bool, success_rate: float) -> tuple[int, ...]:
    """The best move of each cell of a map without its start: F frozen, H hole, G goal."""
    first = "S" + bare[1:]  # `Lake` wants a start; where it is does not matter here
    ahead = np.array(Lake(tuple(first[i : i + width] for i in range(0, len(bare), width))).ahead)  # [cells, 4]
    goal, over = np.array([cell == "G" for cell in bare]), np.array([cell in "HG" for cell in bare])
    chances = np.zeros((4, 4))  # [move, what it becomes]
    for move in range(4):
        for chance, becomes in outcomes(move, slippery, success_rate):
            chances[move, becomes] += chance
    values = goal.astype(float)
    for _ in range(SWEEPS):
        of_moves = DISCOUNT * values[ahead] @ chances.T  # [cells, 4]
        new = np.where(over, goal, of_moves.max(axis=1))
        if np.abs(new - values).max() < 1e-12:
            break
        values = new
    return tuple(map(int, (of_moves.round(9)).argmax(axis=1)))


class FrozenLakeTasks(SeedTasks):
    """Maps made from seeds."""

    def __init__(
        self,
        size: int = 4,
        frozen: float = 0.9,
        slippery: bool = True,
        success_rate: float = 0.8,
        observation: str = "grid",
        max_turns: int = 20,
        train_tasks: int = 1000,
        valid_tasks: int = 200,
    ) -> None:
        """`frozen` is the probability of ice on a cell. Raises `ValueError` and `UnknownNameError`."""
        super().__init__(ENV_ID, max_turns, train_tasks, valid_tasks)
        if size < 2 or not 0 < frozen <= 1:
            raise ValueError(f"size must be at least 2, and frozen in (0, 1]; got {size} and {frozen}")
        self.size, self.frozen = size, frozen
        self.slippery, self.success_rate, self.observation = slippery, success_rate, observation
        self.make()  # raises for the other settings

    def payload(self, split: str, seed: int) -> Mapping[str, Any]:  # type: ignore[override]
        del split
        return {"map": make_map(seed, self.size, self.frozen)}

    def make(self) -> FrozenLakeEnv:
        return FrozenLakeEnv(self.max_turns, self.observation, self.slippery, self.success_rate)

    def expert(self) -> ValueIteration:
        return ValueIteration(self.slippery, self.success_rate)

    def describe(self) -> str:
        ice = f"slippery, {self.success_rate:g} of the moves succeed" if self.slippery else "not slippery"
        return f"{super().describe()}; {self.size}x{self.size}, {ice}"
