"""What a rollout leaves behind: turns and episodes, as plain data that can be written, read and trained on."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from envs.checks import json_line, plain
from envs.core import Info, StopReason, Task

if TYPE_CHECKING:
    from agents.masking import Node


class ParseStatus(StrEnum):
    """What became of the text that the agent produced. It is kept apart from the reward."""

    OK = "ok"  # an action was read, and the environment knows it (or does not say what it knows)
    MALFORMED = "malformed"  # no action could be read from the text
    ILLEGAL = "illegal"  # an action was read, but it is not among the admissible ones
    TRUNCATED = "truncated"  # the text hit the token limit before its end


@dataclass(frozen=True)
class Choice:
    """What an action was chosen among, by agents that score whole actions: K candidates, the chosen one first."""

    ids: list[list[int]]  # [K] the completion that each would be
    lengths: list[int]  # [K] by which its log-probability is divided


@dataclass
class Turn:
    """One observation and the answer to it.

    `prompt_ids` are all the ids the policy saw, `completion_ids` the ids that it sampled and `logprobs` their
    log-probabilities (nats) under the sampling distribution; the three are empty for agents without tokens. With a
    `choice` the action was sampled as a whole, and its log-probability is the only one.

    Example: `Turn(observation="You arrive at desk 1. On the desk 1, you see a mug 2.", action="take mug 2 from
    desk 1", reward=0.0, state_key="You arrive …", status="ok", prompt_ids=[2, 17, …], completion_ids=[40, 91, 12,
    77, 3], logprobs=[-0.1, -0.7, -0.0, -0.0, -0.0])`.
    """

    observation: str
    action: str
    reward: float  # what the environment paid for this action
    state_key: str  # equal keys = equal states: the anchor of anchor-state methods
    status: ParseStatus = ParseStatus.OK
    prompt_ids: list[int] = field(default_factory=list)  # [P]
    completion_ids: list[int] = field(default_factory=list)  # [C]
    logprobs: list[float] = field(default_factory=list)  # [C], with a choice [1]
    turn_reward: float | None = None  # what a rule of the environment paid beside it; None where it has none
    tool_result: bool | None = None  # whether a tool gave a result; None where the environment does not say
    advantage: float | None = None  # what training gave it
    # What training needs, and the state it was taken in where the rollout was asked to keep it: never written, printed
    # or compared.
    choice: Choice | None = field(default=None, repr=False, compare=False)
    nodes: list[Node] = field(default_factory=list, repr=False, compare=False)  # [C] what each id was sampled among
    start: Start | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Start:
    """A place in the middle of an episode, where others can begin. They share `turns`, which were played before it."""

    turns: tuple[Turn, ...]
    observation: str
    info: Info
    snapshot: Any


@dataclass
class Episode:
    """One attempt at one task: its turns, how it ended, and what it was worth.

    `group` numbers the attempts that share a task and a start, which group-relative methods compare. `score` is in
    [0, 1]; `success` is what the environment said; `error` holds the traceback where it ended by one. `answers` are the
    right ones, any of them, where the environment has a question and tells.
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
    # What came with the final observation; it stays in memory.
    final_info: Info = field(default_factory=dict, repr=False, compare=False)

    @property
    def total_reward(self) -> float:
        """The sum of the environment's rewards, undiscounted."""
        return sum(turn.reward for turn in self.turns)

    @property
    def is_faulty(self) -> bool:
        """Whether a fault of the environment ended it, so that nothing can be learnt from its outcome."""
        return self.stop_reason is not None and self.stop_reason.is_fault


def write_episodes(path: Path, episodes: Iterable[Episode], append: bool = False) -> None:
    """Write episodes as standard JSON, one episode a line. Choices, nodes, starts and infos stay in memory."""
    with path.open("a" if append else "w", encoding="utf-8") as file:
        for episode in episodes:
            turns = [replace(turn, choice=None, nodes=[], start=None) for turn in episode.turns]
            task = replace(episode.task, payload=_payload(episode.task))
            row = asdict(replace(episode, task=task, turns=turns, final_info={}))
            del row["final_info"]
            for turn in row["turns"]:
                del turn["choice"], turn["nodes"], turn["start"]
            file.write(json_line(row))


def _payload(task: Task) -> dict[str, Any]:
    """The payload as JSON has it, to be read by people; what is no data is shown by its `repr`."""
    payload: dict[str, Any] = {}
    name = str if len(set(map(str, task.payload))) == len(task.payload) else repr  # 1 and "1" are two keys
    for key, value in task.payload.items():
        try:
            payload[name(key)] = plain(value, f"payload[{key!r}]")
        except (TypeError, ValueError):
            payload[name(key)] = repr(value)
    return payload


def read_episodes(path: Path) -> Iterator[Episode]:
    """Read what `write_episodes` wrote. Raises `ValueError` naming the line that is no episode."""
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield _episode(json.loads(line, parse_constant=_refuse))
            except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{path}:{number}: not an episode ({error})") from error


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number of JSON")


def _episode(row: dict[str, Any]) -> Episode:
    row["task"] = Task(**row["task"])
    row["turns"] = [Turn(**{**turn, "status": ParseStatus(turn["status"])}) for turn in row["turns"]]
    row["stop_reason"] = StopReason(row["stop_reason"]) if row["stop_reason"] is not None else None
    return Episode(**row)
