"""ALFWorld: the native engine compared with TextWorld, in transcripts and in speed.

    python -m benchmarks.alfworld --games DIR       # a folder with official games anywhere below it

Both engines play the same commands in lockstep, on official games (evenly over the six task types) and on generated
ones. Feedback, score, done, won and the admissible commands are compared after every step. A difference is printed with
the commands that led to it, and the exit code is 1. Half of the games play their walkthrough and continue after the
goal. The other half play rare commands and some wrong ones, and then the expert's.

Speed is measured on the same commands in the same run, including the admissible commands after every step. "first play"
is the first play of a game, "played before" any later one.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from envs.alfworld.engine import NOTHING_HAPPENS, Engine
from envs.alfworld.env import ALFWorldEnv
from envs.alfworld.expert import Expert
from envs.alfworld.game import GAME_FILE, Game, load_games, parse_game
from envs.alfworld.generate import generate_game
from envs.alfworld.reference import ReferenceEngine

# Weight of a command by its verb: commands that are rarely admissible have a large weight.
_WEIGHTS: dict[str, float] = {
    "slice": 40,
    "heat": 30,
    "cool": 30,
    "clean": 30,
    "use": 15,
    "open": 12,
    "take": 10,
    "move": 10,
}
_WEIGHTS |= {"examine": 5, "look": 4, "inventory": 3, "close": 3, "help": 0.5, "go": 1}
_REPEATS = 10  # later plays of each game
_WRONG = 0.1  # share of commands that are not admissible

_LOAD = """
import json, resource, sys, time
from envs.alfworld.game import load_games
paths = open(sys.argv[1], encoding="utf-8").read().splitlines()
start = time.perf_counter()
load_games(paths, cache_dir=sys.argv[2])
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "linux" else 1024**2)
print(json.dumps([time.perf_counter() - start, peak]))
"""


@dataclass
class Play:
    """One game as both engines played it."""

    path: str
    commands: list[str] = field(default_factory=list)
    accepted: Counter[str] = field(default_factory=Counter)  # by verb
    difference: str = ""
    reset_s: float = 0.0  # TextWorld's times
    step_s: float = 0.0


def main(argv: Sequence[str] | None = None) -> None:
    """Compare and measure, and print one line of JSON. Raises `SystemExit(1)` if the engines differ."""
    parser = argparse.ArgumentParser(prog="benchmarks.alfworld", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--games", type=Path, required=True, help="folder with official games below it")
    parser.add_argument("--official", type=int, default=60, help="official games to compare")
    parser.add_argument("--generated", type=int, default=40, help="generated games to compare")
    parser.add_argument("--steps", type=int, default=30, help="commands in a game")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of games and of commands")
    options = parser.parse_args(argv)
    paths = sorted(str(path) for path in options.games.rglob(GAME_FILE))
    if not paths:
        raise FileNotFoundError(f"no {GAME_FILE} below {options.games}")

    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        loading = _time_loading(paths, Path(folder))
        chosen = _choose(load_games(paths), options.official, random.Random(options.seed))
        chosen += _generate(options.generated, options.seed, Path(folder))
        plays = _compare(chosen, options.steps, options.seed, console)
        figures = {
            "official": options.official,
            "generated": options.generated,
            **_parity(plays),
            **_speed([play for play in plays if play.commands]),
            **loading,
        }
    console.print(_table(figures))
    print(json.dumps(figures))
    if figures["differences"]:
        raise SystemExit(1)


# -- equal transcripts ------------------------------------------------------------------------------------------------
def _choose(games: Sequence[Game], count: int, rng: random.Random) -> list[str]:
    """Paths of `count` games, evenly over the task types and over the games of each type."""
    by_type = defaultdict(list)
    for game in games:
        if not game.foreign:  # TextWorld would be compared with itself
            by_type[game.type].append(game.path)
    chosen: list[str] = []
    for i, paths in enumerate(by_type.values()):
        share = (count - len(chosen)) // (len(by_type) - i)
        step = max(1.0, len(paths) / share) if share else 1.0
        offset = rng.random() * step
        chosen += [paths[int(offset + step * k) % len(paths)] for k in range(min(share, len(paths)))]
    return chosen


def _generate(count: int, seed: int, folder: Path) -> list[str]:
    paths = []
    for number in range(seed, seed + count):
        path = folder / f"generated-{number}" / GAME_FILE
        path.parent.mkdir()
        path.write_text(json.dumps(generate_game(number).content), encoding="utf-8")
        paths.append(str(path))
    return paths


def _compare(paths: Sequence[str], steps: int, seed: int, console: Console) -> list[Play]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    plays = []
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress:
        bar = progress.add_task("games in both engines", total=len(paths))
        for number, path in enumerate(paths):
            play = play_both(path, steps, number % 2 == 0, random.Random(f"{seed} {number}"))
            if play.difference:
                console.print(play.difference, markup=False, highlight=False)
            plays.append(play)
            progress.advance(bar)
    return plays


def play_both(path: str, steps: int, walkthrough_first: bool, rng: random.Random) -> Play:
    """Play one game in lockstep up to the first difference: the walkthrough first, or rare commands and the expert."""
    content = json.loads(Path(path).read_bytes())
    play, native, reference = Play(path), Engine(parse_game(path, content)), ReferenceEngine(path)
    start = time.perf_counter()
    theirs: tuple[Any, ...] = (reference.reset(),)
    play.reset_s = time.perf_counter() - start
    ours: tuple[Any, ...] = (native.reset(),)
    script = iter(content["walkthrough"] if walkthrough_first else ())
    expert = None
    if not walkthrough_first:
        expert = Expert()
        expert.reset(ours[0], {})
    while True:
        ours, theirs = (*ours, native.won, native.admissible), (*theirs, reference.won, reference.admissible)
        play.difference = _difference(play, ours, theirs)
        if play.difference or len(play.commands) == steps:
            return play
        command = next(script, "")
        if expert is not None and len(play.commands) >= steps // 2:
            command = expert.act()
        command = command or _rare_command(native.admissible, play.commands, rng)
        play.commands.append(command)
        start = time.perf_counter()
        theirs = reference.step(command)
        play.step_s += time.perf_counter() - start
        ours = native.step(command)
        if theirs[0] != NOTHING_HAPPENS:
            play.accepted[command.split()[0]] += 1
        if expert is not None:
            expert.observe(command, ours[0], {})


def _rare_command(admissible: Sequence[str], played: Sequence[str], rng: random.Random) -> str:
    """A random command: mostly admissible, with a preference for rare ones."""
    command = rng.choices(admissible, [_WEIGHTS[c.split()[0]] for c in admissible])[0]
    if rng.random() > _WRONG:
        return command
    wrong = [
        command.upper(),
        f"  {command}\t\n",
        command.replace(" ", "  "),
        command[:-1],
        f"{command} 1",
        command + "\0",
    ]
    return rng.choice([*wrong, "", "go to 1", "dance", "é\u2028🍎", *played[-5:]])


def _difference(play: Play, ours: tuple[Any, ...], theirs: tuple[Any, ...]) -> str:
    """The differences, and the commands that led to them; empty if there are none."""
    if ours == theirs:
        return ""
    lines = [f"{play.path}: the engines differ after {json.dumps(play.commands, ensure_ascii=False)}"]
    names = [*("feedback", "score", "done")[: len(ours) - 2], "won", "admissible"]
    for name, our, their in zip(names, ours, theirs, strict=True):
        if our != their and name == "admissible":
            lines.append(f"  admissible: {sorted(set(our) - set(their))} natively only")
            lines.append(f"  admissible: {sorted(set(their) - set(our))} in TextWorld only")
        if our != their:
            lines.append(f"  {name}: {our!r} natively")
            lines.append(f"  {name}: {their!r} in TextWorld")
    return "\n".join(lines)


def _parity(plays: Sequence[Play]) -> dict[str, Any]:
    accepted: Counter[str] = sum((play.accepted for play in plays), Counter())
    return {
        "compared_steps": sum(len(play.commands) for play in plays),
        "differences": sum(bool(play.difference) for play in plays),
        "accepted": dict(accepted.most_common()),
    }


# -- speed ------------------------------------------------------------------------------------------------------------
def _speed(plays: Sequence[Play]) -> dict[str, float]:
    """Steps per second and milliseconds of a reset, on the commands of the comparison."""
    seconds: defaultdict[str, float] = defaultdict(float)
    clock = time.perf_counter
    for play in plays:
        game = parse_game(play.path, json.loads(Path(play.path).read_bytes()))
        start = clock()
        engine = Engine(game)
        seconds["first reset"] += clock() - start
        for number in range(1 + _REPEATS):
            start = clock()
            engine.reset()
            middle = clock()
            for command in play.commands:
                engine.step(command)
                _ = engine.admissible
            seconds["played before" if number else "first play"] += clock() - middle
            seconds["reset"] += middle - start
        seconds["env"] += _time_env(play)
    steps = sum(len(play.commands) for play in plays)
    textworld = steps / sum(play.step_s for play in plays)
    native = steps * _REPEATS / seconds["played before"]
    return {
        "textworld_steps_per_s": round(textworld, 2),
        "native_first_play_steps_per_s": round(steps / seconds["first play"]),
        "native_steps_per_s": round(native),
        "env_steps_per_s": round(steps / seconds["env"]),
        "speedup_first_play": round(steps / seconds["first play"] / textworld),
        "speedup": round(native / textworld),
        "textworld_reset_ms": round(1e3 * statistics.mean(play.reset_s for play in plays), 1),
        "native_first_reset_ms": round(1e3 * seconds["first reset"] / len(plays), 4),
        "native_reset_ms": round(1e3 * seconds["reset"] / len(plays) / (1 + _REPEATS), 4),
    }


def _time_env(play: Play) -> float:
    """Seconds for the commands of a play through the Gymnasium environment, which ends at the goal."""
    env = ALFWorldEnv(max_turns=len(play.commands))
    env.reset(options={"task": play.path})
    total, over = 0.0, False
    for command in play.commands:
        if over:
            env.reset(options={"task": play.path})
        start = time.perf_counter()
        _, _, terminated, truncated, _ = env.step(command)
        total += time.perf_counter() - start
        over = terminated or truncated
    return total


def _time_loading(paths: Sequence[str], folder: Path) -> dict[str, float]:
    """Seconds to load all games in a new process, without and with the cache, and that process's memory in MB."""
    listed = folder / "paths.txt"
    listed.write_text("\n".join(paths), encoding="utf-8")
    arguments = [sys.executable, "-c", _LOAD, str(listed), str(folder / "cache")]
    found = [json.loads(subprocess.run(arguments, check=True, capture_output=True).stdout) for _ in range(2)]
    return {
        "games": len(paths),
        "load_first_s": round(found[0][0], 3),
        "load_again_s": round(found[1][0], 3),
        "rss_mb": round(max(peak for _, peak in found)),
    }


def _table(figures: Mapping[str, Any]) -> Table:
    table = Table("", "TextWorld", "native", "ratio", title="ALFWorld")
    for column in table.columns[1:]:
        column.justify = "right"
    textworld, native = figures["textworld_steps_per_s"], figures["native_steps_per_s"]
    first = figures["native_first_play_steps_per_s"]
    table.add_row("steps/s, played before", f"{textworld:.1f}", f"{native:,}", f"{figures['speedup']:,}×")
    table.add_row("steps/s, first play", "", f"{first:,}", f"{figures['speedup_first_play']:,}×")
    table.add_row("steps/s through the environment", "", f"{figures['env_steps_per_s']:,}", "")
    table.add_row("reset, ms", f"{figures['textworld_reset_ms']:.0f}", f"{figures['native_reset_ms']:.3f}", "")
    table.add_row("first reset of a loaded game, ms", "", f"{figures['native_first_reset_ms']:.3f}", "")
    table.add_row(f"load {figures['games']:,} games, s", "", f"{figures['load_first_s']:.2f}", "")
    table.add_row("… from the cache", "", f"{figures['load_again_s']:.2f}", "")
    table.add_row("memory then, MB", "", f"{figures['rss_mb']}", "")
    table.add_row("steps compared", "", f"{figures['compared_steps']:,}", "")
    table.add_row("games that differ", "", f"{figures['differences']}", "")
    return table


if __name__ == "__main__":
    main()
