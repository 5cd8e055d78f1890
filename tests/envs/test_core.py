"""The contract's own parts: names, manifests, text spaces, the base class, and what importing `envs` does."""

import os
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import envs
from envs.core import (
    INFO_KEYS,
    EpisodeOverError,
    FreeText,
    Info,
    Manifest,
    StopReason,
    Task,
    TextEnv,
    UnknownNameError,
    at_a_time,
    counted,
    evaluation_splits,
    hash_tasks,
    hold_out,
)

ROOT = Path(__file__).parents[2]


class Counter(TextEnv):
    """Ends at the action `end`; a task that is not there cannot begin."""

    def _begin(self, task: Task | None, seed: int | None) -> tuple[str, Info]:
        if task is not None and task.id == "broken":
            raise FileNotFoundError("no such game")
        return f"seed {seed}", {"goal": "to end"}

    def _act(self, action: str) -> tuple[str, float, bool, Info]:
        won = action == "win"
        return f"heard {action}", 1.0 if won else 0.0, action in ("end", "win"), {"success": won, "score": float(won)}


# -- names and manifests ----------------------------------------------------------------------------------------------
def test_an_unknown_name_is_named_with_the_nearest_ones() -> None:
    error = str(UnknownNameError("split", "valid_sen", ["train", "valid_seen", "valid_unseen"], "see the docs"))
    assert error.startswith("unknown split 'valid_sen'; did you mean 'valid_seen'")
    assert "known: train, valid_seen, valid_unseen" in error
    assert error.endswith("see the docs")


@pytest.mark.parametrize(
    ("task_set", "splits"),
    [
        (SimpleNamespace(splits=("train", "odd", "valid"), eval_splits=("valid",)), ["valid"]),
        (SimpleNamespace(splits=("train", "valid", "test")), ["valid", "test"]),
        (SimpleNamespace(splits=("all",)), ["all"]),
    ],
)
def test_the_default_split_is_that_of_the_environment(task_set: SimpleNamespace, splits: list[str]) -> None:
    assert evaluation_splits(task_set) == splits


@pytest.mark.parametrize(
    ("name", "known", "near"),
    [
        ("Nope-v0", ["Hopper-v5", "FrozenLake-v1"], None),  # a version is no likeness
        ("Foo-v0", ["Go-v0"], None),
        ("Hoper-v5", ["Hopper-v4", "Hopper-v5", "FrozenLake-v1"], "'Hopper-v4' or 'Hopper-v5'"),
        ("KeyCorridor-v0", ["polyturn/KeyCorridor-v0"], "'polyturn/KeyCorridor-v0'"),
        ("valid", ["train", "valid_seen"], "'valid_seen'"),
    ],
)
def test_only_what_is_near_is_suggested(name: str, known: list[str], near: str | None) -> None:
    error = str(UnknownNameError("name", name, known))
    assert (f"did you mean {near}?" in error) if near else ("did you mean" not in error)


def test_a_count_of_one_has_no_plural() -> None:
    assert [counted(number, "loop") for number in (0, 1, 2)] == ["0 loops", "1 loop", "2 loops"]


def test_a_long_list_of_known_names_is_cut_and_counted() -> None:
    error = str(UnknownNameError("task", "zzz", [f"task {n:03}" for n in range(500)]))
    assert "did you mean" not in error
    assert "task 011, … (500 in all)" in error
    assert "task 012" not in error


@pytest.mark.parametrize("ids", [("b", "a"), ("a", "a")])
def test_a_manifest_refuses_ids_that_are_unsorted_or_repeated(ids: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="Env-v0/train"):
        Manifest("Env-v0", "train", ids, "00")


def test_an_incomplete_manifest_is_described_as_such() -> None:
    assert "2 tasks, manifest abcdefabcdef" in Manifest("E-v0", "test", ("a", "b"), "abcdef" * 8, 2).describe()
    assert "2 of the official 134 tasks (incomplete)" in Manifest("E-v0", "test", ("a", "b"), "00", 134).describe()


IDS = tuple(f"{kind}-{n:02}" for kind in ("clean", "cool", "heat", "pick") for n in range(10))


def test_tasks_are_held_out_evenly_and_always_the_same() -> None:
    whole = Manifest("E-v0", "train", IDS, "00", official_count=40)
    training, held_out = hold_out(whole, 8)
    assert sorted(training.ids + held_out.ids) == list(IDS)
    assert [i.partition("-")[0] for i in held_out.ids] == ["clean"] * 2 + ["cool"] * 2 + ["heat"] * 2 + ["pick"] * 2
    assert (training.split, held_out.split) == ("train", "train")
    assert len({whole.content_hash, training.content_hash, held_out.content_hash}) == 3
    assert hold_out(whole, 8) == (training, held_out)
    assert hold_out(Manifest("E-v0", "train", IDS, "01"), 8)[0].content_hash != training.content_hash
    assert hold_out(whole, 0) == (whole, Manifest("E-v0", "train", (), hold_out(whole, 0)[1].content_hash))


@pytest.mark.parametrize("count", [-1, 11, 64, 2.5, None])
def test_a_split_that_cannot_spare_the_tasks_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match=r"eval\.selection_tasks=.* of the 40 tasks of train: expected 0 to 10"):
        hold_out(Manifest("E-v0", "train", IDS, "00"), count)


CONTENTS = st.dictionaries(st.text(max_size=5), st.binary(max_size=5), max_size=5)


@given(CONTENTS)
def test_the_hash_of_tasks_does_not_depend_on_their_order(contents: dict[str, bytes]) -> None:
    items = list(contents.items())
    assert hash_tasks(items) == hash_tasks(items[::-1])


@given(CONTENTS, CONTENTS)
def test_other_tasks_have_another_hash(one: dict[str, bytes], other: dict[str, bytes]) -> None:
    assert (hash_tasks(one.items()) == hash_tasks(other.items())) == (one == other)


# -- FreeText ---------------------------------------------------------------------------------------------------------
@given(st.text())
def test_any_string_is_free_text(text: str) -> None:
    assert text in FreeText()


def test_only_strings_are_free_text() -> None:
    for thing in (None, 1, b"bytes", ["list"], np.array("text")):
        assert thing not in FreeText()


def test_samples_of_free_text_follow_the_seed() -> None:
    samples = [[space.sample() for _ in range(5)] for space in (FreeText(seed=3), FreeText(seed=3), FreeText(seed=4))]
    assert samples[0] == samples[1] != samples[2]
    assert all(sample in FreeText() for sample in samples[0])
    with pytest.raises(ValueError, match="mask"):
        FreeText().sample(mask=1)


def test_free_text_compares_and_pickles() -> None:
    assert pickle.loads(pickle.dumps(FreeText())) == FreeText()
    assert FreeText() != gym.spaces.Text(5)


# -- TextEnv ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("actions", "stop", "flags"),
    [
        (["a", "win"], StopReason.SUCCESS, (True, False)),
        (["end"], StopReason.FAILURE, (True, False)),
        (["a", "b", "c"], StopReason.TURN_LIMIT, (False, True)),
        (["a", "b", "win"], StopReason.SUCCESS, (True, False)),  # the task ended on the very last turn
    ],
)
def test_every_ending_has_its_name(actions: list[str], stop: StopReason, flags: tuple[bool, bool]) -> None:
    env = Counter(max_turns=3)
    _, info = env.reset(seed=1)
    for action in actions:
        assert info["stop_reason"] is None
        _, _, *got, info = env.step(action)
    assert info["stop_reason"] is stop
    assert tuple(got) == flags
    with pytest.raises(EpisodeOverError, match="Counter: the episode is over"):
        env.step("a")


def test_info_is_filled_and_render_shows_the_last_observation() -> None:
    env = Counter(max_turns=3)
    observation, info = env.reset(seed=5)
    assert tuple(info) == INFO_KEYS
    assert info["goal"] == "to end"
    assert info["state_key"] == observation == env.render() == "seed 5"
    assert env.step("x")[4]["state_key"] == env.render() == "heard x"


def test_nothing_can_be_stepped_before_a_reset_or_after_one_that_failed() -> None:
    env = Counter(max_turns=3)
    with pytest.raises(EpisodeOverError):
        env.step("a")
    env.reset()
    with pytest.raises(FileNotFoundError):
        env.reset(options={"task": Task("broken", "Counter-v0")})
    with pytest.raises(EpisodeOverError):
        env.step("a")


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="max_turns must be at least 1, got 0"):
        Counter(max_turns=0)
    env = Counter(max_turns=3)
    with pytest.raises(UnknownNameError, match="unknown reset option 'tsk'; did you mean 'task'"):
        env.reset(options={"tsk": None})
    env.reset()
    with pytest.raises(TypeError, match="an action must be a string, got int: 3"):
        env.step(3)  # type: ignore[arg-type]


def test_snapshots_are_refused_where_there_are_none() -> None:
    env = Counter(max_turns=3)
    env.reset()
    with pytest.raises(NotImplementedError, match="Counter cannot take snapshots"):
        env.snapshot()


# -- import envs ------------------------------------------------------------------------------------------------------
def run_python(code: str, path: Path = ROOT) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(path), str(ROOT)])
    return subprocess.run(
        [sys.executable, "-W", "always", "-c", code],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=120,
    )


def install(site: Path, package: str, entry_point: str, **modules: str) -> None:
    """Put a package with one entry point where Python finds it, as pip would."""
    info = site / f"{package}-1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(f"[polyturn.envs]\n{entry_point}\n")
    for name, code in modules.items():
        (site / f"{name}.py").write_text(code)


def test_importing_envs_is_cheap_and_registers_the_house() -> None:
    assert gym.spec("polyturn/ALFWorld-v0").entry_point == "envs.alfworld.env:ALFWorldEnv"
    heavy = ["torch", "transformers", "alfworld", "textworld", "envs.alfworld"]
    done = run_python(f"import envs, sys; print([name for name in {heavy} if name in sys.modules])")
    assert done.stdout.strip() == "[]"
    assert done.stderr == ""
    assert envs.plugin_errors() == []


REGISTER = "import gymnasium\ndef register(): gymnasium.register('Theirs-v0', 'theirs:Env')\n"


@pytest.mark.parametrize(
    ("entry_point", "code"),
    [("any = theirs:register", REGISTER), ("any = theirs", f"{REGISTER}register()")],
    ids=["callable", "module"],
)
@pytest.mark.parametrize("first", ["envs", "theirs"])
def test_entry_points_register_environments(tmp_path: Path, entry_point: str, code: str, first: str) -> None:
    install(tmp_path, "their-package", entry_point, theirs=f"import envs.core\n{code}")
    # Their module may import ours, and may be the first to be imported.
    done = run_python(
        f"import {first}, envs, gymnasium; print(envs.plugin_errors(), gymnasium.spec('Theirs-v0').id)", tmp_path
    )
    assert done.stdout.strip() == "[] Theirs-v0"
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("code", "problem"),
    [("import does_not_exist_\n", "No module named 'does_not_exist_'"), ("", "has no attribute 'register'")],
)
def test_a_broken_entry_point_warns_and_its_environment_raises(tmp_path: Path, code: str, problem: str) -> None:
    install(tmp_path / "a", "broken-package", "broken = broken_module:register", broken_module=code)
    install(tmp_path / "b", "good-package", "good = theirs:register", theirs=REGISTER)
    ask = (
        "import sys; sys.path.insert(0, sys.path[1] + '/../b')\n"
        "import envs, gymnasium; print(gymnasium.spec('Theirs-v0').id)\n"
        "from envs.gym_tasks import GymTasks; GymTasks('Broken-v0')"
    )
    done = run_python(ask, tmp_path / "a")
    assert done.stdout.strip() == "Theirs-v0", "the others are registered all the same"
    warned, asked = done.stderr.split("UnknownNameError: unknown environment 'Broken-v0'")
    for words in ("'broken' (broken_module:register) of broken-package 1.2", "Traceback", problem):
        assert words in warned
        assert words in asked
    assert "RuntimeWarning" in warned


def test_only_a_few_costly_environments_are_created() -> None:
    assert at_a_time(SimpleNamespace(most_environments=8), 128) == 8
    assert at_a_time(SimpleNamespace(most_environments=8), 4) == 4
    assert at_a_time(SimpleNamespace(), 128) == 128
