"""Environments of a pool in this process, each in a thread of its own."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable

from envs.pool_env import STARTING, Command, DeadlinePassed, HostedEnv, Make, Outcome, no_episode

_CHECK_SECONDS = 1.0  # between two looks at the deadline, while no call is running


class EnvThread(threading.Thread):
    """The thread of one environment, until the environment is closed, dropped, or exceeds its deadline."""

    def __init__(self, hosted: HostedEnv, on_outcome: Callable[[EnvThread, Outcome], None]) -> None:
        super().__init__(name=f"env-{hosted.slot}", daemon=True)
        self.hosted = hosted
        self._on_outcome = on_outcome
        self._command: Command | None = None
        self._ready = threading.Lock()  # locked until there is a command; costs half of what a queue does
        self._ready.acquire()
        self.start()

    def run(self) -> None:
        process = os.getpid()
        with contextlib.suppress(DeadlinePassed):
            while self._ready.acquire() and self._command is not None:
                outcome = self.hosted.run(self._command)
                if os.getpid() != process:
                    os._exit(0)  # the environment has forked, and this is the child: its parent returns the outcome
                self._on_outcome(self, outcome)
            self.hosted.run(Command(self.hosted.slot, "close"))  # of a pool that was dropped without being closed

    def submit(self, command: Command | None) -> None:
        """Run `command` after the current one; None ends the thread."""
        self._command = command
        with contextlib.suppress(RuntimeError):  # it was released already and has not started yet
            self._ready.release()

    def interrupt(self) -> str:
        """Raise `DeadlinePassed` in the thread and end it. Returns the stack it was in.

        A loop in Python ends at once, a call into C when it returns.
        """
        stack = traceback.format_stack(sys._current_frames().get(self.ident or 0))
        if self.is_alive():
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(self.ident or 0), ctypes.py_object(DeadlinePassed)
            )
        self.submit(None)
        return "".join(stack)


class ThreadedEnvs:
    """The environments of this process. One runs at a time, each in its thread.

    A thread that has finished its command starts the next thread; the last one wakes the caller, which checks the
    deadline meanwhile. `_lock` decides between an outcome and a deadline at the same moment: only one of them counts.
    """

    def __init__(self, make: Make, timeout: float) -> None:
        self._make, self._timeout = make, timeout
        self._threads: dict[int, EnvThread] = {}  # by slot
        self._lock = threading.Lock()
        self._waiting: list[tuple[EnvThread, Command]] = []  # the next one is the last
        self._current: EnvThread | None = None
        self._outcomes: dict[int, Outcome] = {}
        self._done = threading.Lock()

    def run(self, commands: list[Command]) -> dict[int, Outcome]:
        """Run all commands."""
        self._outcomes, self._done = {}, threading.Lock()
        self._done.acquire()
        for command in reversed(commands):
            slot = command.slot
            if slot not in self._threads:
                if command.what not in STARTING:
                    self._outcomes[slot] = Outcome() if command.what == "close" else no_episode(slot)
                    continue
                self._threads[slot] = EnvThread(HostedEnv(slot, self._make, self._timeout), self._on_outcome)
            self._waiting.append((self._threads[slot], command))
        try:
            with self._lock:
                self._run_next()
            while not self._done.acquire(timeout=self._seconds_left()):
                self._check_deadline()
        except BaseException:  # usually Ctrl-C: no command may go on running
            with self._lock:
                self._waiting = []
                if self._current:
                    self._remove(self._current).interrupt()
                self._current = None
            raise
        for command in commands:
            thread = self._threads.get(command.slot)
            if thread and thread.hosted.env is None:  # closed, or dropped after an error
                self._remove(thread).submit(None)
        return self._outcomes

    def end(self) -> None:
        """Let all threads close their environments and end, without waiting for them."""
        for thread in list(self._threads.values()):
            self._remove(thread).submit(None)

    def _run_next(self) -> None:
        if self._waiting:
            self._current, command = self._waiting.pop()
            self._current.submit(command)
        else:
            self._current = None
            self._done.release()

    def _on_outcome(self, thread: EnvThread, outcome: Outcome) -> None:
        with self._lock:
            if thread is self._current:
                self._outcomes[thread.hosted.slot] = outcome
                self._run_next()

    def _seconds_left(self) -> float:
        call = self._current.hosted.call if self._current else None
        return max(0.0, call.deadline - time.monotonic()) if call else min(self._timeout, _CHECK_SECONDS)

    def _check_deadline(self) -> None:
        with self._lock:
            thread = self._current
            call = thread.hosted.call if thread else None
            if thread and call and time.monotonic() >= call.deadline:
                stack = self._remove(thread).interrupt()
                self._outcomes[thread.hosted.slot] = thread.hosted.timed_out(call, stack)
                self._run_next()

    def _remove(self, thread: EnvThread) -> EnvThread:
        self._threads.pop(thread.hosted.slot, None)
        return thread
