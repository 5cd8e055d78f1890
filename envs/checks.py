"""Read what an environment returns, where it comes in: as plain Python values, or as an error that names the key.

Environments return numpy scalars for numbers, bytes or lone surrogates for text, tuples or sets for lists. What has one
plain meaning is taken at that:

- text: a str. Bytes are UTF-8, and what is no character becomes `�`. In `info` a number is text, too.
- number: anything that `float` takes but text, of at most `LARGEST` in size. NaN and infinity are errors.
- flag: True or False, also as a number.
- texts: a list of them from any iterable (a set is sorted), or None. A text alone is a list of one.
- state key: a str. Other data becomes a text that no other state has: 1, "1", 1.0, True, b"1" and [1] are six states.
  Lists, tuples and arrays of the same items are one, and so are dicts and sets in any order.

Everything else is a `TypeError` or a `ValueError`.
"""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from envs.core import BRIEF, INFO_KEYS, Info, StopReason

LARGEST = 1e30  # sums and squares of rewards stay finite
BESIDE_THE_TEXT = ("observation", "info")
OF_A_STEP = ("observation", "reward", "terminated", "truncated", "info")
DATA = "text, numbers, None, or tuples, lists, sets and dicts of them"
OF_DATA = "data:"  # how a state key begins that is not a text
_shown = reprlib.Repr().repr


def checked_reset(returned: Any) -> tuple[str, Info]:
    """What `reset` returned: the observation, and `info` as `checked_info` reads it."""
    observation, info = _parts(returned, "reset", BESIDE_THE_TEXT)
    return _read(_observation, observation, "the observation of reset"), checked_info(info)


def checked_step(returned: Any) -> tuple[str, float, bool, bool, Info]:
    """What `step` returned: observation, reward, terminated, truncated, and `info` as `checked_info` reads it."""
    observation, reward, terminated, truncated, info = _parts(returned, "step", OF_A_STEP)
    return (
        _read(_observation, observation, "the observation of step"),
        _read(_number, reward, "the reward"),
        _read(_flag, terminated, "terminated"),
        _read(_flag, truncated, "truncated"),
        checked_info(info),
    )


def checked_info(info: Any) -> Info:
    """A copy in which the keys of the contract are plain values. What may not be None and is, is left out.

    Other keys, and `stop_reason`, which only the contract gives a meaning, are as they were.
    """
    if not isinstance(info, (dict, Mapping)):
        raise _error("info", info, "a dict")
    checked = dict(info)
    for key, name, read in _READERS:
        value = checked.get(key)
        if value is not None:
            checked[key] = _read(read, value, name)
        elif key not in _MAY_BE_NONE:
            checked.pop(key, None)
    return checked


def check_contract(info: Info, over: bool) -> None:
    """Raises where a checked `info` breaks the contract of `envs.core`: a missing key, a score, a stop reason."""
    for key in INFO_KEYS:
        if key not in info:
            raise ValueError(f"info[{key!r}] is missing or None; envs.core.TextEnv and TextAdapter fill it in")
    if not -1e-6 <= info["score"] <= 1 + 1e-6:
        raise _error("info['score']", info["score"], "a number in [0, 1]")
    if over and info["stop_reason"] not in list(StopReason):
        expected = ", ".join(StopReason)
        raise _error("info['stop_reason']", info["stop_reason"], f"one of {expected} where an episode ends")


def plain(value: Any, name: str) -> Any:
    """`value` as what JSON has: dicts with text as keys, lists, text, finite numbers, True, False and None.

    Sets become sorted lists, bytes their `repr`, other keys of dicts the text of their JSON. Equal values give equal
    results. Raises for everything else, as for objects, whose text says where they are in memory, and for a dict of
    which two keys become the same text.
    """
    value = _unwrapped(value)
    match value:
        case None | bool():
            return value
        case str():
            return str.__str__(value).encode("utf-8", "backslashreplace").decode()
        case bytes() | bytearray():
            return repr(bytes(value))
        case int():
            return int(value)
        case float():
            return _number(value, name)
        case Mapping():
            items = {_key_text(key, name): plain(item, f"{name}[{_shown(key)}]") for key, item in value.items()}
            if len(items) < len(value):
                raise ValueError(f"{name} has keys of which two are the same text: {_shown(list(value))}")
            return items
        case set() | frozenset():
            return sorted((plain(item, name) for item in value), key=json.dumps)
        case list() | tuple():
            return [plain(item, f"{name}[{place}]") for place, item in enumerate(value)]
    raise _error(name, value, DATA)


def _key_text(value: Any, name: str) -> str:
    data = plain(value, name)
    return data if isinstance(data, str) else json.dumps(data, ensure_ascii=False, sort_keys=True)


def state_key(value: Any, name: str) -> str:
    """A text that is equal for equal states, and another one for others: a str itself, `data:…` for other data."""
    if type(value) is str and value.isascii() and not value.startswith(OF_DATA):
        return value
    value = _unwrapped(value)
    if isinstance(value, str) and not value.startswith(OF_DATA) and clean_text(value) == value:
        return str.__str__(value)
    return OF_DATA + _written(value, name)


def _written(value: Any, name: str) -> str:
    """Data as Python writes it, types included: the same text for the same data alone."""
    value = _unwrapped(value)
    match value:
        case None | bool():
            return repr(value)
        case str():
            return repr(str.__str__(value))  # writes half of a surrogate pair as `\udce9`
        case bytes() | bytearray():
            return repr(bytes(value))
        case int():
            return repr(int(value))
        case float():
            return repr(_number(value, name) + 0.0)  # -0.0 is 0.0
        case Mapping():
            items = ((_written(key, name), _written(item, f"{name}[{_shown(key)}]")) for key, item in value.items())
            return "{" + ", ".join(f"{key}: {item}" for key, item in sorted(items)) + "}"
        case set() | frozenset():
            return f"set({', '.join(sorted(_written(item, name) for item in value))})"
        case list() | tuple():
            return f"[{', '.join(_written(item, f'{name}[{place}]') for place, item in enumerate(value))}]"
    raise _error(name, value, DATA)


def clean_text(text: str) -> str:
    """Text that UTF-8 has: halves of a surrogate pair are joined, and one without its other half becomes `�`."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def json_line(row: Mapping[str, Any]) -> str:
    """Plain data as a line of standard JSON: what is no finite number is null, and half a surrogate pair is `�`."""
    try:
        text = json.dumps(row, ensure_ascii=False, allow_nan=False)
    except ValueError:
        text = json.dumps(_finite(row), ensure_ascii=False, allow_nan=False)
    return clean_text(text) + "\n"


def _finite(value: Any) -> Any:
    match value:
        case float():
            return value if math.isfinite(value) else None
        case dict():
            return {key: _finite(item) for key, item in value.items()}
        case list() | tuple():
            return [_finite(item) for item in value]
    return value


def _parts(returned: Any, call: str, names: tuple[str, ...]) -> Any:
    if not isinstance(returned, (tuple, list)):
        raise _error(f"what {call} returned", returned, f"a tuple ({', '.join(names)})")
    if len(returned) != len(names):
        raise ValueError(f"{call} returned {len(returned)} values, expected {len(names)}: {', '.join(names)}")
    return returned


def _read(read: Callable[[Any, str], Any], value: Any, name: str) -> Any:
    """What `read` makes of a value. Every error names the value, also Python's own (a list that contains itself)."""
    try:
        return read(value, name)
    except Exception as error:
        if str(error).startswith(name):
            raise
        raise ValueError(f"{name} cannot be read: {type(error).__name__}: {error}") from error


def _observation(value: Any, name: str) -> str:
    if isinstance(_unwrapped(value), (str, bytes, bytearray)):
        return _text(value, name)
    raise TypeError(
        f"{name} is of type {type(value).__name__}, expected str: "
        "an environment for language agents says what there is to see in words"
    )


def _text(value: Any, name: str) -> str:
    if type(value) is str:
        return clean_text(value)
    value = _unwrapped(value)
    match value:
        case str():
            return clean_text(str.__str__(value))
        case bytes() | bytearray():
            return value.decode("utf-8", "replace")
        case bool() | int():
            return str(value)
        case float():
            return str(_number(value, name))
    raise _error(name, value, "text")


def _texts(value: Any, name: str) -> list[str]:
    if type(value) is list and set(map(type, value)) <= {str}:  # as it should be; there may be a hundred in every turn
        return list(value) if "".join(value).isascii() else [clean_text(text) for text in value]
    value = _unwrapped(value)
    if isinstance(value, (str, bytes, bytearray, int, float)):
        return [_text(value, name)]
    if not isinstance(value, Iterable):
        raise _error(name, value, "a list of texts")
    texts = [_text(item, f"{name}[{place}]") for place, item in enumerate(value)]
    return sorted(texts) if isinstance(value, (set, frozenset)) else texts


def _number(value: Any, name: str) -> float:
    value = _scalar(value)
    if isinstance(value, (str, bytes, bytearray)):
        raise _error(name, value, "a number")
    try:
        number = float(value)
    except OverflowError:
        number = float("inf")
    except (TypeError, ValueError):
        raise _error(name, value, "a number") from None
    if not abs(number) <= LARGEST:
        raise ValueError(f"{name} is {_shown(value)}, expected a finite number, of at most {LARGEST:g} in size")
    return number


def _flag(value: Any, name: str) -> bool:
    value = _scalar(value)
    if isinstance(value, (bool, int, float)) and value in (0, 1):
        return bool(value)
    raise _error(name, value, "True or False")


def _unwrapped(value: Any) -> Any:
    """Python's own value in place of a scalar or an array of numpy, torch and the like."""
    return value.tolist() if hasattr(value, "tolist") else value


def _scalar(value: Any) -> Any:
    """The same, and the one value of an array or a list that has one."""
    value = _unwrapped(value)
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _error(name: str, value: Any, expected: str) -> TypeError:
    return TypeError(f"{name} is {_shown(value)} (a {type(value).__name__}), expected {expected}")


_READERS = [
    (key, f"info[{key!r}]", read)
    for key, read in {
        "goal": _text,
        "admissible": _texts,
        "score": _number,
        "success": _flag,
        "state_key": state_key,
        "answers": _texts,
        "turn_reward": _number,
        "tool_result": _flag,
        BRIEF: _text,
    }.items()
]
_MAY_BE_NONE = ("admissible", "answers")
