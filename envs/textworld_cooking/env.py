"""Cook a meal after a recipe: `polyturn/TextWorldCooking-v0`.

    You are hungry! Let's cook a delicious meal. Check the cookbook in the kitchen for the recipe. …
    > examine cookbook
    You open the copy of "Cooking: A Modern Approach (3rd Ed.)" and start reading: …
    > take block of cheese from fridge
    You take the block of cheese from the fridge.

Played by TextWorld itself. An ingredient that is taken, cut or cooked as the recipe says, and the meal, give a point
each: the reward is the change of the score, as a share of all points. A burnt or wrongly cut ingredient ends the game.
"""

from __future__ import annotations

import re
import threading
from typing import Any

from envs.checks import clean_text
from envs.core import BRIEF, Info, Task, TextEnv
from envs.gold_path import GAME
from envs.textworld_cooking.games import INSTALL, compiled

ENV_ID = "polyturn/TextWorldCooking-v0"
MAX_TURNS = 50
LONGEST_ACTION = 1_000  # characters
UNKNOWN = "That's not a verb I recognise."
_PROMPT = re.compile(r"\s*>\s*(?:-= .* =-\S*)?\s*$")  # and the line of the status, at the end of what the game says
_NAME = re.compile(r"-= (.*?) =-")  # of a room
_making = threading.Lock()  # TextWorld's generator and its interpreter are loaded by one thread at a time


class TextWorldCookingEnv(TextEnv):
    """Plays a game, which is compiled when it is played for the first time."""

    def __init__(self, max_turns: int = MAX_TURNS, render_mode: str | None = None) -> None:
        """Raises `ModuleNotFoundError`, which says what to install."""
        super().__init__(max_turns, render_mode)
        try:
            import textworld
        except ImportError as error:
            raise ModuleNotFoundError(f"{INSTALL} ({error})") from error
        self._start = textworld.start
        self._infos = textworld.EnvInfos(
            score=True, max_score=True, won=True, lost=True, admissible_commands=True, objective=True, facts=True
        )
        self._engine: Any = None
        self._payload: Any = None
        self._state: Any = None
        self._actions: list[str] = []

    def _begin(self, task: Any, seed: int | None) -> tuple[str, Info]:
        del seed  # a task says everything
        if not isinstance(task, Task) or not {"skills", "seed"} <= set(task.payload):
            raise ValueError(f"{ENV_ID} needs a Task with the payload of TextWorldCookingTasks, got {task!r:.200}")
        self._enter(task.payload)
        text = self._text()
        shown = text[max(text.find(self._state.objective), 0) :]  # without the banner
        return shown, self._make_info() | {GAME: dict(task.payload), BRIEF: brief(shown)}

    def _enter(self, payload: Any) -> None:
        if self._engine is None or payload != self._payload:
            self._end_engine()
            with _making:
                self._engine = self._start(str(compiled(payload)), self._infos)
        self._payload, self._actions = payload, []
        self._state = self._engine.reset()

    def _act(self, action: str) -> tuple[str, float, bool, Info]:
        before = self._state.score
        if len(action) > LONGEST_ACTION:
            return UNKNOWN, 0.0, False, self._make_info() | {BRIEF: UNKNOWN}
        over = self._play(action)
        text = self._text()
        reward = (self._state.score - before) / self._state.max_score
        return text, reward, over or bool(self._state.won or self._state.lost), self._make_info() | {BRIEF: brief(text)}

    def _play(self, action: str) -> bool:
        self._actions.append(action)
        line = " ".join(clean_text(action).split())  # what has several lines would be several commands
        self._state, _, over = self._engine.step(line)
        return bool(over)

    def _text(self) -> str:
        return _PROMPT.sub("", self._state.feedback).strip()

    def _make_info(self) -> Info:
        state = self._state
        share = max(min(state.score / state.max_score, 1.0), 0.0)
        return {
            "goal": state.objective, "admissible": list(state.admissible_commands), "success": bool(state.won),
            "score": 1.0 if state.won else share, "state_key": "\n".join(sorted(map(str, state.facts))),
        }  # fmt: skip

    @property
    def state(self) -> Any:
        """What TextWorld said last."""
        return self._state

    def close(self) -> None:
        """End the interpreter."""
        self._over = True
        self._end_engine()

    def _end_engine(self) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()

    def _save(self) -> Any:
        return self._payload, tuple(self._actions)

    def _load(self, saved: Any) -> None:
        """Play the actions again."""
        payload, actions = saved
        self._enter(payload)
        for action in actions:
            self._play(action)


def brief(text: str) -> str:
    """A text on one line, with the names of rooms alone."""
    return " ".join(_NAME.sub(r"\1:", text).split())
