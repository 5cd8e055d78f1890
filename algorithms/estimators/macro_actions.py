"""MA-RLHF: PPO's advantages over macro actions, runs of n tokens.

    delta_k = r_k + gamma · V_{k+1} - V_k,   A_k = delta_k + gamma · lam · A_{k+1},   return_k = A_k + V_k

A macro action k is a run of `length` tokens of a turn; the last token of a turn, which carries its reward, is one of
its own. V_k and r_k are means of the values and rewards of its tokens (`weights="equal"`), those of its last token
("last"), or weighted by 1, 1/2, 1/3, … ("position"). All its tokens get A_k and return_k; each keeps its own ratio.
With length 1 this is `token_gae` without its whitening.

Paper: Chai et al., *MA-RLHF: Reinforcement Learning from Human Feedback with Macro Actions* (ICLR 2025). The formula
is that of the authors' `modeling_macro_action` and `get_advantages_and_returns`, whose boundaries are those of the
first row of a batch; here each turn has its own. Published settings: length 5, gamma 1, lam 0.95. In the authors'
single answers the last token is the answer's; that macro actions end with their turn is a choice of ours. Left out:
boundaries by parsing, by perplexity or at random.
"""

from __future__ import annotations

import numpy as np

from algorithms.estimators.gae import next_values, whitened
from algorithms.estimators.steps import step
from algorithms.estimators.timeline import Timeline, last_tokens, token_rewards, tokens
from algorithms.turn_table import Estimate, TurnTable
from envs.core import UnknownNameError

WEIGHTS = ("equal", "last", "position")


def macro_gae(
    table: TurnTable, *, length: int = 5, weights: str = "equal", gamma: float = 1.0, lam: float = 0.95,
    whiten: bool = False,
) -> Estimate:  # fmt: skip
    """One advantage and one return per token, [M]. Needs the token signal `value`.

    Raises `UnknownNameError` for other `weights`.
    """
    if weights not in WEIGHTS:
        raise UnknownNameError("weights", weights, WEIGHTS)
    line, values, rewards, last = tokens(table), table.token_signal("value"), token_rewards(table), last_tokens(table)
    rows = table.token_rows
    opens = np.diff(rows, prepend=-1) != 0
    in_turn = np.arange(len(rows)) - np.flatnonzero(opens)[np.cumsum(opens) - 1]
    begins = (in_turn % length == 0) | last
    ordered = begins[line.order]
    macro = np.empty(len(rows), dtype=np.int64)  # [M] the macro actions, in time order
    macro[line.order] = np.cumsum(ordered) - 1
    at = line.order[ordered]  # [K] their first tokens
    place = np.arange(len(rows)) - at[macro]  # of a token in its macro action
    size = np.bincount(macro, minlength=len(at))
    share = {
        "equal": np.ones(len(rows)), "last": (place == size[macro] - 1).astype(np.float64), "position": 1 / (1 + place),
    }[weights]  # fmt: skip
    share = share / np.bincount(macro, share, minlength=len(at))[macro]
    V, r = (np.bincount(macro, share * of, minlength=len(at)).astype(np.float64) for of in (values, rewards))
    between = Timeline.of(np.arange(len(at)), table.episode[rows[at]])
    delta = r + gamma * between.following(V, next_values(table)[rows[at]]) - V
    advantages = between.accumulate(delta, gamma * lam)
    step("macro", "", macro, meaning="macro actions: runs of tokens of a turn")
    step("share", "", share, meaning="weight of the token in its macro action")
    step("V", "sum(share * value)", V[macro], over="macro")
    step("macro_reward", "sum(share * r)", r[macro], over="macro")
    step("delta", "", delta[macro], meaning="macro_reward + gamma * V of the next macro action - V")
    step("raw", "", advantages[macro], meaning="delta + gamma * lam * raw of the next macro action")
    estimate = Estimate(advantages[macro], (advantages + V)[macro])
    if whiten:
        return whitened(estimate)
    step("advantage", "raw", estimate.advantages)
    return estimate
