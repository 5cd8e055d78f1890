"""Turns and episodes: the result of a rollout, as plain data that can be written, read and trained on."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from envs.checks import json_line, plain
from envs.core import Info, StopReason, Task

if TYPE_CHECKING:
    from agents.masking import Node


class ParseStatus(StrEnum):
    """How the agent's text was parsed. It is kept apart from the reward."""

    OK = "ok"  # an action was read, and it is admissible (or the environment lists no admissible actions)
    MALFORMED = "malformed"  # no action could be read from the text
    ILLEGAL = "illegal"  # an action was read, but it is not among the admissible ones
    TRUNCATED = "truncated"  # the text hit the token limit before its end


@dataclass(frozen=True)
class Choice:
    """The candidates of an action, for agents that score whole actions: K of them, the chosen one first."""

    ids: list[list[int]]  # [K] each candidate as a completion
    lengths: list[int]  # [K] the divisors of their log-probabilities


_IN_MEMORY = ("choice", "nodes", "start")  # fields of a turn that are never written


@dataclass
class Turn:
    """One observation and the answer to it.

    `prompt_ids` are the ids that the policy saw, `completion_ids` the ids that it sampled and `logprobs` their
    log-probabilities (nats) under the sampling distribution; all three are empty for agents without tokens. With a
    `choice` the action was sampled as a whole, and `logprobs` has one entry.

    Example: `Turn(observation="You arrive at desk 1. On the desk 1, you see a mug 2.", action="take mug 2 from
    desk 1", reward=0.0, state_key="You arrive …", status="ok", prompt_ids=[2, 17, …], completion_ids=[40, 91, 12,
    77, 3], logprobs=[-0.1, -0.7, -0.0, -0.0, -0.0])`.
    """

    observation: str
    action: str
    reward: float  # the environment's reward for this action
    state_key: str  # equal keys = equal states: the anchor of anchor-state methods
    status: ParseStatus = ParseStatus.OK
    prompt_ids: list[int] = field(default_factory=list)  # [P]
    completion_ids: list[int] = field(default_factory=list)  # [C]
    logprobs: list[float] = field(default_factory=list)  # [C], with a choice [1]
    turn_reward: float | None = None  # a separate reward from a rule of the environment; None if it has no such rule
    tool_result: bool | None = None  # whether a tool gave a result; None where the environment does not say
    advantage: float | None = None  # set by training
    # For training, and for rollouts that keep the state before each turn. These are never written, printed or compared.
    choice: Choice | None = field(default=None, repr=False, compare=False)
    nodes: list[Node] = field(default_factory=list, repr=False, compare=False)  # [C] what was allowed at each id
    start: Start | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Start:
    """A state in the middle of an episode from which other episodes can start. They share the `turns` before it."""

    turns: tuple[Turn, ...]
    observation: str
    info: Info
    snapshot: Any


@dataclass
class Episode:
    """One attempt at one task: its turns, how it ended, and its score.

    `group` numbers the attempts with the same task and start; group-relative methods compare these. `score` is in
    [0, 1] and `success` comes from the environment. `error` holds the traceback if an error ended the episode.
    `answers` are the accepted answers, if the environment has a question and reveals them.
    `demonstration` marks episodes that an expert played for the policy to learn from; their `logprobs` are 0.
    """

    task: Task
    group: int
    turns: list[Turn] = field(default_factory=list)
    final_observation: str = ""
    goal: str = ""
    stop_reason: StopReason | None = None
    score: float = 0.0
    success: bool = False
    answers: list[str] | None = None
    policy_version: int = 0
    seed: int = 0
    error: str = ""
    demonstration: bool = False
    # The info of the final observation; not written to files.
    final_info: Info = field(default_factory=dict, repr=False, compare=False)

    @property
    def total_reward(self) -> float:
        """The sum of the environment's rewards, undiscounted."""
        return sum(turn.reward for turn in self.turns)

    @property
    def is_faulty(self) -> bool:
        """Whether a fault of the environment ended the episode, so its outcome must not be learned from."""
        return self.stop_reason is not None and self.stop_reason.is_fault


def write_episodes(path: Path, episodes: Iterable[Episode], append: bool = False) -> None:
    """Write episodes as standard JSON, one episode a line. Choices, nodes, starts and infos stay in memory."""
    with path.open("a" if append else "w", encoding="utf-8") as file:
        for episode in episodes:
            file.write(json_line(episode_row(episode)))


def episode_row(episode: Episode, *, without_prompts: bool = False) -> dict[str, Any]:
    """The episode as plain data for a line of JSON."""
    row = {name: value for name, value in vars(episode).items() if name != "final_info"}
    if not episode.demonstration:  # few runs have any
        del row["demonstration"]
    row["task"] = {**vars(episode.task), "payload": _payload(episode.task)}
    left_out = (*_IN_MEMORY, "prompt_ids") if without_prompts else _IN_MEMORY
    row["turns"] = [{k: value for k, value in vars(turn).items() if k not in left_out} for turn in episode.turns]
    return row


def _payload(task: Task) -> dict[str, Any]:
    """The payload as JSON for people to read; values that JSON cannot hold appear as their `repr`."""
    payload: dict[str, Any] = {}
    name = str if len(set(map(str, task.payload))) == len(task.payload) else repr  # 1 and "1" are two keys
    for key, value in task.payload.items():
        try:
            payload[name(key)] = plain(value, f"payload[{key!r}]")
        except (TypeError, ValueError):
            payload[name(key)] = repr(value)
    return payload


def read_episodes(path: Path) -> Iterator[Episode]:
    """Read what `write_episodes` wrote. Raises `ValueError` with the line number of a line that is not an episode."""
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield episode_of(json.loads(line, parse_constant=refuse_constant))
            except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{path}:{number}: not an episode ({error})") from error


def refuse_constant(constant: str) -> None:
    """For `json.loads`: NaN and infinity are not JSON."""
    raise ValueError(f"{constant} is not valid in JSON")


def episode_of(row: dict[str, Any]) -> Episode:
    """The inverse of `episode_row`. Raises `KeyError`, `TypeError` or `ValueError` for other data."""
    row["task"] = Task(**row["task"])
    row["turns"] = [Turn(**{**turn, "status": ParseStatus(turn["status"])}) for turn in row["turns"]]
    row["stop_reason"] = StopReason(row["stop_reason"]) if row["stop_reason"] is not None else None
    return Episode(**row)
