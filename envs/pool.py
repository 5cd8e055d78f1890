"""Many environments side by side, with a deadline on everything that they do.

    with EnvPool(task_set.make, size=8, workers=2, step_timeout=30) as pool:
        outcomes = pool.reset({0: task, 1: task})
        outcomes = pool.step({0: "look", 1: "go to desk 1"})
        states = {slot: outcome.snapshot for slot, outcome in pool.snapshot([0, 1]).items()}
        outcomes = pool.restore({5: states[0]})  # slot 5 goes on where slot 0 was

A *slot* is the place of one environment. `workers=0` plays all slots in this process, `workers=n` spreads them over
n processes (slot s lives in worker s mod n). What comes back does not depend on the number of workers: tasks and
seeds are given, never drawn.

What happens when an environment misbehaves:

1. It raises: its outcome carries `ENV_ERROR` and the traceback. The environment is closed and dropped; the next
   reset or restore of its slot makes a new one. No other slot notices. An environment that has no snapshots raises
   when it is asked for one.
2. It outlives its deadline: its outcome carries `STEP_TIMEOUT` and the stack it was stuck in. Environments run in a
   thread of their own, which is given up and told to end; the other slots go on in a new thread.
3. It stops its whole process (it crashes it, or hangs in C code without releasing the GIL). In a worker, that worker
   is killed and replaced, and the other environments in it are lost too: their next outcome carries `ENV_ERROR` and
   says so. With `workers=0` nothing can help against this one.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any, Literal, NamedTuple, TypeAlias

import gymnasium as gym

from envs.checks import check_contract, checked_reset, checked_step
from envs.core import EpisodeOverError, Info, StopReason, Task

Make: TypeAlias = Callable[[], gym.Env[str, str]]

# Making an environment may import its engine, and a worker has to start Python: neither is as quick as a step.
START_SECONDS = 120.0
# How much later than a worker itself its parent gives a step up: only a worker that no longer runs gets this far.
GRACE_SECONDS = 5.0
MAKING = ("reset", "restore")  # the commands that make an environment where there is none


class EnvFailure(NamedTuple):
    """Why an environment gave no answer: `STEP_TIMEOUT` or `ENV_ERROR`, and the traceback or stack as text."""

    reason: StopReason
    text: str


@dataclass(slots=True)
class Outcome:
    """What a command came to. With an `error` the episode is over and the other fields say nothing.

    `reset` and `step` fill all but `snapshot`, which alone is what `snapshot` fills, and `restore` fills nothing.
    `seconds` is how long the environment itself took for any of them, without being made and without waiting its turn.
    """

    observation: str = ""
    reward: float = 0.0
    terminated: bool = False
    truncated: bool = False
    info: Info = field(default_factory=dict)
    snapshot: Any = None
    error: EnvFailure | None = None
    seconds: float = field(default=0.0, compare=False)

    @property
    def over(self) -> bool:
        """Whether the episode has ended, in whichever way."""
        return self.terminated or self.truncated or self.error is not None


class _Command(NamedTuple):
    slot: int
    what: Literal["reset", "step", "snapshot", "restore", "close"]
    value: Any = None  # the task of a reset, the action of a step, the snapshot of a restore
    seed: int | None = None


def _failed(reason: StopReason, text: str) -> Outcome:
    return Outcome(error=EnvFailure(reason, text))


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
        self._local = _Host(make, step_timeout) if workers == 0 else None
        self._lost: dict[int, str] = {}  # slots whose environment went down with its worker, and how
        self._closed = False
        self._workers: list[_Worker] = []
        if workers:
            packed = _pickled(make, workers)
            try:
                for index in range(min(workers, size)):
                    self._workers.append(_Worker(index, packed, step_timeout))
                for worker in self._workers:
                    worker.await_ready()
            except BaseException:
                self._end()
                raise

    def reset(self, tasks: Mapping[int, Task], seeds: Mapping[int, int] | None = None) -> dict[int, Outcome]:
        """Start an episode in each of the given slots; a slot without a seed in `seeds` takes its task's."""
        seeds = seeds or {}
        return self._call([_Command(slot, "reset", task, seeds.get(slot, task.seed)) for slot, task in tasks.items()])

    def step(self, actions: Mapping[int, str]) -> dict[int, Outcome]:
        """Play one action in each of the given slots."""
        return self._call([_Command(slot, "step", action) for slot, action in actions.items()])

    def snapshot(self, slots: Iterable[int]) -> dict[int, Outcome]:
        """Take the state of the episode in each of the given slots; it is in the outcome's `snapshot`."""
        return self._call([_Command(slot, "snapshot") for slot in slots])

    def restore(self, snapshots: Mapping[int, Any]) -> dict[int, Outcome]:
        """Put each of the given slots, whatever it was doing, into a state that any slot was in."""
        return self._call([_Command(slot, "restore", snapshot) for slot, snapshot in snapshots.items()])

    def close(self) -> None:
        """Close every environment and end every worker; what fails on the way is warned of. May be called twice."""
        if self._closed:
            return
        slots = [slot for slot in range(self.size) if self._local or self._worker(slot).ready]
        try:
            for slot, outcome in self._call([_Command(slot, "close") for slot in slots]).items():
                if outcome.error:
                    warnings.warn(f"closing env {slot} failed:\n{outcome.error.text}", RuntimeWarning, stacklevel=2)
        finally:
            self._end()

    def __enter__(self) -> EnvPool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _call(self, commands: list[_Command]) -> dict[int, Outcome]:
        if self._closed:
            raise RuntimeError("the pool is closed")
        if outside := [c.slot for c in commands if not 0 <= c.slot < self.size]:
            raise IndexError(f"slot {outside[0]} does not exist: this pool has slots 0 to {self.size - 1}")
        results: dict[int, Outcome] = {}
        to_play = []
        for command in commands:
            lost = self._lost.pop(command.slot, None)
            if lost and command.what in ("step", "snapshot"):
                results[command.slot] = _failed(StopReason.ENV_ERROR, lost)
            else:
                to_play.append(command)
        results |= self._local.run(to_play) if self._local else self._play_in_workers(to_play)
        return {command.slot: results[command.slot] for command in commands}

    def _end(self) -> None:
        self._closed = True
        if self._local:
            self._local.stop()
        for worker in self._workers:
            worker.hang_up()
        for worker in self._workers:
            worker.stop()

    def _worker(self, slot: int) -> _Worker:
        return self._workers[slot % len(self._workers)]

    def _play_in_workers(self, commands: list[_Command]) -> dict[int, Outcome]:
        results: dict[int, Outcome] = {}
        try:
            for worker in self._workers:
                worker.submit([command for command in commands if self._worker(command.slot) is worker])
            while busy := {worker.connection: worker for worker in self._workers if worker.pending}:
                soonest = min(worker.deadline for worker in busy.values())
                ready = wait(list(busy), timeout=max(0.0, soonest - time.monotonic()))
                for connection, worker in busy.items():
                    if connection in ready:
                        worker.receive(results)
                    elif time.monotonic() >= worker.deadline and not connection.poll():
                        worker.give_up(results)
                    self._note_loss(worker)
        except BaseException:  # Ctrl-C, mostly: answers that nobody waits for must not be taken for later ones
            for worker in self._workers:
                if worker.pending:
                    worker.kill("the pool was interrupted")
                    self._note_loss(worker)
            raise
        return results

    def _note_loss(self, worker: _Worker) -> None:
        if worker.loss:
            slots = [slot for slot in range(self.size) if self._worker(slot) is worker]
            self._lost |= {slot: f"env {slot} was lost: {worker.loss}" for slot in slots}
            worker.loss = ""


# -- one process: a thread plays, another watches the clock -----------------------------------------------------------
class _Abandoned(BaseException):
    """Raised in a thread that has been given up, to end it."""


class _Now(NamedTuple):
    """What a thread is doing, and until when (`time.monotonic`) it may."""

    command: _Command
    what: str
    seconds: float
    deadline: float


def _carry_out(command: _Command, env: gym.Env[str, str]) -> Outcome:
    match command.what:
        case "reset":
            observation, info = checked_reset(env.reset(seed=command.seed, options={"task": command.value}))
            check_contract(info, over=False)
            return Outcome(observation, info=info)
        case "step":
            observation, reward, terminated, truncated, info = checked_step(env.step(command.value))
            check_contract(info, over=terminated or truncated)
            return Outcome(observation, reward, terminated, truncated, info)
        case "snapshot":
            return Outcome(snapshot=_method(env, "snapshot")())
        case "restore":
            _method(env, "restore")(command.value)
        case "close":
            env.close()
    return Outcome()


def _method(env: gym.Env[str, str], name: str) -> Callable[..., Any]:
    """`snapshot` or `restore`, which Gymnasium's environments need not have."""
    if not env.has_wrapper_attr(name):
        raise NotImplementedError(f"{env.unwrapped} cannot take snapshots: it has no {name}()")
    method: Callable[..., Any] = env.get_wrapper_attr(name)
    return method


class _Player(threading.Thread):
    """Plays commands in the order given. Whoever waits for it may abandon it, and takes its environments over.

    The lock makes that a clean cut: a player either gets its result in, or learns that it has been abandoned.
    """

    def __init__(self, make: Make, timeout: float, envs: dict[int, gym.Env[str, str]]) -> None:
        super().__init__(name="env-player", daemon=True)
        self.envs = envs
        self.inbox: SimpleQueue[list[_Command] | None] = SimpleQueue()
        self.finished: SimpleQueue[dict[int, Outcome]] = SimpleQueue()
        self.results: dict[int, Outcome] = {}
        self.now: _Now | None = None
        self._make = make
        self._timeout = timeout
        self._lock = threading.Lock()
        self._abandoned = False
        self.start()

    def run(self) -> None:
        try:
            while (commands := self.inbox.get()) is not None:
                for command in commands:
                    self._play(command)
                results, self.results = self.results, {}
                self.finished.put(results)
        except _Abandoned:
            return

    def abandon(self, only_late: bool) -> bool:
        """Give the player up, or do so only if it is late; from then on `now`, `results` and `envs` stand still."""
        with self._lock:
            if not only_late or (self.now is not None and time.monotonic() >= self.now.deadline):
                self._abandoned = True
        return self._abandoned

    def end(self) -> str:
        """Raise `_Abandoned` wherever the thread is: a loop in Python ends, a call into C ends when it returns.

        Returns the stack it was in.
        """
        stack = traceback.format_stack(sys._current_frames().get(self.ident or 0))
        if self.is_alive():
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self.ident or 0), ctypes.py_object(_Abandoned))
        self.inbox.put(None)
        return "".join(stack)

    def _enter(self, command: _Command, what: str, seconds: float) -> None:
        with self._lock:
            if self._abandoned:
                raise _Abandoned
            self.now = _Now(command, what, seconds, time.monotonic() + seconds)

    def _leave(self, slot: int, env: gym.Env[str, str] | None, outcome: Outcome) -> None:
        with self._lock:
            if self._abandoned:
                raise _Abandoned
            self.now = None
            self.results[slot] = outcome
            if env is None:
                self.envs.pop(slot, None)
            else:
                self.envs[slot] = env

    def _play(self, command: _Command) -> None:
        slot = command.slot
        env = self.envs.get(slot)
        try:
            if env is None and command.what in MAKING:
                self._enter(command, "making", START_SECONDS)
                env = self._make()
            if env is None and command.what != "close":
                raise EpisodeOverError(f"env {slot} has no episode: it was never reset, or an error ended it")
            self._enter(command, "closing" if command.what == "close" else command.what, self._timeout)
            start = time.monotonic()
            outcome = Outcome() if env is None else _carry_out(command, env)
            outcome.seconds = time.monotonic() - start
            if command.what == "close":
                env = None
        except _Abandoned:
            raise
        except BaseException:  # also SystemExit: an environment that calls exit() must not end the thread unheard
            text = traceback.format_exc()
            if env is not None and command.what != "close":
                text += self._close_failed(command, env)
            env, outcome = None, _failed(StopReason.ENV_ERROR, text)
        self._leave(slot, env, outcome)

    def _close_failed(self, command: _Command, env: gym.Env[str, str]) -> str:
        self._enter(command, "closing after an error", self._timeout)
        try:
            env.close()
        except _Abandoned:
            raise
        except BaseException:
            return f"and closing it failed too:\n{traceback.format_exc()}"
        return ""


class _Host:
    """The environments of one process."""

    def __init__(self, make: Make, timeout: float) -> None:
        self._make, self._timeout = make, timeout
        self._player = _Player(make, timeout, {})

    def run(self, commands: list[_Command]) -> dict[int, Outcome]:
        """Play all commands; every slot gets an outcome."""
        results: dict[int, Outcome] = {}
        try:
            while commands:
                self._player.inbox.put(commands)
                results |= self._wait()
                commands = [command for command in commands if command.slot not in results]
        except BaseException:  # Ctrl-C, mostly: nothing may be played on that nobody waits for
            self._player.abandon(only_late=False)
            self._replace_player()
            raise
        return results

    def stop(self) -> None:
        """End the thread, whose environments are closed by now."""
        self._player.inbox.put(None)
        self._player.join(self._timeout)

    def _wait(self) -> dict[int, Outcome]:
        """The outcomes of all commands, or of those up to the one whose deadline passed."""
        while True:
            now = self._player.now
            seconds = now.deadline - time.monotonic() if now else self._timeout
            try:
                return self._player.finished.get(timeout=max(0.0, seconds))
            except Empty:
                if self._player.abandon(only_late=True):
                    return self._replace_player()

    def _replace_player(self) -> dict[int, Outcome]:
        old = self._player
        stack = old.end()
        if old.now:
            slot = old.now.command.slot
            text = f"{old.now.what} of env {slot}: no answer in {old.now.seconds:g} s. It is in\n{stack}"
            old.results[slot] = _failed(StopReason.STEP_TIMEOUT, text)
            old.envs.pop(slot, None)
        self._player = _Player(self._make, self._timeout, old.envs)
        return old.results


# -- other processes --------------------------------------------------------------------------------------------------
def _pickled(make: Make, workers: int) -> bytes:
    try:
        return pickle.dumps(make)
    except Exception as error:
        raise TypeError(
            f"EnvPool(workers={workers}) sends `make` to other processes, and {make!r} cannot be pickled ({error}); "
            "expected a function or class of a module, a functools.partial of one, or a method of a picklable object"
        ) from error


class _Worker:
    """A process that hosts some of the slots, as its parent sees it."""

    def __init__(self, index: int, make: bytes, timeout: float) -> None:
        self.index = index
        self.pending: list[_Command] = []  # sent, and not answered yet
        self.deadline = 0.0  # `time.monotonic` until which the first of them must be answered
        self.loss = ""  # how the last process ended, until the pool has noted it
        self.ready = False
        self._make, self._timeout = make, timeout
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")  # fork would copy torch's threads and locks in any state
        self.connection, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, self._make, self._timeout), name=f"env-worker-{self.index}", daemon=True
        )
        self._process.start()
        theirs.close()  # so that the pipe ends when the worker does

    def await_ready(self) -> None:
        """Wait until the process can play. Raises `RuntimeError` if it cannot."""
        problem = f"no answer in {START_SECONDS:g} s"
        if self.connection.poll(START_SECONDS):
            try:
                problem = self.connection.recv()
            except (EOFError, OSError):
                problem = f"it ended with exit code {self._exit_code()}; stderr may say more"
        if problem:
            raise RuntimeError(f"start of env worker {self.index}: {problem}")
        self.ready = True

    def submit(self, commands: list[_Command]) -> None:
        """Send commands, which the worker answers one by one."""
        if not commands:
            return
        if not self.ready:
            self._start()
            self.await_ready()
        self.pending = commands
        self._set_deadline()
        with contextlib.suppress(BrokenPipeError):  # it has died, which `receive` finds and tells
            self.connection.send(commands)

    def receive(self, results: dict[int, Outcome]) -> None:
        """Take one answer, or the end of the process."""
        try:
            slot, outcome = self.connection.recv()
        except (EOFError, OSError):
            self._fail_pending(results, StopReason.ENV_ERROR, f"the worker died with exit code {self._exit_code()}")
            return
        results[slot] = outcome
        del self.pending[0]
        self._set_deadline()

    def give_up(self, results: dict[int, Outcome]) -> None:
        """The deadline has passed, and even the worker's own clock did not go off."""
        self._fail_pending(results, StopReason.STEP_TIMEOUT, f"no answer in {self._timeout:g} s; the worker was killed")

    def kill(self, reason: str) -> None:
        """End the process at once; the next `submit` starts another."""
        self.loss = reason
        self.pending = []
        self.hang_up()
        self._process.kill()
        self._process.join()

    def hang_up(self) -> None:
        """Tell the process to end."""
        self.ready = False
        self.connection.close()

    def stop(self) -> None:
        """Wait for the process to end; kill it if it does not."""
        self._process.join(GRACE_SECONDS)
        self._process.kill()
        self._process.join()

    def _exit_code(self) -> int | None:
        self._process.join(GRACE_SECONDS)
        return self._process.exitcode

    def _set_deadline(self) -> None:
        starting = START_SECONDS if self.pending and self.pending[0].what in MAKING else 0.0
        self.deadline = time.monotonic() + self._timeout + GRACE_SECONDS + starting

    def _fail_pending(self, results: dict[int, Outcome], reason: StopReason, what: str) -> None:
        first, *others = self.pending
        text = f"{first.what} of env {first.slot} in env worker {self.index}: {what}"
        results[first.slot] = _failed(reason, text)
        for command in others:
            results[command.slot] = _failed(StopReason.ENV_ERROR, f"env {command.slot} was lost: {text}")
        self.kill(text)


def _serve(connection: Connection, make: bytes, timeout: float) -> None:
    """The life of a worker: answer every command, end with the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        host = _Host(pickle.loads(make), timeout)
    except BaseException:
        connection.send(traceback.format_exc())
        return
    connection.send("")
    try:
        while True:
            for command in connection.recv():
                connection.send_bytes(_answer(command, host))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the parent has closed the pool, or is gone


def _answer(command: _Command, host: _Host) -> bytes:
    outcome = host.run([command])[command.slot]
    try:
        return pickle.dumps((command.slot, outcome))
    except Exception:
        text = f"{command.what} of env {command.slot} gave what cannot be sent:\n{traceback.format_exc()}"
        if failure := host.run([_Command(command.slot, "close")])[command.slot].error:
            text += f"and closing it failed too:\n{failure.text}"
        return pickle.dumps((command.slot, _failed(StopReason.ENV_ERROR, text)))


def _end_with_parent() -> None:
    """A worker that is busy, or stuck, does not see its pipe end."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
