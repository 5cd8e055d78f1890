"""`python -m scripts.check`: the rules of the contract, and what is printed for a broken one."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from envs.conformance import ENV_RULES, TASK_SET_RULES
from scripts.check import rule_texts
from tests.scripts.test_commands import Cli, cli  # noqa: F401 - the fixture

RULES = [*ENV_RULES, *TASK_SET_RULES]
SPOILT = """
import random
import gymnasium as gym


class Spoilt(gym.Env):
    action_space = observation_space = gym.spaces.Text(max_length=80)

    def reset(self, *, seed=None, options=None):
        return f"Your number is {random.random()}.", {"admissible": ["go"]}

    def step(self, action):
        if len(action) > 100:
            raise KeyError("too long [/b]")
        return "You have gone.", 1.0, True, False, {"admissible": ["go"]}


gym.register("Spoilt-v0", Spoilt, max_episode_steps=8)
"""
RAISES = """
class Raises:
    def __init__(self):
        self.key = {}["missing"]


class Nothing:
    env_id = "Nothing-v0"
"""
BROKEN = """
import gymnasium as gym


class Broken(gym.Env):
    action_space = observation_space = gym.spaces.Text(max_length=80)

    def reset(self, *, seed=None, options=None):
        return {}["boom"]


gym.register("Broken-v0", Broken, max_episode_steps=8)
"""


def test_an_environment_that_keeps_all_rules(cli: Cli) -> None:  # noqa: F811
    code, out, err = cli("check", "env=key_corridor", "env.train_tasks=4", "env.valid_tasks=2")
    assert code == 0, err
    assert re.findall(r"^✓ +(\d+) (\w+) \(", out, re.M) == [(str(n), rule) for n, rule in enumerate(RULES, start=1)]
    assert "all 22 rules hold, on 4 tasks" in out


def test_broken_rules_are_explained_and_the_others_are_checked(
    cli: Cli,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "spoilt_game.py").write_text(SPOILT)
    monkeypatch.syspath_prepend(str(tmp_path))
    code, out, _ = cli("check", "env=gym", "env.id=spoilt_game:Spoilt-v0", "env.train_tasks=4", "env.valid_tasks=2")
    assert code == 1
    broken = re.findall(r"^✗ +\d+ (\w+)$", out, re.M)
    assert {"replay_is_equal", "global_randomness_is_left_alone", "any_text_is_an_action"} <= set(broken)
    assert "the rule: the same task, seed and actions give the same transcript in another instance." in out
    assert "raised KeyError('too long [/b]'), in " in out
    assert re.search(r"spoilt_game\.py, line 14: raise KeyError", out)
    assert f"{len(broken)} rules of 22 broken" in out
    assert len(re.findall("^✓", out, re.M)) == 22 - len(broken)


def test_every_rule_has_a_text() -> None:
    texts = rule_texts()
    assert list(texts) == RULES
    assert all(text.endswith(".") and "\n" not in text for text in texts.values())


def test_a_wrong_environment_is_refused_in_a_line(cli: Cli) -> None:  # noqa: F811
    code, _, err = cli("check", "env=key_corridors")
    assert code == 2
    assert "did you mean 'key_corridor'" in err


def test_a_class_that_is_not_an_environment_is_refused_in_one_line(cli: Cli) -> None:  # noqa: F811
    code, _, err = cli("check", "env=gym", "env.id=CartPole-v1")
    assert (code, err.count("\n")) == (2, 1), err
    assert "expected an environment with text actions" in err


@pytest.mark.parametrize("command", [["check"], ["train"], ["evaluate", "agent=random"]])
@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("Raises", "in env: theirs.Raises raised KeyError: 'missing' ({file}, line 4)"),
        ("Nothing", "env._target_ is theirs.Nothing, which makes no task set: it has no splits, no max_turns, no"),
    ],
)
def test_an_error_in_the_class_of_another_project_is_one_line_with_its_place(
    cli: Cli,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    command: list[str],
    target: str,
    message: str,
) -> None:
    file = cli.folder / "theirs.py"
    file.write_text(RAISES)
    (cli.folder / "mine" / "env").mkdir(parents=True)
    (cli.folder / "mine" / "env" / "mine.yaml").write_text(f"_target_: theirs.{target}\n")
    monkeypatch.syspath_prepend(str(cli.folder))
    code, _, err = cli(command[0], f"--config-dir={cli.folder / 'mine'}", "env=mine", *command[1:])
    sys.modules.pop("theirs", None)
    assert (code, err.count("\n")) == (2, 1), err
    assert message.format(file=file) in err


def test_an_environment_that_raises_in_every_episode_is_one_line_with_its_place(
    cli: Cli,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = cli.folder / "broken_env.py"
    file.write_text(BROKEN)
    monkeypatch.syspath_prepend(str(cli.folder))
    code, _, err = cli("train", "env=gym", "env.id=broken_env:Broken-v0", "eval.selection_tasks=0", "hydra.run.dir=out")
    assert (code, "Traceback" in err) == (2, False), err
    assert f"the first was: KeyError: 'boom' ({file}, line 9); python -m scripts.check examines" in err
