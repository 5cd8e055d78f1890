"""Random turn tables for property tests."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from algorithms.turn_table import COLUMNS, TurnTable

SCORES = st.sampled_from([0.0, 0.1, 1.0, 9.9, 10.0, -0.7]) | st.floats(-100, 100)


@st.composite
def tables(draw: st.DrawFn) -> TurnTable:
    """Up to 4 groups of up to 4 episodes of up to 6 turns in few states, dense rewards, some invalid actions."""
    lengths = draw(st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=4), min_size=1, max_size=4))
    turns = np.concatenate(lengths)  # [episodes]
    n = int(turns.sum())
    state = np.empty(n, dtype=object)
    state[:] = draw(st.lists(st.sampled_from(["hall", "desk", "shelf"]), min_size=n, max_size=n))
    return TurnTable(
        group=np.repeat(np.repeat(np.arange(len(lengths)), [len(g) for g in lengths]), turns),
        episode=np.repeat(np.arange(len(turns)), turns),
        turn=np.concatenate([np.arange(t) for t in turns]),
        reward=np.array(draw(st.lists(SCORES, min_size=n, max_size=n))),
        state=state,
        valid=np.array(draw(st.lists(st.booleans(), min_size=n, max_size=n))),
    )


@st.composite
def measured_tables(draw: st.DrawFn) -> TurnTable:
    """The same with up to 4 tokens a turn and every signal that an estimator reads.

    In some, two neighbouring attempts at a task share their first turn: one node, which was played and paid once.
    """
    table = draw(tables())
    n, rng = len(table), np.random.default_rng(draw(st.integers(0, 2**16)))
    tree = table.group * 100 + table.episode // 2
    node = np.where(table.is_first & draw(st.booleans()), tree, 1000 + np.arange(n))
    _, first, number = np.unique(node, return_index=True, return_inverse=True)
    played = first[number]  # [n] the row whose turn it is
    table = replace(table, reward=table.reward[played], state=table.state[played], valid=table.valid[played])
    tokens = rng.integers(1, 5, n)[played]
    last = np.append(np.diff(table.episode) != 0, True)
    starts = np.cumsum(tokens) - tokens
    m = int(tokens.sum())
    own = np.concatenate([starts[row] + np.arange(tokens[row]) for row in played])  # [m] the tokens of `played`
    prefix = rng.integers(0, 8, m)[own]
    segments = np.where(rng.random(m) < 0.5, rng.normal(size=m), np.nan)
    segments[starts[table.is_first]] = rng.normal(size=int(table.is_first.sum()))
    return replace(
        table,
        tokens=tokens,
        signals={
            "answer_logprob": np.where(rng.random(n) < 0.1, np.nan, -rng.exponential(size=n)),
            "demonstration": rng.random(n) < 0.3,
            "entropy": rng.exponential(size=n),
            "mc_value": np.where(rng.random(n) < 0.2, np.nan, rng.normal(size=n)),
            "next_value": np.where(last & (rng.random(n) < 0.5), rng.normal(size=n), 0.0),
            "node": node,
            "prm": rng.normal(size=n),
            "progress": rng.normal(size=n),
            "tag": rng.integers(0, 4, n)[played],
            "tag_form": (rng.random(n) < 0.7)[played],
            "tag_reward": rng.integers(0, 2, n)[played].astype(np.float64),
            "task_value": rng.random(16)[table.group],
            "tool_result": rng.random(n) < 0.4,
            "tree": tree,
            "turn_reward": rng.normal(size=n).round(1),
            "value": rng.normal(size=n),
        },
        token_signals={
            "entropy": rng.exponential(size=m)[own],
            "importance_weight": rng.uniform(0.5, 2.0, m)[own],
            "logprob": np.log(rng.uniform(0.2, 1.0, m))[own],
            "mc_value": segments,
            "prefix": 10 * table.group[np.repeat(np.arange(n), tokens)] + prefix // 2,
            "continuation": 20 * table.group[np.repeat(np.arange(n), tokens)] + prefix,
            "planning": (rng.random(m) < 0.4).astype(np.float64)[own],
            "prm": rng.normal(size=m),
            "residual_weight": rng.uniform(0.1, 1.0, m)[own],
            "square_sum": rng.uniform(0.9, 1.0, m)[own],
            "token_reward": 0.1 * rng.normal(size=m)[own],
            "value": rng.normal(size=m),
        },
    )


def tokens_of(table: TurnTable, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """The tokens of `rows`, row after row."""
    assert table.tokens is not None
    ends = np.cumsum(table.tokens)
    return np.concatenate([np.arange(ends[row] - table.tokens[row], ends[row]) for row in rows])


def take(table: TurnTable, rows: NDArray[np.int64]) -> TurnTable:
    """The table with its rows in another order."""
    columns = {name: getattr(table, name)[rows] for name in COLUMNS}
    signals = {name: signal[rows] for name, signal in table.signals.items()}
    if table.tokens is None:
        return TurnTable(**columns, signals=signals)
    order = tokens_of(table, rows)
    token_signals = {name: signal[order] for name, signal in table.token_signals.items()}
    return TurnTable(**columns, signals=signals, tokens=table.tokens[rows], token_signals=token_signals)


def with_scores(table: TurnTable, scores: NDArray[np.float64]) -> TurnTable:
    """The table with `scores` [episodes] as the reward of each episode's last turn, and 0 before."""
    last = np.append(np.diff(table.episode) != 0, True)
    return replace(table, reward=np.where(last, scores[table.episode], 0.0))
