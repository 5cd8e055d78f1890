r"""Games of GEM, a gym for language models: `polyturn/GEM-v0`.

    You are playing Guess The Number.
    You have to guess the number between 1 and 10 (inclusive) within 4 turns.
    …
    Enter your next guess.
    > \boxed{5}
    At turn 1, you guessed 5, and the target number is lower than 5.

Played by the package. It shows more text around an observation, which is part of the observation here. The reward is
the game's; a game that ends with a reward of at least 1 is won.
"""

from __future__ import annotations

from typing import Any

from envs.apart import Apart
from envs.checks import clean_text
from envs.core import Info, Task
from envs.replayed import ReplayedEnv

ENV_ID = "polyturn/GEM-v0"
MAX_TURNS = 100
LONGEST_ACTION = 1000  # characters that reach the game, which repeats them
INSTALL = "env=gem needs the package gem-llm: pip install 'polyturn[gem]' && pip install --no-deps gem-llm==0.1.0"


def registry() -> dict[str, Any]:
    """What the package has, by name. Raises `ModuleNotFoundError`, which says what to install."""
    import logging

    root = logging.getLogger()
    kept, level = list(root.handlers), root.level
    try:
        with Apart(0):
            import gem
            from gem.envs.registration import ENV_REGISTRY
    except ImportError as error:
        raise ModuleNotFoundError(f"{INSTALL} ({error})") from error
    finally:
        root.handlers[:], root.level = kept, level  # it sets up logging when it is imported
    del gem
    return dict(ENV_REGISTRY)


class GemEnv(ReplayedEnv):
    """Plays a game with a seed."""

    def __init__(self, max_turns: int = MAX_TURNS, render_mode: str | None = None) -> None:
        super().__init__(max_turns, render_mode)
        self._game: Any = None
        self._apart = Apart(0)
        self._goal = ""
        self._seen: list[str] = []

    def _begin(self, task: Any, seed: int | None) -> tuple[str, Info]:
        del seed  # a task says everything
        if not isinstance(task, Task) or not {"game", "seed"} <= set(task.payload):
            raise ValueError(f"{ENV_ID} needs a Task with the payload of GemTasks, got {task!r:.200}")
        return self._start(task.payload), self._make_info(0.0, won=False)

    def _enter(self, payload: Any) -> str:
        registry()
        self._apart = Apart(payload["seed"])
        with self._apart:
            import gem

            self._game = gem.make(payload["game"])
            text, info = self._game.reset(payload["seed"])
        self._goal = str(text)
        self._seen = [_shown(text, info)]
        return self._seen[0]

    def _act(self, action: str) -> tuple[str, float, bool, Info]:
        text, reward, over = self._do(action)
        return text, reward, over, self._make_info(reward, won=over and reward >= 1)

    def _play(self, action: str) -> tuple[str, float, bool]:
        action = clean_text(action[:LONGEST_ACTION])
        with self._apart:
            text, reward, terminated, truncated, info = self._game.step(action)
        self._seen += [action, _shown(text, info)]
        return self._seen[-1], float(reward), bool(terminated or truncated)

    def _make_info(self, reward: float, *, won: bool) -> Info:
        score = 1.0 if won else min(max(reward, 0.0), 1.0)
        return {"goal": self._goal, "success": won, "score": score, "state_key": "\n".join(self._seen)}


def _shown(text: Any, info: dict[str, Any]) -> str:
    """An observation with what the package's own wrappers put around it."""
    return "\n".join(str(part) for part in (info.get("prefix"), text, info.get("suffix")) if part)
