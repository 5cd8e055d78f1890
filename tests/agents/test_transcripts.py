"""Whole episodes of ALFWorld: cached keys and values do not change what the policy plays."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

import pytest
import torch

from agents.agent import Agent, PolicyAgent
from agents.episode import Episode
from agents.policies.base import Completion, End, Request, Sampling
from agents.policies.local import LocalPolicy
from agents.policies.models import next_token_logits
from agents.policies.tiny import build_model, build_tokenizer, vocabulary_size
from agents.prompts import Transcript
from agents.rollout import Job, rollout
from agents.scripted import ExpertAgent
from envs.alfworld.tasks import ALFWorldTasks
from envs.pool import EnvPool

EPISODES, TURNS = 20, 8
pytestmark = pytest.mark.skipif(find_spec("alfworld") is None, reason="needs the extra alfworld, for its floor plans")


class ReadsAnew(LocalPolicy):
    """A policy without a cache: a forward pass over all ids for every token."""

    @torch.inference_mode()
    def generate(self, requests: Sequence[Request], sampling: Sampling, generator: torch.Generator) -> list[Completion]:
        return [self._continue(list(request.prompt_ids), sampling.max_tokens) for request in requests]

    def _continue(self, prompt: list[int], limit: int) -> Completion:
        ids: list[int] = []
        while len(ids) < limit and (not ids or ids[-1] not in self.stop_ids):
            ids.append(int(next_token_logits(self.model, torch.tensor([prompt + ids]))[0, -1].argmax()))
        return Completion(ids, [0.0] * len(ids), End.TOKEN if ids[-1] in self.stop_ids else End.LENGTH)


def test_greedy_episodes_are_identical() -> None:
    tasks = ALFWorldTasks(games="embedded", embedded_train=64, embedded_valid_seen=EPISODES, embedded_valid_unseen=8)
    jobs = [Job(tasks.task("valid_seen", i)) for i in tasks.manifest("valid_seen").ids]

    def play(agent: Agent) -> list[Episode]:
        with EnvPool(tasks.make, EPISODES) as pool:
            return rollout(agent, pool, jobs, max_turns=TURNS)

    def greedy(policy: LocalPolicy) -> list[Episode]:
        return play(PolicyAgent(policy, Transcript(), Sampling(0.0, 8), torch.Generator()))

    shown = play(ExpertAgent(tasks.expert))
    tokenizer = build_tokenizer(text for e in shown for turn in e.turns for text in (turn.observation, turn.action))
    model = build_model(vocabulary_size(tokenizer), width=64, layers=2, heads=4, feed_forward=96, context=2048, seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4)  # so that the prompt affects the completion
    kept, anew = greedy(LocalPolicy(model, tokenizer)), greedy(ReadsAnew(model, tokenizer))
    assert len({turn.action for episode in kept for turn in episode.turns}) > EPISODES  # they do differ
    assert sum(len(episode.turns) for episode in kept) == EPISODES * TURNS
    for a, b in zip(kept, anew, strict=True):
        assert [turn.completion_ids for turn in a.turns] == [turn.completion_ids for turn in b.turns]
        assert [turn.observation for turn in a.turns] == [turn.observation for turn in b.turns]
