"""TextWorld's cooking games: one that is compiled, played by its walkthrough and played again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from envs.conformance import Subject, TaskSetConformance
from envs.core import Task
from envs.textworld_cooking.env import UNKNOWN, brief
from envs.textworld_cooking.games import compiled
from envs.textworld_cooking.tasks import TextWorldCookingTasks
from tests.engines import needs_package

pytestmark = needs_package("textworld", "alfworld")
EASIEST = {"cook": False, "train_tasks": 1, "valid_tasks": 1}


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One folder for all tests of this file, so a game is compiled once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POLYTURN_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


class TestConformance(TaskSetConformance):
    def make_task_set(self) -> TextWorldCookingTasks:
        return TextWorldCookingTasks(max_turns=6, **EASIEST)

    def subject(self) -> Subject:
        tasks = self.make_task_set()
        return Subject(tasks.make, [tasks.task("train", "seed-0000000")], tasks.max_turns, tasks.expert)


def test_the_walkthrough_cooks_the_meal() -> None:
    tasks = TextWorldCookingTasks(**EASIEST)
    env, expert = tasks.make(), tasks.expert()
    shown, info = env.reset(options={"task": tasks.task("train", "seed-0000000")})
    assert shown.startswith("You are hungry!")
    assert "$$" not in shown
    assert env.step("take knife " * 1000)[0] == UNKNOWN
    expert.reset(shown, info)
    total = 0.0
    while not info["stop_reason"]:
        action = expert.act()
        shown, reward, _, _, info = env.step(action)
        expert.observe(action, shown, info)
        total += float(reward)
    assert (round(total, 9), info["score"], info["stop_reason"]) == (1.0, 1.0, "success")
    env.close()


@pytest.mark.parametrize(
    "action",
    [
        "save",
        "RESTORE",
        "look. quit",
        "restart",
        "transcript on",
        "open fridge then script",
        "tw-trace-actions",
        "print_state",
        "x" * 199,
    ],
)
def test_only_commands_of_the_game_reach_the_interpreter(
    action: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tasks = TextWorldCookingTasks(**EASIEST)
    with closing(tasks.make()) as env:
        _, before = env.reset(options={"task": tasks.task("train", "seed-0000000")})
        shown, reward, terminated, _, info = env.step(action)
        assert (shown, reward, terminated) == (UNKNOWN, 0.0, False)
        assert info["state_key"] == before["state_key"]
        assert env.step("look")[0].startswith("-= Kitchen =-")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("action", ["look\0", "\\", "\\x", "x" + "取" * 190, "examine caf\udce9"])
def test_characters_that_the_interpreter_cannot_read_become_question_marks(
    action: str, capfd: pytest.CaptureFixture[str]
) -> None:
    tasks = TextWorldCookingTasks(**EASIEST)
    with closing(tasks.make()) as env:
        env.reset(options={"task": tasks.task("train", "seed-0000000")})
        assert env.step(action)[0] in (UNKNOWN, "You can't see any such thing.")
        assert env.step("look")[0].startswith("-= Kitchen =-")
    assert capfd.readouterr() == ("", "")


def test_a_game_is_compiled_once() -> None:
    payload = TextWorldCookingTasks(**EASIEST).task("train", "seed-0000000").payload
    file = compiled(payload)
    before = file.stat().st_mtime_ns
    assert compiled(payload).stat().st_mtime_ns == before
    assert isinstance(file, Path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"go": 2}, "go must be one of 1, 6, 9, 12"), ({"take": 2}, "take must be from 1"), ({"recipe": 6}, "at most 5")],
)
def test_wrong_settings_are_refused(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TextWorldCookingTasks(**settings)


def test_a_task_of_another_environment_is_refused() -> None:
    with pytest.raises(ValueError, match="payload of TextWorldCookingTasks"):
        TextWorldCookingTasks().make().reset(options={"task": Task("a", "b")})


def test_the_brief_form_is_a_line() -> None:
    assert brief("-= Kitchen =-\nA kitchen.\n\nThere is a stove.") == "Kitchen: A kitchen. There is a stove."


def test_the_configuration_has_the_defaults() -> None:
    ours = instantiate(OmegaConf.load("conf/env/textworld_cooking.yaml"))
    assert ours.manifest("valid") == TextWorldCookingTasks().manifest("valid")
    assert ours.describe() == TextWorldCookingTasks().describe()
