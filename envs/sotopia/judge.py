"""A language model rates a conversation in the seven dimensions of SOTOPIA (Zhou et al., arXiv 2310.11667).

Descriptions and ranges, in `dimensions.json`, are those of `SotopiaDimensions` (sotopia-lab/sotopia @ a0aaafb, MIT).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Protocol

from envs.services import Service, ServiceError


@dataclass(frozen=True)
class Dimension:
    """What is rated, and the range of its score."""

    low: int
    high: int
    text: str


DIMENSIONS = {
    name: Dimension(**fields)
    for name, fields in json.loads((resources.files("envs.sotopia") / "dimensions.json").read_text("utf-8")).items()
}
GOAL = "goal"
AGENTS = ("agent_1", "agent_2")


class JudgeModel(Protocol):
    """The model of a judge: the contract of `algorithms.signals.judge.Model`."""

    name: str

    def answers(self, prompts: Sequence[str], sampling: Any, seed: int) -> list[str | None]:
        """The answer to each prompt, or None if it was cut off or refused."""


class Judge:
    """Rates both people of a conversation with one question."""

    def __init__(self, model: JudgeModel, sampling: Any, seed: int = 0) -> None:
        """`sampling` is an `agents.policies.base.Sampling`; the reference's temperature is 0."""
        self.name = model.name
        self._model, self._sampling, self._seed = model, sampling, seed
        self._service = Service(f"the judge {self.name}")

    def rate(self, background: str, history: str) -> tuple[dict[str, int], dict[str, int]]:
        """The scores of the first and of the second person.

        Raises `ServiceError` if the judge gives no readable answer, which ends the episode, and `NoDataError` if this
        happens too often in a row.
        """
        with self._service.call():
            try:
                [answer] = self._model.answers([write_prompt(background, history)], self._sampling, self._seed)
            except OSError as error:  # of an endpoint
                raise ServiceError(f"the judge {self.name}: {error}") from error
            if answer is None:
                raise ServiceError(f"the judge {self.name} did not finish its answer (env.judge.sampling.max_tokens)")
            try:
                return read_scores(answer)
            except ValueError as error:
                raise ServiceError(f"the judge {self.name} gave scores that cannot be read: {error}") from error


def write_prompt(background: str, history: str) -> str:
    """The question: background, turns, and the form of the answer."""
    described = "\n".join(f"- {name}: {dimension.text}" for name, dimension in DIMENSIONS.items())
    form = {name: ["<reasoning>", "<score>"] for name in DIMENSIONS}
    return (
        f"{background}\n{history}\n\n"
        "Based on previous interactions, evaluate how well participants achieve their goals.\n"
        f"The dimensions are:\n{described}\n"
        "Please follow the format: a JSON object with the reasoning and the integer score of each dimension, for the "
        f"first and the second participant:\n{json.dumps(dict.fromkeys(AGENTS, form))}"
    )


def read_scores(text: str) -> tuple[dict[str, int], dict[str, int]]:
    """The scores in an answer. Raises `ValueError` that says what is missing, or out of its range."""
    start, end = text.find("{"), text.rfind("}")
    if start < 0:
        raise ValueError(f"there is no JSON object in {text[:100]!r}")
    try:
        read = json.loads(text[start : end + 1])
    except RecursionError as error:
        raise ValueError("the JSON object is too deep") from error
    first, second = (_scores(read, agent) for agent in AGENTS)
    return first, second


def _scores(read: Mapping[str, Any], agent: str) -> dict[str, int]:
    scores = {}
    for name, dimension in DIMENSIONS.items():
        try:
            given = read[agent][name]
            score = given["score"] if isinstance(given, dict) else given[1]
        except (KeyError, IndexError, TypeError) as error:
            raise ValueError(f"{agent} has no {name}: [reasoning, score]") from error
        if type(score) is not int or not dimension.low <= score <= dimension.high:
            raise ValueError(f"{name} of {agent} must be an integer from {dimension.low} to {dimension.high}, "
                             f"got {score!r:.40}")  # fmt: skip
        scores[name] = score
    return scores


def overall(scores: Mapping[str, int]) -> float:
    """The plain mean of the seven scores, as in the reference."""
    return sum(scores.values()) / len(scores)
