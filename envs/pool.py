"""Many environments side by side, with a deadline on each of their calls.

    with EnvPool(task_set.make, size=8, workers=2, step_timeout=30) as pool:
        outcomes = pool.reset({0: task, 1: task})
        outcomes = pool.step({0: "look", 1: "go to desk 1"})
        states = {slot: outcome.snapshot for slot, outcome in pool.snapshot([0, 1]).items()}
        outcomes = pool.restore({5: states[0]})  # slot 5 continues from the state of slot 0

A *slot* is the place of one environment. With `workers=0` all slots are in this process (`envs.pool_threads`); with
`workers=n` they are spread over n processes (`envs.pool_worker`), slot s in worker s mod n. Outcomes do not depend on
the number of workers: tasks and seeds are given, never drawn.

An environment stays in one thread from when it is made until it is closed, so objects that are bound to a thread work
(SQLite, an event loop, a browser). With `workers=0` each has its own thread. In a worker all have the main thread,
where signals arrive: `signal.alarm` works, and is stopped when the call ends. Environments of one process never run
at the same time.

If an environment misbehaves:

1. It raises, or returns something that `envs.checks` cannot read: its outcome has `ENV_ERROR` and the traceback. The
   environment is closed and dropped; the next reset or restore of its slot makes a new one. Other slots are not
   affected. An environment without snapshots raises when a snapshot is requested.
2. It exceeds its deadline: its outcome has `STEP_TIMEOUT` and the stack of its call. An exception is raised in its
   thread, and it is dropped. Other slots are not affected.
3. It ends its process, or hangs in C code that does not release the interpreter. With `workers=0` the pool cannot help.
   A worker is killed and replaced, and its environments are restored: their actions since the reset are repeated, and
   have to give the same observations. Otherwise the outcome has `ENV_ERROR` and is `lost`: the episode has to be
   restarted.
4. The environment whose call was running has not always ended the process: another one may have left a thread or a
   timer. So it is restored in a worker of its own, and stays there until its episode ends. If that worker ends too, it
   has failed. A lost episode is restarted in such a worker.
5. It raises `NoDataError`: no other task can be played either. The pool raises this error in the caller.
"""

from __future__ import annotations

import pickle
import time
import warnings
import weakref
from collections.abc import Iterable, Mapping
from multiprocessing.connection import wait
from types import TracebackType
from typing import Any

from envs.core import NoDataError, Task
from envs.pool_env import STARTING, Command, EnvFailure, Make, Outcome
from envs.pool_threads import ThreadedEnvs
from envs.pool_worker import Worker

__all__ = ["EnvFailure", "EnvPool", "Outcome"]

CHECK_SECONDS = 1.0  # between two checks that a worker lives: a process that it started may keep its pipe open


class EnvPool:
    """`size` environments made by `make`, each of its calls under a deadline of `step_timeout` seconds.

    With `workers` > 0, `make` is sent to other processes and must be picklable (`TypeError` if it is not), and a
    worker that cannot start raises `RuntimeError`; at most one worker a slot is started.
    """

    def __init__(self, make: Make, size: int, workers: int = 0, step_timeout: float = 30.0) -> None:
        if size < 1 or workers < 0 or step_timeout <= 0:
            raise ValueError(
                "EnvPool needs size >= 1, workers >= 0 and step_timeout > 0, "
                f"got size={size}, workers={workers}, step_timeout={step_timeout}"
            )
        self.size = size
        self._timeout = step_timeout
        self._local = ThreadedEnvs(make, step_timeout) if workers == 0 else None
        if self._local:  # its threads would keep it; workers end with their pipes
            weakref.finalize(self, self._local.end).atexit = False
        self._closed = False
        self._workers: list[Worker] = []
        self._alone: dict[int, Worker] = {}  # by slot: workers with this slot only
        self._lost: set[int] = set()  # slots whose next episode is played in a worker of its own
        if workers:
            packed = _pickled(make, workers)
            try:
                for index in range(min(workers, size)):
                    self._workers.append(Worker(index, packed, step_timeout))
                    self._workers[-1].start()
                self._wait_for_workers({})
                if problems := [worker.problem for worker in self._workers if worker.problem]:
                    raise RuntimeError(problems[0])
            except BaseException:
                self._end()
                raise

    def reset(self, tasks: Mapping[int, Task], seeds: Mapping[int, int] | None = None) -> dict[int, Outcome]:
        """Start an episode in each of the given slots; a slot without a seed in `seeds` takes its task's."""
        seeds = seeds or {}
        return self._call([Command(slot, "reset", task, seeds.get(slot, task.seed)) for slot, task in tasks.items()])

    def step(self, actions: Mapping[int, str]) -> dict[int, Outcome]:
        """Play one action in each of the given slots."""
        return self._call([Command(slot, "step", action) for slot, action in actions.items()])

    def snapshot(self, slots: Iterable[int]) -> dict[int, Outcome]:
        """Take the state of the episode in each of the given slots; it is in the outcome's `snapshot`."""
        return self._call([Command(slot, "snapshot") for slot in slots])

    def restore(self, snapshots: Mapping[int, Any]) -> dict[int, Outcome]:
        """Continue each of the given slots from the snapshot of any slot."""
        return self._call([Command(slot, "restore", snapshot) for slot, snapshot in snapshots.items()])

    def close(self) -> None:
        """Close every environment and end every worker, with a warning for each failure. May be called twice."""
        if self._closed:
            return
        try:
            for slot, outcome in self._call([Command(slot, "close") for slot in range(self.size)]).items():
                if outcome.error:
                    warnings.warn(f"closing env {slot} failed:\n{outcome.error.text}", RuntimeWarning, stacklevel=2)
        finally:
            self._end()

    def __enter__(self) -> EnvPool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _call(self, commands: list[Command]) -> dict[int, Outcome]:
        """Run commands. Raises `NoDataError` if an environment did."""
        outcomes = self._run(commands)
        for outcome in outcomes.values():
            if outcome.error and outcome.error.no_data:
                raise NoDataError(outcome.error.no_data)
        return outcomes

    def _run(self, commands: list[Command]) -> dict[int, Outcome]:
        if self._closed:
            raise RuntimeError("the pool is closed")
        if outside := [c.slot for c in commands if not 0 <= c.slot < self.size]:
            raise IndexError(f"slot {outside[0]} does not exist: this pool has slots 0 to {self.size - 1}")
        if self._local:
            return self._local.run(commands)
        results: dict[int, Outcome] = {}
        self._assign_workers([command.slot for command in commands if command.what in STARTING])
        for worker, given in self._by_worker(commands):
            worker.submit(given, results)
        self._wait_for_workers(results)
        self._lost |= {slot for slot, outcome in results.items() if outcome.error and outcome.error.lost}
        return {command.slot: results[command.slot] for command in commands}

    def _assign_workers(self, starting: list[int]) -> None:
        """Choose the workers of slots that start an episode: one of its own for a lost slot, else the shared one."""
        back = [slot for slot in starting if slot in self._alone and slot not in self._lost]
        for slot in back:
            self._alone[slot].submit([Command(slot, "close")], {})
        self._wait_for_workers({})
        for slot in back:
            worker = self._alone.pop(slot)
            worker.close_pipe()
            worker.stop()
        for slot in self._lost & set(starting) - self._alone.keys():
            self._alone[slot] = self._shared_worker(slot).separate(slot)
        self._lost -= set(starting)

    def _shared_worker(self, slot: int) -> Worker:
        return self._workers[slot % len(self._workers)]

    def _by_worker(self, commands: list[Command]) -> list[tuple[Worker, list[Command]]]:
        """The commands of each worker."""
        given: dict[int, tuple[Worker, list[Command]]] = {}
        for command in commands:
            worker = self._alone.get(command.slot) or self._shared_worker(command.slot)
            given.setdefault(id(worker), (worker, []))[1].append(command)
        return list(given.values())

    def _end(self) -> None:
        self._closed = True
        for worker in [*self._workers, *self._alone.values()]:
            worker.close_pipe()
        for worker in [*self._workers, *self._alone.values()]:
            worker.stop()

    def _wait_for_workers(self, results: dict[int, Outcome]) -> None:
        """Receive outcomes until there is one for every command, and no worker is starting."""
        try:
            while busy := {w.connection: w for w in [*self._workers, *self._alone.values()] if w.busy}:
                soonest = min(worker.deadline for worker in busy.values())
                ready = wait(list(busy), timeout=min(max(0.0, soonest - time.monotonic()), CHECK_SECONDS))
                for connection, worker in busy.items():
                    if connection in ready or (worker.has_ended and not connection.poll()):
                        worker.receive(results, ended=connection not in ready)
                    elif time.monotonic() >= worker.deadline and not connection.poll():
                        worker.kill_late(results)
                    elif not ready:
                        worker.resume()
                    if command := worker.take_suspect():
                        self._alone[command.slot] = worker.separate(command.slot)
                        self._alone[command.slot].submit([command], results)
        except BaseException:  # usually Ctrl-C: later commands must not get the outcomes of these
            for worker in [*self._workers, *self._alone.values()]:
                worker.take_suspect()
                if worker.busy:
                    worker.pending = []
                    worker.kill()
            raise


def _pickled(make: Make, workers: int) -> bytes:
    try:
        return pickle.dumps(make)
    except Exception as error:
        raise TypeError(
            f"EnvPool(workers={workers}) sends `make` to other processes, and {make!r} cannot be pickled ({error}); "
            "expected a function or class of a module, a functools.partial of one, or a method of a picklable object"
        ) from error
