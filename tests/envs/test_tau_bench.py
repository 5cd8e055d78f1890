"""Customers, tools over a database, and the reward by its end state."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from envs.conformance import TaskSetConformance
from envs.core import NoDataError, StopReason, Task, UnknownNameError
from envs.fetch import DownloadError
from envs.tau_bench.database import Data, Database, canonical
from envs.tau_bench.domains import FOLDER
from envs.tau_bench.download import install
from envs.tau_bench.env import TauBenchEnv
from envs.tau_bench.tasks import TauBenchTasks
from envs.tau_bench.tools import calculate
from envs.tau_bench.users import GREETING, STOP, ScriptedUser
from envs.tools.calls import FORMATS
from envs.tools.tool import Call
from tests.env_replay.__main__ import main

DATA = Path(os.environ.get("POLYTURN_DATA", "/nowhere"))
RECORDINGS = Path(__file__).parent.parent / "golden_data" / "tau_bench"
needs_data = pytest.mark.skipif(
    not (DATA / FOLDER).is_dir(), reason="needs tau_bench in $POLYTURN_DATA: python -m scripts.download tau_bench"
)


class TestEmbedded(TaskSetConformance):
    def make_task_set(self) -> TauBenchTasks:
        return TauBenchTasks("embedded", max_turns=8)


@needs_data
class TestAirline(TaskSetConformance):
    def make_task_set(self) -> TauBenchTasks:
        return TauBenchTasks("airline", format="brackets", oracle=True)


def call(env: TauBenchEnv, name: str, **arguments: Any) -> str:
    info = env.step(FORMATS["tags"].write([Call(name, arguments)], {}))[4]
    text: str = info["calls"][0]["text"]
    return text


def started(tasks: TauBenchTasks, number: int = 0) -> tuple[TauBenchEnv, Task]:
    env, split = tasks.make(), tasks.splits[-1]
    task = tasks.task(split, tasks.manifest(split).ids[number])
    env.reset(options={"task": task})
    return env, task


def play(tasks: TauBenchTasks, split: str, step: int = 1) -> list[bool]:
    env, solved = tasks.make(), []
    for task_id in tasks.manifest(split).ids[::step]:
        expert = tasks.expert()
        assert expert is not None
        observation, info = env.reset(options={"task": tasks.task(split, task_id)})
        expert.reset(observation, info)
        while not info["stop_reason"]:
            action = expert.act()
            observation, _, _, _, info = env.step(action)
            expert.observe(action, observation, info)
        solved.append(info["success"])
    return solved


# -- the database -----------------------------------------------------------------------------------------------------
ROWS = {
    "orders": {f"#{n}": {"id": f"#{n}", "items": [n], "paid": n + 0.5, "none": {}} for n in range(30)},
    "users": {f"user_{n}": {"name": {"last": "O'Neil", "first": "Ö"}, "orders": []} for n in range(9)},
}


def digest(rows: Any) -> str:
    def tuples(value: Any) -> Any:
        if isinstance(value, dict):
            return tuple((key, tuples(item)) for key, item in sorted(value.items()))
        return tuple(map(tuples, value)) if isinstance(value, list) else value

    assert canonical(rows) == str(tuples(rows))
    return hashlib.sha256(str(tuples(rows)).encode()).hexdigest()


def test_the_hash_is_that_of_the_whole_text() -> None:
    rng = random.Random(0)
    for _ in range(50):
        rows = json.loads(json.dumps(ROWS))
        database = Database(Data(ROWS))
        assert database.hash() == digest(ROWS)
        for _ in range(rng.randrange(5)):
            table = rng.choice(sorted(rows))
            key = rng.choice([*rows[table], "#", "user_99", "zzz"])
            if key in rows[table]:
                change = rng.choice(({"paid": 10}, {"paid": 10.0}, {"items": [2, 1]}, {"items": []}, {"new": "ü"}))
                rows[table][key].update(change)
                database.edit(table, key).update(change)
            else:
                rows[table][key] = {"id": key}
                database.add(table, key, {"id": key})
        assert database.hash() == digest(rows)


def test_an_episode_changes_its_own_rows_alone() -> None:
    data = Data(ROWS)
    one, two = Database(data), Database(data)
    one.edit("orders", "#3")["items"].append(7)
    saved = one.save()
    one.edit("orders", "#3")["items"].append(8)
    assert one.read("orders", "#3")["items"] == [3, 7, 8]
    assert two.read("orders", "#3")["items"] == data.table("orders")["#3"]["items"] == [3]
    one.load(saved)
    assert one.read("orders", "#3")["items"] == [3, 7]
    one.edit("orders", "#3")["items"].remove(7)
    assert one.changes() == two.changes() == ()  # what was undone is no change


# -- tools ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("1/3", "0.33"), ("2**10", "1024.0"), ("10.005 * 3", "30.02"), (" (2+3)*4.5", "22.5"), ("7//2", "3.0"),
        ("-2**2", "-4.0"), ("1 / 0", "division by zero"), ("9**9**9", "int too large to convert to float"),
        ("2(3)", "'int' object is not callable"), ("", "invalid syntax"), ("abs(1)", "invalid characters"),
        ("(-8)**0.5", "float() argument must be a string or a real number, not 'complex'"),
        ("()", "float() argument must be a string or a real number, not 'tuple'"),
        ("1.5.2", "invalid syntax"), ("(1", "'(' was never closed"),
    ],
)  # fmt: skip
def test_arithmetic_without_eval(expression: str, value: str) -> None:
    env, _ = started(TauBenchTasks("embedded", format="tags"))
    text = call(env, "calculate", expression=expression)
    assert text == value or text.startswith(f"Error: {value}")
    assert calculate.__module__ == "envs.tau_bench.tools"


def test_errors_name_classes_as_the_reference_does() -> None:
    env, task = started(TauBenchTasks("embedded", format="tags"))
    assert call(env, "get_user_details") == (
        "Error: GetUserDetails.invoke() missing 1 required positional argument: 'user_id'"
    )
    assert call(env, "think") == "Error: Think.invoke() missing 1 required positional argument: 'thought'"
    assert call(env, "think", thought="hm") == ""
    assert call(env, "transfer") == "Unknown action transfer"
    assert call(env, "get_order_details", order_id=["#W1"]) == "Error: unhashable type: 'list'"
    assert call(env, "get_order_details", order_id=1) == "Error: order not found"
    assert call(env, "cancel_pending_order", order_id="#W1000", reason="because").startswith("Error: ")
    assert task.payload["domain"] == "embedded"


# -- conversations ----------------------------------------------------------------------------------------------------
def test_the_expert_of_the_shop_and_the_oracle_solve_every_task() -> None:
    for format in ("tags", "brackets", "native"):  # noqa: A001
        assert all(play(TauBenchTasks("embedded", format=format), "valid", step=4))
        assert all(play(TauBenchTasks("embedded", format=format, oracle=True), "valid", step=8))


@needs_data
def test_the_oracle_solves_every_published_task() -> None:
    solved = {
        (domain, split): play(TauBenchTasks(domain, oracle=True), split)
        for domain, splits in {"retail": ("train", "dev", "test"), "airline": ("test",)}.items()
        for split in splits
    }
    assert sum(map(sum, solved.values())) == sum(map(len, solved.values())) == 685


@needs_data
@pytest.mark.parametrize(
    ("domain", "split", "floor"), [("airline", "test", 19), ("retail", "test", 7), ("retail", "train", 5)]
)
def test_the_score_of_an_agent_that_ends_at_once(domain: str, split: str, floor: int) -> None:
    tasks = TauBenchTasks(domain)
    env, solved = tasks.make(), 0
    manifest = tasks.manifest(split)
    assert len(manifest.ids) == manifest.official_count
    for task_id in manifest.ids:
        env.reset(options={"task": tasks.task(split, task_id)})
        _, reward, terminated, _, info = env.step("Goodbye.")
        assert terminated
        solved += info["success"]
        assert reward == info["score"]
    assert solved == floor


def test_the_database_is_the_agents_after_the_end() -> None:
    env, task = started(TauBenchTasks("embedded", format="tags", oracle=True))
    before = env.database_hash
    assert task.payload["actions"]
    _, reward, terminated, _, info = env.step("Goodbye.")
    assert (reward, terminated, info["stop_reason"]) == (0.0, True, StopReason.FAILURE)
    assert info["signals"]["database_is_right"] is False
    assert env.database_hash == before != env.reference_hash


def test_required_outputs_must_be_in_messages() -> None:
    tasks = TauBenchTasks("embedded", format="tags")
    env = tasks.make()
    task = next(task for i in tasks.manifest("valid").ids if (task := tasks.task("valid", i)).payload["outputs"])
    [output] = task.payload["outputs"]
    for text, solved in ((f"It was {float(output):,} dollars.", True), ("I do not know.", False)):
        env.reset(options={"task": task})
        info = env.step(text)[4]
        assert (info["success"], info["signals"]["outputs"]) == (solved, {output: solved})


def test_a_transfer_ends_the_conversation() -> None:
    env, _ = started(TauBenchTasks("embedded", format="tags"))
    calls = [Call("transfer_to_human_agents", {"summary": "x"}), Call("think", {"thought": "x"})]
    observation, _, terminated, _, info = env.step(FORMATS["tags"].write(calls, {}))
    assert terminated
    assert observation.startswith("<result>Transfer successful</result>\n<result>Error: the conversation has ended")
    assert info["signals"]["transferred"]


def test_the_scripted_user() -> None:
    user = ScriptedUser()
    assert user.answer("I want tea.", [GREETING]) == "I want tea."
    said = [GREETING, "I want tea."]
    assert user.answer("I want tea.", [*said, "Shall I go on?"]) == "Yes."
    assert user.answer("I want tea.", [*said, "It is done. Is there anything else?"]) == STOP
    assert user.answer("I want tea.", [*said, "It is done."]) == STOP


def test_the_solution_is_not_shown_and_the_user_is_named() -> None:
    for oracle in (False, True):
        env, task = TauBenchTasks("embedded", format="tags", oracle=oracle).make(), None
        tasks = TauBenchTasks("embedded", format="tags")
        task = tasks.task("valid", tasks.manifest("valid").ids[0])
        _, info = env.reset(options={"task": task})
        assert ("reference" in info) == oracle
        assert info["user"] == "scripted"
        assert info["goal"] not in task.payload["instruction"]


class Other:
    name = "other"

    def answer(self, instruction: str, said: Sequence[str]) -> str:
        return f"{len(said)} {instruction}"


def test_another_user_is_another_setting() -> None:
    one, two = TauBenchTasks("embedded", format="tags"), TauBenchTasks("embedded", format="tags", user=Other())
    assert one.manifest("valid") != two.manifest("valid")
    assert pickle.loads(pickle.dumps(two.make)).__self__.facts()["user"] == "other"
    env, task = started(two)
    assert env.step("Hello?")[0] == f"3 {task.payload['instruction']}"


def test_wrong_settings_are_named(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="domain 'retial'; did you mean 'retail'"):
        TauBenchTasks("retial")
    with pytest.raises(UnknownNameError, match="format"):
        TauBenchTasks("embedded", format="xml")
    with pytest.raises(NoDataError, match=r"no database in .*scripts\.download tau_bench"):
        TauBenchTasks("airline", data=str(tmp_path))
    assert TauBenchTasks(data=str(tmp_path)).domain == "embedded"
    env = TauBenchTasks("embedded", format="tags").make()
    with pytest.raises(ValueError, match="a conversation needs 'actions'"):
        env.reset(options={"task": Task("a", "b", payload={"domain": "embedded", "instruction": "", "outputs": []})})


TASK = """
from tau_bench.types import Action, Task
TASKS = [
    Task(annotator="0", user_id="a", instruction="Say \\"é\\".", actions=[
        Action(name="think", kwargs={"thought": "a" "b", "n": [-1, 2.5, True, None]})], outputs=["1"]),
]
"""


def test_tasks_are_read_from_the_repository(tmp_path: Path) -> None:
    envs = tmp_path / "tau-bench-59a200c" / "tau_bench" / "envs"
    for domain, splits in {"retail": ("train", "dev", "test"), "airline": ("test",)}.items():
        (envs / domain / "data").mkdir(parents=True)
        (envs / domain / "wiki.md").write_text("# Policy")
        for name, rows in ROWS.items():
            (envs / domain / "data" / f"{name}.json").write_text(json.dumps(rows))
        for split in splits:
            (envs / domain / f"tasks_{split}.py").write_text(TASK)
    with pytest.raises(DownloadError, match="no tau_bench/envs in"):
        install(tmp_path / "data", tmp_path / "nothing")
    install(tmp_path / "data", tmp_path)
    install(tmp_path / "copy", tmp_path / "data")
    tasks = TauBenchTasks("airline", data=str(tmp_path / "copy"))
    payload = tasks.task("test", "airline-test-000").payload
    assert payload["instruction"] == 'Say "é".'
    assert payload["actions"] == [{"name": "think", "kwargs": {"thought": "ab", "n": [-1, 2.5, True, None]}}]
    assert tasks.system_prompt == "# Policy"


@needs_data
def test_recordings_are_reproduced(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(RECORDINGS), "--data", str(DATA)]) == 0, capsys.readouterr().out
