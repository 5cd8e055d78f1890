"""A warm start is made once, even if several runs start together."""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch
from filelock import FileLock
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from agents.prompts import Transcript
from agents.rollout import BrokenEnvironmentError
from algorithms import initial_policy
from algorithms.initial_policy import TinyPolicy, tiny_policy
from algorithms.warm_start import WarmStart
from envs import files
from envs.core import Info, Task, TaskSet, hold_out
from envs.pool import EnvPool
from scripts.common import plain
from tests.agents.corridors import Corridor, Corridors
from tests.algorithms.test_trainer import Quiet
from tests.damage import each_damage

CLONES = WarmStart(episodes=4, noise=0.0, steps=2, tokens_per_step=128, max_turns=4, matrix_lr=0.02, other_lr=0.01)
SMALL = TinyPolicy(width=16, layers=1, heads=2, context=128, warm_start=CLONES)


class Phases(Quiet):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def phase(self, name: str, total: int | None = None) -> None:
        self.names.append(name)


def make(phases: Phases, config: TinyPolicy = SMALL, seed: int = 0, tasks: TaskSet | None = None, held_out: int = 0):
    task_set = tasks or Corridors()
    training, _ = hold_out(task_set.manifest("train"), held_out)
    with EnvPool(task_set.make, 2) as pool:
        return tiny_policy(config, task_set, training, Transcript(), pool, seed, phases, {})


def test_runs_with_different_seeds_share_a_warm_start_with_its_own_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POLYTURN_CACHE", str(tmp_path))
    (_, first), (_, second) = (make(Phases(), seed=seed) for seed in (0, 1))
    assert first != second
    assert {make(Phases(), replace(SMALL, seed=1), seed)[1] for seed in (0, 5)} == {second}


class Watched(Corridors):
    """A task set that records which tasks were requested."""

    def __init__(self) -> None:
        self.asked: set[str] = set()

    def task(self, split: str, task_id: str) -> Task:
        self.asked.add(task_id)
        return super().task(split, task_id)


def test_held_out_tasks_are_not_cloned_and_change_the_warm_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POLYTURN_CACHE", str(tmp_path))
    tasks = Watched()
    _, folder = make(Phases(), tasks=tasks, held_out=6)
    training, held_out = hold_out(tasks.manifest("train"), 6)
    assert tasks.asked == set(training.ids)
    assert not tasks.asked & set(held_out.ids)
    assert folder != make(Phases(), tasks=Watched())[1]


def test_two_runs_that_start_together_make_one_warm_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYTURN_CACHE", str(tmp_path))
    both = Phases(), Phases()
    with ThreadPoolExecutor() as threads:
        (first, kept), (second, same) = threads.map(make, both)
    assert kept == same
    assert [phases.names.count("clone them") for phases in both].count(1) == 1
    assert sum(phases.names.count("clone them") for phases in both) == 1
    weights = second.model.state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in first.model.state_dict().items())


def test_waiting_too_long_raises_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYTURN_CACHE", str(tmp_path))
    monkeypatch.setattr(files, "LONGEST_WAIT", 0.05)
    phases = Phases()
    _, folder = make(phases)
    with FileLock(folder.with_suffix(".lock")), pytest.raises(TimeoutError, match=r"remove .*\.lock"):
        make(phases)
    assert phases.names[-1] == "wait for another run that makes this warm start"


def test_a_damaged_warm_start_is_made_again_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Every file of it, in every way."""
    monkeypatch.setenv("POLYTURN_CACHE", str(tmp_path / "cache"))
    policy, folder = make(Phases(), replace(SMALL, warm_start=None))
    expected = policy.model.state_dict()
    for done, _ in each_damage(folder, tmp_path / "spare"):
        caplog.clear()
        again, same = make(Phases(), replace(SMALL, warm_start=None))
        assert same == folder
        assert "damaged" in caplog.text, done
        assert "the warm start has to be made again" in caplog.text, done
        assert all(torch.equal(expected[name], tensor) for name, tensor in again.model.state_dict().items()), done


def test_nothing_is_cloned_from_an_environment_that_only_raises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POLYTURN_CACHE", str(tmp_path))
    monkeypatch.setattr("tests.agents.corridors.Corridor._begin", lambda *_: 1 / 0)
    with pytest.raises(BrokenEnvironmentError, match=r"(?s)ended 24 of 24 episodes.*ZeroDivisionError"):
        make(Phases())
    assert not [path for path in (tmp_path / "warm_starts").iterdir() if path.is_dir()]


# -- the key ----------------------------------------------------------------------------------------------------------
def configured(*overrides: str) -> DictConfig:
    with initialize_config_module("conf", version_base="1.3"):
        return compose("config", ["+policy.seed=0", *overrides])


def leaves(config: dict[str, Any], parent: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{parent}{name}.")
        else:
            yield f"{parent}{name}", value


def other(value: Any) -> Any:
    """A value of the same kind that is another one."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value * 0.5 + 0.25 if isinstance(value, float) else value + 1
    return {**value, "more": 1} if isinstance(value, dict) else [*value, "more"] if isinstance(value, list) else "other"


def key(config: DictConfig, masked: bool = False) -> str:
    policy = OmegaConf.to_container(config.policy)
    assert isinstance(policy, dict)
    return initial_policy._key(
        replace(instantiate({**policy, "_target_": "algorithms.initial_policy.TinyPolicy"}), seed=policy["seed"]),
        Corridors(), Corridors().manifest("train"), Transcript(), plain(config), masked,
    )  # fmt: skip


@pytest.mark.parametrize("overrides", [[], ["agent=gigpo", "env=webshop"]])
def test_every_key_of_the_configuration_counts_unless_it_is_left_out(overrides: list[str]) -> None:
    """Also a user's."""
    config = configured("+env.new=1", "+agent.prompter.new=1", "+new.key=1", *overrides)
    before = key(config)
    for name, value in leaves(OmegaConf.to_container(config, resolve=False)):  # type: ignore[arg-type]
        if name.startswith("policy.") and name.endswith("_target_"):
            continue  # the kinds of `TinyPolicy` and `WarmStart`
        changed = config.copy()
        OmegaConf.update(changed, name, other(value), force_add=True)
        left_out = any(name == part or name.startswith(f"{part}.") for part in initial_policy.LEFT_OUT)
        expected_same = left_out and not name.startswith("policy.")  # which is in `TinyPolicy`
        assert (key(changed) == before) is expected_same, name


def test_facts_outside_of_the_configuration_count_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = configured()
    keys = [key(config), key(config, masked=True)]
    for target, value in {
        "algorithms.initial_policy.VERSION": initial_policy.VERSION + 1,
        "algorithms.initial_policy.agents_hash": lambda: "another template",
        "algorithms.initial_policy.code_hash": lambda _: "another prompter",
        "envs.facts.code_hash": lambda _: "another expert",
        "algorithms.initial_policy.metadata.version": lambda _: "0.0",
        "tests.agents.corridors.hash_tasks": lambda _: "other tasks",
    }.items():
        with monkeypatch.context() as patch:
            patch.setattr(target, value)
            keys.append(key(config))
    assert len(set(keys)) == len(keys)


def test_the_first_token_of_an_action_is_its_verb_with_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYTURN_CACHE", str(tmp_path))
    policy, _ = make(Phases(), replace(SMALL, warm_start=None))
    assert [policy.tokenizer.decode([i]) for i in policy.tokenizer.encode("open door 1")] == ["open door 1"]


class Storyteller(Corridor):
    """An environment whose first step returns a long text with new words."""

    def _act(self, action: str) -> tuple[str, float, bool, Info]:
        observation, *rest = super()._act(action)
        return (" ".join(f"w{i}" for i in range(50_000)) if self.payload["length"] > 2 else observation, *rest)


class Stories(Corridors):
    def make(self) -> gym.Env[str, str]:
        return Storyteller(self.max_turns)


def test_texts_longer_than_the_context_give_no_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("POLYTURN_CACHE", str(tmp_path))
    policy, _ = make(Phases(), tasks=Stories())
    assert len(policy.tokenizer) < 1000
    assert re.search(r"\d+ of \d+ texts of the environment have more than 8192 characters, too long", caplog.text)
    assert re.search(r"\d of 4 demonstrations ended early", caplog.text)
