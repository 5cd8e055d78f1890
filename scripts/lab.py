"""Compare methods from one warm start: `python -m scripts.lab +experiment=lab_alfworld algos=[grpo,gigpo] seeds=[0,1]`.

Each run is its own process, `python -m scripts.train … algo=gigpo seed=1 hydra.run.dir=DIR/gigpo/1`, with its output in
DIR/logs. It ends if the laboratory is killed. At the end, DIR has report.md, report.json and the pictures
(`scripts.lab_report`).

`resume=DIR` continues: finished runs are kept, interrupted runs resume from their last checkpoint, and methods and
seeds can be added. If a run fails, the others continue, and the report shows the failure.

`lab.join=[FILE]` adds finished runs of another folder or machine, from its runs.json, to the report. They are not run
again.

With `lab.rates=[3e-4,1e-3]` every method is trained with each of these learning rates, and evaluated only on tasks that
are held out from training (tuning.md, tuning.json).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

import conf
from agents.evaluation import Evaluation
from envs.core import UnknownNameError
from scripts.agents import check_model
from scripts.common import Terminal, command, make_task_set
from scripts.lab_report import NOT_RUN, Ending, LabRun, Variant, read_runs, write_report, write_tuning
from scripts.run_folder import PARENT, Command, locked, override_key, quoted, resume_command
from scripts.settings import check_settings

OWN = ("algos", "seeds", "lab")  # settings that scripts.train does not have
SET = {"algo": "algos", "seed": "seeds"}  # setting of a run -> setting of the laboratory


@dataclass(frozen=True)
class Job:
    """One training run of the laboratory."""

    variant: Variant
    folder: Path
    log: Path
    overrides: tuple[str, ...]  # of scripts.train
    config_dirs: tuple[str, ...]

    @property
    def is_finished(self) -> bool:
        """Whether the run is complete and has the same overrides."""
        try:
            if {*Command.of_run(self.folder, "train").overrides} != {*self.overrides}:
                return False
            evaluations = json.loads((self.folder / "evaluation.json").read_bytes())["evaluations"]
            return not any(Evaluation.from_json(row).is_broken for row in evaluations.values())
        except (OSError, ValueError, KeyError, TypeError):  # missing or damaged
            return False

    def start(self, processes: int) -> subprocess.Popen[bytes]:
        """Start the run, or resume it."""
        arguments = [*(f"--config-dir={path}" for path in self.config_dirs), *self.overrides]
        where = quoted(self.folder)
        begun = (self.folder / "command.json").is_file()
        arguments += [f"resume={where}"] if begun else [f"hydra.run.dir={where}"]
        self.log.parent.mkdir(parents=True, exist_ok=True)
        threads = str(max(1, (os.cpu_count() or 1) // processes))
        with self.log.open("wb") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "scripts.train", *arguments],
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                env={"OMP_NUM_THREADS": threads, **os.environ, PARENT: str(os.getpid())}, start_new_session=True,
            )  # fmt: skip

    def ending(self, code: int) -> Ending:
        """How the run ended, from the exit code of its process."""
        if self.is_finished and code == 0:
            return Ending.of_finished()
        if code < 0:
            return Ending(finished=False, error=f"killed by {signal.Signals(-code).name}")
        if code == 0:
            return Ending(finished=False, error="stopped before its end")
        lines = self.log.read_text(encoding="utf-8", errors="replace").split("\n")
        errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        last = errors or [line.strip() for line in lines if line.strip()] or [f"exit code {code}"]
        return Ending(finished=False, error=last[-1])


@command("lab")
def main(cfg: DictConfig) -> None:
    """Run the laboratory in its folder, which is locked for this process."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    with locked(folder):
        _run(cfg, folder)


def _run(cfg: DictConfig, folder: Path) -> None:
    this_command = Command.of_this_process("lab")
    jobs = list(_jobs(cfg, folder, this_command))
    console = Terminal(soft_wrap=True)
    finished = [job for job in jobs if job.is_finished]
    endings = {job.variant: Ending.of_finished() for job in finished}
    joined = _joined([Path(path) for path in cfg.lab.join], [job for job in jobs if job not in finished])
    endings |= {variant: run.ending for variant, run in joined.items()}
    from_files = f", {len(joined)} more are in the files of lab.join" if joined else ""
    console.print(f"{len(jobs)} runs in {folder}: {len(finished)} are finished already{from_files}")
    missing = [job for job in jobs if job.variant not in endings]
    if missing and cfg.lab.processes:
        make_task_set(cfg).manifest(cfg.split)  # without tasks every run would fail
    this_command.save(folder, cfg)
    try:
        if cfg.lab.processes:
            with closing(_run_all(missing, cfg.lab.processes)) as ended:
                for job, ending, seconds in ended:
                    endings[job.variant] = ending
                    what = f"finished, {seconds:.0f} s" if ending.finished else f"{ending}; see {job.log}"
                    console.print(f"{len(endings)}/{len(jobs)} {job.variant}: {what}")
    finally:
        runs = [
            joined.get(job.variant) or LabRun.read(job.variant, job.folder, endings.get(job.variant, NOT_RUN))
            for job in jobs
        ]
        if cfg.lab.rates:
            text = write_tuning(folder, runs)
        else:
            text = write_report(folder, runs, this_command, cfg.lab.baseline, cfg.lab.seconds)
        if len(endings) < len(jobs):
            console.print(f"{len(jobs) - len(endings)} runs are missing; resume with: {resume_command('lab', folder)}")
    console.print(text)
    console.print(f"in {folder}: " + ", ".join(sorted(path.name for path in folder.iterdir() if path.is_file())))
    if broken := [str(variant) for variant, ending in endings.items() if not ending.finished]:
        raise ValueError(f"{len(broken)} of {len(jobs)} runs failed ({', '.join(broken)}); the report shows them")


# -- the runs ---------------------------------------------------------------------------------------------------------
def _jobs(cfg: DictConfig, folder: Path, this_command: Command) -> Iterator[Job]:
    """A run for each method, rate and seed. Raises if the configuration of a method is wrong, before any run starts."""
    keys = {override_key(override) for override in this_command.overrides}
    for key, own in SET.items():
        if key in keys:
            raise ValueError(f"scripts.lab sets {key} for each run: use {own}=[…] instead")
    if cfg.lab.rates and not cfg.eval.selection_tasks:
        raise ValueError("lab.rates needs tasks that are held out from training, but eval.selection_tasks is 0")
    shared = [o for o in this_command.overrides if override_key(o).partition(".")[0] not in OWN]
    tuned = tuned_settings(HydraConfig.get().runtime.choices["env"], this_command.config_dirs)
    methods = {algo: [f"algo={algo}", *tuned.get(algo, []), *shared] for algo in cfg.algos}
    composed = [hydra.compose("config", overrides) for overrides in methods.values()]
    for one in composed:
        check_settings(one, "config")  # as scripts.train does
    if composed and composed[0].model:  # the same for all methods
        check_model(composed[0])
    if cfg.lab.baseline not in cfg.algos and not cfg.lab.rates:
        raise UnknownNameError("lab.baseline", cfg.lab.baseline, list(cfg.algos))
    for algo, overrides in methods.items():
        for rate in cfg.lab.rates or [None]:
            for seed in cfg.seeds:
                variant = Variant(algo, seed, rate)
                tried = [] if rate is None else [f"trainer.learning_rate={rate!r}", "eval.splits=[]"]
                yield Job(
                    variant,
                    folder / variant.path,
                    folder / "logs" / f"{'-'.join(variant.path.parts)}.txt",
                    (*overrides, *tried, f"seed={seed}"),
                    (*this_command.config_dirs,),
                )


def _joined(paths: Sequence[Path], jobs: Sequence[Job]) -> dict[Variant, LabRun]:
    """The finished runs in files of `scripts.lab_report.write_runs` that are those of `jobs`.

    Raises `ValueError` if a run of a job had other settings.
    """
    wanted = {job.variant: job for job in jobs}
    joined: dict[Variant, LabRun] = {}
    for path in paths:
        for run in read_runs(path):
            job = wanted.get(run.variant)
            if job is None or not run.ending.finished:
                continue
            if different := sorted({*run.overrides} ^ {*job.overrides}):
                raise ValueError(f"lab.join: {run.variant} in {path} had other settings than here: {different}")
            joined[run.variant] = run
    return joined


def tuned_settings(env: str, config_dirs: Sequence[str]) -> dict[str, list[str]]:
    """Overrides of scripts.train by method, from `tuned/<env>.yaml` in a folder of `config_dirs` or in `conf`."""
    for folder in (*config_dirs, Path(conf.__file__).parent):
        if (path := Path(folder, "tuned", f"{env}.yaml")).is_file():
            return cast(dict[str, list[str]], OmegaConf.to_container(OmegaConf.load(path)))
    return {}


# -- running them -----------------------------------------------------------------------------------------------------
def _run_all(jobs: Sequence[Job], processes: int) -> Generator[tuple[Job, Ending, float]]:
    """Run `jobs`, this many `processes` at a time, and yield each with its ending and its seconds.

    If the generator is closed, the running jobs get SIGTERM: they finish their update and save.
    """
    running: dict[Job, subprocess.Popen[bytes]] = {}
    stopping = threading.Event()
    starting = threading.Lock()

    def run(job: Job) -> tuple[int, float] | None:
        began = time.monotonic()
        with starting:
            if stopping.is_set():
                return None
            process = running[job] = job.start(processes)
        code = process.wait()
        del running[job]
        return code, time.monotonic() - began

    with ThreadPoolExecutor(processes) as executor:
        futures = {executor.submit(run, job): job for job in jobs}
        try:
            for future in as_completed(futures):
                if (ended := future.result()) is not None:
                    yield futures[future], futures[future].ending(ended[0]), ended[1]
        finally:
            with starting:
                stopping.set()
                for process in list(running.values()):
                    process.send_signal(signal.SIGTERM)


if __name__ == "__main__":
    main()
