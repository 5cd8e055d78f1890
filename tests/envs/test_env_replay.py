"""Recordings of the reference implementations of environments, replayed; and the command that does it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.env_replay.__main__ import main
from tests.env_replay.kinds import Kind, kind_of

SNAKE = Kind("snake/episodes", lambda *_: None, "nokia/snake @ 3310", ("episodes",))
MAZES = Kind("maze/rooms", lambda *_: None, "nokia/maze", ("rooms", "exits"))


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
