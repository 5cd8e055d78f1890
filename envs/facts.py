"""Everything that the numbers of a run depend on, as plain data: stored with them, compared, and hashed into keys.

Comparisons and keys include the whole configuration except listed keys (`without`). So a new setting counts until it is
explicitly excluded.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from envs.core import TaskSet

MOST_CHANGES = 5  # in an error message
Facts: TypeAlias = dict[str, Any]  # plain data, unchanged by a round trip through `json`


def environment_facts(task_set: TaskSet, configured: Mapping[str, Any] | None = None) -> Facts:
    """What episodes depend on besides their task: `configured`, and what the task set derived from it.

    A task set may have a method `facts()` that returns its choices as plain data, such as the official games for
    `auto`, or the version of generated data. `code` is the hash of its source, which changes more often than the
    version in its id.
    """
    own: Facts = getattr(task_set, "facts", dict)()
    code = code_hash(type(task_set))
    return {**(configured or {}), **own, "env_id": task_set.env_id, "turn_limit": task_set.max_turns, "code": code}


def code_hash(kind: type) -> str:
    """Hex sha256 over the modules of the package that a class is defined in; outside a package, over its module.

    If Python has no file for it, as for a class typed into an interpreter, over its name.
    """
    module = sys.modules.get(kind.__module__)
    file = getattr(module, "__file__", None)
    if file is None:
        return hashlib.sha256(f"{kind.__module__}.{kind.__qualname__}".encode()).hexdigest()
    path = Path(file)
    return hash_files(path.parent.glob("*.py") if getattr(module, "__package__", "") else [path])


def hash_files(paths: Iterable[Path]) -> str:
    """Hex sha256 over the names and contents of files; folders among `paths` are skipped."""
    digest = hashlib.sha256()
    for path in sorted(path for path in paths if path.is_file()):
        digest.update(f"{path.name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def without(facts: Mapping[str, Any], left_out: Iterable[str]) -> Facts:
    """A copy without the dotted keys `left_out`, which are values or whole branches; unknown keys are ignored."""
    names = set(left_out)
    return {
        key: without(value, _below(key, names)) if isinstance(value, Mapping) else value
        for key, value in facts.items()
        if key not in names
    }


def _below(key: str, names: set[str]) -> Iterator[str]:
    return (name.removeprefix(f"{key}.") for name in names if name.startswith(f"{key}."))


def key_of(facts: Mapping[str, Any]) -> str:
    """16 hex digits that change with any fact."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """The differences by dotted name, in words: `{"env.protocol": "was 'official' and is 'verl_agent'"}`."""
    old, new = dict(_leaves(before)), dict(_leaves(json.loads(json.dumps(now))))
    names = [*new, *(name for name in old if name not in new)]
    changed = [name for name in names if name not in old or name not in new or old[name] != new[name]]
    return {name: f"was {_shown(old, name)} and is {_shown(new, name)}" for name in changed}


def in_words(changes: Sequence[str]) -> str:
    """The first of some changes, and how many there are besides."""
    more = len(changes) - MOST_CHANGES
    return "; ".join(changes[:MOST_CHANGES]) + (f"; and {more} more" if more > 0 else "")


def _leaves(facts: Mapping[str, Any], parent: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in facts.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{parent}{key}.")
        else:
            yield f"{parent}{key}", value


def _shown(leaves: Mapping[str, Any], name: str) -> str:
    return repr(leaves[name]) if name in leaves else "not there"
