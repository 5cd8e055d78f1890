"""Kinds of damage to the files of a folder, for tests."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path


def flip(path: Path) -> None:
    """Change one byte of a hundred, and at least one; size and name stay."""
    content, rng = bytearray(path.read_bytes()), random.Random(path.name)
    for place in rng.sample(range(len(content)), max(1, len(content) // 100)):
        content[place] ^= rng.randrange(1, 256)
    path.write_bytes(content)


def cut(path: Path) -> None:
    """Remove the second half."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def empty(path: Path) -> None:
    """Remove all content."""
    path.write_bytes(b"")


def delete(path: Path) -> None:
    """Delete the file."""
    path.unlink()


KINDS: tuple[Callable[[Path], None], ...] = (flip, cut, empty, delete)


def each_damage(folder: Path, spare: Path) -> Iterator[tuple[str, Path]]:
    """Damage each file that is in `folder` now, in each way; before that, all is put back. `spare` is for copies.

    Yields what was done, and to which file. Empty files and locks hold nothing that could be damaged.
    """
    shutil.copytree(folder, spare)
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
    for name in files:
        for kind in KINDS:
            shutil.rmtree(folder)
            shutil.copytree(spare, folder)
            kind(folder / name)
            yield f"{kind.__name__} {name}", folder / name
