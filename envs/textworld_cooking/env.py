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

from envs.core import BRIEF, Info, Task, TextEnv
from envs.gold_path import GAME
from envs.textworld_cooking.games import INSTALL, compiled

ENV_ID = "polyturn/TextWorldCooking-v0"
MAX_TURNS = 50
LONGEST_ACTION = 198  # characters; Jericho cuts the rest off
UNKNOWN = "That's not a verb I recognise."
# Verbs of the interpreter and of TextWorld. They write and read files, ask a question that takes the place of the next
# turn, or change what the game prints.
_OUTSIDE_THE_GAME = {
    "quit", "q", "save", "restore", "restart", "verify", "script", "transcrip", "noscript", "unscript",
    "tw-extra-", "tw-trace-", "tw-print", "print_sta", "enable", "disable", "restrict",
}  # fmt: skip
_VERB_LENGTH = 9  # of a word, Inform's dictionary has only this much
_BETWEEN_WORDS = re.compile(r'[ .,"]+')
# Jericho passes the line as a C string. Its end is lost behind a NUL, and the interpreter never returns or crashes. A
# backslash begins a command to the interpreter, and other characters have no place in Inform's dictionary.
_UNREADABLE = re.compile(r"[^ -\[\]-~]")
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
        self._lines: list[str] = []

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
        self._payload, self._lines = payload, []
        self._state = self._engine.reset()

    def _act(self, action: str) -> tuple[str, float, bool, Info]:
        before = self._state.score
        line = _UNREADABLE.sub("?", " ".join(action.split()))  # what has several lines would be several commands
        words = {word[:_VERB_LENGTH] for word in _BETWEEN_WORDS.split(line.lower())}
        if len(line) > LONGEST_ACTION or words & _OUTSIDE_THE_GAME:
            return UNKNOWN, 0.0, False, self._make_info() | {BRIEF: UNKNOWN}
        over = self._play(line)
        text = self._text()
        reward = (self._state.score - before) / self._state.max_score
        return text, reward, over or bool(self._state.won or self._state.lost), self._make_info() | {BRIEF: brief(text)}

    def _play(self, line: str) -> bool:
        self._lines.append(line)
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
        return self._payload, tuple(self._lines)

    def _load(self, saved: Any) -> None:
        """Play the lines again."""
        payload, lines = saved
        self._enter(payload)
        for line in lines:
            self._play(line)


def brief(text: str) -> str:
    """A text on one line, with the names of rooms alone."""
    return " ".join(_NAME.sub(r"\1:", text).split())
