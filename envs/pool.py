"""Many environments side by side, with a deadline on everything that they do.

    with EnvPool(task_set.make, size=8, workers=2, step_timeout=30) as pool:
        outcomes = pool.reset({0: task, 1: task})
        outcomes = pool.step({0: "look", 1: "go to desk 1"})
        states = {slot: outcome.snapshot for slot, outcome in pool.snapshot([0, 1]).items()}
        outcomes = pool.restore({5: states[0]})  # slot 5 goes on where slot 0 was

A *slot* is the place of one environment. `workers=0` plays all slots in this process, `workers=n` spreads them over
n processes (slot s lives in worker s mod n). What comes back does not depend on the number of workers: tasks and
seeds are given, never drawn.

An environment stays in one thread from when it is made until it is closed, so that what is bound to a thread works
(SQLite, an event loop, a browser). With `workers=0` each has a thread of its own. In a worker all have its main thread,
where signals arrive: `signal.alarm` works, and ends with the call that set it. Environments of one process never play
at the same time.

What happens when an environment misbehaves:

1. It raises, or returns what `envs.checks` cannot read: its outcome carries `ENV_ERROR` and the traceback. The
   environment is closed and dropped; the next reset or restore of its slot makes a new one. No other slot notices. An
   environment that has no snapshots raises when it is asked for one.
2. It outlives its deadline: its outcome carries `STEP_TIMEOUT` and the stack it was stuck in. An exception is raised
   where it is, and it is dropped. No other slot notices.
3. It ends its whole process, or hangs in C code that lets nothing else run. With `workers=0` nothing can help against
   this one. A worker is killed and replaced, and its environments are brought back: their actions since the reset are
   played again, and should show what they showed before. Where one shows something else, its outcome carries
   `ENV_ERROR` and is `lost`: its episode has to begin again.
4. Which of them has ended the process? Not always the one that was playing: another may have left a thread or a timer.
   The one that was playing is brought back in a worker of its own, and plays on there until its episode ends. If that
   worker ends too, it has failed. An episode that begins again after it was lost is played in such a worker.
5. It raises `NoDataError`: no other task can be played either. The pool raises it in the caller.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import pickle
import signal
import struct
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing.connection import Connection, wait
from types import FrameType, TracebackType
from typing import Any, Literal, NamedTuple, TypeAlias

import gymnasium as gym

from envs.checks import check_contract, checked_reset, checked_step, clean_text
from envs.core import EpisodeOverError, Info, NoDataError, StopReason, Task
from envs.process_state import BUILTINS, ProcessState, Streams

Make: TypeAlias = Callable[[], gym.Env[str, str]]

# Making an environment may import its engine, and a worker has to start Python: neither is as quick as a step.
START_SECONDS = 120.0
STARTS = 3  # times that a worker may die while it starts
# How much later than a worker itself its parent gives a step up: only a worker that no longer runs gets this far.
GRACE_SECONDS = 5.0
AGAIN_SECONDS = 1.0  # after which an environment that caught the exception of its deadline gets another
LOOK_SECONDS = 1.0  # how often to look whether a worker lives: a process that it has started may keep its pipe open
NUMBER_BYTES = 8  # of an answer, in front of it
LONGEST_ANSWER = 1 << 28  # bytes of an answer
HEAD = struct.Struct("!i")  # in front of a message in a pipe of `multiprocessing`: its length
READ_BYTES = 1 << 20  # how much is read from a pipe at once
NOBODY = -1  # in place of a slot
TIMERS = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)
TIME_UP = signal.SIGUSR2  # what a worker sends to its main thread when a deadline has passed
LONGEST_ERROR = 20_000  # characters of a failure's text
MAKING = ("reset", "restore")  # the commands that make an environment where there is none


class EnvFailure(NamedTuple):
    """Why an environment gave no answer: `STEP_TIMEOUT` or `ENV_ERROR`, and the traceback or stack as text.

    `lost`: it went down with its process through no fault of its own, and could not be brought back. `no_data`: the
    message of a `NoDataError`.
    """

    reason: StopReason
    text: str
    lost: bool = False
    no_data: str = ""


@dataclass(slots=True)
class Outcome:
    """The outcome of a command. With an `error` the episode is over and the other fields say nothing.

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


def _failed(reason: StopReason, text: str, no_data: str = "") -> Outcome:
    if len(text) > LONGEST_ERROR:
        half = LONGEST_ERROR // 2
        text = f"{text[:half]}\n… {len(text) - LONGEST_ERROR} characters left out …\n{text[-half:]}"
    return Outcome(error=EnvFailure(reason, clean_text(text), no_data=clean_text(no_data)))


def _no_episode(slot: int) -> Outcome:
    text = f"{EpisodeOverError.__name__}: env {slot} has no episode: it was never reset, or an error ended it"
    return _failed(StopReason.ENV_ERROR, text)


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
        self._local = _Threads(make, step_timeout) if workers == 0 else None
        self._closed = False
        self._workers: list[_Worker] = []
        self._alone: dict[int, _Worker] = {}  # the workers of a single slot, by that
        self._lost: set[int] = set()  # slots whose next episode is played alone
        if workers:
            packed = _pickled(make, workers)
            try:
                for index in range(min(workers, size)):
                    self._workers.append(_Worker(index, packed, step_timeout))
                    self._workers[-1].start()
                self._attend({})
                if problems := [worker.problem for worker in self._workers if worker.problem]:
                    raise RuntimeError(problems[0])
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
        try:
            for slot, outcome in self._call([_Command(slot, "close") for slot in range(self.size)]).items():
                if outcome.error:
                    warnings.warn(f"closing env {slot} failed:\n{outcome.error.text}", RuntimeWarning, stacklevel=2)
        finally:
            self._end()

    def __enter__(self) -> EnvPool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _call(self, commands: list[_Command]) -> dict[int, Outcome]:
        """Have commands carried out. Raises `NoDataError` if an environment did."""
        outcomes = self._carry_out(commands)
        for outcome in outcomes.values():
            if outcome.error and outcome.error.no_data:
                raise NoDataError(outcome.error.no_data)
        return outcomes

    def _carry_out(self, commands: list[_Command]) -> dict[int, Outcome]:
        if self._closed:
            raise RuntimeError("the pool is closed")
        if outside := [c.slot for c in commands if not 0 <= c.slot < self.size]:
            raise IndexError(f"slot {outside[0]} does not exist: this pool has slots 0 to {self.size - 1}")
        if self._local:
            return self._local.run(commands)
        results: dict[int, Outcome] = {}
        self._move([command.slot for command in commands if command.what in MAKING])
        for worker, given in self._divide(commands):
            worker.submit(given, results)
        self._attend(results)
        self._lost |= {slot for slot, outcome in results.items() if outcome.error and outcome.error.lost}
        return {command.slot: results[command.slot] for command in commands}

    def _move(self, beginning: list[int]) -> None:
        """Slots whose episodes begin play among others again, but for those that were lost."""
        back = [slot for slot in beginning if slot in self._alone and slot not in self._lost]
        for slot in back:
            self._alone[slot].submit([_Command(slot, "close")], {})
        self._attend({})
        for slot in back:
            worker = self._alone.pop(slot)
            worker.hang_up()
            worker.stop()
        for slot in self._lost & set(beginning) - self._alone.keys():
            self._alone[slot] = self._home(slot).part(slot)
        self._lost -= set(beginning)

    def _home(self, slot: int) -> _Worker:
        return self._workers[slot % len(self._workers)]

    def _divide(self, commands: list[_Command]) -> list[tuple[_Worker, list[_Command]]]:
        """The commands of each worker."""
        given: dict[int, tuple[_Worker, list[_Command]]] = {}
        for command in commands:
            worker = self._alone.get(command.slot) or self._home(command.slot)
            given.setdefault(id(worker), (worker, []))[1].append(command)
        return list(given.values())

    def _end(self) -> None:
        self._closed = True
        for worker in [*self._workers, *self._alone.values()]:
            worker.hang_up()
        for worker in [*self._workers, *self._alone.values()]:
            worker.stop()

    def _attend(self, results: dict[int, Outcome]) -> None:
        """Take what workers send, until they have answered everything and none is starting."""
        try:
            while busy := {w.connection: w for w in [*self._workers, *self._alone.values()] if w.busy}:
                soonest = min(worker.deadline for worker in busy.values())
                ready = wait(list(busy), timeout=min(max(0.0, soonest - time.monotonic()), LOOK_SECONDS))
                for connection, worker in busy.items():
                    if connection in ready or (worker.has_ended and not connection.poll()):
                        worker.receive(results, ended=connection not in ready)
                    elif time.monotonic() >= worker.deadline and not connection.poll():
                        worker.give_up(results)
                    elif not ready:
                        worker.go_on()
                    if command := worker.take_suspect():
                        self._alone[command.slot] = worker.part(command.slot)
                        self._alone[command.slot].submit([command], results)
        except BaseException:  # Ctrl-C, mostly: answers that nobody waits for must not be taken for later ones
            for worker in [*self._workers, *self._alone.values()]:
                worker.take_suspect()
                if worker.busy:
                    worker.pending = []
                    worker.kill()
            raise


# -- one environment --------------------------------------------------------------------------------------------------
class _TimeUp(BaseException):
    """Raised in the thread of an environment whose deadline has passed, to end what it does."""


class _Now(NamedTuple):
    """What an environment is doing, and until when (`time.monotonic`) it may."""

    what: str
    seconds: float
    deadline: float


class _Seat:
    """The place of one environment: it is made here, plays here, and is closed and dropped after an error.

    Everything but `now`, which whoever watches the clock reads, belongs to the thread that plays.
    """

    def __init__(self, slot: int, make: Make, timeout: float, shown: ctypes.c_double | None = None) -> None:
        """`shown` gets every deadline, for another process."""
        self.slot = slot
        self.env: gym.Env[str, str] | None = None
        self.now: _Now | None = None
        self.handlers: dict[int, Any] = {}  # of signals, which it has set in a worker
        self.made: ProcessState | None = None  # in which it left the worker when it was made
        self.state: ProcessState | None = None  # … and after its last call
        self._make, self._timeout, self._shown = make, timeout, shown

    def play(self, command: _Command) -> Outcome:
        """Carry a command out. Raises nothing but `_TimeUp`."""
        try:
            if self.env is None:
                if command.what not in MAKING:
                    return Outcome() if command.what == "close" else _no_episode(self.slot)
                self._begin("making", START_SECONDS)
                self.env = self._make()
            self._begin("closing" if command.what == "close" else command.what, self._timeout)
            start = time.monotonic()
            outcome = _carry_out(command, self.env)
            outcome.seconds = time.monotonic() - start
            if command.what == "close":
                self.env = None
            return outcome
        except _TimeUp:
            raise
        except BaseException as error:  # also SystemExit: a call of exit() must not end the thread unheard
            text = traceback.format_exc()
            if command.what == "close":
                self.env = None
            no_data = str(error) if isinstance(error, NoDataError) else ""
            text += self.drop()
            self._begin("deleting after an error", self._timeout)  # with the exception, which holds the environment
            return _failed(StopReason.ENV_ERROR, text, no_data)
        finally:
            self.now = None

    def drop(self) -> str:
        """Close the environment after an error, and let go of it. Returns what failed, or nothing."""
        env, self.env = self.env, None
        if env is not None:
            self._begin("closing after an error", self._timeout)
            try:
                env.close()
            except _TimeUp:
                raise
            except BaseException:
                return f"and closing it failed too:\n{traceback.format_exc()}"
            finally:
                self.now = None
        return ""

    def late(self, now: _Now, stack: str) -> Outcome:
        """The message for a deadline that has passed."""
        text = f"{now.what} of env {self.slot}: no answer in {now.seconds:g} s. It is in\n{stack}"
        return _failed(StopReason.STEP_TIMEOUT, text)

    def _begin(self, what: str, seconds: float) -> None:
        self.now = _Now(what, seconds, time.monotonic() + seconds)
        if self._shown is not None:
            self._shown.value = self.now.deadline


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


# -- in this process: a thread for each environment -------------------------------------------------------------------
class _Player(threading.Thread):
    """An environment in a thread of its own, from when it is made until it is closed, dropped or late."""

    def __init__(self, seat: _Seat, hand_on: Callable[[_Player, Outcome], None]) -> None:
        super().__init__(name=f"env-{seat.slot}", daemon=True)
        self.seat = seat
        self._hand_on = hand_on
        self._command: _Command | None = None
        self._wake = threading.Lock()  # held until there is a command; half the cost of a queue
        self._wake.acquire()
        self.start()

    def run(self) -> None:
        process = os.getpid()
        with contextlib.suppress(_TimeUp):
            while self._wake.acquire() and self._command is not None:
                outcome = self.seat.play(self._command)
                if os.getpid() != process:
                    os._exit(0)  # the environment has forked: the outcome is for its parent to hand on
                self._hand_on(self, outcome)

    def play(self, command: _Command | None) -> None:
        """Have a command carried out, after the one before is; None ends the thread."""
        self._command = command
        with contextlib.suppress(RuntimeError):  # it has been woken, and has not begun
            self._wake.release()

    def give_up(self) -> str:
        """Raise `_TimeUp` wherever the thread is: a loop in Python ends, a call into C ends when it returns.

        Returns the stack it was in.
        """
        stack = traceback.format_stack(sys._current_frames().get(self.ident or 0))
        if self.is_alive():
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self.ident or 0), ctypes.py_object(_TimeUp))
        self.play(None)
        return "".join(stack)


class _Threads:
    """The environments of this process. They play one after the other, each in its thread.

    A player that has finished wakes the next one, and the last one wakes the caller, who watches the clock meanwhile.
    `_lock` makes it a clean cut when the caller gives a player up: either its outcome is in, or it wakes nobody.
    """

    def __init__(self, make: Make, timeout: float) -> None:
        self._make, self._timeout = make, timeout
        self._players: dict[int, _Player] = {}
        self._lock = threading.Lock()
        self._left: list[tuple[_Player, _Command]] = []  # the next one last
        self._current: _Player | None = None
        self._results: dict[int, Outcome] = {}
        self._done = threading.Lock()

    def run(self, commands: list[_Command]) -> dict[int, Outcome]:
        """Carry out all commands."""
        self._results, self._done = {}, threading.Lock()
        self._done.acquire()
        for command in reversed(commands):
            slot = command.slot
            if slot not in self._players:
                if command.what not in MAKING:
                    self._results[slot] = Outcome() if command.what == "close" else _no_episode(slot)
                    continue
                self._players[slot] = _Player(_Seat(slot, self._make, self._timeout), self._hand_on)
            self._left.append((self._players[slot], command))
        try:
            with self._lock:
                self._play_next()
            while not self._done.acquire(timeout=self._seconds_left()):
                self._give_up_late()
        except BaseException:  # Ctrl-C, mostly: nothing may be played on that nobody waits for
            with self._lock:
                self._left = []
                if self._current:
                    self._remove(self._current).give_up()
                self._current = None
            raise
        for command in commands:
            player = self._players.get(command.slot)
            if player and player.seat.env is None:  # closed, or dropped after an error
                self._remove(player).play(None)
        return self._results

    def _play_next(self) -> None:
        if self._left:
            self._current, command = self._left.pop()
            self._current.play(command)
        else:
            self._current = None
            self._done.release()

    def _hand_on(self, player: _Player, outcome: Outcome) -> None:
        with self._lock:
            if player is self._current:
                self._results[player.seat.slot] = outcome
                self._play_next()

    def _seconds_left(self) -> float:
        now = self._current.seat.now if self._current else None
        return max(0.0, now.deadline - time.monotonic()) if now else min(self._timeout, AGAIN_SECONDS)

    def _give_up_late(self) -> None:
        with self._lock:
            player = self._current
            now = player.seat.now if player else None
            if player and now and time.monotonic() >= now.deadline:
                self._results[player.seat.slot] = player.seat.late(now, self._remove(player).give_up())
                self._play_next()

    def _remove(self, player: _Player) -> _Player:
        self._players.pop(player.seat.slot, None)
        return player


# -- in other processes: their main threads ---------------------------------------------------------------------------
class _Recorded(NamedTuple):
    """A command that a slot's environment has carried out, and what it showed then."""

    command: _Command
    observation: str


class _Worker:
    """A process that plays some of the slots, as its parent sees it.

    When the process ends, its environments are brought back to where they were, in the next process and when they are
    needed: what they have played since they were reset is played again. The one that was playing is a suspect, to be
    brought back by a worker of its own (`alone`); where that has ended, it has failed.
    """

    def __init__(self, index: int, make: bytes, timeout: float, *, alone: bool = False) -> None:
        self.index, self.alone = index, alone
        self.pending: list[_Command] = []  # not answered yet; the first is being carried out
        self._patience = 0.0  # `time.monotonic` until which it must be ready, or have begun what it was sent
        self.problem = ""  # why it does not start, after all tries
        self._history: dict[int, list[_Recorded]] = {}  # by slot, from the reset or restore of its episode on
        self._here: set[int] = set()  # the slots whose environments the process holds
        self._make, self._timeout = make, timeout
        self._process: Any = None  # of `multiprocessing`; None before the first start
        self._running = self._ready = False
        self._tries = 0  # starts since the last answer
        self._number = 0  # of the answer to come
        self._suspect: _Command | None = None
        self._received = bytearray()  # from the pipe, and not a whole message yet

    def part(self, slot: int) -> _Worker:
        """A worker for that slot alone, which takes its history along."""
        worker = _Worker(self.index, self._make, self._timeout, alone=True)
        if slot in self._history:
            worker._history[slot] = self._history.pop(slot)
        return worker

    def take_suspect(self) -> _Command | None:
        """What was being carried out when the process ended; once, and nothing where that has failed."""
        command, self._suspect = self._suspect, None
        return command

    @property
    def deadline(self) -> float:
        """Until when (`time.monotonic`, one clock for all processes) the process must have answered, or be ready."""
        return max(self._patience, float(self._call_deadline.value) + GRACE_SECONDS)

    @property
    def has_ended(self) -> bool:
        """Whether the process is gone."""
        return self._process.exitcode is not None

    def go_on(self) -> None:
        """Continue the process, if an environment has stopped it; otherwise its own clock could not go off."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._process.pid, signal.SIGCONT)

    @property
    def busy(self) -> bool:
        """Whether something will come from the process."""
        return bool(self.pending) or (self._running and not self._ready)

    def submit(self, commands: list[_Command], results: dict[int, Outcome]) -> None:
        """Have commands carried out, one by one; those that no environment is needed for are answered at once."""
        for command in commands:
            if command.what == "close" and command.slot not in self._here:
                results[command.slot] = Outcome()
            elif command.what not in MAKING and command.slot not in self._history:
                results[command.slot] = _no_episode(command.slot)
            else:
                self.pending.append(command)
        if not self.pending:
            return
        self._tries = 0
        if self._running:
            self._send(results)
        else:
            self.start()

    def receive(self, results: dict[int, Outcome], *, ended: bool) -> None:
        """Take what is in the pipe, or the end of the process.

        Only what is there is read: an environment may have written any length into the pipe.
        """
        data = b""
        with contextlib.suppress(OSError):
            data = b"" if ended else os.read(self.connection.fileno(), READ_BYTES)
        if not data:
            self._process.join(GRACE_SECONDS)
            self._lose(StopReason.ENV_ERROR, f"the worker died with exit code {self._process.exitcode}", results)
            return
        process = self._process
        self._received += data
        while self._process is process and self._running and len(self._received) >= HEAD.size:
            (size,) = HEAD.unpack_from(self._received)
            if not 0 <= size <= LONGEST_ANSWER + NUMBER_BYTES:
                self._lose(StopReason.ENV_ERROR, "what it sent is no answer; the worker was killed", results)
                return
            if len(self._received) < HEAD.size + size:
                return
            message = bytes(self._received[HEAD.size : HEAD.size + size])
            del self._received[: HEAD.size + size]
            self._receive_message(message, results)

    def _receive_message(self, data: bytes, results: dict[int, Outcome]) -> None:
        """Take an answer, or what a worker says when it has started."""
        if self._ready:
            self._take(data, results)
        elif data:
            self._tries = STARTS
            self._lose(StopReason.ENV_ERROR, data.decode(), results)
        else:
            self._ready = True
            if self.pending:
                self._send(results)

    def give_up(self, results: dict[int, Outcome]) -> None:
        """The deadline has passed, and even the worker's own clock did not go off."""
        seconds = self._timeout if self._ready else START_SECONDS
        self._lose(StopReason.STEP_TIMEOUT, f"no answer in {seconds:g} s; the worker was killed", results)

    def kill(self) -> None:
        """End the process at once; the next `submit` starts another."""
        self.hang_up()
        self._process.kill()
        self._process.join()
        self._here.clear()

    def hang_up(self) -> None:
        """Tell the process to end."""
        if self._running:
            self.connection.close()
        self._running = self._ready = False

    def stop(self) -> None:
        """Wait for the process to end; kill it if it does not."""
        if self._process is None:
            return
        self._process.join(GRACE_SECONDS)
        self._process.kill()
        self._process.join()

    def start(self) -> None:
        """Start a process."""
        context = multiprocessing.get_context("spawn")  # fork would copy torch's threads and locks in any state
        self.connection, theirs = context.Pipe()
        self._received = bytearray()
        # In memory that both have, which outlives the process: whose turn it is, and the deadline of the call.
        self._playing, self._call_deadline = context.RawValue("i", NOBODY), context.RawValue("d", 0.0)
        self._process = context.Process(
            target=_serve,
            args=(theirs, self._make, self._timeout, self._playing, self._call_deadline),
            name=f"env-worker-{self.index}",
            daemon=True,
        )
        self._process.start()
        theirs.close()  # so that the pipe ends when the worker does
        self._running, self._ready = True, False
        self._tries += 1
        self._patience = time.monotonic() + START_SECONDS

    def _send(self, results: dict[int, Outcome]) -> None:
        """Send all commands, each with the number of its answer and what has to be played before it."""
        messages: list[tuple[int, int, bytes]] = []
        for command in list(self.pending):
            try:
                message = pickle.dumps((command, self._missing(command)))
                messages.append((self._number + len(messages), command.slot, message))
            except Exception:
                text = f"{command.what} of env {command.slot} cannot be sent to a worker:\n{traceback.format_exc()}"
                results[command.slot] = _failed(StopReason.ENV_ERROR, text)
                self.pending.remove(command)
        self._be_patient()
        with contextlib.suppress(OSError):  # it has died, which `receive` finds and tells
            self.connection.send(messages)

    def _missing(self, command: _Command) -> list[_Recorded]:
        """What the environment that plays `command` has to play first."""
        lost = command.what not in MAKING and command.slot not in self._here
        return self._history[command.slot] if lost else []

    def _take(self, data: bytes, results: dict[int, Outcome]) -> None:
        if not self.pending or int.from_bytes(data[:NUMBER_BYTES], "little") != self._number:
            return  # no answer to what was asked: an environment has written to the pipe, or a process that it started
        command = self.pending.pop(0)
        slot = command.slot
        self._number += 1
        try:
            outcome: Outcome = pickle.loads(data[NUMBER_BYTES:])
        except Exception:
            text = f"{command.what} of env {slot} gave what cannot be received:\n{traceback.format_exc()}"
            outcome = _failed(StopReason.ENV_ERROR, text)
        if outcome.error is not None or command.what == "close":
            self._here.discard(slot)
            self._history.pop(slot, None)
        else:
            self._here.add(slot)
            if command.what in MAKING:
                self._history[slot] = []
            if command.what != "snapshot":
                self._history[slot].append(_Recorded(command, outcome.observation))
        results[slot] = outcome
        self._tries = 0
        self._be_patient()

    def _be_patient(self) -> None:
        self._patience = time.monotonic() + self._timeout + GRACE_SECONDS

    def _lose(self, reason: StopReason, why: str, results: dict[int, Outcome]) -> None:
        """The process has ended, or must. Whoever was playing may have ended it; the next process does what is left."""
        began = self._ready
        self.kill()
        playing = bool(self.pending) and self._playing.value == self.pending[0].slot  # else it has answered
        if playing or (self.alone and began):
            command, self._tries = self.pending.pop(0), 0
            self._number += 1
            if self.alone or command.what == "close":
                text = f"{command.what} of env {command.slot} in env worker {self.index}: {why}"
                self._fail(command, reason, f"{text}; no other environment was in it" if self.alone else text, results)
            else:
                self._suspect = command
        elif self._tries >= STARTS:
            self.problem = f"start of env worker {self.index}: {why}"
            for command in self.pending:
                self._fail(command, reason, self.problem, results)
            self.pending = []
            return
        results |= {command.slot: Outcome() for command in self.pending if command.what == "close"}
        self.pending = [command for command in self.pending if command.what != "close"]  # those are gone
        if self.pending or self._tries:
            self.start()

    def _fail(self, command: _Command, reason: StopReason, text: str, results: dict[int, Outcome]) -> None:
        results[command.slot] = _failed(reason, text)
        self._history.pop(command.slot, None)


def _pickled(make: Make, workers: int) -> bytes:
    try:
        return pickle.dumps(make)
    except Exception as error:
        raise TypeError(
            f"EnvPool(workers={workers}) sends `make` to other processes, and {make!r} cannot be pickled ({error}); "
            "expected a function or class of a module, a functools.partial of one, or a method of a picklable object"
        ) from error


def _serve(
    connection: Connection, make: bytes, timeout: float, playing: ctypes.c_int, call_deadline: ctypes.c_double
) -> None:
    """The life of a worker: say that it is ready, answer every command, end with the pipe.

    `playing` and `call_deadline` are for the parent: the slot that plays, and the deadline of its call.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        environments = _WorkerEnvironments(pickle.loads(make), timeout, call_deadline)
    except BaseException:
        connection.send_bytes(traceback.format_exc().encode(errors="replace"))
        return
    connection.send_bytes(b"")
    process = os.getpid()
    try:
        while True:
            for number, slot, message in connection.recv():
                playing.value = slot
                answer = environments.answer(slot, message)
                if os.getpid() != process:
                    os._exit(0)  # an environment has forked: the answer is for its parent to give
                connection.send_bytes(number.to_bytes(NUMBER_BYTES, "little") + answer)
                playing.value = NOBODY
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the parent has closed the pool, or is gone


def _end_with_parent() -> None:
    """A worker that is busy, or stuck, does not see its pipe end."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


class _WorkerEnvironments:
    """The environments of a worker. They play one after the other in its main thread, where signals arrive.

    Another thread watches the clock, and sends `TIME_UP` to the main thread when a deadline has passed; its handler
    raises `_TimeUp` there, also in the middle of a sleep or of a wait for a lock, a file or a process. A call into C
    that looks for no signals goes on, until the parent kills the process.
    """

    def __init__(self, make: Make, timeout: float, call_deadline: ctypes.c_double) -> None:
        self._make, self._timeout, self._call_deadline = make, timeout, call_deadline
        self._seats: dict[int, _Seat] = {}
        self._playing: _Seat | None = None
        self._late: Outcome | None = None
        signal.signal(TIME_UP, self._interrupt)
        handlers = {
            number: signal.getsignal(number) for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}
        }
        self._handlers = {number: handler for number, handler in handlers.items() if handler is not None}
        self._blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        self._streams, self._state = Streams(), ProcessState.now()
        threading.Thread(target=self._watch, daemon=True).start()

    def answer(self, slot: int, message: bytes) -> bytes:
        """Carry a command out, after those that bring its environment to where it was. Returns the outcome, pickled."""
        if (seat := self._seats.get(slot)) is None:
            make = partial(self._make_in, slot)
            seat = self._seats[slot] = _Seat(slot, make, self._timeout, self._call_deadline)
        try:
            command, missing = pickle.loads(message)
        except BaseException:
            text = f"env {slot} was sent what its worker cannot read:\n{traceback.format_exc()}"
            return pickle.dumps(_failed(StopReason.ENV_ERROR, text))
        outcome = self._bring_back(seat, missing) or self._play(seat, command)
        try:
            sent = pickle.dumps(outcome)
            if len(sent) > LONGEST_ANSWER:
                raise ValueError(f"it has {len(sent):,} bytes; the most is {LONGEST_ANSWER:,}")
            return sent
        except Exception:
            text = f"{command.what} of env {slot} gave what cannot be sent:\n{traceback.format_exc()}"
            if failure := self._play(seat, _Command(slot, "close")).error:
                text += f"and closing it failed too:\n{failure.text}"
            return pickle.dumps(_failed(StopReason.ENV_ERROR, text))

    def _make_in(self, slot: int) -> gym.Env[str, str]:
        env = self._make()
        self._seats[slot].made = ProcessState.now()
        return env

    def _bring_back(self, seat: _Seat, missing: list[_Recorded]) -> Outcome | None:
        """Play again what an environment played in an earlier process. Returns what went wrong, if anything."""
        for number, (command, observation) in enumerate(missing):
            outcome = self._play(seat, command)
            failure = outcome.error
            if failure is None and outcome.observation != observation:
                self._play(seat, _Command(seat.slot, "close"))
                failure = EnvFailure(StopReason.ENV_ERROR, "it showed something else than the first time")
            if failure is not None and failure.no_data:
                return outcome
            if failure is not None:
                place = f"{command.what} {number} of {len(missing) - 1}"
                text = f"env {seat.slot} was lost with its worker. It was played again, and at {place}: {failure.text}"
                return Outcome(error=EnvFailure(failure.reason, text, lost=True))
        return None

    def _play(self, seat: _Seat, command: _Command) -> Outcome:
        """Carry a command out. Timers that it sets go off in it or not at all.

        Its handlers of signals and the rest of what processes have (`ProcessState`) are its own.
        """
        outcome = Outcome()
        try:
            for number, handler in seat.handlers.items():
                signal.signal(number, handler)
            if seat.state and seat.made:
                begins = command.what in MAKING  # nothing that an episode has changed is there in the next one
                wanted = replace(seat.made, **seat.state.generators()) if begins else seat.state
                wanted.restore(self._state)  # between commands the process is in this state
            self._playing = seat
            try:
                outcome = seat.play(command)
            finally:
                self._playing = None
                seat.state = self._reset_state()
                seat.handlers = self._reset_signals()
        except _TimeUp:
            pass  # `_late` is the outcome
        except BaseException:  # the handler of such an alarm
            outcome = _failed(StopReason.ENV_ERROR, traceback.format_exc())
        late, self._late = self._late, None
        outcome = late or outcome  # also where the environment caught `_TimeUp` and went on
        if outcome.error is not None:
            self._seats.pop(seat.slot, None)
        return outcome

    def _reset_state(self) -> ProcessState:
        """Put back what an environment has changed in the process. Returns the state in which it left it."""
        names = BUILTINS.copy()
        self._state.restore_builtins()
        left = replace(ProcessState.now(), names=names)
        self._state.restore(left)
        self._streams.restore()
        return left

    def _reset_signals(self) -> dict[int, Any]:
        """Stop all timers, and put back blocked signals and handlers. Returns the handlers that were set meanwhile."""
        for timer in TIMERS:
            signal.setitimer(timer, 0)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._blocked)
        found = {number: signal.getsignal(number) for number in self._handlers}
        changed = {number: handler for number, handler in found.items() if handler != self._handlers[number]}
        for number in changed:
            signal.signal(number, self._handlers[number])
        return {number: handler for number, handler in changed.items() if handler is not None and number != TIME_UP}

    def _watch(self) -> None:
        """No sleep is longer than the shortest deadline, so that none passes in it that was set after it began."""
        main = threading.main_thread().ident
        assert main is not None
        shortest = min  # an environment may replace the builtin
        while True:
            seat = self._playing
            now = seat.now if seat else None
            left = now.deadline - time.monotonic() if now else self._timeout
            if left <= 0:
                signal.pthread_kill(main, TIME_UP)
                left = AGAIN_SECONDS
            time.sleep(shortest(left, self._timeout, START_SECONDS))

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        del number
        now = self._playing.now if self._playing else None
        if self._playing and now and time.monotonic() >= now.deadline:
            self._late = self._late or self._playing.late(now, "".join(traceback.format_stack(frame)))
            raise _TimeUp
