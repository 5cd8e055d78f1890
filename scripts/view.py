"""Look at episodes in the terminal: `python -m scripts.view RUN_DIR_OR_FILE [--episode N] [--failed] [--task TEXT]`.

Without `--episode` it lists the episodes, and with it shows one turn by turn. The folder of an evaluation has one
file of episodes; that of a training run has one for some of its updates, and the last one is used.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from agents.episode import Episode, ParseStatus, Turn, read_episodes
from envs.files import files_named
from scripts.common import Arguments, Terminal, printable, run


def main(argv: list[str] | None = None) -> None:
    """List the selected episodes, or show one."""
    parser = Arguments(prog="python -m scripts.view", description="Look at episodes in the terminal.")
    parser.add_argument("path", type=Path, help="a file of episodes (.jsonl), or the folder of a run")
    parser.add_argument("--episode", type=int, metavar="N", help="show this one, turn by turn")
    parser.add_argument("--failed", action="store_true", help="list only those that did not solve their task")
    parser.add_argument("--task", default="", metavar="TEXT", help="list only those with this text in their task's id")
    args = parser.parse_args(argv)
    console = Terminal()
    file, note = find_file(args.path)
    if note:
        console.print(note, style="dim")
    episodes = list(read_episodes(file))
    if args.episode is None:
        chosen = {
            number: episode
            for number, episode in enumerate(episodes)
            if args.task in episode.task.id and not (args.failed and episode.success)
        }
        show_list(chosen, len(episodes), console)
        if chosen:
            hint = f"--episode {next(iter(chosen))}"
            path = shlex.quote(str(args.path))
            console.print(f"\nsee one: python -m scripts.view {path} {hint}", style="dim", soft_wrap=True)
    elif not 0 <= args.episode < len(episodes):
        raise ValueError(f"{file} has episodes 0 to {len(episodes) - 1}, got --episode {args.episode}")
    else:
        show_episode(episodes[args.episode], console)


def find_file(path: Path) -> tuple[Path, str]:
    """The file of episodes for a path, and a description of the choice. Raises `FileNotFoundError`."""
    if not path.is_dir():
        if not path.exists():
            raise FileNotFoundError(f"there is no {path}: expected a file of episodes (.jsonl) or the folder of a run")
        return path, ""
    files = sorted([*path.glob("episodes.jsonl"), *path.glob("episodes/*.jsonl")])
    if not files:
        inside = [file.parent for file in files_named(path, "episodes.jsonl")]
        near = f"; there are some in {', '.join(map(str, inside[-3:]))}" if inside else ""
        raise FileNotFoundError(f"{path} has no episodes.jsonl and no episodes/*.jsonl{near}")
    return files[-1], f"{files[-1]}{f', the last of {len(files)}' if len(files) > 1 else ''}"


# -- the list ---------------------------------------------------------------------------------------------------------
def show_list(episodes: dict[int, Episode], total: int, console: Console) -> None:
    """One line per episode."""
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


# -- one episode ------------------------------------------------------------------------------------------------------
def show_episode(episode: Episode, console: Console) -> None:
    """Goal, turns, ending."""
    show_goal(episode, console)
    for number, turn in enumerate(episode.turns, start=1):
        show_turn(number, turn, console)
    console.print(Text(printable(episode.final_observation)))
    console.print(result(episode).append(f", seed {episode.seed}, group {episode.group}"))
    if episode.error:
        console.print(Text(printable(episode.error.strip()), style="red"))


def show_goal(episode: Episode, console: Console) -> None:
    """The task, and its goal."""
    console.print(Text(f"{episode.task.env} {episode.task.split} {printable(episode.task.id)}", style="dim"))
    console.print(Panel(Text(printable(episode.goal)), title="goal", title_align="left", border_style="cyan"))


def result(episode: Episode) -> Text:
    """The result of an episode in one line."""
    how = "solved" if episode.success else f"not solved ({episode.stop_reason or 'stopped'})"
    turns = f"{len(episode.turns)} turn{'' if len(episode.turns) == 1 else 's'}"
    numbers = f" after {turns}, score {episode.score:g}, return {episode.total_reward:g}"
    return Text.assemble((how, f"bold {_style(episode)}"), numbers)


def show_turn(number: int, turn: Turn, console: Console) -> None:
    """Observation, action, and a line of numbers."""
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
