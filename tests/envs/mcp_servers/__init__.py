"""Real servers of the Model Context Protocol for tests, each a process."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

FOLDER = Path(__file__).parent
ODD = [sys.executable, str(FOLDER / "odd.py")]


def raw(mode: str, *arguments: str) -> list[str]:
    return [sys.executable, str(FOLDER / "raw.py"), mode, *arguments]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return listening.getsockname()[1]


@contextmanager
def over_http(command: Sequence[str], port: int, stderr: int = subprocess.DEVNULL) -> Iterator[str]:
    """The URL of a server that was started with `command`, until the end of the block."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=stderr)
    try:
        for _ in range(1200):
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                assert process.poll() is None, "the server has ended"
                time.sleep(0.05)
        yield f"http://127.0.0.1:{port}/mcp"
    finally:
        process.kill()
        process.wait()


def is_gone(pid: int) -> bool:
    """Whether a process has ended; it may wait for its parent to notice."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def wait_until_gone(*pids: int) -> None:
    for _ in range(600):
        if all(map(is_gone, pids)):
            return
        time.sleep(0.05)
    raise AssertionError(f"{[pid for pid in pids if not is_gone(pid)]} still run")
