"""Boxoban's levels: 10x10 rooms with four boxes, as published at https://github.com/google-deepmind/boxoban-levels."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from envs.core import NoDataError, data_root

FOLDER = "boxoban"
# Splits by folder, with the published number of levels; the first that is there is the one to train on.
SETS = {
    "unfiltered_train": ("unfiltered/train", 900_000),
    "medium_train": ("medium/train", 450_000),
    "medium_valid": ("medium/valid", 50_000),
    "unfiltered_valid": ("unfiltered/valid", 100_000),
    "unfiltered_test": ("unfiltered/test", 1_000),
    "hard": ("hard", 3_332),
}
DOWNLOAD = "python -m scripts.download boxoban"
_SYMBOLS = str.maketrans(" $@.*+", "_XPO√S")  # those of `envs.sokoban.board` for the usual ones


class Boxoban:
    """The levels in a folder. A level's id is its split, its file and its place in it, as `hard/000-0042`."""

    def __init__(self, data: Path | None = None) -> None:
        """`data` is the folder above `boxoban`. Raises `NoDataError` where there is no level."""
        folder = (data or data_root()) / FOLDER
        self.files: dict[str, dict[str, Path]] = {}  # by split and name, those that are there
        for split, (place, _) in SETS.items():
            if paths := sorted((folder / place).glob("*.txt")):
                self.files[split] = {path.stem: path for path in paths}
        if not self.files:
            raise NoDataError(f"no levels of Boxoban in {folder}: {DOWNLOAD} fetches them, or set env.levels=generated")

    def ids(self, split: str) -> list[str]:
        """The ids of a split, sorted."""
        files = self.files[split].items()
        return sorted(f"{split}/{name}-{place:04}" for name, path in files for place in range(len(read_levels(path))))

    def room(self, split: str, level_id: str) -> str:
        """A level in the symbols of `envs.sokoban.board`. Raises `KeyError` for an id that does not exist."""
        name, _, place = level_id.removeprefix(f"{split}/").rpartition("-")
        levels = read_levels(self.files[split][name])
        if not place.isdecimal() or level_id != f"{split}/{name}-{int(place):04}" or int(place) >= len(levels):
            raise KeyError(level_id)
        return to_room(levels[int(place)])


@lru_cache(maxsize=64)
def read_levels(path: Path) -> tuple[str, ...]:
    """The levels of a file, as published. Raises `NoDataError` where it has gone."""
    try:
        return split_levels(path.read_text(encoding="ascii"))
    except OSError as error:
        raise NoDataError(f"{path} cannot be read ({error}): {DOWNLOAD} fetches it") from error


def split_levels(text: str) -> tuple[str, ...]:
    """The levels of a file's text: each follows a line that begins with a semicolon."""
    return tuple(level.partition("\n")[2].strip("\n") for level in text.split(";")[1:])


def to_room(level: str) -> str:
    """A level in the usual symbols (`#@$.*+` and blanks) in those of `envs.sokoban.board`."""
    return level.translate(_SYMBOLS)
