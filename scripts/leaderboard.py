"""The leaderboard of a sweep: leaderboard.json, .md and .html, from the folders of its evaluations.

`agents.leaderboard` computes the numbers; this module reads the cells, names them, and writes the results as text and
as one page that needs no other file. The same evaluations give the same files, byte for byte.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from agents.evaluation import Evaluation
from agents.leaderboard import FLOORS, Cell, leaderboard
from agents.statistics import RESAMPLES
from envs.core import counted
from envs.files import files_named, write_whole
from scripts.compare import labels_of_settings

NAMES = ("leaderboard.json", "leaderboard.md", "leaderboard.html")
OF_TASKS = ("split", "max_turns")  # settings in the facts that do not belong to the agent


@dataclass(frozen=True)
class StoredEvaluation:
    """An evaluation that was read from its folder."""

    folder: str  # relative to the folder of the sweep
    record: dict[str, Any]

    @property
    def facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = self.record["run"]
        return facts

    @property
    def agent(self) -> dict[str, Any]:
        """The settings of the agent. Cells with equal settings have the same agent."""
        config = {key: value for key, value in self.facts["config"].items() if key not in OF_TASKS}
        model = self.facts["model"] or {}
        name = Path(str(model.get("name", ""))).name
        chosen = {"agent": self.facts["agent"], **({"model": name} if name else {})}
        rest = {"model_files": model, "config": config, "agents_code": self.facts["agents_code"]}
        return {**chosen, **dict(_leaves({**rest, "versions": self.facts["versions"]}))}

    @property
    def tasks(self) -> dict[str, Any]:
        """The settings of the environment. Cells with equal settings have the same tasks."""
        names = ("env", "split", "max_turns", "manifest_sha256")
        return {name: self.facts[name] for name in names} | dict(_leaves({"environment": self.facts["environment"]}))


def _leaves(value: Mapping[str, Any], parent: str = "") -> Iterator[tuple[str, Any]]:
    for key, member in value.items():
        if isinstance(member, dict) and member:
            yield from _leaves(member, f"{parent}{key}.")
        else:
            yield f"{parent}{key}", member


# -- reading ----------------------------------------------------------------------------------------------------------
def read_cells(folder: Path) -> tuple[list[StoredEvaluation], list[str]]:
    """The evaluations in a folder and its subfolders, and the reason for each one that cannot be read."""
    found, left_out = [], []
    for run in [path.parent for path in files_named(folder, "run.json")]:
        where = run.relative_to(folder).as_posix()
        try:
            record = json.loads((run / "evaluation.json").read_bytes())
            Evaluation.from_json(record["evaluation"])
            if "tasks" not in record:
                raise ValueError("it has no outcomes by task, so it is of an older version")
            if record.get("lacking"):
                left_out.append(f"{where}: {record['lacking']} of its episodes lacked a file, a package or a service")
                continue
            found.append(StoredEvaluation(where, record))
        except FileNotFoundError:
            left_out.append(f"{where}: it is not complete")
        except (OSError, ValueError, KeyError, TypeError) as error:
            left_out.append(f"{where}: its evaluation.json cannot be used ({' '.join(str(error).split())})")
    return found, left_out


def named_cells(found: Sequence[StoredEvaluation], planned: Collection[tuple[str, str, str]] = ()) -> list[Cell]:
    """The cells of a leaderboard, each with a name for its agent and its environment.

    Raises `ValueError` if one split of an environment has several manifests, unless all of them are in `planned`
    (environment, split, hash).
    """
    manifests: dict[tuple[str, str], dict[str, list[str]]] = {}
    for one in found:
        of = manifests.setdefault((one.facts["env"], one.facts["split"]), {})
        of.setdefault(one.facts["manifest_sha256"], []).append(one.folder)
    for (env, split), of in manifests.items():
        if len(of) > 1 and any((env, split, manifest) not in planned for manifest in of):
            cells = "; ".join(f"{manifest[:12]} in {', '.join(folders)}" for manifest, folders in sorted(of.items()))
            raise ValueError(
                f"cells of {env} {split} have different manifests, so their tasks are not the same: {cells}; remove "
                "those that do not belong here, or use another sweep.dir"
            )
    agents, tasks = _names([one.agent for one in found], ["agent", "model"]), _environments(found)
    return [
        Cell(
            agent=agent,
            environment=one.facts["env"],
            split=one.facts["split"],
            label=label,
            folder=one.folder,
            manifest=one.facts["manifest_sha256"],
            evaluation=Evaluation.from_json(one.record["evaluation"]),
            tasks=one.record["tasks"],
            sampled_tokens=one.record["sampled_tokens"] or one.record["usage"]["completion_tokens"],
            cost=one.record["usage"]["cost"],
            is_floor=one.facts["agent"] in FLOORS,
        )
        for one, agent, label in zip(found, agents, tasks, strict=True)
    ]


def _names(settings: Sequence[dict[str, Any]], choices: Sequence[str]) -> list[str]:
    """A name for each of `settings`, equal for equal ones: the values of `choices`, and what else is different."""
    distinct = [one for at, one in enumerate(settings) if one not in settings[:at]]
    plain = [" ".join(str(one[key]) for key in choices if key in one) for one in distinct]
    names = []
    for one, name in zip(distinct, plain, strict=True):
        same = [other for other, its in zip(distinct, plain, strict=True) if its == name]
        more = labels_of_settings(same, [])[same.index(one)] if len(same) > 1 else ""
        names.append(f"{name} {more}".strip())
    return [names[distinct.index(one)] for one in settings]


def _environments(found: Sequence[StoredEvaluation]) -> list[str]:
    names = _names([one.tasks for one in found], ["env", "split"])
    return [name.removeprefix("polyturn/") for name in names]


def write_leaderboard(folder: Path, cells: Sequence[Cell], left_out: Sequence[str]) -> str:
    """Write the files of the leaderboard, and return its text."""
    record = {**leaderboard(cells), "left_out": list(left_out)}
    text = markdown(record)
    contents = (json.dumps(record, indent=1, ensure_ascii=False) + "\n", text, page(record))
    for name, content in zip(NAMES, contents, strict=True):
        write_whole(folder / name, content)
    return text


# -- in words ---------------------------------------------------------------------------------------------------------
def conclusions(table: Mapping[str, Any], measure: str) -> list[str]:
    """Which agents differ significantly, which do not, and which difference this number of tasks can show."""
    pairs = table["pairs"][measure]
    told = [pair for pair in pairs if pair["told_apart"]]
    lines = [
        f"{pair['a']} is better than {pair['b']}: {_points(pair, measure)}, p {_p(pair['p_holm'])} after Holm."
        for pair in told
    ]
    for pair in pairs:
        if pair["told_apart"]:
            continue
        if pair["better"] == pair["worse"] == 0:
            lines.append(f"{pair['a']} and {pair['b']} have the same outcome on every task.")
            continue
        can = f"; {table['tasks']} tasks can show {_least(pair, measure)}" if pair["detectable"] else ""
        lines.append(
            f"{pair['a']} and {pair['b']} cannot be told apart: {_points(pair, measure)}, "
            f"p {_p(pair['p_holm'])} after Holm{can}."
        )
    return lines


def _points(pair: Mapping[str, Any], measure: str) -> str:
    interval = "" if pair["low"] is None else f" ({_signed(pair['low'], measure)} … {_signed(pair['high'], measure)})"
    return f"{_amount(pair['difference'], measure)}{interval}"


def _amount(value: float, measure: str) -> str:
    return f"{100 * value:.1f} points" if measure == "success" else f"{value:.3f}"


def _least(pair: Mapping[str, Any], measure: str) -> str:
    """The smallest difference that can be shown; successes and scores differ by at most 1."""
    return _amount(pair["detectable"], measure) if pair["detectable"] <= 1 else "no difference at all"


def _signed(value: float, measure: str) -> str:
    return f"{100 * value:+.1f}" if measure == "success" else f"{value:+.3f}"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _share(interval: Mapping[str, Any]) -> str:
    mean = interval["rate"] if "rate" in interval else interval["mean"]
    return f"{mean:.1%}" if interval["low"] is None else f"{mean:.1%} ({interval['low']:.1%} – {interval['high']:.1%})"


def _score(row: Mapping[str, Any]) -> str:
    if isinstance(row["score"], Mapping):  # over all
        mean, ends = row["score"]["mean"], (row["score"]["low"], row["score"]["high"])
    else:
        mean, ends = row["score"], row["score_interval"] or (None, None)
    return f"{mean:.3f}" if ends[0] is None else f"{mean:.3f} ({ends[0]:.3f} – {ends[1]:.3f})"


def _rank(row: Mapping[str, Any]) -> str:
    low, high = row["rank_low"], row["rank_high"]
    return str(row["rank"]) if low == high == row["rank"] else f"{row['rank']} ({low} – {high})"


def tables(record: Mapping[str, Any]) -> Iterator[tuple[str, str, list[str], list[list[str]], list[str]]]:
    """Each table: its title, a note, the heads of its columns, its rows, and conclusions in words."""
    floors = record["floors"]

    def name(agent: str) -> str:
        return f"{agent} (floor)" if agent in floors else agent

    scored = "score" in record["measures"]
    if overall := record["overall"]:
        note = (
            f"Mean over {counted(overall['environments'], 'environment')}, {counted(overall['splits'], 'split')} and "
            f"{counted(overall['tasks'], 'task')}. Environments count alike, whatever their number of tasks."
        )
        if overall["left_out"]:
            note += f" Not on every split, so not here: {', '.join(overall['left_out'])}."
        heads = ["rank", "agent", "success", *(["score"] if scored else [])]
        rows = [
            [_rank(row), name(row["agent"]), _share(row["success"]), *([_score(row)] if scored else [])]
            for row in overall["agents"]
        ]
        yield "Over all environments", note, heads, rows, _words(overall, record["measures"])
    for table in record["environments"]:
        attempts = max(row["attempts"] for row in table["agents"])
        ks = [str(k) for k in range(2, attempts + 1)]
        paid = any(row["cost"] is not None for row in table["agents"])
        sampled = any(row["tokens"] for row in table["agents"])
        heads = ["rank", "agent", "success", *(["score"] if scored else [])]
        heads += [f"{kind}{k}" for k in ks for kind in ("pass@", "pass^")]
        heads += ["turns", "invalid", *(["tokens"] if sampled else []), *(["cost"] if paid else [])]
        rows = []
        for row in table["agents"]:
            cells = [_rank(row), name(row["agent"]), _share(row["success"]), *([_score(row)] if scored else [])]
            for k in ks:
                cells += [_share(row[of][k]) if k in row[of] else "–" for of in ("pass_at_k", "pass_hat_k")]
            cells += [f"{row['turns']:.1f}", f"{row['invalid']:.1%}"]
            cells += [f"{row['tokens']:,.0f}"] if sampled else []
            cells += ["–" if row["cost"] is None else f"{row['cost']:.4g}"] if paid else []
            rows.append(cells)
        tried = f"{counted(attempts, 'attempt')} at each"
        note = f"{counted(table['tasks'], 'task')}, {tried}, manifest {table['manifest'][:12]}."
        yield table["label"], note, heads, rows, _words(table, record["measures"])
        if len(table["types"]) > 1:
            types = table["types"]
            rows = [
                [
                    name(row["agent"]),
                    *(_share(row["by_type"][kind]) if kind in row["by_type"] else "–" for kind in types),
                ]
                for row in table["agents"]
            ]
            yield f"{table['label']} by task type", "Success.", ["agent", *types], rows, []


def _words(table: Mapping[str, Any], measures: Sequence[str]) -> list[str]:
    return [
        f"{measure.capitalize()}: {line}" if len(measures) > 1 else line
        for measure in measures
        for line in conclusions(table, measure)
    ]


def pair_rows(table: Mapping[str, Any], measure: str) -> tuple[list[str], list[list[str]]]:
    """The heads and rows of the table of pairs."""
    heads = ["a", "b", "a minus b", "95 % interval", "tasks better / worse", "p", "p after Holm", "can show", "test"]
    rows = []
    for pair in table["pairs"][measure]:
        interval = "–" if pair["low"] is None else f"{_signed(pair['low'], measure)} … {_signed(pair['high'], measure)}"
        shown = "–" if pair["detectable"] is None else _least(pair, measure)
        rows.append(
            [pair["a"], pair["b"], _signed(pair["difference"], measure), interval,
             f"{pair['better']} / {pair['worse']}", _p(pair["p"]), _p(pair["p_holm"]), shown, pair["test"]]
        )  # fmt: skip
    return heads, rows


LEGEND = (
    "Success is the share of solved episodes, with Wilson's 95 % interval for tasks as clusters; over all, and for "
    f"pass@k, pass^k and differences, the interval is a bootstrap over tasks ({RESAMPLES:,} resamples). Ranks are by "
    "success, with the 95 % interval of the bootstrap. Differences are paired by task. p: McNemar's exact test for one "
    "attempt each, otherwise a permutation of signs; Holm's correction is over all pairs of a table. “Can show”: the "
    "smallest true difference that a test at 5 % finds with 80 % power on these tasks. A floor shows what is reached "
    "without skill. Seconds are in each cell's evaluation.json."
)


def markdown(record: Mapping[str, Any]) -> str:
    """The leaderboard as Markdown."""
    parts = ["# Leaderboard"]
    for title, note, heads, rows, words in tables(record):
        parts += [f"## {_plain(title)}", note, _md(heads, rows)]
        parts += ["\n".join(f"- {_plain(line)}" for line in words)] if words else []
    for table, measure in _tables_of_pairs(record):
        heads, rows = pair_rows(table, measure)
        title = table.get("label", "over all environments")
        parts.append(
            f"<details><summary>Pairs: {measure}, {escape(title)}</summary>\n\n{_md(heads, rows)}\n\n</details>"
        )
    parts += ["\n".join(f"- left out: {_plain(reason)}" for reason in record["left_out"])] if record["left_out"] else []
    parts += _no_floor(record)
    return "\n\n".join([*parts, LEGEND]) + "\n"


def _no_floor(record: Mapping[str, Any]) -> list[str]:
    return [] if record["floors"] else ["There is no floor: agents=[…,random] shows what random play reaches."]


def _tables_of_pairs(record: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], str]]:
    for table in [*([record["overall"]] if record["overall"] else []), *record["environments"]]:
        for measure in record["measures"]:
            if table["pairs"][measure]:
                yield table, measure


def _plain(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _md(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(map(_plain, heads))} |", f"|{'---|' * len(heads)}"]
    return "\n".join([*lines, *(f"| {' | '.join(map(_plain, row))} |" for row in rows)])


# -- as a page --------------------------------------------------------------------------------------------------------
STYLE = """
:root { color-scheme: light dark; --ink: #1a1d21; --soft: #5b636d; --line: #d9dee4; --back: #fff; --card: #f6f8fa;
  --bar: #2f6fab; --range: #a9c7e4; --floor: #8a929b; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ed; --soft: #9aa4af; --line: #343b43; --back: #14171b;
  --card: #1c2127; --bar: #6fb0ea; --range: #31526f; --floor: #7d8791; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem clamp(0.75rem, 3vw, 2.5rem) 3rem; max-width: 90rem; background: var(--back);
  color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0.5rem 0; } h2 { font-size: 1.15rem; margin: 2rem 0 0.25rem; overflow-wrap: anywhere; }
p, li { max-width: 75ch; } .note, .legend { color: var(--soft); }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 8px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 0.4rem 0.6rem; text-align: left; white-space: nowrap; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; background: var(--card); } tr:last-child td { border-bottom: 0; }
td.name { white-space: normal; min-width: 5.5rem; overflow-wrap: anywhere; font-weight: 600; }
.track { position: relative; height: 10px; min-width: 7rem; max-width: 16rem; margin: 0.2rem 0;
  background: var(--card); border-radius: 5px; }
.track i { position: absolute; top: 2px; height: 6px; background: var(--range); border-radius: 3px; }
.track b { position: absolute; top: 0; width: 3px; height: 10px; margin-left: -1px; background: var(--bar); }
.floor .track b { background: var(--floor); } details { margin: 0.75rem 0; }
summary { cursor: pointer; color: var(--soft); }
@media (max-width: 480px) { th, td { padding: 0.35rem 0.45rem; } td { white-space: normal; } }
""".strip()


def page(record: Mapping[str, Any]) -> str:
    """The leaderboard as one HTML file without scripts, which loads nothing."""
    parts = ["<h1>Leaderboard</h1>"]
    graphics = {table["label"]: table["agents"] for table in record["environments"]}
    if record["overall"]:
        graphics["Over all environments"] = record["overall"]["agents"]
    for title, note, heads, rows, words in tables(record):
        tracks = [_track(row["success"]) for row in graphics[title]] if title in graphics else None
        parts += [f"<h2>{escape(title)}</h2>", f'<p class="note">{escape(note)}</p>', _html(heads, rows, tracks)]
        parts += ["<ul>", *(f"<li>{escape(line)}</li>" for line in words), "</ul>"] if words else []
    for table, measure in _tables_of_pairs(record):
        title = table.get("label", "over all environments")
        parts.append(
            f"<details><summary>Pairs: {escape(measure)}, {escape(title)}</summary>{_html(*pair_rows(table, measure))}"
            "</details>"
        )
    if record["left_out"]:
        parts += ["<h2>Left out</h2><ul>", *(f"<li>{escape(reason)}</li>" for reason in record["left_out"]), "</ul>"]
    parts += [f'<p class="note">{escape(line)}</p>' for line in _no_floor(record)]
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Leaderboard</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + f'\n<p class="legend">{escape(LEGEND)}</p>\n</body>\n</html>\n'
    )


def _html(heads: Sequence[str], rows: Sequence[Sequence[str]], tracks: Sequence[str] | None = None) -> str:
    """A table; `tracks` are pictures of the successes, one for each row."""
    lines = ["<tr>" + "".join(f'<th scope="col">{escape(head)}</th>' for head in heads) + "</tr>"]
    for at, row in enumerate(rows):
        cells = []
        for head, text in zip(heads, row, strict=True):
            picture = tracks[at] if tracks and head == "success" else ""
            kind = ' class="name"' if head in ("agent", "a", "b") else ""
            cells.append(f"<td{kind}>{escape(text)}{picture}</td>")
        kind = ' class="floor"' if any(text.endswith("(floor)") for text in row) else ""
        lines.append(f"<tr{kind}>{''.join(cells)}</tr>")
    return f'<div class="scroll" tabindex="0"><table>{"".join(lines)}</table></div>'


def _track(interval: Mapping[str, Any]) -> str:
    mean = interval["rate"] if "rate" in interval else interval["mean"]
    low, high = (mean if interval[side] is None else interval[side] for side in ("low", "high"))
    low, high = max(low, 0.0), min(high, 1.0)
    return (
        f'<div class="track"><i style="left:{low:.1%};width:{high - low:.1%}"></i><b style="left:{mean:.1%}"></b></div>'
    )
