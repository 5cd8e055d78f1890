"""Questions of a dataset of reasoning-gym, by seed.

tasks = ReasoningGymTasks("leg_counting")
tasks = ReasoningGymTasks("chain_sum", {"min_terms": 4, "max_terms": 8})
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from importlib.metadata import version
from typing import Any

from envs.core import UnknownNameError
from envs.gold_path import GoldPath
from envs.reasoning_gym.env import ENV_ID, ReasoningGymEnv, datasets, load
from envs.seed_tasks import FIRST_SEEDS, SeedTasks

OURS = ("seed", "size")  # of a configuration: splits set them
_RUNS = "its grader runs the answer as Python code"
_SALTED = "its questions differ between processes, since they follow the order of Python's sets"
REFUSED = {  # and why
    "binary_matrix": _RUNS, "countdown": _RUNS, "intermediate_integration": _RUNS, "n_queens": _RUNS,
    "polynomial_multiplication": _RUNS, "puzzle24": _RUNS, "simple_integration": _RUNS, "spiral_matrix": _RUNS,
    "string_insertion": _RUNS,
    "isomorphic_strings": _SALTED, "knight_swap": _SALTED, "ransom_note": _SALTED, "word_ladder": _SALTED,
    "coin_flip": "its grader writes 1e999999999 out as a whole number, which does not end",
    "composite": "it is made of other datasets; name one of them",
}  # fmt: skip


class ReasoningGymTasks(SeedTasks):
    """Questions of a dataset. `train` has the dataset's seed 0, `valid` 1,000,000; a task is a place in it."""

    def __init__(
        self,
        dataset: str,
        config: Mapping[str, Any] | None = None,
        max_turns: int = 1,
        train_tasks: int = 1000,
        valid_tasks: int = 100,
    ) -> None:
        """`config` has fields of the dataset's configuration.

        Raises `UnknownNameError`, `ValueError` for a dataset or a setting that is refused, and `ModuleNotFoundError`
        without the package.
        """
        known = datasets()
        if dataset in REFUSED:
            raise ValueError(f"env.dataset={dataset} is refused: {REFUSED[dataset]}")
        if dataset not in known:
            raise UnknownNameError("dataset of reasoning-gym", dataset, set(known) - set(REFUSED))
        names = {field.name for field in fields(known[dataset][1])} - set(OURS)
        for name in config or ():
            if name not in names:
                raise UnknownNameError(f"setting of {dataset}", name, names)
        self._dataset, self._config = dataset, dict(config or {})
        super().__init__(ENV_ID, max_turns, train_tasks, valid_tasks)
        try:
            made = known[dataset][1](**self._config)
            if hasattr(made, "validate"):
                made.validate()
        except (AssertionError, TypeError, ValueError) as error:
            raise ValueError(f"{dataset} refuses env.config={self._config}: {error}") from error

    def payload(self, split: str, seed: int) -> dict[str, Any]:
        first = FIRST_SEEDS[split]
        return {
            "type": self._dataset, "config": self._config | {"seed": first, "size": self.sizes[split]},
            "number": seed - first, "reasoning_gym": version("reasoning-gym"),
        }  # fmt: skip

    def make(self) -> ReasoningGymEnv:
        """A new environment."""
        return ReasoningGymEnv(self.max_turns)

    def expert(self) -> GoldPath:
        """The package's own answer; "" for datasets that have none."""
        return GoldPath(lambda game: [load(game)[1]["answer"] or ""], at_the_end="")

    def describe(self) -> str:
        return f"{super().describe()}; questions of {self._dataset}"
