"""The command: replay every recording in a folder and print the differences."""

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

from envs.core import data_root
from envs.webshop.catalogue import CatalogueNotFoundError
from tests.webshop_replay.replay import REPLAYS, Recorder, Stock, kind_of

SHOWN = 10  # differences of a file


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status: 0 where everything matches, 1 for a difference, an unknown kind or a file that is none."""
    parser = argparse.ArgumentParser(prog="tests.webshop_replay", description="replay recordings of WebShop")
    parser.add_argument("folder", type=Path, help="folder of *.json files, recordings of the official environment")
    parser.add_argument("--catalogue", type=Path, help="folder of the catalogue (default: webshop in the data folder)")
    arguments = parser.parse_args(argv)
    paths = sorted(arguments.folder.glob("*.json"))
    if not paths:
        parser.error(f"no *.json directly in {arguments.folder}")
    stock = Stock(arguments.catalogue or data_root() / "webshop")
    console = Console(soft_wrap=True)
    columns = ("file", "what", "cases", "compared", "different", "", "s")
    table = Table(*columns, title=str(arguments.folder), box=None)
    verdicts = [_replay(path, stock, console, table) for path in paths]
    console.print(table)
    return int(any(verdict not in ("ok", "passed over") for verdict in verdicts))


def _replay(path: Path, stock: Stock, console: Console, table: Table) -> str:
    """Adds a line to the table; what is wrong is printed. Returns the verdict."""
    recorder, kind, verdict = Recorder(), "", "ok"
    began = time.perf_counter()
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        kind = kind_of(data)
        if kind not in REPLAYS:
            console.print(f"{path.name}: unknown kind {kind!r}; known: {', '.join(sorted(REPLAYS))}", markup=False)
            verdict = "unknown"
        elif replay := REPLAYS[kind]:
            replay(data, stock, recorder)
        else:
            verdict = "passed over"
    except json.JSONDecodeError as error:
        console.print(f"{path.name} is no recording: {error}", markup=False)
        verdict = "no recording"
    except CatalogueNotFoundError as error:
        console.print(f"{path.name}: {error}", markup=False)
        verdict = "no catalogue"
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
    what = kind.removeprefix("webshop-")
    table.add_row(path.name, what, *map(str, counts), verdict, f"{time.perf_counter() - began:.1f}")
    return verdict


if __name__ == "__main__":
    raise SystemExit(main())
