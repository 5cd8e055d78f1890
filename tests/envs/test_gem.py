"""Games of GEM: by seed, with the package's texts and rewards."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from envs.conformance import Subject, TaskSetConformance
from envs.core import Task, UnknownNameError
from envs.gem.env import GemEnv
from envs.gem.tasks import GAMES, GemTasks, games
from tests.engines import needs_package

pytestmark = needs_package("gem", "gem")


class TestConformance(TaskSetConformance):
    def make_task_set(self) -> GemTasks:
        return GemTasks("game:Game2048-v0-easy", train_tasks=2, valid_tasks=2, max_turns=4)

    def subject(self) -> Subject:
        tasks = self.make_task_set()
        return Subject(tasks.make, [tasks.task("valid", "seed-1000001")])


def play(game: str, seed: int, actions: list[str], max_turns: int = 100) -> list[Any]:
    env = GemEnv(max_turns)
    text, info = env.reset(options={"task": Task("one", env="a", payload={"game": game, "seed": seed})})
    seen: list[Any] = [(text, info)]
    for action in actions:
        if not info["stop_reason"]:
            *got, info = env.step(action)
            seen.append((*got, info))
    return seen


WORDS = ("up", "down", "left", "right", "3", "5 6 1 2", "1 2", "reveal 1 1", "flag 0 2", "1 1 2", "A B", "what?")


@pytest.mark.parametrize("game", GAMES)
def test_every_game_is_that_of_the_package_and_equal_seeds_are_equal(game: str) -> None:
    import gem

    name = f"game:{game}-v0-easy"
    actions = [rf"\boxed{{{word}}}" for word in random.Random(game).choices(WORDS, k=20)]
    seen = play(name, 7, actions)
    state = random.getstate()
    assert seen == play(name, 7, actions)
    assert random.getstate() == state
    theirs = gem.make(name)
    text, _ = theirs.reset(7)
    assert seen[0][1]["goal"] == text
    for action, (observation, reward, *_, info) in zip(actions, seen[1:], strict=False):
        text, given, terminated, truncated, _ = theirs.step(action)
        assert text in observation
        assert (reward, info["stop_reason"] is not None) == (given, terminated or truncated)
    random.setstate(state)


def test_the_number_is_found() -> None:
    actions = [rf"\boxed{{{number}}}" for number in range(1, 5)]
    for seed in range(20):
        *_, (text, reward, terminated, _, info) = play("game:GuessTheNumber-v0-easy", seed, actions)
        assert terminated
        assert info["success"] == (reward == 1) == text.startswith("Congratulations!")
        if info["success"]:
            break
    assert info["score"] == 1
    *_, (text, reward, _, _, info) = play("game:GuessTheNumber-v0-easy", 1, ["five"])
    assert (round(reward, 9), info["score"], info["stop_reason"]) == (-0.1, 0.0, "failure")
    assert text.endswith("\nEnter your next guess.")


def test_the_page_shows_an_episode() -> None:
    page = Path("docs/environments/gem.md").read_text(encoding="utf-8")
    actions = re.findall(r"^    > (.*)", page, re.MULTILINE)
    (first, _), *rest = play("game:GuessTheNumber-v0-easy", 1_000_000, actions)
    turns = [line for action, (text, *_) in zip(actions, rest, strict=True) for line in (f"> {action}", text)]
    shown = "\n".join([first, *turns]).splitlines()
    assert "".join(f"    {line}\n" if line else "\n" for line in shown) in page


def test_what_cannot_be_played_is_refused_with_the_reason() -> None:
    for name, reason in (
        ("game:Wordle-v0-easy", "corpus of NLTK"), ("rg:leg_counting", "env=reasoning_gym"),
        ("math:GSM8K", "from a hub"), ("code:Taco8k", "as a program"), ("game:Crosswords-v0-easy", "pandas"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"env.game={name} cannot be played: .*{reason}"):
            GemTasks(name)
    with pytest.raises(UnknownNameError, match="did you mean 'game:Mastermind-v0-easy'"):
        GemTasks("game:Mastermnd-v0-easy")
    with pytest.raises(ValueError, match="needs a Task with the payload of GemTasks"):
        GemEnv().reset(options={"task": Task("a", "b")})
    assert len(games()) == 25


def test_the_configuration_has_the_defaults() -> None:
    cfg = OmegaConf.merge(OmegaConf.load("conf/env/gem.yaml"), {"game": "game:Mastermind-v0-easy"})
    assert instantiate(cfg).manifest("valid") == GemTasks("game:Mastermind-v0-easy").manifest("valid")
