"""Trees of attempts: where they branch, their signals, and runs of all methods that use snapshots."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.episode import Episode, Start, Turn
from agents.record import read_record
from agents.rollout import Job, rollout
from algorithms.estimators.groups import count_shared
from algorithms.estimators.spo import spo_tree
from algorithms.estimators.tree_grpo import tree_grpo
from algorithms.signals.base import RolloutBatch, SignalContext
from algorithms.signals.tree import Tree
from algorithms.tree_expansion import Node, TreeExpansion, where_unsure
from envs.core import Info, UnknownNameError
from envs.pool import EnvPool
from tests.agents.corridors import Corridor, Corridors, corridor
from tests.agents.test_rollout import Walker, policy_agent
from tests.agents.toys import Wanderer, random_policy
from tests.algorithms.test_algo_conf import composed
from tests.algorithms.test_signals import context_of
from tests.algorithms.test_trainer import make_trainer, without_times

EXPANSION = TreeExpansion(trees=2, expand=2)  # with 10 attempts at a task: two rounds


def grown(seed: int = 0) -> list[Episode]:
    """Trees at two tasks."""
    jobs = [Job(corridor(4 + group), group, seed=group) for group in range(2) for _ in range(10)]
    with EnvPool(Corridors().make, 4) as pool:
        agent = policy_agent()
        return EXPANSION.play(
            lambda jobs: rollout(agent, pool, jobs, keep_starts=True), jobs, np.random.default_rng(seed)
        )


@pytest.fixture
def pool() -> Iterator[EnvPool]:
    with EnvPool(Corridors().make, 16) as made:
        yield made


def columns(episodes: list[Episode], pool: EnvPool) -> RolloutBatch:
    context: SignalContext = context_of(random_policy(), pool)
    rollouts = RolloutBatch.of(episodes)
    return rollouts.measured(Tree(context).measure(rollouts))


def test_every_job_is_an_episode_and_every_tree_has_as_many(pool: EnvPool) -> None:
    episodes = grown()
    assert [e.group for e in episodes] == [0] * 10 + [1] * 10
    assert [e.task.payload["length"] for e in episodes] == [4] * 10 + [5] * 10
    table = columns(episodes, pool).table
    trees = table.signal("tree")[table.is_first]
    np.testing.assert_array_equal(np.unique(trees, return_counts=True), ([0, 1, 2, 3], [5] * 4))
    np.testing.assert_array_equal(table.group[table.is_first] * 2 <= trees, True)


def test_a_branch_continues_after_an_inner_turn_of_its_tree() -> None:
    episodes = grown()
    before: list[Episode] = []
    for episode in episodes[:10]:
        shared = [sum(a is b for a, b in zip(episode.turns, e.turns, strict=False)) for e in before]
        if max(shared, default=0):
            parent, common = before[int(np.argmax(shared))], max(shared)
            assert common < len(parent.turns)
            assert episode.turns[common].state_key == parent.turns[common].state_key
            assert episode.turns[common] is not parent.turns[common]
        before.append(episode)
    starts = sum(not any(e.turns[0] is other.turns[0] for other in episodes[:i]) for i, e in enumerate(episodes))
    assert starts == 4


def test_the_same_state_of_the_generator_grows_the_same_trees() -> None:
    once = grown()
    assert once == grown()
    assert once != grown(seed=1)


def surprising(*surprises: float) -> list[Node]:
    """The nodes of an attempt whose turns have these means of -log p; the first one is that of its first turn."""
    turns = [Turn("", "", 0.0, "", logprobs=[-surprise] * 3) for surprise in surprises]
    return [Node(Start(tuple(turns[:k]), "", {}, k), turns[k], turns[0]) for k in range(1, len(turns))]  # type: ignore[arg-type]


def test_a_node_is_the_likelier_the_less_sure_the_policy_was() -> None:
    """A branch is drawn where u <= 0.5 + 0.2 · (H - H_first)."""
    nodes = surprising(2.0, *(2.0 + 0.5 * k for k in range(-3, 4)))
    counts = np.zeros(len(nodes))
    for seed in range(2000):
        for node in filter(None, where_unsure(nodes, len(nodes), np.random.default_rng(seed))):
            counts[nodes.index(node)] += 1
    np.testing.assert_allclose(counts / 2000, 0.5 + 0.1 * np.arange(-3, 4), atol=0.04)


def test_the_first_nodes_branch_and_other_attempts_start_at_the_beginning() -> None:
    nodes, rng = surprising(0.0, 9.0, -9.0, 9.0), np.random.default_rng(0)
    assert where_unsure(nodes, 1, rng) == [nodes[0]]
    assert where_unsure(nodes, 2, rng) == [nodes[0], nodes[2]]
    assert where_unsure(nodes, 4, rng) == [nodes[0], nodes[2], None, None]
    late = [*surprising(0.0, 0.0)]
    late[0].following.logprobs[:] = [0.0, 0.0, -30.0]
    assert where_unsure(late, 1, rng) == [late[0]]
    assert where_unsure(late, 1, rng, first_ids=2, threshold=0.0) == [None]


@settings(max_examples=50)
@given(
    surprises=st.lists(st.floats(0, 30), min_size=1, max_size=8), count=st.integers(0, 9), seed=st.integers(0, 99),
    weight=st.floats(0, 2), threshold=st.floats(0, 1), data=st.data(),
)  # fmt: skip
def test_a_rise_of_surprise_or_of_the_threshold_only_adds_branches(
    surprises: list[float], count: int, seed: int, weight: float, threshold: float, data: Any
) -> None:
    def drawn(nodes: list[Node], count: int, threshold: float = threshold) -> list[Node | None]:
        """The branches, by as many random numbers as there are nodes."""
        rng = np.random.default_rng(seed)
        chosen = where_unsure(nodes, count, rng, weight=weight, threshold=threshold)
        assert rng.random() == np.random.default_rng(seed).random(len(nodes) + 1)[-1]
        return chosen

    nodes = surprising(surprises[0], *surprises)
    chosen = drawn(nodes, count)
    assert len(chosen) == count
    places = [nodes.index(node) for node in chosen if node is not None]
    assert places == sorted(set(places))  # each at most once, in the order of the nodes
    assert chosen[len(places) :] == [None] * (count - len(places))
    everywhere = drawn(nodes, len(nodes))
    assert chosen[: len(places)] == everywhere[: len(places)]  # fewer are the first of them
    assert {*map(id, everywhere)} <= {*map(id, drawn(nodes, len(nodes), min(threshold + 0.1, 1.0))), id(None)}
    place = data.draw(st.integers(0, len(nodes) - 1))
    raised = surprising(surprises[0], *(s + 1.0 * (number == place) for number, s in enumerate(surprises)))
    before, after = ([nodes.index(n) for n in drawn(nodes, len(nodes)) if n] for nodes in (nodes, raised))
    assert {*after} - {place} == {*before} - {place}
    assert {*before} <= {*after}


def test_without_nodes_all_attempts_start_at_the_beginning() -> None:
    assert where_unsure([], 3, np.random.default_rng(0)) == [None] * 3


def test_trees_branch_where_their_rule_says(pool: EnvPool) -> None:
    """The last inner turn of the first attempts, and the beginning in later rounds."""

    def last(nodes: Sequence[Node], count: int, rng: np.random.Generator) -> list[Node | None]:
        return [nodes[-1]] + [None] * (count - 1)

    agent = policy_agent()
    jobs = [Job(corridor(6), seed=0) for _ in range(6)]
    episodes = TreeExpansion(2, 2, last).play(
        lambda jobs: rollout(agent, pool, jobs, keep_starts=True), jobs, np.random.default_rng(0)
    )
    for tree, branch, fresh in ([episodes[0], *episodes[2:4]], [episodes[1], *episodes[4:6]]):
        assert [a is b for a, b in zip(tree.turns, branch.turns, strict=False)].count(True) == len(tree.turns) - 1
        assert not any(turn is other for turn in fresh.turns for other in tree.turns)


def test_a_tree_without_inner_turns_starts_another_attempt(pool: EnvPool) -> None:
    def play(jobs: list[Job]) -> list[Episode]:
        return rollout(Walker(), pool, jobs, max_turns=1, keep_starts=True)

    episodes = EXPANSION.play(play, [Job(corridor(4)) for _ in range(10)], np.random.default_rng(0))
    assert [len(e.turns) for e in episodes] == [1] * 10
    assert len({id(e.turns[0]) for e in episodes}) == 10


@pytest.mark.parametrize("size", [1, 4, 8])
def test_attempts_that_make_no_whole_rounds_are_refused(tmp_path: Path, pool: EnvPool, size: int) -> None:
    with pytest.raises(ValueError, match=rf"group_size={size} .*it must be 2 · \(1 \+ 2 · rounds\)"):
        make_trainer(tmp_path, pool, random_policy(), 1, tree_expansion=EXPANSION, group_size=size)
    for good in (2, 6, 10):
        EXPANSION.check(good)
    with pytest.raises(ValueError, match="got 2 and 0"):
        TreeExpansion(2, 0)


def test_nodes_are_turns_and_shared_ones_have_one_number(pool: EnvPool) -> None:
    episodes = grown()
    table = columns(episodes, pool).table
    turns = [turn for e in episodes for turn in e.turns]
    node = table.signal("node").tolist()
    assert len(set(node)) == len({id(turn) for turn in turns}) < len(turns)
    assert len({(a, id(b)) for a, b in zip(node, turns, strict=True)}) == len(set(node))


def test_a_shared_turn_counts_once_or_in_each_row(pool: EnvPool) -> None:
    episodes = grown()
    for number, episode in enumerate(episodes):
        episode.turns[-1].reward = float(number % 3 == 0)
    table = columns(episodes, pool).table
    node = table.signal("node")
    for estimator in (spo_tree, tree_grpo):
        each, once = (estimator(table, shared_turns=how) for how in ("each", "once"))
        for number in np.unique(node):
            rows = node == number
            np.testing.assert_allclose(once[rows].sum(), each[rows].mean(), atol=1e-12)
    in_nodes = {n: set(spo_tree(table)[node == n].tolist()) for n in np.unique(node)}
    assert all(len(values) == 1 for values in in_nodes.values())
    with pytest.raises(UnknownNameError, match=r"shared_turns 'twice'.*each, once"):
        count_shared(table, np.zeros(len(table)), "twice")


class Toll(Corridor):
    """An environment that rewards every action by its length, so returns differ for any policy."""

    def _act(self, action: str) -> tuple[str, float, bool, Info]:
        observation, reward, over, extra = super()._act(action)
        return observation, reward + len(action) / 100, over, extra


@pytest.fixture
def toll() -> Iterator[EnvPool]:
    with EnvPool(lambda: Toll(4), 16) as made:
        yield made


@pytest.mark.parametrize("name", ["vineppo", "spo_chain", "spo_tree", "tree_grpo"])
def test_a_run_resumes_bit_for_bit(tmp_path: Path, toll: EnvPool, name: str) -> None:
    made = composed(name, *(["algo.signals.monte_carlo.attempts=2"] if name in ("vineppo", "spo_chain") else []))

    def train(run: Path, stops: list[int]) -> dict[str, torch.Tensor]:
        for until in stops:
            trainer = make_trainer(
                run, toll, random_policy(), 2, made.estimator, made.signals, groups=2, group_size=4,
                tree_expansion=made.tree_expansion,
                loss=made.loss, aggregation=made.aggregation, checkpoint_every=1,
            )  # fmt: skip
            if until != stops[0]:
                trainer.resume()
            trainer._log = lambda metrics, trainer=trainer, until=until, log=trainer._log: (
                log(metrics), setattr(trainer, "stopping", trainer.update == until)
            )  # fmt: skip
            trainer.train()
        return trainer.policy.model.state_dict()

    whole, parts = train(tmp_path / "whole", [2]), train(tmp_path / "parts", [1, 2])
    assert all(torch.equal(weight, parts[key]) for key, weight in whole.items())
    start = random_policy().model.state_dict()
    assert any(not torch.equal(weight, start[key]) for key, weight in whole.items())
    assert without_times(tmp_path / "parts/metrics.jsonl") == without_times(tmp_path / "whole/metrics.jsonl")


def test_a_recorded_tree_is_complete_and_its_tokens_are_counted_once(tmp_path: Path, pool: EnvPool) -> None:
    made = composed("tree_grpo")
    trainer = make_trainer(
        tmp_path, pool, random_policy(), 1, made.estimator, made.signals, Wanderer,
        groups=1, group_size=8, tree_expansion=made.tree_expansion, dynamic_sampling=True, record_every=1,
    )  # fmt: skip
    trainer.train()
    (path,) = (tmp_path / "episodes").iterdir()
    assert b'"start"' not in gzip.decompress(path.read_bytes())
    episodes = read_record(path).episodes
    assert len(episodes) == 8
    assert all(turn.advantage is not None for e in episodes for turn in e.turns)
    metrics = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[1])
    rows = metrics["rollout/turns"] * metrics["rollout/episodes"]
    assert metrics["signal/shared_turns"] > 0
    assert metrics["rollout/env_steps"] == len(trainer.agent.written) < rows
    assert metrics["tokens/sampled"] == sum(map(len, trainer.agent.written))
    assert all(a.observation for e in episodes for a, _ in pairwise(e.turns))
