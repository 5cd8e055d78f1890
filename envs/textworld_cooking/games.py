"""Makes the games: TextWorld's generator, and Inform 7 as its package brings it. A game is compiled once and cached."""

from __future__ import annotations

import contextlib
import io
import json
import warnings
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from envs.core import cache_root
from envs.files import made_once

GAME, ABOUT = "game.z8", "game.json"
INSTALL = "env=textworld_cooking needs the package textworld: pip install 'polyturn[alfworld]'"


def textworld_version() -> str:
    """The version of TextWorld, of which games depend. Raises `ModuleNotFoundError`, which says what to install."""
    try:
        return version("textworld")
    except PackageNotFoundError as error:
        raise ModuleNotFoundError(INSTALL) from error


def compiled(payload: Mapping[str, Any]) -> Path:
    """The file of a game, which is compiled if it is not in the cache: 4 seconds of one core.

    The payload has `skills`, the settings of `tw-make tw-cooking`, and `seed`, of the recipe and of everything else.
    """
    skills = payload["skills"]
    name = "-".join([f"{key}{int(value)}" for key, value in skills.items() if key != "split"])
    name += f"-{skills['split'] or 'all'}-{payload['seed']}"
    folder = cache_root() / "textworld_cooking" / textworld_version() / name
    if not (folder / GAME).is_file():
        with made_once(folder, GAME) as whole:
            _compile(dict(skills), payload["seed"], whole / GAME)
    return folder / GAME


def walkthrough(payload: Mapping[str, Any]) -> list[str]:
    """The generator's own solution."""
    about = json.loads(compiled(payload).with_name(ABOUT).read_text(encoding="utf-8"))
    return list(about["metadata"]["walkthrough"])


def _compile(skills: dict[str, Any], seed: int, file: Path) -> None:
    import textworld
    from textworld.challenges.tw_cooking.cooking import make
    from textworld.generator import compile_game

    options = textworld.GameOptions()
    options.seeds = seed
    options.path = str(file)
    options.file_ext = file.suffix
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compile_game(make(skills | {"recipe_seed": seed}, options), options)
