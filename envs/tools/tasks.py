"""The tasks of tool use.

tasks = ToolTasks()                       # generated questions, without any data
tasks = ToolTasks(format="tags")          # the same ones, called in another format
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib import import_module
from typing import Any

from envs.core import Expert, Manifest, Task, UnknownNameError, counted, find_task, hash_tasks
from envs.search.generate import VERSION as WORLD_VERSION
from envs.search.generate import World, embedded_world
from envs.search.polyturn import TOP_K
from envs.search.retrieval import RetrieverSpec, open_retriever
from envs.tools.calls import FORMATS
from envs.tools.env import ENV_ID, ToolsEnv
from envs.tools.expert import ToolsExpert
from envs.tools.generate import SPLITS, VERSION, Question, Surroundings, draw
from envs.tools.tool import Limits

EMBEDDED = "embedded"
# Sets of tasks: a class that is called with `Sizes`, as module:name, so that only the one in use is imported.
SETS = {EMBEDDED: "envs.tools.tasks:EmbeddedSet", "bfcl": "envs.tools.bfcl_tasks:BfclSet"}


@dataclass(frozen=True)
class Sizes:
    """How much is generated."""

    people: int = 480  # of the world that passages tell of
    train: int = 3000  # tasks
    valid: int = 300  # tasks of each other split


class QuestionSet(ABC):
    """A set of tasks: payloads by split and id. `envs.tools.env` says what a payload has."""

    # Where the options name none:
    format = "brackets"
    max_turns = 10
    output = 4000  # characters of a result
    eval_splits: Sequence[str] = ()  # for evaluation by default; empty: all but the first
    official_counts: Mapping[str, int] = {}  # of published splits

    @property
    @abstractmethod
    def splits(self) -> Sequence[str]:
        """Names of the splits; the first is the one to train on."""

    @abstractmethod
    def payloads(self, split: str) -> Mapping[str, Mapping[str, Any]]:
        """The payloads of a split by id."""

    @abstractmethod
    def describe(self) -> str:
        """Where the tasks come from."""

    def facts(self) -> dict[str, Any]:
        """What tasks depend on beyond their payloads, as plain data: it is part of manifests."""
        return {}

    def expert(self, format: str) -> Expert | None:  # noqa: A002, ARG002
        """A scripted expert that writes calls in this format; None if there is none."""
        return None


class EmbeddedSet(QuestionSet):
    """The questions of `envs.tools.generate`."""

    eval_splits = ("valid",)

    def __init__(self, sizes: Sizes) -> None:
        """Raises `ImportError`, which says what to install, without the sandbox of the tool `python`."""
        import_module("envs.tools.sandbox")  # otherwise every reset would raise it
        self._sizes = sizes
        self._drawn: dict[str, dict[str, dict[str, Any]]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Without the world: a worker opens it itself."""
        return {"_sizes": self._sizes, "_drawn": {}}

    @property
    def splits(self) -> Sequence[str]:
        return tuple(SPLITS)

    def payloads(self, split: str) -> Mapping[str, Mapping[str, Any]]:
        if split not in self._drawn:
            drawn = [self._payload(*one) for one in draw(split, self._count(split), self._around)]
            self._drawn[split] = {f"{split}-{_name(payload)}": payload for payload in drawn}
        return self._drawn[split]

    def describe(self) -> str:
        counts = ", ".join(f"{counted(self._count(split), 'question')} in {split}" for split in self.splits)
        return f"generated: {counts}, over a world of {self._sizes.people} people"

    def facts(self) -> dict[str, Any]:
        index = open_retriever(self._spec).facts()
        return {"retrieval": index, "world_version": WORLD_VERSION, "questions_version": VERSION}

    def expert(self, format: str) -> Expert | None:  # noqa: A002
        return ToolsExpert(format)

    def _count(self, split: str) -> int:
        return self._sizes.train if split == "train" else self._sizes.valid

    def _payload(self, kind: str, question: Question) -> dict[str, Any]:
        payload: dict[str, Any] = {
            "scenario": "questions", "type": kind, "question": question.text, "answers": [question.answer],
            "needed": list(question.needed), "least_calls": question.least_calls, "named": True,
        }  # fmt: skip
        if question.tables is not None:
            payload["tables"] = question.tables
        if question.searches:
            payload["corpus"] = str(self._world.corpus)
        if question.notes is not None:
            payload["notes"] = list(question.notes)
        return payload

    @cached_property
    def _world(self) -> World:
        return embedded_world(self._sizes.people)

    @property
    def _spec(self) -> RetrieverSpec:
        return RetrieverSpec(corpus=self._world.corpus)

    @cached_property
    def _around(self) -> Surroundings:
        return Surroundings(self._world, lru_cache(maxsize=None)(self._find))

    def _find(self, query: str) -> frozenset[str]:
        [hits] = open_retriever(self._spec).search([query], TOP_K)
        return frozenset(hit.passage.id for hit in hits)


class ToolTasks:
    """Tasks that need tools as a `TaskSet`. They are drawn or read when they are first requested."""

    def __init__(
        self,
        questions: str = EMBEDDED,
        format: str | None = None,  # noqa: A002
        max_turns: int | None = None,
        call_seconds: float = 2.0,
        output: int | None = None,
        embedded_people: int = 480,
        train_tasks: int = 3000,
        valid_tasks: int = 300,
    ) -> None:
        """`questions` is one of `SETS`, `format` one of `envs.tools.calls.FORMATS`.

        A call may take `call_seconds`, and `output` characters of its result are shown. Format, turns and output
        default to the set's. Raises `UnknownNameError`, `ValueError`, and the errors of the set.
        """
        for kind, name, known in (("set of questions", questions, SETS), ("format", format, FORMATS)):
            if name is not None and name not in known:
                raise UnknownNameError(kind, name, known)
        limits = {"train_tasks": train_tasks, "valid_tasks": valid_tasks, "max_turns": max_turns, "output": output}
        if any(limit is not None and limit < 1 for limit in limits.values()) or call_seconds <= 0:
            raise ValueError(f"sizes and limits must be at least 1, got {limits} and call_seconds={call_seconds}")
        module, _, name = SETS[questions].partition(":")
        sizes = Sizes(embedded_people, train_tasks, valid_tasks)
        self._set: QuestionSet = getattr(import_module(module), name)(sizes)
        self._format, self._max_turns = format or self._set.format, max_turns
        self._limits = Limits(seconds=call_seconds, output=output or self._set.output)
        self._manifests: dict[str, Manifest] = {}

    @property
    def env_id(self) -> str:
        return ENV_ID

    @property
    def format(self) -> str:
        """How calls are written: a name of `envs.tools.calls.FORMATS`."""
        return self._format

    @property
    def splits(self) -> Sequence[str]:
        return self._set.splits

    @property
    def eval_splits(self) -> Sequence[str]:
        """Of the generated questions `valid`; the others are asked for by name."""
        return self._set.eval_splits or self.splits[1:] or self.splits

    @property
    def max_turns(self) -> int:
        return self._max_turns or self._set.max_turns

    def manifest(self, split: str) -> Manifest:
        """The tasks of a split; the hash covers the tasks, the format and the limits of a call."""
        if split not in self._manifests:
            payloads = self._payloads(split)
            about = {**self._set.facts(), "format": self._format, "limits": vars(self._limits)}
            contents = ((name, _line({**payload, "about": about})) for name, payload in payloads.items())
            self._manifests[split] = Manifest(
                ENV_ID, split, tuple(sorted(payloads)), hash_tasks(contents), self._set.official_counts.get(split)
            )
        return self._manifests[split]

    def task(self, split: str, task_id: str) -> Task:
        return find_task(ENV_ID, split, task_id, self._payloads(split))

    def make(self) -> ToolsEnv:
        """A new environment."""
        return ToolsEnv(self._format, self.max_turns, self._limits)

    def expert(self) -> Expert | None:
        """None for sets that have none."""
        return self._set.expert(self._format)

    def describe(self) -> str:
        return (
            f"{ENV_ID}: {self._set.describe()}; calls as {self._format}, at most {counted(self.max_turns, 'turn')}, "
            f"{self._limits.seconds:g} s a call"
        )

    def facts(self) -> dict[str, Any]:
        """See `envs.facts.environment_facts`."""
        return {**self._set.facts(), "format": self._format}

    def _payloads(self, split: str) -> Mapping[str, Mapping[str, Any]]:
        if split not in self.splits:
            raise UnknownNameError(f"split of {ENV_ID}", split, self.splits)
        return self._set.payloads(split)


def _name(payload: Mapping[str, Any]) -> str:
    return hashlib.sha256(_line(payload)).hexdigest()[:10]


def _line(payload: Mapping[str, Any]) -> bytes:
    return json.dumps(payload, sort_keys=True).encode()
