"""The gold path of the engine, which knows everything and need not be the shortest way."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from envs.gold_path import GoldPath
from envs.jvm import Java, lent
from envs.scienceworld.env import load

MOST_PATHS = 4_096  # that are kept


def expert(java: Java) -> GoldPath:
    """An expert whose paths are computed by an engine of its own."""
    return GoldPath(lambda game: gold_path(java, *(game[key] for key in _KEYS)), at_the_end="wait1")


_KEYS = ("type", "variation", "simplification")


@lru_cache(maxsize=MOST_PATHS)
def gold_path(java: Java, task: str, variation: int, simplification: str) -> tuple[str, ...]:
    """The engine's own solution. Raises `EngineError`."""
    game: Mapping[str, Any] = dict(zip(_KEYS, (task, variation, simplification), strict=True))
    with lent(java) as jvm:
        load(jvm, game, gold=True)
        return tuple(jvm.texts("getGoldActionSequence"))
