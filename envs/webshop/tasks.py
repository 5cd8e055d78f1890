"""The tasks of WebShop: goals, each with a catalogue and prices.

    tasks = WebShopTasks()                       # "auto": `describe()` says which catalogue it chose
    manifest = tasks.manifest("test")            # 500 ids, sorted, with a hash of the goals
    env = tasks.make(); env.reset(options={"task": tasks.task("test", manifest.ids[0])})

Two protocols split a catalogue's goals; task ids contain the protocol. `official` has one order of goals and, by
`seed`, one draw of prices: the first 500 goals are `test`, the next 1,000 `valid`, the others `train`, as in the
paper's own split (`official/goal-0000042`). `verl_agent` follows the training of `langfengQ/verl-agent`: every worker
draws prices and shuffles goals with its own seed, and at each reset it gets a goal by its position in that order
(`verl_agent/train-reset-0003-worker-011`). One worker's goal 700 may be another's goal 3, so train and valid overlap.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from envs.core import Expert, Manifest, Task, UnknownNameError, counted, data_root, hash_tasks
from envs.webshop.catalogue import SIZES, Catalogue, CatalogueFiles, CatalogueNotFoundError, load_catalogue
from envs.webshop.env import OBSERVATIONS, PROTOCOLS, WebShopEnv
from envs.webshop.expert import Shopper
from envs.webshop.generate import GENERATOR_VERSION, embedded_catalogue
from envs.webshop.goals import OFFICIAL_SHUFFLE, Goal, Goals, build_goals
from envs.webshop.nouns import NounsNotFoundError

ENV_ID = "polyturn/WebShop-v0"
CATALOGUES = ("auto", "small", "full", "embedded")
INSTRUCTIONS = ("auto", "synthetic", "human")
DOWNLOAD = "python -m scripts.download webshop"
TEST_GOALS, VALID_GOALS = 500, 1000  # the first goals of the official order
FEWEST_GOALS = 3000  # with fewer, test and valid are a tenth each
VALID_SEED = 1000  # added to verl-agent's seed for validation
ENOUGH_HUMAN = 2000  # human instructions that `instructions=auto` needs to use them


@dataclass(frozen=True)
class Draw:
    """The goal of a task: its position in the order of goals for `seed`."""

    seed: int  # for the prices, and for verl-agent's order
    place: int


class WebShopTasks:
    """WebShop as a `TaskSet`. The catalogue is opened when the first task is requested."""

    def __init__(
        self,
        catalogue: str = "auto",
        data: str | os.PathLike[str] | None = None,
        protocol: str = "official",
        instructions: str = "auto",
        observation: str = "text",
        max_turns: int = 15,
        seed: int = 0,
        embedded_products: int = 1000,
        train_workers: int = 16,
        train_resets: int = 150,
        valid_workers: int = 128,
    ) -> None:
        """Only looks for official files; nothing is made or read yet.

        `catalogue` is one of `CATALOGUES`: "auto" uses the official small one if it exists, then the full one, then the
        embedded one of `embedded_products`. `data` is the folder above `webshop` (None: `envs.core.data_root()`).
        `instructions` is one of `INSTRUCTIONS`: "auto" uses human ones if the catalogue has `ENOUGH_HUMAN`. `seed`
        draws the prices and, with the protocol "verl_agent", the workers' orders; the last three are the sizes of that
        protocol's splits. Raises `UnknownNameError` and `ValueError`.
        """
        for kind, name, known in (
            ("catalogue", catalogue, CATALOGUES),
            ("protocol", protocol, PROTOCOLS),
            ("kind of instructions", instructions, INSTRUCTIONS),
            ("observation", observation, OBSERVATIONS),
        ):
            if name not in known:
                raise UnknownNameError(kind, name, known)
        counts = {"max_turns": max_turns, "train_workers": train_workers, "valid_workers": valid_workers}
        if min(*counts.values(), train_resets) < 1:
            raise ValueError(f"turns, workers and resets must be at least 1, got {counts} and {train_resets} resets")
        self._asked, self._protocol, self._instructions = catalogue, protocol, instructions
        self._observation, self._max_turns, self._seed = observation, max_turns, seed
        self._folder = (data_root() if data is None else Path(data).expanduser()) / "webshop"
        self._embedded_products = embedded_products
        self._workers, self._resets = {"train": train_workers, "valid": valid_workers}, train_resets
        self._size = catalogue if catalogue in SIZES else None
        if catalogue == "auto":
            self._size = next((size for size in SIZES if _is_there(self._folder, size)), None)
        self._drawn: dict[str, dict[str, Draw]] = {}  # by split and id
        self._orders: dict[int, Goals] = {}  # by seed
        self._manifests: dict[str, Manifest] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Without what has been read, which cannot be sent to a worker: it reads the catalogue itself."""
        state = {**self.__dict__, "_drawn": {}, "_orders": {}, "_manifests": {}}
        return {name: value for name, value in state.items() if name not in ("_place", "_catalogue", "_human")}

    @property
    def env_id(self) -> str:
        return ENV_ID

    @property
    def splits(self) -> Sequence[str]:
        return ("train", "valid", "test") if self._protocol == "official" else ("train", "valid")

    @property
    def eval_splits(self) -> Sequence[str]:
        """Without `test`, which is reserved for final results."""
        return ("valid",)

    @property
    def max_turns(self) -> int:
        return self._max_turns

    def manifest(self, split: str) -> Manifest:
        """The tasks of a split. The embedded catalogue is made if it does not exist yet.

        Raises `UnknownNameError`, and `CatalogueNotFoundError` if an official catalogue has not been downloaded.
        """
        if split not in self._manifests:
            ids = tuple(sorted(self._draws(split)))
            payloads = (self.task(split, task_id).payload for task_id in ids)
            contents = ([self._catalogue.content_hash, self._protocol, p["price_seed"], p["goal"]] for p in payloads)
            lines = (json.dumps(content, sort_keys=True).encode() for content in contents)
            content_hash = hash_tasks(zip(ids, lines, strict=True))
            self._manifests[split] = Manifest(ENV_ID, split, ids, content_hash)
        return self._manifests[split]

    def task(self, split: str, task_id: str) -> Task:
        draws = self._draws(split)
        if task_id not in draws:
            raise UnknownNameError(f"task of {ENV_ID} {split}", task_id, draws)
        draw = draws[task_id]
        goal = self._order(draw.seed)[draw.place]
        payload = {
            "catalogue": str(self._place),
            "size": self._size,
            "price_seed": draw.seed,
            "goal": goal.to_json(),
            "type": goal.category,
        }
        return Task(id=task_id, env=ENV_ID, split=split, payload=payload)

    def make(self) -> WebShopEnv:
        """A new environment. Each catalogue is opened once per process, for all environments."""
        return WebShopEnv(max_turns=self._max_turns, observation=self._observation, protocol=self._protocol)

    def expert(self) -> Expert | None:
        """None for rich observations, which the expert cannot read."""
        return Shopper() if self._observation == "text" else None

    def describe(self) -> str:
        """Raises `CatalogueNotFoundError` if an official catalogue has not been downloaded."""
        if self._size:
            shop, hint = f"the official {self._size} catalogue in {self._folder}", "env.catalogue=embedded is generated"
        else:
            shop = f"a catalogue of {self._embedded_products} generated products, version {GENERATOR_VERSION}"
            hint = f"no official one in {self._folder}; `{DOWNLOAD}` fetches it"
        chosen = f" ({hint})" if self._asked == "auto" else ""
        overlap = ", whose train and valid overlap" if self._protocol == "verl_agent" else ""
        return (
            f"{ENV_ID}: {shop}{chosen}; {'human' if self._human else 'synthetic'} instructions; protocol "
            f"{self._protocol}{overlap}, seed {self._seed}; observations as {self._observation}; "
            f"at most {counted(self._max_turns, 'turn')}"
        )

    def facts(self) -> dict[str, Any]:
        """See `envs.facts.environment_facts`."""
        return {
            "catalogue": self._size or "embedded",
            "catalogue_sha256": self._catalogue.content_hash,
            "instructions": "human" if self._human else "synthetic",
            "protocol": self._protocol,
            "observation": self._observation,
            "seed": self._seed,
            **({} if self._size else {"generator": GENERATOR_VERSION, "embedded_products": self._embedded_products}),
        }

    # -- splits -------------------------------------------------------------------------------------------------------
    @cached_property
    def _place(self) -> Path:
        return self._folder if self._size else embedded_catalogue(self._embedded_products)

    @cached_property
    def _catalogue(self) -> Catalogue:
        catalogue = load_catalogue(self._place, self._size)
        if not catalogue.has_nouns:
            raise NounsNotFoundError(catalogue.content_hash)  # here instead of at the first purchase
        return catalogue

    @cached_property
    def _human(self) -> bool:
        if self._instructions == "auto":
            return int(self._catalogue.human_instructed.sum()) >= ENOUGH_HUMAN
        return self._instructions == "human"

    def _order(self, seed: int) -> Goals:
        """All goals, in the order for `seed`."""
        if seed not in self._orders:
            shuffle = OFFICIAL_SHUFFLE if self._protocol == "official" else seed
            self._orders[seed] = build_goals(self._catalogue, seed, human=self._human, shuffle_seed=shuffle)
        return self._orders[seed]

    def _without_repeats(self, places: dict[str, range], split: str) -> list[int]:
        """The positions of a split; for train, without goals that are word for word in another split.

        A product that lists a value twice produces such goals.
        """
        if split != "train":
            return list(places[split])
        goals = self._order(self._seed)
        held_out = {_identity(goals[place]) for name in ("test", "valid") for place in places[name]}
        return [place for place in places["train"] if _identity(goals[place]) not in held_out]

    def _draws(self, split: str) -> dict[str, Draw]:
        """The tasks of a split by id."""
        if split not in self.splits:
            raise UnknownNameError(f"split of {ENV_ID} with the protocol {self._protocol}", split, self.splits)
        if split not in self._drawn:
            is_train = split == "train"
            seed = self._seed if self._protocol == "official" or is_train else self._seed + VALID_SEED
            count = len(self._order(seed))
            if self._protocol == "official":
                places = self._without_repeats(official_places(count), split)
                self._drawn[split] = {f"official/goal-{place:07d}": Draw(seed, place) for place in places}
            else:
                resets = self._resets if is_train else 1
                draws = worker_draws(seed, self._workers[split], count, is_train=is_train, resets=resets)
                self._drawn[split] = {
                    f"verl_agent/{split}-reset-{reset:04d}-worker-{worker:03d}": draw
                    for reset, row in enumerate(draws)
                    for worker, draw in enumerate(row)
                }
        return self._drawn[split]


def _identity(goal: Goal) -> tuple[str, str]:
    return goal.asin, goal.instruction_text


def _is_there(folder: Path, size: str) -> bool:
    try:
        CatalogueFiles.find(folder, size)
    except CatalogueNotFoundError:
        return False
    return True


def official_places(goals: int) -> dict[str, range]:
    """The positions in the official order of each split's goals.

    Raises `ValueError` if there are too few goals for one in each split.
    """
    test, valid = (TEST_GOALS, VALID_GOALS) if goals >= FEWEST_GOALS else (goals // 10, goals // 10)
    if not test:
        raise ValueError(f"{goals} goals cannot be split: at least 10 are needed (env.instructions=synthetic has more)")
    return {"test": range(test), "valid": range(test, test + valid), "train": range(test + valid, goals)}


def worker_draws(seed: int, workers: int, goals: int, *, is_train: bool, resets: int) -> list[list[Draw]]:
    """The goals that verl-agent's workers get at each reset: `[resets][workers]`.

    As in its `WebshopMultiProcessEnv`: positions 0 to 499 are for validation, which has its own seed, the others for
    training. The workers of a group share a draw, so a group counts as one worker here. Raises `ValueError` for too few
    goals.
    """
    places = np.arange(TEST_GOALS, goals) if is_train else np.arange(min(TEST_GOALS, goals))
    if len(places) < workers:
        raise ValueError(f"{workers} workers need as many goals, but only {len(places)} of {goals} are for them")
    rng = np.random.RandomState(seed)  # verl-agent's generator
    return [
        [Draw(seed + worker, int(place)) for worker, place in enumerate(rng.choice(places, workers, replace=False))]
        for _ in range(resets)
    ]
