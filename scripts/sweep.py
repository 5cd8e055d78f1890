"""Evaluate agents on environments, and rank them: `python -m scripts.sweep agents=[expert,random] envs=[alfworld]`.

Every agent plays every split of every environment with every seed; `models=[…]` are folders of models or training runs
for agents with a policy. An entry of `agents` and `envs` is a name, or a list of one and overrides of
`scripts.evaluate`: 'agents=[random,[masked,"agent.sampling.temperature=0"]]'.

`sweep.dir` has a folder of `scripts.evaluate` for each cell (cells/), and leaderboard.json, .md and .html. The same
command again plays what is missing or failed. It may be widened: more seeds, a larger limit, more agents. A cell that
fails is named, and the others go on. Cells run one after the other, or side by side with `hydra/launcher=joblib`.

`python -m scripts.sweep sweep.dir=FOLDER` plays nothing, and writes the leaderboard of the evaluations below a folder,
also those of `python -m scripts.evaluate -m …`.
"""

from __future__ import annotations

import shlex
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from envs.core import counted
from scripts.cells import Cell, launch, plan_cells
from scripts.common import Terminal, command
from scripts.leaderboard import NAMES, named_cells, read_cells, write_leaderboard
from scripts.run_folder import Command, in_shell, locked, override_key, written

POLL_S = 0.5  # seconds between readings of the files of episodes


@command("sweep")
def main(cfg: DictConfig) -> None:
    """Run the sweep in its folder, which is locked for this process."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    with locked(folder):
        _run(cfg, folder)


def _run(cfg: DictConfig, folder: Path) -> None:
    console = Terminal(soft_wrap=True)
    if (cfg.agents is None) != (cfg.envs is None):
        raise ValueError(
            "a sweep needs both agents=[…] and envs=[…]; with neither, it writes the leaderboard of sweep.dir"
        )
    cells = plan_cells(cfg, folder) if cfg.agents else []
    missing = [cell for cell in cells if not cell.error and not cell.is_complete()]
    if cells:
        episodes = sum(cell.total for cell in cells)
        done = len([cell for cell in cells if not cell.error]) - len(missing)
        console.print(f"{counted(len(cells), 'cell')}, {counted(episodes, 'episode')}: {done} complete already")
    try:
        with _progress(console, cells):
            if missing:
                launch(missing, folder)
    except BaseException:
        kept = sum(cell.ended() for cell in cells)
        console.print(f"kept {counted(kept, 'episode')}; continue with: {_same_command(folder)}")
        raise
    for cell in missing:
        if not cell.error and not cell.is_complete():
            cell.error = "it ended before its last episode"
    failed = [cell for cell in cells if cell.error]
    for cell in failed:
        console.print(f"failed: {cell.name}: {cell.error}")
    found, left_out = read_cells(folder)
    ended = {cell.folder.relative_to(folder).as_posix(): cell.error for cell in failed if cell.folder != Path()}
    left_out = [f"{cell.name}: {cell.error}" for cell in failed] + [
        o for o in left_out if o.partition(":")[0] not in ended
    ]
    found = [one for one in found if one.folder not in ended]
    if not found:
        reason = (
            f"all {counted(len(cells), 'cell')} failed" if cells else f"there is no evaluation in {in_shell(folder)}"
        )
        first = f"; the first: {left_out[0]}" if left_out else ""
        help_text = "" if cells else "; to play some: agents=[expert,random] envs=[alfworld]"
        raise ValueError(f"{reason}, so there is no leaderboard{first}{help_text}")
    planned = {cell.manifest for cell in cells}
    console.print(write_leaderboard(folder, named_cells(found, planned), left_out))
    console.print(f"in {in_shell(folder)}: {', '.join(NAMES)}; see episodes with: python -m scripts.view CELL")
    if failed:
        names = ", ".join(cell.name for cell in failed)
        raise ValueError(
            f"{len(failed)} of {counted(len(cells), 'cell')} failed ({names}); the same command tries them again: "
            f"{_same_command(folder)}"
        )


def _same_command(folder: Path) -> str:
    """The shell command that continues the sweep in the folder."""
    this_command = Command.of_this_process("sweep")
    of_hydra = written(HydraConfig.get().overrides.hydra)
    hydra = [o for o in of_hydra if o.startswith(("hydra/launcher=", "hydra.launcher."))]
    given = [o for o in this_command.overrides if override_key(o) != "sweep.dir"]
    folders = [f"--config-dir={path}" for path in this_command.config_dirs]
    words = ["python", "-m", "scripts.sweep", *folders, *given, *hydra]
    return f"{shlex.join(words)} sweep.dir={in_shell(folder)}"


@contextmanager
def _progress(console: Terminal, cells: Sequence[Cell]) -> Iterator[None]:
    """One progress bar for all cells; without a terminal, a line for each cell that has all its episodes."""
    total = sum(cell.total for cell in cells)
    bar = Progress(
        BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[cell]}"), TimeRemainingColumn(),
        console=Terminal(file=console.file, soft_wrap=True), disable=not console.is_terminal, redirect_stdout=False,
        redirect_stderr=False,
    )  # fmt: skip
    shown = bar.add_task("", total=total, completed=sum(cell.ended() for cell in cells), cell="")
    waiting = [cell for cell in cells if cell.ended() < cell.total]
    stopping = threading.Event()

    def look() -> None:
        for cell in [cell for cell in waiting if cell.ended() == cell.total]:
            waiting.remove(cell)
            if not console.is_terminal:
                bar.console.print(f"{len(cells) - len(waiting)}/{len(cells)} {cell.name}: {cell.total} episodes")
        current = next((cell.name for cell in waiting if cell.ended()), "")
        bar.update(shown, completed=sum(cell.ended() for cell in cells), cell=current)

    def watch() -> None:
        while not stopping.wait(POLL_S):
            look()

    thread = threading.Thread(target=watch, daemon=True)
    with bar:
        thread.start()
        try:
            yield
        finally:
            stopping.set()
            thread.join()
            look()


if __name__ == "__main__":
    main()
