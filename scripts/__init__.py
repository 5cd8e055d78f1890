"""Commands: `python -m scripts.<name>`."""

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

PACKAGES = ("envs", "agents", "algorithms", "conf", "benchmarks")


class _ProjectFinder:
    """Imports this project's packages, even if a folder in the working directory has the same name as one of them."""

    @staticmethod
    def find_spec(name: str, _: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """The spec of the package `name`; None if it is not in `PACKAGES`."""
        if name not in PACKAGES:
            return None
        return PathFinder.find_spec(name, [str(Path(__file__).resolve().parents[1])], target)


sys.meta_path.insert(0, _ProjectFinder)

import agents  # noqa: E402, F401 -- before torch: sets how its threads wait
