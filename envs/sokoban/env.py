"""Push every box onto a target: `polyturn/Sokoban-v0`.

    ######        > right       ######
    #____#                      #____#
    ##O_P#                      ##O__#
    ###X_#        > down        ###XP#
    ###__#                      ###__#
    ######                      ######

Actions are `up`, `down`, `left` and `right`, in any case; any other text is a turn without a move. Rules, rewards and
symbols are in `envs.sokoban.board`, ways to show a room in `envs.sokoban.views`. `info["score"]` is the share of boxes
on targets, and `info["state_key"]` the grid, which is the true state. `info["admissible"]` has the moves that change
something, `info["actions"]` all four. `info["brief"]` is for small policies: one token for each thing, and later only
what may have moved.
"""

from __future__ import annotations

from typing import Any

from envs.core import BRIEF, Info, Task, TextEnv, UnknownNameError
from envs.sokoban.board import COST, MOVES, Board
from envs.sokoban.dead_ends import is_dead_end
from envs.sokoban.generate import RoomSize, make_room
from envs.sokoban.solver import solve
from envs.sokoban.views import VIEWS, brief_moving, brief_room

ENV_ID = "polyturn/Sokoban-v0"
GOAL = "Push every box (X) onto a target (O)."
DEAD_ENDS = ("ignore", "turn_reward", "end")  # what happens at one
STILL = "still"  # verl-agent's name for a turn without a move


class SokobanEnv(TextEnv):
    """Plays a room. Without a task, `reset(seed=…)` makes one of the default size."""

    def __init__(
        self,
        max_turns: int = 15,
        observation: str = "grid",
        dead_ends: str = "ignore",
        render_mode: str | None = None,
    ) -> None:
        """`observation` is one of `VIEWS`, `dead_ends` one of `DEAD_ENDS`. Raises `UnknownNameError` for others.

        With `dead_ends="turn_reward"`, `info["turn_reward"]` is -1 for the move into a position that is recognised as a
        dead end, otherwise 0; with `"end"`, the episode also ends there, as a failure.
        """
        super().__init__(max_turns, render_mode)
        for kind, name, known in (("observation", observation, VIEWS), ("dead_ends", dead_ends, DEAD_ENDS)):
            if name not in known:
                raise UnknownNameError(kind, name, known)
        self._show = VIEWS[observation]
        self._notes_dead_ends, self._ends_there = dead_ends != "ignore", dead_ends == "end"
        self._dead = False

    def _begin(self, task: Any, seed: int | None) -> tuple[str, Info]:
        del seed  # it is in `np_random`
        if task is None:
            room, _ = make_room(int(self.np_random.integers(2**31)), RoomSize())
            task = Task("", ENV_ID, payload={"room": room})
        if not isinstance(task, Task) or not isinstance(task.payload.get("room"), str):
            raise ValueError(f"{ENV_ID} needs a Task with a room as text in its payload, got {task!r:.200}")
        self._board = Board(task.payload["room"])
        self._dead = self._notes_dead_ends and is_dead_end(self._board)
        info = self._about()
        info[BRIEF] = f"{info[BRIEF]} {brief_room(self._board.room)}"
        return self._show(self._board), info

    def _act(self, action: str) -> tuple[str, float, bool, Info]:
        board, name = self._board, action.strip().lower()
        reward, moved = board.move(MOVES.index(name)) if name in MOVES else (COST, False)
        info = self._about()
        if self._notes_dead_ends:
            before, self._dead = self._dead, is_dead_end(board) if moved else self._dead
            info["turn_reward"] = -float(self._dead and not before)
        over = board.solved or (self._dead and self._ends_there)
        return self._show(board), reward, over, info

    def _about(self) -> Info:
        board = self._board
        return {
            "goal": GOAL,
            "admissible": board.possible() or list(MOVES),
            "actions": list(MOVES),
            "score": board.covered / len(board.boxes),
            "success": board.solved,
            "state_key": board.text,
            BRIEF: brief_moving(board),
        }

    def _save(self) -> Any:
        return self._board.text, self._dead

    def _load(self, saved: Any) -> None:
        text, self._dead = saved
        self._board = Board(text)


class Solver:
    """Plays the solution of the true state, `info["state_key"]`, with every view; in dead ends it stands still."""

    def reset(self, observation: str, info: Info) -> None:  # noqa: ARG002
        self._plan = self._solve(info)

    def observe(self, action: str, observation: str, info: Info) -> None:  # noqa: ARG002
        if self._plan and action == self._plan[-1]:
            self._plan.pop()
        else:
            self._plan = self._solve(info)

    def act(self) -> str:
        return self._plan[-1] if self._plan else STILL

    @staticmethod
    def _solve(info: Info) -> list[str]:
        """The moves, the last one first."""
        return (solve(info["state_key"]) or [])[::-1]
