"""Filters select the episodes that an update learns from.

    rollout ──► filters, one after the other ──► signals ──► estimator ──► loss

A filter is a pure function of episodes and returns a `Use` for each of them. A method lists its filters by name,
`filters: {void_turns: {_target_: algorithms.filters.void_turns, _partial_: true}}`. They run before the signals, so
nothing is measured for episodes that are dropped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from enum import IntEnum
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from agents.episode import Episode, ParseStatus
from algorithms.estimators.groups import compares_attempts
from algorithms.estimators.groups import uniform_groups as are_uniform
from envs.core import UnknownNameError

STRATEGIES = ("top_p", "top_k", "top_k_abs", "min_p")
MODES = ("linear", "softmax")


class Use(IntEnum):
    """How an update uses an episode."""

    DROP = 0  # not at all
    COMPARE = 1  # in the statistics of its group, but not in the loss
    LEARN = 2  # in the statistics and in the loss


Filter: TypeAlias = Callable[[Sequence[Episode]], NDArray[np.int64]]  # a `Use` for each episode


class FilterResult(NamedTuple):
    """The episodes that stay in a batch."""

    episodes: list[Episode]
    learns: list[bool]  # for each: whether its tokens are in the loss
    removed: Counter[str]  # by filter: how many episodes it dropped or took out of the loss


def apply_filters(filters: Mapping[str, Filter], episodes: Sequence[Episode]) -> FilterResult:
    """Apply the filters in their order. Each sees the episodes that the earlier ones did not drop.

    If the filters drop all episodes of a group except one, that one is dropped, too. It has nothing to be compared
    with, and estimators would use its raw score as its advantage, as for groups that were configured with one attempt.
    Raises `ValueError` for a filter that returns another number of values.
    """
    kept, learns = list(episodes), [True] * len(episodes)
    removed: Counter[str] = Counter()
    for name, episode_filter in filters.items():
        use = episode_filter(kept)
        if len(use) != len(kept):
            raise ValueError(f"the filter {name} returned {len(use)} values for {len(kept)} episodes")
        alone = _left_alone(kept, use)
        use = np.where(alone, Use.DROP, use)
        still = [there and value == Use.LEARN for there, value in zip(learns, use.tolist(), strict=True)]
        removed[name] += sum(learns) - sum(still)
        stays = use != Use.DROP
        kept = [episode for episode, stay in zip(kept, stays, strict=True) if stay]
        learns = [learn for learn, stay in zip(still, stays, strict=True) if stay]
    return FilterResult(kept, learns, removed)


def _left_alone(episodes: Sequence[Episode], use: NDArray[np.int64]) -> NDArray[np.bool_]:
    """[E] whether the episode is the only one of several attempts that is not dropped."""
    before = Counter(episode.group for episode in episodes)
    after = Counter(episode.group for episode, value in zip(episodes, use, strict=True) if value != Use.DROP)
    return np.array([after[e.group] == 1 and before[e.group] > 1 for e in episodes], dtype=np.bool_)


# -- single episodes --------------------------------------------------------------------------------------------------
def faults(episodes: Sequence[Episode]) -> NDArray[np.int64]:
    """Drop episodes that a fault of the environment ended (an error or a time limit), not the policy."""
    return _uses([episode.is_faulty for episode in episodes], Use.DROP)


def void_turns(episodes: Sequence[Episode]) -> NDArray[np.int64]:
    """Take episodes with a malformed turn out of the loss, with all of their turns (SimpleTIR, arXiv 2509.02479).

    Such a turn holds no action. The episodes still count in the statistics of their groups.
    """
    return _uses([any(t.status is ParseStatus.MALFORMED for t in e.turns) for e in episodes], Use.COMPARE)


def overlong(episodes: Sequence[Episode]) -> NDArray[np.int64]:
    """Take episodes with a turn that reached the token limit out of the loss (DAPO's overlong filtering).

    They still count in the statistics of their groups, as in DAPO (arXiv 2503.14476).
    """
    return _uses([any(t.status is ParseStatus.TRUNCATED for t in e.turns) for e in episodes], Use.COMPARE)


def repetitive(episodes: Sequence[Episode], *, ngram: int = 8, share: float = 0.5) -> NDArray[np.int64]:
    """Take episodes out of the loss in which a turn repeats itself.

    A turn repeats itself if more than `share` of its sequences of `ngram` ids occurred earlier in the turn. SPEAR
    (arXiv 2509.22601) drops repetitive answers, too; it does not publish its measure, so this one is ours.
    """
    if ngram < 1 or not 0 <= share < 1:
        raise ValueError(f"the filter repetitive needs ngram >= 1 and 0 <= share < 1, got {ngram=} and {share=}")

    def repeats(ids: Sequence[int]) -> bool:
        count = len(ids) - ngram + 1
        return count > 0 and 1 - len({tuple(ids[i : i + ngram]) for i in range(count)}) / count > share

    return _uses([any(repeats(turn.completion_ids) for turn in e.turns) for e in episodes], Use.COMPARE)


def _uses(removed: Sequence[bool], use: Use) -> NDArray[np.int64]:
    return np.where(np.array(removed, dtype=np.bool_), use, Use.LEARN).astype(np.int64)


# -- groups -----------------------------------------------------------------------------------------------------------
@compares_attempts
def uniform_groups(episodes: Sequence[Episode]) -> NDArray[np.int64]:
    """Drop groups in which all returns are equal (ScaleRL). They have no gradient, but count in the loss's divisor.

    Dynamic sampling (DAPO, `algo.dynamic_sampling=true`) also plays other groups in their place.
    """
    uniform = are_uniform(
        np.array([episode.total_reward for episode in episodes]),
        groups := _group_numbers(episodes),
        np.array([sum(abs(turn.reward) for turn in episode.turns) for episode in episodes]),
    )
    return _uses([bool(value) for value in uniform[groups]], Use.DROP)


@compares_attempts
def reward_variance(
    episodes: Sequence[Episode], *, strategy: str = "top_p", value: float = 0.9, largest: bool = True,
    include_zero: bool = False, mode: str = "linear", slack: float = 0.01,
) -> NDArray[np.int64]:  # fmt: skip
    """Keep the groups whose returns differ most: StarPO-S, the SNR filter of RAGEN (arXiv 2504.20073).

    A group's score is the standard deviation of its returns; see `select_groups` for the settings. RAGEN recommends
    the defaults; StarPO-S is `strategy=top_k`, `value=0.25`, `include_zero=true`.
    """
    groups = _group_numbers(episodes)
    returns = np.array([episode.total_reward for episode in episodes])
    kept = select_groups(
        group_stds(returns, groups), strategy=strategy, value=value, largest=largest, include_zero=include_zero,
        mode=mode, slack=slack,
    )  # fmt: skip
    return _uses([bool(dropped) for dropped in ~np.isin(groups, kept)], Use.DROP)


def group_stds(returns: NDArray[np.float64], groups: NDArray[np.int64]) -> NDArray[np.float64]:
    """[G] the standard deviation (ddof 1) of the `returns` [E] of each group; 0 for a group of one."""
    count = np.bincount(groups)
    difference = returns - (np.bincount(groups, weights=returns) / count)[groups]
    return np.sqrt(np.bincount(groups, weights=difference**2) / np.maximum(count - 1, 1))


def select_groups(
    scores: NDArray[np.float64], *, strategy: str, value: float, largest: bool, include_zero: bool, mode: str,
    slack: float,
) -> NDArray[np.int64]:  # fmt: skip
    """The numbers of the groups to keep, by their `scores` [G]; sorted.

    With `include_zero` off, groups with a score of 0 are left out first.

    - `top_p`: the best groups whose scores add up to `value` times the sum of all, minus `slack`. With mode `softmax`
      the scores are first made probabilities, and `slack` does not count.
    - `top_k`: the share `value` of the groups. `top_k_abs`: that many groups.
    - `min_p`: the groups with at least `value` times the best score.

    The best scores are the largest, or the smallest if `largest` is off; with linear `top_p` and a smallest score of 0
    nothing is kept, as in the reference. Scores are compared in float32, and ties are broken by torch's sort and topk,
    so that the same groups are kept as in RAGEN's `rollout_filter.py`. Raises `UnknownNameError`, and `ValueError` for
    a value out of range.
    """
    for name, word, known in (("strategy", strategy, STRATEGIES), ("mode", mode, MODES)):
        if word not in known:
            raise UnknownNameError(f"reward_variance.{name}", word, known)
    if value <= 0 or (strategy != "top_k_abs" and value > 1):
        most = "at least 1" if strategy == "top_k_abs" else "above 0 and at most 1"
        raise ValueError(f"reward_variance.value must be {most} with strategy={strategy}, got {value}")
    if not len(scores):
        return np.zeros(0, dtype=np.int64)
    import torch  # a configuration is checked before torch is imported

    score = torch.from_numpy(scores).float()
    numbers = torch.arange(len(score)) if include_zero else torch.nonzero(score.abs() > 1e-10).flatten()
    score = score[numbers]
    ranked = score if largest else -score
    if not len(numbers):
        chosen = numbers
    elif strategy == "min_p":
        best = score.max() * value if largest else score.min() / (value + 1e-10)
        chosen = torch.nonzero(score >= best - 1e-10 if largest else score <= best + 1e-10).flatten()
    elif strategy != "top_p":
        count = int(value * len(scores)) if strategy == "top_k" else int(value)
        chosen = ranked.topk(max(min(count, len(numbers)), 1)).indices
    elif value >= 1:
        chosen = torch.arange(len(numbers))
    elif mode == "softmax":
        shares, order = torch.sort(torch.softmax(ranked, dim=0), descending=True)
        chosen = order[: int(torch.searchsorted(shares.cumsum(0), value)) + 1]
    else:
        ordered, order = torch.sort(score, descending=largest)
        chosen = order[: _nucleus(ordered.tolist(), float(value * score.sum() - slack))]
    kept: NDArray[np.int64] = np.sort(numbers[chosen].numpy())
    return kept


def _nucleus(ordered: Sequence[float], wanted: float) -> int:
    """How many of the first scores add up to `wanted`; 0 if the positive ones before a zero do not."""
    total = 0.0
    for count, score in enumerate(ordered):
        if np.float32(total) >= wanted:
            return count
        if score <= 0:
            return 0
        total += score
    return len(ordered) if np.float32(total) >= wanted else 0


def _group_numbers(episodes: Sequence[Episode]) -> NDArray[np.int64]:
    """[E] the groups, numbered from 0 without gaps."""
    return np.unique([episode.group for episode in episodes], return_inverse=True)[1].astype(np.int64)
