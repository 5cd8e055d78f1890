"""One program for all commands: `polyturn train env=alfworld` is `python -m scripts.train env=alfworld`.

It works in any folder. Modules in the current folder, such as your own environment, are found after installed packages.
"""

from __future__ import annotations

import ast
import difflib
import os
import re
import runpy
import sys
from pathlib import Path

COMMANDS = (
    "train", "evaluate", "sweep", "lab", "compare", "play", "view", "check", "serve", "download", "doctor", "plan",
    "bench",
)  # fmt: skip


def main() -> None:
    """Run the command that the first argument names."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print("usage: polyturn COMMAND …\n")
        for command in COMMANDS:
            print(f"  {command:9} {summary(command)}")
        print("\nThe settings of a command: polyturn COMMAND --help")
        return
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        meant = f"; did you mean {near[0]!r}?" if near else ""
        print(f"error: unknown command {name!r}{meant}; known: {', '.join(COMMANDS)}", file=sys.stderr)
        raise SystemExit(2)
    sys.argv[1:] = arguments
    sys.path.append(os.getcwd())
    runpy.run_module(f"scripts.{name}", run_name="__main__", alter_sys=True)


def summary(command: str) -> str:
    """The first sentence of a command's documentation, without importing it."""
    source = (Path(__file__).parent / f"{command}.py").read_text(encoding="utf-8")
    return re.split(r"[:.]", ast.get_docstring(ast.parse(source)) or "")[0]


if __name__ == "__main__":
    main()
