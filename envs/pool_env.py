"""One environment of a pool: commands for it, their outcomes, and a deadline on each of its calls."""

from __future__ import annotations

import ctypes
import re
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias

import gymnasium as gym

from envs.checks import check_contract, checked_reset, checked_step, clean_text
from envs.core import EpisodeOverError, Info, NoDataError, StopReason
from envs.process_state import ProcessState

Make: TypeAlias = Callable[[], gym.Env[str, str]]

START_SECONDS = 120.0  # to make an environment, which may import its engine, and to start a worker
LONGEST_ERROR = 20_000  # characters of a failure's text
TRACEBACK = "Traceback (most recent call last):"
STARTING = ("reset", "restore")  # the commands that make an environment where there is none


class EnvFailure(NamedTuple):
    """Why an environment gave no answer: `STEP_TIMEOUT` or `ENV_ERROR`, and the traceback or stack as text.

    `lost`: another environment ended its process, and its state could not be restored. `no_data`: the message of a
    `NoDataError`.
    """

    reason: StopReason
    text: str
    lost: bool = False
    no_data: str = ""


@dataclass(slots=True)
class Outcome:
    """The outcome of a command. With an `error` the episode is over and the other fields say nothing.

    `reset` and `step` fill all but `snapshot`, which alone is what `snapshot` fills, and `restore` fills nothing.
    `seconds` is the time of the environment's own call, without making the environment and without waiting.
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
        """Whether the episode has ended, for any reason."""
        return self.terminated or self.truncated or self.error is not None


class Command(NamedTuple):
    """A command for the environment of a slot."""

    slot: int
    what: Literal["reset", "step", "snapshot", "restore", "close"]
    value: Any = None  # the task of a reset, the action of a step, the snapshot of a restore
    seed: int | None = None


def failed(reason: StopReason, text: str, no_data: str = "") -> Outcome:
    """The outcome with an error; the middle of a long text is left out."""
    if len(text) > LONGEST_ERROR:
        half = LONGEST_ERROR // 2
        text = f"{text[:half]}\n… {len(text) - LONGEST_ERROR} characters left out …\n{text[-half:]}"
    return Outcome(error=EnvFailure(reason, clean_text(text), no_data=clean_text(no_data)))


def error_line(error: str) -> str:
    """The text of an `EnvFailure` in one line: the exception of a traceback, otherwise what is before a stack."""
    first = error.strip().partition("\n")[0]
    if not first.startswith(TRACEBACK):
        return first.removesuffix(" It is in")
    return next((line for line in _last_stack(error) if line.strip() and not line.startswith(" ")), first)


def place_of(error: str) -> str:
    """Where the exception of a traceback was raised, in brackets; empty for a text without a stack."""
    places = [match for line in _last_stack(error) if (match := re.match(r'  File "(.+)", line (\d+)', line))]
    return f" ({places[-1][1]}, line {places[-1][2]})" if places else ""


def _last_stack(error: str) -> list[str]:
    """The lines of the last stack in a chain of exceptions; none without a stack."""
    _, found, stack = error.partition("\nand closing it failed too:")[0].rpartition(TRACEBACK)
    return stack.splitlines()[1:] if found else []


def no_episode(slot: int) -> Outcome:
    """The outcome of a command that needs an episode where there is none."""
    text = f"{EpisodeOverError.__name__}: env {slot} has no episode: it was never reset, or an error ended it"
    return failed(StopReason.ENV_ERROR, text)


class DeadlinePassed(BaseException):
    """Raised in the thread of an environment whose deadline has passed, to end its call."""


class Call(NamedTuple):
    """A running call of an environment: its name and its deadline (`time.monotonic`)."""

    what: str
    seconds: float
    deadline: float


class HostedEnv:
    """The environment of a slot: made by the first command that needs it, closed and dropped after an error.

    Only the thread that runs the commands uses it, with one exception: `call` is read by the thread that checks
    deadlines.
    """

    def __init__(self, slot: int, make: Make, timeout: float, shared_deadline: ctypes.c_double | None = None) -> None:
        """Each deadline is also written to `shared_deadline`, which another process reads."""
        self.slot = slot
        self.env: gym.Env[str, str] | None = None
        self.call: Call | None = None  # that is running
        # In a worker: the handlers of signals that it has set, and the state of the process that it expects,
        # when it was made and after its last call.
        self.handlers: dict[int, Any] = {}
        self.made: ProcessState | None = None
        self.state: ProcessState | None = None
        self._make, self._timeout, self._shared_deadline = make, timeout, shared_deadline

    def run(self, command: Command) -> Outcome:
        """Run a command. Raises nothing but `DeadlinePassed`."""
        try:
            if self.env is None:
                if command.what not in STARTING:
                    return Outcome() if command.what == "close" else no_episode(self.slot)
                self._start_call("making", START_SECONDS)
                self.env = self._make()
            self._start_call("closing" if command.what == "close" else command.what, self._timeout)
            start = time.monotonic()
            outcome = _call(command, self.env)
            outcome.seconds = time.monotonic() - start
            if command.what == "close":
                self.env = None
            return outcome
        except DeadlinePassed:
            raise
        except BaseException as error:  # also SystemExit: exit() must not end the thread without an outcome
            text = traceback.format_exc()
            if command.what == "close":
                self.env = None
            no_data = str(error) if isinstance(error, NoDataError) else ""
            text += self.drop()
            self._start_call("deleting after an error", self._timeout)  # the exception holds the environment until then
            return failed(StopReason.ENV_ERROR, text, no_data)
        finally:
            self.call = None

    def drop(self) -> str:
        """Close the environment after an error and forget it. Returns the error of `close` as text, or nothing."""
        env, self.env = self.env, None
        if env is not None:
            self._start_call("closing after an error", self._timeout)
            try:
                env.close()
            except DeadlinePassed:
                raise
            except BaseException:
                return f"and closing it failed too:\n{traceback.format_exc()}"
            finally:
                self.call = None
        return ""

    def timed_out(self, call: Call, stack: str) -> Outcome:
        """The outcome of a call whose deadline has passed."""
        text = f"{call.what} of env {self.slot}: no answer in {call.seconds:g} s. It is in\n{stack}"
        return failed(StopReason.STEP_TIMEOUT, text)

    def _start_call(self, what: str, seconds: float) -> None:
        self.call = Call(what, seconds, time.monotonic() + seconds)
        if self._shared_deadline is not None:
            self._shared_deadline.value = self.call.deadline


def _call(command: Command, env: gym.Env[str, str]) -> Outcome:
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
