"""Recordings of the reference implementations of environments, replayed; and the command that does it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.engines import needs_java, needs_package
from tests.env_replay.__main__ import KINDS, main
from tests.env_replay.kinds import Kind, kind_of

RECORDINGS = Path(__file__).parent.parent / "golden_data"
FOLDERS = sorted({kind.name.partition("/")[0] for kind in KINDS})
DATA = Path(os.environ.get("POLYTURN_DATA", "/nowhere"))
NEEDS = {"sokoban/boxoban_episodes": "boxoban/hard/000.txt", "textcraft/episodes": "textcraft"}  # in the data folder

SNAKE = Kind("snake/episodes", lambda *_: None, "nokia/snake @ 3310", ("episodes",))
MAZES = Kind("maze/rooms", lambda *_: None, "nokia/maze", ("rooms", "exits"))


def recordings() -> list[Any]:
    return [
        pytest.param(path, id=name, marks=needs(name))
        for folder in FOLDERS
        for path in sorted((RECORDINGS / folder).glob("*.json"))
        for name in [f"{folder}/{path.stem}"]
    ]


ENGINES = {
    "scienceworld": needs_java("scienceworld"), "textworld_express": needs_java("textworld_express"),
    "babyai_text": needs_package("minigrid", "babyai"), "textarena": needs_package("textarena", "textarena"),
}  # fmt: skip


def needs(name: str) -> list[pytest.MarkDecorator]:
    if engine := ENGINES.get(name.partition("/")[0]):
        return [engine]
    file = NEEDS.get(name)
    return [pytest.mark.skipif(not (DATA / file).exists(), reason=f"needs {file} in $POLYTURN_DATA")] if file else []


def replay(path: Path, tmp_path: Path, data: Any = None) -> int:
    """Replay one file, or other contents in its place."""
    (tmp_path / path.parent.name).mkdir()
    copy = tmp_path / path.parent.name / path.name
    copy.write_text(path.read_text() if data is None else json.dumps(data))
    return main([str(tmp_path)])


@pytest.mark.parametrize("path", recordings())
def test_recordings_are_reproduced(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert replay(path, tmp_path) == 0, capsys.readouterr().out


@pytest.mark.parametrize("path", recordings())
def test_a_recording_is_recognised_without_its_name(path: Path) -> None:
    data = json.loads(path.read_text())
    assert kind_of(Path("elsewhere/more.json"), data, KINDS) == f"{path.parent.name}/{path.stem}"


@pytest.mark.parametrize(
    ("name", "place", "value"),
    [
        ("sokoban/rooms", ["configs", "6x6_1", "rooms", 3, "state"], ["000000"] * 6),
        ("sokoban/ragen_episodes", ["episodes", 0, "steps", -1, "reward"], 0.5),
        ("sokoban/ragen_episodes", ["episodes", 0, "coord_end"], "?"),
        ("sokoban/verl_agent", ["runs", 0, "steps", 1, "prompts", 1], "?"),
        ("sokoban/verl_agent", ["projection", 2, "valid"], 0),
        ("sokoban/verl_agent", ["episodes", 0, "steps", 0, "new_field"], 1),
        ("ragen_games/games", ["frozen_lake", 0, "map"], ["SFFF"]),
        ("ragen_games/games", ["frozen_lake", 1, "steps", 2, "observation"], "?"),
        ("ragen_games/games", ["bandit", 0, "reward"], 0.5),
        ("ragen_games/games", ["countdown", "answers", 0, "reward"], 0.1),
        ("ragen_games/turns", ["runs", 0, "turns", 3, "penalty_total"], 1),
        ("ragen_games/turns", ["runs", 0, "messages_at_end", 1, 3, "content"], "?"),
    ],
)
def test_a_difference_is_found_and_printed(
    name: str, place: list[Any], value: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = RECORDINGS / f"{name}.json"
    data = json.loads(path.read_text())
    part = data
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = value
    assert replay(path, tmp_path, data) == 1
    shown = capsys.readouterr().out
    assert "different" in shown
    assert "instead of" in shown


@pytest.mark.parametrize(
    ("path", "data", "kind"),
    [
        ("a/snake/episodes.json", {}, "snake/episodes"),
        ("a/novel/more.json", {"source": "nokia/snake @ 3310, Python 3", "episodes": []}, "snake/episodes"),
        ("a/maze/episodes.json", {"source": "nokia/maze", "rooms": [], "exits": []}, "maze/rooms"),
        ("a/maze/episodes.json", {"source": "nokia/maze", "rooms": []}, "maze/episodes"),
        ("a/maze/episodes.json", [], "maze/episodes"),
    ],
)
def test_a_kind_is_recognised_by_folder_and_name_or_by_source_and_fields(path: str, data: object, kind: str) -> None:
    assert kind_of(Path(path), data, [SNAKE, MAZES]) == kind


@pytest.mark.parametrize(("content", "verdict"), [('{"source": "x"}', "unknown"), ("{", "no recording")])
def test_what_cannot_be_replayed_is_no_success(
    content: str, verdict: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "novel").mkdir()
    (tmp_path / "novel" / "episodes.json").write_text(content)
    assert main([str(tmp_path)]) == 1
    shown = capsys.readouterr().out
    assert verdict in shown
    assert "novel/episodes.json" in shown


def test_missing_levels_are_no_success(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(RECORDINGS / "sokoban"), "--data", str(tmp_path)]) == 1
    assert "no data" in capsys.readouterr().out
