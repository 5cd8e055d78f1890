"""Small text games: `polyturn/TextWorldExpress-v0`.

    Your task is to search the environment and find the coin.  Once you find the coin, take it.

    You are in the kitchen. In one part of the room you see a stove. …
    > open door to north
    You open the wood door, revealing the bathroom.

Played by the real engine, in a Java process for each environment. The reward is the change of the score, which may be
negative; `info["score"]` is not. `info["admissible"]` is the engine's list of valid actions.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from envs.checks import clean_text
from envs.core import BRIEF, Info
from envs.jvm import Java, Jvm, find_jar
from envs.jvm_env import LONGEST_ACTION, JavaEnv

ENV_ID = "polyturn/TextWorldExpress-v0"
MAX_TURNS = 50
MEMORY_MB = 200
ENTRY = "textworldexpress.runtime.PythonInterface"
UNKNOWN = "Unknown action."  # for longer ones
HELP = "help"  # which the reference's client answers itself, with the task
_PHRASES = [  # of descriptions, and what the brief form has in their place
    (re.compile(pattern), text)
    for pattern, text in [
        (r"You are in the ", ""),
        (r"(?:In one part of the room you see|In another part of the room you see|There is also|You also see) ", ""),
        (r", that (?:has nothing on it|is empty)", ""),
        (r"(?:Through an open [\w -]+?, to|To) the (\w+) you see the ", r"\1 "),
        (r"To the (\w+) you see a closed [\w -]+", r"\1 closed"),
        (r"\b(?:a|an|the) ", ""),
        (r"\s+", " "),
    ]
]


def engine(memory_mb: int = MEMORY_MB) -> Java:
    """The engine of the installed package. Raises `ModuleNotFoundError`, which says what to install."""
    return Java(find_jar("textworld_express", "textworld-express.jar", "textworld_express"), ENTRY, memory_mb)


def start(jvm: Jvm, payload: Mapping[str, Any], *, gold: bool = False) -> dict[str, Any]:
    """Start the game of a payload. Returns what is seen. Raises `ValueError` for parameters that the engine refuses."""
    refusal = jvm.call("load", payload["type"], payload["params"])
    if refusal:
        raise ValueError(f"TextWorldExpress refuses {payload['type']} with {payload['params']!r}: {refusal}")
    seen: dict[str, Any] = json.loads(jvm.call("generateNewGameJSON", payload["seed"], payload["fold"], gold))
    return seen


class TextWorldExpressEnv(JavaEnv):
    """Plays a game."""

    NEEDS = frozenset({"type", "params", "seed", "fold"})

    def __init__(self, max_turns: int = MAX_TURNS, memory_mb: int = MEMORY_MB, render_mode: str | None = None) -> None:
        """Raises `ModuleNotFoundError`, which says what to install, and `EngineError`."""
        super().__init__(engine(memory_mb), max_turns, render_mode)
        self._goal = ""
        self._seen: dict[str, Any] = {}

    def _begin(self, task: Any, seed: int | None) -> tuple[str, Info]:
        shown, info = super()._begin(task, seed)
        return f"{self._goal}\n\n{shown}", self._make_info() | info | {BRIEF: f"{self._goal} {brief(shown)}"}

    def _enter(self, payload: Mapping[str, Any]) -> str:
        self._seen = start(self.jvm, payload)
        self._goal = str(self.jvm.call("getTaskDescription"))
        return str(self._seen["observation"])

    def _act(self, action: str) -> tuple[str, float, bool, Info]:
        before = self._seen["score"]
        text = self._do(action)
        after = self._seen
        over = bool(after["tasksuccess"] or after["taskfailure"] or after["score"] >= 1.0)
        return text, after["score"] - before, over, self._make_info() | {BRIEF: brief(text)}

    def _play(self, action: str) -> str:
        if action == HELP or len(action) > LONGEST_ACTION:
            return self._goal if action == HELP else UNKNOWN
        self._seen = json.loads(self.jvm.call("stepJSON", clean_text(action)))
        return str(self._seen["observation"])

    def _make_info(self) -> Info:
        seen = self._seen
        success = bool(seen["tasksuccess"] or (seen["score"] >= 1.0 and not seen["taskfailure"]))
        return {
            "goal": self._goal, "admissible": sorted(seen["validActions"]), "success": success,
            "score": 1.0 if success else min(max(seen["score"], 0.0), 1.0),
            "state_key": f"{seen['look']}\n{seen['inventory']}",
        }  # fmt: skip

    @property
    def seen(self) -> Mapping[str, Any]:
        """What the engine said last."""
        return self._seen


def brief(text: str) -> str:
    """A text without the phrases that say nothing, on one line."""
    for pattern, replacement in _PHRASES:
        text = pattern.sub(replacement, text)
    return text.strip()
