"""Conversations of BFCL in `polyturn/Tools-v0`."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest

from envs.conformance import Subject, TaskSetConformance, TextEnvConformance
from envs.core import Task, UnknownNameError
from envs.tools import bfcl
from envs.tools.bfcl import ADDED, MOST_STEPS, SETS, BfclTask, function_docs, read_call, read_tasks
from envs.tools.env import ENV_ID, ToolsEnv
from envs.tools.tasks import ToolTasks
from envs.tools.tool import Call, Limits

pytestmark = pytest.mark.skipif(find_spec("bfcl_eval") is None, reason=f"needs {bfcl.INSTALL}")

REPORT = "multi_turn_base_6"  # five turns; the first needs cd and touch
MOST_TURNS = 200


def task_of(name: str) -> Task:
    set_name = name.removeprefix("multi_turn_").rpartition("_")[0]
    return Task(name, ENV_ID, set_name, payload={"scenario": "bfcl", "set": set_name, "id": name})


def make(format_name: str = "json", limits: Limits | None = None) -> ToolsEnv:
    return ToolsEnv(format_name, MOST_TURNS, limits)


def begin(name: str, format_name: str = "json", limits: Limits | None = None) -> tuple[ToolsEnv, dict[str, Any]]:
    env = make(format_name, limits)
    return env, env.reset(options={"task": task_of(name)})[1]


def calls_of(task: BfclTask, turn: int) -> list[Call]:
    """The ground truth with named arguments."""
    calls = [read_call(text) for text in task.ground_truth[turn]]
    docs = {name: doc for class_name in task.classes for name, doc in function_docs(class_name).items()}
    named = []
    for call in calls:
        names = docs[call.name]["parameters"]["properties"]
        named.append(Call(call.name, {**dict(zip(names, call.positional, strict=False)), **call.named}))
    return named


def messages(env: ToolsEnv, task: BfclTask) -> list[str]:
    """A policy that knows the ground truth: its calls, ten a message, and a message without calls after each turn."""
    written = []
    for turn in range(len(task.ground_truth)):
        calls = calls_of(task, turn)
        written += [env.format.write(calls[i : i + 10], {}) for i in range(0, len(calls), 10)] + ["done"]
    return written


def step(env: ToolsEnv, *calls: Call) -> tuple[str, float, bool, dict[str, Any]]:
    observation, reward, terminated, _, info = env.step(env.format.write(calls, {}) if calls else "done")
    return observation, float(reward), terminated, info


class TestConformance(TextEnvConformance):
    def subject(self) -> Subject:
        names = (REPORT, "multi_turn_miss_func_0", "multi_turn_long_context_163")
        return Subject(make, [task_of(name) for name in names], max_turns=MOST_TURNS)


@pytest.mark.parametrize("name", SETS)
def test_the_ground_truth_solves_all_tasks_and_no_calls_solve_none(name: str) -> None:
    env = make("tags")
    for task in read_tasks(name).values():
        env.reset(options={"task": task_of(task.id)})
        for message in messages(env, task):
            _, reward, terminated, _, info = env.step(message)
        assert (terminated, info["success"], reward) == (True, True, 1.0), task.id
        env.reset(options={"task": task_of(task.id)})
        terminated = False
        while not terminated:
            _, reward, terminated, _, info = env.step("")
        assert (info["success"], reward) == (False, 0.0), task.id


def test_each_user_turn_is_judged_and_the_first_wrong_one_ends_the_task() -> None:
    task = read_tasks("base")[REPORT]
    env, info = begin(REPORT)
    assert info["goal"] == task.user_turns[0]
    _, _, _, info = step(env, *calls_of(task, 0))
    assert (info["turn_reward"], info["score"], info["signals"]["turn_ended"]) == (0.0, 0.0, False)
    observation, reward, terminated, info = step(env)
    assert (observation, reward, terminated) == (task.user_turns[1], 0.0, False)
    assert (info["turn_reward"], info["score"], info["signals"]["turn_ended"]) == (1.0, 0.2, True)
    step(env, Call("ls"))
    _, reward, terminated, info = step(env)
    assert (reward, terminated, info["success"], info["stop_reason"]) == (0.0, True, False, "failure")
    assert (info["turn_reward"], info["score"]) == (0.0, 0.2)
    assert info["signals"]["wrong"] == "instance_state_mismatch"


def test_a_turn_without_a_ground_truth_goes_on_without_a_reward() -> None:
    task = next(task for task in read_tasks("miss_param").values() if not task.ground_truth[0])
    env, _ = begin(task.id)
    observation, _, terminated, info = step(env)
    assert (observation, terminated, info["turn_reward"]) == (task.user_turns[1], False, 0.0)


def test_a_turn_takes_so_many_messages_with_calls() -> None:
    env, _ = begin(REPORT)
    for _ in range(MOST_STEPS):
        assert not step(env, Call("ls"))[2]
    snapshot = env.snapshot()
    step(env, *[Call("ls")] * 2)
    with pytest.raises(RuntimeError, match="over"):
        step(env)
    env.restore(snapshot)
    _, _, terminated, info = step(env, Call("ls"))
    assert (terminated, info["success"], info["signals"]["wrong"]) == (True, False, "force_terminated")


def test_calls_that_cannot_be_read_are_no_calls() -> None:
    env, _ = begin(REPORT)
    observation, _, terminated, _, _ = env.step('{"name": "ls", "arguments": ')
    assert ("no JSON" in observation, terminated) == (True, False)
    _, _, terminated, info = step(env)
    assert (terminated, info["signals"]["wrong"]) == (True, "empty_turn_model_response")


def test_results_read_as_the_official_ones() -> None:
    env, _ = begin(REPORT, "tags")
    for call, result in (
        (Call("cd", {"folder": "communal"}), '{"current_working_directory": "communal"}'),
        (Call("touch", {"file_name": "a"}), "None"),
        (Call("cd", {"directory": "x"}),
         "Error during execution: GorillaFileSystem.cd() got an unexpected keyword argument 'directory'"),
        (Call("cd", {"folder": 7}), "Error during execution: 'int' object has no attribute 'rstrip'"),
    ):  # fmt: skip
        observation, _, _, info = step(env, call)
        assert env.format.results_in(observation) == [result]
        assert info["signals"]["errors"] == result.startswith("Error")


def test_verdicts_rest_on_whole_results() -> None:
    task = read_tasks("long_context")["multi_turn_long_context_105"]
    env, _ = begin(task.id, limits=Limits(output=20))
    for message in messages(env, task):
        _, _, _, _, info = env.step(message)
    assert info["success"]


def test_functions_are_added_before_a_turn_of_their_own() -> None:
    task = read_tasks("miss_func")["multi_turn_miss_func_0"]
    assert task.added == {3: ("sort",)}
    env, info = begin(task.id, "tags")
    hidden = [tool["function"]["name"] for tool in info["tools"]]
    assert "sort" not in hidden
    for turn in range(3):
        if task.ground_truth[turn]:
            step(env, *calls_of(task, turn))
        observation, _, _, info = step(env)
    assert [tool["function"]["name"] for tool in info["tools"]] == [*hidden, "sort"]
    assert observation.endswith(ADDED)
    assert observation.count('"name":') == 2  # sort, and the format
    # The simulators run it at any time, as the official ones do.
    early, _ = begin(task.id, "tags")
    observation, _, _, info = step(early, Call("sort", {"file_name": "nothing"}))
    assert early.format.results_in(observation) == ['{"error": "sort: nothing: No such file or directory"}']


def test_arguments_and_states_do_not_share_objects() -> None:
    task = next(task for task in read_tasks("base").values() if "TwitterAPI" in task.classes)
    env, _ = begin(task.id)
    tags = ["#a"]
    action = Call("post_tweet", {"content": "x", "tags": tags, "mentions": []})
    step(env, Call("authenticate_twitter", {"username": "x", "password": "y"}))
    snapshot = env.snapshot()
    first = step(env, action)
    key = first[3]["state_key"]
    first[3]["calls"][0]["arguments"].get("tags", []).append("#b")
    assert step(env, Call("posting_get_login_status"))[3]["state_key"] != key
    env.restore(snapshot)
    assert step(env, action)[3]["state_key"] == key


def test_parallel_episodes_do_not_influence_each_other() -> None:
    tasks = [task for name in SETS for task in list(read_tasks(name).values())[::40]]

    def play(envs: list[ToolsEnv]) -> list[list[Any]]:
        waiting = [messages(env, task) for env, task in zip(envs, tasks, strict=True)]
        shown: list[list[Any]] = [
            [env.reset(options={"task": task_of(task.id)})[0]] for env, task in zip(envs, tasks, strict=True)
        ]
        while any(waiting):
            for env, texts, seen in zip(envs, waiting, shown, strict=True):
                if texts:
                    observation, _, _, _, info = env.step(texts.pop(0))
                    seen.append((observation, info["state_key"], info["score"]))
        return shown

    alone = []
    for task in tasks:
        env = make()
        seen: list[Any] = [env.reset(options={"task": task_of(task.id)})[0]]
        for message in messages(env, task):
            observation, _, _, _, info = env.step(message)
            seen.append((observation, info["state_key"], info["score"]))
        alone.append(seen)
    assert play([make() for _ in tasks]) == alone


def test_a_payload_that_cannot_be_played_is_an_error() -> None:
    env = make()
    with pytest.raises(ValueError, match="needs a 'set' and an 'id'"):
        env.reset(options={"task": Task("x", ENV_ID, payload={"scenario": "bfcl"})})
    with pytest.raises(UnknownNameError, match="multi_turn_base_6"):
        env.reset(
            options={
                "task": Task("x", ENV_ID, payload={"scenario": "bfcl", "set": "base", "id": "multi_turn_base_600"})
            }
        )


# -- env=tools env.questions=bfcl -------------------------------------------------------------------------------------
class TestTaskSet(TaskSetConformance):
    def make_task_set(self) -> ToolTasks:
        return ToolTasks("bfcl")


def test_the_four_sets_are_splits_without_an_expert() -> None:
    tasks = ToolTasks("bfcl")
    assert tuple(tasks.splits) == tuple(tasks.eval_splits) == SETS
    assert [tasks.manifest(name).facts()["official_tasks"] for name in SETS] == [200] * 4
    assert [tasks.manifest(name).ids for name in SETS] == [tuple(sorted(read_tasks(name))) for name in SETS]
    assert tasks.expert() is None
    longest = max(len(task.user_turns) for name in SETS for task in read_tasks(name).values())
    assert tasks.max_turns == longest * (MOST_STEPS + 1)
    assert "bfcl-eval" in tasks.describe()
    assert "calls as tags" in tasks.describe()
    assert "calls as native" in ToolTasks("bfcl", format="native").describe()


def test_manifests_cover_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    before = ToolTasks("bfcl").manifest("base").content_hash
    monkeypatch.setattr("envs.tools.bfcl_tasks.data_hash", lambda: "another")
    assert ToolTasks("bfcl").manifest("base").content_hash != before
