"""Games of TextArena, for one or two players: `polyturn/TextArena-v0`.

    [GAME] You are playing Mastermind.
    You need to find the code that is 4 digits long, each digit from 1 to 6, with no duplicates. …
    > [5 6 1 2]
    [GAME] Submitted [5 6 1 2]. Feedback: 0 black peg(s), 3 white peg(s).

Played by the package. Its observations hold all that was said before; here an observation is what is new, without the
action. The reward comes at the end and is the game's; a game is won with a reward of at least 1. In a game for two, a
partner (`envs.partners`) plays until it is the policy's turn.
"""

from __future__ import annotations

from typing import Any

from envs.checks import clean_text
from envs.core import Info, Task
from envs.partners import Dialogue, Partner
from envs.replayed import ReplayedEnv
from envs.textarena.game import Game
from envs.textarena.moves import listed_moves

ENV_ID = "polyturn/TextArena-v0"
MAX_TURNS = 100
LONGEST_ACTION = 1000  # characters that reach the game, which repeats them and reads numbers of any length in them
INSTRUCTION = (
    "You play a game against another player. Answer with your action alone, in the form that the game asks for."
)


class TextArenaEnv(ReplayedEnv):
    """Plays a game with a seed."""

    def __init__(
        self, max_turns: int = MAX_TURNS, partner: Partner | None = None, render_mode: str | None = None
    ) -> None:
        """`partner` plays the other side of a game for two."""
        super().__init__(max_turns, render_mode)
        self._partner = partner
        self._game: Any = None
        self._goal = ""
        self._choices: Any = None  # a sequence of those that can be played, where there are few
        self._place = 0  # of the policy
        self._dialogue: Dialogue | None = None  # with the partner, in a game for two
        self._known: tuple[str, ...] = ()  # the partner's answers in a game that is restored
        self._seen: dict[int, str] = {}  # the package's last observation, of each player
        self._said: dict[int, str] = {}  # the last action of each player, as it stands in observations

    def _begin(self, task: Any, seed: int | None) -> tuple[str, Info]:
        del seed  # a task says everything
        if not isinstance(task, Task) or not {"game", "seed"} <= set(task.payload):
            raise ValueError(f"{ENV_ID} needs a Task with the payload of TextArenaTasks, got {task!r:.200}")
        if "place" in task.payload and self._partner is None:
            raise ValueError(f"{ENV_ID}: {task.payload['game']} is a game for two players, so it needs a partner")
        self._known = ()
        text = self._start(task.payload)
        return text, self._make_info(0.0, success=False)

    def _enter(self, payload: Any) -> str:
        is_for_two = "place" in payload
        self._game = Game(payload["game"], payload["seed"], 2 if is_for_two else 1)
        self._place, self._seen, self._said = payload.get("place", 0), {}, {}
        assert self._partner is not None or not is_for_two, "_begin has checked it"
        self._dialogue = Dialogue(self._partner, INSTRUCTION, self._known) if is_for_two and self._partner else None
        self._play_partner()
        text = self._look()
        self._choices = payload.get("actions")
        self._goal = str(self._game.state.logs[0][1])
        return text

    def _act(self, action: str) -> tuple[str, float, bool, Info]:
        text, over = self._do(action)
        if not over:
            return text, 0.0, False, self._make_info(0.0, success=False)
        reward, is_invalid, reason = self._game.outcome(self._place)
        success = reward >= 1 and not is_invalid
        return f"{text}\n[GAME] {reason}".lstrip("\n"), reward, True, self._make_info(reward, success)

    def _play(self, action: str) -> tuple[str, bool]:
        over = self._step(action) or self._play_partner()
        # At the end it may be the partner's turn, whose observation the policy does not see.
        return self._look() if self._game.player == self._place else self._partners_last(), over

    def _play_partner(self) -> bool:
        """Play the partner's moves until it is the policy's turn. Returns whether the game is over."""
        while self._dialogue and self._game.player != self._place:
            if self._step(self._dialogue.answer(self._look())):
                return True
        return False

    def _step(self, action: str) -> bool:
        player = self._game.player
        over: bool = self._game.step(clean_text(action[:LONGEST_ACTION]))
        self._said[player] = self._game.said
        return over

    def _look(self) -> str:
        """What is new to the player whose turn it is, without its own action.

        It is all of the observation where this does not begin with the last one.
        """
        player, text = self._game.look()
        new = str(text).removeprefix(self._seen.get(player, ""))
        self._seen[player] = text
        name = f"Player {player}" if self._dialogue else "Player"
        return new.removeprefix(f"\n[{name}] {self._said.get(player, '')}").lstrip("\n")

    def _partners_last(self) -> str:
        other = 1 - self._place
        return f"[Player {other}] {self._said[other]}" if self._said.get(other) else ""

    def _make_info(self, reward: float, success: bool) -> Info:
        listed = listed_moves(self._seen.get(self._place, "")) if self._dialogue else []
        info = {
            "goal": self._goal, "success": success, "state_key": self._state_key(),
            "score": 1.0 if success else min(max(reward, 0.0), 1.0),
            "admissible": list(self._choices or listed) or None,
        }  # fmt: skip
        return info | ({"partner": self._partner.name} if self._dialogue and self._partner else {})

    def _state_key(self) -> str:
        """The board that was shown last, or all that was shown if there is none, and the invalid moves in a row."""
        return f"{self._game.board or self._seen.get(self._place, '')}\n{self._game.state.error_count}"

    def _save(self) -> Any:
        return super()._save(), self._dialogue.answers if self._dialogue else ()

    def _load(self, saved: Any) -> None:
        played, self._known = saved
        super()._load(played)
