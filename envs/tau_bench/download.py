"""Download databases, policies and tasks of tau-bench once, or copy them from a local mirror.

    install(data_root())          # fills data_root()/tau_bench

They are in the repository sierra-research/tau-bench (MIT), where tasks are Python files. These are read, not run.
"""

from __future__ import annotations

import ast
import json
import shutil
import tempfile
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from envs.fetch import DownloadError, NamedRemote, Remote, fetch
from envs.files import whole_file, write_whole
from envs.tau_bench.domains import DOMAINS, FOLDER, folder_of, open_domain, read_tasks

COMMIT = "59a200c"
REPOSITORY = NamedRemote(
    f"https://github.com/sierra-research/tau-bench/archive/{COMMIT}.zip", None, None, f"tau-bench-{COMMIT}.zip"
)


def install(
    data: Path, mirror: Path | None = None, remote: Remote = REPOSITORY, console: Console | None = None
) -> None:
    """Put the domains into `data/tau_bench`. Existing files stay, so it can be run again.

    `mirror` is a clone of the repository, or a folder that this has filled. Raises `DownloadError`, and `ValueError`
    for files that are not tasks.
    """
    console = console or Console(markup=False)
    say = partial(console.print, highlight=False, soft_wrap=True)
    (data / FOLDER.parts[0]).mkdir(parents=True, exist_ok=True)
    if mirror is not None:
        _install(_root(mirror), data)
    else:
        archive = fetch(remote, data / FOLDER.parts[0], console)
        with tempfile.TemporaryDirectory() as unpacked:
            zipfile.ZipFile(archive).extractall(unpacked)
            _install(_root(Path(unpacked)), data)
        archive.unlink()
    for name, domain in DOMAINS.items():
        if domain.official:
            folder = folder_of(name, str(data))
            tables = open_domain(name, str(folder))
            rows = ", ".join(f"{len(tables.table(table)):,} {table}" for table in tables.names)
            tasks = ", ".join(f"{len(read_tasks(folder, split))} {split}" for split in domain.official)
            say(f"{name}: {rows}; tasks: {tasks}; in {folder}")


def _root(mirror: Path) -> Path:
    """The folder of the domains."""
    places = [mirror, mirror / "tau_bench", *(path for path in sorted(mirror.glob("*")) if path.is_dir())]
    found = next((root for place in places if (root := place / "tau_bench" / "envs").is_dir()), None)
    if found is None:
        raise DownloadError(f"no tau_bench/envs in {mirror}, nor in its subfolders")
    return found


def _install(root: Path, data: Path) -> None:
    for name, domain in DOMAINS.items():
        if not domain.official:
            continue
        source, folder = root / name, folder_of(name, str(data))
        (folder / "data").mkdir(parents=True, exist_ok=True)
        files = [source / "wiki.md", *sorted((source / "data").glob("*.json"))]
        if len(files) == 1:
            raise DownloadError(f"there is no database in {source}/data")
        for file in files:
            _copy(file, folder / file.relative_to(source))
        for split in domain.official:
            target = folder / f"tasks_{split}.json"
            if (source / target.name).is_file():
                _copy(source / target.name, target)
            elif not target.is_file():
                write_whole(target, json.dumps(tasks_of(source / f"tasks_{split}.py")))


def _copy(source: Path, target: Path) -> None:
    if not source.is_file():
        raise DownloadError(f"{source} does not exist")
    if not target.is_file():
        with whole_file(target) as part:
            shutil.copyfile(source, part)


def tasks_of(module: Path) -> list[dict[str, Any]]:
    """The tasks in a module of calls `Task(…)` with literals. Raises `DownloadError` if there are none."""
    if not module.is_file():
        raise DownloadError(f"{module} does not exist")
    calls = (node for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))) if isinstance(node, ast.Call))
    tasks = [_literal(call) for call in calls if isinstance(call.func, ast.Name) and call.func.id == "Task"]
    if not tasks:
        raise DownloadError(f"{module} has no tasks")
    return tasks


def _literal(node: ast.AST) -> Any:
    """The value of a literal, in which calls stand for dicts of their keywords."""
    match node:
        case ast.Call(keywords=keywords):
            return {str(keyword.arg): _literal(keyword.value) for keyword in keywords}
        case ast.List(elts=items):
            return [_literal(item) for item in items]
        case ast.Dict(keys=keys, values=values):
            return {_literal(key): _literal(value) for key, value in zip(keys, values, strict=True) if key is not None}
    return ast.literal_eval(node)
