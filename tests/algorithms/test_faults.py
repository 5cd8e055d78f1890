"""Episodes that a fault of the environment ended are counted, and are not learned from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import algorithms.trainer
from agents.episode import Episode, Turn
from agents.record import read_record
from agents.rollout import Job, rollout
from algorithms.estimators.grpo import grpo
from algorithms.filters import apply_filters, faults, uniform_groups
from algorithms.signals.base import Measurement, RolloutBatch, UntrainedSignal
from algorithms.trainer import Trainer, rollout_metrics
from algorithms.tree_expansion import TreeExpansion
from algorithms.turn_table import TurnTable
from envs.core import Info, StopReason
from envs.pool import EnvPool
from tests.agents.corridors import Corridor, Corridors, corridor
from tests.agents.test_rollout import Walker
from tests.agents.toys import random_policy
from tests.algorithms.test_trainer import make_trainer

FAULTS = [StopReason.ENV_ERROR, StopReason.STEP_TIMEOUT, StopReason.EPISODE_TIMEOUT]


def attempt(group: int, *rewards: float, stop: StopReason = StopReason.FAILURE) -> Episode:
    turns = [Turn(f"room {t}", "go right", reward, f"room {t}") for t, reward in enumerate(rewards)]
    return Episode(corridor(), group, turns, stop_reason=stop, success=stop is StopReason.SUCCESS)


def test_limits_of_time_and_errors_are_faults_and_nothing_else_is() -> None:
    assert [reason for reason in StopReason if reason.is_fault] == [
        StopReason.STEP_TIMEOUT, StopReason.EPISODE_TIMEOUT, StopReason.ENV_ERROR,
    ]  # fmt: skip
    assert not Episode(corridor(), 0).is_faulty


@pytest.mark.parametrize("fault", FAULTS)
def test_an_attempt_left_alone_by_faults_is_left_out(fault: StopReason) -> None:
    three = [attempt(0, 0.0, 1.0) for _ in range(3)]
    alone, by_choice = attempt(1, 1.0), attempt(2, 1.0)
    episodes = [*three, attempt(0, 0.0, stop=fault), alone, attempt(1, 0.0, stop=fault), by_choice]
    assert apply_filters({"faults": faults}, episodes).episodes == [*three, by_choice]
    # Dynamic sampling sees three equal successes.
    assert apply_filters({"faults": faults, "uniform": uniform_groups}, episodes).episodes == []
    metrics = rollout_metrics([*three, attempt(0, 0.0, stop=fault)])
    assert (metrics["rollout/episodes"], metrics["rollout/faults"]) == (4.0, 1.0)
    assert (metrics["rollout/return"], metrics["rollout/turns"]) == (1.0, 2.0)
    assert metrics[f"stop/{fault}"] == 0.25


# -- in a run ---------------------------------------------------------------------------------------------------------
class Flaky(Corridor):
    """Raises at its second action, if its task says so."""

    def __init__(self, breaks: bool) -> None:
        super().__init__(8)
        self.breaks = breaks

    def _act(self, action: str) -> tuple[str, float, bool, Info]:
        if self.breaks and self._turns == 1:
            raise RuntimeError("the floor gave way")
        return super()._act(action)


def flaky_pool(*breaking: int, size: int = 16) -> EnvPool:
    numbers = count()
    return EnvPool(lambda: Flaky(next(numbers) in breaking), size)


class Seen(UntrainedSignal):
    """A signal that stores the batches that it measures and learns from."""

    def __init__(self, context: Any) -> None:
        self.batches: list[RolloutBatch] = []

    def measure(self, rollouts: RolloutBatch) -> Measurement:
        self.batches.append(rollouts)
        return Measurement()

    def learn(self, rollouts: RolloutBatch, estimate: Any) -> dict[str, float]:
        self.batches.append(rollouts)
        return {}


def flaky_trainer(run: Path, pool: EnvPool, **changes: Any) -> tuple[Trainer, list[TurnTable]]:
    tables: list[TurnTable] = []

    def estimator(table: TurnTable) -> np.ndarray:
        tables.append(table)
        return grpo(table)

    trainer = make_trainer(
        run, pool, random_policy(), 1, estimator, {"seen": Seen}, checkpoint_every=1, record_every=1, **changes
    )  # fmt: skip
    return trainer, tables


@pytest.fixture
def broken() -> Iterator[EnvPool]:
    """Of the groups of four, the first loses one attempt, the second three, the third all."""
    with flaky_pool(1, 5, 6, 7, 8, 9, 10, 11) as pool:
        yield pool


def test_an_update_leaves_out_episodes_that_a_fault_ended(
    tmp_path: Path, broken: EnvPool, caplog: pytest.LogCaptureFixture
) -> None:
    trainer, tables = flaky_trainer(tmp_path, broken)
    trainer.train()
    assert np.unique(tables[0].group[tables[0].is_first], return_counts=True)[0].tolist() == [0, 3]
    assert np.bincount(tables[0].group[tables[0].is_first]).tolist() == [3, 0, 0, 4]
    batches = trainer.signals["seen"].batches
    assert len(batches) == 2
    for batch in batches:
        assert [e.group for e in batch.episodes] == [0] * 3 + [3] * 4
        assert not any(e.is_faulty for e in batch.episodes)
    rows = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    metrics = next(row for row in rows if "train/loss" in row)
    assert (metrics["rollout/episodes"], metrics["rollout/faults"], metrics["groups/left_out"]) == (16.0, 8.0, 2.0)
    assert metrics["stop/env_error"] == 0.5
    assert "update 1: faults of the environment ended 8 of 16 episodes" in caplog.text
    assert "RuntimeError: the floor gave way" in caplog.text


def test_faulty_episodes_are_written_with_traceback_and_without_advantages(tmp_path: Path, broken: EnvPool) -> None:
    flaky_trainer(tmp_path, broken)[0].train()
    episodes = read_record(tmp_path / "episodes/update-000001.jsonl.gz").episodes
    faulty = [e for e in episodes if e.is_faulty]
    assert (len(episodes), len(faulty)) == (15, 8)
    assert all("the floor gave way" in e.error for e in faulty)
    assert all((turn.advantage is None) == e.is_faulty for e in episodes for turn in e.turns)


def test_a_batch_of_nothing_but_faults_ends_the_run(tmp_path: Path) -> None:
    with flaky_pool(*range(16)) as pool:
        trainer, _ = flaky_trainer(tmp_path, pool)
        with pytest.raises(RuntimeError, match=r"(?s)ended 16 of 16 episodes.*the floor gave way"):
            trainer.train()


def test_other_groups_are_played_if_faults_leave_none(tmp_path: Path) -> None:
    once = iter([1])

    class Once(Flaky):
        def _act(self, action: str) -> tuple[str, float, bool, Info]:
            if self.breaks and self._turns == 1 and next(once, 0):
                raise RuntimeError("the floor gave way")
            return super()._act(action)

    numbers = count()
    with EnvPool(lambda: Once(next(numbers) == 0), 2) as pool:
        trainer, _ = flaky_trainer(tmp_path, pool, groups=1, group_size=2)
        done = trainer._roll_out()
    assert [e.group for e in done.played] == [0, 0, 1, 1]
    assert [e.group for e in done.episodes] == [1, 1]


def test_a_fault_among_successes_makes_no_group_that_differs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(algorithms.trainer, "MAX_TRIES", 2)
    with flaky_pool(1, size=8) as pool:
        trainer, _ = flaky_trainer(tmp_path, pool, groups=2, dynamic_sampling=True)
        trainer.agent = Walker()
        done = trainer._roll_out()
    assert [e.is_faulty for e in done.played] == [i == 1 for i in range(16)]
    assert np.bincount([e.group for e in done.episodes]).tolist() == [0, 0, 4, 4]  # the last try, as it is


def test_trees_are_not_expanded_from_episodes_that_a_fault_ended() -> None:
    with flaky_pool(0) as pool:

        def play(jobs: list[Job]) -> list[Episode]:
            return rollout(Walker(), pool, jobs, max_turns=6, keep_starts=True)

        episodes = TreeExpansion(2, 2).play(play, [Job(corridor(9)) for _ in range(10)], np.random.default_rng(0))
    faulty = [e for e in episodes if e.is_faulty]
    assert faulty
    own = {id(turn) for e in faulty for turn in e.turns}
    first = faulty[0]
    assert not any(id(turn) in own for e in episodes if e is not first and not e.is_faulty for turn in e.turns[:1])


def test_turns_that_attempts_share_are_counted_once_whether_or_not_the_batch_is_written(tmp_path: Path) -> None:
    def steps(name: str, every: int) -> float:
        with EnvPool(Corridors().make, 16) as pool:
            trainer = make_trainer(
                tmp_path / name, pool, random_policy(), 1, grpo, groups=1, group_size=6,
                tree_expansion=TreeExpansion(2, 2), checkpoint_every=every,
            )  # fmt: skip
            metrics = trainer._update()
        assert metrics["rollout/env_steps"] < metrics["rollout/turns"] * metrics["rollout/episodes"]
        return metrics["rollout/env_steps"]

    assert steps("written", 1) == steps("not", 2)
