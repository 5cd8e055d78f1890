"""The command `polyturn`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import scripts
from scripts import cli

FOLDER = Path(scripts.__path__[0])


def test_it_has_every_command() -> None:
    modules = {path.stem for path in FOLDER.glob("*.py") if '__name__ == "__main__"' in path.read_text()}
    assert sorted(cli.COMMANDS) == sorted(modules - {"cli"})


def test_help_lists_the_commands_in_a_line_each(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["polyturn"])
    cli.main()
    lines = capsys.readouterr().out.splitlines()
    assert "  evaluate  Evaluate an agent" in lines
    assert [line.split()[0] for line in lines if line.startswith("  ")] == list(cli.COMMANDS)


def test_an_unknown_command_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["polyturn", "evalute"])
    with pytest.raises(SystemExit, match="2"):
        cli.main()
    assert capsys.readouterr().err.startswith("error: unknown command 'evalute'; did you mean 'evaluate'?")


def test_it_runs_in_a_folder_with_packages_of_the_same_names_and_finds_an_environment_there(tmp_path: Path) -> None:
    """An environment of one's own stands in the working directory, and so may folders `envs`, `conf` and `scripts`."""
    for name in ("envs", "conf", "scripts", "agents", "algorithms"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('not this one')\n")
    game = (FOLDER.parent / "examples/light_switches.py").read_text()
    (tmp_path / "my_game.py").write_text(game)
    start = f"import sys; sys.path.insert(0, {str(FOLDER.parent)!r}); from scripts.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-P", "-c", start, "evaluate", "env=gym", "env.id=my_game:LightSwitches-v0", "agent=random",
         "limit=2", "pool.workers=1", "pool.size=2", "hydra.run.dir=run"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": ""}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run/evaluation.json").is_file()
