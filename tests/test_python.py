"""`import polyturn`: the scripts of docs/python.md as they stand, errors, and other packages with the same names."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import polyturn as pt

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs" / "python.md").read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("number", range(len(BLOCKS)), ids=["evaluate", "play", "train"])
def test_a_script_of_the_page_runs_unchanged(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [line for line in BLOCKS[number].splitlines() if line]
    assert len(lines) <= 15
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("POLYTURN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("scripts.train.draw_pictures", lambda *_, **__: None)
    names: dict[str, object] = {}
    exec(compile(BLOCKS[number], "docs/python.md", "exec"), names)
    out = capsys.readouterr().out
    if number == 0:
        assert re.search(r"^expert: 100% \(\d+% to 100%\) of 20$", out, re.MULTILINE)
    if number == 2:
        run = names["run"]
        assert isinstance(run, pt.Run)
        assert [row["update"] for row in run.metrics if "rollout/success" in row] == [1, 2, 3]
        assert {row["kind"] for row in run.turns()} == {"training", "evaluation"}
        assert run.evaluation["updates"] == 3


def test_errors_name_the_available_choices(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tasks = pt.make_tasks("key_corridor")
    with pytest.raises(ValueError, match="unknown env 'key_corridr'; did you mean 'key_corridor'"):
        pt.make_tasks("key_corridr")
    with pytest.raises(LookupError, match="unknown setting of env=key_corridor 'room'; did you mean 'rooms'"):
        pt.make_tasks("key_corridor", room=5)
    with pytest.raises(ValueError, match="rooms must be at least 4; got rooms=1"):
        pt.make_tasks("key_corridor", rooms=1)
    with pytest.raises(ValueError, match="this agent needs a model"):
        pt.make_agent("masked", tasks)
    with pytest.raises(FileNotFoundError, match="is no training run"):
        pt.load_run(tmp_path)
    with pytest.raises(ValueError, match="unknown algo 'gigp'; did you mean 'gigpo'"):
        pt.train(tmp_path / "run", "algo=gigp")
    assert not (tmp_path / "run").exists()
    assert "unknown algo" in capsys.readouterr().err


def test_other_packages_with_these_names(tmp_path: Path) -> None:
    (tmp_path / "envs").mkdir()
    (tmp_path / "envs" / "__init__.py").write_text("mine = True\n")

    def script(text: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", text]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    first = script("import polyturn; print(polyturn.make_tasks('key_corridor').splits)")
    assert (first.returncode, first.stdout) == (0, "('train', 'valid')\n"), first.stderr
    second = script("import envs; assert envs.mine; import polyturn")
    assert "ImportError: polyturn's package 'envs' cannot be imported" in second.stderr
    assert str(tmp_path / "envs" / "__init__.py") in second.stderr
