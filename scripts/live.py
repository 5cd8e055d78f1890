"""The terminal output of a run: a table that grows, and the current activity."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from scripts.curve import is_success
from scripts.loggers import Loggers

COLUMNS = {  # heading -> (metric, how to write it)
    "success": ("rollout/success", "{:.0%}"),
    "return": ("rollout/return", "{:.2f}"),
    "turns": ("rollout/turns", "{:.1f}"),
    "invalid": ("rollout/invalid", "{:.0%}"),
    "loss": ("train/loss", "{:+.4f}"),
    "KL": ("train/kl", "{:.4f}"),
    "entropy": ("train/entropy", "{:.3f}"),
    "roll out s": ("time/rollout_s", "{:.1f}"),
    "learn s": ("time/learn_s", "{:.1f}"),
}
ROWS = 15  # of the table in a live display
SAY_EVERY = 60.0  # seconds between progress lines of a long phase, without a live display


class LiveReporter:
    """A live table on a terminal, one line per update elsewhere (a file, a pipe); see `algorithms.trainer.Reporter`."""

    def __init__(self, updates: int | None, console: Console, loggers: Loggers | None = None) -> None:
        self.of_updates = "" if updates is None else f"/{updates}"
        self.console, self.loggers = console, loggers
        self.on_closed: Callable[[], None] = lambda: None  # called when the output was closed
        self.rows: list[list[str]] = []
        self.started = time.monotonic()
        self.progress = Progress(
            TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            TextColumn("{task.fields[status]}", markup=False), console=self.console,
        )  # fmt: skip
        self.task: TaskID | None = None
        self.phase_started, self.phase_name, self.phase_status = time.monotonic(), "", ""
        self.line_time = self.phase_started  # time of the last line about the phase
        self.live = Live(self._screen(), console=self.console, refresh_per_second=4, transient=True)

    def __enter__(self) -> LiveReporter:
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self.console.is_terminal:
            self.live.stop()
            self.console.print(self._table(len(self.rows)))

    def say(self, text: str | Text) -> None:
        """Print a line that stays. If the output was closed, call `on_closed` and print nothing more."""
        try:
            self.console.print(text)
        except OSError:
            self.mute()
            self.on_closed()

    def mute(self) -> None:
        """Print nothing more, because the terminal was closed."""
        self.console.quiet = True
        self.live.stop()

    def phase(self, name: str, total: int | None = None) -> None:
        """See `algorithms.warm_start.Progress`."""
        self._end_phase()
        self.phase_started, self.phase_name, self.phase_status = time.monotonic(), name, ""
        self.line_time = self.phase_started
        if self.task is not None:
            self.progress.remove_task(self.task)
        self.task = self.progress.add_task(name, total=total, status="")

    def advance(self, status: str = "") -> None:
        """See `algorithms.warm_start.Progress`."""
        self.phase_status = status
        if self.task is None:
            return
        self.progress.update(self.task, advance=1, status=status)
        if not self.console.is_terminal and time.monotonic() - self.line_time > SAY_EVERY:
            self.line_time = time.monotonic()
            task = self.progress.tasks[0]
            far = f"{task.completed:.0f} of {task.total:.0f}" if task.total else f"{task.completed:.0f}"
            self.say(f"{self.phase_name}: {far}, {self.line_time - self.phase_started:.0f} s{self._status()}")

    def update(self, update: int, metrics: dict[str, float]) -> None:
        """Add a row for an update, and print an evaluation in a line."""
        if self.loggers is not None:
            self.loggers.log(update, metrics)
        self._end_phase(quiet=True)
        if "rollout/success" in metrics:
            cells = [form.format(metrics[m]) if m in metrics else "–" for m, form in COLUMNS.values()]
            self.rows.append([f"{update}{self.of_updates}", *cells])
            if not self.console.is_terminal:
                self.say(
                    f"update {self.rows[-1][0]}  "
                    + "  ".join(f"{name} {value}" for name, value in zip(COLUMNS, self.rows[-1][1:], strict=True))
                )
        else:
            shares = [
                f"{m.split('/')[-2]} {v:.1%} ({metrics[f'{m}_low']:.1%} to {metrics[f'{m}_high']:.1%})"
                for m, v in metrics.items()
                if is_success(m)
            ]
            if shares:
                self.say(Text.assemble((f"after {update} updates: ", "bold"), ", ".join(shares)))
        self.live.update(self._screen())

    def _end_phase(self, quiet: bool = False) -> None:
        """Print the result of a long phase; within an update, the table shows it."""
        seconds = time.monotonic() - self.phase_started
        if self.phase_name and not quiet and seconds > 5:
            self.say(f"{self.phase_name}: {seconds:.0f} s{self._status()}")
        self.phase_name = ""

    def _status(self) -> str:
        return f" ({self.phase_status})" if self.phase_status else ""

    def _table(self, rows: int) -> Table:
        table = Table(title=f"{time.monotonic() - self.started:.0f} s", title_justify="left", box=None, padding=(0, 1))
        for name in ("update", *COLUMNS):
            table.add_column(name, justify="right")
        for row in self.rows[-rows:]:
            table.add_row(*row)
        return table

    def _screen(self) -> Group:
        return Group(self._table(ROWS), self.progress)
