"""Commands: `python -m scripts.<name>`."""

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

PACKAGES = ("envs", "agents", "algorithms", "conf", "benchmarks")


class _Beside:
    """Finds the packages of this project beside this one, whatever else in the working directory has their names."""

    @staticmethod
    def find_spec(name: str, _: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """The package `name`; None where it is none of these."""
        if name not in PACKAGES:
            return None
        return PathFinder.find_spec(name, [str(Path(__file__).resolve().parents[1])], target)


sys.meta_path.insert(0, _Beside)

import agents  # noqa: E402, F401 -- before torch: says how its threads wait
