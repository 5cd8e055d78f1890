"""Recordings of the official WebShop, replayed on its catalogue; and the command that does it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from envs.webshop.env import open_shop
from tests.webshop_replay.__main__ import main
from tests.webshop_replay.official import OfficialEnv

RECORDINGS = Path(__file__).parent.parent / "golden_data" / "webshop"
CATALOGUE = Path(os.environ.get("POLYTURN_DATA", "/nowhere")) / "webshop"
official = pytest.mark.skipif(
    not (CATALOGUE / "items_shuffle_1000.json").is_file(),
    reason="needs WebShop's 1,000 products (items_shuffle_1000.json) in $POLYTURN_DATA/webshop",
)


def replay(*arguments):
    return main([*map(str, arguments), "--catalogue", str(CATALOGUE)])


@official
@pytest.mark.parametrize("path", sorted(RECORDINGS.glob("*.json")), ids=lambda path: path.stem)
def test_recordings_are_reproduced(path, tmp_path, capsys):
    (tmp_path / path.name).symlink_to(path)
    assert replay(tmp_path) == 0, capsys.readouterr().out


def change(data, *keys, value):
    """`data` with another value at the end of the keys."""
    place = data
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    return data


@official
@pytest.mark.parametrize(
    ("name", "keys", "value"),
    [
        ("fuzz", ["token_set_ratio", 0, 2], 31),
        ("search", ["cases", 0, "hits", 3, 1], 7.5),
        ("search", ["cases", 0, "hits", 3, 0], "B000000000"),
        ("analysis", ["words", 0, 1], ["glas"]),
        ("index_stats", ["stats", "unique_terms"], 12),
        ("goals", ["cases", 0, "sha256_prices"], ""),
        ("reward", ["cases", 0, "expected", "total"], 0.5),
        ("episodes", ["episodes", 0, "steps", 0, "text_rich"], ""),
        ("episodes", ["episodes", 0, "final", "actions"], {}),
        ("history_mode", ["cases", 0, "steps", 1, "state"], ""),
        ("verl_wrapper", ["runs", 0, "steps", 0, 0, "anchor"], ""),
    ],
)
def test_a_difference_is_found_and_printed(name, keys, value, tmp_path, capsys):
    data = json.loads((RECORDINGS / f"{name}.json").read_text(encoding="utf-8"))
    (tmp_path / f"{name}.json").write_text(json.dumps(change(data, *keys, value=value)), encoding="utf-8")
    assert replay(tmp_path) == 1
    output = capsys.readouterr().out
    assert f"{name}.json, " in output
    assert "different" in output


def test_a_session_keeps_its_goal_for_ever(shop_folder):
    env = OfficialEnv(open_shop(shop_folder), seed=0)
    env.reset("somebody")
    first = env.goal_index
    drawn = set()
    for _ in range(20):
        env.reset()
        drawn.add(env.goal_index)
        env.reset("somebody")
        assert env.goal_index == first
    assert len(drawn) > 1
    assert 0 not in drawn  # the first goal has no weight, by an accident upstream
    env.reset(2)
    assert env.goal_index == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "no recording"),
        ("[]", "unknown kind 'list'"),
        ('{"kind": "webshop-videos"}', "unknown kind 'webshop-videos'"),
        ('{"kind": "webshop-fuzz", "token_set_ratio": [], "normalize_color": []}', "nothing in it"),
        ('{"kind": "webshop-fuzz"}', "KeyError"),
    ],
)
def test_a_file_that_is_no_recording_raises(content, message, tmp_path, capsys):
    (tmp_path / "odd.json").write_text(content)
    assert replay(tmp_path) == 1
    assert message in capsys.readouterr().out


def test_html_is_skipped_and_a_folder_without_recordings_is_an_error(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        replay(tmp_path)
    assert stopped.value.code == 2
    (tmp_path / "html.json").write_text(json.dumps({"episode": ["<!DOCTYPE html>\n<html></html>"]}))
    assert replay(tmp_path) == 0
    assert "passed over" in capsys.readouterr().out
