"""Run a command, and end it with all processes that it started when the process that needs it is gone.

    python guard.py FD COMMAND…

FD is the reading end of a pipe. Its writing end is held by the process that needs the command, so it closes when that
process closes it, exits or is killed; the command then gets SIGTERM, and a second later SIGKILL. A command of its own
accord could ignore that its input has ended. Only the standard library, and no other module of the project: this file
is started once for each server.
"""

import os
import selectors
import signal
import subprocess
import sys
from contextlib import suppress

SECONDS_TO_END = 1.0  # between SIGTERM and SIGKILL


def main() -> None:
    """Start the command and wait for its end or for the end of the pipe."""
    needed = int(sys.argv[1])
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)  # what arrives can be read from `woken`
    command = subprocess.Popen(sys.argv[2:], start_new_session=True)
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)  # the pipes are the command's alone: they end when it ends
    os.dup2(nothing, 1)
    selector = selectors.DefaultSelector()  # `select.select` refuses descriptors above 1,023
    for pipe in (needed, woken):
        selector.register(pipe, selectors.EVENT_READ)
    while command.poll() is None:
        ready = [key.fd for key, _ in selector.select()]
        if needed in ready or set(os.read(woken, 100)) - {signal.SIGCHLD}:
            break
    _signal_group(command.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        command.wait(SECONDS_TO_END)
    _signal_group(command.pid, signal.SIGKILL)  # what it started may have outlived it
    status = command.wait()
    raise SystemExit(status if status >= 0 else 128 - status)


def _signal_group(group: int, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):  # macOS: PermissionError for a group of zombies
        os.killpg(group, number)


if __name__ == "__main__":
    main()
