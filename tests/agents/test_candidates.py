"""Choosing among admissible actions: probabilities equal those of the formula, computed in one pass."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agents.agent import Decision, View
from agents.candidates import CandidateAgent, candidate_logprobs
from agents.episode import Episode, read_episodes, write_episodes
from agents.policies import local
from agents.policies.base import Sampling
from agents.policies.local import LocalPolicy
from agents.policies.vllm import Engine
from agents.prompts import Transcript
from agents.rollout import Job, rollout
from agents.samples import build_samples
from envs.core import Info, Task, UnknownNameError
from envs.pool import EnvPool
from tests.agents.corridors import ACTIONS, Corridors, corridor
from tests.agents.toys import random_policy

LENGTHS = {"word": [2, 2, 3, 6], "token": None, "sum": [1, 1, 1, 1]}
FOUR = [*ACTIONS, "open door 1 and go left"]


def agent(policy: LocalPolicy | None = None, temperature: float = 1.0, **options: Any) -> CandidateAgent:
    generator = torch.Generator().manual_seed(0)
    return CandidateAgent(policy or random_policy(), Transcript(), Sampling(temperature), generator, **options)


def view(admissible: list[str] | None, key: int = 0, seen: str = "You are in room 2.") -> View:
    info: Info = {"admissible": admissible, "goal": "", "state_key": seen}
    return View(key, Episode(Task("t", "test/Env-v0"), 0), seen, info)


def expected(policy: LocalPolicy, decision: Decision, actions: list[str], normalization: str) -> torch.Tensor:
    """[K] log-probabilities in the order of `actions`, each scored in a pass of its own."""
    ids = [Transcript().action_ids(policy.tokenizer, action) for action in actions]
    sums = [policy.score([decision.prompt_ids + these])[0][-len(these) :].sum() for these in ids]
    lengths = LENGTHS[normalization] or [len(these) for these in ids]
    divisors = torch.tensor(lengths[: len(actions)])
    return candidate_logprobs(torch.stack(sums), divisors, torch.ones(len(actions), dtype=torch.bool))


@pytest.mark.parametrize("normalization", LENGTHS)
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_the_log_probability_is_that_of_the_formula(normalization: str, temperature: float) -> None:
    player = agent(temperature=temperature, normalization=normalization)
    views = [view(FOUR), view(ACTIONS[:2], 1, "Nothing happens."), view(["go left"], 2)]
    decisions = player.act(views)
    for one, decision in zip(views, decisions, strict=True):
        actions = one.info["admissible"]
        exact = (expected(player.policy, decision, actions, normalization) / temperature).log_softmax(-1)
        assert decision.logprobs == pytest.approx([exact[actions.index(decision.action)].item()], abs=1e-5)
        assert decision.choice is not None
        assert decision.completion_ids == decision.choice.ids[0]
        assert decision.completion_ids == Transcript().action_ids(player.policy.tokenizer, decision.action)
        assert len(decision.choice.ids) == len(decision.choice.lengths) == len(actions)
        assert sorted(decision.choice.lengths) == sorted(
            (LENGTHS[normalization] or [len(ids) for ids in decision.choice.ids])[: len(actions)]
        )


def test_actions_are_drawn_as_likely_as_they_are() -> None:
    policy, n = random_policy(), 500
    policy.model.get_output_embeddings().weight.data.mul_(20)  # a distribution that is far from flat
    decisions = agent(policy).act([view(FOUR, key) for key in range(n)])
    shares = np.array([sum(d.action == action for d in decisions) for action in FOUR]) / n
    exact = expected(policy, decisions[0], FOUR, "word").exp().numpy()
    assert exact.max() > 0.4
    np.testing.assert_allclose(shares, exact, atol=4.5 * np.sqrt(0.25 / n))
    greedy = agent(policy, temperature=0.0).act([view(FOUR)])[0]
    assert greedy.action == FOUR[exact.argmax()]
    assert greedy.logprobs == pytest.approx([np.log(exact.max())], abs=1e-5)


def test_prompts_that_share_a_pass_and_those_that_do_not_are_scored_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, rng = random_policy(), np.random.default_rng(0)
    prompts = [rng.integers(3, 200, n).tolist() for n in (40, 3, 17, 1)]
    candidates = [[rng.integers(3, 200, n).tolist() for n in rng.integers(1, 9, k)] for k in (5, 1, 3, 7)]
    whole = policy.score_candidates(prompts, candidates)
    one_by_one = Engine.score_candidates(policy, prompts, candidates)  # type: ignore[arg-type] # by `score` alone
    monkeypatch.setattr(local, "MOST_PREFILL", 50)
    monkeypatch.setattr(local, "MOST_LOGITS", 1000)
    parts = policy.score_candidates(prompts, candidates)
    for a, b, c in zip(whole, one_by_one, parts, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-5)
        torch.testing.assert_close(a, c, atol=1e-4, rtol=1e-5)


def test_an_unknown_normalization_raises() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'word'"):
        agent(normalization="words")


def test_an_episode_ends_where_a_candidate_does_not_fit() -> None:
    short, long = agent(random_policy(context=16)).act([view(ACTIONS), view(["go right", "go left " * 9], 1)])
    assert (short.status, long.status) == ("ok", None)
    assert agent(random_policy(context=8)).act([view(ACTIONS, seen="You are in room 2. " * 5)])[0].status is None


def test_every_turn_is_a_sample_of_its_own_and_the_first_candidate_was_chosen(tmp_path: Path) -> None:
    with EnvPool(Corridors().make, 4) as pool:
        episodes = rollout(agent(), pool, [Job(corridor(length), length) for length in (2, 3, 4)])
    turns = [turn for episode in episodes for turn in episode.turns]
    samples = build_samples(episodes)
    assert len(samples) == len(turns) > 3
    for row, (turn, sample) in enumerate(zip(turns, samples, strict=True)):
        assert turn.status == "ok"
        assert turn.choice is not None
        at = len(turn.prompt_ids)
        assert sample.ids[: at + len(turn.completion_ids)] == turn.prompt_ids + turn.completion_ids
        assert len(sample.ids) == at + sum(map(len, turn.choice.ids))
        assert [i for i, on in enumerate(sample.mask) if on] == [at]
        assert (sample.logprobs[at], sample.turn[at]) == (turn.logprobs[0], row)
    write_episodes(tmp_path / "episodes.jsonl", episodes)
    assert list(read_episodes(tmp_path / "episodes.jsonl")) == episodes


def test_the_same_generator_chooses_the_same() -> None:
    def actions() -> list[list[str]]:
        with EnvPool(Corridors().make, 2) as pool:
            episodes = rollout(agent(), pool, [Job(corridor(3), 0) for _ in range(4)])
        return [[turn.action for turn in episode.turns] for episode in episodes]

    assert actions() == actions()


def test_a_candidate_with_the_text_of_a_control_token_is_text() -> None:
    player = agent()
    tokenizer = player.policy.tokenizer
    (decision,) = player.act([view(["take <eos> note", "read <act> note"])])
    assert decision.choice is not None
    for ids in decision.choice.ids:
        assert [i for i in ids if i in tokenizer.all_special_ids] == [tokenizer.eos_token_id]
    assert {tokenizer.decode(ids) for ids in decision.choice.ids} == {"take <eos> note<eos>", "read <act> note<eos>"}


def test_too_many_candidates_end_the_episode() -> None:
    """They are read side by side: all of them together have at most as many ids as the context."""
    playing = agent(random_policy(context=64))
    few, many, endless = playing.act([view(ACTIONS), view(ACTIONS * 8, 1), view(ACTIONS * 100_000, 2)])
    assert few.status is not None
    assert many.status is None
    assert endless.status is None
