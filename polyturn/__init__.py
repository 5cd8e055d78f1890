"""polyturn in Python: the functions that the commands call, without a command line.

    import polyturn as pt

    tasks = pt.make_tasks("key_corridor", rooms=5)
    agent = pt.make_agent("expert", tasks)
    print(pt.evaluate(agent, tasks, "valid", limit=20).success)
    run = pt.train("outputs/first", "env=key_corridor", "algo=gigpo", "trainer.updates=5")
    rows = run.turns()  # pandas.DataFrame(rows)

An environment alone is `gymnasium.make("polyturn/KeyCorridor-v0")`, after `import polyturn`.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_ROOT = Path(__file__).parents[1]
_PACKAGES = ("envs", "agents", "algorithms", "conf", "scripts")


def _import_ours() -> None:
    """Import polyturn's packages, though the working directory may have others with their names.

    Raises `ImportError` if another package with such a name was imported before.
    """
    sys.path.insert(0, str(_ROOT))
    try:
        for name in _PACKAGES:
            found = import_module(name).__file__
            if found is None or Path(found).parents[1] != _ROOT:
                raise ImportError(
                    f"polyturn's package {name!r} cannot be imported, because another one with this name was imported "
                    f"before, from {found}: import polyturn first, or rename yours"
                )
    finally:
        sys.path.remove(str(_ROOT))


_import_ours()

from agents.evaluation import Evaluation  # noqa: E402
from agents.record import Record, read_record  # noqa: E402
from envs.core import TaskSet  # noqa: E402
from polyturn.interface import Run, evaluate, load_run, make_agent, make_tasks, train  # noqa: E402

try:
    __version__ = version("polyturn")
except PackageNotFoundError:  # a checkout that is not installed
    __version__ = "0"
__all__ = [
    "Evaluation", "Record", "Run", "TaskSet",
    "evaluate", "load_run", "make_agent", "make_tasks", "read_record", "train",
]  # fmt: skip
