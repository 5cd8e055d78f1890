"""Environments whose actions are misbehaviours. Workers import this module, so it imports no pytest, which is slow."""

import os
import re
import signal
import sqlite3
import sys
import threading
import time
from pathlib import Path
from typing import Any

import gymnasium as gym

from envs.core import INFO_KEYS, Info, StopReason, Task, TextEnv


class Puppet(TextEnv):
    """Follows its action, good or bad."""

    def __init__(self, max_turns: int = 50, closing: str = "") -> None:
        super().__init__(max_turns)
        self.closing = closing
        self.woken = 0

    def _begin(self, task: Task, seed: int | None) -> tuple[str, Info]:
        self.heard: list[str] = []
        self.saving = task.payload.get("saving", "")
        self._obey(task.payload.get("begin", ""))
        return f"{task.id} with seed {seed}: {self.np_random.integers(10**9)}", {"goal": task.id}

    def _act(self, action: str) -> tuple[str, float, bool, Info]:
        self.heard.append(action)
        answer = self._obey(action) or f"{self.heard} {self.np_random.integers(10**9)}"
        return answer, float(len(self.heard)), action == "win", {"success": action == "win"}

    def wake(self, *_: Any) -> None:
        self.woken += 1

    def _obey(self, order: str) -> str:
        match order:
            case "raise":
                raise ValueError("a puppet's error")
            case "complain":
                raise ValueError("x" * 1_000_000 + "\udce9")
            case "exit":
                sys.exit(3)
            case "crash":
                os._exit(3)
            case "sleep":
                time.sleep(60)
            case "spin":
                while True:
                    pass
            case "hold the GIL":
                re.match("(a+)+$", "a" * 64 + "b")
            case "nap":
                time.sleep(0.5)
            case "pid":
                return str(os.getpid())
            case _:
                return self._obey_rarer(order)
        return ""

    def _obey_rarer(self, order: str) -> str:
        match order:
            case "thread":
                return f"{threading.get_ident()} {threading.current_thread() is threading.main_thread()}"
            case "go on":  # whatever is raised
                for _ in range(60):
                    try:
                        time.sleep(0.5)
                    except BaseException:
                        return "I went on."
            case "wait":
                threading.Lock().acquire() and threading.Event().wait(60)
            case "alarm":
                signal.signal(signal.SIGALRM, self.wake)
                signal.setitimer(signal.ITIMER_REAL, 0.1)
                time.sleep(0.5)
                return f"woken {self.woken}"
            case "close files":
                os.closerange(3, 100)
            case "leave an alarm":
                signal.signal(signal.SIGALRM, self.wake)
                signal.setitimer(signal.ITIMER_REAL, 0.1)
            case "shout":
                for _ in range(100):
                    sys.stdout.write("x" * 1_000_000)
            case _:
                return self._obey_rarest(order)
        return ""

    def _obey_rarest(self, order: str) -> str:
        match order:
            case "leave a bomb":
                threading.Timer(0.3, os._exit, [4]).start()
            case "fork":
                os.fork()  # the child returns, too
            case "crash beside a child":
                if os.fork() == 0:
                    time.sleep(10)
                os._exit(3)
            case "burn":
                end = time.process_time() + 0.1
                while time.process_time() < end:
                    pass
            case "leave timers":
                signal.setitimer(signal.ITIMER_VIRTUAL, 0.02, 0.02)
                signal.setitimer(signal.ITIMER_PROF, 0.02, 0.02)
            case "take signals":
                for number in (signal.SIGCHLD, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM):
                    signal.signal(number, self.wake)
                signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2, signal.SIGALRM})
            case "signals":
                numbers = (signal.SIGCHLD, signal.SIGUSR1, signal.SIGTERM)
                return str([signal.getsignal(number) == self.wake for number in numbers])
        return ""

    def _info(self, observation: str, extra: Info, stop: StopReason | None) -> Info:
        unsendable = {"lambda": lambda: 0} if observation.startswith("['unsendable']") else {}
        return super()._info(observation, extra, stop) | unsendable

    def _save(self) -> Any:
        self._obey(self.saving)
        return self.saving, list(self.heard), self.np_random.bit_generator.state

    def _load(self, saved: Any) -> None:
        self.saving, heard, self.np_random.bit_generator.state = saved
        self.heard = list(heard)
        if "tear" in heard:
            raise ValueError("a torn snapshot")

    def close(self) -> None:
        self._obey(self.closing)


class Database(Puppet):
    """An environment that works only in the thread that created it, like an SQLite connection."""

    def __init__(self) -> None:
        super().__init__()
        self.data = sqlite3.connect(":memory:")

    def _act(self, action: str) -> tuple[str, float, bool, Info]:
        self.data.execute("select 1")
        return super()._act(action)


class Fickle(Puppet):
    """Shows another text in each process."""

    def _act(self, action: str) -> tuple[str, float, bool, Info]:
        text, *others = super()._act(action)
        return f"{text} {os.getpid()}", *others


class Dying:
    """Creates puppets in workers that end while they start, as often as a file has lines."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ = state
        with self.file.open("r+") as file:
            lines = file.readlines()
            file.seek(0)
            file.truncate()
            file.writelines(lines[1:])
        if lines:
            os._exit(7)

    def __call__(self) -> Puppet:
        return Puppet()


class Unsaved(Puppet):
    """An environment without snapshots."""

    def _save(self) -> Any:
        return TextEnv._save(self)


class ThirdParty(gym.Env[str, str]):
    """An environment that follows the contract without inheriting from `TextEnv`."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, Info]:
        return "a", dict.fromkeys(INFO_KEYS) | {"goal": "g", "score": 0.0, "success": False, "state_key": "a"}


def make_bad_closer() -> Puppet:
    return Puppet(closing="raise")


def make_nothing() -> Puppet:
    raise RuntimeError("no puppets today")
