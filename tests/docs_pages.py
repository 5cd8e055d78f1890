"""The pages of the documentation as data for tests."""

from __future__ import annotations

import json
import math
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of a page in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


@cache
def metric_keys() -> tuple[str, ...]:
    """The keys that docs/metrics.md documents. Words in capitals stand for a name."""
    return tuple(
        re.findall(r"^\| `([\w/]+)` \|", (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8"), re.MULTILINE)
    )


def checked_updates(metrics: Path) -> list[dict[str, float]]:
    """The updates in a metrics.jsonl, whose numbers are finite and whose keys all have a row in docs/metrics.md."""
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    assert [key for line in lines for key in line if not is_documented(key)] == []
    updates = [line for line in lines if "train/loss" in line]
    assert all(math.isfinite(value) for line in updates for value in line.values())
    return updates


def is_documented(key: str) -> bool:
    """Whether docs/metrics.md has a row for a key of metrics.jsonl."""
    patterns = (re.sub("[A-Z]+", "[^/]+", documented) for documented in metric_keys())
    return any(re.fullmatch(pattern, key) for pattern in patterns)
