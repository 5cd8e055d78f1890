"""The kinds of recordings of environments, and how they are recognised."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from tests.recordings import Recorder

# Of a recording, the data folder (`envs.core.data_root`), and where results are compared.
Replay: TypeAlias = Callable[[dict[str, Any], Path, Recorder], None]


@dataclass(frozen=True)
class Kind:
    """A file of an environment's recordings: its name, and what recordings of other names are recognised by."""

    name: str  # folder and file without its suffix, as "sokoban/rooms"
    replay: Replay
    source: str  # a part of the text data["source"]
    fields: tuple[str, ...]  # that the data has


def kind_of(path: Path, data: Any, kinds: Iterable[Kind]) -> str:
    """The kind that the path's last two parts name, otherwise the first that fits the data, otherwise those parts."""
    name = f"{path.parent.name}/{path.stem}"
    known = {kind.name: kind for kind in kinds}
    if name not in known and isinstance(data, Mapping):
        for kind in known.values():
            if kind.source in str(data.get("source")) and set(kind.fields) <= set(data):
                return kind.name
    return name
