"""ALFWorld as a Gymnasium environment: `polyturn/ALFWorld-v0`.

Observations are ALFWorld's own. The reward is 1.0 for the winning action and 0.0 before; the episode ends there or
after `max_turns` actions. `info["type"]` is the type of task.

`info["state_key"]` is the last observation other than a refusal, and what the agent holds. A refused action changes
nothing, so the turn after "Nothing happens." is compared with other turns in the state before it. Standing at the sink
with a mug is another state than standing there without one.
"""

from __future__ import annotations

import logging
import os
import re
from typing import Any

from envs.alfworld.engine import NOTHING_HAPPENS, Engine
from envs.alfworld.game import GAME_FILE, Game, GameFileError, load_game, missing_game
from envs.alfworld.reference import ReferenceEngine
from envs.core import Info, Task, TextEnv, UnknownNameError

ENGINES = ("native", "textworld")
_log = logging.getLogger(__name__)
_PICKED_UP = re.compile(r"You pick up the (.+) from the ")
_warned: set[str] = set()  # paths of foreign games that a warning was given for


def _load(path: str) -> Game:
    """Raises `GameFileError`, and `MissingDataError` for a file that does not exist."""
    try:
        return load_game(path)
    except GameFileError as error:
        if os.path.exists(path):
            raise
        raise missing_game(path) from error


class ALFWorldEnv(TextEnv):
    """Plays the games of ALFWorld. `playing` is the engine of the current game.

    The task of `reset(options={"task": …})` is a `Task` whose payload has a `path`, or the path itself. It is the path
    of a game file, or of the folder that holds a `game.tw-pddl`.

    Example: `env.reset(options={"task": "json_2.1.1/valid_seen/pick_…/trial_…/game.tw-pddl"})`.
    """

    def __init__(self, max_turns: int = 50, engine: str = "native", render_mode: str | None = None) -> None:
        """`engine` is `native`, which leaves unsupported games to TextWorld with a warning, or `textworld`."""
        super().__init__(max_turns, render_mode)
        if engine not in ENGINES:
            raise UnknownNameError("engine", engine, ENGINES)
        self.engine = engine
        self.playing = engine
        self._game: Game | None = None
        self._engine: Engine | ReferenceEngine | None = None
        self._goal = ""
        self._last_news = ""  # the last observation other than a refusal
        self._held = ""

    def _begin(self, task: Any, seed: int | None) -> tuple[str, Info]:
        del seed  # there is no chance in these games
        path = task.payload.get("path") if isinstance(task, Task) else task
        if not isinstance(path, (str, os.PathLike)):
            raise ValueError(
                "ALFWorld needs a game to play: reset(options={'task': …}) with a Task whose payload has a 'path', or "
                f"the path of a {GAME_FILE} or of its folder; got {task!r}"
            )
        engine = self._choose(_load(os.fspath(path)))
        observation = engine.reset()
        self._goal = observation.partition("Your task is to: ")[2]
        self._held = ""
        return observation, self._make_info(engine, observation)

    def _choose(self, game: Game) -> Engine | ReferenceEngine:
        """The engine for a game: the current one if it is the same game."""
        if self._engine is None or self._game is not game:
            native = self.engine == "native" and not game.foreign
            if self.engine == "native" and game.foreign and game.path not in _warned:
                _warned.add(game.path)
                _log.warning("TextWorld plays %s, slowly: %s", game.path, game.foreign)
            self._engine = None  # so TextWorld's environment can be used again
            self._engine = Engine(game) if native else ReferenceEngine(game.path)
            self._game, self.playing = game, "native" if native else "textworld"
        return self._engine

    def _act(self, action: str) -> tuple[str, float, bool, Info]:
        assert self._engine is not None  # there is no step before a reset
        text, reward, done = self._engine.step(action)
        return text, reward, done, self._make_info(self._engine, text)

    def _make_info(self, engine: Engine | ReferenceEngine, observation: str) -> Info:
        assert self._game is not None
        if observation != NOTHING_HAPPENS:
            self._last_news = observation
        if picked := _PICKED_UP.match(observation):
            self._held = picked[1]
        elif observation.startswith(f"You move the {self._held} to "):
            self._held = ""
        return {
            "goal": self._goal,
            "type": self._game.type,
            "admissible": engine.admissible,
            "score": float(engine.won),
            "success": engine.won,
            "state_key": f"{self._last_news}\n{self._held}",
        }

    def _save(self) -> Any:
        if self._game is None or not isinstance(self._engine, Engine):
            raise NotImplementedError(f"snapshots need the native engine and a game; here it is {self.playing}")
        return self._game.path, self._goal, self._last_news, self._held, self._engine.snapshot()

    def _load(self, saved: Any) -> None:
        path, self._goal, self._last_news, self._held, state = saved
        engine = self._choose(_load(path))
        if not isinstance(engine, Engine):
            raise NotImplementedError(f"snapshots need the native engine; here it is {self.playing}")
        engine.restore(state)
