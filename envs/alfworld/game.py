"""Games of ALFWorld: official `game.tw-pddl` files as compact, immutable data.

    game = load_game("…/valid_seen/look_at_obj_in_light-Box-…/trial_…/game.tw-pddl")
    game.task        # "look at box under the desklamp."
    games = load_games(paths)       # thousands; they are cached in one file per folder, see `load_games`

A game file is JSON with a PDDL domain, a grammar that turns facts into text, a PDDL problem and a walkthrough. All
official files share one domain and one grammar (apart from the task sentence), and so do files made with the `alfworld`
package. The rules are therefore code (`engine.py`), and a game is its facts. Anything that this code does not support
(a different domain, a different kind of goal) is detected here and described in `Game.foreign`; TextWorld plays such
games.

Objects and receptacles are numbered in the order of their PDDL names, which is the order of every list that a player
sees. Sets of them are bit masks over these numbers. Names that a player sees ("drawer 3") follow `alfworld`'s
`Demangler` (https://github.com/alfworld/alfworld, MIT licence).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

from envs.core import MissingDataError, NoDataError, cache_root
from envs.files import write_whole

GAME_FILE = "game.tw-pddl"
GAMES = f"*/*/{GAME_FILE}"  # below the folder of a split
EMBEDDED = "embedded-"  # the name of the folder of generated splits begins with it
DOWNLOAD = "python -m scripts.download alfworld"
_KEYS = {"pddl_domain": str, "grammar": str, "pddl_problem": str, "solvable": bool}
_log = logging.getLogger(__name__)


class GameFileError(ValueError):
    """A file that is not a game. The message names the file and the problem."""

    def __init__(self, path: str | Path, problem: str) -> None:
        super().__init__(f"{path}: {problem}")


class GamesNotFoundError(NoDataError):
    """There are no games where they should be. The message names the folder and how to get them."""


class _ForeignError(Exception):
    """A game that the native engine does not support; the message says why."""


@dataclass(frozen=True, slots=True, eq=False)
class Game:
    """One game. A "mask" is an int whose bit i stands for object i (or receptacle i, where noted).

    A place is where the agent can stand. Each receptacle is reached from one place; a place may reach several.

    Example: `Game(path="…/game.tw-pddl", task="put a clean mug in shelf.", type="pick_clean_then_place_in_recep",
    goal=("mug", "shelf"), objects=("mug 2", "mug 1"), receptacles=("shelf 1", "sinkbasin 1"), places=((0,), (1,), ()),
    start=2, contents=(0b01, 0b10), accepts=(0b11, 0b11), …)`.
    """

    path: str
    task: str  # the text after "Your task is to: "
    type: str = ""  # one of `TASK_TYPES`; "" if foreign
    foreign: str = ""  # why the native engine cannot play it; "" if it can, and only then the fields below are set
    goal: tuple[str, str] = ("", "")  # types of object, and of receptacle or lamp: ("mug", "shelf")
    objects: tuple[str, ...] = ()  # names that players see: "mug 2"
    receptacles: tuple[str, ...] = ()
    places: tuple[tuple[int, ...], ...] = ()  # the receptacles of each place; the start may have none
    start: int = 0  # where the agent begins, an index into places
    contents: tuple[int, ...] = ()  # per receptacle: its objects; an object may be in two
    accepts: tuple[int, ...] = ()  # per receptacle: objects that may be put there
    lying: tuple[int, ...] = ()  # per place: what PDDL says is there (`objectAtLocation`), visible or not
    inside: tuple[tuple[int, int], ...] = ()  # each object that can contain others, and the mask of what is in it
    pickupable: int = 0
    cleanable: int = 0
    heatable: int = 0
    coolable: int = 0
    toggleable: int = 0
    sliceable: int = 0
    knives: int = 0
    goal_objects: int = 0
    goal_lamps: int = 0
    clean: int = 0  # as are these five at the start
    hot: int = 0
    cool: int = 0
    sliced: int = 0
    toggled: int = 0
    openable: int = 0  # masks of receptacles from here on
    opened: int = 0
    cleaners: int = 0
    heaters: int = 0
    coolers: int = 0
    goal_receptacles: int = 0


# -- what the native engine supports ----------------------------------------------------------------------------------
# SHA-256 of the domain without comments and layout -> the types of receptacle where things are cleaned: official
# files, and files made with the alfworld package 0.4.
_DOMAINS = {
    "e733dcfa5154f9d53cbe57f3a9538fac6258eb371abd658b6a15de4c28faa85f": ("sinktype", "sinkbasintype"),
    "915e118f4f32b4d826bf53c99e860dd85831afffb1a31ad333f063ce005b7122": ("sinkbasintype",),
}
# SHA-256 of the grammar without task sentence and layout, from the same two sources; both read the same when played.
_GRAMMARS = frozenset(
    {
        "fc0c208e5d25d2ac8ad057e51ce56d58dbfdc60f29e4c2abb79879e24cff6dff",
        "a504bbac45fa09a4ab7a281979b66518ac260a472644c535975422a9ef2b0ff0",
    }
)
# A sentence that the grammar prints unchanged: none of its own signs (#, {, [, …) and no escapes.
_TASK = re.compile(r'"rhs": "Your task is to: ([^"]*)"')
_PLAIN_TASK = re.compile(r"[\w ,.'()/&%*=!?:-]*")

_TRAITS = ("pickupable", "cleanable", "heatable", "coolable", "toggleable", "sliceable", "openable", "opened")
_STATES = ("clean", "hot", "cool", "sliced", "toggled")
# The predicates of `:init` and the types of their arguments.
_SIGNATURES = {
    "atlocation": ("agent", "location"),
    "receptacleatlocation": ("receptacle", "location"),
    "objectatlocation": ("object", "location"),
    "inreceptacle": ("object", "receptacle"),
    "inreceptacleobject": ("object", "object"),
    "receptacletype": ("receptacle", "rtype"),
    "objecttype": ("object", "otype"),
    "cancontain": ("rtype", "otype"),
    **dict.fromkeys(_TRAITS + tuple(f"is{state}" for state in _STATES), ("object",)),
    **dict.fromkeys(("openable", "opened"), ("receptacle",)),
    **dict.fromkeys(("moveable", "ison", "isreceptacleobject"), ("object",)),
}
_PREAMBLE = re.compile(r"\(define\s+\(problem\s[^()]*\)\s*\(:domain\s+alfred\s*\)\s*\(:objects\s([^()]*)\)\s*")

_PLACED = "(:goal (and (exists (?r - receptacle) (exists (?o - object) (and %s )))))"
# Task type -> its goal.
_GOALS = {
    "pick_and_place_simple": _PLACED
    % "(inreceptacle ?o ?r) (objecttype ?o object-type) (receptacletype ?r target-type)",
    "look_at_obj_in_light": (
        "(:goal (and (exists (?ot - object ?r - receptacle ?a - agent ?l - location) (and (objecttype ?ot target-type)"
        " (toggleable ?ot) (istoggled ?ot) (receptacleatlocation ?r ?l) (atlocation ?a ?l) (inreceptacle ?ot ?r)))"
        " (exists (?o - object ?a - agent) (and (objecttype ?o object-type) (holds ?a ?o)))))"
    ),
    **{
        f"pick_{verb}_then_place_in_recep": _PLACED % f"({verb}able ?o) (objecttype ?o object-type)"
        f" (receptacletype ?r target-type) (is{state} ?o) (inreceptacle ?o ?r)"
        for verb, state in (("clean", "clean"), ("heat", "hot"), ("cool", "cool"))
    },
    "pick_two_obj_and_place": (
        "(:goal (and (exists (?r - receptacle) (exists (?o1 - object) (and (objecttype ?o1 object-type)"
        " (receptacletype ?r target-type) (inreceptacle ?o1 ?r) (exists (?o2 - object) (and (not (= ?o1 ?o2))"
        " (objecttype ?o2 object-type) (receptacletype ?r target-type) (inreceptacle ?o2 ?r))))))))"
    ),
}
TASK_TYPES = tuple(_GOALS)
# What the goal's object must allow, in addition to being of its type.
_GOAL_TRAITS = {f"pick_{verb}_then_place_in_recep": f"{verb}able" for verb in ("clean", "heat", "cool")}


def _pddl(text: str) -> str:
    """PDDL in one line: lower-case tokens between single blanks, without comments."""
    return " ".join(re.findall(r"[()]|[^\s()]+", re.sub(r";[^\n]*", "", text).lower()))


def _goal_pattern(goal: str) -> re.Pattern[str]:
    pattern = re.escape(_pddl(goal))
    for group in ("object", "target"):
        placeholder = re.escape(f"{group}-type")
        pattern = pattern.replace(placeholder, f"(?P<{group}>[a-z0-9]+)type", 1)
        pattern = pattern.replace(placeholder, f"(?P={group})type")
    return re.compile(pattern)


_GOAL_PATTERNS = {name: _goal_pattern(goal) for name, goal in _GOALS.items()}


@lru_cache(maxsize=8)
def _cleaner_types(domain: str) -> tuple[str, ...]:
    digest = hashlib.sha256(_pddl(domain).encode()).hexdigest()
    if digest not in _DOMAINS:
        raise _ForeignError("its pddl_domain is neither that of the official games nor that of the alfworld package")
    return _DOMAINS[digest]


@lru_cache(maxsize=8)
def _check_grammar(grammar: str) -> None:
    """Raise `_ForeignError` for an unknown grammar (without its task sentence)."""
    tokens = re.findall(r'"""|"[^"]*"|[^\s"]+', grammar)  # blanks count only inside strings
    if hashlib.sha256("\0".join(tokens).encode()).hexdigest() not in _GRAMMARS:
        raise _ForeignError("its grammar is neither that of the official games nor that of the alfworld package")


# -- from PDDL to masks -----------------------------------------------------------------------------------------------
@dataclass
class _Problem:
    objects: list[str]  # PDDL names in the facts, sorted
    receptacles: list[str]
    facts: dict[str, list[tuple[str, ...]]]  # predicate -> arguments of each fact
    goal: str  # in one line


def _read_problem(problem: str) -> _Problem:
    text = (re.sub(r";[^\n]*", "", problem) if ";" in problem else problem).lower()
    start, end = text.find("(:init"), text.find("(:goal")
    preamble = _PREAMBLE.fullmatch(text[:start].strip())
    goal = _pddl(text[end:])
    if preamble is None or not 0 < start < end or not goal.endswith(" )"):
        raise _ForeignError("its pddl_problem has other parts than :domain alfred, :objects, :init and :goal")
    words = preamble[1].split()
    if len(words) % 3 or set(words[1::3]) != {"-"} or words[2::3].count("agent") != 1:
        raise _ForeignError("its :objects are not written as `name - type`, or there is not exactly one agent")
    kinds = dict(zip(words[::3], words[2::3], strict=True))
    parts = [tuple(part.split()) for part in text[start + len("(:init") : end].split(")")]
    if parts[-2:] != [(), ()] or not all(parts[:-2]):
        raise _ForeignError("its :init holds more than plain facts")
    facts: defaultdict[str, list[tuple[str, ...]]] = defaultdict(list)
    for name, *arguments in dict.fromkeys(parts[:-2]):
        facts[name.removeprefix("(")].append(tuple(arguments))
    used: set[str] = set()
    for name, rows in facts.items():
        signature = _SIGNATURES.get(name)
        columns = [set(map(kinds.get, column)) for column in zip(*rows, strict=False)]
        if not signature or columns != [{kind} for kind in signature] or set(map(len, rows)) != {len(signature)}:
            raise _ForeignError(f"its :init holds unusual facts of {name}")
        used.update(*rows)
    objects, receptacles = (sorted(name for name in used if kinds[name] == k) for k in ("object", "receptacle"))
    return _Problem(objects, receptacles, facts, goal.removesuffix(" )"))


def _read_goal(goal: str) -> tuple[str, str, str]:
    """Task type, PDDL types of object and target."""
    for name, pattern in _GOAL_PATTERNS.items():
        if match := pattern.fullmatch(goal):
            return name, match["object"], match["target"]
    raise _ForeignError(f"its goal is none of {', '.join(TASK_TYPES)}")


def display_names(ids: Iterable[str]) -> dict[str, str]:
    """The names that players read, by PDDL name: "mug_bar__plus_1" -> "mug 2"; the order of numbers is reversed."""
    names = {}
    left: Counter[str] = Counter()
    for name in sorted(ids, reverse=True):
        kind = name.partition("_bar_")[0] + ("basin" if "basin" in name else "")
        left[kind] += 1
        names[name] = sys.intern(f"{kind} {left[kind]}")
    return names


def _masks(pairs: Iterable[tuple[str, ...]], bits: Mapping[str, int]) -> defaultdict[str, int]:
    """For each second argument the mask of its first arguments."""
    masks: defaultdict[str, int] = defaultdict(int)
    for first, second in pairs:
        masks[second] |= bits.get(first, 0)
    return masks


def _read_facts(text: str, cleaner_types: tuple[str, ...]) -> dict[str, Any]:
    """The fields of `Game` from `type` on, except `foreign`."""
    problem = _read_problem(text)
    objects, receptacles, facts = problem.objects, problem.receptacles, problem.facts
    task_type, goal_type, target_type = _read_goal(problem.goal)
    at = {row[0]: row[1] for row in facts["receptacleatlocation"]}
    strange = [name for name in objects + receptacles if not re.match(r"[a-z0-9]+_bar_", name)]
    if strange:
        raise _ForeignError(f"{strange[0]} is an unusual name")
    if sorted(row[0] for row in facts["receptacleatlocation"]) != receptacles or len(facts["atlocation"]) != 1:
        raise _ForeignError("a receptacle or the agent is not at exactly one location")

    start = facts["atlocation"][0][1]
    locations = list(dict.fromkeys([*(at[r] for r in receptacles), start]))
    number = {name: i for names in (objects, receptacles) for i, name in enumerate(names)}
    bits = {name: 1 << i for name, i in number.items()}
    looking = task_type == "look_at_obj_in_light"
    trait = _GOAL_TRAITS.get(task_type)
    flags = {name: sum(bits[row[0]] for row in rows) for name, rows in facts.items() if len(_SIGNATURES[name]) == 1}
    of_type = _masks(facts["objecttype"], bits)  # masks of objects
    of_rtype = _masks(facts["receptacletype"], bits)  # masks of receptacles; both have a "sinktype"
    accepted = _masks(((content, kind) for kind, content in facts["cancontain"]), of_type)  # by type of receptacle
    accepts = _masks(((kind, receptacle) for receptacle, kind in facts["receptacletype"]), accepted)
    contents = _masks(facts["inreceptacle"], bits)
    lying = _masks(facts["objectatlocation"], bits)
    inside = _masks(facts["inreceptacleobject"], bits)
    names = display_names(objects + receptacles)
    return {
        "type": task_type,
        "goal": (sys.intern(goal_type), sys.intern(target_type)),
        "objects": tuple(names[o] for o in objects),
        "receptacles": tuple(names[r] for r in receptacles),
        "places": tuple(tuple(number[r] for r in receptacles if at[r] == place) for place in locations),
        "start": locations.index(start),
        "contents": tuple(contents[r] for r in receptacles),
        "accepts": tuple(accepts[r] for r in receptacles),
        "lying": tuple(lying[place] for place in locations),
        "inside": tuple((number[o], inside[o] & ~bits[o]) for (o,) in sorted(facts["isreceptacleobject"])),
        "knives": of_type["knifetype"] | of_type["butterknifetype"],
        "goal_objects": of_type[f"{goal_type}type"] & (flags.get(trait, 0) if trait else -1),
        "goal_lamps": of_type[f"{target_type}type"] & flags.get("toggleable", 0) if looking else 0,
        "goal_receptacles": 0 if looking else of_rtype[f"{target_type}type"],
        "cleaners": sum(of_rtype[kind] for kind in cleaner_types),
        "heaters": of_rtype["microwavetype"],
        "coolers": of_rtype["fridgetype"],
        **{name: flags.get(name, 0) for name in _TRAITS},
        **{name: flags.get(f"is{name}", 0) for name in _STATES},
    }


def parse_game(path: str, content: Any) -> Game:
    """The game in a file's JSON content. Raises `GameFileError`; `path` only names the game."""
    if not isinstance(content, dict):
        raise GameFileError(path, f"not a game: expected a JSON object with {', '.join(_KEYS)}")
    for key, kind in _KEYS.items():
        if key not in content:
            raise GameFileError(path, f"not a game: the key {key!r} is missing (a game has {', '.join(_KEYS)})")
        if not isinstance(content[key], kind):
            raise GameFileError(path, f"not a game: {key!r} should be a {kind.__name__}")
    for key in ("pddl_domain", "pddl_problem"):
        if "(define" not in content[key]:
            raise GameFileError(path, f"not a game: {key!r} has no (define …)")
    grammar: str = content["grammar"]
    sentence = _TASK.search(grammar)
    task = sentence[1] if sentence else ""
    try:
        if sentence is None or not _PLAIN_TASK.fullmatch(task):
            raise _ForeignError("its grammar has no plain task sentence")
        if not content["solvable"]:
            raise _ForeignError("it is marked as unsolvable")
        _check_grammar(grammar[: sentence.start(1)] + grammar[sentence.end(1) :])
        return Game(path, task, **_read_facts(content["pddl_problem"], _cleaner_types(content["pddl_domain"])))
    except _ForeignError as reason:
        return Game(path, task, foreign=str(reason))


# -- files ------------------------------------------------------------------------------------------------------------
# Games read by this process: path -> (time of change in ns, size) of the file, and its game.
_Stamp = tuple[int, int]
_read_games: dict[str, tuple[_Stamp, Game]] = {}


def load_game(path: str | Path) -> Game:
    """The game of a file, or of a folder that holds a `game.tw-pddl`. Raises `GameFileError`.

    A file is read again only if its size or time of change differ.
    """
    name, stamp = _find(path)
    kept = _read_games.get(name)
    if kept is None or kept[0] != stamp:
        kept = _read_games[name] = (stamp, _read_file(name))
    return kept[1]


def _find(path: str | Path) -> tuple[str, _Stamp]:
    name = os.path.abspath(path)
    if os.path.isdir(name):
        name = os.path.join(name, GAME_FILE)
    try:
        status = os.stat(name)
    except (OSError, ValueError) as error:
        raise GameFileError(name, f"no game there ({error})") from error
    return name, (status.st_mtime_ns, status.st_size)


def _read_file(path: str) -> Game:
    try:
        content = json.loads(Path(path).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise GameFileError(path, f"cannot be read as JSON ({error})") from error
    return parse_game(path, content)


def missing_game(path: str | Path) -> MissingDataError:
    """The error for a game that does not exist: `GamesNotFoundError` if its split has no other game either."""
    file = Path(os.path.abspath(path))
    file = file if file.name == GAME_FILE else file / GAME_FILE
    split = file.parents[min(2, len(file.parents) - 1)]
    if split.parent.name.startswith(EMBEDDED):
        hint = "generated games are made again when a run starts or is resumed"
    else:
        hint = f"`{DOWNLOAD}` fetches the official games"
    if any(split.glob(GAMES)):
        return MissingDataError(f"the game {file} does not exist; {hint}")
    return GamesNotFoundError(f"the game {file} does not exist, and {split} has no other game either; {hint}")


def load_games(paths: Iterable[str | Path], cache_dir: str | Path | None = None) -> list[Game]:
    """The games of many files, in order. Raises `GameFileError` at the first file that is not a game.

    Games are cached in `cache_dir` (default: `alfworld` in `envs.core.cache_root()`), in one file for the folder that
    they share. An entry is valid while its game file keeps its size and time of change, and the whole cache while this
    module's source stays the same. A damaged cache is made again. If it cannot be written, it is not used. Both are
    logged.
    """
    found = [_find(path) for path in paths]
    missing = [(name, stamp) for name, stamp in found if _read_games.get(name, (None,))[0] != stamp]
    if not missing:
        return [_read_games[name][1] for name, _ in found]
    folder = os.path.commonpath([os.path.dirname(name) for name, _ in missing])
    directory = Path(cache_dir) if cache_dir is not None else cache_root() / "alfworld"
    cache = directory / f"games-{hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]}.json"
    rows = _read_cache(cache)
    shared: dict[Any, Any] = {}  # games of one room have equal parts, which are stored once
    fresh = False
    for name, stamp in missing:
        key = os.path.relpath(name, folder)
        row = rows.get(key)
        if row is None or row[0] != list(stamp):
            game = _read_file(name)
            rows[key] = [stamp, *(getattr(game, field) for field in _CACHED_FIELDS)]
            fresh = True
        else:
            values = map(_immutable, row[1:])
            game = Game(name, *(shared.setdefault(value, value) for value in values))
        _read_games[name] = (stamp, game)
    if fresh:
        _write_cache(cache, rows)
    return [_read_games[name][1] for name, _ in found]


_CACHED_FIELDS = [field.name for field in fields(Game)][1:]  # the path is known from where it was found
_Rows = dict[str, list[Any]]  # path below the common folder -> [stamp, *values of `_CACHED_FIELDS`]


def _immutable(value: Any) -> Any:
    """JSON lists, at most two levels deep, as tuples; strings interned."""
    if isinstance(value, str):
        return sys.intern(value)
    if not isinstance(value, list):
        return value
    if value and isinstance(value[0], str):
        return tuple(map(sys.intern, value))
    return tuple(map(tuple, value)) if value and isinstance(value[0], list) else tuple(value)


def _module_hash() -> str:
    return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()


def _read_cache(path: Path) -> _Rows:
    """The first line identifies the code that made the file, and the hash of the rest, which is JSON."""
    try:
        head, _, body = path.read_bytes().partition(b"\n")
        header = json.loads(head)
        if header["module"] != _module_hash():
            return {}
        if header["sha256"] != hashlib.sha256(body).hexdigest():
            raise ValueError("its hash differs")
        rows: _Rows = json.loads(body)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        _log.warning("the cache of games %s is damaged (%s); it will be made again", path, error)
        return {}
    return rows


def _write_cache(path: Path, rows: _Rows) -> None:
    body = json.dumps(rows, separators=(",", ":")).encode()
    head = json.dumps({"module": _module_hash(), "sha256": hashlib.sha256(body).hexdigest()}).encode()
    try:
        write_whole(path, head + b"\n" + body)
    except OSError as error:
        _log.warning("cannot write the cache of games %s (%s); they will be read again next time", path, error)
