"""Questions with one answer, generated and graded by reasoning-gym: `polyturn/ReasoningGym-v0`.

    State the final answer to the following arithmetic problem: 4 + 3 =
    > 7
    Score: 1

An episode is one turn. The reward is the score that the package gives the answer; 1 is a success.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from envs.apart import Apart
from envs.checks import clean_text
from envs.core import Info, Task, TextEnv

ENV_ID = "polyturn/ReasoningGym-v0"
LONGEST_ANSWER = 10_000  # characters that are graded
INSTALL = "env=reasoning_gym needs the package reasoning-gym: pip install 'polyturn[reasoning_gym]'"


def datasets() -> dict[str, Any]:
    """The package's datasets and their configurations, by name.

    Raises `ModuleNotFoundError`, which says what to install. The package draws random numbers when it is imported.
    """
    try:
        with Apart(0):
            from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise ModuleNotFoundError(f"{INSTALL} ({error})") from error
    return dict(DATASETS)


@lru_cache(maxsize=8)
def _dataset(name: str, config: str) -> Any:
    dataset_class, config_class = datasets()[name]
    with Apart(0):
        return dataset_class(config=config_class(**json.loads(config)))


def load(payload: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The dataset of a task and its entry, with `question` and `answer`."""
    dataset = _dataset(payload["type"], json.dumps(payload["config"], sort_keys=True))
    with Apart(payload["number"]):
        return dataset, dict(dataset[payload["number"]])


class ReasoningGymEnv(TextEnv):
    """Asks one question."""

    def __init__(self, max_turns: int = 1, render_mode: str | None = None) -> None:
        super().__init__(max_turns, render_mode)
        self._payload: Any = None
        self._dataset: Any = None
        self._entry: dict[str, Any] = {}

    def _begin(self, task: Any, seed: int | None) -> tuple[str, Info]:
        del seed  # a task says everything
        if not isinstance(task, Task) or not {"type", "config", "number"} <= set(task.payload):
            raise ValueError(f"{ENV_ID} needs a Task with the payload of ReasoningGymTasks, got {task!r:.200}")
        self._load(task.payload)
        return self._entry["question"], self._make_info(0.0) | {"game": dict(task.payload)}

    def _act(self, action: str) -> tuple[str, float, bool, Info]:
        score = self._grade(clean_text(action[:LONGEST_ANSWER]).strip())
        return f"Score: {score:g}", score, True, self._make_info(score)

    def _grade(self, answer: str) -> float:
        """The package's score, at least 0 and at most 1; an answer on which its grader fails has 0."""
        try:
            with Apart(0):
                score = float(self._dataset.score_answer(answer, self._entry))
        except Exception:  # graders parse the answer, each in its own way
            return 0.0
        return min(max(score, 0.0), 1.0) if math.isfinite(score) else 0.0

    def _make_info(self, score: float) -> Info:
        answer = self._entry["answer"]
        return {
            "goal": self._entry["question"], "score": score, "success": score == 1,
            "answers": [answer] if isinstance(answer, str) else None,
        }  # fmt: skip

    def _save(self) -> Any:
        return self._payload

    def _load(self, saved: Any) -> None:
        self._payload = saved
        self._dataset, self._entry = load(saved)
