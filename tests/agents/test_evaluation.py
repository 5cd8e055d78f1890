"""An evaluation plays every task once per seed, counts every ending, and computes intervals."""

import json
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.agent import Decision
from agents.episode import Episode, ParseStatus, Turn
from agents.evaluation import (
    UNTYPED,
    Evaluation,
    describe_limit,
    evaluate,
    outcomes_by_task,
    plan,
    pooled,
    spread,
    summarise,
)
from agents.rollout import lacks_data
from agents.scripted import ExpertAgent, RandomAgent
from agents.statistics import effective_trials, wilson
from envs.core import StopReason, Task
from envs.pool import EnvPool
from tests.agents.corridors import CorridorExpert, Corridors


def episode(task: str, success: bool = True, seed: int = 0, kind: str = "", **more) -> Episode:
    payload = {"type": kind} if kind else {}
    reason = StopReason.SUCCESS if success else StopReason.FAILURE
    fields = {"stop_reason": reason, "score": float(success), **more}
    return Episode(Task(task, "Test-v0", "valid", payload=payload), 0, success=success, seed=seed, **fields)


# -- playing ----------------------------------------------------------------------------------------------------------
def play(agent, size: int = 4, **options):
    ended: list[Episode] = []
    with EnvPool(Corridors().make, size) as pool:
        result = evaluate(agent, Corridors(), "valid", pool, on_episode=ended.append, **options)
    return result, ended


@pytest.mark.parametrize(
    ("error", "lacks"),
    [
        ("ImportError: no module 'x'; pip install 'polyturn[tools]'", True),
        ("ModuleNotFoundError: env=x needs the package y: pip install y", True),
        ("envs.services.ServiceError: http://x did not answer", True),
        ("ModuleNotFoundError: No module named 'x'", False),  # a bug of the environment
        ("ValueError: pip install it", False),
    ],
)
def test_an_episode_without_a_file_a_package_or_a_service_is_played_again(error: str, lacks: bool) -> None:
    traceback = f'Traceback (most recent call last):\n  File "env.py", line 1, in reset\n{error}\n'
    assert lacks_data(episode("a", success=False, error=traceback)) == lacks


def test_every_task_of_the_manifest_is_played_once_for_each_seed() -> None:
    result, ended = play(ExpertAgent(CorridorExpert), seeds=[3, 5])
    expected = {(task_id, seed) for task_id in Corridors().manifest("valid").ids for seed in (3, 5)}
    assert Counter((e.task.id, e.seed) for e in ended) == dict.fromkeys(expected, 1)
    assert (result.tasks, result.success.n, result.success.successes) == (6, 12, 12)
    assert set(result.by_type) == {"2 rooms", "3 rooms", "4 rooms"}
    assert {seed: rate.n for seed, rate in result.by_seed.items()} == {3: 6, 5: 6}


@pytest.mark.parametrize("size", [1, 5])
def test_random_play_depends_on_neither_batching_nor_resuming(size: int) -> None:
    whole, ended = play(RandomAgent(), size=6, seeds=[0, 1])
    later, fresh = play(RandomAgent(), size=size, seeds=[0, 1], played=ended[:7])
    assert len(fresh) == 5
    assert later == whole
    assert 0 < whole.success.successes < 12  # else there would be nothing to differ in


@pytest.mark.parametrize("agent", [RandomAgent(), ExpertAgent(CorridorExpert)])  # with an interval, and without
def test_an_evaluation_is_read_as_it_was_written(agent) -> None:
    result, _ = play(agent, seeds=[0, 1])
    assert Evaluation.from_json(json.loads(json.dumps(result.to_json()))) == result


def test_episodes_outside_the_plan_are_left_out() -> None:
    _, ended = play(ExpertAgent(CorridorExpert), seeds=[0, 1])
    result, fresh = play(ExpertAgent(CorridorExpert), seeds=[1], limit=2, played=ended)
    assert (result.success.n, result.tasks, fresh) == (2, 2, [])


def test_a_turn_limit_counts_as_not_solved() -> None:
    result, _ = play(ExpertAgent(CorridorExpert), max_turns=2)
    assert result.stops == {"success": 2, "turn_limit": 4}
    assert result.success.successes == 2


def test_endings_by_errors_and_full_contexts_count_too() -> None:
    class Mute:
        def act(self, views):
            return [Decision("", None) for _ in views]

        def finish(self, key: int) -> None: ...

    result, _ = play(Mute())
    assert result.stops == {"context_limit": 6}
    assert (result.success.rate, result.turns, result.invalid) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("fault", [reason for reason in StopReason if reason.is_fault])
def test_a_fault_of_the_environment_counts_as_not_solved_and_is_reported(fault: StopReason) -> None:
    episodes = [episode("a"), episode("b", success=False, stop_reason=fault), episode("c")]
    result = summarise(episodes)
    assert (result.success.n, result.success.successes) == (3, 2)
    assert "Faults of the environment ended 1 episode; these count as not solved." in result.to_markdown()
    assert "Faults" not in summarise(episodes[:1]).to_markdown()


@pytest.mark.parametrize(
    ("endings", "is_broken"),
    [
        (["refused"] * 3, True),
        (["refused", "refused", "failure"], False),
        (["env_error", "env_error", "failure"], True),
    ],
)
def test_errors_or_refusals_alone_are_broken(endings: list[str], is_broken: bool) -> None:
    episodes = [episode(str(n), success=False, stop_reason=StopReason(end)) for n, end in enumerate(endings)]
    assert summarise(episodes).is_broken is is_broken


@pytest.mark.parametrize(
    ("options", "message"),
    [({"seeds": []}, "seeds"), ({"seeds": [1, 1]}, "seeds"), ({"seeds": ["a"]}, "seeds"), ({"limit": 0}, "limit"),
     ({"limit": "x"}, "limit"), ({"max_turns": 0}, "max_turns"), ({"max_turns": "x"}, "max_turns")],
)  # fmt: skip
def test_bad_input_is_named(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        play(ExpertAgent(CorridorExpert), **options)


def test_the_plan_goes_through_the_manifest_seed_by_seed() -> None:
    jobs = plan(Corridors(), "valid", [7, 2], limit=2)
    assert [(j.task.id, j.seed, j.group) for j in jobs] == [
        ("valid-000", 7, 0), ("valid-003", 7, 1), ("valid-000", 2, 0), ("valid-003", 2, 1),
    ]  # fmt: skip


def test_a_limit_is_spread_over_the_sorted_ids_and_doubling_it_adds_tasks() -> None:
    kinds = ("clean", "cool", "examine", "heat", "pick", "pick_two")
    ids = sorted(f"{kind}-{n:02d}" for kind in kinds for n in range(23))
    assert {task.partition("-")[0] for task in spread(ids, 20)} == set(kinds)
    for limit in (1, 7, 20, 69, 137, 138):
        chosen = spread(ids, limit)
        assert chosen == sorted(set(chosen))
        assert len(chosen) == limit
        assert set(chosen) <= set(spread(ids, 2 * limit))
    assert spread(ids, None) == spread(ids, 1000) == ids
    assert describe_limit(20, 138) == "20 of 138 tasks, evenly spaced over the sorted ids"
    assert describe_limit(None, 138) == describe_limit(200, 138) == "138 tasks"


# -- numbers ----------------------------------------------------------------------------------------------------------
def test_means_are_over_episodes_and_invalid_is_over_turns() -> None:
    turns = [Turn("o", "a", 0.25, "s", status) for status in ParseStatus]
    result = summarise([episode("a", turns=turns, score=1.0), episode("b", False, score=0.5)])
    assert result.turns == 2.0
    assert result.total_reward == 0.5
    assert result.score == 0.75
    assert result.invalid == 0.75
    assert result.stops == {"success": 1, "failure": 1}


def test_the_interval_of_the_mean_score_is_over_tasks() -> None:
    scores = [0.0, 0.5, 0.5, 1.0]
    once = summarise([episode(name, score=score) for name, score in zip("abcd", scores, strict=True)])
    low, high = wilson(0.5, 0.25 / (np.var(scores, ddof=1) / 4), 3.182446)  # Student's quantile
    assert once.score_interval == pytest.approx((low, high))
    assert f"Mean score 0.500 (95 % interval {low:.3f} – {high:.3f})" in once.to_markdown()
    assert once.metrics("eval")["eval/score_high"] == once.score_interval[1]
    # A task that is played twice with the same outcome counts like one trial.
    twice = [
        episode(name, seed=seed, score=score) for name, score in zip("abcd", scores, strict=True) for seed in (0, 1)
    ]
    assert summarise(twice).score_interval == pytest.approx(once.score_interval)


@given(st.lists(st.integers(0, 100), min_size=2, max_size=40).filter(lambda scores: len(set(scores)) > 1))
def test_the_interval_of_the_mean_score_contains_the_mean_and_stays_in_range(scores: list[int]) -> None:
    result = summarise([episode(str(task), score=score / 100) for task, score in enumerate(scores)])
    assert result.score_interval is not None
    low, high = result.score_interval
    assert 0.0 <= low <= result.score + 1e-12
    assert result.score - 1e-12 <= high <= 1.0


def test_many_tasks_have_the_normal_interval_of_the_mean_score() -> None:
    scores = np.random.default_rng(0).beta(2, 3, 2000)
    result = summarise([episode(str(task), score=score) for task, score in enumerate(scores.tolist())])
    half = 1.959964 * np.std(scores, ddof=1) / math.sqrt(len(scores))
    assert result.score_interval == pytest.approx((result.score - half, result.score + half), abs=1e-4)


def test_where_all_tasks_score_the_same_there_is_no_interval() -> None:
    same = summarise([episode("a", score=1.0), episode("b", score=1.0)])
    assert same.score_interval is None
    assert "Mean score 1.000, mean return" in same.to_markdown()
    assert "eval/score_low" not in same.metrics("eval")
    assert summarise([episode("a", score=0.5)]).score_interval is None
    assert summarise([episode("a", score=0.3), episode("b", score=0.1 + 0.2)]).score_interval is None
    by_chance = [episode(name, seed=seed, score=seed) for name in "ab" for seed in (0, 1)]
    assert summarise(by_chance).score_interval is None


def test_results_by_type_need_types() -> None:
    assert summarise([episode("a"), episode("b")]).by_type == {}
    mixed = summarise([episode("a", kind="pick"), episode("b", False)])
    assert {kind: rate.rate for kind, rate in mixed.by_type.items()} == {"pick": 1.0, UNTYPED: 0.0}


def test_seeds_have_a_mean_and_a_sample_standard_deviation() -> None:
    result = summarise(
        [episode("a", True, 0), episode("b", True, 0), episode("a", True, 1), episode("b", False, 1)]
    )  # fmt: skip
    assert [rate.rate for rate in result.by_seed.values()] == [1.0, 0.5]
    assert result.seed_mean == 0.75
    assert result.seed_std == pytest.approx(math.sqrt(0.125))
    assert summarise([episode("a")]).seed_std is None


def test_episodes_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(ValueError, match="no episodes"):
        summarise([])
    with pytest.raises(ValueError, match=r"'a' was played 2 times with seed 0"):
        summarise([episode("a"), episode("a"), episode("b")])
    other = Episode(Task("b", "Test-v0", "train"), 0)
    with pytest.raises(ValueError, match="one split"):
        summarise([episode("a"), other])


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605)],
)
def test_wilson_agrees_with_published_values(successes, n, low, high) -> None:
    """The last two are the examples of Newcombe, Statistics in Medicine 17 (1998), table I, method 3."""
    assert wilson(successes / n, n) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_wilson_interval_contains_the_rate_and_stays_in_range(count) -> None:
    p = count[0] / count[1]
    low, high = wilson(p, count[1])
    assert 0.0 <= low <= p <= high <= 1.0


@given(st.lists(st.tuples(st.integers(0, 3), st.just(3)), min_size=1, max_size=40))
def test_effective_trials_lie_between_tasks_and_episodes(counts) -> None:
    assert len(counts) <= effective_trials(counts) <= 3 * len(counts)


def test_a_task_played_once_counts_as_one_trial_and_a_repeated_answer_too() -> None:
    once = [(1, 1)] * 70 + [(0, 1)] * 30
    assert effective_trials(once) == 100
    assert effective_trials([(3 * k, 3) for k, _ in once]) == 100  # three equal answers say no more than one
    assert effective_trials([(3, 3)] * 5) == 5


def test_intervals_cover_the_true_value_if_tasks_differ_and_seeds_repeat() -> None:
    """95 % intervals of the success on all tasks, from 60 tasks × 4 seeds: naive ones would miss far too often."""
    rng, hits, runs = np.random.default_rng(0), 0, 400
    for _ in range(runs):
        chances = rng.choice([0.05, 0.95], 60)  # the mean over all tasks is 0.5
        counts = [(int(rng.binomial(4, chance)), 4) for chance in chances]
        low, high = wilson(sum(k for k, _ in counts) / 240, effective_trials(counts))
        hits += low <= 0.5 <= high
    assert 0.92 <= hits / runs <= 0.98


# -- what is written --------------------------------------------------------------------------------------------------
def test_metrics_json_and_table_have_the_same_numbers() -> None:
    result = summarise([episode("a", kind="pick"), episode("b", False, kind="heat"), episode("c", kind="heat")])
    metrics = result.metrics("eval/alfworld/valid_seen")
    assert metrics["eval/alfworld/valid_seen/success"] == pytest.approx(2 / 3)
    assert metrics["eval/alfworld/valid_seen/success/heat"] == 0.5
    assert metrics["eval/alfworld/valid_seen/stop/failure"] == pytest.approx(1 / 3)
    plain = json.loads(json.dumps(result.to_json()))
    assert plain["by_type"]["heat"]["successes"] == 1
    assert plain["success"]["n"] == 3
    table = result.to_markdown()
    assert "| **all** | 66.7% | 20.8% – 93.9% | 2 / 3 |" in table
    assert "| heat | 50.0% |" in table
    assert "Over the" not in table
    assert "Endings: success 2, failure 1." in table


def test_rates_of_different_tasks_are_pooled_by_their_episodes() -> None:
    seen = [episode(f"seen {i}", success=i < 3) for i in range(10)]
    unseen = [episode(f"unseen {i}", success=i < 21) for i in range(30)]
    assert pooled([summarise(seen).success, summarise(unseen).success]) == summarise([*seen, *unseen]).success


# -- several attempts -------------------------------------------------------------------------------------------------
def test_pass_at_k_and_pass_hat_k_go_up_to_the_number_of_attempts() -> None:
    solved = {"a": (True, True, False), "b": (False, False, False), "c": (True, True, True), "d": (False, True, False)}
    result = summarise([episode(task, success, seed) for task, of in solved.items() for seed, success in enumerate(of)])
    assert {k: one.mean for k, one in result.pass_at_k.items()} == pytest.approx({1: 0.5, 2: 2 / 3, 3: 0.75})
    assert {k: one.mean for k, one in result.pass_hat_k.items()} == pytest.approx({1: 0.5, 2: 1 / 3, 3: 0.25})
    assert all(one.low < one.mean < one.high for one in result.pass_at_k.values())
    assert Evaluation.from_json(json.loads(json.dumps(result.to_json()))) == result
    assert "| 3 | 75.0% |" in result.to_markdown()
    assert "pass@k" not in summarise([episode("a")]).to_markdown()


def test_the_outcomes_of_a_task_are_in_the_order_of_the_seeds() -> None:
    episodes = [episode("b", seed=0), episode("a", False, 5, "pick"), episode("a", True, 2, "pick", score=0.5)]
    assert outcomes_by_task(episodes) == {
        "a": {"type": "pick", "success": [True, False], "score": [0.5, 0.0]},
        "b": {"type": UNTYPED, "success": [True], "score": [1.0]},
    }
