"""What environments return becomes plain values, or an error that names the key; what is written is standard JSON."""

import enum
import json
from collections import OrderedDict
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from envs.checks import check_contract, checked_info, checked_reset, checked_step, clean_text, json_line, plain
from envs.core import INFO_KEYS, Info, StopReason


class Word(enum.StrEnum):
    LAMP = "a lamp"


class Level(enum.IntEnum):
    TWO = 2


class Shouting(str):
    __slots__ = ()

    def __str__(self) -> str:
        return self.upper()


NAN, INF = float("nan"), float("inf")
ENDLESS: list[Any] = []
ENDLESS.append(ENDLESS)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"goal": b"caf\xc3\xa9"}, "café"),
        ({"goal": bytearray(b"\xff!")}, "�!"),
        ({"goal": "caf\udce9"}, "caf�"),
        ({"goal": "\ud83d\ude00"}, "😀"),
        ({"goal": np.str_("a lamp")}, "a lamp"),
        ({"goal": Word.LAMP}, "a lamp"),
        ({"goal": Shouting("a lamp")}, "a lamp"),
        ({"goal": np.int64(3)}, "3"),
        ({"brief": np.array("a lamp")}, "a lamp"),
        ({"answers": "Paris"}, ["Paris"]),
        ({"answers": b"Paris"}, ["Paris"]),
        ({"answers": 42}, ["42"]),
        ({"answers": [np.int64(3), np.float64(0.5)]}, ["3", "0.5"]),
        ({"answers": np.array(["a", "b"])}, ["a", "b"]),
        ({"answers": None}, None),
        ({"admissible": ("a", b"b", "c\udce9")}, ["a", "b", "c�"]),
        ({"admissible": frozenset("dbca")}, ["a", "b", "c", "d"]),
        ({"admissible": {"a": 1, "b": 2}.keys()}, ["a", "b"]),
        ({"admissible": (word for word in ("b", "a"))}, ["b", "a"]),
        ({"score": np.float32(0.5)}, 0.5),
        ({"score": np.array([[0.5]])[0]}, 0.5),
        ({"score": Fraction(1, 2)}, 0.5),
        ({"score": True}, 1.0),
        ({"success": np.True_}, True),
        ({"success": np.array([False])}, False),
        ({"success": 1}, True),
        ({"turn_reward": np.int8(-1)}, -1.0),
        ({"tool_result": np.False_}, False),
        ({"state_key": "caf\udce9"}, "data:'caf\\udce9'"),
        ({"state_key": (np.int64(1), 2)}, "data:[1, 2]"),
        ({"state_key": frozenset([3, 1])}, "data:set(1, 3)"),
        ({"state_key": np.array([[1, 0], [0, 1]])}, "data:[[1, 0], [0, 1]]"),
        ({"state_key": {"b": 1, "a": {(0, 1): None}}}, "data:{'a': {[0, 1]: None}, 'b': 1}"),
        ({"state_key": b"\x00\xff"}, "data:b'\\x00\\xff'"),
        ({"state_key": 7}, "data:7"),
        ({"state_key": Level.TWO}, "data:2"),
    ],
)
def test_convertible_values_become_plain_values(given: Info, expected: Any) -> None:
    (key,) = given
    value = checked_info(given)[key]
    assert value == expected
    assert type(value) is type(expected)
    assert json.loads(json_line({key: value})) == {key: value}
    if isinstance(value, list):
        assert all(type(item) is str for item in value)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"goal": ["a lamp"]}, r"info\['goal'\] is \['a lamp'\] \(a list\), expected text"),
        ({"answers": ["Paris", None]}, r"info\['answers'\]\[1\] is None .*, expected text"),
        ({"answers": [["Paris"]]}, r"info\['answers'\]\[0\] is \['Paris'\] .*, expected text"),
        ({"answers": [NAN]}, r"info\['answers'\]\[0\] is nan, expected a finite number"),
        ({"admissible": object()}, r"info\['admissible'\] is <object .*, expected a list of texts"),
        ({"score": NAN}, r"info\['score'\] is nan, expected a finite number"),
        ({"score": "0.5"}, r"info\['score'\] is '0.5' \(a str\), expected a number"),
        ({"score": [0.5, 0.5]}, r"info\['score'\] is .*, expected a number"),
        ({"success": "no"}, r"info\['success'\] is 'no' \(a str\), expected True or False"),
        ({"success": 0.5}, r"info\['success'\] is 0.5"),
        ({"turn_reward": -INF}, r"info\['turn_reward'\] is -inf"),
        ({"tool_result": "error"}, r"info\['tool_result'\]"),
        ({"state_key": object()}, r"info\['state_key'\] is <object"),
        ({"state_key": (1, NAN)}, r"info\['state_key'\]\[1\] is nan"),
        ({"state_key": ENDLESS}, r"info\['state_key'\].* RecursionError"),
        ({"state_key": 10**5000}, r"info\['state_key'\] cannot be read: ValueError: Exceeds the limit"),
        ({"answers": (1 // zero for zero in (1, 0))}, r"info\['answers'\] cannot be read: ZeroDivisionError"),
        (None, r"info is None \(a NoneType\), expected a dict"),
        ([("goal", "g")], "info is .* expected a dict"),
    ],
)
def test_other_values_are_an_error_that_names_the_key(given: Any, words: str) -> None:
    with pytest.raises((TypeError, ValueError), match=words):
        checked_info(given)


def test_unknown_keys_of_info_are_not_changed() -> None:
    junk = object()
    given = OrderedDict[Any, Any]({1: junk, "stop_reason": "bored", "goal": None, "state_key": None, "answers": None})
    assert checked_info(given) == {1: junk, "stop_reason": "bored", "answers": None}
    assert len(given) == 5, "a copy is read"


STATES: list[Any] = [
    "1", 1, 1.0, True, b"1", [1], ["1"], [1.0], [True], [[1]], "[1]", '["1"]', {1}, frozenset(["1"]), "data:1",
    "data:'1'", "None", "null", [None], ["None"], "", [], {}, set(), [""], [[]], 0, False, 0.0,
    "\udce9", "\\udce9", ["\\udce9"],
    {1: "a"}, {"1": "a"}, {1: "a", "1": "b"}, {1: "b", "1": "a"}, {None: 0}, {"None": 0}, {"null": 0}, {True: "a"},
    {(0, 1): 2}, {"[0, 1]": 2}, {"(0, 1)": 2}, {"a": {"b": 1}}, {"a": "{'b': 1}"}, ("a", "b"), ("a, b",), ("a', 'b",),
    "é", ["é"],
]  # fmt: skip


def test_other_states_have_other_keys() -> None:
    keys = [checked_info({"state_key": state})["state_key"] for state in STATES]
    assert [key for key in keys if keys.count(key) > 1] == []
    assert all(json.loads(json_line({"key": key})) == {"key": key} for key in keys)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((1, "a"), [np.int64(1), np.str_("a")]),
        (np.array([1, 2]), (1, 2)),
        ({"a": 1, 2: "b"}, {2: "b", "a": 1}),
        (frozenset(f"word {i}" for i in range(20)), frozenset(f"word {i}" for i in reversed(range(20)))),
        ({1, "1", None}, {None, "1", 1}),
        (-0.0, 0.0),
        (np.float64(0.5), 0.5),
        (np.str_("a"), "a"),
        (Level.TWO, 2),
    ],
)
def test_equal_states_have_equal_keys(one: Any, other: Any) -> None:
    assert checked_info({"state_key": one}) == checked_info({"state_key": other})


def test_a_dict_keeps_all_its_keys_as_json_or_is_an_error() -> None:
    assert plain({1: "a", "b": {None: True}}, "payload") == {"1": "a", "b": {"null": True}}
    with pytest.raises(ValueError, match=r"payload\['kind'\] has keys of which two are the same text: \[1, '1'\]"):
        plain({"kind": {1: "a", "1": "b"}}, "payload")
    words = [f"word {i}" for i in range(20)]
    assert plain(frozenset(words), "") == plain(frozenset(reversed(words)), "") == sorted(words)


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        (None, r"what step returned is None .*, expected a tuple \(observation, reward, terminated, truncated, info\)"),
        (("a", 0.0, True, {}), "step returned 4 values, expected 5: observation, reward, terminated, truncated, info"),
        ((None, 0.0, True, False, {}), "the observation of step is of type NoneType, expected str"),
        ((3, 0.0, True, False, {}), "the observation of step is of type int, expected str"),
        (("a", NAN, True, False, {}), "the reward is nan, expected a finite number"),
        (("a", np.float32("inf"), True, False, {}), "the reward is inf"),
        (("a", 1e308, True, False, {}), r"the reward is 1e\+308, expected a finite number, of at most 1e\+30 in size"),
        (("a", 10**5000, True, False, {}), "the reward cannot be read: ValueError: Exceeds the limit"),
        (("a", 10**400, True, False, {}), "the reward is 1000"),
        (("a", None, True, False, {}), "the reward is None"),
        (("a", 1j, True, False, {}), "the reward is 1j"),
        (("a", 0.0, "yes", False, {}), "terminated is 'yes'"),
        (("a", 0.0, True, None, {}), "truncated is None"),
        (("a", 0.0, True, False, None), "info is None"),
    ],
)
def test_nonsense_of_a_step_is_named(returned: Any, words: str) -> None:
    with pytest.raises((TypeError, ValueError), match=words):
        checked_step(returned)


def test_results_of_numpy_are_pythons() -> None:
    assert checked_step([np.array(b"a"), np.array([1]), np.array(True), np.False_, {}]) == ("a", 1.0, True, False, {})
    assert [type(v) for v in checked_step(["a", np.int64(1), 1, np.False_, {}])] == [str, float, bool, bool, dict]
    assert checked_reset(["a\udce9", {}]) == ("a�", {})
    with pytest.raises(ValueError, match="reset returned 3 values, expected 2: observation, info"):
        checked_reset(("a", {}, 1))


def test_the_contract_is_checked() -> None:
    whole: Info = dict.fromkeys(INFO_KEYS) | {"goal": "g", "score": 0.0, "success": False, "state_key": "s"}
    check_contract(whole, over=False)
    check_contract(whole | {"stop_reason": "failure"}, over=True)
    check_contract(whole | {"stop_reason": StopReason.SUCCESS, "score": 1 + 1e-9}, over=True)
    for key in INFO_KEYS:
        with pytest.raises(ValueError, match=rf"info\['{key}'\] is missing or None"):
            check_contract({k: v for k, v in whole.items() if k != key}, over=False)
    with pytest.raises(TypeError, match=r"info\['score'\] is 7.0 .*, expected a number in \[0, 1\]"):
        check_contract(whole | {"score": 7.0}, over=False)
    for reason in (None, "bored", 3, []):
        with pytest.raises(TypeError, match=r"info\['stop_reason'\] is .* one of success, failure, turn_limit"):
            check_contract(whole | {"stop_reason": reason}, over=True)


def test_a_line_is_standard_json() -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    line = json_line({"loss": NAN, "kl": [INF, 1.0], "more": {"text": "caf\udce9"}})
    line.encode()
    assert json.loads(line, parse_constant=refuse) == {"loss": None, "kl": [None, 1.0], "more": {"text": "caf�"}}
    assert json_line({"a": "é"}) == '{"a": "é"}\n'
    assert clean_text(text := "取る 🧪") is text
