"""Three updates of a learner, and of the signals that learn, for every kind of batch.

    torchrun --standalone --nproc-per-node 2 -m tests.algorithms.rank_cases OUT    # by two ranks, both kinds
    from tests.algorithms.rank_cases import CASES, run                             # in this process

The file OUT gets the results of all cases: {"replicas": {case: result}, "shards": …}.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache, partial
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from agents.agent import PolicyAgent
from agents.candidates import CandidateAgent
from agents.masking import MaskedAgent
from agents.policies.base import Sampling
from agents.policies.lora import Lora, add_adapters, merged_weights
from agents.policies.pretrained import weights_to_save
from agents.policies.sharded import whole_state
from agents.prompts import Transcript
from agents.rollout import Job, rollout
from algorithms.correction import Correction
from algorithms.estimators.gae import turn_gae
from algorithms.learner import Learner, TokenStats
from algorithms.losses import clip_cov_loss, gspo_loss
from algorithms.parallel import Parallel, Replicas, Shards
from algorithms.replay import Replay
from algorithms.signals.base import RolloutBatch, SignalContext
from algorithms.signals.critic import Critic
from algorithms.signals.entropy import Entropy
from algorithms.signals.implicit_prm import ImplicitPRM
from algorithms.signals.residual import Residual
from envs.pool import EnvPool
from tests.agents.corridors import Corridors, corridor
from tests.agents.toys import random_policy
from tests.algorithms.test_trainer import learner_config

UPDATES = 3
Result = dict[str, Any]


@cache
def played(player: type[PolicyAgent] = PolicyAgent) -> RolloutBatch:
    """13 episodes of four turns at most, of several lengths and groups."""
    agent = player(random_policy(), Transcript(), Sampling(1.0, 6), torch.Generator().manual_seed(0))
    with EnvPool(Corridors().make, 13) as pool:
        episodes = rollout(agent, pool, [Job(corridor(2 + n % 3), n // 3) for n in range(13)], max_turns=4)
    for number, episode in enumerate(episodes):
        episode.success = number % 2 == 0
    return RolloutBatch.of(episodes)


def learned(
    parallel: Parallel, player: type[PolicyAgent] = PolicyAgent, lora: bool = False, tied: bool = True, **changes: Any
) -> Result:
    """The weights, the metrics and the record after the updates."""
    policy, batch = random_policy(), played(player)
    if not tied:
        policy.model.lm_head.weight = torch.nn.Parameter(policy.model.lm_head.weight.detach().clone())
        policy.model.config.tie_word_embeddings = False
    if lora:
        add_adapters(policy.model, Lora(rank=2), "corridor")
    learner = Learner(policy.model, learner_config(**{"micro_batch_tokens": 300, **changes}), parallel)
    advantages = np.random.default_rng(0).normal(size=len(batch.table))
    rng, metrics, token_stats = np.random.default_rng(1), {}, TokenStats()
    for update in range(UPDATES):
        kept = token_stats if update == UPDATES - 1 else None
        learns = learner.update(batch.samples, batch.table, advantages, rng, 2e-3, token_stats=kept)
        metrics |= {f"{update}/{name}": value for name, value in learns.items()}
    if learner.objective.kl_coef:
        metrics["kl"] = float(learner.reference_kl(batch.samples).sum())
    return {
        "weights": whole_state(policy.model),
        "saved": weights_to_save(policy.model),
        "merged": dict(merged_weights(policy.model)),
        "optimizer": learner.optimizer_state(),
        "metrics": metrics,
        "record": {name: torch.from_numpy(c) for name, c in token_stats.columns(batch.samples, None, parallel).items()},
        "tied": policy.model.lm_head.weight is policy.model.get_input_embeddings().weight,
    }


def signalled(parallel: Parallel, make: Callable[[SignalContext], Any], **changes: Any) -> Result:
    """A signal measures and learns three times, while the policy learns too."""
    policy, batch = random_policy(), played()
    agent = PolicyAgent(policy, Transcript(), Sampling(1.0, 6), torch.Generator().manual_seed(0))
    pool: Any = None
    context = SignalContext(policy.model, agent, pool, torch.float32, 300, 1.0, 4, 0, parallel)
    signal = make(context)
    learner = Learner(policy.model, learner_config(micro_batch_tokens=300, **changes), parallel)
    rng, metrics, columns = np.random.default_rng(1), {}, {}
    for update in range(UPDATES):
        measured = signal.measure(batch)
        table = batch.measured(measured).table
        columns = {name: torch.from_numpy(c) for name, c in measured.token_signals.items()}
        estimate = turn_gae(table) if "next_value" in measured.signals else np.ones(len(table))
        learner.update(batch.samples, batch.table, np.ones(len(batch.table)), rng, 2e-3)
        learns = signal.learn(batch.measured(measured), estimate)
        metrics |= {f"{update}/{name}": value for name, value in (measured.metrics | learns).items()}
    state = signal.state()
    return {"weights": whole_state(policy.model), "signal": state, "columns": columns, "metrics": metrics}


def replayed(parallel: Parallel) -> Result:
    """The weights and the buffer after updates that replay, and whose old log-probabilities the ranks compute."""
    policy, batch = random_policy(), played(MaskedAgent)
    config = learner_config(micro_batch_tokens=300, correction=Correction(high=2.0))
    learner, replay = Learner(policy.model, config, parallel), Replay(threshold=0, size=1000, warmup_updates=2)
    rng, metrics = np.random.default_rng(1), {}
    for update in range(UPDATES):
        advantages = np.random.default_rng(update).normal(size=len(batch.table))
        corrected = learner.correct(batch.samples, batch.table)
        examples = learner.examples(batch.samples, batch.table, advantages, corrected)
        old, counts = replay.exchange(update, batch.table, examples)
        learns = learner.update(batch.samples, batch.table, advantages, rng, 2e-3, corrected, replayed=old)
        metrics |= {f"{update}/{name}": value for name, value in (learns | counts).items()}
    return {"weights": whole_state(policy.model), "replay": replay.state(), "metrics": metrics}


def in_bfloat16(parallel: Parallel) -> Result:
    """Computed in bfloat16, also on a CPU that only emulates it."""
    with patch("torch.cpu._is_avx512_bf16_supported", lambda: True):
        return learned(parallel, precision="bfloat16")


CASES: dict[str, Callable[[Parallel], Result]] = {
    "plain": learned,
    "one pass, so that a rank has none": partial(learned, micro_batch_tokens=100_000),
    "a pass for each sample": partial(learned, micro_batch_tokens=1),
    "checkpointing": partial(learned, gradient_checkpointing=True),
    "reference": partial(learned, kl_coef=0.1),
    "entropy": partial(learned, entropy_coef=0.01),
    "adapters": partial(learned, lora=True, kl_coef=0.1),
    "untied embeddings": partial(learned, tied=False),
    "candidates": partial(learned, player=CandidateAgent),
    "masks": partial(learned, player=MaskedAgent, entropy_coef=0.01),
    "correction": partial(learned, correction=Correction(high=2.0)),
    "two epochs": partial(learned, epochs=2),
    "ratios of episodes": partial(learned, loss=partial(gspo_loss, eps_low=0.2, eps_high=0.2), player=MaskedAgent),
    "ids that a minibatch picks": partial(learned, loss=partial(clip_cov_loss, share=0.1)),
    "replay": replayed,
    "critic": partial(signalled, make=partial(Critic, learning_rate=1e-3, minibatches=2)),
    "critic on the policy": partial(signalled, make=partial(Critic, body="policy", learning_rate=1e-3)),
    "process reward": partial(signalled, make=partial(ImplicitPRM, learning_rate=1e-3)),
    "process reward, fixed reference": partial(
        signalled, make=partial(ImplicitPRM, loss="outcome", reference="first", update="before", learning_rate=1e-3)
    ),
    "entropy signal": partial(signalled, make=Entropy),
    "states of successes": partial(signalled, make=partial(Residual, rank=2)),
}


def main(out: str) -> None:
    kinds = {"replicas": Replicas(8, 60.0), "shards": Shards(8, 60.0), "one shard": Shards(8, 60.0, size=1)}
    kinds["offload"] = Shards(8, 60.0, offload=True)
    with kinds["replicas"].running():
        for kind in list(kinds.values())[1:]:
            kind._group, kind._live = kinds["replicas"]._group, kinds["replicas"]._live
        some = ("plain", "adapters", "critic")
        results = {
            name: {case: run(parallel) for case, run in CASES.items() if name in ("replicas", "shards") or case in some}
            for name, parallel in kinds.items()
        }
        for name in ("replicas", "shards"):
            results[name]["bfloat16"] = in_bfloat16(kinds[name])
        if kinds["replicas"].is_first:
            torch.save(results, out)


if __name__ == "__main__":
    main(sys.argv[1])
