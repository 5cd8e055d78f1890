"""Servers that are killed during an evaluation."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from agents.episode import read_episodes
from envs.mcp.env import McpEnv
from envs.search.remote import RemoteRetriever
from envs.search.retrieval import open_retriever
from tests.envs.mcp_servers import FOLDER
from tests.scripts.test_commands import Cli, cli, result_of  # noqa: F401
from tests.scripts.test_missing_data import after_first_episode, check_stopped

FOREIGN = FOLDER / "foreign.py"


class RetrievalServer:
    """`python -m scripts.serve retriever`, at the same port each time it is started."""

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        """Start it; it may answer later."""
        command = [sys.executable, "-m", "scripts.serve", "retriever", "--people", "48", "--port", str(self.port)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def wait(self) -> None:
        """Until it answers."""
        assert self.process is not None
        assert self.process.stdout is not None
        assert any("serving passages at" in line for line in self.process.stdout)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def restart(self) -> None:
        self.kill()
        self.start()


@pytest.fixture
def server(tmp_path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RetrievalServer]:
    monkeypatch.setenv("POLYTURN_CACHE", str(tmp_path / "cache"))
    server = RetrievalServer()
    server.start()
    yield server
    server.kill()


def test_a_retrieval_server_is_killed_and_started_again(
    cli: Cli,  # noqa: F811
    server: RetrievalServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    search = [
        "env=search", "env.embedded_people=48", "env.train_tasks=8", "env.valid_tasks=8", "env.retriever=remote",
        f"env.url=http://127.0.0.1:{server.port}/retrieve", "agent=expert", "split=valid", "pool.size=1",
    ]  # fmt: skip

    def patience(deadline: float) -> None:
        open_retriever.cache_clear()
        monkeypatch.setattr("envs.search.remote.RemoteRetriever", partial(RemoteRetriever, deadline=deadline))

    # It is back before the deadline: nothing is lost.
    patience(120.0)
    server.wait()
    after_first_episode(cli, server.restart)
    code, _, err = cli("evaluate", *search, "pool.step_timeout=150", "hydra.run.dir=whole")
    assert (code, err) == (0, "")
    assert not any(episode.error for episode in read_episodes(cli.folder / "whole" / "episodes.jsonl"))

    # It stays away: two episodes end without an answer, the third ends the run.
    patience(0.9)
    after_first_episode(cli, server.kill)
    code, out, err = cli("evaluate", *search, "hydra.run.dir=run")
    check_stopped(cli.folder / "run", code, err)
    assert f"127.0.0.1:{server.port}/retrieve did not answer 3 calls in a row" in err
    assert "Connection refused" in err
    assert "resume with: python -m scripts.evaluate resume=run" in out
    errors = [episode.error for episode in read_episodes(cli.folder / "run" / "episodes.jsonl")]
    assert [bool(error) for error in errors] == [False, True, True]
    assert "ServiceError: http://127.0.0.1" in errors[1]

    # It is back: these two are played again.
    server.start()
    server.wait()
    code, out, err = cli("evaluate", "resume=run")
    assert (code, err) == (0, "")
    assert "playing 2 episodes again" in out
    assert result_of(cli.folder / "run") == result_of(cli.folder / "whole")


def test_the_episode_of_an_mcp_server_that_died_is_played_again(cli: Cli) -> None:  # noqa: F811
    served = [
        "env=mcp",
        f"env.command=[{sys.executable},{FOREIGN}]",
        "agent=constant",
        "agent.text=hello",
        "limit=3",
        "max_turns=4",
        "pool.size=1",
    ]
    assert cli("evaluate", *served, "hydra.run.dir=whole")[0] == 0
    act = McpEnv._act

    def die(env: McpEnv, _: str) -> Any:
        cli.monkeypatch.setattr(McpEnv, "_act", act)
        return act(env, "die")

    after_first_episode(cli, lambda: cli.monkeypatch.setattr(McpEnv, "_act", die))
    code, out, err = cli("evaluate", *served, "hydra.run.dir=run")
    assert (code, err) == (0, "")
    assert "errors ended 1 episode; the first was: envs.services.ServiceError: " in out
    assert "it ended with exit status 1" in out
    code, out, err = cli("evaluate", "resume=run")
    assert (code, err) == (0, "")
    assert "playing 1 episode again" in out
    assert result_of(cli.folder / "run") == result_of(cli.folder / "whole")
