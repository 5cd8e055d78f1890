"""PPO's advantages from a critic: over tokens, over turns, and on both levels.

    delta_t = r_t + gamma · V_{t+1} - V_t
    A_t     = delta_t + gamma · lam · A_{t+1},   return_t = A_t + V_t

V_t is the critic's value before token (turn) t. Observations are not tokens here: the sampled token before one is
followed by the first sampled token after it. The reward of a turn, plus the signal `token_reward`, is put on its last
token. After an episode that ended the value is 0; after one that was cut off it is the signal `next_value`, if that is
measured. Advantages are whitened over the batch; returns are not.

- `token_gae`: Schulman et al., arXiv 1506.02438, as in verl's `compute_gae_advantage_return` since its PR 2337. Older
  copies also accumulate over observations and padding.
- `turn_gae`: one advantage per turn. V is the signal `value` [N] before the turn, or the value of the turn's last token
  (`anchor="last_token"`), as in VAGEN's turn-wise advantage.
- `bi_level_gae`: turns first, then the tokens of each turn (VAGEN, arXiv 2510.16907; RAGEN's
  `compute_bi_level_gae_advantage_return`):

      H_k = r_k + turn_gamma · V(e_{k+1}) - V(e_k) + turn_gamma · lam · H_{k+1}     e_k: last token of turn k
      A   = H_k at e_k, and delta + gamma · lam · A of the next token before it, with no reward but H_k + V(e_k) at e_k

  A turn is compared with the value of the next turn's last token, not its first. RAGEN finds turns by their reward, so
  a turn without reward becomes part of the next one (`turn_ends="nonzero"`); here every turn counts.

Published settings: gamma 1 and lam 1 (verl, RAGEN), turn_gamma 0.95 (RAGEN). Left out: the KL penalty; use the signal
`token_reward`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from algorithms.estimators.groups import reward_name
from algorithms.estimators.steps import step
from algorithms.estimators.timeline import Timeline, last_tokens, token_rewards, tokens, turns, whiten
from algorithms.turn_table import Estimate, TurnTable
from envs.core import UnknownNameError

ANCHORS = ("turn", "last_token")
TURN_ENDS = ("explicit", "nonzero")


def token_gae(table: TurnTable, *, gamma: float = 1.0, lam: float = 1.0) -> Estimate:
    """One advantage and one return per token, [M]. Needs the token signal `value`."""
    return whitened(gae_over_tokens(table, gamma=gamma, token_gamma=gamma, lam=lam))


def turn_gae(
    table: TurnTable, *, gamma: float = 0.95, lam: float = 0.95, anchor: str = "turn", whiten_turns: bool = True
) -> Estimate:
    """One advantage and one return per turn, [N]. Needs the signal `value`, or the token signal for "last_token"."""
    if anchor not in ANCHORS:
        raise UnknownNameError("anchor", anchor, ANCHORS)
    values = table.signal("value") if anchor == "turn" else last_token_values(table)
    line = turns(table)
    delta = table.total_rewards() + gamma * line.following(values, next_values(table)) - values
    advantages = line.accumulate(delta, gamma * lam)
    value = "value" if anchor == "turn" else "value_at_end"
    step("delta", f"{reward_name(table)} + gamma * next({value}, {_after(table)}) - {value}", delta, gamma=gamma)
    step("raw", "delta + gamma * lam * next(raw)", advantages, gamma=gamma, lam=lam)
    estimate = Estimate(advantages, advantages + values)
    if whiten_turns:
        return whitened(estimate)
    step("advantage", "raw", advantages)
    return estimate


def bi_level_gae(
    table: TurnTable,
    *,
    gamma: float = 1.0,
    lam: float = 1.0,
    turn_gamma: float = 0.95,
    turn_ends: str = "explicit",
) -> Estimate:
    """One advantage and one return per token, [M]. Needs the token signal `value`."""
    if turn_ends not in TURN_ENDS:
        raise UnknownNameError("turn_ends", turn_ends, TURN_ENDS)
    line, values, rewards = tokens(table), table.token_signal("value"), token_rewards(table)
    ends = line.last() | (last_tokens(table) if turn_ends == "explicit" else rewards != 0.0)
    at = line.order[ends[line.order]]  # the last tokens of the turns, in time order
    between = Timeline.of(np.arange(len(at)), table.episode[table.token_rows[at]])
    after = next_values(table)[table.token_rows[at]]
    delta = rewards[at] + turn_gamma * between.following(values[at], after) - values[at]
    advantages = between.accumulate(delta, turn_gamma * lam)
    inside = rewards + gamma * line.following(values) - values
    inside[at] = advantages  # the turn's advantage stands for everything after it
    all_tokens = line.accumulate(inside, np.where(ends, 0.0, gamma * lam))
    step("ends", "last" if turn_ends == "explicit" else "", ends, meaning="the last tokens of turns and episodes")
    of_turns = np.full(len(values), np.nan)
    of_turns[at] = advantages
    after_end = f"next_where(value, ends, {_after(table)})"
    formula = (
        f"where(ends, r + turn_gamma * {after_end} - value + turn_gamma * lam * next_where(H, ends), not_measured)"
    )
    step("H", formula, of_turns, turn_gamma=turn_gamma, lam=lam)
    formula = "where(ends, H, r + gamma * next(value) - value + gamma * lam * next(raw))"
    step("raw", formula, all_tokens, gamma=gamma, lam=lam)
    return whitened(Estimate(all_tokens, all_tokens + values))


def gae_over_tokens(
    table: TurnTable, *, gamma: float, token_gamma: float, lam: float, next_from_last_token: bool = False
) -> Estimate:
    """Not whitened. Discounted by `token_gamma` between tokens of a turn, and by `gamma` between turns.

    After a turn comes the value of the next turn's first token, or of its last one with `next_from_last_token`.
    """
    line, values, ends = tokens(table), table.token_signal("value"), last_tokens(table)
    rows = table.token_rows
    following, formula = line.following(values, next_values(table)[rows]), f"next(value, {_after(table)})"
    if next_from_last_token:
        next_turn = turns(table).following(last_token_values(table), next_values(table))
        following = np.where(ends, next_turn[rows], following)
        formula = f"where(last, next_where(value, last, {_after(table)}), {formula})"
    step("V_next", formula, following)
    discount = np.where(ends, gamma, token_gamma)
    step("discount", "where(last, gamma, token_gamma)", discount, gamma=gamma, token_gamma=token_gamma)
    advantages = line.accumulate(token_rewards(table) + discount * following - values, discount * lam)
    step("raw", "r + discount * V_next - value + discount * lam * next(raw)", advantages, lam=lam)
    return Estimate(advantages, advantages + values)


def whitened(estimate: Estimate) -> Estimate:
    """The same estimate with whitened advantages."""
    return Estimate(whiten(estimate.advantages), estimate.returns)


def next_values(table: TurnTable) -> NDArray[np.float64]:
    """[N] the value of what comes after each episode's last turn; 0 if it was not measured."""
    values: NDArray[np.float64] = table.signals.get("next_value", np.zeros(len(table)))
    return values


def _after(table: TurnTable) -> str:
    """What `next_values` is in the steps."""
    return "next_value" if "next_value" in table.signals else "0"


def last_token_values(table: TurnTable) -> NDArray[np.float64]:
    """[N] the value before the last token of each turn; 0 for a turn without tokens."""
    ends = np.flatnonzero(last_tokens(table))
    values = np.zeros(len(table))
    values[table.token_rows[ends]] = table.token_signal("value")[ends]
    return step("value_at_end", "tokens_last(value)", values)
