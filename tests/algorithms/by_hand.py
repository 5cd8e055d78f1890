"""Compute the steps of a record again, only from the record: see `algorithms.estimators.steps`."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.record import Record

Values = NDArray[np.float64]


class ByHand:
    """The columns of a record, flat, and each step computed from those before it."""

    def __init__(self, record: Record) -> None:
        self.record = record
        advantages = record.of_turns.get("advantage") or record.of_tokens["advantage"]
        episodes = record.episodes[: len(advantages)]
        turns = [turn for episode in episodes for turn in episode.turns]
        self.episode = np.repeat(np.arange(len(episodes)), [len(e.turns) for e in episodes])
        self.task = np.repeat([e.group for e in episodes], [len(e.turns) for e in episodes])
        counts = np.array([len(turn.logprobs) for turn in turns])
        self.rows = np.repeat(np.arange(len(turns)), counts)
        ends = np.append(np.diff(self.episode) != 0, True)
        last = np.append(np.diff(self.rows) != 0, True) if len(self.rows) else np.zeros(0)
        self.turns: dict[str, Values] = {
            "reward": np.array([turn.reward for turn in turns]),
            "invalid": np.array([float(turn.status != "ok") for turn in turns]),
            "tokens": counts.astype(float),
            "end": ends.astype(float),
            "first": np.append(True, np.diff(self.episode) != 0).astype(float),
            **{name: flat(values) for name, values in record.of_turns.items()},
        }
        of_episode = self.episode[self.rows]
        self.tokens: dict[str, Values] = {
            "logprob": np.array([p for turn in turns for p in turn.logprobs]),
            "last": last.astype(float),
            "end": np.append(np.diff(of_episode) != 0, True).astype(float)[: len(of_episode)],
            **{name: flat([one for row in values for one in row]) for name, values in record.of_tokens.items()},
        }

    def column(self, name: str, of: str) -> Values:
        if of == "turns":
            return self.turns[name]
        return self.tokens[name] if name in self.tokens else self.turns[name][self.rows]

    def computed(self, step: dict[str, Any]) -> Values:
        """The step's values from its formula."""
        of = step["of"]
        episode = self.episode if of == "turns" else self.episode[self.rows]
        scope = _Scope(self, step, episode, len(episode))
        formula = re.sub(r"(tokens_\w+)\((\w+)\)", r"\1('\2')", step["formula"])
        value = eval(formula, {"__builtins__": {}}, scope)
        values = np.broadcast_to(np.asarray(value, dtype=float), len(episode))
        over = step.get("over", "")
        if over in ("", "batch", "episode", "task"):
            return values
        return np.where(np.isfinite(self.column(over, of)), values, np.nan)  # some are in no group


class _Scope(dict[str, Any]):
    """Names in a formula: functions, constants, columns."""

    def __init__(self, by_hand: ByHand, step: dict[str, Any], episode: NDArray[np.int64], count: int) -> None:
        super().__init__(step.get("constants", {}), not_measured=np.nan)
        self.by_hand, self.of, self.episode, self.count = by_hand, step["of"], episode, count
        self.over = step.get("over", "")
        self.counted = by_hand.column(step["counted"], self.of) > 0 if "counted" in step else np.ones(count, bool)

    def __missing__(self, name: str) -> Any:
        own = getattr(self, f"f_{name}", None)
        return own if own is not None else self.by_hand.column(name, self.of)

    f_where, f_abs, f_exp, f_log, f_sqrt = map(staticmethod, (np.where, np.abs, np.exp, np.log, np.sqrt))
    f_min, f_max, f_measured, f_zero = map(staticmethod, (np.minimum, np.maximum, np.isfinite, np.nan_to_num))

    # -- time
    def f_next(self, values: Any, after: Any = 0.0) -> Values:
        return self.f_next_where(values, np.ones(self.count), after)

    def f_next_where(self, values: Any, condition: Values, after: Any = 0.0) -> Values:
        values, after = np.broadcast_to(values, self.count), np.broadcast_to(after, self.count)
        out = np.empty(self.count)
        for k in range(self.count):
            there = [j for j in range(k + 1, self.count) if condition[j] > 0]
            out[k] = values[there[0]] if there and self.episode[there[0]] == self.episode[k] else after[k]
        return out

    def f_before(self, values: Values) -> Values:
        same = np.append(False, np.diff(self.episode) == 0)
        return np.where(same, np.roll(values, 1), 0.0)

    # -- tokens of a turn
    def f_tokens_sum(self, name: str) -> Values:
        rows, values = self.by_hand.rows, self.by_hand.column(name, "tokens")
        return np.bincount(rows, weights=values, minlength=self.count).astype(float)

    def f_tokens_last(self, name: str) -> Values:
        out = np.zeros(self.count)
        out[self.by_hand.rows] = self.by_hand.column(name, "tokens")  # the last one stays
        return out

    # -- groups
    def _groups(self) -> list[NDArray[np.int64]]:
        match self.over:
            case "batch":
                number = np.zeros(self.count)
            case "episode":
                number = self.episode
            case "task":
                number = self.by_hand.task if self.of == "turns" else self.by_hand.task[self.by_hand.rows]
            case name:
                number = self.by_hand.column(name, self.of)
        return [np.flatnonzero(number == one) for one in np.unique(number[np.isfinite(number)])]

    def _each(self, compute: Any, values: Any) -> Values:
        values, out = np.broadcast_to(np.asarray(values, dtype=float), self.count), np.full(self.count, np.nan)
        for members in self._groups():
            kept = members[self.counted[members]]
            out[members] = compute(values[kept][np.isfinite(values[kept])])
        return out

    def f_n(self) -> Values:
        return self._each(len, np.ones(self.count))

    def f_sum(self, values: Any) -> Values:
        return self._each(np.sum, values)

    def f_mean(self, values: Any) -> Values:
        return self._each(np.mean, values)

    def f_std(self, values: Any) -> Values:
        return self._each(lambda x: np.std(x, ddof=1) if len(x) > 1 else 0.0, values)

    def f_pstd(self, values: Any) -> Values:
        return self._each(np.std, values)

    def f_lowest(self, values: Any) -> Values:
        return self._each(np.min, values)

    def f_highest(self, values: Any) -> Values:
        return self._each(np.max, values)

    def f_second(self, values: Any) -> Values:
        return self._each(lambda x: np.sort(x)[-2:][0], values)

    def f_first(self, values: Any) -> Values:
        return self._each(lambda x: x[0] if len(x) else np.nan, values)


def flat(columns: list[list[Any]]) -> Values:
    """The values of all episodes one after the other; NaN for what was not measured."""
    return np.array([np.nan if value is None else float(value) for values in columns for value in values])
