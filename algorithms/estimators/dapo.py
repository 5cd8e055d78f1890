"""DAPO: GRPO with a penalty on answers that come near the token limit.

    A_i = (s_i - mean(s)) / (std(s) + epsilon),  s_i = R_i + overlong_penalty_i
    overlong_penalty = min(-(length - (limit - buffer)) / buffer · factor, 0)

Paper: Yu et al., arXiv 2503.14476; the penalty is that of verl's `DAPORewardManager`. The other parts of DAPO are
settings: clip-higher (`eps_low` 0.2, `eps_high` 0.28), `aggregation: token-mean`, no KL, `dynamic_sampling: true`.

The authors use the length of the whole answer. Here every turn is an answer with the agent's limit `max_tokens`, and
the penalty is subtracted from the score of its row, like the invalid penalty.

Published settings: limit 20480, buffer 4096, factor 1. Left out: overlong filtering, which the authors' code also
lacks.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from algorithms.estimators.groups import compares_attempts, episode_advantages, episode_scores
from algorithms.estimators.steps import step
from algorithms.turn_table import TurnTable


@compares_attempts
def dapo(
    table: TurnTable,
    *,
    limit: int = 20480,
    buffer: int = 4096,
    factor: float = 1.0,
    statistics: str = "turns",
    invalid_penalty: float = 0.0,
    epsilon: float = 1e-6,
) -> NDArray[np.float64]:
    """One advantage per turn, [N]. `limit` and `buffer` count the tokens of a turn; for the others see `grpo`."""
    lengths = np.bincount(table.token_rows, minlength=len(table))
    overlong = overlong_penalty(lengths, limit, buffer, factor)
    formula = "min((limit - buffer - tokens) / buffer * factor, 0)"
    step("overlong", formula, overlong, limit=limit, buffer=buffer, factor=factor)
    scores = step("score_of_turn", "score + overlong", episode_scores(table, invalid_penalty) + overlong)
    return episode_advantages(
        table, scores, statistics=statistics, divide_by_std=True, epsilon=epsilon, of="score_of_turn"
    )


def overlong_penalty(lengths: NDArray[np.int64], limit: int, buffer: int, factor: float) -> NDArray[np.float64]:
    """[N] 0 up to `limit - buffer` tokens, then linear to `-factor` at `limit` and on beyond it."""
    if not 0 < buffer <= limit:
        raise ValueError(f"the buffer must be between 1 and the limit of {limit} tokens, got {buffer}")
    return np.minimum((limit - buffer - lengths) / buffer * factor, 0.0)
