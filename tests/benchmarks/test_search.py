"""The benchmark of search, in its smallest size. The load of a server is in `tests.scripts.test_serve`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import search


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYTURN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(search, "_VOCABULARY", 500)


def test_figures_end_with_a_line_of_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus, questions = tmp_path / "corpus.jsonl", tmp_path / "questions.jsonl"
    rows = [{"title": title, "text": f"{title} is here."} for title in ("Anna", "Bram", "Cora")]
    corpus.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    asked = {"question": "Where are Anna and Bram?", "answers": ["here"], "gold_titles": ["Anna", "Dario"]}
    questions.write_text(f"{json.dumps(asked)}\n")
    search.main(["--people=48", f"--corpus={corpus}", f"--questions={questions}"])
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (figures["passages"], figures["queries"]) == (3, 1)
    assert (figures["bm25_recall_3"], figures["bm25_all_3"]) == (0.5, 0.0)
    assert min(figures[name] for name in ("build_s", "open_s", "open_mb", "env_steps_per_s")) > 0


def test_a_synthetic_corpus_is_the_same_each_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    search.main(["--people=48", "--scale=40", f"--folder={tmp_path}"])
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["passages"] == 40
    search.write_synthetic(tmp_path / "again.jsonl", 40)
    assert (tmp_path / "again.jsonl").read_bytes() == (tmp_path / "synthetic-40.jsonl").read_bytes()


def test_a_corpus_needs_its_questions(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        search.main(["--corpus=x"])
    assert "go together" in capsys.readouterr().err
