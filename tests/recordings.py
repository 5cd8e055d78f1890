"""Replay a folder of recordings and print what differs: shared by the commands `tests.webshop_replay` and others."""

from __future__ import annotations

import json
import time
import traceback
from argparse import ArgumentParser
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Generic, TypeVar

from rich.console import Console
from rich.table import Column, Table

SHOWN = 10  # differences of a file
Stock = TypeVar("Stock")  # what recordings are replayed on


class Recorder:
    """Compares values, and collects the differences as texts."""

    def __init__(self) -> None:
        self.cases = self.compared = 0
        self.excepted = 0  # what a recording itself marks as not to be compared
        self.differences: list[str] = []

    def check(self, where: str, got: Any, expected: Any) -> None:
        self.compared += 1
        if got != expected:
            self.differences.append(f"{where}: {_apart(got, expected)}")

    def check_fields(self, where: str, got: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
        """Every field of `got`, and that `expected` has no other."""
        self.check(f"{where}, fields", sorted(got), sorted(expected))
        for name, value in got.items():
            self.check(f"{where}, {name}", value, expected.get(name))


def _apart(got: Any, expected: Any) -> str:
    """Both texts, from shortly before their first difference."""
    texts = repr(got), repr(expected)
    pairs = enumerate(zip(*texts, strict=False))
    start = max(0, next((i for i, (a, b) in pairs if a != b), min(map(len, texts))) - 40)
    return " instead of ".join(("…" if start else "") + text[start : start + 160] for text in texts)


@dataclass(frozen=True)
class Recordings(Generic[Stock]):
    """The kinds of recordings that a command knows, and how each is replayed."""

    kind_of: Callable[[Path, Any], str]  # of a file and its contents
    replays: Mapping[str, Callable[[dict[str, Any], Stock, Recorder], None] | None]  # None: the kind is left out
    missing: Mapping[type[Exception], str]  # the verdict where something is missing that a replay needs
    left_out: str = ""  # the verdict on a kind that is left out
    pattern: str = "*.json"  # of the files of a folder, for `Path.glob`

    def replay_folder(self, parser: ArgumentParser, folder: Path, stock: Stock) -> int:
        """Replay every file of `pattern` in `folder` and print a table.

        Returns the exit status: 0 where everything matches, 1 for a difference, an unknown kind or a file that is no
        recording. A folder without a file is an error of `parser`.
        """
        paths = sorted(folder.glob(self.pattern))
        if not paths:
            parser.error(f"no {self.pattern}{'' if '/' in self.pattern else ' directly'} in {folder}")
        console = Console(soft_wrap=True)
        columns = ("file", "kind", "cases", "compared", "excepted", "different", Column("", no_wrap=True), "s")
        table = Table(*columns, title=str(folder), box=None)
        verdicts = [self._replay(path, str(path.relative_to(folder)), stock, console, table) for path in paths]
        console.print(table)
        return int(any(verdict not in ("ok", self.left_out) for verdict in verdicts))

    def _replay(self, path: Path, name: str, stock: Stock, console: Console, table: Table) -> str:
        """Adds a line to the table; what is wrong is printed under the file's name. Returns the verdict."""
        recorder, kind, verdict = Recorder(), "", "ok"
        began = time.perf_counter()
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            kind = self.kind_of(path, data)
            if kind not in self.replays:
                known = ", ".join(sorted(self.replays))
                console.print(f"{name}: unknown kind {kind!r}; known: {known}", markup=False)
                verdict = "unknown"
            elif replay := self.replays[kind]:
                replay(data, stock, recorder)
            else:
                verdict = self.left_out
        except json.JSONDecodeError as error:
            console.print(f"{name} is no recording: {error}", markup=False)
            verdict = "no recording"
        except tuple(self.missing) as error:
            console.print(f"{name}: {error}", markup=False)
            verdict = next(verdict for kinds, verdict in self.missing.items() if isinstance(error, kinds))
        except Exception:
            console.print(f"{name}: {traceback.format_exc()}", markup=False)
            verdict = "failed"
        for difference in islice(recorder.differences, SHOWN):
            console.print(f"{name}, {difference}", markup=False)
        if verdict == "ok" and recorder.differences:
            verdict = "different"
        elif verdict == "ok" and not recorder.compared:
            verdict = "nothing in it"
        counts = (recorder.cases, recorder.compared, recorder.excepted, len(recorder.differences))
        shown = "" if kind.rpartition("/")[2] in name else kind
        table.add_row(name, shown, *map(str, counts), verdict, f"{time.perf_counter() - began:.1f}")
        return verdict
