"""Recordings of other projects' search agents, replayed; and the command that does it."""

from __future__ import annotations

import json
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from envs.tools.bfcl import INSTALL
from tests.search_replay.__main__ import main

RECORDINGS = Path(__file__).parent.parent / "golden_data" / "search"
CORPUS = Path(os.environ.get("POLYTURN_DATA", "/nowhere")) / "qa" / "search_corpus.jsonl"
NEEDS_BFCL = pytest.mark.skipif(find_spec("bfcl_eval") is None, reason=f"needs {INSTALL}")
with_corpus = pytest.mark.skipif(not CORPUS.is_file(), reason="needs qa/search_corpus.jsonl in $POLYTURN_DATA")


def replay(folder: Path) -> int:
    return main([str(folder), "--corpus", str(CORPUS)])


def recording(name: str, *values: Any) -> Any:
    return pytest.param(name, *values, marks=[NEEDS_BFCL] if "bfcl" in name else [])


@with_corpus
@pytest.mark.parametrize("name", [recording(path.stem) for path in sorted(RECORDINGS.glob("*.json"))])
def test_recordings_are_reproduced(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / f"{name}.json").symlink_to(RECORDINGS / f"{name}.json")
    assert replay(tmp_path) == 0, capsys.readouterr().out


@with_corpus
@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("search_r1_em", "em", 0.5),
        ("search_r1_postprocess", "observation", ""),
        ("search_r1_format_passages", "verl_agent", ""),
        ("verl_agent_search", "valid", 2),
        ("igpo_reward", "f1", 0.125),
        ("mt_grpo_rewards", "turn_reward", 0.125),
        ("bm25s_rankings", "k1_0.9_b_0.4", [[1, 99.0]]),
        ("search_server_http", "status", 418),
        recording("bfcl_ground_truth", "final_state", {}),
    ],
)
def test_a_difference_is_found_and_printed(
    name: str, field: str, value: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = json.loads((RECORDINGS / f"{name}.json").read_text())
    next(case for case in data["cases"] if field in case)[field] = value
    (tmp_path / f"{name}.json").write_text(json.dumps(data))
    assert replay(tmp_path) == 1
    shown = capsys.readouterr().out
    assert "different" in shown
    assert "instead of" in shown


@pytest.mark.parametrize(
    ("name", "content", "verdict"),
    [
        ("novel.json", "{}", "unknown"),
        ("search_r1_em.json", "{", "no recording"),
        ("search_r1_em.json", '{"prompt_template": 1, "cases": [{}]}', "failed"),
    ],
)
def test_what_cannot_be_replayed_is_no_success(
    name: str, content: str, verdict: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_text(content)
    assert replay(tmp_path) == 1
    assert verdict in capsys.readouterr().out


def test_a_missing_corpus_is_no_success(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bm25s_rankings.json").symlink_to(RECORDINGS / "bm25s_rankings.json")
    assert main([str(tmp_path), "--corpus", str(tmp_path / "nothing.jsonl")]) == 1
    assert "no corpus" in capsys.readouterr().out
