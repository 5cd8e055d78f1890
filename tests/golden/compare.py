"""Read a recorded file, and compare results with it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tests.golden.replay import REPLAYS

FOLDER = Path(__file__).parent.parent / "golden_data"


class Difference(NamedTuple):
    """The difference between one expected field of a case and the result."""

    case: str
    field: str
    error: float  # the greatest absolute difference; infinite where there is nothing to subtract
    matches: bool  # within the file's tolerance


def load(name: str) -> tuple[list[Any], Any]:
    """The cases of one of the project's own recordings, and their tolerances `atol` and `rtol`."""
    data = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return data["cases"], data["tolerance"]


def replay_file(data: dict[str, Any]) -> list[Difference]:
    """Every expected field of every case. Raises `KeyError` for an algorithm without a replay."""
    replay = REPLAYS[data["algorithm"]]
    return [
        difference
        for case in data["cases"]
        for difference in _compare(
            case["name"],
            "",
            case["expected"],
            replay(case["inputs"], case.get("params", {}), case["expected"]),
            data["tolerance"],
        )
    ]


def _compare(case: str, field: str, expected: Any, answer: Any, tolerance: Any) -> Iterator[Difference]:
    if isinstance(expected, dict):
        for name, value in expected.items():
            known = isinstance(answer, dict) and name in answer
            yield from _compare(case, f"{field}/{name}".lstrip("/"), value, answer[name] if known else None, tolerance)
    elif isinstance(expected, list) and not _is_regular(expected):
        same_length = answer is not None and len(answer) == len(expected)
        for i, value in enumerate(expected):
            yield from _compare(case, f"{field}[{i}]", value, answer[i] if same_length else None, tolerance)
    else:
        yield Difference(case, field, *_distance(expected, answer, tolerance))


def _is_regular(values: list[Any]) -> bool:
    try:
        return np.array(values).dtype != object
    except ValueError:
        return False


def _distance(expected: Any, answer: Any, tolerance: Any) -> tuple[float, bool]:
    theirs = np.array(expected, dtype=np.float64)
    ours = np.array(np.nan if answer is None else answer, dtype=np.float64)
    if answer is None or ours.shape != theirs.shape:
        return np.inf, False
    if not theirs.size:
        return 0.0, True
    error = np.abs(ours - theirs)
    close = np.isclose(ours, theirs, atol=tolerance["atol"], rtol=tolerance["rtol"], equal_nan=True)
    error = np.where(np.isnan(error), np.where(close, 0.0, np.inf), error)
    return float(error.max()), bool(close.all())
