"""Train a policy: `python -m scripts.train env=alfworld algo=gigpo`.

The run folder gets metrics.jsonl, checkpoints/, episodes/, evaluations/, and at the end curve.png, diagnostics.png,
evaluation.md and evaluation.json. Ctrl-C (or a closed terminal) finishes the update, saves and stops; `resume=RUN_DIR`
continues from there, or from the last checkpoint of a run that was killed. A complete run is not changed.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeAlias

from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf

from agents.agent import PolicyAgent
from agents.episode import Episode
from agents.evaluation import Evaluation, plan, pooled, spread, summarise
from agents.record import SUFFIX, Record, write_record
from agents.rollout import BrokenEnvironmentError, Job, check_data, rollout
from agents.source import agents_hash
from algorithms.checkpoint import (
    RUN,
    checkpoint_folder,
    checkpoints,
    keep_newest,
    load_run,
    load_state,
    remove_after,
    update_of,
)
from algorithms.needs import (
    Needs,
    check_aggregation,
    check_dynamic_sampling,
    check_method,
    check_parts,
    check_reference,
)
from algorithms.parallel import ONE_PROCESS, Parallel
from envs.checksums import DamagedError
from envs.core import Manifest, TaskSet, UnknownNameError, at_a_time, counted, evaluation_splits, hold_out
from envs.facts import Facts, differences, environment_facts, in_words, without
from envs.files import read_json_lines, remove_whole, write_whole
from envs.pool import EnvPool
from scripts.agents import check_tasks, check_trained_agent, checkpoint_of
from scripts.common import Terminal, command, compare_machines, is_set_by_user, machine, make_task_set, plain, versions
from scripts.curve import PICTURES, SELECTION, draw_pictures, is_success
from scripts.live import LiveReporter
from scripts.loggers import make_loggers
from scripts.run_folder import COMMAND, MAY_CHANGE, Command, is_restarted, locked, remove_restart_file, resume_command

if TYPE_CHECKING:  # torch and transformers take seconds to import, and mistakes are reported before that
    from torch import Generator

    from agents.policies.base import Policy, Sampling
    from agents.policies.local import LocalPolicy
    from agents.policies.pretrained import Pretrained
    from agents.prompts import Prompter
    from algorithms.filters import Filter
    from algorithms.initial_policy import TinyPolicy
    from algorithms.learner import LearnerConfig
    from algorithms.replay import Replay
    from algorithms.signals.base import MakeSignal
    from algorithms.trainer import Estimator, Metrics, Trainer, TrainerConfig
    from algorithms.tree_expansion import TreeExpansion

ALL_SPLITS = "all"  # the evaluations of all splits together
EVALUATION = 2  # in the keys of `Parallel.play`; training has another number
SAME_SIGNAL = 10.0
Outcome: TypeAlias = dict[str, float]  # of an episode: {"success": True, "score": 1.0}
LEARNER_KEYS = (
    "epochs", "minibatches", "micro_batch_tokens", "gradient_checkpointing", "learning_rate", "final_learning_rate",
    "warmup_updates", "weight_decay", "grad_clip", "precision", "correction",
)  # fmt: skip


@command("config")
def main(cfg: DictConfig) -> None:
    """Train in the run folder, which is locked for this process. With several ranks, all of them call it."""
    run = Path(HydraConfig.get().runtime.output_dir)
    parallel: Parallel = instantiate(cfg.parallel)
    parallel.check(cfg.trainer.groups, cfg.trainer.group_size)
    if parallel.ranks > 1 and HydraConfig.get().runtime.choices["rollout"] == "vllm_server":
        raise ValueError("rollout=vllm_server serves one process; with several, use rollout=vllm or rollout=local")
    with parallel.running(), ExitStack() as open_until_end:
        parallel.first(lambda: open_until_end.enter_context(locked(run)))
        _run(cfg, run, parallel)
        parallel.first(remove_restart_file)


def _run(cfg: DictConfig, run: Path, parallel: Parallel) -> None:
    """Create the parts that the configuration names, and run the loop.

    Mistakes are reported before torch is imported, as far as possible: the import takes seconds.
    """
    check_trained_agent(cfg)
    this_command = Command.of_this_process("train")
    saved = parallel.first(partial(checkpoints, run))
    if cfg.resume is None and saved and not is_restarted():
        raise ValueError(
            f"{run} contains a run already; resume it: {resume_command('train', run)}; or choose another hydra.run.dir"
        )
    parallel.first(partial(_written, run))  # refused before anything is loaded
    task_set = make_task_set(cfg)
    console = Terminal(soft_wrap=True, quiet=not parallel.is_first)
    if parallel.ranks > 1:
        console.print(parallel.describe())
    console.print(task_set.describe())
    _choose_splits(cfg, task_set)
    training, selection = hold_out(task_set.manifest(cfg.split), cfg.eval.selection_tasks)
    facts = _facts(cfg, task_set, training)
    parallel.agree("code and configuration", facts)
    before = load_run(saved[-1]) if saved else None
    if before is not None:
        _compare(without(before, ["machine"]), facts, console)
    method = Method.of(cfg)
    needs = method.check(cfg)
    check_tasks(needs, cfg, task_set, training)
    chosen_loggers = make_loggers(cfg.logger if parallel.is_first else [])
    _describe_tasks(cfg, task_set, selection, console)
    parts = Parts.of(cfg, method)
    report = _Report(cfg, run, task_set, selection)
    if saved and parallel.first(lambda: report.is_complete(saved[-1], parts.config)):
        limit = "trainer.updates" if parts.config.env_steps is None else "trainer.env_steps"
        console.print(
            f"{run} is complete after {counted(update_of(saved[-1]), 'update')}; to continue it, increase {limit}"
        )
        report.check(update_of(saved[-1]))
        return
    more = parts.check(cfg, task_set)
    check_tasks({need: place for need, place in more.items() if need not in needs}, cfg, task_set, training)
    facts["machine"] = machine()
    if before is not None:
        compare_machines(before, facts, console)
    if not saved:
        parallel.first(lambda: (_clear(run), this_command.save(run, cfg)))
    import torch
    from transformers.utils.logging import disable_progress_bar

    from algorithms.learner import Learner, check_precision
    from algorithms.memory import describe_memory
    from algorithms.reference import load_reference
    from algorithms.signals.base import SignalContext, make_signals
    from algorithms.trainer import Trainer

    disable_progress_bar()
    size = at_a_time(task_set, cfg.pool.size)
    with (
        EnvPool(task_set.make, size, cfg.pool.workers, cfg.pool.step_timeout) as pool,
        closing(chosen_loggers) as loggers,
        LiveReporter(parts.config.updates, console, loggers) as reporter,
    ):
        trained = _start(cfg, saved, task_set, training, parts.prompter, pool, reporter, parallel)
        teacher = load_reference(checkpoint_of(name), trained) if (name := cfg.algo.reference) else None
        console.print(describe_memory(trained.model, parts.learner, size))
        policy = parts.engine(trained)
        if policy is trained:
            policy = parallel.sampler(trained)
        agent = parts.agent(policy, torch.Generator(policy.device).manual_seed(cfg.seed))
        evaluator = _Evaluator(cfg, task_set, training, selection, agent, pool, reporter, parallel)

        def evaluate_and_save() -> tuple[Metrics, float | None]:
            metrics, score = evaluator()
            loggers.sample(evaluator.episodes)
            parallel.first(lambda: report.save(trainer.update, evaluator))
            return metrics, score

        context = SignalContext(
            trained.model, agent, pool, check_precision(parts.learner.precision, trained.device),
            parts.learner.micro_batch_tokens, parts.learner.grad_clip, parts.config.max_turns, cfg.seed, parallel,
        )  # fmt: skip
        signals = make_signals(parts.signals, context)  # before the learner divides the model that they copy
        trainer = Trainer(
            run, task_set, training, pool, agent, signals, parts.estimator,
            Learner(trained.model, parts.learner, parallel, teacher), parts.config, cfg.seed, evaluate_and_save,
            reporter, facts, parts.replay,
        )  # fmt: skip
        if saved:
            trainer.resume()
            parallel.first(lambda: report.remove_after_update(trainer.update))
            console.print(f"resuming after {counted(trainer.update, 'update')}")
        parallel.first(lambda: this_command.save(run, cfg))  # with the changed settings, now that the run has started
        loggers.start(run, trainer.update, facts)
        with _stop_on_signals(trainer, reporter):
            trainer.train()
        if trainer.is_done and parallel.first(lambda: report.evaluations(trainer.update) is None):
            evaluate_and_save()  # for the report: no evaluation of these weights has these settings
    parallel.first(lambda: _conclude(run, trainer, report, parts, console))


def _conclude(run: Path, trainer: Trainer, report: _Report, parts: Parts, console: Terminal) -> None:
    """Write the report of a run that has ended, or print how to resume it."""
    if not trainer.is_done:
        draw_pictures(run, report.title)
        share = parts.config.progress(trainer.update, trainer.env_steps)
        console.print(f"stopped after {counted(trainer.update, 'update')}, {share:.0%} of the run")
        console.print(f"resume with: {resume_command('train', run)}")
        return
    console.print(report.write(trainer.update))
    pictures = ", ".join(str(run / name) for name in PICTURES)
    console.print(f"pictures: {pictures}\nnewest checkpoint: {checkpoints(run)[-1]}", soft_wrap=True)
    report.check(trainer.update)


@dataclass(frozen=True)
class Method:
    """The parts of the configuration that are created without torch."""

    player: Callable[..., PolicyAgent]
    prompter: Prompter
    sampling: Sampling
    signals: Mapping[str, MakeSignal]
    estimator: Estimator
    tree_expansion: TreeExpansion | None
    filters: Mapping[str, Filter]

    @classmethod
    def of(cls, cfg: DictConfig) -> Method:
        return cls(
            player=instantiate(cfg.agent.player),
            prompter=instantiate(cfg.agent.prompter),
            sampling=instantiate(cfg.agent.sampling),
            signals=instantiate(cfg.algo.signals),
            estimator=instantiate(cfg.algo.estimator),
            tree_expansion=instantiate(cfg.algo.tree_expansion),
            filters=instantiate(cfg.algo.filters),
        )

    def check(self, cfg: DictConfig) -> Needs:
        """Check what the parts declare (`algorithms.needs.check_method`). Returns their needs."""
        group_size = cfg.trainer.group_size
        check_aggregation(cfg.algo.get("aggregation", ""), cfg.algo.get("loss_divisor"))
        check_dynamic_sampling(cfg.algo.dynamic_sampling, group_size)
        check_reference(cfg.algo.reference, kl_coef := cfg.algo.get("kl_coef", 0.0))
        return check_method(
            self.player, self.signals, self.estimator, self.tree_expansion, group_size, self.filters,
            cfg.algo.demonstrations, bool(kl_coef) and cfg.algo.get("kl_in") == "reward",
        )  # fmt: skip


@dataclass(frozen=True)
class Parts:
    """The parts of the configuration except the policy, which is created last."""

    prompter: Prompter
    agent: Callable[[Policy, Generator], PolicyAgent]
    signals: Mapping[str, MakeSignal]
    estimator: Estimator
    learner: LearnerConfig
    config: TrainerConfig
    engine: Callable[[LocalPolicy], Policy]
    replay: Replay | None

    @classmethod
    def of(cls, cfg: DictConfig, method: Method) -> Parts:
        from algorithms.learner import LearnerConfig, Objective
        from algorithms.trainer import TrainerConfig

        objective = {field.name: cfg.algo[field.name] for field in fields(Objective) if field.name in cfg.algo}
        settings: dict[str, Any] = {**cfg.trainer, "correction": instantiate(cfg.trainer.correction)}
        learner = LearnerConfig(
            objective=Objective(**{**objective, "loss": instantiate(cfg.algo.loss)}),
            temperature=method.sampling.temperature,
            **{key: settings.pop(key) for key in LEARNER_KEYS},
        )
        config = TrainerConfig(
            dynamic_sampling=cfg.algo.dynamic_sampling, tree_expansion=method.tree_expansion, filters=method.filters,
            demonstrations=cfg.algo.demonstrations, **settings,
        )  # fmt: skip

        def agent(policy: Policy, generator: Generator) -> PolicyAgent:
            return method.player(policy, method.prompter, method.sampling, generator)

        return cls(
            method.prompter, agent, method.signals, method.estimator, learner, config, instantiate(cfg.rollout),
            instantiate(cfg.algo.replay),
        )  # fmt: skip

    def check(self, cfg: DictConfig, task_set: TaskSet) -> Needs:
        """Check the parts before any task is played (`algorithms.needs.check_parts`)."""
        with EnvPool(task_set.make, 1, step_timeout=cfg.pool.step_timeout) as pool:  # nothing is played in it
            return check_parts(
                self.agent, self.signals, self.estimator, self.learner, self.config, pool, cfg.seed, self.replay
            )


def _describe_tasks(cfg: DictConfig, task_set: TaskSet, selection: Manifest, console: Terminal) -> None:
    for split in dict.fromkeys([cfg.split, *cfg.eval.splits]):
        console.print(task_set.manifest(split).describe())
    if selection.ids:
        console.print(
            f"{counted(len(selection.ids), 'task')} of {cfg.split}, held out from training, rank the checkpoints"
        )
    if cfg.eval.limit is not None:
        console.print(_limited(cfg.eval.limit))


def _choose_splits(cfg: DictConfig, task_set: TaskSet) -> None:
    """Set `eval.splits` if it is null. Raises `UnknownNameError` for splits that do not exist."""
    if cfg.eval.splits is None:
        cfg.eval.splits = evaluation_splits(task_set)
    for key, split in (("split", cfg.split), *(("eval.splits", split) for split in cfg.eval.splits)):
        if split not in task_set.splits:
            raise UnknownNameError(key, str(split), task_set.splits)
        if key == "eval.splits" and split == SELECTION:
            raise ValueError(
                f"eval.splits cannot contain {split!r}: this is the name of the tasks that rank checkpoints"
            )


def _written(run: Path) -> list[Path]:
    """What a run has written there besides checkpoints. Raises `ValueError` if these files are not of a run."""
    found = [path for name in ("metrics.jsonl", "episodes", "evaluations") if (path := run / name).exists()]
    if found and not (run / COMMAND).is_file():
        raise ValueError(f"{run} contains files that are not of a training run; choose another hydra.run.dir")
    return found


def _clear(run: Path) -> None:
    """Remove the files of a run that ended before its first checkpoint."""
    for path in _written(run):
        remove_whole(path)


# -- the facts of a run -----------------------------------------------------------------------------------------------
LEFT_OUT = (  # settings that do not change the results
    "resume", "env.data", "logger", "trainer.checkpoint_async",
    *(f"algo.signals.judge.model.{key}" for key in ("concurrency", "timeout", "max_retries", "prices")),
)  # fmt: skip
MAY_DIFFER = ("versions.", "agents_code", "environment.code")  # facts about installed code, which may change on resume


def _facts(cfg: DictConfig, task_set: TaskSet, training: Manifest) -> Facts:
    """A description of the run, without the machine. Checkpoints store it, and `resume` compares it."""
    configured = without(plain(cfg), LEFT_OUT)
    splits = dict.fromkeys([cfg.split, *cfg.eval.splits])
    return {
        "environment": environment_facts(task_set, configured.pop("env")),
        "manifests": {split: task_set.manifest(split).facts() for split in splits},
        "training": training.facts(),  # without the tasks that rank checkpoints
        "config": configured,
        "agents_code": agents_hash(),
        "versions": versions(),
    }


def _compare(before: Facts, now: Facts, console: Terminal) -> None:
    """Print the allowed changes since the last start. Raises `ValueError` for all others."""
    if missing := sorted(now.keys() - before.keys()):
        raise DamagedError(
            f"{RUN} of the newest checkpoint is damaged, or of another version: it has no {', no '.join(missing)}"
        )
    shared = before["manifests"].keys() & now["manifests"].keys()  # other splits may be evaluated
    both = [{**facts, "manifests": {split: facts["manifests"][split] for split in shared}} for facts in (before, now)]
    refused, allowed = [], []
    for name, change in differences(*both).items():
        key = name.removeprefix("config.")
        may = name.startswith(MAY_DIFFER) or (key.partition(".")[0] in MAY_CHANGE["train"] and is_set_by_user(key))
        (allowed if may else refused).append(f"{key} {change}")
    if refused:
        raise ValueError(
            f"the run cannot be resumed with other settings: {in_words(refused)}. "
            f"Only {', '.join(MAY_CHANGE['train'])} may change, by an override of the command that resumes it"
        )
    for change in allowed:
        console.print(f"changed since the last start: {change}")


def _start(
    cfg: DictConfig,
    saved: Sequence[Path],
    task_set: TaskSet,
    manifest: Manifest,
    prompter: Prompter,
    pool: EnvPool,
    reporter: LiveReporter,
    parallel: Parallel,
) -> LocalPolicy:
    """The policy to train: the last of the `saved` checkpoints, a pretrained model, or a warm-started small policy."""
    from agents.policies.pretrained import Pretrained
    from algorithms.initial_policy import PretrainedPolicy, tiny_policy
    from algorithms.warm_start import warm_start

    start: TinyPolicy | Pretrained = instantiate(cfg.policy)
    masked = getattr(get_object(cfg.agent.player._target_), "masked", False)
    name = str(saved[-1]) if saved else checkpoint_of(cfg.model) if cfg.model else None
    if name is not None:
        loaded = (start if isinstance(start, Pretrained) else Pretrained()).load(name, trained=True)
        if isinstance(start, PretrainedPolicy) and start.warm_start is not None and not saved:
            tasks = [task_set.task(manifest.split, i) for i in manifest.ids]
            warm_start(loaded, prompter, task_set, tasks, pool, start.warm_start, cfg.seed, reporter, masked=masked)
        return loaded

    def made() -> tuple[LocalPolicy, Path]:
        return tiny_policy(start, task_set, manifest, prompter, pool, cfg.seed, reporter, plain(cfg), masked=masked)

    if parallel.ranks > 1:
        parallel.first(lambda: made()[1])  # into the cache: transformers saves on the first rank alone
    policy, kept = made()
    reporter.say(f"starting from {kept}")
    return policy


class _Evaluator:
    """Evaluates the current weights on every split of `eval.splits`, and on the tasks that rank the checkpoints.

    Keeps the last evaluations of the splits and the outcomes of their tasks. An evaluation of the training split leaves
    out the tasks that rank checkpoints.
    """

    def __init__(
        self,
        cfg: DictConfig,
        task_set: TaskSet,
        training: Manifest,
        selection: Manifest,
        agent: PolicyAgent,
        pool: EnvPool,
        reporter: LiveReporter,
        parallel: Parallel = ONE_PROCESS,
    ) -> None:
        splits = {split: task_set.manifest(split) for split in cfg.eval.splits}
        self.splits = splits | ({training.split: training} if training.split in splits else {})
        self.selection = selection
        self.cfg, self.task_set, self.agent = cfg, task_set, agent
        self.sampling = replace(agent.sampling, temperature=cfg.eval.temperature)
        self.pool, self.reporter, self.parallel = pool, reporter, parallel
        self.name = HydraConfig.get().runtime.choices["env"]
        self.evaluations: dict[str, Evaluation] = {}
        self.outcomes: dict[str, dict[str, Outcome]] = {}  # split -> task -> outcome
        self.episodes: dict[str, list[Episode]] = {}  # split -> its episodes, without prompts

    def __call__(self) -> tuple[Metrics, float | None]:
        """The metrics of all splits, and the success rate that ranks the checkpoint, if there is one."""
        metrics: Metrics = {}
        for split, manifest in self.splits.items():
            self.evaluations[split] = self._evaluate(split, manifest, self.cfg.eval.limit)
            metrics |= self.evaluations[split].metrics(f"eval/{self.name}/{split}")
        rates = [evaluation.success for evaluation in self.evaluations.values()]
        if len(rates) > 1:
            every = pooled(rates)
            metrics |= {
                f"eval/{self.name}/{ALL_SPLITS}/success": every.rate,
                f"eval/{self.name}/{ALL_SPLITS}/success_low": every.low,
                f"eval/{self.name}/{ALL_SPLITS}/success_high": every.high,
            }
        if not self.selection.ids:
            return metrics, None
        ranking = self._evaluate(SELECTION, self.selection)
        return metrics | ranking.metrics(f"eval/{self.name}/{SELECTION}"), ranking.success.rate

    def _evaluate(self, name: str, manifest: Manifest, limit: int | None = None) -> Evaluation:
        import torch

        generator = torch.Generator(self.agent.policy.device).manual_seed(self.cfg.seed)
        agent = replace(self.agent, sampling=self.sampling, generator=generator)
        self.reporter.phase(f"evaluate {name}", len(spread(manifest.ids, limit)))

        def play(agent: PolicyAgent, jobs: Sequence[Job]) -> list[Episode]:
            timeout = self.cfg.trainer.episode_timeout
            return rollout(
                agent, self.pool, jobs, episode_timeout=timeout, on_episode=lambda _: self.reporter.advance()
            )

        jobs = plan(self.task_set, manifest.split, (0,), limit, manifest.ids)
        key = (self.cfg.seed, EVALUATION, [*self.splits, SELECTION].index(name))
        episodes = self.parallel.play(agent, jobs, play, key)
        check_data(
            episodes
        )  # its success would be that of the tasks that are left, and of the missing ones as failures
        self.outcomes[name] = {
            episode.task.id: {"success": episode.success, "score": episode.score}
            for episode in sorted(episodes, key=lambda episode: episode.task.id)
        }
        self.episodes[name] = [
            replace(episode, turns=[replace(turn, prompt_ids=[]) for turn in episode.turns]) for episode in episodes
        ]
        return summarise(episodes)


@contextmanager
def _stop_on_signals(trainer: Trainer, reporter: LiveReporter) -> Iterator[None]:
    """The first Ctrl-C, SIGTERM or closed terminal ends the run after this update; a second one ends it at once.

    torchrun passes signals on to its processes, which may also get them from the terminal or the scheduler. Signals
    within `SAME_SIGNAL` seconds count as one.
    """
    first_signal = 0.0  # when the first signal came

    def stop(number: int, _: FrameType | None) -> None:
        nonlocal first_signal
        if trainer.stopping:
            if trainer.parallel.ranks > 1 and time.monotonic() - first_signal < SAME_SIGNAL:
                return
            raise KeyboardInterrupt
        trainer.stopping, first_signal = True, time.monotonic()
        if number == signal.SIGHUP:
            reporter.mute()
        reporter.say("finishing this update, then saving and stopping; press Ctrl-C again to stop now without saving")

    reporter.on_closed = lambda: setattr(trainer, "stopping", True)
    old = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


# -- the report of a run ----------------------------------------------------------------------------------------------
class _Report:
    """The report of a run, written from the files in its folder after the last update.

    RUN/evaluations/update-000010.json      an evaluation, with its settings and the outcome of every task
    RUN/evaluations/update-000010.SPLIT.jsonl.gz    its episodes
    RUN/curve.png, diagnostics.png, evaluation.md, evaluation.json
    """

    def __init__(self, cfg: DictConfig, run: Path, task_set: TaskSet, selection: Manifest) -> None:
        choices = HydraConfig.get().runtime.choices
        self.title = f"{choices['env']}, {choices['algo']}, seed {cfg.seed}"
        self.cfg, self.run, self.task_set, self.selection = cfg, run, task_set, selection
        self.settings = OmegaConf.to_container(cfg.eval)

    def _evaluation_file(self, update: int) -> Path:
        return self.run / "evaluations" / f"update-{update:06d}.json"

    def save(self, update: int, evaluator: _Evaluator) -> None:
        """Write the evaluations after an update, the outcome of each task by split, and the episodes."""
        folder, keep = self._evaluation_file(update).parent, self.cfg.trainer.record_keep
        for split, episodes in evaluator.episodes.items():
            file = folder / f"update-{update:06d}.{split}{SUFFIX}"
            write_record(file, Record(episodes, split=split, update=update))
            keep_newest(folder, f"update-*.{split}{SUFFIX}", keep)
        rows = {split: evaluation.to_json() for split, evaluation in evaluator.evaluations.items()}
        record = {"settings": self.settings, "evaluations": rows, "tasks": evaluator.outcomes}
        write_whole(self._evaluation_file(update), json.dumps(record, indent=1) + "\n")

    def evaluations(self, update: int) -> dict[str, Evaluation] | None:
        """The evaluations after an update; None if there are none, or if their settings were different."""
        try:
            kept = json.loads(self._evaluation_file(update).read_bytes())
            if kept["settings"] == self.settings:
                return {split: Evaluation.from_json(row) for split, row in kept["evaluations"].items()}
        except (FileNotFoundError, ValueError, KeyError, TypeError):  # missing or damaged
            pass
        return None

    def remove_after_update(self, update: int) -> None:
        """Remove the evaluations of later updates."""
        remove_after(update, self._evaluation_file(0).parent)

    def is_complete(self, newest: Path, config: TrainerConfig) -> bool:
        """Whether the run has ended with the checkpoint `newest`, and its report is written."""
        update = update_of(newest)
        steps = 0 if config.env_steps is None else int(load_state(newest, "env_steps")["env_steps"])
        if config.progress(update, steps) < 1.0 or self.evaluations(update) is None:
            return False
        files = self._files(update)
        return all((self.run / picture).is_file() for picture in PICTURES) and all(
            (self.run / f).is_file() and (self.run / f).read_bytes() == files[f].encode() for f in files
        )

    def write(self, update: int) -> str:
        """Write the report, evaluation.json last. Returns its text."""
        draw_pictures(self.run, self.title)
        files = self._files(update)
        for name, text in files.items():
            write_whole(self.run / name, text)
        return files["evaluation.md"].removeprefix(f"# {self.title}\n\n")

    def check(self, update: int) -> None:
        """Raises `BrokenEnvironmentError` if errors of the environment ended most episodes of an evaluation."""
        evaluations = self.evaluations(update) or {}
        if broken := [split for split, evaluation in evaluations.items() if evaluation.is_broken]:
            raise BrokenEnvironmentError(
                f"errors of the environment ended more than half of the episodes on {', '.join(broken)}"
            )

    def _files(self, update: int) -> dict[str, str]:
        checkpoint = checkpoint_folder(self.run, update)
        best = load_state(checkpoint, "best")["best"]
        evaluations = self.evaluations(update) or {}
        record = {
            "updates": update,
            "described": self.task_set.describe(),
            **load_run(checkpoint),
            "selection": {"split": self.cfg.split, "tasks": self.selection.ids, "best": best},
            "evaluations": {split: evaluation.to_json() for split, evaluation in evaluations.items()},
        }
        sections = [
            f"## {split}, {counted(update, 'update')}, temperature {self.cfg.eval.temperature:g}\n\n"
            f"{evaluation.to_markdown()}"
            for split, evaluation in evaluations.items()
        ]
        played = [self.task_set.manifest(split).describe() for split in record["manifests"]]
        if self.cfg.eval.limit is not None:
            played.append(_limited(self.cfg.eval.limit))
        parts = [
            self.task_set.describe(), *played, _history(self.run / "metrics.jsonl"),
            _choice(self.selection, best), "\n".join(sections),
        ]  # fmt: skip
        return {
            "evaluation.md": "\n\n".join([f"# {self.title}", *parts]),
            "evaluation.json": json.dumps(record, indent=2),
        }


def _limited(limit: int) -> str:
    return f"Evaluations play at most {limit} tasks of each split, evenly spaced over its sorted ids (eval.limit)."


def _choice(selection: Manifest, best: tuple[float, int] | None) -> str:
    """Which checkpoint `model=RUN_DIR` loads, and why."""
    if best is None:
        return "No tasks ranked the checkpoints (eval.selection_tasks=0); `model=RUN_DIR` loads the newest one.\n"
    return (
        f"The best checkpoint is the one after {counted(best[1], 'update')}: it solved {best[0]:.1%} of the "
        f"{len(selection.ids)} tasks of {selection.split} that are held out from training to rank checkpoints "
        f"({SELECTION}). Of equal checkpoints, the first is the best. `model=RUN_DIR` loads it.\n"
    )


def _history(metrics_file: Path) -> str:
    """A table of the success rates of all evaluations of the run, with 95 % intervals."""
    lines = read_json_lines(metrics_file)
    prefixes = list(dict.fromkeys(key.removesuffix("/success") for line in lines for key in line if is_success(key)))
    rows = [
        f"| update | {' | '.join(prefix.rpartition('/')[2] for prefix in prefixes)} |",
        f"|---:{'|---:' * len(prefixes)}|",
    ]
    for line in lines:
        if all(f"{prefix}/success" in line for prefix in prefixes):
            cells = [
                f"{line[f'{p}/success']:.1%} ({line[f'{p}/success_low']:.1%} – {line[f'{p}/success_high']:.1%})"
                for p in prefixes
            ]
            rows.append(f"| {line['update']} | {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    main()
