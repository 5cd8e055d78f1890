"""Collect what the page shows: runs and their curves, differences of their settings, episodes, a leaderboard.

Files that cannot be read are listed in `gaps`; everything else is shown.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from agents.episode import Episode, Turn
from agents.evaluation import UNTYPED
from agents.record import Record, read_record
from envs.core import counted
from envs.files import files_named
from scripts.compare import configuration, labels_of_settings
from scripts.curve import read_metrics
from scripts.leaderboard import tables

MOST = 2000  # episodes
Row = dict[str, Any]


def collect(paths: Sequence[Path], most: int = MOST) -> Row:
    """The data of the page for runs, folders with runs inside, and files of episodes."""
    gaps: list[str] = []
    folders, files = _found(paths, gaps)
    runs = [_run(folder, gaps) for folder in folders]
    _name(runs)
    listed = [(None, path) for path in files]
    listed += [(number, path) for number, folder in enumerate(folders) for path in record_files(folder)]
    strings = _Strings()
    records, episodes = _episodes(listed, most, strings, folders, gaps)
    boards = _boards(paths, gaps)
    return {
        "runs": runs, "groups": _groups(runs), "differences": _differences(runs), "records": records,
        "episodes": episodes, "strings": strings.all, "boards": boards, "gaps": gaps,
    }  # fmt: skip


def record_files(run: Path) -> list[Path]:
    """The files of episodes in the folder of a run, the oldest first."""
    patterns = ("episodes.jsonl", "episodes/*.jsonl", "episodes/*.jsonl.gz", "evaluations/*.jsonl.gz")
    found = [path for pattern in patterns for path in run.glob(pattern) if not path.name.startswith(".")]
    return sorted(found, key=lambda path: (path.name.partition(".")[0], path.parent.name, path.name))


def _found(paths: Sequence[Path], gaps: list[str]) -> tuple[list[Path], list[Path]]:
    folders: dict[Path, None] = {}
    files = []
    for path in paths:
        if path.is_file():
            files.append(path)
            continue
        inside = [f.parent for name in ("metrics.jsonl", "run.json") for f in files_named(path, name)]
        inside = [f for f in inside if "checkpoints" not in f.relative_to(path).parts]
        inside = inside or ([path] if path.is_dir() and record_files(path) else [])
        if not inside:
            gaps.append(f"{path} {'has no runs' if path.is_dir() else 'does not exist'}")
        folders |= dict.fromkeys(sorted(inside))
    return list(folders), files


# -- runs -------------------------------------------------------------------------------------------------------------
def _run(folder: Path, gaps: list[str]) -> Row:
    run: Row = {"folder": str(folder), "name": folder.name, "choices": {}, "settings": {}, "seed": None, "metrics": {}}
    metrics = folder / "metrics.jsonl"
    run["kind"] = "training" if metrics.exists() else "evaluation"
    try:
        choices, config = configuration(folder)
        run["choices"], run["seed"] = choices, config.pop("seed", None)
        config.pop("resume", None)
        run["settings"] = {key: _short(value) for key, value in config.items()}
    except (OSError, ValueError) as error:
        gaps.append(f"{folder}: its settings cannot be shown ({_line(error)})")
    if metrics.exists():
        try:
            run["metrics"] = _curves(read_metrics(metrics), folder, gaps)
        except (OSError, ValueError) as error:
            gaps.append(f"{folder}: its curves cannot be shown ({_line(error)})")
    elif (folder / "evaluation.json").exists():
        try:
            run["result"] = json.loads((folder / "evaluation.json").read_bytes())["evaluation"]["success"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            gaps.append(f"{folder}: its evaluation.json cannot be read ({_line(error)})")
    else:
        gaps.append(f"{folder}: the evaluation is not complete")
    return run


def _curves(lines: Iterable[Row], folder: Path, gaps: list[str]) -> Row:
    """[updates, values] of each metric. Numbers that are not finite are left out, and listed in `gaps`."""
    curves: dict[str, list[list[Any]]] = {}
    odd: dict[str, int] = {}
    for line in lines:
        for key, value in line.items():
            if key == "update":
                continue
            if isinstance(value, int | float) and math.isfinite(value):
                points = curves.setdefault(key, [[], []])
                points[0].append(line["update"])
                points[1].append(value)
            else:
                odd[key] = odd.get(key, 0) + 1
    for key, count in odd.items():
        gaps.append(f"{folder}: {counted(count, 'value')} of {key} {'is' if count == 1 else 'are'} not a finite number")
    return curves


def _short(value: Any) -> Any:
    return value if isinstance(value, int | float | bool | None) else str(value)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _name(runs: list[Row]) -> None:
    """Give each run a label that no other run has."""
    settings = [{**one["choices"], **one["settings"]} for one in runs]
    keys = [json.dumps(one, sort_keys=True, default=str) for one in settings]
    distinct = list(dict.fromkeys(keys))
    choices = list(dict.fromkeys(name for one in runs for name in one["choices"]))
    labels = [""]
    if len(distinct) > 1:
        labels = labels_of_settings([settings[keys.index(key)] for key in distinct], choices)
    for one, key in zip(runs, keys, strict=True):
        one["group"] = distinct.index(key)
        base = labels[one["group"]] or " ".join(str(one["choices"].get(name, "")) for name in ("env", "algo")).strip()
        one["group_label"] = base or one["name"]
        one["label"] = one["group_label"] + (f" seed {one['seed']}" if one["seed"] is not None else "")
    for label in {one["label"] for one in runs}:
        same = [one for one in runs if one["label"] == label]
        if len(same) > 1:
            for one in same:
                one["label"] = f"{label} ({one['folder']})"


def _groups(runs: Sequence[Row]) -> list[Row]:
    groups: dict[int, Row] = {}
    for number, one in enumerate(runs):
        group = groups.setdefault(one["group"], {"label": one["group_label"], "runs": []})
        group["runs"].append(number)
    return list(groups.values())


def _differences(runs: Sequence[Row]) -> dict[str, list[Any]]:
    """The settings that are not equal in all runs: a value for each run, None where it has none."""
    settings = [{**one["choices"], **one["settings"]} for one in runs if one["settings"]]
    keys = dict.fromkeys(key for one in settings for key in one)
    unequal = [key for key in keys if len({json.dumps(one.get(key)) for one in settings}) > 1]
    return {key: [{**one["choices"], **one["settings"]}.get(key) for one in runs] for key in unequal}


# -- episodes ---------------------------------------------------------------------------------------------------------
class _Strings:
    """Texts, each once."""

    def __init__(self) -> None:
        self.all: list[str] = []
        self._number: dict[str, int] = {}

    def __call__(self, text: str) -> int:
        if text not in self._number:
            self._number[text] = len(self.all)
            self.all.append(text)
        return self._number[text]


def _episodes(
    listed: Sequence[tuple[int | None, Path]], most: int, strings: _Strings, folders: Sequence[Path], gaps: list[str]
) -> tuple[list[Row], list[Row]]:
    """The newest records, with at most `most` episodes in total, and these episodes."""
    records: list[Row] = []
    episodes: list[Row] = []
    left_out = 0
    tokenizers = [_Tokens(folder, gaps) for folder in folders]
    newest = sorted(listed, key=lambda item: item[1].name.partition(".")[0], reverse=True)
    for run, path in newest:
        if len(episodes) >= most:
            left_out += 1
            continue
        try:
            record = read_record(path)
        except (OSError, ValueError) as error:
            gaps.append(f"left out: {_line(error)}")
            continue
        if record.is_cut:
            gaps.append(f"{path}: its last line is not complete; it is being written, or its writer was killed")
        tokens = tokenizers[run] if run is not None else None
        kept = record.episodes[: most - len(episodes)]
        if len(kept) < len(record.episodes):
            gaps.append(f"{path}: {len(record.episodes) - len(kept)} of its episodes are left out (--most {most})")
        records.append(
            {"run": run, "file": path.name, "update": record.update, "split": record.split, "kind": record.kind,
             "steps": record.steps, "first": len(episodes), "count": len(kept)}
        )  # fmt: skip
        episodes += [_episode(e, at, record, len(records) - 1, strings, tokens) for at, e in enumerate(kept)]
    if left_out:
        gaps.append(f"{counted(left_out, 'older file')} of episodes left out (--most {most})")
    return records, episodes


def _episode(episode: Episode, at: int, record: Record, number: int, strings: _Strings, tokens: _Tokens | None) -> Row:
    row: Row = {
        "record": number, "task": episode.task.id, "type": str(episode.task.payload.get("type", UNTYPED)),
        "env": episode.task.env, "split": episode.task.split, "group": episode.group, "seed": episode.seed,
        "stop": str(episode.stop_reason), "success": episode.success, "score": episode.score,
        "goal": strings(episode.goal), "final": strings(episode.final_observation), "error": strings(episode.error),
        "turns": [_turn(turn, strings, tokens) for turn in episode.turns],
    }  # fmt: skip
    for name, columns in (("ofTurns", record.of_turns), ("ofTokens", record.of_tokens)):
        row[name] = {column: values[at] for column, values in columns.items() if at < len(values)}
    return row


def _turn(turn: Turn, strings: _Strings, tokens: _Tokens | None) -> Row:
    row: Row = {
        "o": strings(turn.observation), "a": strings(turn.action), "r": turn.reward, "s": str(turn.status),
        "k": strings(str(turn.state_key)), "adv": turn.advantage, "lp": [round(p, 6) for p in turn.logprobs],
        "t": [strings(text) for text in (tokens(turn.completion_ids) if tokens else [])],
    }  # fmt: skip
    if not row["t"]:
        row["t"] = [strings(f"‹{token}›") for token in turn.completion_ids]
    return row


class _Tokens:
    """The texts of sampled ids, by the tokenizer of a run's checkpoints; empty without a tokenizer."""

    def __init__(self, run: Path, gaps: list[str]) -> None:
        self.run, self.gaps = run, gaps
        self._texts: dict[int, str] = {}
        self._tokenizer: Any = None
        self._looked = False

    def __call__(self, ids: Sequence[int]) -> list[str]:
        if ids and not self._looked:
            self._looked = True
            self._load()
        if self._tokenizer is None:
            return []
        for one in ids:
            if one not in self._texts:
                self._texts[one] = self._tokenizer.decode([one], skip_special_tokens=False)
        return [self._texts[one] for one in ids]

    def _load(self) -> None:
        files = sorted(self.run.glob("checkpoints/*/tokenizer.json"))
        if not files:
            self.gaps.append(f"{self.run}: it has no tokenizer, so tokens are shown as numbers")
            return
        from tokenizers import Tokenizer

        try:
            self._tokenizer = Tokenizer.from_file(str(files[-1]))
        except Exception as error:  # it raises a plain Exception for a damaged file
            self.gaps.append(f"{files[-1]} cannot be read, so tokens are shown as numbers ({_line(error)})")


# -- leaderboards -----------------------------------------------------------------------------------------------------
def _boards(paths: Sequence[Path], gaps: list[str]) -> list[Row]:
    boards = []
    for file in [file for path in paths if path.is_dir() for file in files_named(path, "leaderboard.json")]:
        try:
            read = list(tables(json.loads(file.read_bytes())))
        except (OSError, ValueError, KeyError, TypeError) as error:
            gaps.append(f"{file} cannot be read ({type(error).__name__}: {_line(error)})")
            continue
        names = ("title", "note", "heads", "rows", "words")
        boards.append({"file": str(file), "tables": [dict(zip(names, one, strict=True)) for one in read]})
    return boards
