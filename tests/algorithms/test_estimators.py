"""Properties of all estimators on random tables with every signal, and hand-computed values of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from algorithms.estimators.capo import capo
from algorithms.estimators.chord import chord
from algorithms.estimators.dapo import dapo, overlong_penalty
from algorithms.estimators.empg import empg
from algorithms.estimators.fine_grained import fine_grained_gae
from algorithms.estimators.gae import bi_level_gae, gae_over_tokens, token_gae, turn_gae
from algorithms.estimators.gigpo import gigpo
from algorithms.estimators.grpo import grpo
from algorithms.estimators.gtpo import grpo_s, gtpo
from algorithms.estimators.hgpo import hgpo
from algorithms.estimators.hicra import hicra
from algorithms.estimators.igpo import answer_gains, igpo
from algorithms.estimators.istar import istar
from algorithms.estimators.luffy import luffy
from algorithms.estimators.macro_actions import macro_gae
from algorithms.estimators.mt_grpo import mt_grpo
from algorithms.estimators.nft import nft
from algorithms.estimators.ngrpo import ngrpo
from algorithms.estimators.opd import opd
from algorithms.estimators.otb import otb
from algorithms.estimators.outcome_baselines import gpg, maxrl, opo, pass_at_k
from algorithms.estimators.poad import archer, ntpo, poad
from algorithms.estimators.prime import prime
from algorithms.estimators.psr_nsr import psr_nsr
from algorithms.estimators.pure import min_form_rewards, pure
from algorithms.estimators.raft import raft
from algorithms.estimators.redi import redi
from algorithms.estimators.reinforce_pp import reinforce_pp, reinforce_pp_baseline, token_returns
from algorithms.estimators.resrl import resrl
from algorithms.estimators.rloo import rloo
from algorithms.estimators.rlvmr import rlvmr
from algorithms.estimators.single_stream import single_stream
from algorithms.estimators.spa_rl import spa_rl
from algorithms.estimators.spo import spo_chain, spo_tree
from algorithms.estimators.t_spmo import t_spmo
from algorithms.estimators.timeline import Timeline, token_rewards, tokens, turns, whiten
from algorithms.estimators.tp_grpo import tp_grpo
from algorithms.estimators.tree_grpo import tree_grpo
from algorithms.estimators.turn_returns import step_grpo, turn_rloo
from algorithms.estimators.vineppo import vineppo
from algorithms.turn_table import SIGNALS, TOKEN_SIGNALS, Estimate, MissingSignalError, TurnTable
from envs.core import UnknownNameError
from tests.algorithms.tables import measured_tables, take, tokens_of, with_scores
from tests.golden.tables import make_table, sequences, single_turns

Estimator = Callable[[TurnTable], Any]
ESTIMATORS: dict[str, Estimator] = {
    "archer": archer,
    "bi_level_gae": partial(bi_level_gae, gamma=0.9, lam=0.8),
    "capo": capo,
    "chord": chord,
    "dapo": partial(dapo, limit=4, buffer=2),
    "empg": empg,
    "fine_grained_gae": fine_grained_gae,
    "gigpo": gigpo,
    "gpg": gpg,
    "grpo": grpo,
    "grpo_s": grpo_s,
    "grpo_s apart": partial(grpo_s, compare="apart"),
    "gtpo": gtpo,
    "gtpo apart": partial(gtpo, compare="apart"),
    "hgpo": hgpo,
    "hgpo with a base": partial(hgpo, base_group=True, mode="mean_norm"),
    "hicra": hicra,
    "igpo": partial(igpo, gamma=0.9),
    "igpo joint": partial(igpo, normalization="joint", gain="prob_diff"),
    "istar": istar,
    "luffy": luffy,
    "luffy all": partial(luffy, compare_with="all"),
    "macro_gae": partial(macro_gae, length=2, gamma=0.9),
    "macro_gae whitened": partial(macro_gae, length=3, weights="position", whiten=True),
    "maxrl": lambda table: maxrl(replace(table, reward=np.abs(table.total_rewards()), token_signals={})),
    "istar reinforce": partial(istar, mode="reinforce_pp_baseline"),
    "istar paper": partial(istar, mode="mean_std_norm", baseline="all_turns", scale_steps="none"),
    "mt_grpo": mt_grpo,
    "ngrpo": ngrpo,
    "ntpo": ntpo,
    "opd": opd,
    "opd and outcomes": partial(opd, outcome_weight=0.5),
    "opo": opo,
    "otb": otb,
    "otb with a tail": partial(otb, zero_tail=False),
    "pass_at_k": pass_at_k,
    "poad": poad,
    "prime": prime,
    "pure": pure,
    "pure per turn": partial(pure, baseline="turn"),
    "raft": raft,
    "redi": redi,
    "resrl": resrl,
    "reinforce_pp": partial(reinforce_pp, gamma=0.9),
    "reinforce_pp reset": partial(reinforce_pp, observations="reset"),
    "reinforce_pp_baseline": reinforce_pp_baseline,
    "rloo": rloo,
    "rlvmr": rlvmr,
    "rlvmr mean": partial(rlvmr, normalize_by_std=False, statistics="episodes"),
    "single_stream": single_stream,
    "single_stream raw": partial(single_stream, normalize=False),
    "spa_rl": spa_rl,
    "spo_chain": spo_chain,
    "spo_chain whitened": partial(spo_chain, whiten=True, probability_mask=0.9),
    "spo_tree": partial(spo_tree, normalize_by_std=True),
    "spo_tree whitened": partial(spo_tree, whiten=True, probability_mask=0.9),
    "step_grpo": step_grpo,
    "step_grpo batch": partial(step_grpo, pool="batch", normalize_by_std=False),
    "t_spmo": t_spmo,
    "token_gae": partial(token_gae, gamma=0.9, lam=0.8),
    "tp_grpo": tp_grpo,
    "tree_grpo": tree_grpo,
    "turn_gae": turn_gae,
    "turn_rloo": partial(turn_rloo, gamma=0.9),
    "turn_gae last token": partial(turn_gae, anchor="last_token"),
    "vineppo": vineppo,
    "vineppo whitened": partial(vineppo, whiten=True),
}
# Equal attempts at a task leave nothing to compare.
COMPARES_ATTEMPTS = ["dapo", "gigpo", "grpo", "hgpo", "igpo", "igpo joint", "mt_grpo", "rloo", "tree_grpo"]
COMPARES_ATTEMPTS += ["reinforce_pp_baseline", "gpg", "maxrl", "opo", "pass_at_k"]
COMPARES_ATTEMPTS += ["grpo_s", "gtpo", "gtpo apart", "hicra", "luffy", "luffy all", "resrl", "turn_rloo"]
COMPARES_ATTEMPTS += ["chord", "redi", "rlvmr", "t_spmo"]
each = pytest.mark.parametrize("name", ESTIMATORS)


def arrays(answer: Any) -> list[NDArray[np.float64]]:
    return list(answer) if isinstance(answer, Estimate) else [answer]


def rounded(table: TurnTable) -> TurnTable:
    """Rewards rounded so that no difference is as small as an epsilon."""
    return replace(table, reward=table.reward.round(1))


# -- all of them ------------------------------------------------------------------------------------------------------
@each
@settings(max_examples=25)
@given(table=measured_tables())
def test_advantages_are_finite_and_one_per_turn_or_token(name: str, table: TurnTable) -> None:
    for answer in arrays(ESTIMATORS[name](table)):
        assert answer.shape in {(len(table),), (len(table.token_rows),)}
        assert answer.dtype == np.float64
        assert np.isfinite(answer).all()


@each
@settings(max_examples=25)
@given(table=measured_tables(), data=st.data())
def test_permuted_rows_permute_the_advantages(name: str, table: TurnTable, data: Any) -> None:
    table = rounded(table)
    rows = np.array(data.draw(st.permutations(range(len(table)))))
    before, after = arrays(ESTIMATORS[name](table)), arrays(ESTIMATORS[name](take(table, rows)))
    for one, other in zip(before, after, strict=True):
        order = rows if len(one) == len(table) else tokens_of(table, rows)
        np.testing.assert_allclose(other, one[order], rtol=1e-6, atol=1e-6)


@each
def test_an_empty_table_has_no_advantages(name: str) -> None:
    nothing = np.zeros(0)
    table = make_table(nothing, nothing, nothing, nothing, tokens=np.zeros(0, dtype=np.int64))
    signals, token_signals = dict.fromkeys(SIGNALS, nothing), dict.fromkeys(TOKEN_SIGNALS, nothing)
    table = replace(table, signals=signals, token_signals=token_signals)
    assert all(answer.shape == (0,) for answer in arrays(ESTIMATORS[name](table)))


@pytest.mark.parametrize("name", COMPARES_ATTEMPTS)
@given(rewards=st.lists(st.floats(-100, 100), min_size=1, max_size=5), attempts=st.integers(2, 4))
def test_equal_attempts_give_exactly_zero(name: str, rewards: list[float], attempts: int) -> None:
    count = len(rewards)
    turn = np.tile(np.arange(count), attempts)
    token_signals = ("residual_weight", "entropy", "planning", "prefix", "continuation")
    table = make_table(
        np.zeros(count * attempts),
        np.repeat(np.arange(attempts), count),
        turn,
        np.tile(rewards, attempts),
        state=turn.tolist(),
        tokens=np.full(count * attempts, 2),
        signals={
            "answer_logprob": -0.1 * np.where(turn % 2, 0.0, 1.0),
            "demonstration": np.zeros(count * attempts, dtype=np.bool_),
            "tag": np.zeros(count * attempts, dtype=np.int64),
            "tag_form": np.ones(count * attempts, dtype=np.bool_),
            "tag_reward": np.zeros(count * attempts),
            "tool_result": turn % 2 == 0,
            "tree": np.zeros(count * attempts),
            "turn_reward": turn * 0.7,
        },
        token_signals={name: np.full(2 * count * attempts, 0.5) for name in token_signals},
    )
    if name.startswith("igpo"):  # gains of one attempt differ from each other and from its outcome
        table = replace(table, signals={"answer_logprob": np.zeros(len(table))})
        table = replace(table, reward=np.zeros(len(table)))
    assert np.all(ESTIMATORS[name](table) == 0.0)


@pytest.mark.parametrize("name", ["dapo", "grpo", "mt_grpo", "reinforce_pp_baseline", "rloo"])
@given(table=measured_tables(), shift=st.integers(-20, 20))
def test_comparisons_ignore_a_constant_added_to_every_score(name: str, table: TurnTable, shift: int) -> None:
    options = {} if name == "mt_grpo" else {"statistics": "episodes"}
    scores = table.reward.round()
    several = np.array([len(set(table.episode[table.group == g])) > 1 for g in table.group])
    if name == "reinforce_pp_baseline" and not several.all():
        return  # whitening spreads the raw score of a group of one over the batch
    before = ESTIMATORS[name](with_scores(table, scores), **options)
    after = ESTIMATORS[name](with_scores(table, scores + shift), **options)
    np.testing.assert_allclose(after[several], before[several], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("estimator", [partial(rloo, invalid_penalty=0.0), raft], ids=["rloo", "raft"])
@given(table=measured_tables(), scale=st.floats(0.5, 20))
def test_unnormalised_advantages_scale_with_the_rewards(estimator: Estimator, table: TurnTable, scale: float) -> None:
    paid = {"token_reward": scale * table.token_signals["token_reward"]}
    scaled = replace(table, reward=scale * table.reward, token_signals={**table.token_signals, **paid})
    np.testing.assert_allclose(estimator(scaled), scale * estimator(table), rtol=1e-9, atol=1e-7)


@given(seed=st.integers(0, 1000), observations=st.integers(0, 3), padding=st.integers(0, 3))
def test_padding_and_longer_observations_do_not_change_advantages(seed: int, observations: int, padding: int) -> None:
    """Columns without a policy token, whatever they hold, make the same table, and so the same answers."""
    rng = np.random.default_rng(seed)
    mask = rng.random((3, 5)) < 0.7
    mask[:, 0], mask[:, 2] = True, False
    columns = {name: rng.normal(size=mask.shape) for name in ("rewards", "value", "prm")}
    at = [2] * observations + [5] * padding
    short = sequences(mask, **columns).table
    wider = {name: np.insert(values, at, 1e6, axis=1) for name, values in columns.items()}
    long = sequences(np.insert(mask, at, False, axis=1), **wider).table
    for name in ("group", "episode", "turn", "reward", "tokens"):
        np.testing.assert_array_equal(getattr(long, name), getattr(short, name))
    for name, signal in short.token_signals.items():
        np.testing.assert_array_equal(long.token_signals[name], signal)


@pytest.mark.parametrize(
    ("name", "signal", "by"),
    [
        ("igpo", "'answer_logprob'", "answer_gain"),
        ("istar", "'prm'", "implicit_prm"),
        ("mt_grpo", "'tool_result'", "turn_rewards"),
        ("empg", "'entropy'", "entropy"),
        ("vineppo", "'mc_value'", "monte_carlo"),
        ("tree_grpo", "'tree'", "tree"),
        ("resrl", "token signal 'residual_weight'", "residual"),
        ("token_gae", "token signal 'value'", "critic"),
        ("turn_gae", "signal 'value'", "critic"),
    ],
)
def test_a_missing_signal_is_named_with_its_source(name: str, signal: str, by: str) -> None:
    table = single_turns([0, 0], [0.0, 1.0], tokens=np.array([1, 1]), signals={"other": np.zeros(2)})
    with pytest.raises(MissingSignalError, match=rf"needs the .*{signal}.*{by}.*measured were: "):
        ESTIMATORS[name](table)


def test_an_estimator_over_tokens_raises_without_token_counts() -> None:
    with pytest.raises(ValueError, match="no count of sampled tokens"):
        reinforce_pp(single_turns([0, 0], [0.0, 1.0]))
    silent = single_turns([0, 0], [0.0, 1.0], tokens=np.array([1, 0]))
    with pytest.raises(ValueError, match=r"row 1 has the reward 1\.0 and no sampled token"):
        token_rewards(silent)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (partial(rloo, single="raw"), "unknown single 'raw'"),
        (partial(reinforce_pp, observations="skipped"), "observations 'skipped'; did you mean 'skip'"),
        (partial(psr_nsr, learn_from="negatives"), "did you mean 'negative'"),
        (partial(igpo, gain="prob"), "unknown gain 'prob'"),
        (partial(igpo, normalization="seperate"), "did you mean 'separate'"),
        (partial(igpo, turn_ends="zero"), "turn_ends 'zero'"),
        (partial(istar, mode="rlo"), "did you mean 'rloo'"),
        (partial(istar, baseline="first"), "baseline 'first'"),
        (partial(hgpo, mode="mean"), "unknown mode 'mean'"),
        (partial(hgpo, precision="float16"), "precision 'float16'"),
        (partial(turn_gae, anchor="first"), "anchor 'first'"),
        (partial(bi_level_gae, turn_ends="all"), "turn_ends 'all'"),
        (partial(tree_grpo, combine="sum"), "combine 'sum'"),
        (partial(pure, baseline="step"), "baseline 'step'"),
        (partial(luffy, compare_with="mine"), "compare_with 'mine'"),
        (partial(step_grpo, pool="group"), "unknown pool 'group'"),
        (partial(macro_gae, weights="unit"), "unknown weights 'unit'"),
    ],
)
def test_unknown_options_are_named(call: Estimator, message: str) -> None:
    with pytest.raises(UnknownNameError, match=message):
        call(single_turns([0, 0], [0.0, 1.0]))


# -- time -------------------------------------------------------------------------------------------------------------
@given(measured_tables(), st.data())
def test_recursions_follow_their_definition(table: TurnTable, data: Any) -> None:
    table = take(table, np.array(data.draw(st.permutations(range(len(table))))))
    for line, episode in [(turns(table), table.episode), (tokens(table), table.episode[table.token_rows])]:
        values, decay = np.cos(np.arange(len(episode))), np.sin(np.arange(len(episode)))
        x, following, after = 0.0, np.nan, -1
        for item in reversed(line.order.tolist()):
            if episode[item] != after:
                x, following, after = 0.0, -7.0, episode[item]
            x = values[item] + decay[item] * x
            assert line.accumulate(values, decay)[item] == pytest.approx(x, abs=1e-12)
            assert line.following(values, -7.0)[item] == following
            following = values[item]


def test_positions_in_time() -> None:
    line = Timeline(np.array([2, 0, 1, 3]), np.array([False, False, True, True]))
    assert line.position().tolist() == [1, 2, 0, 0]
    assert line.last().tolist() == [False, True, False, True]


@given(st.lists(st.floats(-50, 50), min_size=2, max_size=20))
def test_whitened_values_have_mean_0_and_variance_1(values: list[float]) -> None:
    white = whiten(np.array(values))
    if np.std(values) > 0.1:
        assert white.mean() == pytest.approx(0.0, abs=1e-6)
        assert white.std(ddof=1) == pytest.approx(1.0, rel=1e-3)
    assert whiten(np.array(values[:1])).tolist() == [0.0]
    np.testing.assert_allclose(
        whiten(np.array(values), np.array([2] + [1] * (len(values) - 1)))[1:],
        whiten(np.array([values[0], *values]))[2:],
    )


# -- baselines of outcomes --------------------------------------------------------------------------------------------
def scored(*scores: float, tokens: Sequence[int] = (), group: Sequence[int] = ()) -> TurnTable:
    """Attempts of one turn."""
    counts = np.array(tokens or [1] * len(scores), dtype=np.int64)
    return single_turns(np.array(group or [0] * len(scores)), scores, tokens=counts)


def test_opo_weighs_attempts_by_their_tokens() -> None:
    assert opo(scored(1, 0, tokens=[5, 4])).tolist() == pytest.approx([4 / 9, -5 / 9])
    whole = make_table([0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 0], tokens=np.array([2, 3, 4]))
    assert opo(whole).tolist() == pytest.approx([4 / 9, 4 / 9, -5 / 9])  # five tokens in two turns
    assert opo(scored(3, group=[7])).tolist() == [3]


def test_maxrl_gives_rare_successes_larger_advantages() -> None:
    assert maxrl(scored(1, 0, 0, 0)).tolist() == pytest.approx([3, -1, -1, -1], rel=1e-5)
    assert maxrl(scored(1, 1, 1, 0)).tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, -1], rel=1e-5)
    with pytest.raises(ValueError, match="episode 1 has the return -1, and MaxRL divides by the mean return"):
        maxrl(scored(0, -1))


def test_gpg_scales_for_episodes_with_a_score_of_0() -> None:
    assert gpg(scored(1, 0, 0, 0, group=[0, 0, 1, 1])).tolist() == [2, -2, 0, 0]


def test_pass_at_k_rewards_only_a_best_attempt_that_is_alone() -> None:
    assert pass_at_k(scored(2, 5, 1), normalize_by_std=False).tolist() == [0, 3, 0]
    assert pass_at_k(scored(1, 0, 0, 0)).tolist() == pytest.approx([2, 0, 0, 0], rel=1e-5)  # std 0.5
    assert pass_at_k(scored(1, 1, 0, 4, group=[0, 0, 0, 1])).tolist() == [0, 0, 0, 0]
    long = make_table([0, 0, 0], [4, 4, 2], [0, 1, 0], [0, 3, 1], tokens=np.array([1, 1, 1]))
    assert pass_at_k(long, normalize_by_std=False).tolist() == [2, 2, 0]


def test_otb_counts_the_tokens_of_an_episode_over_its_turns() -> None:
    """Two attempts of three tokens; the second one's first turn has two of them."""
    table = make_table(
        [0, 0, 0, 0], [0, 0, 1, 1], [0, 1, 0, 1], [0.0, 1.0, 0.0, 0.0], tokens=np.array([1, 2, 2, 1]),
        token_signals={"logprob": np.log([0.5] * 6), "square_sum": np.array([0.5, 0.5, 0.5, 0.25, 0.25, 1.0])},
    )  # fmt: skip
    # w = 1 - 2 p + sum; W of the first 0.5, 1, 1.5, of the second 0.25, 0.5, 1.5
    baseline = np.array([0.5 / 0.75, 1 / 1.5, 1.5 / 3])
    assert otb(table).tolist() == pytest.approx([*(1 - baseline), *-baseline])
    weighted = replace(
        table, token_signals={**table.token_signals, "importance_weight": np.array([2.0] * 3 + [1.0] * 3)}
    )
    assert otb(weighted)[0] == pytest.approx(1 - 2 / 2.25)  # four times as much for the first attempt


# -- outcome ----------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(-5, 5), min_size=2, max_size=6))
def test_rloo_is_the_difference_from_the_mean_of_the_others(scores: list[int]) -> None:
    others = [(sum(scores) - score) / (len(scores) - 1) for score in scores]
    advantages = rloo(single_turns([0] * len(scores), scores))
    np.testing.assert_allclose(advantages, np.subtract(scores, others), atol=1e-12)


def test_a_group_of_one() -> None:
    table = single_turns([0, 1, 1], [5.0, 1.0, 3.0], tokens=np.array([1, 1, 1]), signals={"tree": np.arange(3)})
    assert rloo(table).tolist() == [5, -2, 2]
    assert rloo(table, single="zero").tolist() == [0, -2, 2]
    assert ngrpo(table, max_reward=5.0)[0] == pytest.approx(5.0, rel=1e-5)
    assert tree_grpo(table)[0] == pytest.approx(5.0, rel=1e-5)
    assert np.isfinite(prime(replace(table, token_signals={"prm": np.ones(3)})).advantages).all()


def test_ngrpo_learns_from_failures_and_not_from_successes() -> None:
    failures, successes = single_turns([0] * 4, [0.0] * 4), single_turns([0] * 4, [1.0] * 4)
    assert ngrpo(failures)[0] < -0.4
    assert len(set(ngrpo(failures).tolist())) == 1
    assert ngrpo(successes).tolist() == [0] * 4


def test_the_overlong_penalty_is_a_ramp() -> None:
    penalty = overlong_penalty(np.array([1, 6, 8, 10, 12]), limit=10, buffer=4, factor=0.5)
    assert penalty.tolist() == [0, 0, -0.25, -0.5, -0.75]
    with pytest.raises(ValueError, match="buffer must be between 1 and the limit of 10 tokens, got 11"):
        overlong_penalty(np.array([1]), limit=10, buffer=11, factor=1.0)
    long = single_turns([0, 0], [1.0, 1.0], tokens=np.array([2, 10]))
    advantages = dapo(long, limit=10, buffer=4)
    assert advantages[0] == -advantages[1] > 0


def test_reinforce_pp_carries_the_reward_over_an_observation_or_not() -> None:
    """Two turns of two tokens, with an observation between them, and a reward at the end."""
    table = make_table([0, 0], [0, 0], [0, 1], [0.0, 1.0], tokens=np.array([2, 2]))
    assert token_returns(table, 0.5, "skip").tolist() == [0.125, 0.25, 0.5, 1.0]
    assert token_returns(table, 0.5, "reset").tolist() == [0, 0, 0.5, 1.0]


def test_psr_nsr_weighs_successes_and_failures() -> None:
    table = single_turns([0, 0], [1.0, 0.0], tokens=np.array([2, 1]))
    assert psr_nsr(table, learn_from="positive").tolist() == [1, 1, 0]
    assert psr_nsr(table, learn_from="negative").tolist() == [0, 0, -1]
    assert psr_nsr(table, learn_from="weighted").tolist() == [0.1, 0.1, -1]


@pytest.mark.parametrize("learn_from", ["positive", "negative", "weighted"])
@pytest.mark.parametrize("score", [-1.0, 0.5, 10.0])
def test_psr_nsr_refuses_rewards_other_than_1_and_0(learn_from: str, score: float) -> None:
    table = single_turns([0, 0], [1.0, score], tokens=np.array([1, 1]))
    with pytest.raises(
        ValueError, match=f"episode 1 has the return {score:g}, and PSR and NSR need 1 .* and 0 for a failure"
    ):
        psr_nsr(table, learn_from=learn_from)


def test_nft_gives_success_less_the_success_rate() -> None:
    table = single_turns([0, 0, 0, 0, 1, 1, 2], [1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0])
    assert nft(table).tolist() == [0.75, -0.25, -0.25, -0.25, 0, 0, 0]


@pytest.mark.parametrize("score", [-1.0, 0.5, 10.0])
def test_nft_refuses_other_rewards_than_1_and_0(score: float) -> None:
    with pytest.raises(ValueError, match=rf"episode 1 has the return {score:g}, and NFT needs 1 .*RewardWrapper"):
        nft(single_turns([0, 0], [0.0, score]))


def test_raft_learns_from_episodes_with_a_positive_return() -> None:
    assert raft(single_turns([0, 0, 0], [2.0, 0.0, -1.0])).tolist() == [2, 0, 0]


# -- states and turns -------------------------------------------------------------------------------------------------
def test_hgpo_weighs_longer_common_histories_more() -> None:
    """Four attempts end in the state "c", two of them by way of "a"."""
    table = make_table(
        np.zeros(8),
        np.repeat(np.arange(4), 2),
        np.tile([0, 1], 4),
        [0.0, 4.0, 0.0, 0.0, 0.0, 2.0, 0.0, 2.0],
        state=["a", "c", "a", "c", "b", "c", "d", "c"],
    )
    advantages = hgpo(table, gamma=1.0, history=1, mode="mean_norm", epsilon=1e-12)
    # In "c" alone: mean 2, so +2, -2, 0, 0; after "a": mean 2, the same; a_k weighs k + 1.
    np.testing.assert_allclose(advantages[1::2], [2, -2, 0, 0], atol=1e-9)
    np.testing.assert_allclose(advantages[::2], [2, -2, 0, 0], atol=1e-9)


def test_rounding_separates_equal_returns_only_in_float32() -> None:
    """Seven attempts that earn the same in the same state; of 7.35 the mean of seven is another number in float32."""
    table = make_table(np.zeros(7), np.arange(7), np.zeros(7), np.full(7, 7.35), state=["a"] * 7)
    assert np.all(hgpo(table) == 0.0)
    assert np.abs(hgpo(table, precision="float32")).min() > 0.1


def test_hgpo_averages_only_existing_comparisons() -> None:
    alone = make_table([0, 0], [0, 1], [0, 0], [1.0, 3.0])  # in states of their own
    assert hgpo(alone, mode="mean_norm").tolist() == [0, 0]
    np.testing.assert_allclose(hgpo(alone, mode="mean_norm", base_group=True), [-1, 1], rtol=1e-5)


def igpo_table(beliefs: list[float], outcomes: tuple[float, float], **changes: Any) -> TurnTable:
    """Two attempts of three turns; the first has the given answer log-probabilities, the second constant ones."""
    return make_table(
        np.zeros(6),
        np.repeat([0, 1], 3),
        np.tile(np.arange(3), 2),
        [0, 0, outcomes[0], 0, 0, outcomes[1]],
        signals={"answer_logprob": np.array([*beliefs, 0.0, 0.0, 0.0])},
        **changes,
    )


def test_igpo_gains_add_up_to_the_change_of_the_answers_probability() -> None:
    table = igpo_table([-3.0, -2.5, -0.5], (1.0, 0.0))
    assert answer_gains(table, "log_prob_diff")[:2].tolist() == [0.5, 2.0]
    assert np.nansum(answer_gains(table, "prob_diff")[:3]) == pytest.approx(np.exp(-0.5) - np.exp(-3.0))


def test_igpo_discounts_by_turn() -> None:
    table = igpo_table([-3.0, -2.5, -0.5], (1.0, 0.0))
    z = igpo(table, normalize_by_std=False, gamma=0.0)
    np.testing.assert_allclose(z, [0.5 - 0.625, 2.0 - 0.625, 0.5, -0.625, -0.625, -0.5])
    late = igpo(table, normalize_by_std=False, gamma=0.5)
    np.testing.assert_allclose(late[:3], [z[0] + 0.5 * (z[1] + 0.5 * z[2]), z[1] + 0.5 * z[2], z[2]])


def test_igpo_turns_without_a_reward() -> None:
    """As the authors find turns, those whose reward is exactly the mean join the next one, undiscounted."""
    table = igpo_table([0.0, 0.0, 0.0], (1.0, 0.0))
    explicit = igpo(table, gamma=0.5, normalize_by_std=False)
    nonzero = igpo(table, gamma=0.5, normalize_by_std=False, turn_ends="nonzero")
    np.testing.assert_allclose(explicit[:3], [0.125, 0.25, 0.5])
    np.testing.assert_allclose(nonzero[:3], [0.5, 0.5, 0.5])
    unmeasured = igpo(igpo_table([np.nan, 0.0, 0.0], (1.0, 0.0)), gamma=0.5, normalize_by_std=False)
    np.testing.assert_allclose(unmeasured[:3], [0.25, 0.25, 0.5])


def test_istar_compares_turns_with_first_turns_or_with_all() -> None:
    table = make_table([0, 0, 0], [0, 0, 1], [0, 1, 0], np.zeros(3), signals={"prm": np.array([1.0, 5.0, 3.0])})
    options = {"mode": "mean_norm", "scale_steps": "none"}
    assert istar(table, **options).tolist() == [-1, 3, 1]
    assert istar(table, baseline="all_turns", **options).tolist() == [-2, 2, 0]
    assert istar(table, mode="rloo", scale_steps="none").tolist() == [-2, 6, 2]
    np.testing.assert_allclose(istar(table, mode="mean_norm"), [-0.2, 0.6, 0.2], rtol=1e-5)


def test_prime_takes_means_over_tokens_from_every_token() -> None:
    table = single_turns([0, 0], [0.0, 0.0], tokens=np.array([2, 1]), token_signals={"prm": np.array([1.0, 3.0, 4.0])})
    # n / (n - 1) = 2, baseline (2 + 4) / 1 = 6: dense rewards -4, 0, 2.
    assert prime(table, prm_weight=1.0).returns.tolist() == [-4, 0, 2]
    outcome = prime(replace(table, reward=np.array([1.0, 0.0])), prm_weight=0.0, outcome_weight=2.0)
    assert outcome.returns.tolist() == [2, 2, -2]


def test_mt_grpo_credits_each_result_to_the_turns_before_it() -> None:
    """Both attempts call a tool twice, after turns 0 and 2, and answer in turn 3; only the turn rewards differ."""
    table = make_table(
        np.zeros(8),
        np.repeat([0, 1], 4),
        np.tile(np.arange(4), 2),
        np.zeros(8),
        signals={
            "turn_reward": np.array([1.0, 0, 0, 0, 0, 0, 3.0, 0]),
            "tool_result": np.tile([True, False, True, False], 2),
        },
    )
    unit = np.sqrt(0.5)
    expected = [unit, -unit, -unit, 0, -unit, unit, unit, 0]
    np.testing.assert_allclose(mt_grpo(table, epsilon=1e-9), expected, rtol=1e-6)
    without = replace(table, signals={**table.signals, "tool_result": np.zeros(8, dtype=np.bool_)})
    np.testing.assert_allclose(mt_grpo(without, epsilon=1e-9), [-unit] * 4 + [unit] * 4, rtol=1e-6)


def test_empg_follows_its_formula() -> None:
    table = make_table([0, 0, 0], [0, 0, 1], [0, 1, 0], [0.0, 1.0, 0.0], signals={"entropy": np.array([0.0, 1.0, 0.5])})
    base = grpo(table)
    h = np.array([0.0, 1.0, 0.5])
    modulated = base * np.exp(-h) / np.exp(-h).mean() + 0.05 * np.array([np.exp(-1.0), 0.0, 0.0])
    np.testing.assert_allclose(empg(table), modulated - modulated.mean(), atol=1e-7)
    assert empg(table).mean() == pytest.approx(0.0, abs=1e-12)


def test_step_grpo_compares_the_returns_of_all_turns_of_a_task() -> None:
    table = make_table([0, 0, 0], [0, 0, 1], [0, 1, 0], [0.0, 1.0, 0.0], valid=[True, True, False])
    values = np.array([0.5, 1.0, -0.1])  # the penalty is not discounted backwards
    expected = (values - values.mean()) / values.std(ddof=1)
    np.testing.assert_allclose(step_grpo(table, gamma=0.5, invalid_penalty=0.1), expected, rtol=1e-5)
    other = replace(table, group=np.array([0, 0, 1]))
    assert step_grpo(other, gamma=1.0).tolist() == [0, 0, 0]
    batch = step_grpo(other, gamma=0.5, invalid_penalty=0.1, pool="batch", normalize_by_std=False)
    np.testing.assert_allclose(batch, values - values.mean())


def test_turn_rloo_counts_an_attempt_that_has_ended_as_0() -> None:
    table = make_table([0] * 4, [0, 0, 1, 2], [0, 1, 0, 0], [0.25, 1.0, 0.5, 0.0])
    assert turn_rloo(table).tolist() == [1.25 - 0.25, 1.0, 0.5 - 0.625, -0.875]
    assert turn_rloo(make_table([0, 0], [0, 0], [0, 1], [0.25, 1.0])).tolist() == [1.25, 1.0]


@given(measured_tables())
def test_the_baseline_of_a_turn_does_not_depend_on_later_turns_of_its_attempt(table: TurnTable) -> None:
    """If an attempt had stopped after a turn, the baselines of its turns up to there were the same."""
    last = np.append(np.diff(table.episode) != 0, True)
    cut = np.flatnonzero(~(last & (table.turn > 0) & (table.episode == table.episode[0])))
    shorter = take(table, cut)
    mine = shorter.episode == table.episode[0]

    def baselines(of: TurnTable) -> NDArray[np.float64]:
        return of.discounted_returns(1.0) - turn_rloo(of, invalid_penalty=0.0)

    np.testing.assert_allclose(baselines(shorter)[mine], baselines(table)[cut][mine], atol=1e-4)


@given(measured_tables(), st.floats(0, 1), st.floats(0, 1))
def test_macro_actions_of_one_token_are_tokens(table: TurnTable, gamma: float, lam: float) -> None:
    expected = gae_over_tokens(table, gamma=gamma, token_gamma=gamma, lam=lam)
    for weights in ("equal", "last", "position"):
        found = macro_gae(table, length=1, weights=weights, gamma=gamma, lam=lam)
        np.testing.assert_allclose(found.advantages, expected.advantages, atol=1e-9)
        np.testing.assert_allclose(found.returns, expected.returns, atol=1e-9)


def test_macro_actions_share_values_and_advantages() -> None:
    """Four tokens and a turn of one: runs of two, and the last token of each turn for itself."""
    value = np.array([1.0, 3.0, 5.0, 7.0, 2.0])
    table = make_table([0, 0], [0, 0], [0, 1], [0.0, 10.0], tokens=np.array([4, 1]), token_signals={"value": value})
    found = macro_gae(table, length=2, lam=0.0)  # values 2, 5, 7, 2
    assert found.advantages.tolist() == [3, 3, 2, -5, 8]
    assert found.returns.tolist() == [5, 5, 7, 2, 10]
    assert macro_gae(table, length=2, lam=0.0, weights="last").advantages.tolist() == [2, 2, 2, -5, 8]


def test_fine_grained_rewards_are_added_to_those_of_the_environment() -> None:
    signals = {"turn_reward": np.array([0.5, 0.25])}
    table = make_table(
        [0, 0], [0, 0], [0, 1], [0.0, 1.0], tokens=np.array([1, 2]), signals=signals,
        token_signals={"value": np.zeros(3)},
    )  # fmt: skip
    assert fine_grained_gae(table, turn_weight=2.0, lam=1.0).returns.tolist() == [2.5, 1.5, 1.5]


def test_gtpo_distributes_rewards_by_entropy() -> None:
    """Two successes and two failures; the second tokens of two of them have nothing to compare with."""
    entropy = {"entropy": np.array([3.0, 1.0, 1.0, 0.5, 0.25, 2.0])}
    table = single_turns([0] * 4, [1.0, 1.0, 0.0, 0.0], tokens=np.array([2, 1, 1, 2]), token_signals=entropy)
    shaped = np.array([0.9 + 0.15, 1.0, 0.9 + 0.05, -0.9 - 0.1 * 2 * 2 / 6, -0.9 - 0.1 * 2 * 4 / 6, -1.0])
    expected = (shaped - shaped.mean()) / shaped.std(ddof=1)
    np.testing.assert_allclose(gtpo(table), expected, rtol=1e-5)
    apart = gtpo(table, compare="apart")
    np.testing.assert_allclose(apart[:3], (shaped[:3] - 1.0) / shaped[:3].std(ddof=1), atol=1e-4)
    assert gtpo(table, entropy_weight=0.0, compare="apart").tolist() == [0] * 6
    means = np.array([2.0, 1.0, 0.5, 1.125])
    weights = np.array([4 / 3, 2 / 3, 2 * 2 / (2 + 1 / 1.125), 2 / 1.125 / (2 + 1 / 1.125)])
    shaped = np.array([1.0, 1.0, -1.0, -1.0]) * (0.9 + 0.1 * weights)
    assert means[0] == entropy["entropy"][:2].mean()
    np.testing.assert_allclose(grpo_s(table), (shaped - shaped.mean()) / shaped.std(ddof=1), rtol=1e-5)


def test_hicra_gives_plans_more_credit_and_less_blame() -> None:
    plans = {"planning": np.array([1.0, 0.0, 1.0, 0.0])}
    table = single_turns([0, 0], [1.0, 0.0], tokens=np.array([2, 2]), token_signals=plans)
    np.testing.assert_allclose(hicra(table), np.array([1.2, 1.0, -0.8, -1.0]) * np.sqrt(0.5), rtol=1e-5)


def test_redi_is_the_mean_over_pairs() -> None:
    """Task 0 has two successes and a failure, task 1 one of each, task 2 a failure; the first attempt has two turns."""
    table = make_table(
        [0, 0, 0, 0, 1, 1, 2], [0, 0, 1, 2, 3, 4, 5], [0, 1, 0, 0, 0, 0, 0], [0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 0.0]
    )
    m = np.array([-1.0, -1.0, -2.0, -3.0, -4.0, -5.0, -6.0])  # mean log-probability of each row's attempt
    pairs = [np.mean([m[0] - 0.8 * m[3], m[2] - 0.8 * m[3]]), m[5] - 0.8 * m[4]]
    first, advantages = table.is_first, redi(table)
    assert (advantages[first] * m[first]).mean() == pytest.approx(np.mean(pairs))  # what "trajectory-mean" averages
    assert advantages.tolist() == pytest.approx([1.5, 1.5, 1.5, -2.4, -2.4, 3.0, 0.0])
    assert redi(table, threshold=1.0).tolist() == [0.0] * 7


def test_tp_grpo_counts_a_thought_once() -> None:
    """A right thought of two turns, then a wrong one; and an attempt of one right turn."""
    verdicts = {"prm": np.array([0.0, 0.0, -1.0, 0.0])}
    table = make_table([0] * 4, [0, 0, 0, 1], [0, 1, 2, 0], [0.0, 0.0, 0.0, 1.0], signals=verdicts)
    z = (np.array([0.0, -1.0, 0.0]) + 1 / 3) / np.std([0.0, -1.0, 0.0], ddof=1)
    expected = np.sqrt(0.5) * np.array([-1, -1, -1, 1]) + 0.5 * 0.5 * z[[0, 0, 1, 2]]
    np.testing.assert_allclose(tp_grpo(table), expected, rtol=1e-5)
    np.testing.assert_allclose(
        tp_grpo(table, adapt=0.0) - tp_grpo(table, thought_weight=0.0), 0.5 * z[[0, 0, 1, 2]], rtol=1e-5
    )


def test_luffy_compares_with_the_attempts_of_the_policy() -> None:
    demonstration = {"demonstration": np.array([True, False, False, False])}
    table = single_turns([0] * 4, [1.0, 0.0, 0.0, 1.0], signals=demonstration)
    np.testing.assert_allclose(luffy(table, normalize_by_std=False), [2 / 3, -1 / 3, -1 / 3, 2 / 3])
    np.testing.assert_allclose(luffy(table)[0], (2 / 3) / np.std([0, 0, 1], ddof=1), rtol=1e-5)
    np.testing.assert_allclose(luffy(table, compare_with="all", normalize_by_std=False), [0.5, -0.5, -0.5, 0.5])
    failed = replace(table, reward=np.array([1.0, 0.0, 0.0, 0.0]))
    np.testing.assert_allclose(luffy(failed), [1, 0, 0, 0], rtol=1e-5)  # not 1 / epsilon
    alone = single_turns([0, 0], [1.0, 0.0], signals={"demonstration": np.array([True, True])})
    np.testing.assert_allclose(luffy(alone, normalize_by_std=False), [0.5, -0.5])


def test_chord_imitates_demonstrations_whatever_the_policy_earns() -> None:
    shown = np.array([True, False, False, False])
    for rewards in ([1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]):
        table = single_turns([0] * 4, rewards, signals={"demonstration": shown})
        answer = chord(table)
        assert answer[0] == 1.0
        np.testing.assert_array_equal(answer[1:], luffy(table)[1:])


def test_resrl_weighs_the_tokens_of_failures() -> None:
    weights = {"residual_weight": np.array([1.0, 1.0, 0.1, 0.7])}
    table = single_turns([0, 0], [1.0, 0.0], tokens=np.array([2, 2]), token_signals=weights)
    unit = np.sqrt(0.5)
    np.testing.assert_allclose(resrl(table), np.array([0.1, 0.1, -0.1, -0.7]) * unit, rtol=1e-5)


def test_pure_is_nearly_the_minimum_of_the_turns() -> None:
    scores = np.array([0.9, -0.5, 0.3, 0.1, 0.2, 0.8])
    table = make_table(
        np.zeros(6), np.repeat([0, 1], 3), np.tile(np.arange(3), 2), np.zeros(6), signals={"prm": scores},
        tokens=np.ones(6, dtype=np.int64),
    )  # fmt: skip
    sums = table.episode_sums(min_form_rewards(table, 0.01))
    np.testing.assert_allclose(sums[[0, 3]], [-0.5, 0.1], atol=1e-3)
    np.testing.assert_allclose(table.episode_sums(min_form_rewards(table, None))[[0, 3]], [0.7 / 3, 1.1 / 3])
    # One token a turn: the baseline of each is the other attempt's mean, so that first turns differ by all of it.
    assert pure(table, temperature=0.01)[[0, 3]] == pytest.approx([-0.6, 0.6], abs=2e-3)


def test_pure_compares_with_all_tokens_of_the_others_together() -> None:
    """Three attempts of one turn; the others of the first earned 0.6 and 0.2 with 1 and 3 tokens."""
    table = single_turns([0, 0, 0], np.zeros(3), tokens=np.array([2, 1, 3]), signals={"prm": np.array([0.5, 0.6, 0.2])})
    assert pure(table)[0] == pytest.approx(0.5 - 2 * (0.6 + 0.2) / (1 + 3))  # not 2 · (0.6 / 1 + 0.2 / 3) / 2
    assert pure(table, baseline="turn")[0] == pytest.approx(0.5 - (0.6 + 0.2) / 2)
    alone = single_turns([0], [0.0], tokens=np.array([2]), signals={"prm": np.array([0.5])})
    assert pure(alone).tolist() == pure(alone, baseline="turn").tolist() == [0.5]


# -- critics ----------------------------------------------------------------------------------------------------------
def test_with_lambda_1_advantages_are_returns_less_values() -> None:
    table = make_table(
        [0, 0], [0, 0], [0, 1], [1.0, 2.0], tokens=np.array([1, 2]), token_signals={"value": np.array([0.3, 0.2, 0.1])}
    )
    estimate = gae_over_tokens(table, gamma=1.0, token_gamma=1.0, lam=1.0)
    np.testing.assert_allclose(estimate.returns, [3, 2, 2])
    np.testing.assert_allclose(estimate.advantages, [2.7, 1.8, 1.9])


def test_a_cut_off_episode_bootstraps_from_the_next_value() -> None:
    table = make_table([0], [0], [0], [1.0], signals={"value": np.array([0.5])})
    assert turn_gae(table, gamma=0.5, whiten_turns=False).advantages.tolist() == [0.5]
    cut = replace(table, signals={"value": np.array([0.5]), "next_value": np.array([4.0])})
    assert turn_gae(cut, gamma=0.5, whiten_turns=False).advantages.tolist() == [2.5]


@given(measured_tables(), st.floats(0, 1))
def test_poads_token_backups_add_up_to_the_backup_of_the_action(table: TurnTable, gamma: float) -> None:
    """With lam 1 an action's first token has the advantage of the action; NTPO's is discounted by its length."""
    table = replace(table, token_signals={"value": table.token_signals["value"]})
    assert table.tokens is not None
    first = np.cumsum(table.tokens) - table.tokens
    by_action = replace(table, signals={**table.signals, "value": table.token_signals["value"][first]})
    actions = turn_gae(by_action, gamma=gamma, lam=1.0, whiten_turns=False)
    ours = poad(table, gamma=gamma, lam=1.0, normalize=False)
    np.testing.assert_allclose(ours.advantages[first], actions.advantages, atol=1e-9)
    one_token = replace(
        by_action, tokens=np.ones(len(table), dtype=np.int64), token_signals={"value": by_action.signals["value"]}
    )
    for estimator in (poad, ntpo, archer):
        alike = estimator(one_token, gamma=gamma, lam=0.7, normalize=False)
        expected = turn_gae(by_action, gamma=gamma, lam=0.7, whiten_turns=False)
        np.testing.assert_allclose(alike.advantages, expected.advantages, atol=1e-9)


def test_bi_level_turns_without_a_reward() -> None:
    table = make_table(
        [0, 0], [0, 0], [0, 1], [0.0, 1.0], tokens=np.array([1, 1]), token_signals={"value": np.array([0.5, 0.25])}
    )
    options = {"gamma": 1.0, "lam": 1.0, "turn_gamma": 0.5}
    # H_1 = 1 - 0.25, H_0 = 0 + 0.5 · 0.25 - 0.5 + 0.5 · H_1; as one turn of two tokens the first has 1 - 0.5.
    np.testing.assert_allclose(bi_level_gae(table, **options).returns, [0.5, 1.0])
    np.testing.assert_allclose(bi_level_gae(table, turn_ends="nonzero", **options).returns, [1.0, 1.0])


# -- Monte Carlo and trees --------------------------------------------------------------------------------------------
@given(measured_tables())
def test_value_differences_add_up_to_the_return(table: TurnTable) -> None:
    """The differences of an episode's segments are its rewards less the value it started from."""
    earned = table.episode_rewards()[table.is_first]
    values = table.signals["mc_value"]
    known = np.isfinite(values[table.is_first])
    sums = table.episode_sums(np.where(np.isfinite(values), vineppo(table), 0.0))[table.is_first]
    np.testing.assert_allclose(sums[known], (earned - values[table.is_first])[known], atol=1e-9)


def test_the_turns_of_a_segment_share_its_difference() -> None:
    """Two segments of three turns, worth 0.5 and 0.2 before them, and a success at the end; each turn of two tokens."""
    values, reward = np.array([0.5, np.nan, np.nan, 0.2, np.nan, np.nan]), np.array([0.0, 0, 0, 0, 0, 1])
    at_first_tokens = np.full(12, np.nan)
    at_first_tokens[::2] = values
    table = make_table(
        np.zeros(6), np.zeros(6), np.arange(6), reward, tokens=np.full(6, 2),
        signals={"mc_value": values}, token_signals={"mc_value": at_first_tokens},
    )  # fmt: skip
    np.testing.assert_allclose(vineppo(table), [-0.3, -0.3, -0.3, 0.8, 0.8, 0.8])
    np.testing.assert_allclose(spo_chain(table), np.repeat([-0.3, 0.8], 6))
    np.testing.assert_allclose(vineppo(table, whiten=True)[table.token_rows], spo_chain(table, whiten=True))
    # Nothing says what the turns before the first measured state started from.
    late = replace(table, signals={"mc_value": np.roll(values, 1)})
    np.testing.assert_allclose(vineppo(late), [0, -0.3, -0.3, -0.3, 0.8, 0.8])
    assert vineppo(late, whiten=True)[0] == 0.0


@given(measured_tables())
def test_spo_cut_at_turns_is_vineppo(table: TurnTable) -> None:
    assert table.tokens is not None
    cuts = np.full(len(table.token_rows), np.nan)
    cuts[np.cumsum(table.tokens) - table.tokens] = table.signals["mc_value"]
    table = replace(table, token_signals={**table.token_signals, "mc_value": cuts})
    np.testing.assert_allclose(spo_chain(table), vineppo(table)[table.token_rows], atol=1e-9)
    white = spo_chain(table, whiten=True)
    np.testing.assert_allclose(white, vineppo(table, whiten=True)[table.token_rows], atol=1e-9)


@given(measured_tables())
def test_whitened_differences_have_mean_0_and_variance_1_over_the_tokens_that_are_trained(table: TurnTable) -> None:
    plain = spo_chain(table)
    trained = table.token_signals["logprob"] < np.log(0.9)
    white = spo_chain(table, whiten=True, probability_mask=0.9)
    assert np.all(white[~trained] == 0.0)
    if trained.sum() > 1 and plain[trained].std() > 0.1:
        assert white[trained].mean() == pytest.approx(0.0, abs=1e-6)
        assert white[trained].std(ddof=1) == pytest.approx(1.0, rel=1e-6)


def tree_of_attempts(node: list[int]) -> TurnTable:
    return make_table(
        np.zeros(6), np.repeat(np.arange(3), 2), np.tile([0, 1], 3), [0, 1.0, 0, 0.0, 0, 1.0],
        signals={"node": np.array(node)},
    )  # fmt: skip


def test_spo_tree_counts_every_child_once() -> None:
    """Attempts 0 and 1 share their first turn, node 7, whose value is 1/2; with node 9's the root is worth 3/4."""
    advantages = spo_tree(tree_of_attempts([7, 1, 7, 2, 9, 3]), shared_turns="each")
    assert advantages.tolist() == [-0.25, 0.5, -0.25, -0.5, 0.25, 0.0]
    by_std = spo_tree(tree_of_attempts([7, 1, 7, 2, 9, 3]), normalize_by_std=True, shared_turns="each")
    np.testing.assert_allclose(by_std, [-1, 1, -1, -1, 1, 0], rtol=1e-6)
    with pytest.raises(ValueError, match="other attempts reach node 2 from another turn"):
        spo_tree(tree_of_attempts([7, 1, 7, 2, 9, 2]))


def test_spo_tree_refuses_a_shared_turn_with_two_rewards() -> None:
    """A shared turn was played once; a KL penalty is measured in each row of it, which may round it otherwise."""
    shared = tree_of_attempts([7, 1, 7, 1, 9, 3])
    with pytest.raises(ValueError, match="row 3: node 1 has the reward 0, and 1 in another row"):
        spo_tree(shared)
    alike = replace(shared, reward=np.array([0.0, 1.0, 0.0, 1.0, 0.0, 1.0]), tokens=np.ones(6, dtype=np.int64))
    for penalty, refused in ((1e-7, False), (0.01, True)):
        paid = np.where(np.arange(6) == 2, penalty, 0.0)
        table = replace(alike, token_signals={"token_reward": paid})
        if refused:
            with pytest.raises(ValueError, match=r"row 2: node 7 has the reward 0\.01, and 0 in another row"):
                spo_tree(table)
        else:
            np.testing.assert_allclose(spo_tree(table), spo_tree(alike), atol=1e-6)


def test_spo_tree_whitens_over_each_turn_once_and_leaves_out_those_with_advantage_0() -> None:
    table = replace(tree_of_attempts([7, 1, 7, 2, 9, 3]), tokens=np.array([2, 1, 2, 1, 1, 3]))
    plain, white = spo_tree(table, shared_turns="each"), spo_tree(table, whiten=True) * np.array([2, 1, 2, 1, 1, 1])
    assert (plain[5], white[5]) == (0.0, 0.0)
    tokens = [plain[0]] * 2 + [plain[1], plain[3], plain[4]]  # of nodes 7, 1, 2 and 9
    expected = (plain - np.mean(tokens)) / np.std(tokens, ddof=1)
    np.testing.assert_allclose(white[:5], expected[:5], rtol=1e-6)
    sure = replace(table, token_signals={"logprob": np.log([0.5, 0.95, 0.5, 0.5, 0.95, 0.5, 0.5, 0.5, 0.5, 0.5])})
    tokens = [plain[0], plain[1], plain[3], plain[4]]  # one of node 7's was sampled above 0.9
    expected = (plain - np.mean(tokens)) / np.std(tokens, ddof=1)
    masked = spo_tree(sure, whiten=True, probability_mask=0.9) * np.array([2, 1, 2, 1, 1, 1])
    np.testing.assert_allclose(masked[:5], expected[:5], rtol=1e-6)


def test_tree_grpo_composes_or_adds_the_two_comparisons() -> None:
    table = single_turns([0] * 4, [1.0, 0.0, 1.0, 1.0], signals={"tree": np.array([0, 0, 1, 1])})
    across = grpo(table, invalid_penalty=0.0)
    unit = np.sqrt(0.5)
    np.testing.assert_allclose(tree_grpo(table), [unit, -unit, 0, 0], rtol=1e-4)
    np.testing.assert_allclose(tree_grpo(table, combine="add"), across + np.array([unit, -unit, 0, 0]), rtol=1e-4)
