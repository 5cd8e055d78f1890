"""The training loop: roll out, estimate, learn, log, evaluate, checkpoint.

    Task ──► episodes ──► TurnTable ──► estimator ──► advantages ──► loss ──► learner ──► new weights
                                                          └──► replay ──┘  (algorithms/replay.py)

All randomness of a run comes from one seed, through three streams whose states are saved: the order of tasks (a
function of seed and epoch), the policy's sampling, and the order of samples in an update. The third stream also chooses
the nodes of tree expansion. So k updates, a kill, a resume, and k more updates equal 2k updates, bit for bit on a CPU.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from agents.agent import Agent, PolicyAgent
from agents.episode import Episode, ParseStatus
from agents.policies.pretrained import weights_to_save
from agents.policies.sharded import is_sharded
from agents.record import SUFFIX, write_record
from agents.rollout import Job, check_environment, rollout
from algorithms.checkpoint import (
    STATE,
    CheckpointWriter,
    checkpoint_folder,
    checkpoints,
    keep_newest,
    load_state,
    load_weights,
    prune,
    remove_after,
)
from algorithms.estimators.steps import Step, explained
from algorithms.filters import Filter, Use, apply_filters, uniform_groups
from algorithms.finite import NotFiniteError
from algorithms.learner import Learner, TokenStats
from algorithms.needs import check_dynamic_sampling, check_expert
from algorithms.recorded import recorded_batch
from algorithms.replay import Replay
from algorithms.signals.base import Measurement, RolloutBatch, Signal
from algorithms.tree_expansion import TreeExpansion
from algorithms.turn_table import Estimate, TurnTable
from algorithms.warm_start import Demonstrator, Progress, teacher_of
from envs.checks import json_line
from envs.checksums import DamagedError
from envs.core import Manifest, Need, StopReason, Task, TaskSet
from envs.facts import Facts
from envs.files import naming, read_json_lines, write_whole
from envs.pool import EnvPool

logger = logging.getLogger(__name__)

STATE_KEYS = (
    "update", "env_steps", "tasks_drawn", "best", "optimizer", "sampling_rng", "sample_order_rng", "signals",
)  # fmt: skip
TRAINING = 1  # in the keys of `Parallel.play`; evaluations have another number
MAX_TRIES = 10  # rollouts of dynamic sampling for one batch, as in verl-agent
Estimator: TypeAlias = Callable[[TurnTable], NDArray[np.float64] | Estimate]
Metrics: TypeAlias = dict[str, float]


@dataclass(frozen=True)
class TrainerConfig:
    """The size and schedule of a run."""

    updates: int | None  # after which the run ends; None: `env_steps` alone ends it
    groups: int  # tasks in a batch
    group_size: int  # attempts at each task
    max_turns: int  # of a training episode; evaluations use the environment's own limit
    dynamic_sampling: bool  # drop groups whose returns are all equal, and play others in their place (DAPO)
    tree_expansion: TreeExpansion | None  # branch attempts off each other; None: each starts its task
    eval_every: int  # updates between evaluations; 0: only at the start and the end
    checkpoint_every: int
    record_every: int  # updates between the batches that are recorded; 0: none
    record_keep: int | None  # recorded batches, the newest; None: all
    episode_timeout: float  # seconds
    filters: Mapping[str, Filter] = field(default_factory=dict)  # of the episodes that were played, by name
    demonstrations: int = 0  # of the environment's expert, at each task of which the filters leave attempts
    checkpoint_async: bool = False  # see `CheckpointWriter`
    env_steps: int | None = None  # the run ends when so many were taken in environments, those of signals included

    def __post_init__(self) -> None:
        least = dict.fromkeys(("groups", "group_size", "max_turns", "checkpoint_every", "record_keep", "env_steps"), 1)
        least |= dict.fromkeys(("updates", "eval_every", "record_every", "demonstrations"), 0)
        for name, low in least.items():
            if (value := getattr(self, name)) is not None and value < low:
                raise ValueError(f"trainer.{name} must be at least {low}, got {value}")
        if self.updates is None and self.env_steps is None:
            raise ValueError("a run needs an end: trainer.updates, trainer.env_steps or both")
        check_dynamic_sampling(self.dynamic_sampling, self.group_size)
        if self.tree_expansion is not None:
            self.tree_expansion.check(self.group_size)

    def progress(self, update: int, env_steps: int) -> float:
        """The share of a run that is done after `update` updates and `env_steps` steps, 1 at its end."""
        shares = [
            done / limit if limit else 1.0
            for done, limit in ((update, self.updates), (env_steps, self.env_steps))
            if limit is not None
        ]
        return min(max(shares), 1.0)


class Rollout(NamedTuple):
    """The episodes of an update."""

    episodes: list[Episode]  # that passed the filters, and the demonstrations
    learns: list[bool]  # for each of these: whether its tokens are in the loss
    played: list[Episode]  # all of the policy's
    removed: Counter[str]  # by filter: how many episodes it dropped or took out of the loss


class Reporter(Progress, Protocol):
    """Receives the progress of a run."""

    def update(self, update: int, metrics: Metrics) -> None:
        """Called after an update and, with `eval/…` metrics, after an evaluation."""


class Trainer:
    """One run in one folder, which learns from the tasks of `manifest`.

    With several ranks, each has a trainer; the first writes the files.

    `evaluate()` returns `eval/…` metrics of the current weights and a score that ranks their checkpoint. The score may
    be None if nothing ranks checkpoints; the newest is then the best.
    """

    def __init__(
        self,
        run: Path,
        task_set: TaskSet,
        manifest: Manifest,
        pool: EnvPool,
        agent: PolicyAgent,
        signals: Mapping[str, Signal],
        estimator: Estimator,
        learner: Learner,
        config: TrainerConfig,
        seed: int,
        evaluate: Callable[[], tuple[Metrics, float | None]],
        reporter: Reporter,
        facts: Facts | None = None,
        replay: Replay | None = None,
    ) -> None:
        self.facts = facts or {}  # a description of the run, for its checkpoints
        self.run, self.task_set, self.manifest, self.pool = run, task_set, manifest, pool
        self.agent, self.policy, self.generator = agent, agent.policy, agent.generator
        self.estimator, self.learner = estimator, learner
        self.config, self.seed, self.evaluate, self.reporter = config, seed, evaluate, reporter
        self.rng = np.random.default_rng(seed)
        learner.objective.check_layout(frozenset({agent.layout}), "this agent")
        self.signals, self.parallel, self.replay = signals, learner.parallel, replay
        self.keep_starts = config.tree_expansion is not None or any(
            Need.SNAPSHOTS in signal.needs for signal in self.signals.values()
        )
        self.demonstrator: Demonstrator | None = None
        if config.demonstrations:
            check_expert({Need.EXPERT: "algo.demonstrations"}, task_set)
            self.demonstrator = Demonstrator(
                teacher_of(task_set), agent.prompter, agent.policy.tokenizer, 0.0, seed, agent.masked,
                agent.policy.context_length,
            )  # fmt: skip
        self.update = 0  # updates done
        self.env_steps = 0  # taken in environments for them
        self.tasks_drawn = 0
        self.best: tuple[float, int] | None = None  # score of the best evaluation, and its update
        self.stopping = False  # set from outside: finish this update, save, return
        self.metrics_file = run / "metrics.jsonl"
        self.writer = CheckpointWriter(config.checkpoint_async)

    # -- the loop ---------------------------------------------------------------------------------------------------
    def train(self) -> None:
        """Train to the end of the run or until `stopping` is set, and save a checkpoint at the end."""
        with self.writer.finishing():
            self._loop()
        self.parallel.first(self.writer.wait)

    def _loop(self) -> None:
        self.policy.sync()  # an engine may have been started with other weights
        if not self.parallel.first(partial(checkpoints, self.run)):
            self._discard_after(-1)  # files of a run that died before its first checkpoint
            self._evaluate()
            self._save()
        while not self.is_done and not self._is_stopping():
            try:
                metrics = self._update()
            except NotFiniteError as error:
                raise NotFiniteError(f"update {self.update + 1}: {error}") from error
            self._log(metrics)
            best = False
            if self.is_done or (self.config.eval_every and self.update % self.config.eval_every == 0):
                best = self._evaluate()
            if best or self.is_done or self._is_stopping() or self.update % self.config.checkpoint_every == 0:
                self._save()

    def _is_stopping(self) -> bool:
        """Whether any rank got a signal to stop. Then all ranks stop."""
        stopping = self.parallel.any(self.stopping)
        self.stopping |= stopping  # a signal may have set it in the meantime
        return stopping

    @property
    def is_done(self) -> bool:
        """Whether the run is at its end."""
        return self.config.progress(self.update, self.env_steps) == 1.0

    def _update(self) -> Metrics:
        self.parallel.seconds()  # of what came before the update
        seconds: Metrics = {}
        with _timed(seconds, "time/rollout_s"):
            rolled_out = self._roll_out()
        episodes, played = rolled_out.episodes, rolled_out.played
        check_environment(played)
        batch = RolloutBatch.of(episodes)
        if not batch.samples or not any(rolled_out.learns):
            if (left := len(played) - rolled_out.removed["faults"]) > 0 and (removed := +rolled_out.removed):
                raise ValueError(
                    f"update {self.update + 1}: nothing can be learned from {left} episodes, since filters removed all "
                    f"of them ({', '.join(f'{name} {count}' for name, count in removed.items())}): use fewer filters, "
                    "easier tasks, or a policy that acts better"
                )
            reasons = dict(Counter(str(episode.stop_reason) for episode in played))
            first = next((e.error for e in played if e.error), "")
            raise RuntimeError(f"nothing can be learned from {len(played)} episodes: {reasons}\n{first}")
        passed = apply_filters(self.config.filters, played).episodes
        if faulty := [episode for episode in played if episode.is_faulty]:
            error = next((episode.error for episode in faulty if episode.error), "").strip().rpartition("\n")[2]
            logger.warning(
                "update %d: faults of the environment ended %d of %d episodes; training leaves them out. %s",
                self.update + 1, len(faulty), len(played), error,
            )  # fmt: skip
        measured: Metrics = {}
        if self.demonstrator is not None:
            shown = np.array([episode.demonstration for episode in episodes for _ in episode.turns], dtype=np.bool_)
            batch = batch.measured(Measurement({"demonstration": shown}))
            measured["rollout/demonstrations"] = float(sum(episode.demonstration for episode in episodes))
        own = batch.table.own_tokens
        recorded = bool(self.config.record_every) and (self.update + 1) % self.config.record_every == 0
        token_stats = TokenStats() if recorded else None
        objective, corrected = self.learner.objective, self.learner.correct(batch.samples, batch.table)
        if corrected is not None:
            batch = batch.measured(Measurement(token_signals={"importance_weight": corrected.weights}))
        if objective.reward_kl_coef:
            kl = self.learner.reference_kl(batch.samples, corrected)
            cost = np.where(own, -objective.reward_kl_coef * kl, 0.0)
            batch = batch.measured(Measurement(token_signals={"token_reward": cost}))
            measured["train/kl"] = float(kl[own].mean()) if own.any() else 0.0
        for name, signal in self.signals.items():
            with _timed(seconds, f"time/{name}_s"):
                measure = partial(signal.measure, batch)
                measurement = self.parallel.first(measure) if signal.by_first_rank else measure()
            batch = batch.measured(measurement)
            measured |= measurement.metrics
        with _timed(seconds, "time/estimate_s"):
            with explained() as steps:
                estimate = self.estimator(batch.table)
            advantages = estimate.advantages if isinstance(estimate, Estimate) else estimate
        with _timed(seconds, "time/learn_s"):
            self.reporter.phase("learn")
            rate = self.learner.config.rate(self.update, self.config.progress(self.update, self.env_steps))
            self.policy.pause()
            counted = np.array(rolled_out.learns)[batch.table.episode[batch.table.token_rows]]
            replayed = None
            if self.replay is not None:
                examples = self.learner.examples(batch.samples, batch.table, advantages, corrected, counted)
                replayed, counts = self.replay.exchange(self.update, batch.table, examples)
                measured |= counts
            learned = self.learner.update(
                batch.samples, batch.table, advantages, self.rng, rate, corrected, counted, token_stats, replayed
            )
        for name, signal in self.signals.items():
            with _timed(seconds, f"time/{name}_learn_s"):
                learned |= signal.learn(batch, estimate)
        with _timed(seconds, "time/sync_s"):
            learned |= self.policy.sync()
        self.update += 1
        if token_stats is not None:
            with _timed(seconds, "time/record_s"):
                columns = token_stats.columns(batch.samples, corrected, self.parallel)
                columns["mismatch"] = np.where(own, columns["mismatch"], np.nan)
                if not counted.all():
                    columns["in_loss"] = counted.astype(np.float64)
                self._record(batch, advantages, steps, columns, played)
        turns = {id(turn): turn for episode in played for turn in episode.turns}  # attempts of a tree share some
        sampled = sum(len(turn.completion_ids) for turn in turns.values())
        self.env_steps += len(turns) + int(measured.get("signal/env_steps", 0))
        return {
            **rollout_metrics(played),
            "groups/uniform": _uniform_groups(passed),
            "groups/left_out": float(_groups(played) - _groups(passed)),
            **{f"filter/{name}": count / len(played) for name, count in rolled_out.removed.items()},
            "train/learning_rate": rate,
            "rollout/env_steps": float(len(turns)),
            "tokens/sampled": float(sampled),
            "tokens/prefix_breaks": float(len(batch.samples) - sum(bool(e.turns) for e in episodes)),
            **measured,
            **learned,
            **seconds,
            **self.parallel.seconds(),
            "perf/sampled_tokens_per_s": sampled / seconds["time/rollout_s"],
            "perf/trained_tokens_per_s": learned["tokens/trained"] / seconds["time/learn_s"],
        }

    def _roll_out(self) -> Rollout:
        """Play the next tasks and filter the episodes.

        If the filters leave nothing to learn from, other groups are played. With dynamic sampling, groups whose returns
        are all equal are dropped as well, and others are played in place of every group that was dropped, as in DAPO
        (arXiv 2503.14476). The last try then keeps its uniform groups.

        Demonstrations come last. Filters do not apply to them, only to the policy's own episodes.
        """
        done = Rollout([], [], [], Counter())
        for attempt in range(1, MAX_TRIES + 1):
            learned = [e for e, learns in zip(done.episodes, done.learns, strict=True) if learns]
            wanted = self.config.groups - _groups(learned)
            if wanted <= 0:
                break
            jobs = [
                Job(task, len(done.played) // self.config.group_size + g, task.seed)
                for g, task in enumerate(self._next_tasks(wanted))
                for _ in range(self.config.group_size)
            ]
            self.reporter.phase("roll out", len(jobs))
            episodes = self._play(jobs, attempt)
            filters = dict(self.config.filters)
            if self.config.dynamic_sampling and attempt < MAX_TRIES:
                filters |= {"dynamic_sampling": uniform_groups}
            kept, learns, removed = apply_filters(filters, episodes)
            done.played.extend(episodes)
            done.removed.update(removed)
            if self.config.dynamic_sampling or any(learns):
                done.episodes.extend(kept)
                done.learns.extend(learns)
            if not self.config.dynamic_sampling and (done.episodes or all(episode.is_faulty for episode in episodes)):
                break
        shown = self._demonstrate(self.demonstrator, done.episodes) if self.demonstrator is not None else []
        done.episodes.extend(shown)
        done.learns.extend([True] * len(shown))
        return done

    def _demonstrate(self, demonstrator: Demonstrator, episodes: Sequence[Episode]) -> list[Episode]:
        """Demonstrations of the tasks of `episodes`, with the same groups.

        Those that do not solve their task are left out, and so are those that the policy's mask does not allow.
        """
        tasks = {episode.group: episode.task for episode in episodes}
        jobs = [Job(task, group, task.seed) for group, task in tasks.items() for _ in range(self.config.demonstrations)]
        self.reporter.phase("play demonstrations", len(jobs))
        played = self._play(jobs, 0, demonstrator) if jobs else []
        demonstrator.forget()
        return [
            replace(episode, demonstration=True)
            for episode in played
            if episode.success and not (self.agent.masked and any(not turn.nodes for turn in episode.turns))
        ]

    def _play(self, jobs: Sequence[Job], attempt: int, demonstrator: Agent | None = None) -> list[Episode]:
        """Play with the policy, or with a `demonstrator` in its place."""

        def play(agent: PolicyAgent, jobs: Sequence[Job]) -> list[Episode]:
            return rollout(
                demonstrator or agent,
                self.pool,
                jobs,
                max_turns=self.config.max_turns,
                episode_timeout=self.config.episode_timeout,
                policy_version=self.update,
                keep_starts=self.keep_starts,
                on_episode=lambda _: self.reporter.advance(),
            )

        tree = self.config.tree_expansion
        if tree is not None and demonstrator is None:
            return self.parallel.play_first(lambda: tree.play(partial(play, self.agent), jobs, self.rng), self.rng)
        if self.keep_starts:  # the first rank plays on from the states of its own environments
            return self.parallel.play_first(lambda: play(self.agent, jobs), self.rng)
        return self.parallel.play(self.agent, jobs, play, (self.seed, TRAINING, self.update, attempt))

    def _next_tasks(self, count: int) -> list[Task]:
        """The next tasks. Each epoch contains every task of the manifest once, in a new random order."""
        ids = self.manifest.ids
        tasks = []
        for number in range(self.tasks_drawn, self.tasks_drawn + count):
            epoch, place = divmod(number, len(ids))
            order = np.random.default_rng([self.seed, epoch]).permutation(len(ids))
            tasks.append(self.task_set.task(self.manifest.split, ids[order[place]]))
        self.tasks_drawn += count
        return tasks

    # -- files ------------------------------------------------------------------------------------------------------
    def _evaluate(self) -> bool:
        """Evaluate. Returns whether this is the best evaluation so far."""
        self.parallel.seconds()  # of what came before the evaluation
        seconds: Metrics = {}
        with _timed(seconds, "time/eval_s"):
            metrics, score = self.evaluate()
        self._log({**metrics, **seconds, **self.parallel.seconds()})
        if score is None or (self.best is not None and score <= self.best[0]):
            return False
        self.best = (score, self.update)
        return True

    def _log(self, metrics: Metrics) -> None:
        """Append a line to metrics.jsonl. It includes timings; compare runs without the `time/` and `perf/` keys."""
        self.parallel.first(partial(self._write_metrics, metrics))
        self.reporter.update(self.update, metrics)

    def _write_metrics(self, metrics: Metrics) -> None:
        with naming(self.metrics_file), self.metrics_file.open("a", encoding="utf-8") as file:
            file.write(json_line({"update": self.update, **metrics}))
            file.flush()
            os.fsync(file.fileno())  # a checkpoint on disk always has its metrics on disk

    def _record(
        self, batch: RolloutBatch, advantages: NDArray[np.float64], steps: Sequence[Step],
        of_tokens: Mapping[str, NDArray[np.float64]], played: Sequence[Episode],
    ) -> None:  # fmt: skip
        """Write the batch for `scripts.view`; after it come the episodes of `played` that a fault ended."""
        if not self.parallel.is_first:
            return
        faulty = [episode for episode in played if episode.is_faulty]
        record = recorded_batch(self.update, self.manifest.split, batch, advantages, steps, of_tokens, faulty)
        write_record(self.run / "episodes" / f"update-{self.update:06d}{SUFFIX}", record)
        keep_newest(self.run / "episodes", "update-*.jsonl*", self.config.record_keep)

    def _save(self) -> None:
        state = {
            "update": self.update,
            "env_steps": self.env_steps,
            "tasks_drawn": self.tasks_drawn,
            "best": self.best and list(self.best),
            "optimizer": self.learner.optimizer_state(),
            "sampling_rng": self.generator.get_state(),
            "sample_order_rng": json.dumps(self.rng.bit_generator.state),
            "signals": {name: signal.state() for name, signal in self.signals.items()},
        }
        if self.replay is not None:
            state["replay"] = self.replay.state()
        folder = checkpoint_folder(self.run, self.update)
        model = self.learner.model
        weights = weights_to_save(model) if is_sharded(model) else None
        save = partial(self.writer.save, folder, model, self.policy.tokenizer, state, self.facts, weights)
        self.parallel.first(partial(save, self._pruning()))

    def _pruning(self) -> Callable[[], None]:
        """Removes all checkpoints but the first (the reference of KL), the best (for evaluations) and the newest."""
        kept = {0, self.best[1]} if self.best else {0}
        return partial(prune, self.run, {checkpoint_folder(self.run, update) for update in kept})

    def resume(self) -> None:
        """Go back to the newest checkpoint of the run, and remove metrics and episodes written after it.

        Without a checkpoint the run starts from the beginning.
        """
        saved = self.parallel.first(partial(checkpoints, self.run))
        if not saved:
            return
        folder = saved[-1]
        state = load_state(folder, *STATE_KEYS)
        load_weights(folder, self.learner.model)
        if self.learner.reference is not None and not self.learner.has_teacher:
            load_weights(checkpoint_folder(self.run, 0), self.learner.reference)
        try:
            self._set_state(state)
        except (ValueError, TypeError, KeyError, IndexError, RuntimeError, AttributeError) as error:
            raise DamagedError(f"{folder / STATE} is no state of this run: {type(error).__name__}: {error}") from error
        self._discard_after(self.update)
        self.parallel.first(self._pruning())

    def _set_state(self, state: Mapping[str, Any]) -> None:
        """Continue from a state. Raises if it belongs to another run."""
        self.learner.load_optimizer_state(state["optimizer"])
        self.generator.set_state(state["sampling_rng"])
        self.rng.bit_generator.state = json.loads(state["sample_order_rng"])
        for name, signal in self.signals.items():
            signal.load_state(state["signals"][name])
        if self.replay is not None:
            self.replay.load_state(state["replay"])
        self.update, self.tasks_drawn = int(state["update"]), int(state["tasks_drawn"])
        self.env_steps = int(state["env_steps"])
        self.best = (float(state["best"][0]), int(state["best"][1])) if state["best"] else None

    def _discard_after(self, update: int) -> None:
        """Remove what was written after an update; -1 means before the first evaluation."""
        self.parallel.first(partial(self._remove_after, update))

    def _remove_after(self, update: int) -> None:
        if self.metrics_file.exists():
            rows = read_json_lines(self.metrics_file)
            lines = self.metrics_file.read_bytes().splitlines(keepends=True)
            kept = [line for line, row in zip(lines, rows, strict=False) if row.get("update", 0) <= update]
            if kept != lines:
                write_whole(self.metrics_file, b"".join(kept))
        remove_after(update, self.run / "episodes")


def rollout_metrics(episodes: Sequence[Episode]) -> Metrics:
    """`rollout/…` and `stop/…` metrics of a batch.

    `rollout/episodes` counts all episodes; `rollout/faults` counts those ended by a fault of the environment, which say
    nothing about the policy. The other `rollout/…` are means over the other episodes, or over all of their turns.
    `stop/…` are shares of all episodes.
    """
    sound = [episode for episode in episodes if not episode.is_faulty]
    n = len(sound)
    turns = [turn for episode in sound for turn in episode.turns]
    stops = Counter(episode.stop_reason for episode in episodes)
    return {
        "rollout/episodes": float(len(episodes)),
        "rollout/faults": float(len(episodes) - n),
        "rollout/success": sum(episode.success for episode in sound) / n,
        "rollout/score": sum(episode.score for episode in sound) / n,
        "rollout/return": sum(episode.total_reward for episode in sound) / n,
        "rollout/turns": len(turns) / n,
        "rollout/invalid": sum(turn.status is not ParseStatus.OK for turn in turns) / max(len(turns), 1),
        **{f"stop/{reason}": stops[reason] / len(episodes) for reason in StopReason if stops[reason]},
    }


def _groups(episodes: Sequence[Episode]) -> int:
    """The number of groups."""
    return len({episode.group for episode in episodes})


def _uniform_groups(episodes: Sequence[Episode]) -> float:
    """The share of groups in which all returns are equal."""
    differing = [episode for episode, use in zip(episodes, uniform_groups(episodes), strict=True) if use != Use.DROP]
    return 1.0 - _groups(differing) / max(_groups(episodes), 1)


@contextmanager
def _timed(seconds: Metrics, name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start
