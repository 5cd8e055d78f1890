"""A game of the package `textarena`, apart from everything else in the process.

The package draws from Python's global generator while it plays. Here each game has its own state of that generator. A
second `reset` of the package's object would keep the old observations, so a game is always a new object.
"""

from __future__ import annotations

from typing import Any

from envs.apart import Apart

INSTALL = "env=textarena needs the package textarena: pip install 'polyturn[textarena]'"
_INVALID = "Invalid Move: "  # how the reason of a game begins that an invalid move has ended


def registry() -> dict[str, Any]:
    """The package's games by id. Raises `ModuleNotFoundError`, which says what to install.

    The package draws random numbers when it is imported.
    """
    try:
        with Apart(0):
            from textarena.envs.registration import ENV_REGISTRY
    except ImportError as error:
        raise ModuleNotFoundError(f"{INSTALL} ({error})") from error
    return dict(ENV_REGISTRY)


class Game:
    """One game, from its first observation to its end."""

    def __init__(self, env_id: str, seed: int, players: int = 1) -> None:
        """Raises whatever the package raises for a game that it cannot make."""
        registry()
        import textarena

        self._board = textarena.ObservationType.GAME_BOARD
        self._apart = Apart(seed)
        with self._apart:
            self._env = textarena.make(env_id)
            self._env.reset(num_players=players, seed=seed)
        state = self.state
        if not hasattr(state, "set_winners"):  # FifteenPuzzle calls it when it is solved
            state.set_winners = lambda player_ids, reason: state.set_outcome(1.0, reason)  # noqa: ARG005
        self.said = ""  # the last action, as it stands in the observation
        self.board = ""  # that was shown last

    @property
    def state(self) -> Any:
        """The package's `State`."""
        return self._env.state

    @property
    def player(self) -> int:
        """Whose turn it is."""
        return int(self.state.current_player_id)

    def look(self) -> tuple[int, str]:
        """Whose turn it is, and the observation of that player."""
        for _, message, kind in self.state.observations.get(self.state.current_player_id, ()):
            if kind == self._board:
                self.board = str(message)
        player, text = self._env.get_observation()
        return player, text

    def step(self, action: str) -> bool:
        """Play an action. Returns whether the game is over."""
        before = len(self.state.logs)
        with self._apart:
            over, _ = self._env.step(action)
        self.said = str(next((message for _, message in self.state.logs[before:]), ""))
        return bool(over)

    def result(self) -> tuple[dict[int, Any], dict[int, dict[str, Any]]]:
        """The rewards and the `game_info` of all players, at the end."""
        rewards, game_info = self._env.close()
        return rewards, game_info

    def outcome(self, player: int = 0) -> tuple[float, bool, str]:
        """The reward of a player at the end, whether its own invalid move has ended the game, and the reason."""
        rewards, game_info = self.result()
        reward, reason = rewards[player], str(game_info[player]["reason"])
        if isinstance(reward, str):  # some games give an invalid move its reward and its reason the wrong way round
            reward, reason = reason.removeprefix(_INVALID), _INVALID + reward
        return float(reward), bool(game_info[player]["invalid_move"]), reason
