"""A worker process of a pool, as its parent sees it: start, commands, outcomes, deadline, restart."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import struct
import time
import traceback
from typing import Any

from envs.core import StopReason
from envs.pool_env import START_SECONDS, STARTING, Command, Outcome, failed, no_episode
from envs.pool_process import LONGEST_OUTCOME, NO_SLOT, NUMBER_BYTES, PastCommand, serve

STARTS = 3  # times that a worker may die while it starts
# The parent's deadline is later than the worker's own, so it only passes if the worker no longer runs.
GRACE_SECONDS = 5.0
HEAD = struct.Struct("!i")  # in front of a message in a pipe of `multiprocessing`: its length
READ_BYTES = 1 << 20  # read from a pipe at once


class Worker:
    """A process with the environments of some slots.

    When the process ends, another one is started. An environment is restored there when its next command comes: its
    commands since the reset are repeated. The environment whose command was running is suspected of having ended the
    process. It is restored in a worker of its own (`alone`), and if that process ends too, it has failed.
    """

    def __init__(self, index: int, make: bytes, timeout: float, *, alone: bool = False) -> None:
        self.index, self.alone = index, alone
        self.pending: list[Command] = []  # without an outcome; the first is running
        self._response_deadline = 0.0  # of the start, or of the next outcome (`time.monotonic`)
        self.problem = ""  # why it could not be started
        self._history: dict[int, list[PastCommand]] = {}  # by slot, since the reset or restore of its episode
        self._loaded: set[int] = set()  # slots whose environments are in the process
        self._make, self._timeout = make, timeout
        self._process: Any = None  # of `multiprocessing`; None before the first start
        self._running = self._ready = False
        self._tries = 0  # starts since the last outcome
        self._number = 0  # of the next outcome
        self._suspect: Command | None = None
        self._received = bytearray()  # the beginning of a message

    def separate(self, slot: int) -> Worker:
        """A new worker for this slot alone, with the history of the slot."""
        worker = Worker(self.index, self._make, self._timeout, alone=True)
        if slot in self._history:
            worker._history[slot] = self._history.pop(slot)
        return worker

    def take_suspect(self) -> Command | None:
        """The command that was running when the process ended, if its environment has not failed. Returned once."""
        command, self._suspect = self._suspect, None
        return command

    @property
    def deadline(self) -> float:
        """When the process must be ready, or send an outcome (`time.monotonic`, the same clock in all processes)."""
        return max(self._response_deadline, float(self._call_deadline.value) + GRACE_SECONDS)

    @property
    def has_ended(self) -> bool:
        """Whether the process has ended."""
        return self._process.exitcode is not None

    def resume(self) -> None:
        """Continue the process if an environment has stopped it, so that its own deadlines work."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._process.pid, signal.SIGCONT)

    @property
    def busy(self) -> bool:
        """Whether the process has to send something."""
        return bool(self.pending) or (self._running and not self._ready)

    def submit(self, commands: list[Command], results: dict[int, Outcome]) -> None:
        """Run commands one after the other. Commands that need no environment get their outcomes at once."""
        for command in commands:
            if command.what == "close" and command.slot not in self._loaded:
                results[command.slot] = Outcome()
            elif command.what not in STARTING and command.slot not in self._history:
                results[command.slot] = no_episode(command.slot)
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
        """Read the pipe, or handle the end of the process.

        Never waits for a whole message: an environment may have written any length into the pipe.
        """
        data = b""
        with contextlib.suppress(OSError):
            data = b"" if ended else os.read(self.connection.fileno(), READ_BYTES)
        if not data:
            self._process.join(GRACE_SECONDS)
            self._on_end(StopReason.ENV_ERROR, f"the worker died with exit code {self._process.exitcode}", results)
            return
        process = self._process
        self._received += data
        while self._process is process and self._running and len(self._received) >= HEAD.size:
            (size,) = HEAD.unpack_from(self._received)
            if not 0 <= size <= LONGEST_OUTCOME + NUMBER_BYTES:
                self._on_end(StopReason.ENV_ERROR, "what it sent is no answer; the worker was killed", results)
                return
            if len(self._received) < HEAD.size + size:
                return
            message = bytes(self._received[HEAD.size : HEAD.size + size])
            del self._received[: HEAD.size + size]
            self._receive_message(message, results)

    def _receive_message(self, data: bytes, results: dict[int, Outcome]) -> None:
        """Handle an outcome, or the first message of a worker: empty, or why it cannot start."""
        if self._ready:
            self._receive_outcome(data, results)
        elif data:
            self._tries = STARTS
            self._on_end(StopReason.ENV_ERROR, data.decode(), results)
        else:
            self._ready = True
            if self.pending:
                self._send(results)

    def kill_late(self, results: dict[int, Outcome]) -> None:
        """Kill the process: its deadline has passed, and its own check of deadlines did not work."""
        seconds = self._timeout if self._ready else START_SECONDS
        self._on_end(StopReason.STEP_TIMEOUT, f"no answer in {seconds:g} s; the worker was killed", results)

    def kill(self) -> None:
        """Kill the process; the next `submit` starts another one."""
        self.close_pipe()
        self._process.kill()
        self._process.join()
        self._loaded.clear()

    def close_pipe(self) -> None:
        """Let the process end: it ends when its pipe does."""
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
        # Shared memory, which outlives the process: the slot whose command is running, and the deadline of its call.
        self._running_slot, self._call_deadline = context.RawValue("i", NO_SLOT), context.RawValue("d", 0.0)
        process = context.Process(
            target=serve,
            args=(theirs, self._make, self._timeout, self._running_slot, self._call_deadline),
            name=f"env-worker-{self.index}",
            daemon=True,
        )
        try:
            process.start()
        except BaseException:  # no more processes or descriptors
            self.connection.close()
            raise
        finally:
            theirs.close()  # so that the pipe ends when the worker does
        self._process = process
        self._running, self._ready = True, False
        self._tries += 1
        self._response_deadline = time.monotonic() + START_SECONDS

    def _send(self, results: dict[int, Outcome]) -> None:
        """Send all commands, each with the number of its outcome and the commands to repeat before it."""
        messages: list[tuple[int, int, bytes]] = []
        for command in list(self.pending):
            try:
                message = pickle.dumps((command, self._to_replay(command)))
                messages.append((self._number + len(messages), command.slot, message))
            except Exception:
                text = f"{command.what} of env {command.slot} cannot be sent to a worker:\n{traceback.format_exc()}"
                results[command.slot] = failed(StopReason.ENV_ERROR, text)
                self.pending.remove(command)
        self._extend_deadline()
        with contextlib.suppress(OSError):  # the process has died; `receive` handles it
            self.connection.send(messages)

    def _to_replay(self, command: Command) -> list[PastCommand]:
        """The commands that the environment has to repeat before `command`."""
        lost = command.what not in STARTING and command.slot not in self._loaded
        return self._history[command.slot] if lost else []

    def _receive_outcome(self, data: bytes, results: dict[int, Outcome]) -> None:
        if not self.pending or int.from_bytes(data[:NUMBER_BYTES], "little") != self._number:
            return  # an environment, or a process that it started, has written to the pipe
        command = self.pending.pop(0)
        slot = command.slot
        self._number += 1
        try:
            outcome: Outcome = pickle.loads(data[NUMBER_BYTES:])
        except Exception:
            text = f"{command.what} of env {slot} gave what cannot be received:\n{traceback.format_exc()}"
            outcome = failed(StopReason.ENV_ERROR, text)
        if outcome.error is not None or command.what == "close":
            self._loaded.discard(slot)
            self._history.pop(slot, None)
        else:
            self._loaded.add(slot)
            if command.what in STARTING:
                self._history[slot] = []
            if command.what != "snapshot":
                self._history[slot].append(PastCommand(command, outcome.observation))
        results[slot] = outcome
        self._tries = 0
        self._extend_deadline()

    def _extend_deadline(self) -> None:
        self._response_deadline = time.monotonic() + self._timeout + GRACE_SECONDS

    def _on_end(self, reason: StopReason, why: str, results: dict[int, Outcome]) -> None:
        """The process has ended, or has to be killed. Start another one for the commands without an outcome."""
        began = self._ready
        self.kill()
        was_running = bool(self.pending) and self._running_slot.value == self.pending[0].slot  # else it has its outcome
        if was_running or (self.alone and began):
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
        self.pending = [command for command in self.pending if command.what != "close"]  # closed with the process
        if self.pending or self._tries:
            self.start()

    def _fail(self, command: Command, reason: StopReason, text: str, results: dict[int, Outcome]) -> None:
        results[command.slot] = failed(reason, text)
        self._history.pop(command.slot, None)
