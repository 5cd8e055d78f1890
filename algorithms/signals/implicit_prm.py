"""The implicit process reward model: a language model whose log-ratio to a reference is a reward, and its losses.

    q_t = log pi_phi(token t) - log pi_ref(token t),   the reward of a token beta · q_t, of a turn beta · sum of q_t

Nobody labels turns: pi_phi learns from outcomes alone, by pairs of attempts (`pairwise_loss`, iStar, arXiv 2509.19199)
or each attempt by itself (`outcome_loss`, PRIME, arXiv 2502.01456), and what it has learnt falls apart into its tokens.
iStar's reference is the policy that sampled, PRIME's a fixed model; beta is 0.05 in both. The answers are those of
iStar's `dp_rm.py` and `rm_utils.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid


def turn_rewards(logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor, beta: float = 0.05) -> Tensor:
    """[N] the reward of each turn from log-probabilities of its T tokens; all arguments are [N, T], `mask` of bools."""
    return beta * (logprobs - ref_logprobs).masked_fill(~mask, 0.0).sum(-1)


def pairwise_loss(rewards: Tensor, episode: Tensor, group: Tensor, success: Tensor) -> Tensor:
    """-log sigmoid(Q⁺ - Q⁻), the mean over all pairs of a success and a failure at the same task; 0 without any pair.

    `rewards`, `episode`, `group` and `success` are [N], one per turn; Q is the mean of an episode's `rewards`. (The
    paper has the sum, and the docstring of the authors' code pairs one to one.)
    """
    names, inverse, count = torch.unique(episode, return_inverse=True, return_counts=True)
    q = rewards.new_zeros(len(names)).index_add(0, inverse, rewards) / count
    # Every turn of an episode says the same about it, so any of them may.
    groups = group.new_zeros(len(names)).index_copy(0, inverse, group)
    won = torch.zeros_like(names, dtype=torch.bool).index_copy(0, inverse, success.bool())
    pairs = (groups[:, None] == groups[None, :]) & won[:, None] & ~won[None, :]
    if not pairs.any():
        return rewards.sum() * 0.0
    return -logsigmoid((q[:, None] - q[None, :])[pairs]).mean()


def outcome_loss(rewards: Tensor, success: Tensor) -> Tensor:
    """PRIME's cross-entropy of sigmoid(reward) against success, the mean over sequences; both [N]."""
    return binary_cross_entropy_with_logits(rewards, success.to(rewards.dtype))
