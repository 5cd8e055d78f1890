"""Kill runs at random moments, resume them, and compare all their files with those of an uninterrupted run.

    python -m tests.kills --kills 20              # of each kind
    python -m tests.kills --kills 3 --kind report --seed 7

Kinds: `updates` saves at every update, `background` does so in a thread; `best` evaluates and saves at every update,
and each is better than the last; `warm_start` begins with an empty cache, and is killed until it has cloned; `report`
has all its updates and is killed while it writes what came of them; `evaluation` is one of `scripts.evaluate`. Files
must be equal byte for byte, but for times (in metrics.jsonl and checksums.json), the order in which the episodes of an
evaluation ended, and the folder's own name; states are compared tensor by tensor. Every run is a fork of this process,
which has imported torch and computed nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from algorithms.trainer import Trainer
from scripts import common, evaluate, train
from scripts.run_folder import COMMAND

TINY = [
    "env=key_corridor", "env.train_tasks=16", "env.valid_tasks=3", "eval.selection_tasks=4",
    "env.rooms=4", "env.max_turns=6",
    "eval.splits=[valid]",
    "policy.width=32", "policy.layers=1", "policy.heads=2", "+policy.seed=0",
    "policy.warm_start.episodes=20", "policy.warm_start.steps=30", "policy.warm_start.max_turns=8",
    "trainer.updates=3", "trainer.groups=2", "trainer.group_size=2", "trainer.max_turns=6",
    "trainer.micro_batch_tokens=999",
]  # fmt: skip
EVERY_UPDATE = [*TINY, "trainer.eval_every=0", "trainer.checkpoint_every=1"]
BACKGROUND = [*EVERY_UPDATE, "trainer.checkpoint_async=true"]
BEST = [*TINY, "trainer.eval_every=1", "trainer.checkpoint_every=1", "trainer.learning_rate=2e-3"]
PATIENCE_S = 900.0  # for a run of seconds, on a machine with other work


class RisingTrainer(Trainer):
    """Its evaluations rank every update above those before it."""

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        evaluate = self.evaluate
        self.evaluate = lambda: (evaluate()[0], 0.1 * self.update)


def rising() -> None:
    """Training whose last update is its best."""
    train.Trainer = RisingTrainer  # type: ignore[misc] # in this fork alone
    train.main()


class Runs:
    """Starts commands in forks of this process."""

    def __init__(self, cache: Path) -> None:
        self.cache = cache

    def start(self, main: Callable[[], None], arguments: list[str], log: Path) -> int:
        """Start a command, whose output goes into `log`. Returns its process id."""
        pid = os.fork()
        if pid:
            return pid
        code = 70
        try:
            descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            os.environ["POLYTURN_CACHE"] = str(self.cache)
            sys.argv = ["kills", *arguments]
            try:
                common.run(main)
                code = 0
            except SystemExit as end:
                code = int(end.code or 0)
            sys.stdout.flush()
        finally:
            os._exit(code)

    def finish(self, main: Callable[[], None], arguments: list[str], log: Path) -> float:
        """Run a command, which must succeed. Returns its seconds."""
        begun = time.monotonic()
        code = ended(self.start(main, arguments, log), PATIENCE_S)
        if code != 0:
            raise SystemExit(f"{' '.join(arguments)} ended with {code}:\n{log.read_text()}")
        return time.monotonic() - begun

    def kill(self, main: Callable[[], None], arguments: list[str], log: Path, after: float) -> bool:
        """Whether a command still ran after so many seconds, and was killed."""
        return ended(self.start(main, arguments, log), after) == -signal.SIGKILL


def ended(pid: int, patience: float) -> int:
    """The exit code of a process, which is killed after so many seconds."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# -- what must be equal -----------------------------------------------------------------------------------------------
def contents(run: Path) -> dict[str, Any]:
    """Every file of a run by its name, without times and without where the run is."""
    return {str(path.relative_to(run)): content(path, run) for path in sorted(run.rglob("*")) if path.is_file()}


def content(path: Path, run: Path) -> Any:
    """The content of a file."""
    if path.name == "metrics.jsonl":
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        return [{k: v for k, v in line.items() if not k.startswith(("time/", "perf/"))} for line in lines]
    if path.name == "episodes.jsonl":  # of an evaluation, as they end: what is missing is played first
        return sorted(path.read_text().splitlines())
    if path.name == "evaluation.md":  # without its times
        return [line.replace(str(run), "RUN") for line in path.read_text().splitlines() if not line.startswith("Used:")]
    if path.name == "evaluation.json" and "usage" in (record := json.loads(path.read_bytes())):
        return {name: value for name, value in record.items() if name != "usage"}
    if path.name == "usage.jsonl":  # times
        return None
    if path.name == "checksums.json":
        return {name: row[:2] for name, row in json.loads(path.read_bytes()).items()}  # then its times
    if path.name == "trainer.pt":
        return plain(torch.load(path, weights_only=True))
    return path.read_bytes().replace(str(run).encode(), b"RUN")


def plain(state: Any) -> Any:
    """Tensors as bytes, so that `==` compares them."""
    if isinstance(state, dict):
        return {key: plain(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return [plain(value) for value in state]
    if isinstance(state, torch.Tensor):
        return str(state.dtype), tuple(state.shape), state.numpy().tobytes()
    return state


def differing(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """The files that are not equal."""
    names = sorted({*one, *other})
    return [f"{name} ({'differs' if name in one and name in other else 'on one side'})" for name in names
            if one.get(name) != other.get(name)]  # fmt: skip


# -- the kinds --------------------------------------------------------------------------------------------------------
class Kind:
    """A kind of run, and when it is killed."""

    def __init__(self, name: str, base: Path, cache: Path) -> None:
        self.name, self.base, self.cache = name, base, cache
        self.main = {"evaluation": evaluate.main, "best": rising}.get(name, train.main)
        self.arguments = BEST if name in ("best", "report") else EVERY_UPDATE
        if name == "background":
            self.arguments = BACKGROUND
        if name == "evaluation":
            self.arguments = ["env=key_corridor", "env.valid_tasks=20", "agent=random", "split=valid", "seeds=[0,1,2]"]
        self.whole = base / "whole" / "run"
        self.whole.parent.mkdir(parents=True)
        seconds = Runs(cache).finish(self.main, self.command(self.whole), base / "whole.log")
        self.expected = contents(self.whole)
        if name == "report":
            seconds = self.report_seconds()
        if name == "warm_start":
            seconds = Runs(base / "cold").finish(self.main, self.command(base / "cold_run"), base / "cold.log")
            metrics = (base / "cold_run" / "metrics.jsonl").stat()
            seconds -= time.time() - metrics.st_mtime
            seconds = max(seconds, 0.5)
        self.seconds = seconds

    def command(self, run: Path) -> list[str]:
        """The command that starts the run, or resumes it."""
        if (run / COMMAND).exists():
            return [f"resume={run}"]
        return [*self.arguments, f"hydra.run.dir={run}"]

    def without_report(self, run: Path) -> None:
        """A copy that has all its updates, and was killed before its report."""
        shutil.copytree(self.whole, run)
        for name in ("evaluation.json", "evaluation.md", "curve.png"):
            (run / name).unlink()
        for name in ("command.json", ".hydra/hydra.yaml"):
            (run / name).write_text((run / name).read_text().replace(str(self.whole), str(run)))

    def report_seconds(self) -> float:
        """The seconds of a start that only writes the report."""
        self.without_report(self.base / "timed")
        return Runs(self.cache).finish(self.main, self.command(self.base / "timed"), self.base / "timed.log")

    def trial(self, number: int, rng: random.Random) -> tuple[float, bool, list[str]]:
        """The seconds until the kill, whether the run was still running, and the differences after resuming it."""
        run, log = self.base / f"trial-{number}" / "run", self.base / f"trial-{number}.log"
        runs = Runs(self.base / f"cache-{number}" if self.name == "warm_start" else self.cache)
        run.parent.mkdir()
        if self.name == "report":
            self.without_report(run)
        after = rng.uniform(0.0, self.seconds)
        killed = runs.kill(self.main, self.command(run), log, after)
        runs.finish(self.main, self.command(run), log)
        different = differing(self.expected, contents(run))
        before = {path: path.stat() for path in run.rglob("*")}
        runs.finish(self.main, self.command(run), log)
        after_that = {path: path.stat() for path in run.rglob("*")}
        if [*map(changed, before.values())] != [*map(changed, after_that.values())]:
            different.append("going on with a complete run has touched it")
        if not different:
            shutil.rmtree(run.parent)
        return after, killed, different


def changed(status: os.stat_result) -> tuple[int, int, int]:
    """A value that changes whenever a file is written."""
    return status.st_ino, status.st_size, status.st_mtime_ns


KINDS = ("updates", "background", "best", "warm_start", "report", "evaluation")


def main() -> None:
    """Kill, resume, compare, and print the differences."""
    parser = argparse.ArgumentParser(prog="python -m tests.kills")
    parser.add_argument("--kills", type=int, default=20, help="of each kind")
    parser.add_argument("--kind", choices=KINDS, action="append", help="all of them by default")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    args = parser.parse_args()
    print(f"seed {args.seed}", flush=True)
    base = Path(tempfile.mkdtemp(prefix="kills-"))
    failures = 0
    for name in args.kind or KINDS:
        kind = Kind(name, base / name, base / "cache")
        rng = random.Random(f"{args.seed} {name}")
        done = killed_count = 0
        while killed_count < args.kills and done < 3 * args.kills:
            after, killed, different = kind.trial(done, rng)
            done, killed_count = done + 1, killed_count + killed
            if different:
                failures += 1
                print(f"{name}, killed after {after:.3f} s: {', '.join(different)} in {kind.base}/trial-{done - 1}")
        print(f"{name}: {killed_count} kills within {kind.seconds:.1f} s, {failures} differences so far", flush=True)
    if failures:
        raise SystemExit(1)
    shutil.rmtree(base)


if __name__ == "__main__":
    main()
