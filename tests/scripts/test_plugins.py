"""Environments of other packages, which are installed with an entry point and a configuration."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.envs.test_core import install

ROOT = Path(__file__).parents[2]
CONFIGURATION = """
_target_: envs.gym_tasks.GymTasks
_convert_: all
id: Lamps-v0
kwargs: {}
max_turns: null
train_tasks: 4
valid_tasks: 3
"""


def installed(folder: Path) -> Path:
    """A package with an environment and its configuration, and a broken one beside it."""
    site = folder / "with a space"
    install(site, "lamps-package", "lamps = their_lamps.games")
    install(site, "broken-package", "broken = their_broken", their_broken="import does_not_exist_\n")
    package = site / "their_lamps"
    (package / "conf/env").mkdir(parents=True)
    game = (ROOT / "examples/light_switches.py").read_text().replace("LightSwitches-v0", "Lamps-v0")
    (package / "__init__.py").touch()
    (package / "games.py").write_text(game)
    (package / "conf/env/lamps.yaml").write_text(CONFIGURATION)
    return site


def run(folder: Path, site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(site), str(ROOT)])
    return subprocess.run(
        [sys.executable, "-m", *arguments], cwd=folder, env=os.environ | {"PYTHONPATH": paths}, capture_output=True,
        text=True, timeout=300,
    )  # fmt: skip


def test_an_installed_package_adds_an_environment_by_name(tmp_path: Path) -> None:
    site = installed(tmp_path)
    done = run(tmp_path, site, "scripts.evaluate", "env=lamps", "agent=random", "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    assert "'broken' (their_broken) of broken-package 1.2" in done.stderr
    results = json.loads((tmp_path / "run/evaluation.json").read_text())
    assert (results["evaluation"]["env"], results["evaluation"]["tasks"]) == ("Lamps-v0", 3)
    again = run(tmp_path, site, "scripts.evaluate", "resume=run")
    assert again.returncode == 0, again.stderr
    assert "nothing was changed" in again.stdout

    wrong = run(tmp_path, site, "scripts.evaluate", "env=lamp", "agent=random")
    assert wrong.returncode == 2
    assert "did you mean 'lamps'" in wrong.stderr


def test_the_doctor_lists_them(tmp_path: Path) -> None:
    done = run(tmp_path, installed(tmp_path), "scripts.doctor")
    assert "✓ environments of lamps-package 1.2: env=lamps" in done.stdout
    assert "· the entry point 'broken' (their_broken) of broken-package 1.2" in done.stdout
