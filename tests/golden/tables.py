"""Turn tables from the two layouts of recorded inputs: rows of steps, and padded sequences with a mask."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from algorithms.turn_table import TurnTable


def numbered(names: Any) -> NDArray[np.int64]:
    """Names to numbers in the order of their first appearance: two partitions are equal where these are."""
    numbers: dict[Any, int] = {}
    return np.array([numbers.setdefault(name, len(numbers)) for name in names], dtype=np.int64)


def hashable(value: Any) -> Any:
    """Lists, which are how JSON writes tuples, made usable as a key."""
    if isinstance(value, list):
        return tuple(map(hashable, value))
    return tuple((key, hashable(value[key])) for key in sorted(value)) if isinstance(value, dict) else value


def make_table(group: Any, episode: Any, turn: Any, reward: Any, **others: Any) -> TurnTable:
    """A table of the given columns; by default all turns are valid, and in different states."""
    n = len(group)
    state = np.empty(n, dtype=object)
    state[:] = others.pop("state", range(n))
    return TurnTable(
        group=np.asarray(group, dtype=np.int64),
        episode=np.asarray(episode, dtype=np.int64),
        turn=np.asarray(turn, dtype=np.int64),
        reward=np.asarray(reward, dtype=np.float64),
        state=state,
        valid=np.asarray(others.pop("valid", np.ones(n)), dtype=np.bool_),
        **others,
    )


def single_turns(group: Any, reward: Any, **others: Any) -> TurnTable:
    """Every episode one turn long."""
    return make_table(group, np.arange(len(group)), np.zeros(len(group)), reward, **others)


def table_of_rows(rows: list[dict[str, Any]], **others: Any) -> TurnTable:
    """One row per (trajectory, step), kept in the order of the recording, which may mix trajectories."""
    lengths = [row.get("resp_len") for row in rows]
    return make_table(
        group=numbered([row["uid"] for row in rows]),
        episode=numbered([row["traj_uid"] for row in rows]),
        turn=[row["step"] for row in rows],
        reward=[row["reward"] for row in rows],
        state=[hashable(row["anchor_obs"]) for row in rows],
        valid=[row["is_action_valid"] for row in rows],
        tokens=None if None in lengths else np.array(lengths, dtype=np.int64),
        **others,
    )


def over_tokens(advantages: NDArray[np.float64], inputs: dict[str, Any]) -> NDArray[np.float64]:
    """One advantage per row, repeated over the tokens of the row's response: [rows, L]."""
    lengths = np.array([row["resp_len"] for row in inputs["rows"]])
    return advantages[:, None] * (np.arange(inputs["response_length"]) < lengths[:, None])


class Sequences(NamedTuple):
    """Padded sequences [B, L] as episodes whose turns are the runs of tokens under the mask."""

    table: TurnTable
    mask: NDArray[np.bool_]  # [B, L]

    def padded(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """[B, L] the values of tokens [M] or of turns [N] back where they came from, 0 elsewhere."""
        if len(values) != len(self.table.token_rows):
            values = values[self.table.token_rows]
        out = np.zeros(self.mask.shape)
        out[self.mask] = values
        return out


def sequences(mask: Any, rewards: Any, group: Any = None, **token_signals: Any) -> Sequences:
    """`rewards` and `token_signals` [B, L] are taken where `mask` [B, L] is true; `group` [B] numbers the tasks."""
    at = np.asarray(mask, dtype=np.bool_)
    starts = at & ~np.pad(at, ((0, 0), (1, 0)))[:, :-1]
    episode, _ = np.nonzero(starts)
    row_of_token = np.cumsum(starts[at]) - 1
    opens = np.diff(episode, prepend=-1) != 0
    # A reward on the last token of a turn is the turn's own.
    ends = at & ~np.pad(at, ((0, 0), (0, 1)))[:, 1:]
    paid = np.asarray(rewards, dtype=np.float64)
    signals = {"token_reward": np.where(ends, 0.0, paid), **token_signals}
    table = make_table(
        group=episode if group is None else np.asarray(group)[episode],
        episode=episode,
        turn=np.arange(len(episode)) - np.flatnonzero(opens)[np.cumsum(opens) - 1] if len(episode) else episode,
        reward=paid[ends],
        tokens=np.bincount(row_of_token, minlength=len(episode)),
        token_signals={name: np.asarray(signal, dtype=np.float64)[at] for name, signal in signals.items()},
    )
    return Sequences(table, at)
