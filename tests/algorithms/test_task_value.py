"""The running success rate of tasks: its formula, how it forgets, and what a resumed run goes on with."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agents.agent import PolicyAgent
from agents.episode import Episode, Turn
from agents.masking import MaskedAgent
from algorithms.estimators.single_stream import single_stream
from algorithms.signals.base import RolloutBatch
from algorithms.signals.task_value import TaskValue
from algorithms.turn_table import TurnTable
from envs.core import Task
from envs.pool import EnvPool
from tests.agents.corridors import Corridors
from tests.agents.toys import random_policy
from tests.algorithms.test_signals import context_of, play
from tests.algorithms.test_trainer import make_trainer, without_times
from tests.golden.tables import make_table, single_turns

CONSTANT = {"lowest": 0.9, "highest": 0.9}


def batch(*attempts: tuple[str, float], **changes: Any) -> RolloutBatch:
    """Attempts of one turn at tasks, with their returns."""
    episodes = [
        Episode(Task(task, "toy"), group, [Turn("o", "a", reward, "s")], **changes)
        for group, (task, reward) in enumerate(attempts)
    ]
    return RolloutBatch(episodes, TurnTable.from_episodes(episodes), [])


@pytest.fixture
def pool():
    with EnvPool(Corridors().make, 8) as made:
        yield made


def test_attempts_are_compared_with_the_success_rate_of_their_task() -> None:
    values = np.array([0.25, 0.5, 0.5])
    table = single_turns([0, 1, 2], [1.0, 0.0, 1.0], signals={"task_value": values})
    x = np.array([0.75, -0.5, 0.5])
    np.testing.assert_allclose(single_stream(table), (x - 0.25) / np.std(x, ddof=1), rtol=1e-7)
    assert single_stream(table, normalize=False).tolist() == x.tolist()
    assert single_stream(single_turns([0], [1.0], signals={"task_value": values[:1]})).tolist() == [0.0]


def test_long_episodes_count_once_in_the_statistics() -> None:
    table = make_table(
        [0, 0, 0, 1], [0, 0, 0, 1], [0, 1, 2, 0], [0.0, 0.0, 1.0, 0.0], signals={"task_value": np.full(4, 0.5)}
    )
    np.testing.assert_allclose(single_stream(table), np.array([1, 1, 1, -1]) / np.sqrt(2), rtol=1e-7)


def test_a_running_mean_forgets_once_for_each_batch() -> None:
    signal = TaskValue(None, **CONSTANT, first_value=0.25, first_weight=2.0)  # type: ignore[arg-type]
    first = batch(("a", 1.0), ("a", 0.0), ("b", 1.0))
    assert signal.measure(first).signals["task_value"].tolist() == [0.25] * 3
    assert signal.learn(first, np.zeros(3)) == {"signal/task_moved": 0.0, "signal/task_kept": 0.9}
    second = batch(("b", 0.5), ("c", 0.0), ("a", 1.0))
    measured = signal.measure(second)
    a, b = (0.9 * 0.5 + 1, 0.9 * 1.5 + 1), (0.9 * 0.5 + 1, 0.9 * 1.5)
    expected = [b[0] / sum(b), 0.25, a[0] / sum(a)]
    np.testing.assert_allclose(measured.signals["task_value"], expected)
    assert measured.metrics == {
        "signal/task_value": pytest.approx(np.mean(expected)), "signal/task_known": pytest.approx(2 / 3),
    }  # fmt: skip
    signal.learn(second, np.zeros(3))
    assert signal.counts["b"] == pytest.approx((0.9 * b[0] + 0.5, 0.9 * b[1] + 0.5))


def test_demonstrations_and_attempts_without_a_turn_are_not_counted() -> None:
    signal = TaskValue(None, **CONSTANT)  # type: ignore[arg-type]
    shown = batch(("a", 1.0), demonstration=True)
    assert signal.learn(shown, np.zeros(1)) == {}
    empty = RolloutBatch.of([Episode(Task("a", "toy"), 0)])
    assert signal.learn(empty, np.zeros(0)) == {}
    assert signal.measure(batch(("a", 1.0))).metrics["signal/task_known"] == 0.0


@pytest.mark.parametrize("reward", [-0.5, 1.5])
def test_returns_that_are_no_success_rate_raise(reward: float) -> None:
    with pytest.raises(ValueError, match=rf"task 'a' has the return {reward}; .* needs returns between 0 and 1"):
        TaskValue(None).measure(batch(("a", reward)))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"lowest=0\.97 is above its highest=0\.96"):
        TaskValue(None, lowest=0.97)  # type: ignore[arg-type]


def test_what_is_forgotten_follows_how_far_the_policy_moved_on_the_last_attempt(pool: EnvPool) -> None:
    """A batch holds four attempts at each of two tasks. The last ones are measured, with the weights after a batch."""
    context = context_of(random_policy(), pool)
    signal = TaskValue(context, half_life=0.5, lowest=0.01, highest=0.999)
    rollouts = RolloutBatch.of(play(context))
    assert signal.learn(rollouts, np.zeros(0)) == {"signal/task_moved": 0.0, "signal/task_kept": 0.999}
    before = [_logprobs(context.model, sample) for sample in rollouts.samples[-2:]]
    with torch.no_grad():
        for parameter in context.model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)), alpha=0.01)
    after = [_logprobs(context.model, sample) for sample in rollouts.samples[-2:]]
    moved = [float(np.abs(one - other).mean()) for one, other in zip(after, before, strict=True)]
    assert min(moved) > 0.005
    another = RolloutBatch.of(play(context))
    counts = dict(signal.counts)
    metrics = signal.learn(another, np.zeros(0))
    kept = [2 ** -(m / 0.5) for m in moved]
    assert metrics == {
        "signal/task_moved": pytest.approx(np.mean(moved), rel=1e-4),
        "signal/task_kept": pytest.approx(np.mean(kept), rel=1e-4),
    }
    for (task, (a, _)), keep in zip(counts.items(), kept, strict=True):
        won = sum(episode.total_reward for episode in another.episodes if episode.task.id == task)
        assert signal.counts[task][0] == pytest.approx(keep * a + won, rel=1e-4)
    assert signal.learn(another, np.zeros(0))["signal/task_moved"] == 0.0  # these weights have learned from it


def _logprobs(model: Any, sample: Any) -> np.ndarray:
    ids = torch.tensor([sample.ids])
    with torch.no_grad():
        logprobs = model(ids[:, :-1]).logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[0, :, 0]
    return logprobs[torch.tensor(sample.mask[1:])].numpy()


@pytest.mark.parametrize("player", [PolicyAgent, MaskedAgent])
def test_a_resumed_run_equals_an_uninterrupted_one(player: Callable[..., Any], tmp_path: Path, pool: EnvPool) -> None:
    """Three tasks in pairs, so that each returns before and after the end."""
    corridors = Corridors().manifest("train")
    make = partial(
        make_trainer, pool=pool, estimator=single_stream, signals={"task_value": TaskValue}, player=player, groups=2,
        group_size=1, manifest=corridors.part(corridors.ids[:3]), learning_rate=0.02, final_learning_rate=0.02,
    )  # fmt: skip
    whole = make(tmp_path / "whole", policy=random_policy(), updates=4)
    whole.train()
    lines = without_times(tmp_path / "whole/metrics.jsonl")
    assert any(0.875 < line.get("signal/task_kept", 0) < 0.96 for line in lines)
    make(tmp_path / "parts", policy=random_policy(), updates=2).train()
    resumed = make(tmp_path / "parts", policy=random_policy(), updates=4)
    resumed.resume()
    resumed.train()
    assert [line for line in without_times(tmp_path / "parts/metrics.jsonl") if "rollout/success" in line] == [
        line for line in lines if "rollout/success" in line
    ]
    states = [str(trainer.signals["task_value"].state()) for trainer in (whole, resumed)]
    assert states[0] == states[1]
    for name, weight in whole.policy.model.state_dict().items():
        assert torch.equal(weight, resumed.policy.model.state_dict()[name]), name


def test_the_state_is_plain_data_also_before_the_first_batch() -> None:
    for signal in (TaskValue(None), TaskValue(None, **CONSTANT)):  # type: ignore[arg-type]
        if signal.lowest == signal.highest:
            signal.learn(batch(("a", 1.0)), np.zeros(1))
        file = io.BytesIO()
        torch.save(signal.state(), file)
        file.seek(0)
        restored = TaskValue(None)  # type: ignore[arg-type]
        restored.load_state(torch.load(file, weights_only=True))
        assert (restored.counts, restored.last) == (signal.counts, {})
