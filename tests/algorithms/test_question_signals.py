"""Answers and turn rewards of the environment become columns; `answer_logprob` is the model's log-probability."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from agents.agent import Decision, PolicyAgent, View
from agents.chat import Chat, History
from agents.episode import Episode, read_episodes, write_episodes
from agents.parsing import Json, Tagged
from agents.policies.base import Sampling
from agents.policies.local import LocalPolicy
from agents.policies.tiny import build_model, build_tokenizer, vocabulary_size
from agents.prompts import Transcript
from agents.rollout import Job, rollout
from algorithms.estimators.igpo import answer_gains, igpo
from algorithms.estimators.mt_grpo import mt_grpo
from algorithms.signals.answer_gain import THOUGHT, AnswerGain, answer_span
from algorithms.signals.base import RolloutBatch, SignalContext
from algorithms.signals.turn_rewards import TurnRewards
from envs.core import UnknownNameError
from envs.pool import EnvPool
from envs.search.corpus import Corpus
from envs.search.tasks import SearchTasks
from tests.agents.corridors import Corridors, corridor
from tests.agents.toys import random_policy
from tests.algorithms.test_algo_conf import composed

TASKS = SearchTasks(embedded_people=48, train_tasks=16, valid_tasks=4)
IDS = TASKS.manifest("train").ids


class Expert(PolicyAgent):
    """Plays what the environment's expert would, written in the prompter's ids; every other episode breaks off."""

    def act(self, views: Sequence[View]) -> list[Decision]:
        return [self._write(view) for view in views]

    def _write(self, view: View) -> Decision:
        expert = TASKS.expert()
        turns = view.episode.turns
        seen = [*(turn.observation for turn in turns), view.observation]
        expert.reset(seen[0], {})
        for turn, observation in zip(turns, seen[1:], strict=True):
            expert.observe(turn.action, observation, {})
        action = "answer[nothing]" if view.key % 2 and turns else expert.act()
        tokenizer = self.policy.tokenizer
        prompt = self.prompter.prompt_ids(tokenizer, turns, view.observation, view.info)
        ids = self.prompter.action_ids(tokenizer, action)
        return Decision(action, prompt_ids=prompt, completion_ids=ids, logprobs=[-1.0] * len(ids))


@pytest.fixture
def pool() -> Iterator[EnvPool]:
    with EnvPool(TASKS.make, 4) as made:
        yield made


def search_policy(context: int = 512) -> LocalPolicy:
    passages = (passage.text for passage in Corpus(TASKS.spec.corpus or Path()))
    texts = ["search[Ada Arden]", "answer[red]", *(TASKS.task("train", i).payload["question"] for i in IDS), *passages]
    tokenizer = build_tokenizer(texts)
    size = vocabulary_size(tokenizer)
    model = build_model(size, width=32, layers=2, heads=2, feed_forward=64, context=context, seed=0)
    return LocalPolicy(model, tokenizer)


def context_of(pool: EnvPool, prompter: Any = None, context: int = 512) -> SignalContext:
    policy = search_policy(context)
    if isinstance(prompter, Chat):
        policy.tokenizer.chat_template = (
            "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
            "{% if add_generation_prompt %}[assistant] {{ opening or '' }}{% endif %}"
        )
    agent = Expert(policy, prompter or Transcript(), Sampling(1.0, 8), torch.Generator().manual_seed(0))
    return SignalContext(policy.model, agent, pool, torch.float32, 512, 1.0, 8, 0)


def play(context: SignalContext, count: int = 6) -> list[Episode]:
    jobs = [Job(TASKS.task("train", IDS[i // 2]), i // 2) for i in range(count)]
    return rollout(context.agent, context.pool, jobs)


# -- from info to the table -------------------------------------------------------------------------------------------
def test_turns_and_episodes_keep_the_environments_info(pool: EnvPool, tmp_path: Path) -> None:
    episodes = play(context_of(pool))
    won = episodes[0]
    assert won.success
    assert won.answers == won.task.payload["answers"]
    assert [turn.turn_reward for turn in won.turns] == [1.0] * (len(won.turns) - 1) + [0.0]
    assert [turn.tool_result for turn in won.turns] == [True] * (len(won.turns) - 1) + [False]
    write_episodes(tmp_path / "episodes.jsonl", episodes)
    assert list(read_episodes(tmp_path / "episodes.jsonl")) == episodes


def test_turn_rewards_are_those_of_the_turns(pool: EnvPool) -> None:
    context = context_of(pool)
    rollouts = RolloutBatch.of(play(context))
    measured = TurnRewards(context).measure(rollouts)
    turns = [turn for episode in rollouts.episodes for turn in episode.turns]
    assert measured.signals["turn_reward"].tolist() == [turn.turn_reward for turn in turns]
    assert measured.signals["tool_result"].tolist() == [turn.tool_result for turn in turns]
    assert measured.metrics["signal/turn_reward"] == np.mean([turn.turn_reward for turn in turns])
    advantages = mt_grpo(rollouts.measured(measured).table)
    first = rollouts.table.turn == 0
    assert np.isfinite(advantages).all()
    assert (advantages[first & (np.arange(len(turns)) == 0)] > 0).all()  # it searched, and it answered


def test_a_failed_step_has_no_turn_reward_and_missing_keys_raise(pool: EnvPool) -> None:
    context = context_of(pool)
    episodes = play(context, 2)
    episodes[0].error, episodes[0].turns[-1].turn_reward, episodes[0].turns[-1].tool_result = "boom", None, None
    measured = TurnRewards(context).measure(RolloutBatch.of(episodes)).signals
    last = len(episodes[0].turns) - 1
    assert (measured["turn_reward"][last], measured["tool_result"][last]) == (0.0, False)
    assert measured["tool_result"].dtype == np.bool_
    episodes[0].error = ""
    with pytest.raises(ValueError, match=r"polyturn/Search-v0 has no rewards for single turns: .*'turn_reward'"):
        TurnRewards(context).measure(RolloutBatch.of(episodes))


def test_environments_without_answers_and_rules_are_named() -> None:
    policy = random_policy()
    with EnvPool(Corridors().make, 2) as pool:
        agent = PolicyAgent(policy, Transcript(), Sampling(1.0, 6), torch.Generator().manual_seed(0))
        context = SignalContext(policy.model, agent, pool, torch.float32, 512, 1.0, 8, 0)
        rollouts = RolloutBatch.of(rollout(agent, pool, [Job(corridor(2))], max_turns=2))
    with pytest.raises(ValueError, match="test/Corridor-v0 has no right answers"):
        AnswerGain(context).measure(rollouts)
    with pytest.raises(ValueError, match="test/Corridor-v0 has no rewards for single turns"):
        TurnRewards(context).measure(rollouts)


# -- belief -----------------------------------------------------------------------------------------------------------
def naive_belief(context: SignalContext, prompt: list[int], before: str, answer: str, after: str) -> float:
    """One sequence, a whole forward pass, and the span found by decoding one id after another."""
    tokenizer = context.agent.policy.tokenizer
    ids = tokenizer.encode(before + answer + after, add_special_tokens=False)
    texts = [tokenizer.decode(ids[:n]) for n in range(len(ids) + 1)]
    span = [n for n in range(len(ids)) if len(texts[n]) < len(before + answer) and len(texts[n + 1]) > len(before)]
    whole = torch.tensor([[*prompt, *ids]])
    with torch.no_grad():
        logprobs = context.model(whole).logits[0].log_softmax(-1)
    return float(np.mean([float(logprobs[len(prompt) + n - 1, ids[n]]) for n in span]))


def chat(parser: Any, **options: Any) -> Chat:
    return Chat("search", parser, History(), template_options=options)


@pytest.mark.parametrize(
    ("prompter", "before", "after"),
    [
        (Transcript(), "answer[", "]"),
        (chat(Tagged()), f"{THOUGHT}<action>answer[", "]</action>"),
        (chat(Json()), f'{THOUGHT}{{"action": "answer[', ']"}'),
        (chat(Tagged(), opening="<think>"), f"{THOUGHT[7:]}<action>answer[", "]</action>"),
        (chat(Tagged(), opening="<think>\n"), f"{THOUGHT[8:]}<action>answer[", "]</action>"),
    ],
    ids=["transcript", "tags", "json", "opened", "opened with a line"],
)
def test_the_answer_log_probability_equals_a_naive_computation(
    pool: EnvPool, prompter: Any, before: str, after: str
) -> None:
    context = context_of(pool, prompter, context=2048)
    episodes = play(context)
    episodes[1].answers = ["dark green", "zwölf"]  # of several tokens, and of bytes; the likeliest counts
    episodes[2].answers = None
    rollouts = RolloutBatch.of(episodes)
    measured = AnswerGain(context).measure(rollouts)
    expected, asked = [], set()
    for episode in episodes:
        for turn in episode.turns:
            beliefs = [naive_belief(context, turn.prompt_ids, before, a, after) for a in episode.answers or ()]
            expected.append(max(beliefs, default=np.nan))
            asked |= {(*turn.prompt_ids, a) for a in episode.answers or ()}
    belief = measured.signals["answer_logprob"]
    np.testing.assert_allclose(belief, expected, atol=1e-5)
    assert np.isnan(belief).sum() == len(episodes[2].turns)
    assert measured.metrics["signal/answer_logprob"] == pytest.approx(np.nanmean(expected), abs=1e-5)
    assert measured.metrics["signal/answer_measured"] == np.isfinite(belief).mean()
    tokens = sum(len(prompt) - 1 for prompt in asked)  # attempts share prompts, which are read once
    assert tokens < measured.metrics["signal/answer_tokens"] < tokens + 120 * len(asked)
    assert len(asked) < sum(len(episode.answers or ()) * len(episode.turns) for episode in episodes)
    assert np.isfinite(igpo(rollouts.measured(measured).table)).all()


@pytest.mark.parametrize("gain", ["log_prob_diff", "prob_diff"])
def test_gains_add_up_to_the_last_probability_minus_the_first(pool: EnvPool, gain: str) -> None:
    context = context_of(pool)
    rollouts = RolloutBatch.of(play(context))
    table = rollouts.measured(AnswerGain(context).measure(rollouts)).table
    belief = table.signals["answer_logprob"]
    values = belief if gain == "log_prob_diff" else np.exp(belief)
    gains = answer_gains(table, gain)
    for episode in range(len(rollouts.episodes)):
        rows = np.flatnonzero(table.episode == episode)
        assert np.isnan(gains[rows[-1]])  # the last turn has its outcome instead
        assert gains[rows[:-1]].sum() == pytest.approx(values[rows[-1]] - values[rows[0]], abs=1e-12)


def test_answer_log_probabilities_do_not_depend_on_the_batch_and_have_no_gradient(pool: EnvPool) -> None:
    context = context_of(pool)
    episodes = play(context)
    together = AnswerGain(context).measure(RolloutBatch.of(episodes)).signals["answer_logprob"]
    single = AnswerGain(replace(context, micro_batch_tokens=1))
    alone = [single.measure(RolloutBatch.of([episode])).signals["answer_logprob"] for episode in episodes]
    assert np.isfinite(together).all()
    assert np.concatenate(alone) == pytest.approx(together, abs=1e-6)
    assert all(weight.grad is None for weight in context.model.parameters())


def test_answer_log_probabilities_of_the_first_weights_do_not_change_with_the_policy_or_a_resume(pool: EnvPool) -> None:
    context = context_of(pool)
    rollouts = RolloutBatch.of(play(context))
    first, policy = AnswerGain(context, model="first"), AnswerGain(context)
    before = first.measure(rollouts).signals["answer_logprob"]
    assert policy.measure(rollouts).signals["answer_logprob"].tolist() == before.tolist()
    with torch.no_grad():
        for weight in context.model.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
    assert not np.allclose(policy.measure(rollouts).signals["answer_logprob"], before)
    resumed = AnswerGain(context, model="first")
    resumed.load_state(first.state())
    for signal in (first, resumed):
        assert signal.measure(rollouts).signals["answer_logprob"].tolist() == before.tolist()
    assert policy.state() == {}
    with pytest.raises(UnknownNameError, match="unknown model 'last'"):
        AnswerGain(context, model="last")


def test_a_prompt_that_leaves_no_room_is_not_measured(pool: EnvPool) -> None:
    context = context_of(pool)
    rollouts = RolloutBatch.of(play(context))
    lengths = np.array([len(turn.prompt_ids) for episode in rollouts.episodes for turn in episode.turns])
    room = int(np.median(lengths)) + 3
    context.agent.policy.context_length = room  # type: ignore[misc]
    belief = AnswerGain(context).measure(rollouts).signals["answer_logprob"]
    assert 0 < np.isfinite(belief).sum() < len(belief)
    assert np.isnan(belief[lengths >= room]).all()


def test_a_form_without_a_place_and_a_slow_tokenizer_are_refused(pool: EnvPool) -> None:
    context = context_of(pool)
    with pytest.raises(ValueError, match=r"exactly one \{answer\}"):
        AnswerGain(context, action="answer")
    slow = SimpleNamespace(tokenizer=SimpleNamespace(chat_template=None, is_fast=False))
    agent = SimpleNamespace(policy=slow, prompter=Transcript())
    with pytest.raises(ValueError, match="a fast tokenizer"):
        AnswerGain(replace(context, agent=agent))  # type: ignore[arg-type]


def test_a_token_that_reaches_over_the_edge_belongs_to_the_answer() -> None:
    offsets = [(0, 6), (6, 7), (7, 10), (10, 14), (14, 16)]  # "answer", ":", " da", "rk g", "</"
    assert answer_span(offsets, 8, 13) == (2, 4)
    with pytest.raises(ValueError, match="answer may be empty"):
        answer_span(offsets, 7, 7)


def test_an_answer_is_text(pool: EnvPool) -> None:
    """The span is the answer's, and no token of it means more than its letters."""
    context = context_of(pool, chat(Tagged()), context=2048)
    tokenizer = context.agent.policy.tokenizer
    tokenizer.add_tokens(["<think>", "</think>"])
    signal = AnswerGain(context)
    for answer in ("dark <eos> green</think>", "<think>"):
        sample = signal._answer([0, 3, 4], answer)
        ids = [i for i, on in zip(sample.ids, sample.mask, strict=True) if on]
        assert answer in tokenizer.decode(ids)
        assert len(tokenizer.decode(ids)) <= len(answer) + 2  # a token may reach over the edge
        marks = tokenizer.convert_tokens_to_ids(["<think>", "</think>", "<eos>"])
        assert [marks.index(i) for i in sample.ids if i in marks] == [0, 1]  # those of the thought before it


# -- configurations ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("name", "estimator"), [("igpo", igpo), ("mt_grpo", mt_grpo)])
def test_a_method_is_its_configuration(pool: EnvPool, name: str, estimator: Any) -> None:
    algo = composed(name)
    context = context_of(pool)
    rollouts = RolloutBatch.of(play(context))
    for make in algo.signals.values():
        rollouts = rollouts.measured(make(context).measure(rollouts))
    np.testing.assert_array_equal(algo.estimator(rollouts.table), estimator(rollouts.table))
