"""What is kept of a batch or an evaluation: its episodes, numbers for each turn and token, and how they were computed.

    RUN/episodes/update-000010.jsonl.gz                 a batch, after the update that learned from it
    RUN/evaluations/update-000010.SPLIT.jsonl.gz        the episodes of an evaluation during training
    RUN/episodes.jsonl                                  those of scripts.evaluate, which has no numbers beside them

`read_record` reads all of them. The first line of a compressed file says what it is, and each other line is an episode:

    {"record": 1, "update": 10, "split": "train", "kind": "training", "steps": [{"name": "score", …}, …]}
    {"task": …, "turns": […], "of_turns": {"advantage": [0.1, …]}, "of_tokens": {"entropy": [[0.3, 0.2], …]}}

Prompts are left out, since their size grows with the square of the turns; `play_again` makes them again.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from agents.agent import Decision, PolicyAgent, View
from agents.episode import Episode, episode_of, episode_row, refuse_constant
from agents.rollout import Job, rollout
from envs.checks import json_line
from envs.core import TaskSet
from envs.files import whole_file
from envs.pool import EnvPool

VERSION = 1
SUFFIX = ".jsonl.gz"
TRAINING, EVALUATION = "training", "evaluation"
LEVEL = 3  # of compression: higher ones take longer and save little


@dataclass
class Record:
    """The episodes of a batch or an evaluation, with a number for each turn or token in each column.

    `of_turns["advantage"][e][t]` belongs to turn t of episode e, `of_tokens["entropy"][e][t]` is a list over its
    tokens; None stands for what was not measured. `steps` say how the advantage was computed, see
    `algorithms.estimators.steps`. Episodes that no method learned from have no columns.
    """

    episodes: list[Episode]
    kind: str = EVALUATION
    split: str = ""
    update: int | None = None
    steps: list[dict[str, Any]] = field(default_factory=list)
    of_turns: dict[str, list[list[Any]]] = field(default_factory=dict)
    of_tokens: dict[str, list[list[list[Any]]]] = field(default_factory=dict)
    is_cut: bool = False  # whether the file ends with half a line: it is being written, or its writer was killed


def write_record(path: Path, record: Record) -> None:
    """Write a record, completely or not at all. The same record gives the same bytes."""
    head = {
        "record": VERSION, "update": record.update, "split": record.split, "kind": record.kind, "steps": record.steps,
    }  # fmt: skip
    lines = [json_line(head)]
    for number, episode in enumerate(record.episodes):
        row = episode_row(episode, without_prompts=True)
        for name, columns in (("of_turns", record.of_turns), ("of_tokens", record.of_tokens)):
            row[name] = {column: values[number] for column, values in columns.items() if number < len(values)}
        lines.append(json_line(row))
    with whole_file(path) as partial:
        partial.write_bytes(gzip.compress("".join(lines).encode(), LEVEL, mtime=0))


def read_record(path: Path) -> Record:
    """Read a record, or a file of episodes alone. Half a last line is left out, and `is_cut` says so.

    Raises `ValueError` with the file, and the line that is damaged.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, OSError, zlib.error) as error:
        if isinstance(error, OSError) and not isinstance(error, gzip.BadGzipFile):
            raise
        raise ValueError(f"{path} is damaged: {error}") from error
    *lines, rest = content.split(b"\n")
    record = Record([], is_cut=bool(rest))
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line, parse_constant=refuse_constant)
            if number == 1 and "record" in row:
                _begin(record, row)
            else:
                _add(record, row)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{path}:{number}: not an episode ({error})") from error
    if record.episodes and not record.split:
        record.split = record.episodes[0].task.split
    return record


def _begin(record: Record, row: Mapping[str, Any]) -> None:
    if row["record"] != VERSION:
        raise ValueError(f"this is a record of version {row['record']}, and this polyturn reads version {VERSION}")
    record.update, record.split, record.kind = row["update"], row["split"], row["kind"]
    record.steps = list(row["steps"])


def _add(record: Record, row: dict[str, Any]) -> None:
    for name, columns in (("of_turns", record.of_turns), ("of_tokens", record.of_tokens)):
        for column, values in row.pop(name, {}).items():
            columns.setdefault(column, []).append(values)
    record.episodes.append(episode_of(row))


# -- prompts ----------------------------------------------------------------------------------------------------------
def play_again(episodes: Sequence[Episode], agent: PolicyAgent, task_set: TaskSet, pool: EnvPool) -> list[Episode]:
    """The same episodes with their `prompt_ids`: the environment plays their actions, and the agent writes the prompts.

    `agent` needs the prompter and the tokenizer of the run; its policy samples nothing. Raises `ValueError` if the
    environment answers differently now.
    """
    jobs = [Job(task_set.task(e.task.split, e.task.id), e.group, e.seed) for e in episodes]
    again = rollout(_Replayed(agent, episodes), pool, jobs, max_turns=max((len(e.turns) for e in episodes), default=1))
    for number, (old, new) in enumerate(zip(episodes, again, strict=True)):
        for turn, (before, now) in enumerate(zip(old.turns, new.turns, strict=False)):
            if before.observation != now.observation:
                raise ValueError(f"episode {number}, turn {turn}: the environment shows something else than before")
        if len(new.turns) < len(old.turns):
            ended = f"{new.stop_reason} {new.error}".strip()
            raise ValueError(f"episode {number} now ends before its turn {len(new.turns)}: {ended}")
    return [replace(new, demonstration=old.demonstration) for old, new in zip(episodes, again, strict=True)]


@dataclass
class _Replayed:
    """Repeats the actions of episodes, with the prompts that `agent` writes."""

    agent: PolicyAgent
    episodes: Sequence[Episode]

    def act(self, views: Sequence[View]) -> list[Decision]:
        decisions = []
        for view in views:
            episode, done = self.episodes[view.key], len(view.episode.turns)
            if done == len(episode.turns):
                decisions.append(Decision("", None))
                continue
            prompt = self.agent.prompt(view.episode.turns, view.observation, view.info)
            decisions.append(self.agent.repeated(episode.turns[done], prompt or []))
        return decisions

    def finish(self, key: int) -> None:
        """Nothing is kept."""
