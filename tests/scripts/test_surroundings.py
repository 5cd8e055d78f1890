"""Commands work in any folder, with any files in it, and with environments that change global state."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from envs.core import Info, cache_root
from scripts.common import Terminal
from scripts.live import LiveReporter
from tests.agents.corridors import Corridor
from tests.scripts.test_commands import CORRIDOR, Cli, cli, environment, result_of  # noqa: F401


def test_an_environment_may_change_the_working_directory(cli: Cli) -> None:  # noqa: F811
    begin, elsewhere = Corridor._begin, cli.folder / "elsewhere"
    elsewhere.mkdir()

    def go(env: Corridor, task: Any, seed: int | None) -> tuple[str, Info]:
        os.chdir(elsewhere)
        return begin(env, task, seed)

    cli.monkeypatch.setattr(Corridor, "_begin", go)
    cli.monkeypatch.setenv("POLYTURN_CACHE", "cache")
    code, out, err = cli("evaluate", *CORRIDOR, "agent=random", "hydra.run.dir=run")
    assert (code, err) == (0, "")
    assert result_of(cli.folder / "run")["success"]["n"] == 6
    assert "python -m scripts.view run\n" in out
    assert list(elsewhere.iterdir()) == []
    assert cache_root() == cli.folder / "cache"


@pytest.mark.parametrize("package", ["envs", "conf", "agents", "algorithms"])
def test_folders_with_the_names_of_packages_are_ignored(tmp_path: Path, package: str) -> None:
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").write_text("raise RuntimeError('another one')")
    (tmp_path / "mine.py").write_text("from envs.search.tasks import SearchTasks as Tasks\n")
    done = subprocess.run(
        [sys.executable, "-m", "scripts.play", "env=search", "env.embedded_people=48", "env._target_=mine.Tasks"],
        cwd=tmp_path, env=environment(), input=":q\n", capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "not solved (stopped)" in done.stdout


def test_closed_streams_are_like_the_null_device(tmp_path: Path) -> None:
    command = ["sh", "-c", 'exec "$@" <&- >&-', "sh", sys.executable, "-m", "scripts.play", "env=key_corridor"]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_characters_that_stdout_cannot_encode_are_escaped(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "scripts.evaluate", "env=search", "env.embedded_people=48", "agent=random", "limit=2",
         "hydra.run.dir=run"],
        cwd=tmp_path, env={**environment(), "PYTHONIOENCODING": "ascii"}, capture_output=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"\\u2013" in done.stdout  # of an interval


def test_no_home_is_an_error_that_names_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home(path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", no_home)
    monkeypatch.delenv("POLYTURN_CACHE", raising=False)
    with pytest.raises(ValueError, match="export POLYTURN_CACHE=DIR"):
        cache_root()


def test_brackets_are_printed_literally(cli: Cli) -> None:  # noqa: F811
    """Rich would take them for colours, or raise for an end of what has not begun."""
    screen = io.StringIO()
    console = Terminal(file=screen, width=200, force_terminal=True)
    text = "in r[bold]x, {'kind': '[/b]'}"
    with LiveReporter(3, console) as reporter:
        reporter.phase(text, 3)
        reporter.advance(text)
        reporter.say(text)
    console.print(text)
    assert screen.getvalue().count("in r[bold]x, {'kind': '[/b]'}") >= 3
    done = ["+env.kwargs.note='[/b] [bold]'", "env.id=tests.envs.test_gym_tasks:Script-v0"]
    _, _, err = cli("evaluate", "env=gym", *done, "agent=random", "limit=1", "hydra.run.dir='r[bold]x'")
    assert "MarkupError" not in err
