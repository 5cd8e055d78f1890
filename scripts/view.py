"""Look at runs: in the terminal, or as a page: `python -m scripts.view RUN… [--html FILE | --serve]`.

In the terminal it lists episodes; `--episode N` shows one turn by turn, and `--group N` shows the attempts at one task
side by side. A training run has a file of episodes for each evaluation and for some of its updates. `--update` and
`--split` choose one; the default is the last batch.

`--html FILE` writes a page of all runs: curves, episodes, where each advantage comes from, groups, two runs side by
side, trees, the leaderboard. It is one file, which needs no network. `--serve` shows the same page at an address of
this machine, with new data while a run goes on.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from agents.episode import Episode, ParseStatus, Turn
from agents.record import read_record
from envs.core import UnknownNameError, counted
from envs.files import files_named, write_whole
from scripts.common import Arguments, Terminal, path_argument, printable, run
from scripts.page import html, pack
from scripts.page.collect import MOST, collect, record_files
from scripts.page.server import PORT, serve


def main(argv: list[str] | None = None) -> None:
    """List the selected episodes, show one or a group, or make the page."""
    parser = Arguments(prog="python -m scripts.view", description="Look at runs.")
    parser.add_argument(
        "paths", type=path_argument, nargs="+", metavar="RUN", help="the folder of a run, or a file of episodes"
    )
    parser.add_argument("--episode", type=int, metavar="N", help="show this one, turn by turn")
    parser.add_argument("--group", type=int, metavar="N", help="show the attempts of this group side by side")
    parser.add_argument("--failed", action="store_true", help="list only those that did not solve their task")
    parser.add_argument("--task", default="", metavar="TEXT", help="list only those with this text in their task's id")
    parser.add_argument("--update", type=int, metavar="N", help="show the batch or the evaluation after this update")
    parser.add_argument("--split", metavar="NAME", help="show the evaluation on this split; train: a training batch")
    parser.add_argument("--html", type=path_argument, metavar="FILE", help="write a page of all runs")
    parser.add_argument(
        "--serve", type=int, nargs="?", const=PORT, metavar="PORT", help=f"show the page at 127.0.0.1 (port {PORT})"
    )
    parser.add_argument("--most", type=int, default=MOST, metavar="N", help=f"most episodes on a page, newest ({MOST})")
    args = parser.parse_args(argv)
    console = Terminal()
    if args.html is not None or args.serve is not None:
        _page(args.paths, args.html, args.serve, args.most, console)
        return
    if len(args.paths) > 1:
        raise ValueError(f"the terminal shows one run, got {len(args.paths)}; add --html FILE for a page of all")
    file, note = find_file(args.paths[0], args.update, args.split)
    if note:
        console.print(note, style="dim", soft_wrap=True)
    record = read_record(file)
    if record.is_cut:
        console.print(f"{file}: its last line is not complete and left out", style="yellow", soft_wrap=True)
    episodes = record.episodes
    if args.episode is not None:
        if not 0 <= args.episode < len(episodes):
            raise ValueError(f"{file} has episodes 0 to {len(episodes) - 1}, got --episode {args.episode}")
        show_episode(episodes[args.episode], console)
        return
    chosen = {
        number: episode
        for number, episode in enumerate(episodes)
        if args.task in episode.task.id
        and not (args.failed and episode.success)
        and args.group in (None, episode.group)
    }
    if args.group is not None:
        if not chosen:
            groups = sorted({episode.group for episode in episodes})
            raise UnknownNameError("group", str(args.group), [str(group) for group in groups])
        show_group(chosen, console)
        return
    show_list(chosen, len(episodes), console)
    if chosen:
        hint = f"--episode {next(iter(chosen))}"
        path = shlex.quote(str(file if args.update is not None or args.split else args.paths[0]))
        console.print(f"\nsee one: python -m scripts.view {path} {hint}", style="dim", soft_wrap=True)


def _page(paths: Sequence[Path], target: Path | None, port: int | None, most: int, console: Console) -> None:
    """Write the page, or serve it."""
    if most < 1:
        raise ValueError(f"--most must be at least 1, got {most}")
    if missing := [path for path in paths if not path.exists()]:
        raise FileNotFoundError(f"there is no {missing[0]}: expected the folder of a run, or a file of episodes")
    if target is not None:
        data = collect(paths, most)
        write_whole(target, html(pack(data)))
        what = f"{counted(len(data['runs']), 'run')}, {counted(len(data['episodes']), 'episode')}"
        console.print(f"{target}: {what}", soft_wrap=True)
        for gap in data["gaps"]:
            console.print(Text(printable(gap)), style="yellow", soft_wrap=True)
    if port is not None:
        serve(lambda: collect(paths, most), paths, port, console)


def find_file(path: Path, update: int | None = None, split: str | None = None) -> tuple[Path, str]:
    """The file of episodes for a path, and a description of the choice.

    In the folder of a run it is the last batch, or the last file of the `update` and the `split`. Raises
    `FileNotFoundError`, and `ValueError` if there is no such file.
    """
    if not path.is_dir():
        if not path.exists():
            raise FileNotFoundError(f"there is no {path}: expected a file of episodes (.jsonl) or the folder of a run")
        return path, ""
    files = record_files(path)
    if not files:
        inside = [file.parent for file in files_named(path, "episodes.jsonl")]
        near = f"; there are some in {', '.join(map(str, inside[-3:]))}" if inside else ""
        raise FileNotFoundError(f"{path} has no episodes.jsonl and no episodes/*.jsonl.gz{near}")
    fitting = [file for file in files if update in (None, _update_of(file)) and split in (None, _split_of(file))]
    if not fitting:
        there = ", ".join(dict.fromkeys(f"{_split_of(file)} after {_update_of(file)}" for file in files))
        asked = " ".join(f"{k}={v}" for k, v in (("update", update), ("split", split)) if v is not None)
        raise ValueError(f"{path} has no episodes of {asked}; it has: {there}")
    chosen = [file for file in fitting if file.parent.name != "evaluations"] or fitting
    return chosen[-1], f"{chosen[-1]}{f', the last of {len(chosen)}' if len(chosen) > 1 else ''}"


def _update_of(file: Path) -> int | None:
    number = file.name.removeprefix("update-").partition(".")[0]
    return int(number) if number.isdecimal() else None


def _split_of(file: Path) -> str:
    """The split of an evaluation; "train" for a batch."""
    return file.name.partition(".")[2].removesuffix(".jsonl.gz") if file.parent.name == "evaluations" else "train"


# -- the list ---------------------------------------------------------------------------------------------------------
def show_list(episodes: dict[int, Episode], total: int, console: Console) -> None:
    """Print one line per episode."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("#", justify="right", style="cyan")
    table.add_column("task", overflow="fold", ratio=1)
    for heading in ("seed", "turns", "return"):
        table.add_column(heading, justify="right")
    table.add_column("ended by", no_wrap=True)
    for number, episode in episodes.items():
        table.add_row(
            str(number),
            Text(printable(episode.task.id)),
            str(episode.seed),
            str(len(episode.turns)),
            f"{episode.total_reward:g}",
            Text(str(episode.stop_reason), style=_style(episode)),
        )
    if episodes:
        console.print(table)
    solved = sum(episode.success for episode in episodes.values())
    console.print(f"\n{len(episodes)} of {total} episodes, {solved} solved" if total else "the file has no episodes")


def _style(episode: Episode) -> str:
    return "green" if episode.success else "red"


# -- a group -----------------------------------------------------------------------------------------------------------
def show_group(episodes: dict[int, Episode], console: Console) -> None:
    """Print the attempts at one task side by side, a row for each turn. States of several attempts have a number."""
    first = next(iter(episodes.values()))
    show_goal(first, console)
    visits = Counter(key for e in episodes.values() for key in {turn.state_key for turn in e.turns})
    anchors = {key: number for number, key in enumerate((k for k, n in visits.items() if n > 1), start=1)}
    table = Table(padding=(0, 1), show_lines=True)
    table.add_column("turn", justify="right")
    for number in episodes:
        table.add_column(f"#{number}", overflow="fold")
    for turn in range(max((len(e.turns) for e in episodes.values()), default=0)):
        cells = [_cell(e.turns[turn], anchors) if turn < len(e.turns) else Text() for e in episodes.values()]
        table.add_row(str(turn + 1), *cells)
    table.add_row("", *(result(episode) for episode in episodes.values()))
    console.print(table)
    if anchors:
        console.print("states that several attempts visit have a number: (1), (2), …", style="dim")


def _cell(turn: Turn, anchors: dict[str, int]) -> Text:
    number = anchors.get(turn.state_key)
    state = Text(f"({number}) ", style=f"bold color({number % 6 + 1})") if number else Text()
    advantage = f" {turn.advantage:+.2f}" if turn.advantage is not None else ""
    return Text.assemble(state, printable(turn.action), (advantage, "dim"))


# -- one episode ------------------------------------------------------------------------------------------------------
def show_episode(episode: Episode, console: Console) -> None:
    """Print the goal, the turns and the result."""
    show_goal(episode, console)
    for number, turn in enumerate(episode.turns, start=1):
        show_turn(number, turn, console)
    console.print(Text(printable(episode.final_observation)))
    kind = ", a demonstration" if episode.demonstration else ""
    console.print(result(episode).append(f", seed {episode.seed}, group {episode.group}{kind}"))
    if episode.error:
        console.print(Text(printable(episode.error.strip()), style="red"))


def show_goal(episode: Episode, console: Console) -> None:
    """Print the task and its goal."""
    console.print(Text(f"{episode.task.env} {episode.task.split} {printable(episode.task.id)}", style="dim"))
    console.print(Panel(Text(printable(episode.goal)), title="goal", title_align="left", border_style="cyan"))


def result(episode: Episode) -> Text:
    """The result of an episode in one line."""
    how = "solved" if episode.success else f"not solved ({episode.stop_reason or 'stopped'})"
    turns = f"{len(episode.turns)} turn{'' if len(episode.turns) == 1 else 's'}"
    numbers = f" after {turns}, score {episode.score:g}, return {episode.total_reward:g}"
    return Text.assemble((how, f"bold {_style(episode)}"), numbers)


def show_turn(number: int, turn: Turn, console: Console) -> None:
    """Print the observation, the action, and a line of numbers."""
    facts = [f"turn {number}", f"reward {turn.reward:g}"]
    if turn.turn_reward is not None:
        facts.append(f"turn reward {turn.turn_reward:g}")
    if turn.status is not ParseStatus.OK:
        facts.append(str(turn.status))
    if turn.completion_ids:
        facts.append(f"{len(turn.completion_ids)} tokens, log-probability {sum(turn.logprobs):.2f}")
    if turn.advantage is not None:
        facts.append(f"advantage {turn.advantage:+.3f}")
    console.print(Text(printable(turn.observation)))
    console.print(Text.assemble(("> ", "bold green"), (printable(turn.action), "bold")))
    good = turn.status is ParseStatus.OK
    console.print(Text("  " + " · ".join(facts) + "\n", style="dim" if good else "yellow"))


if __name__ == "__main__":
    run(main)
