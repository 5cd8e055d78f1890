"""Run a benchmark: `python -m scripts.bench NAME [its arguments]`; without a name, list them.

A benchmark is a module of `benchmarks` with `main(argv)`. It prints a table, then one line of JSON.
"""

from __future__ import annotations

import ast
import importlib
import pkgutil
import sys
from importlib.util import find_spec

import benchmarks
from envs.core import UnknownNameError
from scripts.common import run


def main(argv: list[str] | None = None) -> None:
    """Run the named benchmark."""
    arguments = sys.argv[1:] if argv is None else argv
    names = sorted(module.name for module in pkgutil.iter_modules(benchmarks.__path__))
    if not arguments or arguments[0] in ("-h", "--help"):
        print((__doc__ or "").splitlines()[0])
        for name in names:
            print(f"  {name:<16} {_headline(name)}")
        return
    name, *rest = arguments
    if name not in names:
        raise UnknownNameError("benchmark", name, names)
    importlib.import_module(f"benchmarks.{name}").main(rest)


def _headline(name: str) -> str:
    """The first line of a benchmark's docstring, read without importing it."""
    spec = find_spec(f"benchmarks.{name}")
    source = spec.loader.get_source(spec.name) if spec and spec.loader else ""  # type: ignore[attr-defined]
    return (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]


if __name__ == "__main__":
    run(main)
