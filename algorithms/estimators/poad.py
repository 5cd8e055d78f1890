"""POAD, NTPO and ARCHER: token advantages that take the boundaries of actions into account.

    A = r_t + gamma · V(first token of action t+1) - V + gamma · lam · A'    at the last token of action t
    A = token_gamma · V' - V + token_gamma · lam · A'                        at the others;  ' is the next token

POAD has token_gamma 1 (Bellman backup with action decomposition, BAD): a long action is not discounted more than a
short one, and the backups of its tokens add up to the backup of the action. NTPO discounts every token by gamma. So
does ARCHER, as the baseline of the same repository, and it uses the last token of the next action instead of its first.
`turn_gae` is TWOSOME's action-level counterpart.

    A <- (A - mean(A)) / (std(A) + 1e-8)    over the tokens whose A is not exactly 0

Paper: Wen et al., *Reinforcing Language Agents via Policy Optimization with Action Decomposition*, arXiv 2405.15821
(NeurIPS 2024). The results equal those of the authors' `language_buffer.py` and `llm_trainer_tppo.py`, which takes the
population std of a minibatch (ddof 0); their `llm_trainer_appo.py` takes ddof 1. They drop zeros because these mark
padding, which also drops true zeros. Here the statistics are over the whole batch.

Published settings: gamma 0.95 (Overcooked: 0.99), lam 0.95, clip 0.2, value clip 0.2, entropy 0.01, gradient norm 0.5,
critic 5e-5. Left out: the early stop by KL.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from algorithms.estimators.gae import gae_over_tokens
from algorithms.estimators.steps import step
from algorithms.turn_table import Estimate, TurnTable


def poad(
    table: TurnTable, *, gamma: float = 0.95, lam: float = 0.95, normalize: bool = True, ddof: int = 0
) -> Estimate:
    """One advantage and one return per token, [M]. Needs the token signal `value`."""
    return _normalized(gae_over_tokens(table, gamma=gamma, token_gamma=1.0, lam=lam), normalize, ddof)


def ntpo(
    table: TurnTable, *, gamma: float = 0.95, lam: float = 0.95, normalize: bool = True, ddof: int = 0
) -> Estimate:
    """One advantage and one return per token, [M]. Needs the token signal `value`."""
    return _normalized(gae_over_tokens(table, gamma=gamma, token_gamma=gamma, lam=lam), normalize, ddof)


def archer(
    table: TurnTable, *, gamma: float = 0.95, lam: float = 0.95, normalize: bool = True, ddof: int = 0
) -> Estimate:
    """One advantage and one return per token, [M]. Needs the token signal `value`."""
    estimate = gae_over_tokens(table, gamma=gamma, token_gamma=gamma, lam=lam, next_from_last_token=True)
    return _normalized(estimate, normalize, ddof)


def _normalized(estimate: Estimate, normalize: bool, ddof: int) -> Estimate:
    if not normalize:
        step("advantage", "raw", estimate.advantages)
        return estimate
    return Estimate(normalize_nonzero(estimate.advantages, ddof), estimate.returns)


def normalize_nonzero(advantages: NDArray[np.float64], ddof: int) -> NDArray[np.float64]:
    """Normalise `advantages` by the mean and std of the nonzero ones; unchanged if fewer than 1 + ddof are nonzero."""
    nonzero = advantages[advantages != 0.0]
    if len(nonzero) <= ddof:
        return step("advantage", "raw", advantages)
    mean, std = nonzero.mean(), nonzero.std(ddof=ddof)
    step("not_zero", "abs(raw) > 0", advantages != 0.0)
    step("raw_mean", "mean(raw)", np.full(len(advantages), mean), over="batch", counted="not_zero")
    formula = "sqrt(sum((raw - raw_mean)**2) / (n() - ddof))"
    step("raw_std", formula, np.full(len(advantages), std), over="batch", counted="not_zero", ddof=ddof)
    normalized: NDArray[np.float64] = (advantages - mean) / (std + 1e-8)
    return step("advantage", "(raw - raw_mean) / (raw_std + 1e-8)", normalized)
