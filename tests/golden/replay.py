"""The project's results for the inputs of a recorded case, for every algorithm with a recording."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from algorithms.correction import Correction
from algorithms.estimators.dapo import overlong_penalty
from algorithms.estimators.gae import bi_level_gae, gae_over_tokens, token_gae, turn_gae
from algorithms.estimators.gigpo import anchor_groups, gigpo, step_values
from algorithms.estimators.groups import episode_scores
from algorithms.estimators.grpo import grpo
from algorithms.estimators.hgpo import hierarchical_advantages
from algorithms.estimators.igpo import answer_gains, igpo
from algorithms.estimators.istar import istar, step_rewards
from algorithms.estimators.luffy import luffy
from algorithms.estimators.mt_grpo import compared_parts, mt_grpo
from algorithms.estimators.ngrpo import ngrpo
from algorithms.estimators.otb import otb
from algorithms.estimators.outcome_baselines import gpg, maxrl, opo, pass_at_k
from algorithms.estimators.poad import archer, normalize_nonzero, ntpo, poad
from algorithms.estimators.prime import prime
from algorithms.estimators.psr_nsr import psr_nsr
from algorithms.estimators.pure import min_form_rewards, pure
from algorithms.estimators.reinforce_pp import reinforce_pp, reinforce_pp_baseline, token_returns
from algorithms.estimators.rloo import rloo
from algorithms.estimators.spo import spo_chain, spo_tree
from algorithms.estimators.timeline import whiten
from algorithms.estimators.tree_grpo import tree_grpo
from algorithms.estimators.vineppo import vineppo
from algorithms.filters import group_stds, select_groups
from algorithms.losses import (
    AGGREGATIONS,
    UNIT_MEANS,
    Tokens,
    aepo_loss,
    aggregate,
    cispo_loss,
    clip_cov_loss,
    clip_loss,
    dppo_loss,
    future_log_ratios,
    gmpo_loss,
    gspo_loss,
    influence,
    kl_cov_loss,
    kl_estimate,
    luffy_loss,
    make_units,
    marker,
    opsm_loss,
    reinforce_loss,
    sapo_loss,
    unit_measure,
    vespo_loss,
)
from algorithms.signals.implicit_prm import outcome_loss, pairwise_loss, turn_rewards
from algorithms.signals.monte_carlo import fill_ends
from algorithms.signals.residual import residual_weights, residuals, success_subspace
from tests.golden.tables import (
    make_table,
    numbered,
    over_tokens,
    sequences,
    single_turns,
    table_of_rows,
)

Answers = dict[str, Any]  # in the shape of the case's `expected`


def tensor(values: Any) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def summed(inputs: Answers, **others: Any) -> Any:
    """Whole sequences as single turns, scored by the sum of their rewards."""
    return single_turns(numbered(inputs["group_index"]), np.sum(inputs["token_level_rewards"], axis=1), **others)


def masked(advantages: NDArray[np.float64], inputs: Answers) -> NDArray[np.float64]:
    return advantages[:, None] * np.asarray(inputs["response_mask"], dtype=np.float64)


# -- outcome ----------------------------------------------------------------------------------------------------------
def replay_grpo(inputs: Answers, params: Answers, expected: Answers) -> Answers:
    options = {"epsilon": params["epsilon"], "invalid_penalty": 0.0}
    return {
        "advantages_mean_std": masked(grpo(summed(inputs), **options), inputs),
        "advantages_mean_only_drgrpo": masked(grpo(summed(inputs), normalize_by_std=False, **options), inputs),
    }


def replay_rloo(inputs: Answers, params: Answers, expected: Answers) -> Answers:
    return {
        "advantages": masked(rloo(summed(inputs)), inputs),
        "advantages_vectorized": masked(rloo(summed(inputs), single="zero"), inputs),
    }


def replay_outcome_step_rows(inputs: Answers, params: Answers, expected: Answers) -> Answers:
    table, penalty = table_of_rows(inputs["rows"]), params["invalid_action_penalty_coef"]
    answers = {}
    for over, statistics in [("cross_steps", "turns"), ("per_trajectory", "episodes")]:
        options = {"statistics": statistics, "invalid_penalty": penalty}
        advantages = {
            "grpo_std": grpo(table, epsilon=params["epsilon"], **options),
            "grpo_nostd": grpo(table, normalize_by_std=False, epsilon=params["epsilon"], **options),
            "rloo": rloo(table, **options),
            "rpp_baseline": reinforce_pp_baseline(table, **options),
        }
        answers |= {f"{name}_{over}": over_tokens(values, inputs) for name, values in advantages.items()}
    return answers


def replay_reinforce_pp(inputs: Answers, params: Answers, expected: Answers) -> Answers:
    played = sequences(inputs["response_mask"], inputs["token_level_rewards"])
    scored = summed(inputs, tokens=np.sum(inputs["response_mask"], axis=1).astype(np.int64))
    answers = {"rpp_baseline_advantages": masked(reinforce_pp_baseline(scored), inputs)}
    for gamma in params["gammas"]:
        for name, observations in [("rpp", "reset"), ("derived_fixed", "skip")]:
            returns = played.padded(token_returns(played.table, gamma, observations))
            if observations == "reset":  # the recording also says what the code leaves under observations and padding
                rewards = np.array(inputs["token_level_rewards"])
                following = np.pad(returns * played.mask, ((0, 0), (0, 1)))[:, 1:]
                returns = np.where(played.mask, returns, rewards + gamma * following)
            advantages = reinforce_pp(played.table, gamma=gamma, observations=observations)
            answers[f"{name}_gamma{gamma}_returns"] = returns
            answers[f"{name}_gamma{gamma}_advantages"] = played.padded(advantages)
    return answers


def replay_ngrpo(inputs: Answers, params: Answers, expected: Answers) -> Answers:
    options = {"max_reward": params["max_reward"], "virtual": params["add_max_reward_num"]}
    return {"advantages": masked(ngrpo(summed(inputs), epsilon=params["epsilon"], **options), inputs)}


def replay_psr_nsr(inputs: Answers, params: Answers, expected: Answers) -> Answers:
    played = sequences(inputs["response_mask"], inputs["token_level_rewards"])
    options = {"gamma": params["gamma"], "observations": "reset"}
    weight = params["positive_advantage_weight_for_weighted"]
    return {
        choice: played.padded(psr_nsr(played.table, learn_from=choice, positive_weight=weight, **options))
        for choice in ("positive", "negative", "weighted")
    }


def replay_dapo_overlong(inputs: Answers, params: Answers, expected: Answers) -> Answers:
    limit, buffer, factor = params["max_resp_len"], params["overlong_buffer_len"], params["penalty_factor"]
    return {"overlong_reward": overlong_penalty(np.array(inputs["valid_response_length"]), limit, buffer, factor)}


# -- anchor states ----------------------------------------------------------------------------------------------------
def replay_gigpo(inputs: Answers, params: Answers, expected: Answers) -> Answers:
    table = table_of_rows(inputs["rows"])
    gamma, penalty, similarity = params["gamma"], params["invalid_action_penalty_coef"], params["similarity_thresh"]
    answers: Answers = {
        "step_returns_before_penalty": table.discounted_returns(gamma),
        "step_rewards": step_values(table, gamma, penalty),
        "episode_scores": episode_scores(table, penalty),
        "step_group_ids": numbered(anchor_groups(table, similarity).tolist()),
    }
    for mode in ("mean_norm", "mean_std_norm"):

        def run(step_weight: float, statistics: str, mode: str = mode) -> NDArray[np.float64]:
            return gigpo(
                table,
                gamma=gamma,
                step_weight=step_weight,
                mode=mode,
                statistics=statistics,
                invalid_penalty=penalty,
                similarity=similarity,
                epsilon=params["epsilon"],
            )

        episode_part = run(0.0, "turns")
        answers[mode] = {
            "episode_advantage_per_row": episode_part,
            "episode_advantage_per_row_traj_level": run(0.0, "episodes"),
            "step_advantage_per_row": run(1.0, "turns") - episode_part,
            "joint_token_advantages": over_tokens(run(params["step_advantage_w"], "turns"), inputs),
        }
    return answers


def replay_hgpo(inputs: Answers, params: Answers, expected: Answers) -> Answers:
    table = table_of_rows(inputs["rows"])
    answers = {}
    for mode in ("mean_norm", "mean_std_norm"):
        for base in (0, 1):
            advantages = hierarchical_advantages(
                table,
                np.array(inputs["step_rewards"]),
                np.array(inputs["episode_scores_after_penalty"]) if base else None,
                history=params["history_length"],
                alpha=params["length_weight_alpha"],
                divide_by_std=mode == "mean_std_norm",
                precision="float32",
                epsilon=params["epsilon"],
            )
            answers[f"{mode}_base{base}"] = over_tokens(advantages, inputs)
    return answers


# -- turns ------------------------------------------------------------------------------------------------------------
def replay_igpo(inputs: Answers, params: Answers, expected: Answers) -> Answers:
    played = inputs["sequences"]
    turns = [len(one["turn_token_lengths"]) for one in played]
    beliefs = []
    for one, count in zip(played, turns, strict=True):
        measured = [np.mean(logprobs) for logprobs in one["answer_logprobs_before_turn"]]
        beliefs += measured if len(measured) == count else [np.nan] * count  # then the outcome alone is a reward
    table = make_table(
        group=np.repeat(numbered(inputs["group_index"]), turns),
        episode=np.repeat(np.arange(len(played)), turns),
        turn=np.concatenate([np.arange(count) for count in turns]),
        reward=np.concatenate(
            [[0.0] * (len(one["turn_token_lengths"]) - 1) + [one["outcome_reward"]] for one in played]
        ),
        signals={"answer_logprob": np.array(beliefs)},
    )
    rows = [np.flatnonzero(table.episode == number) for number in range(len(played))]
    # A turn spans its tokens and those of what came back.
    spans = [
        np.add(one["turn_token_lengths"], [*one["observation_token_lengths"], 0][: len(one["turn_token_lengths"])])
        for one in played
    ]
    shape = np.shape(inputs["response_mask"])

    def padded(values: NDArray[np.float64], whole_span: bool) -> NDArray[np.float64]:
        out = np.zeros(shape)
        for number, lengths in enumerate(spans):
            if whole_span:
                out[number, : lengths.sum()] = np.repeat(values[rows[number]], lengths)
            else:
                out[number, np.cumsum(lengths) - 1] = values[rows[number]]
        return out

    options = {
        "gamma": params["gamma"],
        "gain": params["info_gain_type"],
        "outcome_weight": params["curriculum_f1_weight"],
        "gain_weight": params["curriculum_ig_weight"],
        "epsilon": params["epsilon"],
    }
    gains = answer_gains(table, params["info_gain_type"])
    last = table.turn == np.repeat(turns, turns) - 1
    stored = np.where(last, table.reward, np.nan_to_num(np.where(gains == 0, 1e-10, gains)))
    answers: Answers = {
        "info_gain_rewards": [gains[of][:-1] for of in rows],
        "token_level_rewards": padded(stored, whole_span=False),
    }
    for normalization in ("separate", "joint"):
        for by_std, name in [(True, "std"), (False, "nostd")]:
            advantages = igpo(
                table, normalization=normalization, normalize_by_std=by_std, turn_ends="nonzero", **options
            )
            answers[f"advantages_{normalization}_{name}"] = padded(advantages, whole_span=True)
    return answers


ISTAR = re.compile(
    r"adv_(?P<mode>rloo|grpo_mean_norm|grpo_mean_std_norm|rpp_baseline|process_outcome_merged)"
    r"(_w(?P<weight>[\d.]+)|(?P<alone>_process_only))(?P<scaled>_batchnorm_step_rewards)?"
)
ISTAR_MODES = {
    "rloo": "rloo",
    "grpo_mean_norm": "mean_norm",
    "grpo_mean_std_norm": "mean_std_norm",
    "rpp_baseline": "reinforce_pp_baseline",
    "process_outcome_merged": "rloo",
}


def replay_oprl_istar(inputs: Answers, params: Answers, expected: Answers) -> Answers:
    rows = inputs["rows"]
    lengths = torch.tensor([row["resp_len"] for row in rows])
    mask = torch.arange(inputs["response_length"]) < lengths[:, None]
    logprobs = tensor(inputs["prm_token_logprobs"]).requires_grad_()
    rewards = turn_rewards(logprobs, tensor(inputs["old_policy_token_logprobs"]), mask, params["beta"])
    table = table_of_rows(rows, signals={"prm": rewards.detach().numpy()})
    success = tensor(inputs["success"])
    loss = pairwise_loss(rewards, torch.tensor(table.episode), torch.tensor(table.group), success)
    loss.backward()  # type: ignore[no-untyped-call]
    assert logprobs.grad is not None
    penalty, epsilon = params["invalid_action_penalty_coef"], params["epsilon"]
    paper = istar(
        table, mode="mean_std_norm", episode_weight=0.0, baseline="all_turns", scale_steps="none", epsilon=epsilon
    )
    answers: Answers = {
        "step_rewards": table.signals["prm"],
        "step_rewards_batch_norm": step_rewards(table, "batch"),
        "eto_dpo_loss": loss.item(),
        "eto_grad_wrt_prm_token_logprob": logprobs.grad.numpy(),
        "prime_ce_loss": outcome_loss(rewards, success).item(),
        "episode_scores_after_penalty": episode_scores(table, penalty),
        "derived_paper_step_adv_all_steps_per_row": paper,
    }
    for name in expected:
        found = ISTAR.fullmatch(name)
        if found:
            advantages = istar(
                table,
                mode=ISTAR_MODES[found["mode"]],
                merged=found["mode"] == "process_outcome_merged",
                step_weight=float(found["weight"] or 1.0),
                episode_weight=0.0 if found["alone"] else 1.0,
                scale_steps="batch" if found["scaled"] else "none",
                invalid_penalty=penalty,
                epsilon=epsilon,
            )
            answers[name] = over_tokens(advantages, inputs)
    return answers


def replay_prime_rloo(inputs: Answers, params: Answers, expected: Answers) -> Answers:
    mask = np.array(inputs["response_mask"], dtype=np.bool_)
    group = np.arange(len(mask)) // params["n_samples"]
    scores = np.array(inputs["rm_scores"], dtype=np.float64)
    last = mask.shape[1] - 1 - np.argmax(mask[:, ::-1], axis=1)
    outcome = np.zeros(mask.shape)
    outcome[np.arange(len(mask)), last] = inputs["acc"]
    played = sequences(mask, outcome, group, prm=scores)
    estimate = prime(played.table, prm_weight=params["reward_dpo_coef"], outcome_weight=params["reward_gt_coef"])
    return {
        "advantages_whitened": played.padded(estimate.advantages),
        "returns": played.padded(estimate.returns),
    }


def replay_mt_grpo(inputs: Answers, params: Answers, expected: Answers) -> Answers:
    """Two turns for a sequence with a result, split where the authors split it, and one for the others."""
    mask = np.array(inputs["completion_mask"])
    has, count = np.array(inputs["has_tool_result"], dtype=np.bool_), len(mask)
    episode = np.repeat(np.arange(count), has + 1)
    first = np.append(True, np.diff(episode) != 0)
    table = make_table(
        group=episode // params["num_generations"],
        episode=episode,
        turn=np.where(first, 0, 1),
        reward=np.where(first, np.array(inputs["outcome_rewards"])[episode], 0.0),
        signals={
            "turn_reward": np.where(first, np.array(inputs["turn_rewards"])[episode], 0.0),
            "tool_result": first & has[episode],
        },
    )
    advantages = mt_grpo(table, turn_weight=params["turn_advantage_coef"], epsilon=params["eps"])
    tokens = np.zeros(mask.shape)
    for number, segment in enumerate(inputs["result_segment"]):
        values = advantages[episode == number]
        changes = [0, *(np.flatnonzero(np.diff(mask[number])) + 1), mask.shape[1]]
        split = changes[segment] if has[number] else 0
        before = (np.arange(mask.shape[1]) < split) & (mask[number] != 0)
        tokens[number] = np.where(before, values[0], values[-1])
    parts = compared_parts(table, params["eps"])
    return {
        "turn_advantages": parts.turn[first],
        "outcome_advantages": parts.outcome[first],
        "combined_advantages": parts.combined[first],
        "token_advantages_unmasked": tokens,
        "token_advantages_masked": tokens * mask,
    }


def replay_pure_min_form(inputs: Answers, params: Answers, expected: Answers) -> Answers:
    mask = np.array(inputs["reward_mask"], dtype=np.bool_)
    logits = np.array(inputs["prm_logits"])
    good = 1 / (1 + np.exp(logits[..., 0] - logits[..., 1]))
    episode, step = np.nonzero(mask)
    table = make_table(episode, episode, step, np.zeros(len(episode)), signals={"prm": (2 * good - 1)[mask]})

    def padded(values: NDArray[np.float64]) -> NDArray[np.float64]:
        out = np.zeros(mask.shape)
        out[mask] = values
        return out

    weighted = padded(min_form_rewards(table, params["temperature"]))
    return {
        "weighted_process_rewards": weighted,
        "outcome_sum": weighted.sum(axis=1),
        "unweighted_mean_form": padded(min_form_rewards(table, None)),
    }


def replay_pure_advantages(inputs: Answers, params: Answers, expected: Answers) -> Answers:
    lengths = np.array([len(scores) for scores in inputs["step_scores"]])
    episode = np.repeat(np.arange(len(lengths)), lengths)
    reward = np.zeros(len(episode))
    reward[np.cumsum(lengths) - 1] = inputs["solved"]
    table = make_table(
        group=episode // inputs["n_samples"],
        episode=episode,
        turn=np.arange(len(episode)) - np.repeat(np.cumsum(lengths) - lengths, lengths),
        reward=reward,
        tokens=np.concatenate(inputs["step_tokens"]),
        signals={"prm": np.concatenate(inputs["step_scores"])},
    )
    answers: Answers = {}
    for name, baseline in [("token", "token"), ("step", "turn")]:
        for source, weight in [("PRM", 0.0), ("PRMVR", params["verifiable_reward_coef"])]:
            options = {"temperature": params["temperature"], "outcome_weight": weight}
            advantages = pure(table, baseline=baseline, **options)
            answers[f"step_return_{name}_{source}"] = np.split(advantages, np.cumsum(lengths)[:-1])
    return answers


# -- critics ----------------------------------------------------------------------------------------------------------
def replay_gae_token(inputs: Answers, params: Answers, expected: Answers) -> Answers:
    rewards, values, gamma, lam = inputs["token_level_rewards"], inputs["values"], params["gamma"], params["lam"]
    played = sequences(inputs["response_mask"], rewards, value=values)
    estimate = token_gae(played.table, gamma=gamma, lam=lam)
    # The older copies run through everything, and look at the mask for the whitening alone.
    everything = sequences(np.ones(np.shape(rewards)), rewards, value=values)
    legacy = gae_over_tokens(everything.table, gamma=gamma, token_gamma=gamma, lam=lam)
    return {
        "advantages_whitened": played.padded(estimate.advantages),
        "returns": played.padded(estimate.returns),
        "unmasked_legacy_advantages_whitened": played.padded(whiten(everything.padded(legacy.advantages)[played.mask])),
        "unmasked_legacy_returns": everything.padded(legacy.returns) * played.mask,
    }


def replay_gae_bilevel(inputs: Answers, params: Answers, expected: Answers) -> Answers:
    played = sequences(inputs["loss_mask"], inputs["token_level_rewards"], value=inputs["values"])
    estimate = bi_level_gae(
        played.table,
        gamma=params["gamma"],
        lam=params["lam"],
        turn_gamma=params["high_level_gamma"],
        turn_ends="nonzero",
    )
    return {
        "advantages_whitened": played.padded(estimate.advantages),
        "returns": played.padded(estimate.returns),
    }


def replay_poad(inputs: Answers, params: Answers, expected: Answers) -> Answers:
    lengths, masks = np.array(inputs["action_token_lengths"]), np.array(inputs["masks"])
    values = np.array(inputs["token_values"])
    steps, envs = lengths.shape
    # Environment after environment; a new episode starts where the mask says that one ended.
    closes = (masks[1:].T == 0) | (np.arange(steps) == steps - 1)  # [envs, steps]
    opens = np.concatenate([np.ones((envs, 1), dtype=np.bool_), closes[:, :-1]], axis=1)
    cut_off = closes & (masks[1:].T != 0)
    used = np.arange(values.shape[2]) < lengths.T[..., None]  # [envs, steps, M]
    next_value = np.where(cut_off, np.array(inputs["next_value"])[:, None], 0.0)
    table = make_table(
        group=np.repeat(np.arange(envs), steps),
        episode=np.cumsum(opens) - 1,
        turn=np.tile(np.arange(steps), envs),
        reward=np.array(inputs["rewards"]).T.reshape(-1),
        tokens=lengths.T.reshape(-1),
        signals={
            "value": np.array(inputs["action_values"]).T.reshape(-1),
            "next_value": next_value.reshape(-1),
        },
        token_signals={"value": values.transpose(1, 0, 2)[used]},
    )

    def padded(of_tokens: NDArray[np.float64]) -> NDArray[np.float64]:
        out = np.zeros(used.shape)
        out[used] = of_tokens
        return out.transpose(1, 0, 2)

    answers: Answers = {}
    for name, estimator in [("POAD", poad), ("NTPO", ntpo), ("ARCHER", archer)]:
        estimate = estimator(table, gamma=params["gamma"], lam=params["gae_lambda"], normalize=False)
        answers[name] = {
            "advantages": padded(estimate.advantages),
            "returns": padded(estimate.returns),
            "normalised_advantages_masked": padded(normalize_nonzero(estimate.advantages, params["normalise_ddof"])),
        }
    actions = turn_gae(table, gamma=params["gamma"], lam=params["gae_lambda"], whiten_turns=False)
    answers["TWOSOME_action_level"] = {
        "advantages": actions.advantages.reshape(envs, steps).T,
        "returns": actions.returns.reshape(envs, steps).T,
    }
    return answers


# -- Monte Carlo and trees --------------------------------------------------------------------------------------------
def replay_vineppo(inputs: Answers, params: Answers, expected: Answers) -> Answers:
    rewards, values = inputs["step_rewards"], inputs["values"]
    count = len(rewards)
    measured = np.array(values[:count], dtype=np.float64)  # None becomes NaN
    table = make_table(np.zeros(count), np.zeros(count), np.arange(count), rewards)
    filled = fill_ends(table, measured, np.ones(count, dtype=np.bool_))
    return {"advantages": vineppo(replace(table, signals={"mc_value": filled}))}


def replay_segments_whitened(inputs: Answers, params: Answers, expected: Answers) -> Answers:
    tokens = np.array(inputs["turn_tokens"])
    values = np.array(inputs["values"], dtype=np.float64)  # None becomes NaN
    at_first_tokens = np.full(tokens.sum(), np.nan)
    at_first_tokens[np.cumsum(tokens) - tokens] = values
    table = make_table(
        np.zeros(len(tokens)), inputs["episode"], inputs["turn"], inputs["rewards"], tokens=tokens,
        signals={"mc_value": values},
        token_signals={"mc_value": at_first_tokens, "logprob": np.log(inputs["probabilities"])},
    )  # fmt: skip
    return {
        "vineppo": vineppo(table, whiten=True)[table.token_rows],
        "spo_chain": spo_chain(table, whiten=True, probability_mask=params["probability_mask"]),
    }


def replay_tree_whitened(inputs: Answers, params: Answers, expected: Answers) -> Answers:
    table = make_table(
        inputs["task"], inputs["episode"], inputs["turn"], inputs["rewards"], tokens=np.array(inputs["turn_tokens"]),
        signals={"node": np.array(inputs["node"])}, token_signals={"logprob": np.log(inputs["probabilities"])},
    )  # fmt: skip
    once = spo_tree(table, whiten=True, probability_mask=params["probability_mask"])
    _, row, count = np.unique(inputs["node"], return_index=True, return_counts=True)
    return {"edges": once[row] * count}  # the rows of a node share what it learns from


def replay_tree_grpo(inputs: Answers, params: Answers, expected: Answers) -> Answers:
    table = summed(inputs, signals={"tree": numbered(inputs["tree_index"])})
    return {"advantages": masked(tree_grpo(table, epsilon=params["epsilon"]), inputs)}


# -- losses -----------------------------------------------------------------------------------------------------------
def replay_policy_losses(inputs: Answers, params: Answers, expected: Answers) -> Answers:
    mask = tensor(inputs["response_mask"]).bool()
    clip = {"eps_low": params["clip_low"], "eps_high": params["clip_high"]}

    def run(loss: Callable[..., Any], aggregation: str, **options: Any) -> Answers:
        logprobs = tensor(inputs["log_prob"]).requires_grad_()
        old, advantages = tensor(inputs["old_log_prob"]), tensor(inputs["advantages"])
        per_token, stats = by_rows(loss, logprobs, old, advantages, mask, **options)
        # The recording divides the summed loss by the padded length.
        divisor = float(mask.shape[1]) if aggregation == "seq-mean-token-sum-norm" else None
        total = aggregate(per_token, mask, aggregation, divisor)
        total.backward()
        assert logprobs.grad is not None
        return {
            "loss": total.item(),
            "grad": logprobs.grad.numpy(),
            "clipfrac": aggregate(stats["clip_fraction"], mask).item(),
            "ppo_kl": aggregate(stats["approx_kl"], mask).item(),
        }

    answers = {
        f"ppo_{aggregation}": run(clip_loss, aggregation, dual_clip=params["dual_clip_c"], **clip)
        for aggregation in set(AGGREGATIONS) - set(UNIT_MEANS)
    }
    return answers | {"gspo": run(gspo_loss, "seq-mean-token-mean", **clip)}


def replay_rollout_correction(inputs: Answers, params: Answers, expected: Answers) -> Answers:
    mask = np.array(inputs["response_mask"], dtype=np.bool_)
    table = single_turns(np.arange(len(mask)), np.zeros(len(mask)), tokens=mask.sum(axis=1))
    logprobs = (np.array(inputs[name])[mask] for name in ("old_log_prob", "rollout_log_prob"))
    trained, engine = logprobs

    def padded(values: NDArray[Any]) -> NDArray[np.float64]:
        out = np.zeros(mask.shape)
        out[mask] = values
        return out

    answers: Answers = {}
    for name, level in [("token", "token"), ("sequence", "episode")]:
        for ending, normalize in [("", False), ("_normalized", True)]:
            correction = Correction(level, high=params["threshold"], normalize=normalize)
            answers[f"weights_{name}{ending}"] = padded(correction(trained, engine, table).weights)
    for name in expected:
        if name.startswith("mask|"):
            _, measures, bounds = name.split("|")
            reject = {
                measure.replace("seq_", "episode_"): [float(value) for value in bound.split("_")]
                for measure, bound in zip(measures.split(","), bounds.split(","), strict=True)
            }
            answers[name] = padded(Correction(reject=reject)(trained, engine, table).kept)
    return answers


def replay_decoupled_ppo(inputs: Answers, params: Answers, expected: Answers) -> Answers:
    mask = tensor(inputs["response_mask"]).bool()
    sampled = mask.numpy()
    table = single_turns(np.arange(len(mask)), np.zeros(len(mask)), tokens=sampled.sum(axis=1))
    engine, trained = (np.array(inputs[name])[sampled] for name in ("behaviour_log_prob", "proximal_log_prob"))
    clip = {name: params[name] for name in ("eps_low", "eps_high")}
    old, advantages = tensor(inputs["proximal_log_prob"]), tensor(inputs["advantages"])
    means = (advantages * mask).sum(-1, keepdim=True) / mask.sum(-1, keepdim=True)
    answers: Answers = {}
    for name in expected:
        how, *settings = name.split("|")
        weights = (
            np.ones(len(trained)) if settings == ["none"] else decoupled_weights(*settings)(trained, engine, table)
        )
        spread = torch.zeros_like(old).masked_scatter(mask, torch.from_numpy(weights))
        logprobs = tensor(inputs["log_prob"]).requires_grad_()
        if how == "ratio_token":
            per_token, _ = clip_loss(logprobs, old, advantages, mask, dual_clip=params["dual_clip"], **clip)
        else:  # the recorded loss has the gradient of the whole ratio at each token, so its weights are averaged
            kept = mask & (spread > 0)
            per_token, _ = by_rows(gspo_loss, logprobs, old, means.expand(old.shape), kept, **clip)
            spread = kept * spread.sum(-1, keepdim=True) / kept.sum(-1, keepdim=True).clamp(min=1)
        total = aggregate(per_token * spread, mask)
        total.backward()
        assert logprobs.grad is not None
        answers[name] = {"loss": total.item(), "grad": logprobs.grad.numpy()}
    return answers


def decoupled_weights(
    action: str, level: str, metric: str, reduced: str, low: str, high: str
) -> Callable[..., NDArray[np.float64]]:
    """The weights of AReaL's settings, in which a rejected token has the weight 0."""
    if metric == "ratio":
        unit, outside = {"token": "token", "sequence": "episode_mean"}[level], {"mask": "zero", "clamp": "clip"}[action]
        return lambda *arrays: Correction(unit, float(low), float(high), outside)(*arrays).weights
    kind = metric.removeprefix("kl_")
    # Its k1 has the other sign, and its bounds are those of k1 itself.
    bound = [np.exp(-float(high)), np.exp(-float(low))] if kind == "k1" else float(high)
    measure = f"token_{kind}" if level == "token" else f"episode_{reduced}_{kind}"

    def weights(*arrays: Any) -> NDArray[np.float64]:
        corrected = Correction(high=np.inf, reject={measure: bound})(*arrays)
        return corrected.weights * corrected.kept

    return weights


def replay_policy_losses_2(inputs: Answers, params: Answers, expected: Answers) -> Answers:
    clip = {"eps_low": params["eps_low"], "eps_high": params["eps_high"]}
    geometric = {"eps_low": params["geo_eps_low"], "eps_high": params["geo_eps_high"]}
    taus = {"tau_positive": params["tau_pos"], "tau_negative": params["tau_neg"]}
    answers = {
        "sapo": loss_and_gradient(sapo_loss, inputs, "seq-mean-token-mean", **taus),
    }
    if "gmpo" in expected:  # it has one advantage per row
        answers["gmpo"] = loss_and_gradient(gmpo_loss, inputs, "seq-mean-token-mean", **geometric)
    limits = {"lowest": params["clip_cov_lb"], "highest": params["clip_cov_ub"], "share": params["clip_cov_ratio"]}
    largest = {"share": params["kl_cov_ratio"], "coef": params["ppo_kl_coef"]}
    for aggregation in ("token-mean", "seq-mean-token-mean"):
        answers[f"cispo_{aggregation}"] = loss_and_gradient(cispo_loss, inputs, aggregation, **clip)
        answers[f"gpg_{aggregation}"] = loss_and_gradient(reinforce_loss, inputs, aggregation)
        answers[f"kl_cov_{aggregation}"] = loss_and_gradient(kl_cov_loss, inputs, aggregation, **largest)
        answers[f"clip_cov_all_{aggregation}"] = loss_and_gradient(clip_cov_loss, inputs, aggregation, **limits, **clip)
    return answers


def replay_outcome_baselines(inputs: Answers, params: Answers, expected: Answers) -> Answers:
    counts = np.sum(inputs["response_mask"], axis=1).astype(np.int64)
    table = summed(inputs, tokens=counts)
    played = sequences(
        inputs["response_mask"], inputs["token_level_rewards"], numbered(inputs["group_index"]),
        logprob=inputs["old_log_prob"], square_sum=inputs["sum_pi_squared"],
    )  # fmt: skip
    weights = np.array(inputs["rollout_is_weights"])[played.mask]
    weighted = replace(played.table, token_signals={**played.table.token_signals, "importance_weight": weights})
    epsilon = {"epsilon": params["epsilon_otb"]}
    answers = {
        "opo": masked(opo(table), inputs),
        "gpg": masked(gpg(table), inputs),
        "otb_tokens": played.padded(otb(played.table, zero_tail=False, **epsilon)),
        "otb_tokens_zero_tail": played.padded(otb(played.table, **epsilon)),
        "otb_tokens_weighted_zero_tail": played.padded(otb(weighted, **epsilon)),
    }
    for ending, by_std in [("std", True), ("nostd", False)]:
        if f"passk_{ending}" in expected:
            values = pass_at_k(table, normalize_by_std=by_std, epsilon=params["epsilon_passk"])
            answers[f"passk_{ending}"] = masked(values, inputs)
    return answers


def replay_maxrl(inputs: Answers, params: Answers, expected: Answers) -> Answers:
    return {
        "advantages": maxrl(single_turns(numbered(inputs["group_index"]), inputs["scores"]), epsilon=params["epsilon"])
    }


def replay_rollout_filter(inputs: Answers, params: Answers, expected: Answers) -> Answers:
    scores = np.array(inputs["scores"])
    groups = np.repeat(np.arange(len(scores)), scores.shape[1])
    answers = {"group_std": group_stds(scores.ravel(), groups)}
    for name in expected:
        if name.startswith("kept|"):
            _, strategy, value, which, zero, mode = name.split("|")
            answers[name] = select_groups(
                answers["group_std"], strategy=strategy, value=float(value), largest=which == "largest",
                include_zero=zero == "True", mode=mode, slack=params["selection_eps"],
            )  # fmt: skip
    return answers


def replay_trust_regions(inputs: Answers, params: Answers, expected: Answers) -> Answers:
    mask = tensor(inputs["response_mask"]).bool()
    logprobs, old, advantages = (tensor(inputs[name]) for name in ("log_prob", "old_log_prob", "advantages"))
    sampled, log_ratios = mask.numpy(), (logprobs - old).numpy()
    everywhere = single_turns(np.arange(len(mask)), np.zeros(len(mask)), tokens=np.full(len(mask), mask.shape[1]))
    runs = sequences(mask, np.zeros(mask.shape))
    low, high = params["icepop"]

    def corrected(level: str, outside: str, table: Any, values: NDArray[np.float64]) -> NDArray[np.float64]:
        bounds = (low, high) if level == "token" else (0.0, np.inf)
        return Correction(level, *bounds, outside)(values, np.zeros(len(values)), table).weights

    kept, _ = by_rows(opsm_loss, logprobs, old, advantages, mask, of=reinforce_loss, delta=params["opsm_delta"])
    plain, _ = reinforce_loss(logprobs, old, advantages, mask)
    dropped = ((kept != plain) & mask).any(-1)
    fipo, rows, places = params["fipo"], *np.nonzero(sampled)
    counted = np.where(log_ratios > np.log(fipo["delta"] or np.inf), 0.0, log_ratios)[sampled]
    future = future_log_ratios(counted, rows, places, fipo["decay_rate"])
    weights = influence(
        log_ratios[sampled], advantages.numpy()[sampled], future, clip=fipo["clip_range"],
        high_only=fipo["high_only"], safety=fipo["safety_threshold"],
    )  # fmt: skip
    vespo = params["vespo"]
    powers = {f"power_{side}": vespo[f"k_{side[:3]}"] for side in ("positive", "negative")}
    rates = {f"rate_{side}": vespo[f"lambda_{side[:3]}"] for side in ("positive", "negative")}
    answers = {
        "opsm_keep": ~dropped.numpy(),
        "vespo_weight": row_weights(partial(vespo_loss, **powers, **rates), logprobs, old, advantages, mask),
        "fipo_weight": runs.padded(weights),
        "fipo_future_kl": runs.padded(future),
        "aepo_token-mean": loss_and_gradient(aepo_loss, inputs, "token-mean", keep_gradient="low", **params["aepo"]),
        "icepop_weight": corrected("token", "zero", everywhere, log_ratios.ravel()).reshape(mask.shape),
        "tis_clip_weight": corrected("token", "clip", everywhere, log_ratios.ravel()).reshape(mask.shape),
        "turn_geometric_ratio": runs.padded(corrected("turn", "clip", runs.table, log_ratios[sampled])),
    }
    for divergence in ("tv", "kl"):
        options = {"divergence": divergence, "delta": params[f"dppo_{divergence}"]}
        answers[f"dppo_binary_{divergence}"] = loss_and_gradient(dppo_loss, inputs, "token-mean", **options)
    return answers


def row_weights(
    loss: Callable[..., Any], logprobs: torch.Tensor, old: torch.Tensor, advantages: torch.Tensor, mask: torch.Tensor
) -> NDArray[np.float64]:
    """[B] the weight w of a loss -w A logprobs that has one for a row; 1 for a row without tokens."""
    known, signs = logprobs.clone().requires_grad_(), torch.where(advantages >= 0, 1.0, -1.0).double()
    by_rows(loss, known, old, signs, mask)[0].sum().backward()
    assert known.grad is not None
    return np.where(mask.any(-1), known.grad.abs().max(-1).values, 1.0)


def replay_luffy(inputs: Answers, params: Answers, expected: Answers) -> Answers:
    demonstrated = np.array(inputs["off_policy_row"], dtype=np.bool_)
    table = summed(inputs, signals={"demonstration": demonstrated})
    by_std, plain = (luffy(table, normalize_by_std=std, epsilon=params["epsilon"]) for std in (True, False))
    answers: Answers = {"advantages_std": masked(by_std, inputs), "advantages_nostd": masked(plain, inputs)}
    shared = {**inputs, "advantages": answers["advantages_std"]}
    rows = torch.from_numpy(demonstrated)[:, None].expand(np.shape(inputs["response_mask"]))
    clip = {"eps_low": params["eps"], "eps_high": params["eps"]}
    for name, shape in [("loss_no_reshape", None), ("loss_p_div_p_0.1", 0.1)]:
        answers[name] = loss_and_gradient(luffy_loss, shared, "token-mean", demonstrated=rows, shape=shape, **clip)
    return answers


def replay_resrl_weights(inputs: Answers, params: Answers, expected: Answers) -> Answers:
    mask, won = np.array(inputs["response_mask"], dtype=np.bool_), np.array(inputs["success"], dtype=np.bool_)
    states, groups = torch.tensor(inputs["hidden_states"]), numbered(inputs["group_index"])
    weights = np.ones(mask.shape)
    bounds = {"lowest": params["min_weight"], "low": params["q_low"], "high": params["q_high"]}
    for group in range(groups.max() + 1):
        good, bad = (mask & ((groups == group) & (won == side))[:, None] for side in (True, False))
        common = success_subspace(states[torch.from_numpy(good)], params["rank"])
        if common is not None and bad.any():
            distances = residuals(states[torch.from_numpy(bad)], common).double().numpy()
            weights[bad] = residual_weights(distances, **bounds)
    return {"token_weights": weights}


def loss_and_gradient(loss: Callable[..., Any], inputs: Answers, aggregation: str, **options: Any) -> Answers:
    """The loss of a batch and its gradient at each log-probability."""
    mask, logprobs = tensor(inputs["response_mask"]).bool(), tensor(inputs["log_prob"]).requires_grad_()
    old, advantages = tensor(inputs["old_log_prob"]), tensor(inputs["advantages"])
    if (mark := marker(partial(loss, **options))) is not None:
        values = [of[mask].detach().numpy() for of in (logprobs, old, advantages)]
        entropies = np.array(inputs["entropy"])[mask.numpy()] if "entropy" in inputs else np.zeros(len(values[0]))
        marks = torch.from_numpy(
            mark(Tokens(*values, entropies, mask.nonzero()[:, 0].numpy()), np.random.default_rng(0))
        )
        options["marks"] = torch.zeros(mask.shape, dtype=marks.dtype).masked_scatter(mask, marks)
    per_token, _ = by_rows(loss, logprobs, old, advantages, mask, **options)
    total = aggregate(per_token, mask, aggregation)
    total.backward()
    assert logprobs.grad is not None
    return {"loss": total.item(), "grad": logprobs.grad.numpy()}


def by_rows(
    loss: Callable[..., Any], logprobs: torch.Tensor, old: torch.Tensor, advantages: torch.Tensor, mask: torch.Tensor,
    **options: Any,
) -> Any:  # fmt: skip
    """A loss, with every row as a unit of its own if it looks at units."""
    if (measured := unit_measure(partial(loss, **options))) is not None:
        numbers = torch.arange(len(mask))[:, None].expand(mask.shape)
        options["units"] = make_units(measured[1], logprobs, old, advantages, mask, numbers)
    return loss(logprobs, old, advantages, mask, **options)


def replay_kl_estimators(inputs: Answers, params: Answers, expected: Answers) -> Answers:
    logprobs, reference = tensor(inputs["logprob"]), tensor(inputs["ref_logprob"])
    older = {"kl": "k1", "mse": "k2", "low_var_kl": "k3"}
    return {name: kl_estimate(logprobs, reference, older.get(name, name)).numpy() for name in expected}


REPLAYS: dict[str, Callable[[Answers, Answers, Answers], Answers]] = {
    name.removeprefix("replay_"): function for name, function in globals().items() if name.startswith("replay_")
}
