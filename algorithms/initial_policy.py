"""Make the first policy of a run: load a model folder, or create a small model and warm-start it once.

A warm start is cached under a hash of everything that it depends on (`_key`), so a sweep does it only once.
"""

from __future__ import annotations

import logging
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from agents.agent import Agent, Decision, View
from agents.policies.local import LocalPolicy
from agents.policies.models import find_device
from agents.policies.pretrained import Pretrained
from agents.policies.tiny import SharedWords, build_model, build_tokenizer, vocabulary_size
from agents.prompts import Prompter
from agents.rollout import Job, check_environment, rollout
from agents.source import agents_hash
from algorithms.checkpoint import save_checkpoint
from algorithms.warm_start import Progress, WarmStart, teacher_of, warm_start
from envs.checksums import found_whole
from envs.core import BRIEF, Manifest, Task, TaskSet, cache_root
from envs.facts import code_hash, environment_facts, key_of, without
from envs.files import locked
from envs.pool import EnvPool

logger = logging.getLogger(__name__)

VERSION = 12  # increase it if a change of the code gives other weights for the same configuration
PACKAGES = ("torch", "transformers", "tokenizers", "numpy")  # other versions may give other weights
LEFT_OUT = (  # settings of a run that do not change its warm start
    "policy", "seed",  # they are in `TinyPolicy`
    "env.data",  # the manifest stands for the folder's contents
    "agent._target_", "agent.player", "agent.sampling",  # the expert plays, and the prompter writes its actions
    "pool.workers", "pool.step_timeout",  # `pool.size` matters: it sets the order in which noise is drawn
    "model", "resume", "rollout", "algo", "trainer", "eval",  # used after the warm start
)  # fmt: skip
_IN_BRACKETS = re.compile(r"\[(?!<\w)([^\[\]]+)\]")  # not "<your query>", which is a slot
FEED_FORWARD = 3  # times the width
MOST_CHARACTERS = 64  # for each id of the context: longer texts are never shown, so no words are taken from them


@dataclass(frozen=True)
class PretrainedPolicy(Pretrained):
    """An existing model. With `warm_start`, training begins by cloning the environment's expert into it."""

    warm_start: WarmStart | None = None


@dataclass(frozen=True)
class TinyPolicy:
    """The size of the embedded default policy, see `agents.policies.tiny`."""

    width: int
    layers: int
    heads: int
    context: int
    warm_start: WarmStart | None
    seed: int | None = None  # for the weights and the warm start; None: the run's seed


def tiny_policy(
    config: TinyPolicy,
    task_set: TaskSet,
    manifest: Manifest,
    prompter: Prompter,
    pool: EnvPool,
    seed: int,
    progress: Progress,
    configured: Mapping[str, Any],
    *,
    masked: bool = False,
) -> tuple[LocalPolicy, Path]:
    """The small policy, warm-started on the tasks of `manifest`, and its cache folder.

    `configured` is the resolved configuration of the run as plain data; everything except `LEFT_OUT` counts. `masked`
    makes the policy for a `MaskedAgent`.
    """
    config = config if config.seed is not None else replace(config, seed=seed)
    folder = cache_root() / "warm_starts" / _key(config, task_set, manifest, prompter, configured, masked)
    with locked(
        folder.with_suffix(".lock"),
        f"the warm start {folder}",
        lambda: progress.phase("wait for another run that makes this warm start"),
    ):  # of several runs that start together, one makes the warm start, and the others wait
        if not found_whole(folder, "the warm start"):
            _make(folder, config, task_set, manifest, prompter, pool, progress, masked)
        return Pretrained().load(folder), folder


def _make(
    folder: Path,
    config: TinyPolicy,
    task_set: TaskSet,
    manifest: Manifest,
    prompter: Prompter,
    pool: EnvPool,
    progress: Progress,
    masked: bool,
) -> None:
    assert config.seed is not None
    tasks = [task_set.task(manifest.split, i) for i in manifest.ids]
    tokenizer = build_tokenizer(*_texts(task_set, tasks, pool, progress, MOST_CHARACTERS * config.context))
    model = build_model(
        vocabulary_size(tokenizer),
        width=config.width,
        layers=config.layers,
        heads=config.heads,
        feed_forward=FEED_FORWARD * config.width,
        context=config.context,
        seed=config.seed,
    )
    model.to(find_device())
    words = SharedWords(tokenizer, model.get_input_embeddings().weight, config.seed)
    policy = LocalPolicy(model, tokenizer)
    if config.warm_start is not None:
        warm_start(
            policy, prompter, task_set, tasks, pool, config.warm_start, config.seed, progress,
            masked=masked, words=words,
        )  # fmt: skip
    save_checkpoint(folder, model, tokenizer)


def _key(
    config: TinyPolicy,
    task_set: TaskSet,
    manifest: Manifest,
    prompter: Prompter,
    configured: Mapping[str, Any],
    masked: bool,
) -> str:
    counts = without(configured, LEFT_OUT)
    return key_of(
        {
            "recipe": VERSION,
            "tiny": asdict(config),
            "masked": masked,
            "environment": environment_facts(task_set, counts.pop("env", {})),
            "split": manifest.split,
            "tasks": manifest.content_hash,
            "configured": counts,
            "agents": [agents_hash(), code_hash(type(prompter))],
            "packages": {package: metadata.version(package) for package in PACKAGES},
            "device": find_device().type,
        }
    )


def _texts(
    task_set: TaskSet, tasks: Sequence[Task], pool: EnvPool, progress: Progress, longest: int, count: int = 500
) -> tuple[list[str], list[str], set[str]]:
    """The texts of some episodes of the environment and its teacher, spread evenly over the tasks.

    Also the names in brackets that were admissible at three turns or more, and all admissible actions. Texts longer
    than `longest` characters are left out.
    """
    chosen = tasks[:: max(1, len(tasks) // count)][:count]
    progress.phase("read the environment's text", len(chosen))
    jobs = [Job(task, seed=task.seed) for task in chosen]
    reader = _Reader(teacher_of(task_set))
    episodes = rollout(reader, pool, jobs, on_episode=lambda _: progress.advance())
    check_environment(episodes)
    texts = [
        text
        for key, episode in enumerate(episodes)
        for shown, turn in zip(reader.shown[key], episode.turns, strict=True)
        for text in (shown, turn.action)
    ]
    named = [name for name, turns in reader.named.items() if turns >= 3]
    if not reader.brief:  # a last page is never shown; without brief forms it may bring words that others have
        texts += [episode.final_observation for episode in episodes]
    short = [text for text in texts if len(text) <= longest]
    if len(short) < len(texts):
        logger.warning(
            "%d of %d texts of the environment have more than %d characters, too long for the policy's context; "
            "its tokenizer is made without them", len(texts) - len(short), len(texts), longest,
        )  # fmt: skip
    return short, named, reader.admissible


class _Reader:
    """A teacher that records the texts that a policy would see, by episode and turn."""

    def __init__(self, teacher: Agent) -> None:
        self.teacher = teacher
        self.shown: defaultdict[int, list[str]] = defaultdict(list)
        self.admissible: set[str] = set()  # actions
        self.named: Counter[str] = Counter()  # the text in brackets -> number of turns
        self.brief = False  # whether the environment has a brief form of its observations

    def act(self, views: Sequence[View]) -> list[Decision]:
        """Act like the teacher, and record the texts."""
        for view in views:
            self.brief |= BRIEF in view.info
            self.admissible.update(view.info["admissible"] or ())
            self.named.update({name for a in view.info["admissible"] or () for name in _IN_BRACKETS.findall(a)})
            self.shown[view.key].append(view.info.get(BRIEF, view.observation))
        return self.teacher.act(views)

    def finish(self, key: int) -> None:
        self.teacher.finish(key)
