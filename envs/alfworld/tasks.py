"""The tasks of ALFWorld: the official games if they were downloaded, otherwise generated games.

    tasks = ALFWorldTasks()                      # "auto": `describe()` says which of the two it chose
    manifest = tasks.manifest("valid_seen")      # 140 ids, sorted, with a hash of the files' contents
    env = tasks.make(); env.reset(options={"task": tasks.task("valid_seen", manifest.ids[0])})

Official games are in `<data>/alfworld/json_2.1.1/<split>/<task>/<trial>/game.tw-pddl`, filtered by the rule of
`alfworld`'s own loader (`AlfredTWEnv.collect_game_files`). Embedded games come from `generate.py` and are written once
as ordinary game files below `envs.core.cache_root()`. A task's id is `<task>/<trial>`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from envs.alfworld.env import ENGINES, ALFWorldEnv
from envs.alfworld.expert import Expert
from envs.alfworld.game import DOWNLOAD, EMBEDDED, GAME_FILE, GAMES, TASK_TYPES, GameFileError
from envs.alfworld.game import GamesNotFoundError as GamesNotFoundError
from envs.alfworld.generate import GENERATOR_VERSION, HELD_OUT_FLOOR_PLANS, TRAIN_FLOOR_PLANS, generate_game
from envs.alfworld.reference import check_installed
from envs.checksums import verify_if_noted
from envs.core import Manifest, Task, UnknownNameError, cache_root, counted, data_root, hash_tasks
from envs.files import made_once, remove_whole, write_whole

ENV_ID = "polyturn/ALFWorld-v0"
SOURCES = ("auto", "official", "embedded")
# The number of games in the published splits (https://github.com/alfworld/alfworld, `data/README.md`). `valid_train` is
# hardly documented and comes in the same archive; none of its games is in another split.
OFFICIAL_COUNTS = {"train": 3553, "valid_train": 200, "valid_seen": 140, "valid_unseen": 134}
# Hashes of complete splits, as `read_manifest` computes them.
KNOWN_CONTENT = {
    "train": "15b24a319faf2d0a354f2ed89a708b81ed249e3e995048a8e3f820a1bd170dfd",
    "valid_train": "db9c9efecc3b4417da94e86b971d4fc005b7c01ec5e895ff9c748799c08319ce",
    "valid_seen": "4e8a92f4ba13158d6547da89f1e74373177669fd75d7d910cfcf7153c2faf7a9",
}
_HASH = "content.sha256"  # of embedded games: the hash of their manifest when they were made
_RACY_NS = 2_000_000_000  # a file changed this recently may change again with the same time of change
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Split:
    folder: Path
    manifest: Manifest
    ids: frozenset[str]


@dataclass(frozen=True)
class _Recipe:
    """How the games of an embedded split are made. The splits use different seeds."""

    first_seed: int
    floor_plans: tuple[int, ...]


_EMBEDDED = {
    "train": _Recipe(0, TRAIN_FLOOR_PLANS),
    "valid_seen": _Recipe(1_000_000, TRAIN_FLOOR_PLANS),
    "valid_unseen": _Recipe(2_000_000, HELD_OUT_FLOOR_PLANS),
}


class ALFWorldTasks:
    """ALFWorld as a `TaskSet`. Each split's files are checked once."""

    def __init__(
        self,
        games: str = "auto",
        data: str | os.PathLike[str] | None = None,
        max_turns: int = 50,
        engine: str = "native",
        embedded_train: int = 2000,
        embedded_valid_seen: int = 140,
        embedded_valid_unseen: int = 134,
    ) -> None:
        """Only looks for official games; nothing is made or read yet.

        `games` is one of `SOURCES`. "auto" uses official games if there are any, of any split, otherwise embedded ones.
        So a split never switches between the two because another split is missing. `data` is the folder above
        `alfworld/json_2.1.1` (None: `envs.core.data_root()`), `engine` one of `ENGINES`; the last three are the sizes
        of the embedded splits. Raises `UnknownNameError`, `ValueError`, `GamesNotFoundError` if the folder `data`
        does not exist, and `ModuleNotFoundError` without the packages of the engine.
        """
        sizes = {"train": embedded_train, "valid_seen": embedded_valid_seen, "valid_unseen": embedded_valid_unseen}
        if games not in SOURCES:
            raise UnknownNameError("source of games", games, SOURCES)
        if engine not in ENGINES:
            raise UnknownNameError("engine", engine, ENGINES)
        if engine == "textworld":
            check_installed()
        if max_turns < 1 or min(sizes.values()) < 1:
            raise ValueError(f"max_turns and the sizes of splits must be at least 1, got {max_turns} and {sizes}")
        if data is not None and not Path(data).expanduser().is_dir():
            raise GamesNotFoundError(f"no folder {data}: env.data must be the folder above alfworld/json_2.1.1")
        self._asked, self._engine, self._max_turns, self._sizes = games, engine, max_turns, sizes
        self._folder = official_folder(data_root() if data is None else Path(data).expanduser())
        self._official = games == "official" or (games == "auto" and _has_games(self._folder))
        self._loaded: dict[str, _Split] = {}

    @property
    def env_id(self) -> str:
        return ENV_ID

    @property
    def splits(self) -> Sequence[str]:
        return tuple(OFFICIAL_COUNTS if self._official else _EMBEDDED)

    @property
    def eval_splits(self) -> Sequence[str]:
        return ("valid_seen", "valid_unseen")

    @property
    def max_turns(self) -> int:
        return self._max_turns

    def manifest(self, split: str) -> Manifest:
        """The tasks of a split. Embedded games are made if they do not exist yet.

        Raises `UnknownNameError`, and `GamesNotFoundError` if an official split has not been downloaded.
        """
        return self._load(split).manifest

    def task(self, split: str, task_id: str) -> Task:
        found = self._load(split)
        if task_id not in found.ids:
            raise UnknownNameError(f"task of {ENV_ID} {split}", task_id, found.ids)
        payload = {"path": str(found.folder / task_id / GAME_FILE), "type": _type_of(task_id)}
        return Task(id=task_id, env=ENV_ID, split=split, payload=payload)

    def make(self) -> ALFWorldEnv:
        """A new environment. Each game is parsed once per process, for all environments."""
        return ALFWorldEnv(max_turns=self._max_turns, engine=self._engine)

    def expert(self) -> Expert:
        return Expert()

    def describe(self) -> str:
        if self._official:
            games, hint = f"the official games in {self._folder}", "env.games=embedded plays generated ones"
        else:
            games = f"games generated from floor plans, version {GENERATOR_VERSION}"
            hint = f"no official ones in {self._folder}; `{DOWNLOAD}` fetches them"
        chosen = f" ({hint})" if self._asked == "auto" else ""
        return f"{ENV_ID}: {games}{chosen}; {self._engine} engine, at most {counted(self._max_turns, 'turn')}"

    def facts(self) -> dict[str, Any]:
        """See `envs.facts.environment_facts`."""
        made = {} if self._official else {"generator": GENERATOR_VERSION, "sizes": self._sizes}
        return {"games": "official" if self._official else "embedded", "engine": self._engine, **made}

    def _load(self, split: str) -> _Split:
        if split not in self.splits:
            raise UnknownNameError(f"split of {ENV_ID}", split, self.splits, "" if self._official else self.describe())
        if split not in self._loaded:
            if self._official:
                folder = self._folder / split
                manifest = read_manifest(folder, split, OFFICIAL_COUNTS[split])
                if is_unknown(manifest):
                    _log.warning("the games in %s differ from the known copy: another release, or damaged", folder)
            else:
                folder = _embed(split, self._sizes[split])
                manifest = read_manifest(folder, split)
            self._loaded[split] = _Split(folder, manifest, frozenset(manifest.ids))
        return self._loaded[split]


# -- files ------------------------------------------------------------------------------------------------------------
def official_folder(data: Path) -> Path:
    """The folder of the official games below a data folder; its subfolders are the splits."""
    return data / "alfworld" / "json_2.1.1"


def _has_games(folder: Path) -> bool:
    """Whether there is an official game of any split."""
    return any(any((folder / split).glob(GAMES)) for split in OFFICIAL_COUNTS)


def _type_of(task_id: str) -> str:
    """The type of task, with which the id begins: "look_at_obj_in_light-Box-None-DeskLamp-205/trial_…"."""
    return task_id.partition("-")[0]


def _find_games(folder: Path) -> dict[str, os.stat_result]:
    """The game files of a split by task id, in sorted order. No folder, no games."""
    found = {path.parent.relative_to(folder).as_posix(): path.stat() for path in folder.glob(GAMES)}
    return dict(sorted(found.items()))


def _counts(folder: Path, task_id: str) -> bool:
    """The rule of `alfworld`'s loader: no movable receptacles, no slices, one of the six task types, solvable."""
    if "movable" in task_id or "Sliced" in task_id or _type_of(task_id) not in TASK_TYPES:
        return False
    path = folder / task_id / GAME_FILE
    try:
        return bool(json.loads(path.read_bytes()).get("solvable"))
    except (ValueError, AttributeError) as error:
        raise GameFileError(path, f"not a game: expected a JSON object ({error})") from error


def read_manifest(folder: Path, split: str, official_count: int | None = None) -> Manifest:
    """The games in a folder of `<task>/<trial>`, hashed.

    The result is cached in `envs.core.cache_root()` and valid while every file keeps its times and size. Raises
    `GamesNotFoundError` if there is no game, `GameFileError` for a file that is not a game, and `DamagedError` for one
    that differs from its download.
    """
    files = _find_games(folder)
    stamps = [(task_id, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size) for task_id, stat in files.items()]
    fingerprint = hashlib.sha256(repr((ENV_ID, stamps)).encode()).hexdigest()
    name = hashlib.sha256(os.fsencode(folder.absolute())).hexdigest()[:16]
    cache = cache_root() / "alfworld" / f"manifest-{name}.json"
    kept = _read_cache(cache)
    if kept.get("fingerprint") != fingerprint:
        verify_if_noted(folder.parent, f"{folder.name}/")
        ids = [task_id for task_id in files if _counts(folder, task_id)]
        kept = {"fingerprint": fingerprint, "ids": ids, "content_hash": _hash_games(folder, ids)}
        if all(max(mtime, ctime) < time.time_ns() - _RACY_NS for _, mtime, ctime, _ in stamps):
            _write_cache(cache, kept)
    if not kept["ids"]:
        raise GamesNotFoundError(
            f"no games of ALFWorld's split {split!r} in {folder}; `{DOWNLOAD}` fetches the official games, and "
            "env.games=embedded uses generated ones"
        )
    return Manifest(ENV_ID, split, tuple(kept["ids"]), kept["content_hash"], official_count)


def _hash_games(folder: Path, ids: Iterable[str]) -> str:
    return hash_tasks((task_id, (folder / task_id / GAME_FILE).read_bytes()) for task_id in ids)


def is_unknown(manifest: Manifest) -> bool:
    """Whether an official split is complete, but its content differs from the known copy."""
    known = KNOWN_CONTENT.get(manifest.split, manifest.content_hash)
    return len(manifest.ids) == manifest.official_count and manifest.content_hash != known


def _read_cache(path: Path) -> dict[str, Any]:
    """The first line is the hash of the rest, which is JSON."""
    try:
        head, _, body = path.read_bytes().partition(b"\n")
        if head.decode() != hashlib.sha256(body).hexdigest():
            raise ValueError("its hash differs")
        kept: dict[str, Any] = json.loads(body)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        _log.warning("%s is damaged (%s); the games will be hashed again", path, error)
        return {}
    return kept


def _write_cache(path: Path, kept: dict[str, Any]) -> None:
    try:
        body = json.dumps(kept)
        write_whole(path, f"{hashlib.sha256(body.encode()).hexdigest()}\n{body}")
    except OSError as error:
        _log.warning("cannot write %s (%s); the games will be hashed again next time", path, error)


# -- embedded games ---------------------------------------------------------------------------------------------------
def _embed(split: str, size: int) -> Path:
    """The folder of an embedded split. It is made if it is missing or damaged."""
    folder = cache_root() / "alfworld" / f"{EMBEDDED}{GENERATOR_VERSION}" / f"{split}-{size}"
    if folder.is_dir():
        damage = _damage(folder, split)
        if not damage:
            return folder
        _log.warning("%s; the games will be made again", damage)
        remove_whole(folder)
    recipe = _EMBEDDED[split]
    seeds = range(recipe.first_seed, recipe.first_seed + size)
    console = Console(stderr=True, markup=False)
    console.print(f"making {size} games of ALFWorld's split {split} in {folder}, once", highlight=False, soft_wrap=True)
    with made_once(folder) as games:
        for seed in track(seeds, "", console=console, transient=True, disable=not console.is_terminal):
            game = generate_game(seed, floor_plans=recipe.floor_plans)
            path = games / game.id / GAME_FILE
            path.parent.mkdir(parents=True)
            path.write_text(json.dumps(game.content), encoding="utf-8")
        (games / _HASH).write_text(_hash_games(games, _find_games(games)), encoding="utf-8")
    return folder


def _damage(folder: Path, split: str) -> str:
    """The problem with embedded games, or "" if their hash is the one written when they were made."""
    try:
        same = read_manifest(folder, split).content_hash == (folder / _HASH).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:  # no game, or no games any more, or no hash
        return f"{folder} is damaged: {error}"
    return "" if same else f"{folder} is damaged: its games have changed since they were made"
