"""Filters: which episodes an update learns from, alone and in a run."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agents.episode import Episode, ParseStatus, Turn
from algorithms.estimators.grpo import grpo
from algorithms.filters import (
    Filter,
    Use,
    apply_filters,
    faults,
    overlong,
    repetitive,
    reward_variance,
    select_groups,
    uniform_groups,
    void_turns,
)
from algorithms.turn_table import TurnTable
from envs.core import StopReason, UnknownNameError
from envs.pool import EnvPool
from tests.agents.corridors import Corridors, corridor
from tests.agents.toys import random_policy
from tests.algorithms.test_faults import attempt
from tests.algorithms.test_trainer import make_trainer

FILTERS: dict[str, Filter] = {
    "faults": faults, "void_turns": void_turns, "overlong": overlong, "uniform_groups": uniform_groups,
    "repetitive": partial(repetitive, ngram=2, share=0.4), "top_p": reward_variance,
    **{name: partial(reward_variance, strategy=name, value=0.5, include_zero=True) for name in ("top_k", "min_p")},
}  # fmt: skip
DROP, COMPARE, LEARN = Use


def said(*ids: int, status: ParseStatus = ParseStatus.OK) -> Episode:
    return Episode(corridor(), 0, [Turn("", "go", 0.0, "hall", completion_ids=list(ids), status=status)])


def test_episodes_are_judged_by_their_worst_turn() -> None:
    good = said(1, 2)
    for judge, status in ((void_turns, ParseStatus.MALFORMED), (overlong, ParseStatus.TRUNCATED)):
        bad = replace(good, turns=[*good.turns, *said(1, status=status).turns, *good.turns])
        assert judge([good, bad, said(3, status=ParseStatus.ILLEGAL)]).tolist() == [LEARN, COMPARE, LEARN]
    repeats = partial(repetitive, ngram=2, share=0.5)
    # Of 6 pairs 4 occurred earlier in the turn, of 3 pairs 1, of 1 none; a shorter turn has none.
    assert repeats([said(1, 2, 1, 2, 1, 2, 1), said(1, 2, 1, 2), said(1, 1), said(1), said()]).tolist() == [
        COMPARE, *[LEARN] * 4,
    ]  # fmt: skip
    assert faults([attempt(0, 1.0, stop=reason) for reason in StopReason]).tolist() == [
        DROP if reason.is_fault else LEARN for reason in StopReason
    ]


def test_groups_are_kept_by_the_spread_of_their_returns() -> None:
    spreads = {0: (0, 0, 0, 0), 1: (0, 0, 0, 1), 2: (0, 0, 1, 1), 3: (1, 1, 1, 1)}
    episodes = [attempt(group, value) for group, values in spreads.items() for value in values]
    order = np.random.default_rng(0).permutation(16)
    episodes = [episodes[i] for i in order]

    def kept(judge: Filter) -> set[int]:
        uses = judge(episodes)
        assert set(uses.tolist()) <= {DROP, LEARN}
        return {episode.group for episode, use in zip(episodes, uses, strict=True) if use == LEARN}

    assert kept(uniform_groups) == kept(reward_variance) == {1, 2}
    assert kept(partial(reward_variance, strategy="top_k", value=0.25)) == {2}
    assert kept(partial(reward_variance, strategy="top_k_abs", value=1, largest=False)) == {1}
    assert kept(partial(reward_variance, strategy="min_p", value=0.9)) == {2}
    assert kept(partial(reward_variance, value=1.0)) == {1, 2}
    assert kept(partial(reward_variance, value=0.4)) == {2}
    assert kept(partial(reward_variance, largest=False, include_zero=True)) == set()
    assert kept(partial(reward_variance, mode="softmax", value=0.5)) == {2}
    with pytest.raises(UnknownNameError, match="did you mean 'top_k'"):
        reward_variance(episodes, strategy="topk")
    with pytest.raises(ValueError, match="above 0 and at most 1 with strategy=top_k, got 3"):
        reward_variance(episodes, strategy="top_k", value=3)


def test_a_group_that_filters_leave_one_attempt_of_is_dropped() -> None:
    broken, void = attempt(1, 0.0, stop=StopReason.ENV_ERROR), attempt(2, 0.0)
    void.turns[0].status = ParseStatus.MALFORMED
    episodes = [attempt(0, 1.0), attempt(1, 1.0), broken, void, attempt(2, 1.0)]
    kept, learns, removed = apply_filters({"faults": faults, "void": void_turns}, episodes)
    assert [id(e) for e in kept] == [id(episodes[i]) for i in (0, 3, 4)]  # a single attempt by choice stays
    assert learns == [True, False, True]
    assert removed == {"faults": 2, "void": 1}
    with pytest.raises(ValueError, match="the filter odd returned 1 values for 5 episodes"):
        apply_filters({"odd": lambda _: np.ones(1, dtype=np.int64)}, episodes)


turns = st.builds(
    lambda reward, ids, status: Turn("", "go", reward, "hall", completion_ids=ids, status=status),
    st.sampled_from([0.0, 0.1, 1.0]), st.lists(st.integers(0, 2), max_size=6), st.sampled_from(ParseStatus),
)  # fmt: skip
played = st.lists(
    st.builds(
        lambda group, turns, stop: Episode(corridor(), group, turns, stop_reason=stop),
        st.integers(0, 4), st.lists(turns, max_size=3), st.sampled_from(StopReason),
    ),
    max_size=12,
)  # fmt: skip


@given(played, st.sampled_from(sorted(FILTERS)), st.randoms(use_true_random=False))
def test_filters_count_what_they_drop_and_do_not_depend_on_the_order(
    episodes: list[Episode], name: str, random: Any
) -> None:
    uses = FILTERS[name](episodes)
    assert uses.shape == (len(episodes),)
    kept, learns, removed = apply_filters({name: FILTERS[name]}, episodes)
    assert sum(learns) + removed[name] == len(episodes)
    assert Counter(map(id, kept)) <= Counter(map(id, episodes))
    if name not in ("top_p", "top_k"):  # where scores are equal, their order decides
        order = random.sample(range(len(episodes)), len(episodes))
        assert FILTERS[name]([episodes[i] for i in order]).tolist() == uses[order].tolist()


@given(
    st.lists(st.floats(0, 10), max_size=8), st.floats(0.01, 1), st.booleans(), st.sampled_from(["linear", "softmax"])
)
def test_the_best_groups_are_kept(scores: list[float], value: float, largest: bool, mode: str) -> None:
    options = {"value": value, "largest": largest, "include_zero": False, "mode": mode, "slack": 0.01}
    values = np.array(scores)
    for strategy in ("top_p", "top_k", "min_p"):
        kept = select_groups(values, strategy=strategy, **options).tolist()
        assert kept == sorted(set(kept))
        assert all(abs(scores[group]) > 1e-10 for group in kept)
        dropped = [
            np.float32(scores[group]) for group in range(len(scores)) if group not in kept and scores[group] > 1e-10
        ]
        worst = [np.float32(scores[group]) for group in kept]
        if kept and dropped:
            assert max(dropped) <= min(worst) if largest else min(dropped) >= max(worst)


# -- in a run ---------------------------------------------------------------------------------------------------------
@pytest.fixture
def pool() -> Iterator[EnvPool]:
    with EnvPool(Corridors().make, 16) as pool:
        yield pool


def odd_episodes(episodes: Any) -> np.ndarray:
    return np.where(np.arange(len(episodes)) % 2, COMPARE, LEARN)


def test_episodes_that_are_only_compared_count_in_statistics_and_not_in_the_loss(tmp_path: Path, pool: EnvPool) -> None:
    tables, learned = [], []

    def estimator(table: TurnTable) -> np.ndarray:
        tables.append(table)
        return grpo(table)

    trainer = make_trainer(tmp_path, pool, random_policy(), 1, estimator, filters={"odd": odd_episodes}, minibatches=1)
    step = trainer.learner._step
    trainer.learner._step = lambda parts, *others: (learned.extend(parts[0].examples), step(parts, *others))[1]
    metrics = trainer._update()
    (table,) = tables
    assert len(np.unique(table.episode)) == 16
    origins = {example.sample.origin for example in learned}
    assert len(origins) == len(learned) == 8
    assert metrics["filter/odd"] == 0.5
    assert metrics["tokens/trained"] == sum(len(e.sample.ids) for e in learned if e.advantages.any())


def test_an_update_with_filters_equals_an_update_on_the_remaining_episodes(tmp_path: Path, pool: EnvPool) -> None:
    """With advantages that do not depend on the batch, the loss and its divisor know only what is learned."""
    weights = {}
    for name, use in (("compared", COMPARE), ("dropped", DROP)):
        trainer = make_trainer(
            tmp_path / name, pool, random_policy(), 1, lambda table: table.turn + 1.0, minibatches=1,
            filters={"odd": lambda episodes, use=use: np.where(np.arange(len(episodes)) % 2, use, LEARN)},
        )  # fmt: skip
        trainer._update()
        weights[name] = [p.detach().clone() for p in trainer.learner.model.parameters()]
    assert all(torch.allclose(*pair, atol=1e-7) for pair in zip(*weights.values(), strict=True))


def test_other_groups_are_played_until_there_is_something_to_learn_from(
    tmp_path: Path, pool: EnvPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def third(episodes: Any) -> np.ndarray:
        calls.append(len(episodes))
        return np.full(len(episodes), LEARN if len(calls) == 3 else COMPARE)

    trainer = make_trainer(tmp_path / "run", pool, random_policy(), 1, groups=2, filters={"third": third})
    done = trainer._roll_out()
    assert calls == [8, 8, 8]
    assert ([e.group for e in done.episodes], done.removed["third"]) == ([4] * 4 + [5] * 4, 16)
    monkeypatch.setattr("algorithms.trainer.MAX_TRIES", 2)
    trainer = make_trainer(
        tmp_path / "none", pool, random_policy(), 1, groups=2,
        filters={"all": lambda episodes: np.full(len(episodes), COMPARE)},
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"update 1: nothing can be learned from 16 .* removed all of them \(all 16\)"):
        trainer._update()


def test_dynamic_sampling_replaces_groups_that_filters_drop(tmp_path: Path, pool: EnvPool) -> None:
    def even_groups(episodes: Any) -> np.ndarray:
        return np.array([LEARN if episode.group % 2 else DROP for episode in episodes])

    trainer = make_trainer(
        tmp_path, pool, random_policy(), 1, groups=2, dynamic_sampling=True, filters={"even": even_groups}
    )
    done = trainer._roll_out()
    assert len(done.played) > 8
    assert all(episode.group % 2 for episode in done.episodes)


def test_a_filter_is_logged_every_update(tmp_path: Path, pool: EnvPool) -> None:
    make_trainer(tmp_path, pool, random_policy(), 2, filters={"void_turns": void_turns}).train()
    rows = [
        row for row in map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines()) if "train/loss" in row
    ]
    assert [0 <= row["filter/void_turns"] <= 1 for row in rows] == [True, True]
