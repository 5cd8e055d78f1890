"""`python -m tests.scripts.forked_lab …` is `python -m scripts.lab …`, whose runs are forks of this process.

A run of these tests trains for half a second. Importing torch and transformers takes six, and happens here once. The
laboratories of tests/scripts/test_pages.py start processes of their own.
"""

import importlib
import os
import signal
import subprocess
import sys
from typing import IO, Any

from hydra.core.global_hydra import GlobalHydra

from scripts import lab, train

for slow in ("algorithms.learner", "algorithms.initial_policy", "agents.policies.pretrained", "matplotlib.figure"):
    importlib.import_module(slow)


class Fork:
    """The part of `subprocess.Popen` that `scripts.lab` uses."""

    def __init__(self, command: list[str], stdout: IO[bytes], env: dict[str, str], **_: Any) -> None:
        assert command[:3] == [sys.executable, "-m", "scripts.train"]
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                _become(stdout)
                os.environ |= env
                sys.argv = command[2:]
                train.main()
                code = 0
            except SystemExit as end:
                code = int(end.code or 0)
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)

    def wait(self) -> int:
        """The exit code, as `Popen` gives it."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)


def _become(output: IO[bytes]) -> None:
    """Reset the state of this process to that of a new one."""
    os.setsid()
    for number in (signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    for stream in (1, 2):
        os.dup2(output.fileno(), stream)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    GlobalHydra.instance().clear()


if __name__ == "__main__":
    subprocess.Popen = Fork  # type: ignore[assignment, misc]
    lab.main()
