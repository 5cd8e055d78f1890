"""Scenarios that need no data: eight situations for ten people, in `embedded.json`, in the form of SOTOPIA's files."""

from __future__ import annotations

import json
from importlib import resources
from itertools import combinations

from envs.sotopia.profiles import Stock, person, scenario

VERSION = 1
PAIRS = 5  # of people who meet in a scenario
HARD = frozenset({"scenario6", "scenario7"})  # take the place of the hard scenarios


def make_stock() -> Stock:
    """Every scenario with `PAIRS` pairs of people."""
    read = json.loads((resources.files("envs.sotopia") / "embedded.json").read_text(encoding="utf-8"))
    people = {f"person{n}": person(row) for n, row in enumerate(read["people"])}
    scenarios = {f"scenario{n}": scenario(row) for n, row in enumerate(read["scenarios"])}
    pairs = list(combinations(people, 2))
    meet = {
        f"{name}-{place}": (name, *pairs[(7 * number + 9 * place) % len(pairs)])
        for number, name in enumerate(scenarios)
        for place in range(PAIRS)
    }
    return Stock(scenarios, people, meet, HARD)
