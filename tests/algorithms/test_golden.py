from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from tests.golden.__main__ import main
from tests.golden.compare import FOLDER, replay_file
from tests.golden.replay import REPLAYS

FILES = sorted(FOLDER.glob("*.json"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_recorded_results_are_reproduced(path: Path) -> None:
    differences = replay_file(json.loads(path.read_text()))
    assert differences
    assert not [one for one in differences if not one.matches]


def test_every_replay_has_a_recording() -> None:
    assert {json.loads(path.read_text())["algorithm"] for path in FILES} == set(REPLAYS)


def write(folder: Path, data: Any) -> str:
    (folder / "one.json").write_text(json.dumps(data))
    return str(folder)


@pytest.fixture
def recording() -> Any:
    return deepcopy(json.loads((FOLDER / "rloo.json").read_text()))


def test_the_command_accepts_matching_results(tmp_path: Path, recording: Any) -> None:
    assert main([write(tmp_path, recording)]) == 0


def test_the_command_reports_a_mismatch(tmp_path: Path, recording: Any, capsys: Any) -> None:
    recording["cases"][1]["expected"]["advantages"][0][0] += 0.5
    assert main([write(tmp_path, recording)]) == 1
    assert "case ragged_groups: advantages is off by 0.5" in capsys.readouterr().out


@pytest.mark.parametrize("field", ["advantages", "unheard_of"])
def test_another_shape_or_a_missing_result_is_a_mismatch(tmp_path: Path, recording: Any, field: str) -> None:
    recording["cases"][0]["expected"] = {field: [[1.0]]}
    assert main([write(tmp_path, recording)]) == 1


def test_the_command_names_an_unknown_algorithm(tmp_path: Path, recording: Any, capsys: Any) -> None:
    recording["algorithm"] = "rlooo"
    assert main([write(tmp_path, recording)]) == 1
    assert "unknown algorithm 'rlooo'; known: dapo_overlong" in capsys.readouterr().out


def test_a_file_that_is_no_recording_is_named(tmp_path: Path, capsys: Any) -> None:
    assert main([write(tmp_path, {"cases": []})]) == 1
    assert "one.json is no recording" in capsys.readouterr().out


def test_inputs_that_cannot_be_replayed_are_named(tmp_path: Path, recording: Any, capsys: Any) -> None:
    del recording["cases"][0]["inputs"]["group_index"]
    assert main([write(tmp_path, recording)]) == 1
    assert "KeyError" in capsys.readouterr().out


def test_a_folder_without_recordings_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        main([str(tmp_path)])
