"""The command: replay every recording in a folder and say what differs."""

from __future__ import annotations

import argparse
import json
import time
import traceback
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from rich.console import Console
from rich.table import Table

from envs.core import NoDataError, data_root
from tests.search_replay.replay import REPLAYS, NotInstalledError, Stock, kind_of
from tests.webshop_replay.replay import Recorder

SHOWN = 10  # differences of a file


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status: 0 where everything matches, 1 for a difference, an unknown file or one that is no recording."""
    parser = argparse.ArgumentParser(prog="tests.search_replay", description="replay recordings of search agents")
    parser.add_argument("folder", type=Path, help="folder of *.json files")
    parser.add_argument("--corpus", type=Path, help="the passages (default: qa/search_corpus.jsonl in the data folder)")
    arguments = parser.parse_args(argv)
    paths = sorted(arguments.folder.glob("*.json"))
    if not paths:
        parser.error(f"no *.json directly in {arguments.folder}")
    stock = Stock(arguments.corpus or data_root() / "qa" / "search_corpus.jsonl")
    console = Console(soft_wrap=True)
    table = Table("file", "cases", "compared", "different", "", "s", title=str(arguments.folder), box=None)
    verdicts = [_replay(path, stock, console, table) for path in paths]
    console.print(table)
    return int(any(verdict not in ("ok", "not replayed yet") for verdict in verdicts))


def _replay(path: Path, stock: Stock, console: Console, table: Table) -> str:
    """Adds a line to the table; what is wrong is printed. Returns the verdict."""
    recorder, verdict = Recorder(), "ok"
    began = time.perf_counter()
    kind = kind_of(path)
    try:
        if kind is None:
            console.print(f"{path.name}: unknown; known: {', '.join(sorted(REPLAYS))}", markup=False)
            verdict = "unknown"
        elif replay := REPLAYS[kind]:
            replay(json.loads(path.read_text(encoding="utf-8")), stock, recorder)
        else:
            verdict = "not replayed yet"
    except json.JSONDecodeError as error:
        console.print(f"{path.name} is no recording: {error}", markup=False)
        verdict = "no recording"
    except (NoDataError, NotInstalledError) as error:
        console.print(f"{path.name}: {error}", markup=False)
        verdict = "no corpus" if isinstance(error, NoDataError) else "not installed"
    except Exception:
        console.print(f"{path.name}: {traceback.format_exc()}", markup=False)
        verdict = "failed"
    for difference in islice(recorder.differences, SHOWN):
        console.print(f"{path.name}, {difference}", markup=False)
    if verdict == "ok" and recorder.differences:
        verdict = "different"
    elif verdict == "ok" and not recorder.compared:
        verdict = "nothing in it"
    counts = (recorder.cases, recorder.compared, len(recorder.differences))
    table.add_row(path.name, *map(str, counts), verdict, f"{time.perf_counter() - began:.1f}")
    return verdict


if __name__ == "__main__":
    raise SystemExit(main())
