"""The losses that the learner minimises: a loss per token, and ways to reduce it to one number.

All tensors are [B, T]: B sequences padded to T tokens. `mask` is true for the tokens that the policy sampled; prompts,
observations and padding are left out. The policy losses share one signature. A training step looks like this:

    loss, stats = clip_loss(logprobs, old_logprobs, advantages, mask)
    loss = loss + kl_coef * kl_estimate(logprobs, ref_logprobs)
    aggregate(loss, mask, "token-mean").backward()

The results equal those of verl's `core_algos.py` if it has the loss, otherwise those of the papers named.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from algorithms.estimators.timeline import Timeline
from envs.core import UnknownNameError

UNITS = ("turn", "episode")
UNIT_MEANS = ("turn-mean", "trajectory-mean")
ROW_MEANS = ("seq-mean-token-sum", "seq-mean-token-mean")
AGGREGATIONS = ("token-mean", *ROW_MEANS, "seq-mean-token-sum-norm", *UNIT_MEANS)
KL_ESTIMATORS = ("k1", "abs", "k2", "k3", "k1+", "abs+", "k3+", "k3_ratio")
RATIOS = ("sequence", "token")
DIVERGENCES = ("tv", "kl")
NORMALIZERS = ("none", "failure_rate", "std")
ENTROPIES = ("low", "high")
# exp() of a larger log-ratio only shows that the two policies have diverged.
MAX_LOG_RATIO = 20.0
MAX_SEQUENCE_LOG_RATIO = 10.0  # for GSPO and NFT
MAX_K3 = 10.0
SMALL = 1e-8  # keeps logarithms finite

Loss = TypeVar("Loss", bound=Callable[..., Any])


class Units(NamedTuple):
    """Statistics of the turn or the episode that each token belongs to, for a loss over units."""

    means: Tensor  # [K, B, T] of the K values that the loss declares, over the tokens of the unit that are in the loss
    tokens: Tensor  # [B, T] the number of these tokens, at least 1

    @property
    def sums(self) -> Tensor:
        """[K, B, T] the sums over the unit."""
        return self.means * self.tokens


def over_units(measure: Callable[..., Tensor]) -> Callable[[Loss], Loss]:
    """Declare that a policy loss is over whole turns or episodes, as its setting `unit` says.

    `measure(logprobs, old_logprobs, advantages, **settings)` gets the values [M] at sampled ids and returns K values
    for each, [K, M]. The loss gets `units`, with their means over the unit, without a gradient. So it depends neither
    on how turns are cut into samples nor on micro-batches.
    """

    def declare(loss: Loss) -> Loss:
        vars(loss)["measure"] = measure
        return loss

    return declare


def unit_measure(loss: Callable[..., Any]) -> tuple[str, Callable[..., Tensor]] | None:
    """The unit of a loss declared with `over_units`, and `measure` with its settings; None for other losses.

    Raises `UnknownNameError` for an unknown unit.
    """
    function, settings = (loss.func, loss.keywords) if isinstance(loss, partial) else (loss, {})
    if (measure := getattr(function, "measure", None)) is None or (unit := unit_of(loss)) is None:
        return None
    return unit, partial(measure, **settings)


@torch.no_grad()
def unit_means(values: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
    """The means [K, M] of `values` [K, M] over the tokens with the same of `numbers` [M], and their count [M]."""
    _, unit, counts = torch.unique(numbers, return_inverse=True, return_counts=True)
    sums = torch.zeros(len(values), len(counts), dtype=values.dtype, device=values.device).index_add(1, unit, values)
    return (sums / counts)[:, unit], counts[unit]


def make_units(
    measure: Callable[..., Tensor], logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, counted: Tensor,
    numbers: Tensor,
) -> Units:  # fmt: skip
    """The `Units` of a batch that holds all tokens of its units.

    `counted` [B, T] says which tokens are in the loss, `numbers` [B, T] which unit a token is of.
    """
    flat = (logprobs.detach()[counted], old_logprobs[counted], advantages[counted])
    means, counts = unit_means(measure(*flat), numbers[counted])
    spread = torch.zeros(len(means), *counted.shape, dtype=means.dtype, device=counted.device)
    return Units(
        spread.masked_scatter(counted, means),
        torch.ones_like(logprobs).masked_scatter(counted, counts.to(logprobs)),
    )


def unit_of(loss: Callable[..., Any]) -> str | None:
    """The setting `unit` of a loss: what its units are, "turn" or "episode"; None for a loss without it.

    Raises `UnknownNameError` for an unknown unit.
    """
    function, settings = (loss.func, loss.keywords) if isinstance(loss, partial) else (loss, {})
    parameter = inspect.signature(function).parameters.get("unit")
    if parameter is None:
        return None
    unit: str = settings.get("unit", parameter.default)
    if unit not in UNITS:
        raise UnknownNameError("algo.loss.unit", unit, UNITS)
    return unit


class Tokens(NamedTuple):
    """The sampled ids of an optimiser step, before the step; each is [M]."""

    logprobs: NDArray[np.float64]
    old_logprobs: NDArray[np.float64]
    advantages: NDArray[np.float64]
    entropies: NDArray[np.float64]  # of the distributions, in nats
    units: NDArray[
        np.int64
    ]  # the number of the id's turn, or of its episode: see `unit_of`; in time order inside of it


def over_minibatch(mark: Callable[..., NDArray[Any]]) -> Callable[[Loss], Loss]:
    """Declare that a policy loss needs a value for each token that depends on the whole minibatch.

    `mark(tokens, rng, **settings)` gets the `Tokens` of an optimiser step and the settings of the loss. It returns [M],
    a bool (whether the token is selected) or a number for each token. The loss gets these as `marks` [B, T]. So the
    result does not depend on the size of micro-batches.
    """

    def declare(loss: Loss) -> Loss:
        vars(loss)["mark"] = mark
        return loss

    return declare


def marker(loss: Callable[..., Any]) -> Callable[..., NDArray[Any]] | None:
    """`mark` of a loss declared with `over_minibatch`, with the settings of the loss; None for other losses."""
    function, settings = (loss.func, loss.keywords) if isinstance(loss, partial) else (loss, {})
    mark = getattr(function, "mark", None)
    return mark and partial(mark, **settings)


def knows_demonstrations(loss: Callable[..., Any]) -> bool:
    """Whether a loss has the parameter `demonstrated` [B, T]: which tokens are of demonstrations."""
    function = loss.func if isinstance(loss, partial) else loss
    return "demonstrated" in inspect.signature(function).parameters


def clip_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    eps_low: float = 0.2,
    eps_high: float = 0.2,
    dual_clip: float | None = 3.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """PPO's clipped surrogate per token, [B, T], and statistics to average over `mask` for the logs, each [B, T].

        r = exp(logprobs - old_logprobs)
        L = max(-A r, -A clip(r, 1 - eps_low, 1 + eps_high));  where A < 0 also L = min(L, -A dual_clip)

    PPO: Schulman et al., arXiv 1707.06347; `eps_high > eps_low` is DAPO's clip-higher, arXiv 2503.14476; the dual
    clip, arXiv 1912.09729, bounds the loss of a bad action that has become much likelier (None: off).
    The log-ratio is clamped to ±20. Values outside `mask` do not affect the loss or its gradient.
    """
    if dual_clip is not None and dual_clip <= 1:
        raise ValueError(f"dual_clip bounds ratios above 1, got {dual_clip}")
    log_ratio = _log_ratio(logprobs, old_logprobs, mask).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    ratio = log_ratio.exp()
    plain = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - eps_low, 1 + eps_high)
    loss = torch.maximum(plain, clipped)
    if dual_clip is not None:
        loss = torch.where(advantages < 0, torch.minimum(loss, -advantages * dual_clip), loss)
    stats = {"clip_fraction": (clipped > plain).float(), "approx_kl": -log_ratio.detach()}
    return loss, stats


def _log_ratios(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, **_: Any) -> Tensor:
    del advantages
    return (logprobs - old_logprobs)[None]


@over_units(_log_ratios)
def gspo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    units: Units,
    *,
    eps_low: float,
    eps_high: float,
    unit: str = "episode",
) -> tuple[Tensor, dict[str, Tensor]]:
    """GSPO (Zheng et al., arXiv 2507.18071): one ratio for each sequence, the geometric mean over its tokens.

        s = exp(mean over tokens of (logprobs - old_logprobs));  L = max(-A s, -A clip(s, 1 - eps_low, 1 + eps_high))

    The gradient is per token, with the value of s (at most e^10). A sequence is the `unit`, "episode" or "turn"; use
    the aggregation "trajectory-mean" or "turn-mean". Published: eps_low 3e-4, eps_high 4e-4.
    """
    del unit  # for `units`
    log_ratio = _log_ratio(logprobs, old_logprobs, mask)
    seen = logprobs.masked_fill(~mask, 0.0)
    ratio = (seen - seen.detach() + units.means[0]).clamp(max=MAX_SEQUENCE_LOG_RATIO).exp()
    plain = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - eps_low, 1 + eps_high)
    stats = {"clip_fraction": (clipped > plain).float(), "approx_kl": -log_ratio.detach()}
    return torch.maximum(plain, clipped), stats


def cispo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    eps_low: float | None = None,
    eps_high: float = 0.2,
) -> tuple[Tensor, dict[str, Tensor]]:
    """CISPO (MiniMax, arXiv 2506.13585): REINFORCE with clipped importance weights; no token loses its gradient.

        L = -w A logprobs,  w = clip(r, 1 - eps_low, 1 + eps_high) without a gradient

    With `eps_low` None there is no lower bound, as published. Only the gradient of this loss has a meaning, not its
    value.
    """
    log_ratio = _log_ratio(logprobs, old_logprobs, mask).detach().clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    ratio = log_ratio.exp()
    weight = ratio.clamp(None if eps_low is None else 1 - eps_low, 1 + eps_high)
    stats = {"clip_fraction": (weight != ratio).float(), "approx_kl": -log_ratio}
    return -weight * advantages * logprobs.masked_fill(~mask, 0.0), stats


def sapo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    tau_positive: float = 1.0,
    tau_negative: float = 1.05,
) -> tuple[Tensor, dict[str, Tensor]]:
    """SAPO (Gao et al., arXiv 2511.20347): a sigmoid of the ratio in place of a clip.

        L = -A sigmoid(tau (r - 1)) 4 / tau,  tau = tau_positive where A > 0, otherwise tau_negative

    At r = 1 the gradient is that of -A r; it fades out on both sides, the faster the larger tau. Use it with the
    aggregation "seq-mean-token-mean".
    """
    if tau_positive <= 0 or tau_negative <= 0:
        raise ValueError(f"tau must be positive, got {tau_positive} and {tau_negative}")
    log_ratio = _log_ratio(logprobs, old_logprobs, mask).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    tau = torch.where(advantages > 0, advantages.new_tensor(tau_positive), tau_negative)
    gate = (tau * (log_ratio.exp() - 1)).sigmoid() * 4 / tau
    stats = {"clip_fraction": torch.zeros_like(logprobs), "approx_kl": -log_ratio.detach()}
    return -advantages * gate, stats


def dppo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    divergence: str = "tv",
    delta: float = 0.2,
) -> tuple[Tensor, dict[str, Tensor]]:
    """DPPO (arXiv 2602.04879): a trust region in the token's probability p instead of its ratio.

        L = -A r, and 0 where A > 0 and p > p_old, or A < 0 and p < p_old, by a divergence of more than `delta`

    The divergence is that of two outcomes, this token or another one: "tv" is |p - p_old|, "kl" is
    p_old log(p_old / p) + (1 - p_old) log((1 - p_old) / (1 - p)). A rare token may become several times as likely,
    which a clip of the ratio prevents, and a frequent one may not drop to half. Published: 0.2 for "tv".
    """
    if divergence not in DIVERGENCES:
        raise UnknownNameError("divergence", divergence, DIVERGENCES)
    log_ratio = _log_ratio(logprobs, old_logprobs, mask).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    with torch.no_grad():
        new = logprobs.masked_fill(~mask, 0.0).exp()
        old = old_logprobs.masked_fill(~mask, 0.0).exp()
        if divergence == "tv":
            distance = (new - old).abs()
        else:
            distance = -old * log_ratio + (1 - old) * ((1 - old + SMALL) / (1 - new + SMALL)).log()
        outside = (distance > delta) & (torch.where(advantages > 0, new - old, old - new) > 0) & (advantages != 0)
    loss = torch.where(outside, 0.0, -advantages * log_ratio.exp())
    return loss, {"clip_fraction": outside.float(), "approx_kl": -log_ratio.detach()}


def _clipped_ratio(log_ratio: Tensor, advantages: Tensor, eps_low: float, eps_high: float) -> Tensor:
    return torch.where(advantages > 0, log_ratio.clamp(max=eps_high), log_ratio.clamp(min=-eps_low))


def _clipped_ratios(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, *, eps_low: float = 0.4, eps_high: float = 0.4, **_: Any
) -> Tensor:
    return torch.stack([_clipped_ratio(logprobs - old_logprobs, advantages, eps_low, eps_high), advantages])


@over_units(_clipped_ratios)
def gmpo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    units: Units,
    *,
    eps_low: float = 0.4,
    eps_high: float = 0.4,
    unit: str = "episode",
) -> tuple[Tensor, dict[str, Tensor]]:
    """GMPO (arXiv 2507.20673): the geometric mean of a sequence's token ratios, each clipped before.

        L = -A exp(mean over tokens of d);  d = logprobs - old_logprobs, at most eps_high where A > 0 and at least
        -eps_low where A < 0

    A is the mean advantage of the sequence, and L is the same at all its tokens; each has the gradient of its own d. A
    sequence is the `unit`, see `gspo_loss`.
    """
    del unit  # for `units`
    log_ratio = _log_ratio(logprobs, old_logprobs, mask)
    clipped = _clipped_ratio(log_ratio, advantages, eps_low, eps_high)
    mean, advantage = units.means
    stats = {"clip_fraction": (clipped != log_ratio).float(), "approx_kl": -log_ratio.detach()}
    return -advantage * (clipped - clipped.detach() + mean).exp(), stats


@over_units(_log_ratios)
def vespo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    units: Units,
    *,
    unit: str = "episode",
    power_positive: float = 2.0,
    rate_positive: float = 3.0,
    power_negative: float = 3.0,
    rate_negative: float = 2.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """VESPO (as in TRL): REINFORCE with a smooth weight of the whole sequence's ratio w.

        L = -phi(w) A logprobs,  phi(w) = w^power exp(rate (1 - w)) without a gradient

    phi is 1 at w = 1. For large w it falls exponentially; towards 0 it falls with the power. Power and rate are those
    of A >= 0 or of A < 0. w lies between 1e-8 and e^20. A sequence is the `unit`, see `gspo_loss`.
    """
    del unit  # for `units`
    log_ratio = _log_ratio(logprobs, old_logprobs, mask).detach()
    log_weight = units.sums[0].clamp(math.log(SMALL), MAX_LOG_RATIO)
    good = advantages >= 0
    power = torch.where(good, advantages.new_tensor(power_positive), power_negative)
    rate = torch.where(good, advantages.new_tensor(rate_positive), rate_negative)
    phi = (rate + power * log_weight - rate * log_weight.exp()).exp()
    stats = {"clip_fraction": torch.zeros_like(logprobs), "approx_kl": -log_ratio}
    return -phi * advantages * logprobs.masked_fill(~mask, 0.0), stats


def covariance(logprobs: NDArray[np.float64], advantages: NDArray[np.float64]) -> NDArray[np.float64]:
    """[M] each token's part in the covariance of log-probability and advantage, which drives the change of entropy."""
    product: NDArray[np.float64] = (advantages - advantages.mean()) * (logprobs - logprobs.mean())
    return product


def _pick_largest(tokens: Tokens, rng: np.random.Generator, *, share: float = 2e-4, **_: float) -> NDArray[np.bool_]:
    del rng
    _check_share(share)
    picked = np.zeros(len(tokens.logprobs), dtype=np.bool_)
    values = torch.from_numpy(covariance(tokens.logprobs, tokens.advantages))
    picked[values.topk(max(1, int(len(picked) * share))).indices.numpy()] = True  # of equal ones as the authors' code
    return picked


def _check_share(share: float) -> None:
    if not 0 < share <= 1:
        raise ValueError(f"share must lie between 0 and 1, got {share}")


@over_minibatch(_pick_largest)
def kl_cov_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    marks: Tensor,
    *,
    share: float = 2e-4,
    coef: float = 1.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """KL-Cov (Cui et al., arXiv 2505.22617): a penalty on the tokens that reduce the entropy most, and no clip.

        L = -A r, and + coef |logprobs - old_logprobs| at the `share` of tokens with the largest covariance

    The covariance of a token is (A - mean(A)) (logprobs - mean(logprobs)), with means over a minibatch; at least one
    token is picked. Published: a share of 2e-4 for 7B, 2e-3 for 32B models.
    """
    del share  # for `_pick_largest`
    log_ratio = _log_ratio(logprobs, old_logprobs, mask).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    loss = -advantages * log_ratio.exp() + coef * torch.where(marks > 0, log_ratio.abs(), 0.0)
    return loss, {"clip_fraction": marks.to(loss.dtype), "approx_kl": -log_ratio.detach()}


def _pick_drawn(
    tokens: Tokens, rng: np.random.Generator, *, share: float = 2e-4, lowest: float = 1.0, highest: float = 5.0,
    eps_low: float = 0.2, eps_high: float = 0.2,
) -> NDArray[np.bool_]:  # fmt: skip
    _check_share(share)
    advantages, ratio = tokens.advantages, np.exp(tokens.logprobs - tokens.old_logprobs)
    values = covariance(tokens.logprobs, advantages)
    unclipped = advantages * ratio <= advantages * ratio.clip(1 - eps_low, 1 + eps_high)
    candidates = np.flatnonzero(unclipped & (values > lowest) & (values < highest))
    picked = np.zeros(len(values), dtype=np.bool_)
    picked[rng.permutation(candidates)[: max(1, int(len(picked) * share))]] = True
    return picked


@over_minibatch(_pick_drawn)
def clip_cov_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    marks: Tensor,
    *,
    share: float = 2e-4,
    lowest: float = 1.0,
    highest: float = 5.0,
    eps_low: float = 0.2,
    eps_high: float = 0.2,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Clip-Cov (Cui et al., arXiv 2505.22617): PPO's clip, and no gradient for some tokens that reduce the entropy.

    The loss is 0 at a `share` of the tokens (at least one), drawn among the unclipped ones whose covariance (see
    `kl_cov_loss`) lies between `lowest` and `highest`.
    """
    del share, lowest, highest  # for `_pick_drawn`
    loss, stats = clip_loss(
        logprobs, old_logprobs, advantages, mask, eps_low=eps_low, eps_high=eps_high, dual_clip=None
    )
    clipped = stats["clip_fraction"].masked_fill(marks > 0, 1.0)
    return loss.masked_fill(marks > 0, 0.0), stats | {"clip_fraction": clipped}


def reinforce_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """-A logprobs, without a ratio: policy gradient on fresh samples, imitation for A = 1 (RAFT)."""
    stats = {"approx_kl": -_log_ratio(logprobs, old_logprobs, mask).detach()}
    return -advantages * logprobs.masked_fill(~mask, 0.0), stats | {"clip_fraction": torch.zeros_like(logprobs)}


def probability_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """-A p, with the probability p of the token itself instead of a ratio, so rare tokens move little (T-SPMO)."""
    stats = {"approx_kl": -_log_ratio(logprobs, old_logprobs, mask).detach()}
    return -advantages * logprobs.masked_fill(~mask, 0.0).exp(), stats | {"clip_fraction": torch.zeros_like(logprobs)}


@over_units(_log_ratios)
def topr_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    units: Units,
    *,
    ratio: str = "sequence",
    unit: str = "episode",
) -> tuple[Tensor, dict[str, Tensor]]:
    """TOPR (Le Roux et al., arXiv 2503.14286): imitate good attempts, and fade out bad ones that became unlikely.

        L = -A logprobs where A >= 0;  L = -min(r, 1) A logprobs where A < 0, r without a gradient

    r is the ratio of the whole sequence, as in the paper, which is the `unit`. With `ratio="token"` it is the token's
    ratio, as in ROLL's port.
    """
    del unit  # for `units`
    if ratio not in RATIOS:
        raise UnknownNameError("ratio", ratio, RATIOS)
    log_ratio = _log_ratio(logprobs, old_logprobs, mask).detach()
    taper = (units.sums[0] if ratio == "sequence" else log_ratio).clamp(max=0.0).exp()
    weight = torch.where(advantages < 0, taper, 1.0)
    stats = {"clip_fraction": (weight < 1).float() * torch.ones_like(logprobs), "approx_kl": -log_ratio}
    return -weight * advantages * logprobs.masked_fill(~mask, 0.0), stats


def nft_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    normalizer: str = "failure_rate",
    negative_weight: float = 1.0,
    lowest_rate: float = 0.02,
) -> tuple[Tensor, dict[str, Tensor]]:
    """NFT (Chen et al., arXiv 2505.18116): fine-tune on successes, and on failures through an implicit policy.

        L = -w log(rho)                                                      for a success
        L = -w negative_weight log(max((1 - q rho) / (1 - q), 1))            for a failure; the gradient passes the max

    rho is the token's ratio (at most e^10) and q the success rate of the group, kept within `lowest_rate` of 0 and 1.
    `advantages` must be success - q, that is 1 - q or -q, as `algorithms.estimators.nft` returns them. w is 1 - q
    ("failure_rate": the first gradient equals that of these advantages), sqrt((1 - q) / q) ("std", GRPO's) or 1
    ("none"). Raises `ValueError` for advantages that no success rate could give.
    """
    if normalizer not in NORMALIZERS:
        raise UnknownNameError("normalizer", normalizer, NORMALIZERS)
    beyond = advantages[mask & (advantages.abs() > 1)]
    if len(beyond):
        raise ValueError(
            f"NFT got an advantage of {float(beyond[0]):g}; it needs success - success rate, between -1 and 1, as "
            "algorithms.estimators.nft returns for rewards of 1 and 0"
        )
    success = advantages > 0
    q = torch.where(success, 1 - advantages, -advantages).clamp(lowest_rate, 1 - lowest_rate)
    log_ratio = _log_ratio(logprobs, old_logprobs, mask)
    rho = log_ratio.clamp(max=MAX_SEQUENCE_LOG_RATIO).exp()
    implied = (1 - q * rho) / (1 - q)
    floored = implied + (implied.clamp(min=1.0) - implied).detach()
    weight = {"none": torch.ones_like(q), "failure_rate": 1 - q, "std": ((1 - q) / q).sqrt()}[normalizer]
    loss = -weight * torch.where(success, log_ratio, negative_weight * floored.log())
    loss = torch.where(advantages == 0, 0.0, loss)  # a group with equal outcomes teaches nothing
    stats = {"clip_fraction": ((implied < 1) & ~success).float(), "approx_kl": -log_ratio.detach()}
    return loss, stats


# -- losses that weigh the tokens of another loss ---------------------------------------------------------------------
def _of_tokens(of: Callable[..., Any], *arguments: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss `of`. Raises `ValueError` if it looks at more than single tokens itself."""
    if unit_of(of) is not None or marker(of) is not None:
        raise ValueError(f"algo.loss.of must be a loss of single tokens, such as clip_loss; got {_name(of)}")
    loss, stats = of(*arguments)
    return loss, stats


def _name(loss: Callable[..., Any]) -> str:
    return str(getattr(loss.func if isinstance(loss, partial) else loss, "__name__", loss))


def _log_ratios_and_advantages(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, **_: Any) -> Tensor:
    return torch.stack([logprobs - old_logprobs, advantages])


@over_units(_log_ratios_and_advantages)
def opsm_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    units: Units,
    *,
    of: Callable[..., Any] = clip_loss,
    delta: float = 0.223,
    unit: str = "episode",
) -> tuple[Tensor, dict[str, Tensor]]:
    """Off-policy sequence masking (DeepSeek-V3.2, as in TRL): another loss without bad sequences that became unlikely.

        L = 0 where the sequence's mean A < 0 and mean(old_logprobs - logprobs) > delta;  elsewhere the loss `of`

    Masked tokens count in the divisor of the loss, as in TRL. A sequence is the `unit`, see `gspo_loss`. With a
    correction `old_logprobs` are the trained model's, and the engine's mismatch is not measured. Published: delta 0.223
    (ARL-Arena, whose docstring has the other sign; its code is as here).
    """
    del unit  # for `units`
    log_ratio, advantage = units.means
    dropped = (advantage < 0) & (-log_ratio > delta) & mask
    loss, stats = _of_tokens(of, logprobs, old_logprobs, advantages, mask)
    clipped = stats["clip_fraction"].masked_fill(dropped, 1.0)
    return loss.masked_fill(dropped, 0.0), stats | {"clip_fraction": clipped}


def future_log_ratios(
    log_ratios: NDArray[np.float64], units: NDArray[np.int64], places: NDArray[np.int64], half_life: float
) -> NDArray[np.float64]:
    """[M] the sum of log-ratios from each token to the end of its unit, halved every `half_life` places.

    All arguments are [M]; `places` grow with time inside a unit.
    """
    ordered = np.all((np.diff(units) > 0) | ((np.diff(units) == 0) & (np.diff(places) > 0)))
    order = np.arange(len(units)) if ordered else np.lexsort((places, units))  # sorting millions is slow
    line = Timeline.of(order, units[order])
    distance = line.following(places.astype(np.float64)) - places
    return line.accumulate(log_ratios, 0.5 ** (np.maximum(distance, 0.0) / half_life))


def influence(
    log_ratios: NDArray[np.float64], advantages: NDArray[np.float64], future: NDArray[np.float64], *,
    clip: float = 0.2, high_only: bool = True, safety: float | None = 4.0,
) -> NDArray[np.float64]:  # fmt: skip
    """[M] FIPO's weights from `future_log_ratios`, see `fipo_loss`; all arguments are [M]."""
    weights = np.exp(np.minimum(future, MAX_LOG_RATIO))
    if clip:
        weights = weights.clip(1.0 if high_only else 1.0 - clip, 1.0 + clip)
    if safety is not None:
        risky = (advantages < 0) & (log_ratios > math.log(safety))
        weights = np.where(risky, weights.clip(0.8, 1.0), weights)
    return weights


def _influence_of_tokens(
    tokens: Tokens, rng: np.random.Generator, *, half_life: float = 32.0, clip: float = 0.2, high_only: bool = True,
    safety: float | None = 4.0, delta: float | None = 10.0, **_: Any,
) -> NDArray[np.float64]:  # fmt: skip
    del rng
    log_ratios = tokens.logprobs - tokens.old_logprobs
    counted = log_ratios if delta is None else np.where(log_ratios > math.log(delta), 0.0, log_ratios)
    future = future_log_ratios(counted, tokens.units, np.arange(len(counted)), half_life)
    return influence(log_ratios, tokens.advantages, future, clip=clip, high_only=high_only, safety=safety)


@over_minibatch(_influence_of_tokens)
def fipo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    marks: Tensor,
    *,
    of: Callable[..., Any] = clip_loss,
    half_life: float = 32.0,
    clip: float = 0.2,
    high_only: bool = True,
    safety: float | None = 4.0,
    delta: float | None = 10.0,
    unit: str = "episode",
) -> tuple[Tensor, dict[str, Tensor]]:
    """FIPO (arXiv 2603.19835, as in ms-swift): weigh a token by how much likelier all that follows has become.

        L = weight · the loss `of`;   weight = clip(exp(F), 1, 1 + clip), from 1 - clip without `high_only`
        F_t = sum over the tokens k >= t of the unit of 2^(-(k - t) / half_life) (logprobs - old_logprobs)

    Tokens with r > `delta` count 0 in F (None: all count). Where A < 0 and r > `safety`, the weight is at most 1 and at
    least 0.8. The weights have no gradient. While the policy is the one that sampled they are 1. k - t counts the
    tokens that the policy sampled, so observations do not decay the sum; in ms-swift they do, and it also bounds r by
    delta. Published: `clip_loss` with 0.2 and 0.28, half-life 32.
    """
    del half_life, clip, high_only, safety, delta, unit  # for `_influence_of_tokens` and the learner
    loss, stats = _of_tokens(of, logprobs, old_logprobs, advantages, mask)
    return loss * marks, stats


def _high_entropy(tokens: Tokens, rng: np.random.Generator, *, share: float = 0.2, **_: Any) -> NDArray[np.float64]:
    """[M] 1 for tokens whose entropy is at or above the quantile that leaves `share` of them, else 0."""
    del rng
    _check_share(share)
    if not len(tokens.entropies):
        return np.zeros(0)
    kept: NDArray[np.float64] = (tokens.entropies >= np.quantile(tokens.entropies, 1 - share)).astype(np.float64)
    return kept


@over_minibatch(_high_entropy)
def top_entropy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    marks: Tensor,
    *,
    of: Callable[..., Any] = clip_loss,
    share: float = 0.2,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Learn from the tokens that the policy was unsure of (Wang et al., arXiv 2506.01939, as in TRL).

    L is the loss `of` at the `share` of a minibatch's tokens with the highest entropy, and 0 elsewhere. All tokens
    count in the divisor. Published: a share of 0.2, with DAPO's clip.
    """
    del share  # for `_high_entropy`
    loss, stats = _of_tokens(of, logprobs, old_logprobs, advantages, mask)
    return torch.where(marks > 0, loss, 0.0), stats | {"clip_fraction": stats["clip_fraction"] * (marks > 0)}


def _drawn_tokens(
    tokens: Tokens, rng: np.random.Generator, *, first: int = 64, share: float = 0.25, most: int = 256, **_: Any
) -> NDArray[np.float64]:
    """[M] the same weight for each token that is kept, with mean 1 over all, and 0 for the others."""
    _check_share(share)
    count = len(tokens.units)
    order = np.argsort(tokens.units, kind="stable")
    opens = np.diff(tokens.units[order], prepend=-1) != 0
    starts = np.flatnonzero(opens)[np.cumsum(opens) - 1]
    place = np.empty(count, dtype=np.int64)
    place[order] = np.arange(count) - starts
    kept = (place < first) | (rng.random(count) < share)
    so_far = np.cumsum(kept[order])
    kept[order] &= so_far - (so_far - kept[order])[starts] <= most
    weights: NDArray[np.float64] = kept * (count / max(kept.sum(), 1))
    return weights


@over_minibatch(_drawn_tokens)
def s_grpo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    marks: Tensor,
    *,
    of: Callable[..., Any] = clip_loss,
    first: int = 64,
    share: float = 0.25,
    most: int = 256,
    unit: str = "episode",
) -> tuple[Tensor, dict[str, Tensor]]:
    """S-GRPO (after the abstract of Lee and Tong, arXiv 2504.20834): learn from some of the tokens of an answer.

    The `first` tokens of each unit are kept, later ones with the probability `share`, at most `most` in all. L is the
    loss `of` at these tokens, and 0 elsewhere; its mean (token-mean) is over the tokens that are kept. Tokens are drawn
    anew for each optimiser step. The three numbers are choices of ours: the sources that we have do not give them.
    """
    del first, share, most, unit  # for `_drawn_tokens` and the learner
    loss, stats = _of_tokens(of, logprobs, old_logprobs, advantages, mask)
    return loss * marks, stats


def _scaled_entropies(tokens: Tokens, rng: np.random.Generator, **_: Any) -> NDArray[np.float64]:
    """[M] entropies with mean 0 and variance 1 (ddof 1); 0 if they are equal up to rounding."""
    del rng
    values = tokens.entropies
    if len(values) < 2 or np.ptp(values) <= np.finfo(np.float32).eps * np.abs(values).max():
        return np.zeros(len(values))
    scaled: NDArray[np.float64] = (values - values.mean()) / values.std(ddof=1)
    return scaled


@over_minibatch(_scaled_entropies)
def aepo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    marks: Tensor,
    *,
    eps_low: float = 0.2,
    eps_high: float = 0.28,
    dual_clip: float = 3.0,
    entropy_weight: float = 0.2,
    keep_gradient: str = "high",
) -> tuple[Tensor, dict[str, Tensor]]:
    """AEPO's loss (Dong et al., arXiv 2510.14545): PPO's clip, with more weight and gradient for unsure tokens.

        A' = A (1 + entropy_weight z),   z = (H - mean(H)) / std(H) over a minibatch,   H: the token's entropy
        L  = clip_loss with A';  at tokens of high entropy (z > 0) r / sg(r) (1 + eps_high) is its upper bound

    So these keep a gradient where the clip bounds the ratio from above, as the paper describes. In ARL-Arena's port the
    tokens with z <= 0 do: `keep_gradient="low"`. Source of the formula: that port, `compute_policy_loss_aepo`. Left
    out: the rollouts, which branch where the entropy is high.
    """
    if keep_gradient not in ENTROPIES:
        raise UnknownNameError("keep_gradient", keep_gradient, ENTROPIES)
    log_ratio = _log_ratio(logprobs, old_logprobs, mask).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    ratio = log_ratio.exp()
    weighted = advantages * (1 + entropy_weight * marks)
    keeps = marks > 0 if keep_gradient == "high" else marks <= 0
    highest = (1 + eps_high) * torch.where(keeps, ratio / ratio.detach(), 1.0)
    plain, clipped = -weighted * ratio, -weighted * torch.minimum(ratio.clamp(min=1 - eps_low), highest)
    loss = torch.maximum(plain, clipped)
    loss = torch.where(weighted < 0, torch.minimum(loss, -weighted * dual_clip), loss)
    return loss, {"clip_fraction": (clipped > plain).float(), "approx_kl": -log_ratio.detach()}


def luffy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    demonstrated: Tensor,
    *,
    eps_low: float = 0.2,
    eps_high: float = 0.2,
    shape: float | None = 0.1,
) -> tuple[Tensor, dict[str, Tensor]]:
    """LUFFY (Yan et al., arXiv 2504.14945): PPO's clip for the policy's own tokens, and no clip for an expert's.

        L = -A f(p) at `demonstrated` tokens,   f(p) = p / (p + shape), p the token's probability; None: f(p) = p

    f has a large gradient at small p, so the policy also learns what it would hardly have done. `demonstrated` [B, T]
    is true for tokens of demonstrations, whose `old_logprobs` are not read.
    """
    own = mask & ~demonstrated
    loss, stats = clip_loss(logprobs, old_logprobs, advantages, own, eps_low=eps_low, eps_high=eps_high, dual_clip=None)
    p = logprobs.masked_fill(~mask, 0.0).exp()
    shaped = p if shape is None else p / (p + shape)
    return torch.where(demonstrated, -advantages * shaped, loss), stats


def chord_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    demonstrated: Tensor,
    *,
    mu: float = 0.1,
    eps_low: float = 0.2,
    eps_high: float = 0.2,
    token_weight: bool = True,
) -> tuple[Tensor, dict[str, Tensor]]:
    """CHORD (arXiv 2508.11408, after a third party's description): PPO's clip beside the imitation of an expert.

        L = (1 - mu) clip_loss                  at the policy's own tokens
        L = -mu A p (1 - p) logprobs            at `demonstrated` ones, p: the token's probability, without a gradient

    The weight p (1 - p) is small where the policy already writes the token, and where it would hardly ever write it;
    without `token_weight` it is 1. A is 1 for demonstrations (`algorithms.estimators.chord`). In the paper mu falls
    during training; a loss does not know the number of the update, so here it is constant. See `luffy_loss` for
    `demonstrated`.
    """
    if not 0 <= mu <= 1:
        raise ValueError(f"algo.loss.mu must lie between 0 and 1, got {mu}")
    own = mask & ~demonstrated
    loss, stats = clip_loss(logprobs, old_logprobs, advantages, own, eps_low=eps_low, eps_high=eps_high, dual_clip=None)
    seen = logprobs.masked_fill(~mask, 0.0)
    p = seen.detach().exp()
    imitation = -advantages * seen * (p * (1 - p) if token_weight else 1.0)
    return torch.where(demonstrated, mu * imitation, (1 - mu) * loss), stats


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, *, clip: float | None = 0.5) -> Tensor:
    """The critic's loss per token, [B, T]: half the larger squared error, of the value or of the clipped value.

        L = max((V - return)², (clip(V, V_old - clip, V_old + clip) - return)²) / 2

    `clip` in units of value (None: off); published: 0.5 (verl), 0.2 (POAD).
    """
    error = (values - returns).square()
    if clip is not None:
        near = values.clamp(old_values - clip, old_values + clip)
        error = torch.maximum(error, (near - returns).square())
    return error / 2


def probability_mask(old_logprobs: Tensor, mask: Tensor, *, threshold: float = 0.9) -> Tensor:
    """SPO's `mask` (arXiv 2505.23564), [B, T]: leaves out tokens sampled with probability `threshold` or above."""
    return mask & (old_logprobs.detach() < math.log(threshold))


def kl_estimate(
    logprobs: Tensor, ref_logprobs: Tensor, estimator: str = "k3", old_logprobs: Tensor | None = None
) -> Tensor:
    """Estimate of KL(policy ‖ reference) per token, [B, T], in nats; d = logprobs - ref_logprobs.

    k1 = d, unbiased, can be negative; abs = |d|; k2 = d² / 2, whose gradient is the unbiased one; k3 = exp(-d) + d - 1,
    never negative, with -d clamped to ±20 and the result to ±10. "k1+", "abs+" and "k3+" have the value of their name
    and the gradient of k2. Source: J. Schulman, "Approximating KL divergence" (2020).

    "k3_ratio" is k3 times the token's ratio exp(logprobs - old_logprobs), as in DeepSeek-V3.2 and TRL. Its gradient is
    that of the KL of the present policy, also for tokens that another policy sampled. Without `old_logprobs` the ratio
    is 1 and still has its gradient.
    """
    if estimator not in KL_ESTIMATORS:
        raise UnknownNameError("KL estimator", estimator, KL_ESTIMATORS)
    if estimator == "k3_ratio":
        old = logprobs.detach() if old_logprobs is None else old_logprobs
        ratio = (logprobs - old).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
        return ratio * kl_estimate(logprobs, ref_logprobs, "k3")
    difference = logprobs - ref_logprobs
    k2 = difference.square() / 2
    if estimator.endswith("+"):
        return k2 + (kl_estimate(logprobs, ref_logprobs, estimator[:-1]) - k2).detach()
    if estimator == "k3":
        log_ratio = (-difference).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
        return (log_ratio.exp() - log_ratio - 1).clamp(-MAX_K3, MAX_K3)
    return {"k1": difference, "abs": difference.abs(), "k2": k2}[estimator]


def _log_ratio(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor) -> Tensor:
    """[B, T], 0 where `mask` is false, so that values there affect no sum and no gradient."""
    return (logprobs - old_logprobs).masked_fill(~mask, 0.0)


def aggregate(
    values: Tensor,
    mask: Tensor,
    aggregation: str = "token-mean",
    divisor: float | None = None,
    unit_tokens: Tensor | None = None,
) -> Tensor:
    """Reduce `values` [B, T] under `mask` [B, T] to one number.

    - "token-mean": the sum over all tokens / the number of tokens; long sequences weigh more
    - "seq-mean-token-sum": the sum over all tokens / the number of sequences
    - "seq-mean-token-mean": the sum over sequences of each one's mean / the number of sequences
    - "seq-mean-token-sum-norm" (Dr.GRPO): the sum over all tokens / `divisor`, a constant of the whole run
    - "turn-mean", "trajectory-mean": the sum over turns (trajectories) of each one's mean / their number, where
      `unit_tokens` [B, T] is the number of tokens of each token's turn (trajectory), over all sequences

    Sequences without any token in `mask` are not counted. For micro-batches, pass the `aggregation_divisor` of a whole
    batch as `divisor`: then the parts add up to the result for the whole batch.
    """
    if divisor is None:
        divisor = aggregation_divisor(mask, aggregation, unit_tokens)
    masked = values.masked_fill(~mask, 0.0)
    if aggregation == "seq-mean-token-mean":
        return (masked.sum(-1) / mask.sum(-1).clamp(min=1)).sum() / divisor
    if aggregation in UNIT_MEANS:
        return (masked / _unit_tokens(unit_tokens, mask)).sum() / divisor
    if aggregation in AGGREGATIONS:
        return masked.sum() / divisor
    raise UnknownNameError("aggregation", aggregation, AGGREGATIONS)


def aggregation_divisor(mask: Tensor, aggregation: str, unit_tokens: Tensor | None = None) -> float:
    """The divisor of `aggregate`: the number of tokens, sequences or units in `mask` [B, T]; 1 for an empty mask.

    If only a part of a unit is in `mask`, the unit counts as that fraction, so a minibatch that holds part of a unit
    gives a mean of the same size.

    Raises `ValueError` for "seq-mean-token-sum-norm": the caller must fix its divisor. A divisor taken from the batch,
    such as its padded length, would change a token's weight from batch to batch.
    """
    if aggregation == "token-mean":
        return float(mask.sum()) or 1.0
    if aggregation in ("seq-mean-token-sum", "seq-mean-token-mean"):
        return float(mask.any(-1).sum()) or 1.0
    if aggregation in UNIT_MEANS:
        return float((mask / _unit_tokens(unit_tokens, mask)).sum()) or 1.0
    if aggregation in AGGREGATIONS:
        raise ValueError(f"the aggregation {aggregation!r} needs a fixed divisor, for example the token limit")
    raise UnknownNameError("aggregation", aggregation, AGGREGATIONS)


def _unit_tokens(unit_tokens: Tensor | None, mask: Tensor) -> Tensor:
    """[B, T] as given, and 1 where `mask` is false."""
    if unit_tokens is None:
        raise ValueError("a mean over turns or trajectories needs unit_tokens, the number of tokens of each one")
    return unit_tokens.masked_fill(~mask, 1)


def entropy(logits: Tensor) -> Tensor:
    """Entropy [...] in nats of the distributions of `logits` [..., V], in float32; masked logits are -inf."""
    logprobs = logits.float().log_softmax(-1)
    return -(logprobs.exp() * logprobs.masked_fill(logprobs == -torch.inf, 0.0)).sum(-1)
