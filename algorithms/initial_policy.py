"""Where the policy of a run comes from: a model folder, or a fresh small one that is warm-started, once.

A warm start is cached under a hash of everything that it depends on (`_key`), so that a sweep clones once.
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
from agents.policies.tiny import build_model, build_tokenizer, vocabulary_size
from agents.prompts import Prompter
from agents.rollout import Job, check_environment, rollout
from agents.source import agents_hash
from algorithms.checkpoint import save_checkpoint
from algorithms.warm_start import Progress, WarmStart, teacher_of, warm_start
from envs.checksums import found_whole
from envs.core import BRIEF, Manifest, Task, TaskSet, cache_root
from envs.facts import code_hash, environment_facts, key_of, without
from envs.files import alone
from envs.pool import EnvPool

logger = logging.getLogger(__name__)

VERSION = 8  # of the recipe in `algorithms`: to be raised when the same configuration would give other weights
PACKAGES = ("torch", "transformers", "tokenizers", "numpy")  # whose versions may give other weights
LEFT_OUT = (  # of a run's configuration: what a warm start does not depend on
    "policy", "seed",  # they stand in `TinyPolicy`
    "env.data",  # what is in the folder counts, by the manifest
    "agent._target_", "agent.player", "agent.sampling",  # experts play, and write as the prompter does
    "pool.workers", "pool.step_timeout",  # `pool.size` sets the order in which demonstrations draw their noise
    "model", "resume", "rollout", "algo", "trainer", "eval",  # of what comes after it
)  # fmt: skip
_IN_BRACKETS = re.compile(r"\[(?!<\w)([^\[\]]+)\]")  # not "<your query>", which names nothing
FEED_FORWARD = 3  # times the width
MOST_CHARACTERS = 64  # of a text that words are taken from, for each id of the context: longer ones are never shown


@dataclass(frozen=True)
class PretrainedPolicy(Pretrained):
    """A model that is there. With `warm_start` training begins by cloning the environment's expert into it."""

    warm_start: WarmStart | None = None


@dataclass(frozen=True)
class TinyPolicy:
    """The shape of the embedded default policy, see `agents.policies.tiny`."""

    width: int
    layers: int
    heads: int
    context: int
    warm_start: WarmStart | None
    seed: int | None = None  # of the weights and of the warm start; None: that of the run


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
    """The small policy, warm-started on the tasks of `manifest`, and the folder where it is kept.

    `configured` is the whole resolved configuration of the run as plain data: all of it counts but for `LEFT_OUT`.
    `masked` makes it for a `MaskedAgent`.
    """
    config = config if config.seed is not None else replace(config, seed=seed)
    folder = cache_root() / "warm_starts" / _key(config, task_set, manifest, prompter, configured, masked)
    with alone(
        folder.with_suffix(".lock"),
        f"the warm start {folder}",
        lambda: progress.phase("wait for another run that makes this warm start"),
    ):  # runs that start together clone once, and the others wait for that
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
    policy = LocalPolicy(model.to(find_device()), tokenizer)
    if config.warm_start is not None:
        warm_start(policy, prompter, task_set, tasks, pool, config.warm_start, config.seed, progress, masked=masked)
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
) -> tuple[list[str], list[str]]:
    """What the environment and its teacher say over some episodes, spread evenly over the tasks.

    And what actions name in brackets, where it could be named at three turns or more. Texts of more than `longest`
    characters are left out.
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
    if not reader.brief:  # a last page is never shown; where pages are shown as they are, it has words that others have
        texts += [episode.final_observation for episode in episodes]
    short = [text for text in texts if len(text) <= longest]
    if len(short) < len(texts):
        logger.warning(
            "%d of %d texts of the environment, of more than %d characters, are too long for the policy's context: "
            "its tokenizer is made without them", len(texts) - len(short), len(texts), longest,
        )  # fmt: skip
    return short, named


class _Reader:
    """A teacher that keeps what a policy would be shown, by episode and turn."""

    def __init__(self, teacher: Agent) -> None:
        self.teacher = teacher
        self.shown: defaultdict[int, list[str]] = defaultdict(list)
        self.named: Counter[str] = Counter()  # what stood in brackets, and at how many turns
        self.brief = False  # whether the environment has a brief form of its observations

    def act(self, views: Sequence[View]) -> list[Decision]:
        """What the teacher does."""
        for view in views:
            self.brief |= BRIEF in view.info
            self.named.update({name for a in view.info["admissible"] or () for name in _IN_BRACKETS.findall(a)})
            self.shown[view.key].append(view.info.get(BRIEF, view.observation))
        return self.teacher.act(views)

    def finish(self, key: int) -> None:
        self.teacher.finish(key)
