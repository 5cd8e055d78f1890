"""A checkpoint contains the whole state of a run, and no random generator is used outside of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from algorithms.checkpoint import checkpoints
from algorithms.signals.base import Measurement, RolloutBatch, SignalContext, UntrainedSignal
from algorithms.signals.critic import Critic
from algorithms.signals.entropy import Entropy
from algorithms.signals.implicit_prm import ImplicitPRM
from algorithms.trainer import Trainer
from algorithms.turn_table import Estimate
from envs.pool import EnvPool
from tests.agents.corridors import Corridors
from tests.agents.toys import random_policy
from tests.algorithms.test_signals import context_of, play, won_by_half
from tests.algorithms.test_trainer import make_trainer, without_times


class Counter(UntrainedSignal):
    """Counts the batches it has seen."""

    def __init__(self, context: SignalContext) -> None:
        self.seen = 0

    def measure(self, rollouts: RolloutBatch) -> Measurement:
        self.seen += 1
        return Measurement()

    def state(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load_state(self, state: dict[str, Any]) -> None:
        self.seen = state["seen"]


def noise(table) -> np.ndarray:
    """Advantages that differ, independent of the episodes."""
    return np.random.default_rng(len(table)).normal(size=len(table))


@pytest.fixture
def pool():
    with EnvPool(Corridors().make, 16) as made:
        yield made


def trainer_of(run: Path, pool: EnvPool, updates: int, scores: list[float], **changes: Any) -> Trainer:
    """A run that is evaluated before and after every update, with these scores."""
    trainer = make_trainer(
        run, pool, random_policy(), updates, noise, {"counter": Counter}, groups=2, group_size=2, checkpoint_every=1,
        eval_every=1, **changes,
    )  # fmt: skip
    left = iter(scores)
    trainer.evaluate = lambda: ({"eval/valid/success": (score := next(left))}, score)
    return trainer


def memory(trainer: Trainer) -> dict[str, Any]:
    """The whole state that a run resumes from, except the weights."""
    moments = trainer.learner.optimizer.state_dict()["state"]
    return {
        "update": trainer.update,
        "tasks_drawn": trainer.tasks_drawn,
        "best": trainer.best,
        "sampling": trainer.generator.get_state().tolist(),
        "order": trainer.rng.bit_generator.state,
        "signals": {name: signal.state() for name, signal in trainer.signals.items()},
        "moments": {i: {name: torch.as_tensor(v).tolist() for name, v in of.items()} for i, of in moments.items()},
    }


def test_a_checkpoint_restores_the_whole_state(tmp_path: Path, pool: EnvPool) -> None:
    first = trainer_of(tmp_path / "run", pool, 3, [0.1, 0.7, 0.4, 0.2])
    first.train()
    fresh = trainer_of(tmp_path / "run", pool, 3, [])
    before = memory(fresh)
    fresh.resume()
    after, wanted = memory(fresh), memory(first)
    for name, value in wanted.items():
        assert after[name] == value, name
        assert before[name] != value, name  # it is something that a run could forget
    assert after["best"] == (0.7, 1)
    assert after["tasks_drawn"] == 6
    for name, weight in first.learner.model.state_dict().items():
        assert torch.equal(weight, fresh.learner.model.state_dict()[name]), name


def test_a_worse_evaluation_after_a_resume_does_not_replace_the_best_checkpoint(tmp_path: Path, pool: EnvPool) -> None:
    trainer_of(tmp_path / "run", pool, 2, [0.1, 0.7, 0.4]).train()
    resumed = trainer_of(tmp_path / "run", pool, 4, [0.5, 0.6])
    resumed.resume()
    resumed.train()
    assert resumed.best == (0.7, 1)
    assert [folder.name for folder in checkpoints(tmp_path / "run")] == [f"update-00000{n}" for n in (0, 1, 4)]


def test_drawing_tasks_continues_where_it_stopped(tmp_path: Path, pool: EnvPool) -> None:
    """Twelve tasks of twenty-four are drawn before the end, and after it the other twelve."""
    drawn: list[str] = []

    def watched(updates: int) -> Trainer:
        trainer = trainer_of(tmp_path / "run", pool, updates, [0.5] * 9)
        draw = trainer._next_tasks
        trainer._next_tasks = lambda count: (tasks := draw(count), drawn.extend(task.id for task in tasks))[0]
        return trainer

    watched(6).train()
    resumed = watched(12)
    resumed.resume()
    resumed.evaluate = lambda: ({}, 0.0)
    resumed.train()
    assert sorted(drawn) == list(Corridors().manifest("train").ids)


def test_the_rate_of_every_update_is_that_of_the_schedule_and_is_used(tmp_path: Path, pool: EnvPool) -> None:
    trainer = trainer_of(
        tmp_path / "run", pool, 4, [0.5] * 9, learning_rate=1e-3, final_learning_rate=2e-4, warmup_updates=2
    )
    used: list[float] = []
    step = trainer.learner.optimizer.step
    trainer.learner.optimizer.step = lambda: (used.append(trainer.learner.optimizer.param_groups[0]["lr"]), step())[1]
    trainer.train()
    wanted = [5e-4, 8e-4, 6e-4, 4e-4]
    lines = without_times(tmp_path / "run/metrics.jsonl")
    assert [line["train/learning_rate"] for line in lines if "train/learning_rate" in line] == pytest.approx(wanted)
    assert used == pytest.approx([rate for rate in wanted for _ in range(2)])  # two minibatches


def test_a_run_uses_only_its_own_generators(tmp_path: Path, pool: EnvPool) -> None:
    """Whatever else in the process draws from the global generators moves nothing, and is not moved."""
    logs = []
    for seed in (1, 2):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            np.random.seed(seed)  # noqa: NPY002
            before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
            trainer_of(tmp_path / str(seed), pool, 2, [0.5] * 9).train()
            assert torch.equal(torch.get_rng_state(), before[0])
            assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002
        logs.append(without_times(tmp_path / str(seed) / "metrics.jsonl"))
    assert logs[0] == logs[1]


@pytest.mark.parametrize("make", [Critic, Entropy, ImplicitPRM])
def test_a_signal_that_plays_nothing_draws_nothing_from_the_sampling_generator(make: Any, pool: EnvPool) -> None:
    context = context_of(random_policy(), pool)
    rollouts = RolloutBatch.of(won_by_half(play(context)))
    before = context.agent.generator.get_state()
    signal = make(context)
    measured = rollouts.measured(signal.measure(rollouts))
    nothing = np.zeros(len(rollouts.table))
    signal.learn(measured, Estimate(nothing, nothing))
    assert torch.equal(context.agent.generator.get_state(), before)
