"""WebShop: steps per second, start time, memory and queries, on a thousand products and on larger catalogues.

    python -m benchmarks.webshop --catalogue DIR --recordings DIR    # official files; episodes.json and search.json
    python -m benchmarks.webshop                                     # the embedded catalogue, random actions
    python -m benchmarks.webshop --scale 1_000_000 [--folder DIR]    # a synthetic catalogue of that size

Steps are those of the Gymnasium environment in text mode, including observation, admissible actions and reward, on
fixed action lists. "first play" is in a new process without cached pages, searches and words; other plays are later
ones. The median of eleven plays is reported, and the fastest, which depends least on other processes of the machine.
The start time is that of a new process up to the first observation, with the catalogue read before. Each query is sent
once. Steps, queries and names with "cpu" are in processor time, which does not depend on other processes. Synthetic
products have words by Zipf's law, as many as the official ones; writing them is not timed. The last line of the output
is JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import pickle
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from envs.core import Task
from envs.webshop.catalogue import load_catalogue
from envs.webshop.env import WebShopEnv, open_shop
from envs.webshop.generate import embedded_catalogue
from envs.webshop.goals import build_goals
from envs.webshop.search import open_index

_REPEATS = 11  # first plays of all action lists, and later ones
_TURNS = 1000  # more than any list has
_TAIL = 60  # actions of a random play

# In a new process: open a catalogue that was read before, and search it.
_OPEN = """
import json, sys, time
start = time.process_time()
from pathlib import Path
from envs.webshop.catalogue import load_catalogue
from envs.webshop.search import open_index
imported = time.process_time()
index = open_index(load_catalogue(Path(sys.argv[1])))
opened = time.process_time()
def memory():
    lines = (line.split() for line in open("/proc/self/status"))
    return {words[0]: int(words[1]) // 1024 for words in lines if words[0] in ("VmRSS:", "RssAnon:")}
at_start = memory()
queries = json.load(open(sys.argv[2]))
seconds = []
for query in queries:
    begun = time.process_time()
    index.search(query)
    seconds.append(time.process_time() - begun)
seconds.sort()
print(json.dumps({
    "import_cpu_s": imported - start, "open_cpu_s": opened - imported, "start_mb": at_start["VmRSS:"],
    "queries": len(queries), "query_ms": 1e3 * sum(seconds) / len(seconds),
    "query_p95_ms": 1e3 * seconds[int(0.95 * len(seconds))], "queries_per_s": len(seconds) / sum(seconds),
    "searched_mb": memory()["VmRSS:"], "searched_own_mb": memory()["RssAnon:"],
}))
"""

# In a new process: the time of playing all lists, after the first observation.
_FIRST = """
import pickle, sys
from benchmarks.webshop import Play, _TURNS, _play_all
from envs.webshop.env import WebShopEnv
plays = [Play(*play) for play in pickle.load(open(sys.argv[1], "rb"))]
env = WebShopEnv(_TURNS)
env.reset(options={"task": plays[0].task})
print(_play_all(env, plays))
"""

# In a new process: everything up to the first observation.
_START = """
import json, pickle, sys, time
start = time.perf_counter()
from envs.webshop.env import WebShopEnv
env = WebShopEnv()
env.reset(options={"task": pickle.load(open(sys.argv[1], "rb"))})
seconds = time.perf_counter() - start
# Not ru_maxrss: that of a process begins with its parent's.
most = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM:"))
print(json.dumps([seconds, time.process_time(), most / 1024]))
"""


@dataclass(frozen=True)
class Play:
    """A task and the actions to play in it; after a purchase it starts again."""

    task: Task
    actions: tuple[str, ...]


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, and print a table and one line of JSON."""
    parser = argparse.ArgumentParser(prog="benchmarks.webshop", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--catalogue", type=Path, help="folder with the official files (the embedded catalogue)")
    parser.add_argument("--recordings", type=Path, help="folder with episodes.json and search.json")
    parser.add_argument("--scale", type=int, help="measure a synthetic catalogue with this number of products instead")
    parser.add_argument("--folder", type=Path, help="keep the synthetic catalogue here")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        if options.scale:
            figures = _measure_scale(options.scale, options.folder or Path(temporary, "catalogue"), Path(temporary))
        else:
            folder = options.catalogue or embedded_catalogue()
            figures = _measure(folder, options.recordings, Path(temporary))
    Console().print(_table(figures))
    print(json.dumps(figures))


# -- a thousand products ----------------------------------------------------------------------------------------------
def _measure(folder: Path, recordings: Path | None, temporary: Path) -> dict[str, float]:
    plays = list(_recorded(folder, recordings) if recordings else _at_random(folder))
    shop = open_shop(folder)
    if recordings:
        queries = [case["query"] for case in json.loads((recordings / "search.json").read_bytes())["cases"]]
    else:
        queries = [shop.catalogue.product(number).name for number in range(0, len(shop.catalogue), 4)]
    return {
        "products": len(shop.catalogue),
        **_time_steps(plays, temporary),
        **_time_start(plays[0].task, temporary),
        **_time_queries(folder, queries, temporary),
    }


def _recorded(folder: Path, recordings: Path) -> Iterator[Play]:
    """The recorded episodes that were played in the official order of goals."""
    catalogue = open_shop(folder).catalogue
    for episode in json.loads((recordings / "episodes.json").read_bytes())["episodes"]:
        server = episode["server"]
        goals = build_goals(catalogue, server["seed"], human=server["human_goals"])
        goal = goals[episode["goal_index"]]
        yield Play(_task(folder, server["seed"], goal.to_json()), tuple(step["action"] for step in episode["steps"]))


def _at_random(folder: Path, count: int = 60) -> Iterator[Play]:
    """Random plays: they search for words of the instruction and click listed texts."""
    rng = random.Random(0)
    goals = build_goals(open_shop(folder).catalogue, 0)
    env = WebShopEnv(_TURNS)
    for number in range(count):
        task = _task(folder, 0, goals[number * len(goals) // count].to_json())
        _, info = env.reset(options={"task": task})
        actions = []
        over = False
        for _ in range(_TAIL):
            if over:
                _, info = env.reset(options={"task": task})
            words = rng.choices(info["goal"].split(), k=4)
            action = rng.choice(info["admissible"]).replace("<your query>", " ".join(words))
            actions.append(action)
            *_, over, _, info = env.step(action)
        yield Play(task, tuple(actions))


def _task(folder: Path, seed: int, goal: Mapping[str, Any]) -> Task:
    payload = {"catalogue": str(folder), "size": None, "price_seed": seed, "goal": goal}
    return Task(id="benchmark", env="polyturn/WebShop-v0", payload=payload)


def _time_steps(plays: Sequence[Play], temporary: Path) -> dict[str, float]:
    """Steps per second of the environment; resets are not timed."""
    steps = sum(len(play.actions) for play in plays)
    path = temporary / "plays.pickle"
    path.write_bytes(pickle.dumps([(play.task, play.actions) for play in plays]))
    first = [steps / _run(_FIRST, str(path)) for _ in range(_REPEATS)]
    env = WebShopEnv(_TURNS)
    _play_all(env, plays)
    later = [steps / _play_all(env, plays) for _ in range(_REPEATS)]
    return {
        "steps": steps,
        "first_play_steps_per_s": round(statistics.median(first)),
        "first_play_fastest": round(max(first)),
        "steps_per_s": round(statistics.median(later)),
        "fastest": round(max(later)),
    }


def _play_all(env: WebShopEnv, plays: Sequence[Play]) -> float:
    clock, total = time.process_time, 0.0
    for play in plays:
        over = True
        for action in play.actions:
            if over:
                env.reset(options={"task": play.task})
            start = clock()
            *_, over, _, _ = env.step(action)
            total += clock() - start
    return total


def _time_start(task: Task, temporary: Path) -> dict[str, float]:
    """Seconds and memory (MB) of a new process up to the first observation; the median of five."""
    path = temporary / "task.pickle"
    path.write_bytes(pickle.dumps(task))
    found = [_run(_START, str(path)) for _ in range(5)]
    seconds, cpu, memory = (sorted(column)[2] for column in zip(*found, strict=True))
    return {"start_s": round(seconds, 3), "start_cpu_s": round(cpu, 3), "start_mb": round(memory)}


def _time_queries(folder: Path, queries: Sequence[str], temporary: Path) -> dict[str, float]:
    path = temporary / "queries.json"
    path.write_text(json.dumps(queries))
    found = _run(_OPEN, str(folder), str(path))
    found = {name: round(value, 4) for name, value in found.items()}
    return {name: found[name] for name in ("queries", "query_ms", "query_p95_ms", "queries_per_s")}


def _run(code: str, *arguments: str) -> Any:
    return json.loads(subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True).stdout)


# -- a million --------------------------------------------------------------------------------------------------------
def _measure_scale(count: int, folder: Path, temporary: Path) -> dict[str, float]:
    if not (folder / "items_shuffle.json").is_file():
        write_synthetic(folder, count)
    queries = temporary / "queries.json"
    queries.write_text(json.dumps(_synthetic_queries(folder, 500)))
    wall, cpu = time.perf_counter(), time.process_time()
    catalogue = load_catalogue(folder)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    open_index(catalogue)
    found = _run(_OPEN, str(folder), str(queries))
    return {
        "products": len(catalogue),
        "files_gb": round(sum(path.stat().st_size for path in folder.glob("items_*.json")) / 1e9, 2),
        "kept_gb": round(sum(path.stat().st_size for path in catalogue.folder.iterdir()) / 1e9, 2),
        "read_s": round(wall, 1),
        "read_cpu_s": round(cpu, 1),
        "read_peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        **{name: round(value, 3) for name, value in found.items()},
    }


def write_synthetic(folder: Path, count: int, seed: int = 0) -> None:
    """A catalogue of invented words in the official files' schema; its products are written one after the other."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    vocabulary = _words(max(20_000, count))
    cumulative = np.cumsum(1 / (np.arange(len(vocabulary)) + 2.7) ** 1.05)
    with (
        (folder / "items_shuffle.json").open("w") as products,
        (folder / "items_ins_v2.json").open("w") as attributes,
        (folder / "title_nouns.json").open("w") as nouns,
    ):
        for number in track(range(count), "writing products", console=Console(stderr=True)):
            lengths = rng.poisson((12, 60, 14, 14, 14, 14))
            drawn = np.searchsorted(cumulative, rng.random(lengths.sum() + 6) * cumulative[-1])
            words = iter([vocabulary[i] for i in drawn.tolist()])
            name, description, *bullets = (" ".join(itertools.islice(words, n)) for n in lengths.tolist())
            asin, separator = f"S{number:09d}", "[" if number == 0 else ",\n"
            sizes = [{"value": value} for value in ("small", "medium", "large", *words)]
            record = {
                "asin": asin,
                "name": name,
                "full_description": description,
                "small_description": bullets,
                "pricing": f"${5 + number % 90}.99",
                "images": [""],
                "category": f"category {number % 5}",
                "query": f"query {number % 300}",
                "product_category": f"A › B › {number % 300}",
                "customization_options": {"size": sizes} if number % 2 else "",
            }
            products.write(separator + json.dumps(record))
            separator = "{" if number == 0 else ",\n"
            attributes.write(f'{separator}"{asin}": {json.dumps({"attributes": bullets[0].split()[:4]})}')
            nouns.write(f'{separator}"{asin}": {json.dumps(name.split()[:8])}')
        products.write("]")
        attributes.write("}")
        nouns.write("}")


def _words(count: int) -> list[str]:
    """Different words of two to four syllables, short ones first."""
    syllables = [a + b for a in "bcdfghklmnprstvz" for b in ("a", "e", "i", "o", "u", "an", "er", "il", "on", "us")]
    longer = ("".join(parts) for length in (2, 3, 4) for parts in itertools.product(syllables, repeat=length))
    return list(itertools.islice(longer, count))


def _synthetic_queries(folder: Path, count: int) -> list[str]:
    """Four to eight words of a product's name each."""
    rng = random.Random(0)
    queries = []
    with (folder / "items_shuffle.json").open() as file:
        for line in itertools.islice(file, count):
            words = json.loads(line.strip("[],\n"))["name"].split()
            queries.append(" ".join(rng.sample(words, min(len(words), rng.randint(4, 8)))))
    return queries


def _table(figures: Mapping[str, Any]) -> Table:
    table = Table("", "", title="WebShop")
    table.columns[1].justify = "right"
    for name, value in figures.items():
        table.add_row(name.replace("_", " "), f"{value:,}")
    return table


if __name__ == "__main__":
    main()
