"""Experiments in a house with a laboratory: `polyturn/ScienceWorld-v0`.

    Your task is to find a(n) living thing. First, focus on the thing. Then, move it to the red box in the kitchen.

    This room is called the hallway. In it, you see: …
    > open door to kitchen
    The door is now open.

Played by the real engine, in a Java process for each environment. An episode ends at 100 points, which is a success, or
at a negative score; looking costs a turn like everything else. The reward is the change of the score, in hundredths.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from envs.checks import clean_text
from envs.core import BRIEF, Info
from envs.jvm import Java, Jvm, find_jar
from envs.jvm_env import LONGEST_ACTION, JavaEnv

ENV_ID = "polyturn/ScienceWorld-v0"
MAX_TURNS = 100
MEMORY_MB = 300
ENTRY = "scienceworld.runtime.pythonapi.PythonInterface"
FULL = 100  # points
NO_MATCH = "No known action matches that input."  # what the engine says
_UNSEEN = ("the agent", "a substance called air")  # which are everywhere
_PHRASES = [  # of the lines of a description, and what the brief form has in their place
    (re.compile(pattern), text)
    for pattern, text in [
        (r"^This (?:room|outside location) is called the (.*?)\. .* you see:$", r"\1:"),
        (r"^You also see:$", "|"),
        (r"^A door to the (.*) \(that is (\w+)\)$", r"to \1 \2"),
        (r"^(?:a substance called|a|an|the) ", ""),
    ]
]


def engine(memory_mb: int = MEMORY_MB) -> Java:
    """The engine of the installed package. Raises `ModuleNotFoundError`, which says what to install."""
    return Java(find_jar("scienceworld", "scienceworld.jar", "scienceworld"), ENTRY, memory_mb)


def load(jvm: Jvm, payload: Mapping[str, Any], *, gold: bool = False) -> None:
    """Load the variation of a payload; `gold`: with its gold path, which takes 0.1 to 10 seconds more."""
    jvm.call("load", payload["type"], payload["variation"], payload["simplification"], gold)
    jvm.call("reset")


class ScienceWorldEnv(JavaEnv):
    """Plays a variation of a task."""

    NEEDS = frozenset({"type", "variation", "simplification"})

    def __init__(
        self,
        max_turns: int = MAX_TURNS,
        admissible: bool = False,
        memory_mb: int = MEMORY_MB,
        render_mode: str | None = None,
    ) -> None:
        """With `admissible`, `info` lists what the engine calls valid. Raises `ModuleNotFoundError`, `EngineError`."""
        super().__init__(engine(memory_mb), max_turns, render_mode)
        self._lists = admissible
        self._goal = ""
        self._points = 0

    def _begin(self, task: Any, seed: int | None) -> tuple[str, Info]:
        look, info = super()._begin(task, seed)
        return f"{self._goal}\n\n{look}", self._make_info() | info | {BRIEF: f"{self._goal} {brief(look)}"}

    def _enter(self, payload: Mapping[str, Any]) -> str:
        load(self.jvm, payload)
        self._goal = str(self.jvm.call("getTaskDescription"))
        return self._play("look around")

    def _act(self, action: str) -> tuple[str, float, bool, Info]:
        before = self._points
        text = self._do(action)
        over = bool(self.jvm.call("getCompleted")) or not 0 <= self._points < FULL
        return text, (self._points - before) / FULL, over, self._make_info() | {BRIEF: brief(text)}

    def _play(self, action: str) -> str:
        if len(action) > LONGEST_ACTION:
            return NO_MATCH
        text = str(self.jvm.call("step", clean_text(action)))
        self._points = round(FULL * self.jvm.call("getScore"))
        return text

    def _make_info(self) -> Info:
        points = self._points
        info: Info = {"goal": self._goal, "score": max(points, 0) / FULL, "success": points >= FULL, "points": points}
        if self._lists:
            info["admissible"] = sorted(set(self.jvm.texts("getValidActionObjectCombinations")))
        return info


def brief(text: str) -> str:
    """A text on one line, without the phrases that say nothing."""
    lines = [line for line in map(str.strip, text.split("\n")) if line and line not in _UNSEEN]
    for pattern, replacement in _PHRASES:
        lines = [pattern.sub(replacement, line) for line in lines]
    return ", ".join(lines).replace(":, ", ": ").replace(", |, ", " | ")
