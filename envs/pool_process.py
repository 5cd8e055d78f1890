"""A worker process of a pool: runs commands for its environments, and sends their outcomes to its parent."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # signal.getsignal makes enums, which takes ten times as long
import ctypes
import multiprocessing
import os
import pickle
import signal
import threading
import time
import traceback
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection, wait
from types import FrameType
from typing import Any, NamedTuple

import gymnasium as gym

from envs.core import StopReason
from envs.pool_env import START_SECONDS, STARTING, Command, DeadlinePassed, EnvFailure, HostedEnv, Make, Outcome, failed
from envs.process_state import BUILTINS, ProcessState, Streams

NUMBER_BYTES = 8  # of an outcome's number, in front of it
LONGEST_OUTCOME = 1 << 28  # bytes
NO_SLOT = -1  # no command is running
REPEAT_SECONDS = 1.0  # between two exceptions for the same deadline, if an environment caught the first
TIMERS = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)
DEADLINE_SIGNAL = signal.SIGUSR2  # that a worker sends to its main thread when a deadline has passed


class PastCommand(NamedTuple):
    """A command that an environment has run, and the observation that it returned."""

    command: Command
    observation: str


def serve(
    connection: Connection, make: bytes, timeout: float, running_slot: ctypes.c_int, call_deadline: ctypes.c_double
) -> None:
    """Run a worker: send an empty message when it is ready, then an outcome for every command, until the pipe ends.

    The parent reads `running_slot`, whose command is running, and `call_deadline`, the deadline of its call.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of the group; the parent handles it
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        environments = WorkerEnvs(pickle.loads(make), timeout, call_deadline)
    except BaseException:
        connection.send_bytes(traceback.format_exc().encode(errors="replace"))
        return
    connection.send_bytes(b"")
    process = os.getpid()
    try:
        while True:
            for number, slot, message in connection.recv():
                running_slot.value = slot
                outcome = environments.run(slot, message)
                if os.getpid() != process:
                    os._exit(0)  # an environment has forked, and this is the child: its parent sends the outcome
                connection.send_bytes(number.to_bytes(NUMBER_BYTES, "little") + outcome)
                running_slot.value = NO_SLOT
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the parent has closed the pool, or has ended


def _end_with_parent() -> None:
    """End the worker when its parent ends; a worker that is in a call does not read its pipe."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


class WorkerEnvs:
    """The environments of a worker. One runs at a time, in the main thread, where signals arrive.

    Another thread checks deadlines. When one has passed, it sends `DEADLINE_SIGNAL` to the main thread, and the handler
    raises `DeadlinePassed` there, even during a sleep or a wait for a lock, a file or a process. A call into C that
    does not check for signals continues until the parent kills the process.
    """

    def __init__(self, make: Make, timeout: float, call_deadline: ctypes.c_double) -> None:
        self._make, self._timeout, self._call_deadline = make, timeout, call_deadline
        self._hosted: dict[int, HostedEnv] = {}
        self._current: HostedEnv | None = None
        self._timed_out: Outcome | None = None
        signal.signal(DEADLINE_SIGNAL, self._interrupt)
        handlers = {
            number: signal.getsignal(number) for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}
        }
        self._handlers = {number: handler for number, handler in handlers.items() if handler is not None}
        self._blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        self._streams, self._state = Streams(), ProcessState.now()
        threading.Thread(target=self._check_deadlines, daemon=True).start()

    def run(self, slot: int, message: bytes) -> bytes:
        """Run a command, after those that restore its environment. Returns the pickled outcome."""
        if (hosted := self._hosted.get(slot)) is None:
            make = partial(self._make_in, slot)
            hosted = self._hosted[slot] = HostedEnv(slot, make, self._timeout, self._call_deadline)
        try:
            command, to_replay = pickle.loads(message)
        except BaseException:
            text = f"env {slot} was sent what its worker cannot read:\n{traceback.format_exc()}"
            return pickle.dumps(failed(StopReason.ENV_ERROR, text))
        outcome = self._replay(hosted, to_replay) or self._run(hosted, command)
        try:
            sent = pickle.dumps(outcome)
            if len(sent) > LONGEST_OUTCOME:
                raise ValueError(f"it has {len(sent):,} bytes; the most is {LONGEST_OUTCOME:,}")
            return sent
        except Exception:
            text = f"{command.what} of env {slot} gave what cannot be sent:\n{traceback.format_exc()}"
            if failure := self._run(hosted, Command(slot, "close")).error:
                text += f"and closing it failed too:\n{failure.text}"
            return pickle.dumps(failed(StopReason.ENV_ERROR, text))

    def _make_in(self, slot: int) -> gym.Env[str, str]:
        env = self._make()
        self._hosted[slot].made = ProcessState.now(before=self._state)
        return env

    def _replay(self, hosted: HostedEnv, to_replay: list[PastCommand]) -> Outcome | None:
        """Repeat the commands of an earlier process. Returns an outcome if one fails, or returns something else."""
        for number, (command, observation) in enumerate(to_replay):
            outcome = self._run(hosted, command)
            failure = outcome.error
            if failure is None and outcome.observation != observation:
                self._run(hosted, Command(hosted.slot, "close"))
                failure = EnvFailure(StopReason.ENV_ERROR, "it showed something else than the first time")
            if failure is not None and failure.no_data:
                return outcome
            if failure is not None:
                place = f"{command.what} {number} of {len(to_replay) - 1}"
                text = (
                    f"env {hosted.slot} was lost with its worker. It was played again, and at {place}: {failure.text}"
                )
                return Outcome(error=EnvFailure(failure.reason, text, lost=True))
        return None

    def _run(self, hosted: HostedEnv, command: Command) -> Outcome:
        """Run a command. Timers that it starts are stopped when it ends.

        Each environment has its own signal handlers and its own state of the process (`ProcessState`).
        """
        outcome = Outcome()
        try:
            for number, handler in hosted.handlers.items():
                signal.signal(number, handler)
            if hosted.state and hosted.made:
                begins = command.what in STARTING  # a new episode does not see what the last one has changed
                changed = begins and hosted.state is not hosted.made
                wanted = replace(hosted.made, **hosted.state.generators()) if changed else hosted.state
                if wanted is not self._state:  # the state between commands
                    wanted.restore(self._state)
            self._current = hosted
            try:
                outcome = hosted.run(command)
            finally:
                self._current = None
                hosted.state = self._reset_state()
                hosted.handlers = self._reset_signals()
        except DeadlinePassed:
            pass  # the handler has set `_timed_out`
        except BaseException:  # raised by the handler of a timer
            outcome = failed(StopReason.ENV_ERROR, traceback.format_exc())
        timed_out, self._timed_out = self._timed_out, None
        outcome = timed_out or outcome  # also if the environment caught `DeadlinePassed`
        if outcome.error is not None:
            self._hosted.pop(hosted.slot, None)
        return outcome

    def _reset_state(self) -> ProcessState:
        """Undo what an environment has changed in the process. Returns the state with its changes."""
        names = BUILTINS.copy()
        self._state.restore_builtins()
        left = ProcessState.now(names, self._state)
        if left is not self._state:
            self._state.restore(left)
        self._streams.restore()
        return left

    def _reset_signals(self) -> dict[int, Any]:
        """Stop all timers, and restore blocked signals and handlers. Returns the handlers that were set."""
        for timer in TIMERS:
            signal.setitimer(timer, 0)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._blocked)
        found = {number: _signal.getsignal(number) for number in self._handlers}
        changed = {number: handler for number, handler in found.items() if handler != self._handlers[number]}
        for number in changed:
            signal.signal(number, self._handlers[number])
        changed.pop(DEADLINE_SIGNAL, None)
        return {number: handler for number, handler in changed.items() if handler is not None}

    def _check_deadlines(self) -> None:
        """Sleep until the next deadline, but never longer than the shortest one: a new call may start meanwhile."""
        main = threading.main_thread().ident
        assert main is not None
        shortest = min  # an environment may replace the builtin
        while True:
            hosted = self._current
            call = hosted.call if hosted else None
            left = call.deadline - time.monotonic() if call else self._timeout
            if left <= 0:
                signal.pthread_kill(main, DEADLINE_SIGNAL)
                left = REPEAT_SECONDS
            time.sleep(shortest(left, self._timeout, START_SECONDS))

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        del number
        call = self._current.call if self._current else None
        if self._current and call and time.monotonic() >= call.deadline:
            stack = "".join(traceback.format_stack(frame))
            self._timed_out = self._timed_out or self._current.timed_out(call, stack)
            raise DeadlinePassed
