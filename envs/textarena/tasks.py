"""A game of TextArena by seed.

tasks = TextArenaTasks("Mastermind-v0")
tasks = TextArenaTasks("TicTacToe-v0")          # against random moves
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from envs.core import UnknownNameError
from envs.partners import Partner
from envs.seed_tasks import SeedTasks
from envs.textarena.env import ENV_ID, MAX_TURNS, TextArenaEnv
from envs.textarena.game import registry
from envs.textarena.moves import RandomMoves

# Folders of the package with games for one that need nothing else.
GAMES = (
    "Bandit", "Blackjack", "Countdown", "Crosswords", "Cryptarithm", "FifteenPuzzle", "FrozenLake", "Game2048",
    "GuessTheNumber", "LightsOut", "LogicPuzzle", "Mastermind", "Minesweeper", "PegJump", "RushHour", "Secretary",
    "Slitherlink", "Sokoban", "Sudoku", "ThreeCardMonte", "TowerOfHanoi",
)  # fmt: skip
_MOVES = ("[up]", "[down]", "[left]", "[right]")
ACTIONS = {  # all that a game understands, for games with few; a wall may be in the way
    "Blackjack": ("[hit]", "[stand]"), "FifteenPuzzle": _MOVES, "FrozenLake": _MOVES, "Game2048": _MOVES,
    "Secretary": ("[accept]", "[continue]"), "Sokoban": _MOVES, "ThreeCardMonte": ("[0]", "[1]", "[2]"),
}  # fmt: skip
# Folders with games for two. Against a scripted opponent those can be played whose moves are listed, in the text (an
# empty tuple) or here; in the others any text may be an action.
TWO_PLAYERS: dict[str, tuple[str, ...] | None] = {
    "ConnectFour": tuple(f"[{column}]" for column in range(7)), "Crusade": (), "GameOfPureStrategy": (),
    "HighSociety": (), "IndianPoker": (), "IteratedMatchingPennies": ("[heads]", "[tails]"),
    "IteratedRockPaperScissors": ("[rock]", "[paper]", "[scissors]"), "KuhnPoker": (), "Othello": (), "PigDice": (),
    "SimpleTak": (), "Snake": _MOVES, "Surround": _MOVES, "TicTacToe": (), "WildTicTacToe": (),
    **dict.fromkeys((
        "Alquerque", "Battleship", "Breakthrough", "Briscola", "Chopsticks", "ColonelBlotto", "GermanWhist", "Golf",
        "IteratedPrisonersDilemma", "IteratedTwoThirdsAverage", "IteratedUltimatumGame", "LiarsDice", "LinesOfAction",
        "MemoryGame", "NewRecruit", "Nim", "Poker", "QuantumTicTacToe", "Santorini", "SimpleBlindAuction",
        "SimpleNegotiation", "SpiteAndMalice", "Stratego", "Tak", "TruthAndDeception", "TwoDollar", "UltimateTicTacToe",
    )),
}  # fmt: skip
SAME = ("Countdown", "Cryptarithm", "PegJump", "TowerOfHanoi")  # games that draw nothing
_CORPUS = "it downloads its words, a corpus of NLTK, when it is made"
_KEY = "a language model behind OpenRouter answers in it, which needs a key"
_SYNTAX = "its code in textarena 0.7.4 is a SyntaxError in Python 3.11"
REFUSED = {  # other folders with one-player games, and why they are refused
    "Hangman": _CORPUS, "Wordle": _CORPUS, "WordLadder": _CORPUS, "WordSearch": _CORPUS,
    "TwentyQuestions": _KEY, "GuessWho": _KEY,
    "Klondike": _SYNTAX, "UltimateTexasHoldem": _SYNTAX,
    "BabyAiText": "it needs the old packages gym and babyai; env=babyai has these levels",
    "Set": "it counts points, and no number of them wins",
}  # fmt: skip


def folder_of(spec: Any) -> str:
    """The folder of a game's code in the package."""
    return str(spec.entry_point).split(".")[2]


def games() -> list[str]:
    """The ids that can be played, sorted."""
    known = {*GAMES, *TWO_PLAYERS}
    return sorted(name for name, spec in registry().items() if folder_of(spec) in known and not _is_unshown(name))


def check_game(name: str) -> None:
    """Raises `UnknownNameError`, and `ValueError` with the reason for a game that cannot be played."""
    if name in (known := games()):
        return
    spec = registry().get(name)
    if spec is None:
        raise UnknownNameError("game of TextArena", name, known)
    reason = "it is for more than two players, or needs files that the package does not have"
    if _is_unshown(name):
        reason = "the package does not show it as text"
    raise ValueError(f"env.game={name} cannot be played: {REFUSED.get(folder_of(spec), reason)}")


def _is_unshown(name: str) -> bool:
    """Whether the package has no text of a game: -raw means lists of messages, and LightsOut has no board."""
    return name.endswith("-raw") or name == "LightsOut-v0-train"


class TextArenaTasks(SeedTasks):
    """Seeds of a game. In a game for two, the policy is the first player with even seeds, else the second."""

    def __init__(
        self,
        game: str,
        max_turns: int = MAX_TURNS,
        train_tasks: int = 1000,
        valid_tasks: int = 100,
        partner: Partner | None = None,
    ) -> None:
        """`game` is an id of the package. `partner` is the opponent in a game for two; None draws among listed moves.

        Raises as `check_game`, `ValueError` for a game whose opponent must be chosen, or that has none, and
        `ModuleNotFoundError` without the package.
        """
        check_game(game)
        folder = folder_of(registry()[game])
        self._game, self._is_same = game, folder in SAME
        self._is_for_two = folder in TWO_PLAYERS
        self._actions = TWO_PLAYERS[folder] if self._is_for_two else ACTIONS.get(folder)
        if partner and not self._is_for_two:
            raise ValueError(f"env.game={game} has one player, so it has no partner; got {partner.name}")
        if self._is_for_two and self._actions is None and partner is None:
            raise ValueError(f"env.game={game} does not list its moves, so random ones cannot be drawn; choose the "
                             "opponent with env/partner=endpoint, local or lines")  # fmt: skip
        self._partner = (partner or RandomMoves(self._actions or ())) if self._is_for_two else None
        super().__init__(ENV_ID, max_turns, train_tasks, valid_tasks)

    def payload(self, split: str, seed: int) -> dict[str, Any]:  # noqa: ARG002
        payload = {
            "type": self._game, "game": self._game, "seed": seed, "actions": self._actions,
            "textarena": version("textarena"),
        }  # fmt: skip
        if self._partner is None:
            return payload
        return payload | {"place": seed % 2, "partner": self._partner.name}

    def make(self) -> TextArenaEnv:
        """A new environment."""
        return TextArenaEnv(self.max_turns, self._partner)

    def describe(self) -> str:
        same = ", the same for every seed" if self._is_same else ""
        against = f" against {self._partner.name}" if self._partner else ""
        return f"{super().describe()}; the game {self._game}{against}{same}"
