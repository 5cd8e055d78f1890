"""T-SPMO: which beginnings attempts share, and the gain of each word after them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agents.episode import Choice, Episode, Turn
from algorithms.estimators.t_spmo import t_spmo
from algorithms.losses import probability_loss
from algorithms.signals.base import RolloutBatch
from algorithms.signals.prefixes import Prefixes, prefix_tree
from envs.core import Task
from tests.golden.tables import make_table

Written = tuple[list[int], list[int]]  # prompt and completion of a turn


def episode_of(group: int, *turns: Written, reward: float = 0.0) -> Episode:
    made = [
        Turn("o", "a", reward * (number == len(turns) - 1), "s", "ok", prompt, ids, [-0.5] * len(ids))
        for number, (prompt, ids) in enumerate(turns)
    ]
    return Episode(Task(f"task {group}", "toy"), group, made)


def test_each_word_after_a_beginning_is_compared_with_all_that_followed_it() -> None:
    """After 7: 1 in two attempts, 2 in one. After 7 1: 3 and 4. The last attempt is at another task."""
    episodes = [
        episode_of(0, ([7], [1, 3]), reward=1.0),
        episode_of(0, ([7], [1, 4])),
        episode_of(0, ([7], [2, 3])),
        episode_of(1, ([7], [1, 3]), reward=1.0),
    ]
    rollouts = RolloutBatch.of(episodes)
    measured = Prefixes(None).measure(rollouts)  # type: ignore[arg-type]
    assert measured.metrics == {"signal/shared_prefixes": 5 / 8}
    advantages = t_spmo(rollouts.measured(measured).table)
    gains = np.array([[1 / 2 - 1 / 3, 1 - 1 / 2], [1 / 2 - 1 / 3, -1 / 2], [-1 / 3, 0], [0, 0]])
    shared = np.array([[2, 1], [2, 1], [1, 1], [1, 1]])
    pairs = 7
    np.testing.assert_allclose(advantages, (gains / shared).ravel() * 8 / pairs, rtol=1e-12)


def test_a_prefix_is_all_that_the_policy_read() -> None:
    """The same word after another observation is another place; an attempt may come to the same place twice."""
    episodes = [
        episode_of(0, ([7], [1]), ([7, 1, 8], [2, 5])),
        episode_of(0, ([7], [1]), ([7, 1, 9], [2, 5])),
        episode_of(0, ([7], [3]), ([7], [1])),
    ]
    prefix, continuation = prefix_tree(episodes)
    at = [0, 3, 6, 7]  # the tokens after [7]
    assert len(set(prefix[at])) == 1
    assert (prefix == prefix[0]).sum() == 4
    assert len(set(continuation[[0, 3, 7]])) == 1
    assert len(set(continuation)) == 6
    assert prefix[1] != prefix[4]


def test_a_chosen_action_is_one_word() -> None:
    first, second = episode_of(0, ([7], [1, 2]), reward=1.0), episode_of(0, ([7], [3]))
    for episode in (first, second):
        turn = episode.turns[0]
        turn.choice, turn.logprobs = Choice([turn.completion_ids, [9]], [1, 1]), [-0.5]
    rollouts = RolloutBatch.of([first, second])
    table = rollouts.measured(Prefixes(None).measure(rollouts)).table  # type: ignore[arg-type]
    assert t_spmo(table).tolist() == [0.5, -0.5]


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=4), min_size=1, max_size=6), st.integers(0, 5))
def test_numbers_are_equal_where_all_ids_before_are_equal(written: list[list[int]], cut: int) -> None:
    episodes = [episode_of(int(number >= cut), ([7], ids)) for number, ids in enumerate(written)]
    prefix, continuation = prefix_tree(episodes)
    read = [(e.group, tuple(e.turns[0].completion_ids[:k])) for e in episodes for k in range(len(e.turns[0].logprobs))]
    wrote = [(g, (*ids, i)) for (g, ids), i in zip(read, [i for ids in written for i in ids], strict=True)]
    for numbers, keys in ((prefix, read), (continuation, wrote)):
        assert (numbers[:, None] == numbers[None, :]).tolist() == [[a == b for b in keys] for a in keys]


def test_equal_returns_up_to_rounding_give_zero() -> None:
    signals = {"prefix": np.zeros(3, dtype=np.int64), "continuation": np.array([0, 1, 1])}
    table = make_table(
        [0, 0, 0], [0, 1, 2], [0, 0, 0], [0.1 + 0.2, 0.3, 0.3], tokens=np.ones(3, dtype=np.int64), token_signals=signals
    )
    assert t_spmo(table).tolist() == [0.0, 0.0, 0.0]


def test_the_loss_is_the_probability_of_the_word() -> None:
    logprobs = torch.tensor([[-1.0, -2.0]], requires_grad=True)
    mask = torch.tensor([[True, False]])
    loss, _ = probability_loss(logprobs, logprobs.detach() + 3, torch.tensor([[0.5, 1.0]]), mask)
    loss[mask].sum().backward()
    assert loss[0, 0].item() == pytest.approx(-0.5 * np.exp(-1))
    assert logprobs.grad is not None
    assert logprobs.grad[0].tolist() == pytest.approx([-0.5 * np.exp(-1), 0.0])
