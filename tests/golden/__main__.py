"""The command: replay every recording in a folder and print the error of each algorithm."""

from __future__ import annotations

import argparse
import json
import traceback
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.golden.compare import Difference, replay_file
from tests.golden.replay import REPLAYS


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status: 0 where everything matches, 1 for a mismatch, an unknown algorithm or a file that is none."""
    parser = argparse.ArgumentParser(prog="tests.golden", description="replay recordings of reference implementations")
    parser.add_argument("folder", type=Path, help="folder of *.json files in the golden format")
    folder = parser.parse_args(argv).folder
    paths = sorted(folder.glob("*.json"))
    if not paths:
        parser.error(f"no *.json directly in {folder}")
    console = Console(soft_wrap=True)
    table = Table("algorithm", "cases", "fields", "worst error", "", "source", title=str(folder))
    failed = False
    for path in paths:
        name, cases, fields, error, verdict, source = _replay(path, console)
        failed |= verdict != "ok"
        table.add_row(name, str(cases), str(fields), error, verdict, source)
    console.print(table)
    return int(failed)


def _replay(path: Path, console: Console) -> tuple[str, int, int, str, str, str]:
    """A line of the table; what is wrong is printed in full."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        name, cases = str(data["algorithm"]), len(data["cases"])
        source = str(data.get("source", {}).get("repo_commit", "")).split(" ")[0]
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        console.print(f"{path.name} is no recording: {type(error).__name__}: {error}", markup=False)
        return path.stem, 0, 0, "", "no recording", ""
    if name not in REPLAYS:
        console.print(f"{path.name}: unknown algorithm {name!r}; known: {', '.join(sorted(REPLAYS))}", markup=False)
        return name, cases, 0, "", "unknown", source
    try:
        differences: list[Difference] = replay_file(data)
    except Exception:
        console.print(f"{path.name}: {traceback.format_exc()}", markup=False)
        return name, cases, 0, "", "failed", source
    for one in differences:
        if not one.matches:
            console.print(f"{path.name}, case {one.case}: {one.field} is off by {one.error:.3g}", markup=False)
    worst = max((one.error for one in differences), default=0.0)
    verdict = "ok" if all(one.matches for one in differences) else "mismatch"
    return name, cases, len(differences), f"{worst:.1e}", verdict, source


if __name__ == "__main__":
    raise SystemExit(main())
