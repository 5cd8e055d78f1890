"""A game of GEM by seed.

tasks = GemTasks("game:Mastermind-v0-easy")
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from envs.core import UnknownNameError
from envs.gem.env import ENV_ID, MAX_TURNS, GemEnv, registry
from envs.seed_tasks import SeedTasks

GAMES = (
    "FifteenPuzzle", "Game2048", "GuessTheNumber", "Mastermind", "Minesweeper", "Sokoban", "Sudoku", "TowerofHanoi",
)  # fmt: skip
_CORPUS = "it downloads its words, a corpus of NLTK, when it is made"
REFUSED = {  # kinds and games that cannot be played, and why
    "rg": "env=reasoning_gym has these questions",
    "math": "its questions are downloaded from a hub", "qa": "its questions are downloaded from a hub",
    "logic": "its questions are downloaded from a hub", "eval": "its questions are downloaded from a hub",
    "code": "its tests run the answer as a program",
    "game:Hangman": _CORPUS, "game:Wordle": _CORPUS, "game:WordSearch": _CORPUS,
    "game:Crosswords": "it needs pandas",
}  # fmt: skip


def games() -> list[str]:
    """The names that can be played, sorted."""
    return sorted(name for name in registry() if _folder(name) in {f"game:{game}" for game in GAMES})


def _folder(name: str) -> str:
    return name.partition("-v0")[0]


def check_game(name: str) -> None:
    """Raises `UnknownNameError`, and `ValueError` with the reason for what cannot be played."""
    known = games()
    if name in known:
        return
    if name not in registry():
        raise UnknownNameError("game of GEM", name, known)
    reason = REFUSED.get(_folder(name)) or REFUSED.get(name.partition(":")[0], "it is no game of text")
    raise ValueError(f"env.game={name} cannot be played: {reason}")


class GemTasks(SeedTasks):
    """Seeds of a game."""

    def __init__(self, game: str, max_turns: int = MAX_TURNS, train_tasks: int = 1000, valid_tasks: int = 100) -> None:
        """`game` is a name of the package. Raises as `check_game`, and `ModuleNotFoundError` without the package."""
        check_game(game)
        self._game = game
        super().__init__(ENV_ID, max_turns, train_tasks, valid_tasks)

    def payload(self, split: str, seed: int) -> dict[str, Any]:  # noqa: ARG002
        return {"type": self._game, "game": self._game, "seed": seed, "gem": version("gem-llm")}

    def make(self) -> GemEnv:
        """A new environment."""
        return GemEnv(self.max_turns)

    def describe(self) -> str:
        return f"{super().describe()}; the game {self._game}"
