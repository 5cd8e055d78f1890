"""BFCL multi-turn. Recordings of its own checker are in `test_search_replay`."""

from __future__ import annotations

import decimal
import time
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import jsonschema
import pytest

from envs.core import NoDataError, UnknownNameError
from envs.tools import bfcl
from envs.tools.bfcl import SETS, BfclTask, Grader, Simulators, check, function_docs, read_call, read_tasks

pytestmark = pytest.mark.skipif(find_spec("bfcl_eval") is None, reason=f"needs {bfcl.INSTALL}")


def tasks() -> list[BfclTask]:
    return [task for name in SETS for task in read_tasks(name).values()]


def ground_truth(task: BfclTask) -> list[list[list[str]]]:
    return [[list(calls)] if calls else [] for calls in task.ground_truth]


def test_the_ground_truth_of_all_tasks_is_right_and_no_calls_are_wrong() -> None:
    assert [sum(check(task, ground_truth(task)).valid for task in read_tasks(name).values()) for name in SETS] == [
        200
    ] * 4
    assert not any(check(task, [[] for _ in task.ground_truth]).valid for task in tasks())


# -- verdicts ---------------------------------------------------------------------------------------------------------
# Turn 0: cd to communal, touch a file; 1: echo into it; 2: cat; 3: wc; 4: store the number elsewhere.
REPORT = "multi_turn_base_6"


@pytest.mark.parametrize(
    ("turn", "steps", "error"),
    [
        (0, [["pwd()"], ["cd('communal')"], ["touch(file_name='Annual_Report_2023.docx')"]], ""),
        (0, [["cd('communal')", "touch('Annual_Report_2023.docx')", "rm('nothing')", "no_such(1)", "broken("]], ""),
        (0, [["cd('communal')", "touch('annual.docx')"]], "instance_state_mismatch"),
        (2, [["ls()"]], "execution_response_mismatch"),
        (2, [["ls()"], ["cat('Annual_Report_2023.docx')"]], ""),
        (2, [], "empty_turn_model_response"),
        (2, [[]], "empty_turn_model_response"),
        (2, [[], []], "execution_response_mismatch"),
    ],
)
def test_a_turn_is_right_by_its_state_and_its_results(turn: int, steps: list[list[str]], error: str) -> None:
    task = read_tasks("base")[REPORT]
    calls = ground_truth(task)
    calls[turn] = steps
    verdict = check(task, calls)
    assert verdict.error_type == (f"multi_turn:{error}" if error else "")
    assert verdict.valid == (not error)


def test_results_of_earlier_turns_count_but_not_an_earlier_state() -> None:
    task = read_tasks("base")[REPORT]
    calls = ground_truth(task)
    calls[1][0].append("cat('Annual_Report_2023.docx')")
    calls[2] = [["pwd()"]]
    assert check(task, calls).valid
    calls[0][0] += calls[1][0]
    assert check(task, calls).differing == ("root",)


def test_a_turn_without_a_ground_truth_is_not_checked() -> None:
    task = next(task for task in read_tasks("miss_param").values() if not task.ground_truth[0])
    calls = ground_truth(task)
    assert calls[0] == []
    calls[0] = [["no_such()"]]
    assert check(task, calls).valid


def test_another_number_of_turns_is_an_error() -> None:
    with pytest.raises(ValueError, match="has 5 user turns, got calls for 1"):
        check(read_tasks("base")[REPORT], [[]])


# -- calls ------------------------------------------------------------------------------------------------------------
def test_calls_are_read_and_not_evaluated() -> None:
    assert read_call(" f('a', b=[1, {'c': None}], d=-2.5)") == ("f", ("a",), {"b": [1, {"c": None}], "d": -2.5})
    for text in ("f(__import__('os'))", "a.f()", "f(**{})", "f(g())", "f", "f(1 +", "f(x=open)", "(lambda: 1)()"):
        with pytest.raises((ValueError, SyntaxError)):
            read_call(text)


@pytest.mark.parametrize(
    "call",
    [
        "_load_scenario({})", "_current_dir()", "__init__()", "root()", "__import__('os')", "instances()", "nothing()",
        "cd()", "cd(directory='x')", "ls(1, 2, 3)", "cd(folder=7)", "f(",
    ],
)  # fmt: skip
def test_what_cannot_be_called_is_a_result_and_changes_nothing(call: str) -> None:
    simulators = Simulators(read_tasks("base")[REPORT])
    before = repr(simulators.state())
    assert simulators.call_text(call).startswith("Error during execution: ")
    assert repr(simulators.state()) == before


def test_an_argument_may_have_any_name() -> None:
    simulators = Simulators(read_tasks("base")[REPORT])
    assert simulators.call("find", path=".", name="communal") == '{"matches": ["./communal"]}'


@pytest.mark.parametrize(
    "call",
    [
        "power(10, 1000000000)", "logarithm(2, 3, 100000000)", "square_root(2, 1000000000)",
        "round_number(5, -1000000000)", "square_root(precision=10000000, number=2)",
    ],
)  # fmt: skip
def test_calls_with_large_arguments_are_limited(call: str) -> None:
    task = read_tasks("base")["multi_turn_base_28"]
    assert "MathAPI" in task.classes
    assert Simulators(task).call_text(call).startswith("Error during execution: ")


def test_recursive_copies_are_not_compared_without_limit() -> None:
    simulators = Simulators(read_tasks("base")[REPORT])
    calls = ["mkdir('a0')"]
    for level in range(40):
        a, b, parent = f"a{level}", f"b{level}", f"a{level + 1}"
        calls += [f"cp('{a}', '{b}')", f"mkdir('{parent}')", f"mv('{a}', '{parent}')", f"mv('{b}', '{parent}')"]
    for call in calls:
        assert "rror" not in simulators.call_text(call)
    assert "more than 100,000 paths" in simulators.call_text("find('.')")
    assert "more than 100,000 paths" in simulators.call_text("du()")

    assert simulators.key() == "large"


def test_a_directory_in_itself_is_an_error() -> None:
    simulators = Simulators(read_tasks("base")[REPORT])
    for call in ("mkdir('a')", "cp('a', 'a')"):
        simulators.call_text(call)
    assert simulators.call_text("find('.')").startswith("Error during execution: ")
    assert simulators.key() == "large"


def test_a_deep_directory_is_no_error_of_the_environment() -> None:
    simulators = Simulators(read_tasks("base")[REPORT])
    for _ in range(2000):
        for call in ("mkdir('a')", "cd('a')"):
            simulators.call_text(call)
    assert simulators.call_text("find('/')").startswith("Error during execution: ")
    assert simulators.key() == "large"


def test_equal_states_have_equal_keys() -> None:
    task = read_tasks("base")[REPORT]
    here, there, elsewhere = Simulators(task), Simulators(task), Simulators(task)
    for call in ("mkdir('a')", "cd('a')", "touch('b')"):
        here.call_text(call)
    for call in ("ls()", "mkdir('a')", "cd('a')", "cd('..')", "cd('a')", "touch('b')"):
        there.call_text(call)
    for call in ("mkdir('a')", "cd('a')", "touch('b')", "cd('..')"):
        elsewhere.call_text(call)
    assert here.key() == there.key() != elsewhere.key()


# -- no shared state --------------------------------------------------------------------------------------------------
def played_side_by_side(chosen: Sequence[BfclTask]) -> list[Any]:
    """The results and final states of the ground truths, one call of each task at a time."""
    simulators = [Simulators(task) for task in chosen]
    waiting = [[text for calls in task.ground_truth for text in calls] for task in chosen]
    results: list[list[str]] = [[] for _ in chosen]
    while any(waiting):
        for one, texts, found in zip(simulators, waiting, results, strict=True):
            if texts:
                found.append(one.call_text(texts.pop(0)))
    return [(found, repr(one.state())) for found, one in zip(results, simulators, strict=True)]


def test_parallel_episodes_do_not_influence_each_other() -> None:
    chosen = [task for name in SETS for task in list(read_tasks(name).values())[::17]]
    alone = [played_side_by_side([task])[0] for task in chosen]
    assert played_side_by_side([*chosen, *chosen]) == alone * 2


def test_an_episode_leaves_nothing_for_the_next() -> None:
    task = next(task for task in read_tasks("long_context").values() if "TravelAPI" in task.classes)
    first = Grader(task)
    untouched = repr(first.policy.state())
    travel = first.policy.instances["TravelAPI"]
    for card in travel.credit_card_list.values():
        card["balance"] = -1.0
    travel.booking_record.clear()
    assert repr(first.truth.state()) == untouched
    assert repr(Simulators(task).state()) == untouched


def test_no_object_of_the_package_changes() -> None:
    from bfcl_eval.eval_checker.multi_turn_eval.func_source_code import long_context

    def shared() -> str:
        return repr([value for name, value in vars(long_context).items() if name.isupper()])

    before = shared()
    for task in read_tasks("long_context").values():
        simulators = Simulators(task)
        simulators.call("get_outside_temperature_from_google")
        for card in getattr(simulators.instances.get("TravelAPI"), "credit_card_list", {}):
            arguments = {"insurance_type": "x", "insurance_cost": 1.0, "booking_id": "booking_901", "card_id": card}
            simulators.call("purchase_insurance", simulators.instances["TravelAPI"].access_token, **arguments)
        for text in (text for calls in task.ground_truth for text in calls):
            simulators.call_text(text)
    assert shared() == before


def test_the_precision_of_a_call_does_not_stay() -> None:
    import mpmath

    simulators = Simulators(read_tasks("base")["multi_turn_base_28"])
    before = mpmath.mp.dps, decimal.getcontext().prec
    assert simulators.call("logarithm", value=8, base=2, precision=40).startswith("{'result': mpf('3.")
    assert simulators.call("square_root", number=2, precision=40).count("1.41421356237309504880168872420969807") == 1
    assert (mpmath.mp.dps, decimal.getcontext().prec) == before
    with decimal.localcontext(decimal.Context(prec=3, traps=[decimal.Inexact])):
        assert "1.4142135623730950488" in simulators.call("square_root", number=2, precision=20)


def test_times_do_not_depend_on_the_time_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    task = next(task for task in read_tasks("base").values() if "TradingBot" in task.classes)
    seen = set()
    for zone in ("UTC", "Asia/Tokyo", "America/New_York"):
        with monkeypatch.context() as patch:
            patch.setenv("TZ", zone)
            time.tzset()
            simulators = Simulators(task)
            simulators.call("trading_login", "a", "b")
            simulators.call("fund_account", 100.0)
            seen.add(simulators.call("get_transaction_history"))
    time.tzset()
    assert len(seen) == 1
    assert "2024-09-0" in seen.pop()


# -- data -------------------------------------------------------------------------------------------------------------
def test_each_function_has_a_schema() -> None:
    docs = {name: doc for class_name in bfcl._MODULES for name, doc in function_docs(class_name).items()}
    assert len(docs) == 128
    for doc in docs.values():
        jsonschema.Draft202012Validator.check_schema(doc["parameters"])
        assert doc["parameters"]["type"] == "object"
    assert docs["book_flight"]["parameters"]["properties"]["card_id"]["type"] == "string"
    assert docs["fund_account"]["parameters"]["properties"]["amount"]["type"] == "number"


def test_functions_that_are_left_out_come_before_a_turn_of_their_own() -> None:
    for task in read_tasks("miss_func").values():
        assert len(task.added) == 1
        for turn, names in task.added.items():
            assert task.user_turns[turn] == bfcl.ADDED
            assert any(set(names) & set(function_docs(class_name)) for class_name in task.classes)


def test_a_set_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'miss_func'"):
        read_tasks("missing_func")


def test_without_the_package_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bfcl, "find_spec", lambda name: None)
    with pytest.raises(NoDataError, match="--no-deps bfcl-eval=="):
        bfcl.data_folder()
