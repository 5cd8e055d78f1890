"""The tasks of search: questions with right answers, and the corpus they are asked about.

    tasks = SearchTasks()                                  # the generated world, without any data
    tasks = SearchTasks(questions="hotpotqa.jsonl", corpus="wiki.jsonl")

A question file has one JSON object a line. The fields of the usual sets are understood: `question`; `answers`,
`answer` or `golden_answers`, a text or a list (IGPO's sets separate several by `<|answer_split|>`); `id`; `split`;
`gold_titles`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from envs.core import Expert, Manifest, NoDataError, Task, UnknownNameError, counted, data_root, find_task, hash_tasks
from envs.search.corpus import read_row
from envs.search.dialogue import PROTOCOLS
from envs.search.env import ENV_ID, SearchEnv
from envs.search.expert import SearchExpert
from envs.search.generate import SPLITS, VERSION, Question, World, embedded_world
from envs.search.igpo import SPLIT as ANSWER_SPLIT
from envs.search.retrieval import RETRIEVERS, Retriever, RetrieverSpec, open_retriever

EMBEDDED = "embedded"
DOWNLOAD = "python -m scripts.download search"


class QuestionsError(ValueError):
    """A file that has no questions. The message names the line and what was expected."""


class SearchTasks:
    """Questions as a `TaskSet`. Corpus and index are opened when the first task is requested."""

    def __init__(
        self,
        questions: str = EMBEDDED,
        corpus: str | os.PathLike[str] | None = None,
        retriever: str = "bm25",
        protocol: str = "polyturn",
        top_k: int | None = None,
        max_turns: int | None = None,
        data: str | os.PathLike[str] | None = None,
        embedded_people: int = 480,
        train_tasks: int = 3000,
        valid_tasks: int = 300,
        model: str | None = None,
        url: str | None = None,
        wire: str = "search_r1",
    ) -> None:
        """`questions` is "embedded", or a file, also one in `data/qa`; so is `corpus`, which they then need.

        With `data` None, that is `envs.core.data_root()`. `retriever` is one of `RETRIEVERS`: `model` is for dense and
        hybrid, `url` and `wire` for remote. Turns and `top_k` default to the protocol's. The other sizes are those of
        the generated world and of its splits. Raises `UnknownNameError`, `ValueError`, and `NoDataError` for a file
        that does not exist.
        """
        for kind, name, known in (("protocol", protocol, PROTOCOLS), ("retriever", retriever, RETRIEVERS)):
            if name not in known:
                raise UnknownNameError(kind, name, known)
        limits = {"train_tasks": train_tasks, "valid_tasks": valid_tasks, "top_k": top_k, "max_turns": max_turns}
        if any(limit is not None and limit < 1 for limit in limits.values()):
            raise ValueError(f"sizes and limits must be at least 1, got {limits}")
        if (questions == EMBEDDED) != (corpus is None) and retriever != "remote":
            raise ValueError(
                "env.questions and env.corpus go together: both files, or questions=embedded without a corpus; "
                f"got questions={questions} and corpus={corpus}"
            )
        self._folder = (data_root() if data is None else Path(data).expanduser()) / "qa"
        self._questions, self._people = questions, embedded_people
        self._corpus = None if corpus is None else self._find(corpus, "corpus")
        self._file = None if questions == EMBEDDED else self._find(questions, "question file")
        self._sizes = {"train": train_tasks, "valid": valid_tasks}
        self._retriever, self._model, self._url, self._wire = retriever, model, url, wire
        self._protocol, self._top_k, self._max_turns = protocol, top_k, max_turns
        self._manifests: dict[str, Manifest] = {}
        self._drawn: dict[str, dict[str, dict[str, Any]]] = {}  # payloads of the generated world by split and id

    def __getstate__(self) -> dict[str, Any]:
        """Without what has been read, which cannot be sent to a worker: it reads it itself."""
        read = ("_of_file", "_world", "_needed")
        return {name: value for name, value in self.__dict__.items() if name not in read} | {"_drawn": {}}

    def _find(self, path: str | os.PathLike[str], what: str) -> Path:
        """The file, or the one of this name in the data folder. Raises `NoDataError`."""
        given = Path(path).expanduser()
        for place in (given, self._folder / given):
            if place.is_file():
                return place
        raise NoDataError(f"no {what} at {given}, nor in {self._folder}; `{DOWNLOAD}` downloads the usual ones")

    @property
    def env_id(self) -> str:
        return ENV_ID

    @property
    def splits(self) -> Sequence[str]:
        return tuple(SPLITS) if self._file is None else tuple(self._of_file)

    @property
    def eval_splits(self) -> Sequence[str]:
        """`valid` of the generated world; its others are asked for by name."""
        return ("valid",) if self._file is None else self.splits[1:] or self.splits

    @property
    def max_turns(self) -> int:
        protocol = PROTOCOLS[self._protocol]
        return (self._max_turns or protocol.max_turns) + protocol.extra_turns

    @property
    def spec(self) -> RetrieverSpec:
        """What the environments search with."""
        corpus = self._corpus or (None if self._file else self._world.corpus)
        return RetrieverSpec(self._retriever, corpus, model=self._model, url=self._url, wire=self._wire)

    def manifest(self, split: str) -> Manifest:
        """The tasks of a split; the hash covers the questions, the protocol, the corpus and its index.

        Raises `UnknownNameError`, and the errors of `open_retriever` and `read_questions`.
        """
        if split not in self._manifests:
            payloads = self._split(split)
            ids = tuple(sorted(payloads))
            about = {**self._opened.facts(), "protocol": self._protocol, "top_k": self._top_k}
            contents = ((i, _line({**payloads[i], "corpus": about})) for i in ids)
            self._manifests[split] = Manifest(ENV_ID, split, ids, hash_tasks(contents))
        return self._manifests[split]

    def task(self, split: str, task_id: str) -> Task:
        return find_task(ENV_ID, split, task_id, self._split(split))

    def make(self) -> SearchEnv:
        """A new environment. Each index is opened once per process, for all environments."""
        return SearchEnv(self.spec, self._protocol, self._top_k, self._max_turns)

    def expert(self) -> Expert | None:
        """None except for the generated world under the project's own protocol."""
        return SearchExpert() if self._file is None and self._protocol == "polyturn" else None

    def describe(self) -> str:
        """Raises the errors of `read_questions`. Draws no questions: an error of a setting must not wait for them."""
        splits = ", ".join(self.splits)
        where = f"the generated world of {self._people} people" if self._file is None else str(self._file)
        return (
            f"{ENV_ID}: {where}, with {splits}; {self._retriever} over {self._corpus or 'its passages'}, protocol "
            f"{self._protocol}, at most {counted(self.max_turns, 'turn')}"
        )

    def facts(self) -> dict[str, Any]:
        """See `envs.facts.environment_facts`."""
        return {"retrieval": self._opened.facts(), "protocol": self._protocol, "world_version": VERSION}

    @property
    def _opened(self) -> Retriever:
        return open_retriever(self.spec)

    @cached_property
    def _world(self) -> World:
        return embedded_world(self._people)

    @cached_property
    def _of_file(self) -> dict[str, dict[str, dict[str, Any]]]:
        """The payloads of the question file by split and id."""
        assert self._file is not None
        return read_questions(self._file, str(self._corpus or ""))

    @cached_property
    def _needed(self) -> _Needed:
        return _Needed(self._opened, self._top_k or PROTOCOLS[self._protocol].top_k)

    def _draw(self, split: str) -> dict[str, dict[str, Any]]:
        payloads: dict[str, dict[str, Any]] = {}
        for question in self._world.draw(split, self._sizes.get(split, self._sizes["valid"])):
            least = self._needed.searches(question, self._world)
            if least is not None:
                payloads[f"{split}-{_name(question.text)}"] = {
                    "type": question.kind,
                    "question": question.text,
                    "answers": [question.answer],
                    "gold": [self._world.things[name].gold for name in question.chain],
                    "least_searches": least,
                    "corpus": str(self._world.corpus),
                    "named": True,
                }
        return payloads

    def _split(self, split: str) -> dict[str, dict[str, Any]]:
        """The payloads of a split by id."""
        if split not in self.splits:
            raise UnknownNameError(f"split of {ENV_ID}", split, self.splits)
        if self._file is not None:
            return self._of_file[split]
        if split not in self._drawn:
            self._drawn[split] = self._draw(split)
        return self._drawn[split]


class _Needed:
    """Finds the least number of searches for a name, if a search finds more than one needed passage at a time.

    A search may ask for any name that was read before it, and the first one asks for that of the question. None if a
    passage is not found by its own name: others hold its words as often.
    """

    def __init__(self, retriever: Retriever, top_k: int) -> None:
        self._retriever, self._top_k = retriever, top_k
        self._found: dict[str, tuple[frozenset[str], frozenset[str]]] = {}  # by name: ids of passages, and their names

    def searches(self, question: Question, world: World) -> int | None:
        """The number, at most that of the question's relations."""
        gold = frozenset(world.things[name].gold for name in question.chain)
        first, names = self._search(question.asked_as)
        if not gold <= first.union(*(self._search(name)[0] for name in question.chain[1:])):
            return None
        if gold <= first:
            return 1
        if len(gold) > 2 and any(gold <= first | self._search(name)[0] for name in names):
            return 2
        return len(gold)

    def _search(self, name: str) -> tuple[frozenset[str], frozenset[str]]:
        if name not in self._found:
            [hits] = self._retriever.search([name], self._top_k)
            names = (name for hit in hits for name in hit.passage.names)
            self._found[name] = frozenset(hit.passage.id for hit in hits), frozenset(names)
        return self._found[name]


def read_questions(path: Path, corpus: str) -> dict[str, dict[str, dict[str, Any]]]:
    """The payloads of a question file by split and id. Raises `QuestionsError` naming the line."""
    splits: dict[str, dict[str, dict[str, Any]]] = {}
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                row = read_row(line)
                question, answers, gold = row["question"], _answers(row), row.get("gold_titles") or []
                if not isinstance(question, str):
                    raise TypeError("the question is not a text")
                if not isinstance(gold, list) or not all(isinstance(title, str) for title in gold):
                    raise TypeError(f"the gold titles are {gold!r:.60}")
            except (ValueError, TypeError, LookupError) as error:
                raise QuestionsError(
                    f"{path}:{number} is no question: expected 'question' and 'answers', got "
                    f"{line[:80].decode(errors='replace')!r} ({error})"
                ) from error
            payload = {
                "type": str(row.get("dataset") or row.get("data_source") or path.stem),
                "question": question, "answers": answers, "gold": gold, "corpus": corpus,
            }  # fmt: skip
            split = splits.setdefault(str(row.get("split") or "test"), {})
            name = str(row.get("id", row.get("idx", "")) or f"{number:07d}")
            split[name if name not in split else f"{name}-{number:07d}"] = payload
    if not splits:
        raise QuestionsError(f"{path} has no question")
    order = sorted(splits, key=lambda split: (split != "train", split))
    return {split: splits[split] for split in order}


def _answers(row: Mapping[str, Any]) -> list[str]:
    """The right answers of a row. Raises `LookupError` and `TypeError`."""
    found = row[next((key for key in ("answers", "answer", "golden_answers") if key in row), "answers")]
    answers = found.split(ANSWER_SPLIT) if isinstance(found, str) else list(found)
    if not answers or not all(isinstance(answer, str) for answer in answers):
        raise TypeError(f"the answers are {found!r:.60}")
    return answers


def _name(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def _line(payload: Mapping[str, Any]) -> bytes:
    return json.dumps(payload, sort_keys=True).encode()
