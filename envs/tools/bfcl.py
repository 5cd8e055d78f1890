"""BFCL multi-turn: tasks, simulators and documentation of the package `bfcl-eval`, played and checked here.

    task = read_tasks("base")["multi_turn_base_6"]
    check(task, [[["cd(folder='communal')", "touch(file_name='Annual_Report_2023.docx')"]], …])   # Verdict(valid=True)

The verdicts are those of its `multi_turn_checker`. Its executor is not used: that gives the policy's text to `eval`,
and keeps the simulators of all episodes in one module. Here each episode has simulators of its own, a call is looked
up among their public methods, and the values of a call are literals.

Source: Berkeley Function Calling Leaderboard, ShishirPatil/gorilla (Apache-2.0), `eval_checker/multi_turn_eval`.
"""

from __future__ import annotations

import ast
import decimal
import hashlib
import inspect
import json
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from envs.core import NoDataError, UnknownNameError

SETS = ("base", "miss_func", "miss_param", "long_context")
VERSION = "2026.3.23"
INSTALL = f"pip install 'polyturn[bfcl]' && pip install --no-deps bfcl-eval=={VERSION}"
ADDED = "I have updated some more functions you can choose from. What about now?"  # where functions are added
MOST_STEPS = 20  # messages with calls that a user turn may take
_SIMULATORS = "bfcl_eval.eval_checker.multi_turn_eval.func_source_code"
_MODULES = {
    "GorillaFileSystem": "gorilla_file_system",
    "MathAPI": "math_api",
    "MessageAPI": "message_api",
    "TwitterAPI": "posting_api",
    "TicketAPI": "ticket_api",
    "TradingBot": "trading_bot",
    "TravelAPI": "travel_booking",
    "VehicleControlAPI": "vehicle_control",
}
_JSON_TYPES = {"dict": "object", "float": "number", "tuple": "array", "any": "string"}  # others are the same
_MOST_DIGITS = 10_000
_MOST_BITS = 1_000_000
_MOST_PATHS = 100_000


# -- tasks ------------------------------------------------------------------------------------------------------------
class PythonCall(NamedTuple):
    """A call as the ground truth has it: `grep('log.txt', pattern='Error')`."""

    name: str
    positional: tuple[Any, ...] = ()
    named: Mapping[str, Any] = {}


def read_call(text: str) -> PythonCall:
    """Read a call whose values are literals. Raises `SyntaxError` and `ValueError`."""
    call = ast.parse(text.lstrip(" \t"), "<string>", mode="eval").body
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
        raise ValueError(f"expected a call like name(argument='value'), got {text!r:.80}")
    named = {}
    for keyword in call.keywords:
        if keyword.arg is None:
            raise ValueError("expected arguments by name, got **")
        named[keyword.arg] = ast.literal_eval(keyword.value)
    return PythonCall(call.func.id, tuple(ast.literal_eval(value) for value in call.args), named)


@dataclass(frozen=True)
class BfclTask:
    """A conversation: what the user says, and the calls that are right.

    The number of user turns is that of `ground_truth`. `added[i]` are names of functions that are left out before turn
    i, which has the text `ADDED`.
    """

    id: str
    user_turns: tuple[str, ...]
    ground_truth: tuple[tuple[str, ...], ...]
    classes: tuple[str, ...]
    initial_config: Mapping[str, Any]
    added: Mapping[int, tuple[str, ...]] = field(default_factory=dict)

    @property
    def is_long(self) -> bool:
        """Whether simulators add long texts and lists to their results."""
        return "long_context" in self.id


def data_folder() -> Path:
    """The data of the installed package. Raises `NoDataError`, which says what to install."""
    found = find_spec("bfcl_eval")
    if found is None or not found.submodule_search_locations or not find_spec("mpmath"):
        raise NoDataError(f"BFCL needs the package bfcl-eval, without its dependencies, and mpmath: {INSTALL}")
    return Path(found.submodule_search_locations[0]) / "data"


@cache
def data_hash() -> str:
    """Hex sha256 of the files of the tasks, of their ground truth, and of the documentation of functions."""
    files = [f"{folder}/BFCL_v4_multi_turn_{name}.json" for name in SETS for folder in (".", "possible_answer")]
    files += [f"multi_turn_func_doc/{module}.json" for module in _MODULES.values()]
    digest = hashlib.sha256()
    for file in files:
        digest.update((data_folder() / file).read_bytes())
    return digest.hexdigest()


@cache
def read_tasks(name: str) -> dict[str, BfclTask]:
    """The 200 tasks of a set by id. Raises `UnknownNameError` and `NoDataError`."""
    if name not in SETS:
        raise UnknownNameError("set of BFCL", name, SETS)
    file = f"BFCL_v4_multi_turn_{name}.json"
    answers = {row["id"]: row["ground_truth"] for row in _rows(data_folder() / "possible_answer" / file)}
    return {row["id"]: _task(row, answers[row["id"]]) for row in _rows(data_folder() / file)}


def _task(row: Mapping[str, Any], ground_truth: Sequence[Sequence[str]]) -> BfclTask:
    return BfclTask(
        id=row["id"],
        user_turns=tuple(messages[0]["content"] if messages else ADDED for messages in row["question"]),
        ground_truth=tuple(tuple(calls) for calls in ground_truth),
        classes=tuple(row["involved_classes"]),
        initial_config=row["initial_config"],
        added={int(turn): tuple(names) for turn, names in row.get("missed_function", {}).items()},
    )


def _rows(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


@cache
def function_docs(class_name: str) -> Mapping[str, Mapping[str, Any]]:
    """Of each function of a class: `name`, `description`, and `parameters` as JSON Schema."""
    rows = _rows(data_folder() / "multi_turn_func_doc" / f"{_MODULES[class_name]}.json")
    return {
        row["name"]: {
            "name": row["name"],
            "description": row["description"],
            "parameters": _json_schema(row["parameters"]),
        }
        for row in rows
    }


def _json_schema(value: Any) -> Any:
    if isinstance(value, list):
        return [_json_schema(part) for part in value]
    if not isinstance(value, dict):
        return value
    return {
        key: _JSON_TYPES.get(part, part) if key == "type" and isinstance(part, str) else _json_schema(part)
        for key, part in value.items()
    }


# -- simulators -------------------------------------------------------------------------------------------------------
class Simulators:
    """The simulators of one episode, which share nothing with those of another."""

    def __init__(self, task: BfclTask) -> None:
        self.instances = {name: _load(name, task) for name in task.classes}

    def call(self, name: str, /, *positional: Any, **named: Any) -> str:
        """The result as the official executor writes it; an exception is a result, too."""
        try:
            method = self._method(name)
            with _own_globals():
                _check_costs(method, positional, named)
                return _text(method(*positional, **named))
        except Exception as error:
            return f"Error during execution: {error}"

    def call_text(self, text: str) -> str:
        """The result of a call that is written in Python."""
        try:
            call = read_call(text)
        except Exception as error:
            return f"Error during execution: {error}"
        return self.call(call.name, *call.positional, **call.named)

    def state(self) -> dict[str, dict[str, Any]]:
        """The public attributes of each simulator, which the checker compares."""
        return {name: _public(instance) for name, instance in self.instances.items()}

    def key(self) -> str:
        """A text that is equal for equal states. All file systems that are too large to be written have the same."""
        files = self.instances.get("GorillaFileSystem")
        if files is not None and _has_many_paths(files.root):
            return "large"
        try:
            return repr((self.state(), files.pwd() if files else ""))
        except RecursionError:
            return "large"

    def _method(self, name: str) -> Any:
        """The public method of this name; as in the official executor, the last class that has one wins."""
        for instance in reversed(self.instances.values()):
            if not name.startswith("_") and inspect.isfunction(getattr(type(instance), name, None)):
                return getattr(instance, name)
        raise NameError(f"name {name!r} is not defined")


def _load(class_name: str, task: BfclTask) -> Any:
    instance = _simulator(class_name)()
    if class_name != "MathAPI":
        scenario = deepcopy(task.initial_config.get(class_name, {}))
        instance._load_scenario(scenario, long_context=task.is_long)
    # What is added for long contexts are objects of a module, and the scenario keeps them.
    return deepcopy(instance) if task.is_long else instance


@cache
def _simulator(class_name: str) -> Any:
    data_folder()
    module = import_module(f"{_SIMULATORS}.{_MODULES[class_name]}")
    simulator = getattr(module, class_name)
    if class_name != "TradingBot":
        return simulator

    class TradingBotInUTC(simulator):  # type: ignore[misc, valid-type]
        """Its times are the same on every machine: the official ones go through the local time zone."""

        def _generate_transaction_timestamp(self) -> str:
            seconds = self._random.randint(0, 24 * 60 * 60)
            return str((module.CURRENT_TIME + timedelta(seconds=seconds)).strftime("%Y-%m-%d %H:%M:%S"))

    return TradingBotInUTC


def _public(instance: Any) -> dict[str, Any]:
    return {name: value for name, value in vars(instance).items() if not name.startswith("_")}


def _text(result: Any) -> str:
    if type(result) is dict:
        try:
            return json.dumps(result)
        except Exception:  # numbers of mpmath and decimal
            return str(result)
    return str(result)


_lock = threading.Lock()


@contextmanager
def _own_globals() -> Iterator[None]:
    """Calls set the precision of mpmath and of decimal, and write to a table of a module: nothing of it stays."""
    import mpmath

    weather = import_module(f"{_SIMULATORS}.long_context").LONG_WEATHER_EXTENSION
    with _lock, decimal.localcontext(decimal.Context()):
        precision, table = mpmath.mp.prec, dict(weather)
        try:
            yield
        finally:
            mpmath.mp.prec = precision
            weather.clear()
            weather.update(table)


def _check_costs(method: Any, positional: Sequence[Any], named: Mapping[str, Any]) -> None:
    """Refuse a call that would take minutes: the official simulators have no limits. Raises `ValueError`."""
    name = method.__name__
    if name in ("find", "du") and _has_many_paths(method.__self__.root):
        raise ValueError(f"there are more than {_MOST_PATHS:,} paths")
    if name not in ("logarithm", "square_root", "round_number", "power"):
        return
    try:
        values = inspect.signature(method).bind(*positional, **named).arguments
    except TypeError:  # the call itself raises it
        return
    digits = values.get("precision", values.get("decimal_places"))
    if isinstance(digits, (int, float)) and abs(digits) > _MOST_DIGITS:
        raise ValueError(f"at most {_MOST_DIGITS:,} digits are possible")
    base, exponent = values.get("base"), values.get("exponent")
    if isinstance(base, int) and isinstance(exponent, int) and base.bit_length() * exponent > _MOST_BITS:
        raise ValueError("the power is too large")


def _has_many_paths(root: Any) -> bool:
    """Whether there are more than `_MOST_PATHS`: copies of a directory share what is in them, so they grow fast."""
    count, waiting = 0, [root]
    while waiting and count <= _MOST_PATHS:
        count += 1
        waiting += getattr(waiting.pop(), "contents", {}).values()
    return count > _MOST_PATHS


# -- verdicts ---------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Verdict:
    """Whether a user turn, or a whole task, is right; the names and messages of errors are the official ones."""

    valid: bool
    error_type: str = ""
    error_message: str = ""
    missing: tuple[str, ...] = ()  # results of the ground truth that the policy's calls did not give
    differing: tuple[str, ...] = ()  # attributes of the first simulator whose state differs


class Grader:
    """Plays a policy's calls, and the ground truth beside them.

    A user turn is right if all public attributes of the simulators are those after the ground truth, and the results
    of this turn's ground truth are among the results of all calls so far. A turn whose ground truth is empty is not
    checked.
    """

    def __init__(self, task: BfclTask) -> None:
        self.task = task
        self.turn = 0
        self.policy, self.truth = Simulators(task), Simulators(task)
        self.results: list[str] = []
        self.truth_results: list[str] = []  # of the turn that ended last

    def call(self, name: str, /, *positional: Any, **named: Any) -> str:
        """Run a call of the policy."""
        self.results.append(self.policy.call(name, *positional, **named))
        return self.results[-1]

    def call_text(self, text: str) -> str:
        """Run a call of the policy that is written in Python."""
        self.results.append(self.policy.call_text(text))
        return self.results[-1]

    def end_turn(self, is_silent: bool) -> Verdict:
        """The verdict on the user turn that ends; `is_silent` says that the policy called nothing in it."""
        truth, turn = self.task.ground_truth[self.turn], self.turn
        self.turn += 1
        self.truth_results = [self.truth.call_text(text) for text in truth]
        if not truth:
            return Verdict(True)
        if is_silent:
            message = f"Model response list is empty for turn {turn}"
            return Verdict(False, "multi_turn:empty_turn_model_response", message)
        return self._compare_states() or self._compare_results(turn) or Verdict(True)

    def _compare_states(self) -> Verdict | None:
        policy = self.policy.state()
        for name, expected in self.truth.state().items():
            differing = tuple(key for key, value in expected.items() if policy[name][key] != value)
            if differing:
                message = f"Model instance for {name} does not match the state with ground truth instance."
                return Verdict(False, "multi_turn:instance_state_mismatch", message, differing=differing)
        return None

    def _compare_results(self, turn: int) -> Verdict | None:
        left, missing = Counter(self.results), []
        for result in self.truth_results:
            if left[result]:
                left[result] -= 1
            else:
                missing.append(result)
        if not missing:
            return None
        message = (
            "Model response execution results so far does not contain all the ground truth response execution results "
            f"for turn {turn}."
        )
        return Verdict(False, "multi_turn:execution_response_mismatch", message, missing=tuple(missing))


def check(task: BfclTask, calls: Sequence[Sequence[Sequence[str]]]) -> Verdict:
    """The verdict on calls of a whole task, `calls[turn][step][call]`, each written in Python.

    As the official checker does, it stops at the first turn that is wrong and knows no limit on steps. Raises
    `ValueError` for another number of turns than the task has.
    """
    if len(calls) != len(task.ground_truth):
        raise ValueError(f"{task.id} has {len(task.ground_truth)} user turns, got calls for {len(calls)}")
    grader = Grader(task)
    for steps in calls:
        for text in (text for step in steps for text in step):
            grader.call_text(text)
        verdict = grader.end_turn(is_silent=not steps or (len(steps) == 1 and not steps[0]))
        if not verdict.valid:
            return verdict
    return Verdict(True)
