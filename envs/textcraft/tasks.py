"""The games of TextCraft.

tasks = TextCraftTasks()                        # the published recipes if there are any, otherwise generated ones
tasks = TextCraftTasks(recipes="embedded")      # generated ones: no data is needed
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from envs.core import Manifest, Task, UnknownNameError, counted, data_root, find_task, hash_tasks
from envs.textcraft.env import ENV_ID, TextCraftEnv
from envs.textcraft.expert import TextCraftExpert
from envs.textcraft.protocols import PROTOCOLS
from envs.textcraft.recipes import item_id
from envs.textcraft.sources import EMBEDDED, FOLDER, GAMES, PUBLISHED, RECIPES, Source, open_source, read_json

CHOICES = ("auto", "official", EMBEDDED)
AGENTGYM_SEED = 42  # of all games there
MAX_TURNS = {True: 20, False: 40}  # embedded or not; ADaPT plays 40
FIRST_VALID_SEED = 1_000_000
HELD_OUT = 5  # every fifth goal of a depth is not trained on
OFFICIAL_COUNTS = {"agentgym": 544, "adapt_test": 200}


class TextCraftTasks:
    """Games as a `TaskSet`.

    Official splits: `agentgym` has the 544 goals of AgentGym in its order, with the commands of its seed; `adapt_test`
    the 200 published test games of ADaPT as they were shown; `train` the games of `agentgym` whose goals are not in
    `adapt_test`. Embedded splits: `train`, and `valid` with other goals.
    """

    env_id = ENV_ID

    def __init__(
        self,
        recipes: str = "auto",
        data: str | None = None,
        protocol: str = "plain",
        max_turns: int | None = None,
        embedded_train: int = 2000,
        embedded_valid: int = 100,
    ) -> None:
        """`recipes` is one of `CHOICES`, `data` the folder above `textcraft`, and None `envs.core.data_root`.

        `max_turns` None is one of `MAX_TURNS`. Raises `UnknownNameError`, `ValueError`, and `NoDataError` for official
        recipes that are not there.
        """
        for kind, name, known in (("choice of recipes", recipes, CHOICES), ("protocol", protocol, PROTOCOLS)):
            if name not in known:
                raise UnknownNameError(kind, name, known)
        sizes = {"embedded_train": embedded_train, "embedded_valid": embedded_valid, "max_turns": max_turns or 1}
        if min(sizes.values()) < 1 or max_turns == 0 or embedded_train > FIRST_VALID_SEED:
            raise ValueError(f"sizes and limits must be at least 1, and seeds of valid begin at {FIRST_VALID_SEED:,}; "
                             f"got {sizes | {'max_turns': max_turns}}")  # fmt: skip
        self._folder = (Path(data).expanduser() if data else data_root()) / FOLDER
        files = [self._folder / name for name in (RECIPES, GAMES)]
        self.embedded = recipes == EMBEDDED or (recipes == "auto" and not all(file.is_file() for file in files))
        self._recipes = EMBEDDED if self.embedded else str(files[0].absolute())
        self._source: Source = open_source(self._recipes)
        self._sizes = {"train": embedded_train, "valid": embedded_valid}
        self.max_turns = max_turns or MAX_TURNS[self.embedded]
        self.protocol = protocol
        self.splits: Sequence[str] = ("train", "valid") if self.embedded else ("train", "adapt_test", "agentgym")
        self.eval_splits: Sequence[str] = (self.splits[1],)
        self._payloads: dict[str, dict[str, dict[str, Any]]] = {}
        self._manifests: dict[str, Manifest] = {}
        if not self.embedded:
            self._published = read_json(files[1])["games"]

    def manifest(self, split: str) -> Manifest:
        """The games of a split; the hash covers goals, commands, and all recipes."""
        if split not in self._manifests:
            payloads = self._games(split)
            about = {"recipes": self._source.tree.digest, "protocol": self.protocol}
            contents = ((name, _line({**payload, **about})) for name, payload in payloads.items())
            count = None if self.embedded else OFFICIAL_COUNTS.get(split)
            self._manifests[split] = Manifest(ENV_ID, split, tuple(sorted(payloads)), hash_tasks(contents), count)
        return self._manifests[split]

    def task(self, split: str, task_id: str) -> Task:
        return find_task(ENV_ID, split, task_id, self._games(split))

    def make(self) -> TextCraftEnv:
        """A new environment."""
        return TextCraftEnv(self.max_turns, self.protocol)

    def expert(self) -> TextCraftExpert | None:
        """The planner, which reads and writes plain texts."""
        return TextCraftExpert() if self.protocol == "plain" else None

    def describe(self) -> str:
        where = "generated recipes" if self.embedded else f"the recipes of {self._folder}"
        counts = ", ".join(f"{counted(len(self._games(split)), 'game')} in {split}" for split in self.splits)
        return f"{ENV_ID}: {where}: {counts}; at most {counted(self.max_turns, 'turn')}"

    def facts(self) -> dict[str, Any]:
        """See `envs.facts.environment_facts`."""
        return {"recipes": EMBEDDED if self.embedded else "official", "recipes_sha256": self._source.tree.digest}

    def _games(self, split: str) -> Mapping[str, dict[str, Any]]:
        if split not in self.splits:
            raise UnknownNameError(f"split of {ENV_ID}", split, self.splits)
        if split not in self._payloads:
            self._payloads[split] = self._embedded(split) if self.embedded else self._official(split)
        return self._payloads[split]

    def _official(self, split: str) -> dict[str, dict[str, Any]]:
        if split == "adapt_test":
            return {f"adapt-{game['seed']:03d}": self._as_published(game) for game in self._published}
        goals = sorted(self._source.tree.goals(1), key=lambda goal: goal[1])
        games = {
            f"{split}-{place:03d}": self._payload(goal, depth, AGENTGYM_SEED)
            for place, (goal, depth) in enumerate(goals)
        }
        if split == "agentgym":
            return games
        tested = {self._as_published(game)["goal"] for game in self._published}
        return {name: game for name, game in games.items() if game["goal"] not in tested}

    def _as_published(self, game: Mapping[str, Any]) -> dict[str, Any]:
        goal = item_id(game["goal"].removeprefix("craft ").removesuffix("."))
        depth = open_source(self._recipes, PUBLISHED).tree.depths[goal]
        commands = [line for line in game["commands"].split("\n") if line.startswith("craft ")]
        return {
            "type": f"depth {depth}", "recipes": self._recipes, "order": PUBLISHED, "goal": goal, "commands": commands
        }  # fmt: skip

    def _embedded(self, split: str) -> dict[str, dict[str, Any]]:
        """Goals in turn, each time with other distractors."""
        by_depth: dict[int, list[str]] = {}
        for goal, depth in self._source.tree.goals(2):
            by_depth.setdefault(depth, []).append(goal)
        held_out = split == "valid"
        goals = [
            (goal, depth)
            for depth, of in sorted(by_depth.items())
            for place, goal in enumerate(of)
            if (place % HELD_OUT == HELD_OUT - 1) == held_out
        ]
        first = FIRST_VALID_SEED if held_out else 0
        return {
            f"{split}-{number:05d}": self._payload(*goals[number % len(goals)], first + number)
            for number in range(self._sizes[split])
        }

    def _payload(self, goal: str, depth: int, seed: int) -> dict[str, Any]:
        return {"type": f"depth {depth}", "recipes": self._recipes, "goal": goal, "seed": seed}


def _line(payload: Mapping[str, Any]) -> bytes:
    return json.dumps({**payload, "order": payload.get("order", "")}, sort_keys=True).encode()
