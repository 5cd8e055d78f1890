"""Fixtures of all tests."""

import gc
import os
import signal
from collections.abc import Callable, Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.agents.endpoint_server import Reply, Serve, Server

# Models of a few thousand parameters: one thread is faster than two, and far faster where tests run side by side.
# Subprocesses inherit it. Set before torch is imported, which reads it then.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell has what it starts in the background ignore Ctrl-C, and nohup the end of the terminal; that is inherited.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# How long an example takes is the machine's affair. The examples are the same each time; other ones are searched for by
# `--hypothesis-profile=search`, and found again with `--hypothesis-seed=N`.
settings.register_profile("search", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("polyturn", settings.get_profile("search"), derandomize=True, max_examples=30)
settings.load_profile("polyturn")


# The longest files, which begin first: at the end, one process would work on the last of them while the others wait.
LONGEST = (
    "test_ranks", "test_pages", "test_parallel", "test_mcp_env", "test_lab", "test_every_method", "test_pool",
    "test_commands", "test_settings", "test_trainer",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the files."""
    rank = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


def pytest_collection_finish() -> None:
    """Leave what was imported out of garbage collections: each would visit 750,000 objects, for half a second."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """With POLYTURN_NO_SKIP=1 a skipped test fails the run, since all optional packages should be installed."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("POLYTURN_NO_SKIP") and reporter and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts endpoints with given answers, until the test is over."""
    servers: list[Server] = []

    def start(reply: Callable[[dict], Reply]) -> Server:
        servers.append(Server(reply))
        return servers[-1]

    yield start
    for server in servers:
        server.close()
