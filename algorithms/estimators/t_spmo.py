"""T-SPMO: compare the words that attempts wrote after the same beginning.

    A(p, w) = mean R(p, w) - mean R(p)        over the attempts at the task that wrote w after p, and all that wrote p
    L = -mean over all pairs (p, w) of A(p, w) · π(w | p)                 with `probability_loss`

p is all that the policy read before it wrote w: the prompt, and what it wrote in the turn (signals `prefix` and
`continuation`). Each pair counts once, however many attempts wrote it: its advantage is shared out among their tokens.
Where only one attempt went, and where all attempts after p have the same return, A is 0.

Paper: Lee and Tong, *Token-Efficient RL for LLM Reasoning*, arXiv 2504.20834, after its abstract and a description; no
code was found. Left out: its replay of beginnings at which attempts failed. There prompts have one turn; here a prefix
reaches over earlier turns and observations.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from algorithms.estimators.groups import compares_attempts, episode_returns, uniform_groups
from algorithms.estimators.steps import explaining, step
from algorithms.turn_table import TurnTable


@compares_attempts
def t_spmo(table: TurnTable) -> NDArray[np.float64]:
    """One advantage per token, [M], scaled so that the mean over tokens is one over pairs.

    Needs the token signals `prefix` and `continuation`. A token in a group of equal returns gets exactly 0.
    """
    returns = table.per_token(episode_returns(table))
    prefix, pair = (table.token_signal(name).astype(np.int64, copy=False) for name in ("prefix", "continuation"))
    visits, shared = np.bincount(prefix), np.bincount(pair)
    pairs = int(np.count_nonzero(shared))
    advantages = np.zeros(len(returns))
    branches = np.flatnonzero(visits[prefix] > 1)  # most tokens are alone
    here = _renumbered(prefix[branches])
    values = returns[branches]
    differ = ~uniform_groups(values, here)[here]
    branches, here, values = branches[differ], here[differ], values[differ]
    means = [
        (np.bincount(group, values) / np.maximum(np.bincount(group), 1))[group]
        for group in (here, _renumbered(pair[branches]))
    ]
    gain = means[1] - means[0]
    advantages[branches] = gain / shared[pair[branches]] * (len(returns) / max(pairs, 1))
    if explaining():
        _explain(returns, prefix, pair, visits, shared)
    return step("advantage", "(continuation_mean - prefix_mean) / shared * tokens_n / pairs_n", advantages)


def _renumbered(numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """The numbers without gaps, in time linear in the largest; sorting millions is slow."""
    used = np.zeros(numbers.max(initial=-1) + 1, dtype=np.bool_)
    used[numbers] = True
    renumbered: NDArray[np.int64] = (np.cumsum(used) - 1)[numbers]
    return renumbered


def _explain(
    returns: NDArray[np.float64], prefix: NDArray[np.int64], pair: NDArray[np.int64], visits: NDArray[np.int64],
    shared: NDArray[np.int64],
) -> None:  # fmt: skip
    step("prefix_mean", "mean(R)", (np.bincount(prefix, returns) / np.maximum(visits, 1))[prefix], over="prefix")
    means = (np.bincount(pair, returns) / np.maximum(shared, 1))[pair]
    step("continuation_mean", "mean(R)", means, over="continuation")
    step("shared", "n()", shared[pair].astype(np.float64), over="continuation")
    step("tokens_n", "n()", np.full(len(returns), float(len(returns))), over="batch")
    step("pairs_n", "sum(1 / shared)", np.full(len(returns), float(np.count_nonzero(shared))), over="batch")
