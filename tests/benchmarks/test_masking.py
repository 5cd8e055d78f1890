"""The benchmark of masked actions, in its smallest size: both sides write the same ids."""

import json
from pathlib import Path

import pytest

from benchmarks import masking
from envs.core import UnknownNameError

SMALL = ["--models=tiny", "--episodes=2", "--turns=4", "--repeats=1"]


def test_both_sides_write_the_same_and_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "figures.json"
    masking.main([*SMALL, "--worlds=webshop", f"--output={output}"])
    figures = json.loads(output.read_text())
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == figures
    found = figures["masking"]["webshop"]["tiny"]
    assert found["tokens"] > 2 * 4
    assert 0 < found["forced"] < 1
    assert 0 < found["ratio"]["low"] <= found["ratio"]["median"] <= found["ratio"]["high"]
    assert set(found["us_per_token"]) == {"free", "masked"}


@pytest.mark.parametrize("argument", ["--worlds=alfworl", "--models=tony"])
def test_an_unknown_name_raises(argument: str) -> None:
    with pytest.raises(UnknownNameError, match="did you mean"):
        masking.main([argument])


def test_sizes_are_at_least_1(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        masking.main(["--repeats=0"])
    assert "at least 1" in capsys.readouterr().err
