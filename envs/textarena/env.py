"""One-player games of TextArena: `polyturn/TextArena-v0`.

    [GAME] You are playing Mastermind.
    You need to find the code that is 4 digits long, each digit from 1 to 6, with no duplicates. …
    > [5 6 1 2]
    [GAME] Submitted [5 6 1 2]. Feedback: 0 black peg(s), 3 white peg(s).

Played by the package. Its observations hold all that was said before; here an observation is what is new, without the
action. The reward comes at the end and is the game's; a game is won with a reward of at least 1.
"""

from __future__ import annotations

from typing import Any

from envs.checks import clean_text
from envs.core import Info, Task
from envs.replayed import ReplayedEnv
from envs.textarena.game import Game

ENV_ID = "polyturn/TextArena-v0"
MAX_TURNS = 100
LONGEST_ACTION = 1000  # characters that reach the game, which repeats them and reads numbers of any length in them


class TextArenaEnv(ReplayedEnv):
    """Plays a game with a seed."""

    def __init__(self, max_turns: int = MAX_TURNS, render_mode: str | None = None) -> None:
        super().__init__(max_turns, render_mode)
        self._game: Any = None
        self._goal = ""
        self._choices: Any = None  # a sequence of those that can be played, where there are few
        self._seen = ""  # the package's last observation

    def _begin(self, task: Any, seed: int | None) -> tuple[str, Info]:
        del seed  # a task says everything
        if not isinstance(task, Task) or not {"game", "seed"} <= set(task.payload):
            raise ValueError(f"{ENV_ID} needs a Task with the payload of TextArenaTasks, got {task!r:.200}")
        text = self._start(task.payload)
        return text, self._make_info(0.0, success=False)

    def _enter(self, payload: Any) -> str:
        self._game, self._seen = Game(payload["game"], payload["seed"]), ""
        text = self._look()
        self._choices = payload.get("actions")
        self._goal = str(self._game.state.logs[0][1])
        return text

    def _act(self, action: str) -> tuple[str, float, bool, Info]:
        text, over = self._do(action)
        if not over:
            return text, 0.0, False, self._make_info(0.0, success=False)
        reward, is_invalid, reason = self._game.outcome()
        success = reward >= 1 and not is_invalid
        return f"{text}\n[GAME] {reason}".lstrip("\n"), reward, True, self._make_info(reward, success)

    def _play(self, action: str) -> tuple[str, bool]:
        over = self._game.step(clean_text(action[:LONGEST_ACTION]))
        return self._look(), over

    def _look(self) -> str:
        """What is new in the package's observation, or all of it where it does not begin with the last one."""
        _, text = self._game.look()
        new, self._seen = text.removeprefix(self._seen), text
        return str(new).removeprefix(f"\n[Player] {self._game.said}").lstrip("\n")

    def _make_info(self, reward: float, success: bool) -> Info:
        return {
            "goal": self._goal, "success": success, "score": 1.0 if success else min(max(reward, 0.0), 1.0),
            "state_key": self._state_key(), "admissible": list(self._choices) if self._choices else None,
        }  # fmt: skip

    def _state_key(self) -> str:
        """The board that was shown last, or all that was shown if there is none, and the invalid moves in a row."""
        return f"{self._game.board or self._seen}\n{self._game.state.error_count}"
