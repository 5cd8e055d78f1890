"""Java engines: each in a process of its own, reached through py4j, and kept for the next environment.

    java = Java(jar, "scienceworld.runtime.pythonapi.PythonInterface", memory_mb=300)
    jvm = lend(java)
    jvm.call("load", "boil", 0, "", False)
    give_back(jvm)

The process ends with this one, also if this one is killed: it reads its stdin until that is closed. An engine that is
dropped ends, and so does one whose last call was interrupted or failed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import threading
import weakref
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

MOST_ENGINES = 8  # environments of a pool, each of which has its own
MOST_IDLE = 2  # engines of a kind that wait for the next environment
OVERHEAD_MB = 150  # of a process beside its heap
READ_SECONDS = 600.0  # for an answer; a pool's deadline is shorter
END_SECONDS = 5.0
# Java numbers its objects at random, and sets of objects are listed in the order of these numbers. With one number for
# all, they are listed in the order in which they were filled, which is the same in every process.
OPTIONS = ("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:+UnlockExperimentalVMOptions", "-XX:hashCode=2")


class EngineError(RuntimeError):
    """A Java engine could not be started, has ended, or has failed."""


@dataclass(frozen=True)
class Java:
    """What a Java engine is started from."""

    jar: Path
    entry: str  # the class of its object
    memory_mb: int  # of the heap
    options: tuple[str, ...] = OPTIONS  # of Java


def find_jar(package: str, name: str, extra: str) -> Path:
    """The jar of an installed package. Raises `ModuleNotFoundError`, which says what to install, also without Java."""
    spec = find_spec(package)
    jar = Path(spec.submodule_search_locations[0]) / name if spec and spec.submodule_search_locations else None
    if not jar or not jar.is_file() or not find_spec("py4j"):
        raise ModuleNotFoundError(f"env={extra} needs the package {package}: pip install 'polyturn[{extra}]'")
    if not shutil.which("java"):
        raise ModuleNotFoundError(f"env={extra} needs Java 17; on Debian: apt install openjdk-17-jre-headless")
    return jar


@lru_cache(maxsize=8)
def jar_hash(jar: Path) -> str:
    """Hex sha256 of a file."""
    with jar.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Jvm:
    """A running engine."""

    def __init__(self, java: Java) -> None:
        """Start it: 1 to 5 seconds. Raises `EngineError`."""
        from py4j.java_gateway import GatewayParameters, JavaGateway, launch_gateway

        self.java, self.owner = java, os.getpid()
        self._sound = True  # no call was interrupted
        _check_memory(java.memory_mb)
        errors: deque[str] = deque(maxlen=20)  # lines, the newest first
        try:
            port, token, self.process = launch_gateway(
                classpath=str(java.jar), cwd=str(java.jar.parent), die_on_exit=True,
                javaopts=[f"-Xmx{java.memory_mb}m", *java.options], redirect_stderr=errors, enable_auth=True,
                return_proc=True,
            )  # fmt: skip
        except (OSError, ValueError) as error:  # where a number should be, Java has said something else
            raise EngineError(f"Java did not start: {error} {' '.join(reversed(errors))}") from error
        parameters = GatewayParameters(port=port, auth_token=token, auto_field=True, read_timeout=READ_SECONDS)
        self._gateway = JavaGateway(gateway_parameters=parameters, java_process=self.process)
        self.end = weakref.finalize(self, _end, self.process, self._gateway)
        entry: Any = self._gateway.jvm
        for name in java.entry.split("."):
            entry = getattr(entry, name)
        self._methods: dict[str, Any] = {}
        with self._calling("its start"):
            self._object = entry()
            self._join = self._gateway.jvm.String.join

    def call(self, name: str, *arguments: Any) -> Any:
        """Call a method of the engine's object. Raises `EngineError`."""
        method = self._methods.get(name)
        if method is None:
            method = self._methods[name] = getattr(self._object, name)
        self._sound = False
        try:
            result = method(*arguments)
        except Exception as error:
            raise self._failure(name, error) from error
        self._sound = True
        return result

    def texts(self, name: str, *arguments: Any) -> list[str]:
        """Call a method that gives a list of texts without line breaks. One call fetches all of them."""
        listed = self.call(name, *arguments)
        with self._calling(name):
            joined = self._join("\n", listed)
        return joined.split("\n") if joined else []

    @property
    def is_usable(self) -> bool:
        """Whether it runs, in this process, and no call of it was interrupted."""
        return self._sound and self.owner == os.getpid() and bool(self.end.alive) and self.process.poll() is None

    @contextlib.contextmanager
    def _calling(self, name: str) -> Iterator[None]:
        self._sound = False
        try:
            yield
        except Exception as error:
            raise self._failure(name, error) from error
        self._sound = True

    def _failure(self, name: str, error: Exception) -> EngineError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(0.2)  # a process that was killed closes its connection a little before it ends
        code = self.process.returncode
        ended = f"the Java engine has ended with exit code {code}" if code is not None else "the Java engine has failed"
        return EngineError(f"{ended}, in {name}: {error}")


def _end(process: subprocess.Popen[bytes], gateway: Any) -> None:
    """Kill a process, and close what leads to it."""
    process.kill()
    with contextlib.suppress(Exception):
        gateway._gateway_client.is_connected = False  # else objects that are collected later are reported to it
        gateway.close()
    for stream in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):
            if stream:
                stream.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(END_SECONDS)


def _check_memory(heap_mb: int) -> None:
    """Raises `EngineError` where a machine has no room for another engine."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:  # not Linux
        return
    free = next((int(line.split()[1]) // 1024 for line in lines if line.startswith("MemAvailable:")), None)
    if free is not None and free < heap_mb + OVERHEAD_MB:
        raise EngineError(
            f"there is no memory for another Java engine: {free} MB are free, and it takes {heap_mb + OVERHEAD_MB}; "
            "each environment has its own, so choose a smaller pool.size"
        )


# -- engines that wait for the next environment -----------------------------------------------------------------------
_idle: list[Jvm] = []
_lock = threading.Lock()


def lend(java: Java) -> Jvm:
    """An engine that waits, or else a new one."""
    with _lock:
        for jvm in [one for one in _idle if one.java == java]:
            _idle.remove(jvm)
            if jvm.is_usable:
                return jvm
            jvm.end()
    return Jvm(java)


def give_back(jvm: Jvm) -> None:
    """Keep an engine for the next environment, or end it if there are enough or if it cannot be used again."""
    with _lock:
        if jvm.is_usable and sum(one.java == jvm.java for one in _idle) < MOST_IDLE:
            _idle.append(jvm)
            return
    jvm.end()


@contextlib.contextmanager
def lent(java: Java) -> Iterator[Jvm]:
    """An engine for a while."""
    jvm = lend(java)
    try:
        yield jvm
    finally:
        give_back(jvm)
