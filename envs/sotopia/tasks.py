"""The conversations of SOTOPIA.

tasks = SotopiaTasks()                          # the 90 scenarios if there are any, otherwise embedded ones
tasks = SotopiaTasks(scenarios="embedded")      # no data is needed
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from envs.core import Expert, Manifest, Task, UnknownNameError, counted, data_root, find_task, hash_tasks
from envs.partners import Lines, Partner
from envs.sotopia.conversation import MAX_TURNS
from envs.sotopia.embedded import VERSION, make_stock
from envs.sotopia.env import ENV_ID, SCRIPT, SotopiaEnv
from envs.sotopia.judge import Judge
from envs.sotopia.profiles import FILES, USED, Stock, read_stock

FOLDER = "sotopia"
EMBEDDED = "embedded"
CHOICES = ("auto", "official", EMBEDDED)
HELD_OUT = 5  # every fifth of the scenarios that are not hard is one of `valid`
SPLITS = ("train", "valid", "hard")


class SotopiaTasks:
    """Conversations as a `TaskSet`: a scenario, two people, and which of them the policy is.

    `hard` has the 14 scenarios that SOTOPIA calls hard. The others are divided by scenario into `train` and `valid`:
    the reference has no training split of these.
    """

    env_id = ENV_ID
    splits: Sequence[str] = SPLITS

    def __init__(
        self,
        scenarios: str = "auto",
        data: str | None = None,
        partner: Partner | None = None,
        judge: Judge | None = None,
        max_turns: int = MAX_TURNS,
    ) -> None:
        """`scenarios` is one of `CHOICES`, `data` the folder above `sotopia`. `partner` None says `SCRIPT`; without a
        `judge` there is no reward. `max_turns` counts the turns of both people.

        Raises `UnknownNameError`, `ValueError`, and `NoDataError` for official scenarios that are not there.
        """
        if scenarios not in CHOICES:
            raise UnknownNameError("choice of scenarios", scenarios, CHOICES)
        if max_turns < 2:
            raise ValueError(f"max_turns must be at least 2, since two people act in turn; got {max_turns}")
        folder = (Path(data).expanduser() if data else data_root()) / FOLDER
        found = all((folder / name).is_file() for name in (*FILES, USED))
        self.embedded = scenarios == EMBEDDED or (scenarios == "auto" and not found)
        self._folder = "" if self.embedded else str(folder)
        self._stock: Stock = make_stock() if self.embedded else read_stock(str(folder.absolute()))
        self.max_turns = max_turns
        self._partner, self._judge = partner or Lines(SCRIPT), judge
        self._payloads: dict[str, dict[str, dict[str, Any]]] = {}
        self._manifests: dict[str, Manifest] = {}

    def manifest(self, split: str) -> Manifest:
        """The conversations of a split; the hash covers scenarios, people, partner, and judge."""
        if split not in self._manifests:
            payloads = self._tasks(split)
            about = self.facts()
            contents = (
                (name, json.dumps({**payload, "about": about}, sort_keys=True).encode())
                for name, payload in payloads.items()
            )
            self._manifests[split] = Manifest(ENV_ID, split, tuple(sorted(payloads)), hash_tasks(contents))
        return self._manifests[split]

    def task(self, split: str, task_id: str) -> Task:
        return find_task(ENV_ID, split, task_id, self._tasks(split))

    def make(self) -> SotopiaEnv:
        """A new environment."""
        return SotopiaEnv(self._partner, self._judge, self.max_turns)

    def expert(self) -> Expert | None:
        """None: there is no expert."""
        return None

    def describe(self) -> str:
        where = f"scenarios of {self._folder}" if self._folder else "embedded scenarios"
        counts = ", ".join(f"{counted(len(self._tasks(split)), 'task')} in {split}" for split in self.splits)
        judge = f"judge {self._judge.name}" if self._judge else "without a judge, so there is no reward (env/judge=…)"
        return f"{ENV_ID}: {where}: {counts}; partner {self._partner.name}, {judge}"

    def facts(self) -> dict[str, Any]:
        """See `envs.facts.environment_facts`."""
        judge = self._judge.name if self._judge else None
        facts = {"partner": self._partner.name, "judge": judge, "max_turns": self.max_turns}
        return facts | ({"scenarios_version": VERSION} if self.embedded else {})

    def _tasks(self, split: str) -> Mapping[str, dict[str, Any]]:
        if split not in self.splits:
            raise UnknownNameError(f"split of {ENV_ID}", split, self.splits)
        if split not in self._payloads:
            chosen = self._scenarios(split)
            self._payloads[split] = {
                f"{name}-{place + 1}": self._payload(*meet, place)
                for name, meet in self._stock.combinations.items()
                if meet[0] in chosen
                for place in (0, 1)
            }
        return self._payloads[split]

    def _scenarios(self, split: str) -> set[str]:
        hard = self._stock.hard
        if split == "hard":
            return set(hard)
        others = sorted(set(self._stock.scenarios) - hard)
        return {name for n, name in enumerate(others) if (n % HELD_OUT == HELD_OUT - 1) == (split == "valid")}

    def _payload(self, name: str, first: str, second: str, place: int) -> dict[str, Any]:
        scenario = self._stock.scenarios[name]
        fields = {
            "text": scenario.text, "goals": list(scenario.goals), "relationship": int(scenario.relationship),
        }  # fmt: skip
        people = [asdict(self._stock.people[person]) for person in (first, second)]
        return {"type": scenario.kind, "scenario": fields, "people": people, "place": place}
