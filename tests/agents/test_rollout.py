"""The rules at the top of agents/rollout.py, checked with scripted agents on a real pool."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

import envs.pool_env
from agents.agent import Decision, PolicyAgent, View
from agents.candidates import CandidateAgent
from agents.episode import Episode, ParseStatus, read_episodes, write_episodes
from agents.masking import MaskedAgent
from agents.policies.base import Sampling
from agents.prompts import Transcript
from agents.rollout import Job, rollout
from agents.scripted import ExpertAgent, RandomAgent
from envs.core import StopReason, TextEnv
from envs.pool import EnvPool
from tests.agents.corridors import Corridor, CorridorExpert, Corridors, corridor
from tests.agents.toys import random_policy

JOBS = [Job(corridor(length), group=length, seed=length) for length in (2, 4, 3, 2, 4)]


def play(agent, jobs: Sequence[Job] = JOBS, size: int = 2, workers: int = 0, timeout: float = 30.0, **options):
    with EnvPool(Corridors().make, size, workers, timeout) as pool:
        return rollout(agent, pool, jobs, **options)


def test_every_job_is_played_once_and_in_order() -> None:
    ended: list[Episode] = []
    episodes = play(ExpertAgent(CorridorExpert), on_episode=ended.append)
    assert [e.task for e in episodes] == [job.task for job in JOBS]
    assert [(e.group, e.seed) for e in episodes] == [(job.group, job.seed) for job in JOBS]
    assert [len(e.turns) for e in episodes] == [2, 4, 3, 2, 4]
    assert len(ended) == len(JOBS)
    assert {id(e) for e in ended} == {id(e) for e in episodes}
    assert all(e.stop_reason is StopReason.SUCCESS and e.success and e.score == 1.0 for e in episodes)


def test_a_turn_has_the_observation_before_and_the_reward_after_its_action() -> None:
    (episode,) = play(ExpertAgent(CorridorExpert), [Job(corridor(3))])
    assert [t.observation for t in episode.turns] == [
        "You are in room 1 of 3. Open the door 1.", "You are in room 2.", "You are in room 3.",
    ]  # fmt: skip
    assert [t.action for t in episode.turns] == ["go right", "go right", "open door 1"]
    assert [t.reward for t in episode.turns] == [0.0, 0.0, 1.0]
    assert episode.final_observation == "The door 1 is open."
    assert episode.goal == "open the door"


class Stubborn:
    """Always plays the same action, and counts how often it was asked for each episode."""

    def __init__(self, action: str) -> None:
        self.action, self.asked, self.finished = action, {}, []

    def act(self, views: Sequence[View]) -> list[Decision]:
        for view in views:
            self.asked[view.key] = self.asked.get(view.key, 0) + 1
        return [Decision(self.action, ParseStatus.ILLEGAL) for _ in views]

    def finish(self, key: int) -> None:
        self.finished.append(key)


@pytest.mark.parametrize(("max_turns", "turns"), [(None, 8), (5, 5), (20, 8)])
def test_the_turn_limit_is_the_lower_of_both(max_turns, turns) -> None:
    agent = Stubborn("dance")
    episodes = play(agent, max_turns=max_turns)
    assert all(e.stop_reason is StopReason.TURN_LIMIT and len(e.turns) == turns for e in episodes)
    assert agent.asked == dict.fromkeys(range(5), turns)  # the agent is not called for an episode that has ended
    assert sorted(agent.finished) == [0, 1, 2, 3, 4]


def test_a_fault_ends_its_own_episode_only() -> None:
    jobs = [
        Job(corridor(2)),
        Job(corridor(2, fault="reset")),
        Job(corridor(3)),
        Job(corridor(2, fault="step")),
        JOBS[1],
    ]
    jobs.append(Job(corridor(2, fault="hang")))
    episodes = play(ExpertAgent(CorridorExpert), jobs, timeout=0.5)
    assert [e.stop_reason for e in episodes] == [
        StopReason.SUCCESS, StopReason.ENV_ERROR, StopReason.SUCCESS, StopReason.ENV_ERROR, StopReason.SUCCESS,
        StopReason.STEP_TIMEOUT,
    ]  # fmt: skip
    assert "the corridor is closed today" in episodes[1].error
    assert "the floor gave way" in episodes[3].error
    assert (len(episodes[1].turns), len(episodes[3].turns)) == (0, 1)


def test_a_rollout_ends_if_all_resets_fail() -> None:
    episodes = play(ExpertAgent(CorridorExpert), [Job(corridor(2, fault="reset"))] * 5)
    assert [e.stop_reason for e in episodes] == [StopReason.ENV_ERROR] * 5


def test_an_episode_that_takes_too_long_is_ended() -> None:
    (episode,) = play(Stubborn("dance"), [Job(corridor(2))], episode_timeout=0.0)
    assert episode.stop_reason is StopReason.EPISODE_TIMEOUT


class Walker:
    """Plays the solution from the current position."""

    def act(self, views: Sequence[View]) -> list[Decision]:
        return [Decision("open door 1" if view.observation == self.last_room(view) else "go right") for view in views]

    def last_room(self, view: View) -> str:
        return f"You are in room {view.episode.task.payload['length']}."

    def finish(self, key: int) -> None: ...


class Clock:
    """A fake clock for the pool: tests advance it."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


class Slow(Corridor):
    """Takes as many seconds for each call as its payload says."""

    clock: Clock

    def _take(self, call: str) -> None:
        self.clock.now += self.payload.get(call, 0)

    def _begin(self, task, seed):
        begun = super()._begin(task, seed)
        self._take("reset")
        return begun

    def _act(self, action):
        self._take("step")
        return super()._act(action)

    def _save(self):
        self._take("snapshot")
        return super()._save()

    def _load(self, saved):
        super()._load(saved)
        self._take("restore")


class SlowWalker(Walker):
    """A walker that is slow."""

    def act(self, views: Sequence[View]) -> list[Decision]:
        Slow.clock.now += 1000
        return super().act(views)


@pytest.fixture
def slow_pool(monkeypatch: pytest.MonkeyPatch) -> Iterator[EnvPool]:
    Slow.clock = Clock()
    monkeypatch.setattr(envs.pool_env, "time", Slow.clock)
    with EnvPool(lambda: Slow(8), 4, step_timeout=500) as pool:
        yield pool


def test_an_episodes_clock_counts_the_time_of_its_own_environment(slow_pool: EnvPool) -> None:
    """Not that of the policy, and not that of the environments beside it, which are played one after the other."""
    slow = [{"step": 50}, {"reset": 90, "step": 20}, {"step": 30, "snapshot": 40}, {"step": 29}]
    jobs = [Job(corridor(4, **seconds)) for seconds in [*slow, {}, {}]]
    episodes = rollout(SlowWalker(), slow_pool, jobs, episode_timeout=120, keep_starts=True)
    late = StopReason.EPISODE_TIMEOUT
    assert [(e.stop_reason, len(e.turns)) for e in episodes] == [(late, 3), (late, 2), (late, 2)] + [
        (StopReason.SUCCESS, 4)
    ] * 3


def test_the_clock_of_an_episode_that_begins_in_the_middle_begins_there(slow_pool: EnvPool) -> None:
    (whole,) = rollout(Walker(), slow_pool, [Job(corridor(4, step=50, restore=30))], keep_starts=True)
    jobs = [Job(whole.task, start=whole.turns[at].start) for at in (1, 2)]
    late, early = rollout(SlowWalker(), slow_pool, jobs, episode_timeout=120)
    assert (late.stop_reason, len(late.turns)) == (StopReason.EPISODE_TIMEOUT, 3)
    assert (early.stop_reason, len(early.turns)) == (StopReason.SUCCESS, 4)


def test_a_prompt_that_no_longer_fits_is_a_context_limit() -> None:
    policy = random_policy(context=40)
    agent = PolicyAgent(policy, Transcript(), Sampling(1.0, 4), torch.Generator().manual_seed(0))
    (episode,) = play(agent, [Job(corridor(4))])
    assert episode.stop_reason is StopReason.CONTEXT_LIMIT
    assert 0 < len(episode.turns) < 8


def policy_agent(seed: int = 0) -> PolicyAgent:
    return PolicyAgent(random_policy(), Transcript(), Sampling(1.0, 4), torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("make_agent", [policy_agent, RandomAgent])
def test_workers_change_nothing_and_a_seed_fixes_everything(make_agent) -> None:
    once, again, pooled = play(make_agent()), play(make_agent()), play(make_agent(), workers=2)
    assert once == again == pooled
    assert play(make_agent(seed=1)) != once


def test_the_ids_of_a_turn_are_those_that_were_sampled() -> None:
    agent = policy_agent()
    for episode in play(agent):
        for before, after in zip(episode.turns, episode.turns[1:], strict=False):
            start = [*before.prompt_ids, *before.completion_ids]
            assert after.prompt_ids[: len(start)] == start
        for turn in episode.turns:
            exact = agent.policy.score([turn.prompt_ids + turn.completion_ids])[0][-len(turn.completion_ids) :]
            np.testing.assert_allclose(turn.logprobs, exact, atol=1e-5)


def begin_in_the_middle(workers: int) -> list[Episode]:
    """Five episodes, and then two from the third turn of each."""
    with EnvPool(Corridors().make, 2, workers) as pool:
        whole = rollout(policy_agent(), pool, JOBS, keep_starts=True)
        jobs = [Job(e.task, e.group, e.seed, e.turns[2].start) for e in whole * 2]
        return whole + rollout(policy_agent(1), pool, jobs, keep_starts=True)


def test_an_episode_may_begin_in_the_middle_of_another() -> None:
    with EnvPool(Corridors().make, 2) as pool:
        (whole,) = rollout(Walker(), pool, [Job(corridor(4), 7)], keep_starts=True)
        for at, turn in enumerate(whole.turns):
            assert turn.start is not None
            assert turn.start.turns == tuple(whole.turns[:at])
            (again,) = rollout(Walker(), pool, [Job(whole.task, 7, start=turn.start)])
            assert again == whole
            assert all(a is b for a, b in zip(again.turns[:at], whole.turns, strict=False))
            assert all(a is not b for a, b in zip(again.turns[at:], whole.turns[at:], strict=True))


def test_a_branch_is_sampled_anew_and_its_limits_count_the_shared_turns() -> None:
    episodes = begin_in_the_middle(0)
    whole, branches = episodes[: len(JOBS)], episodes[len(JOBS) :]
    for branch, parent in zip(branches, whole * 2, strict=True):
        assert [id(turn) for turn in branch.turns[:2]] == [id(turn) for turn in parent.turns[:2]]
        assert branch.turns[2].prompt_ids == parent.turns[2].prompt_ids
        assert branch.stop_reason is StopReason.TURN_LIMIT
        assert len(branch.turns) == 8
    assert branches[:5] != whole
    assert branches[:5] != branches[5:]
    with EnvPool(Corridors().make, 2) as pool:
        jobs = [Job(parent.task, start=parent.turns[2].start) for parent in whole]
        assert {len(e.turns) for e in rollout(policy_agent(), pool, jobs, max_turns=5)} == {5}


def test_workers_change_no_episode_that_begins_in_the_middle() -> None:
    assert begin_in_the_middle(0) == begin_in_the_middle(2)


class Unsaved(Corridor):
    def _save(self):
        return TextEnv._save(self)


def test_keeping_starts_without_snapshots_names_the_environment() -> None:
    with EnvPool(lambda: Unsaved(8), 2) as pool:
        episodes = rollout(Walker(), pool, JOBS, keep_starts=True)
        assert all(e.stop_reason is StopReason.ENV_ERROR and not e.turns for e in episodes)
        assert all("Unsaved cannot take snapshots" in e.error for e in episodes)
        assert all(e.success for e in rollout(Walker(), pool, JOBS))  # no snapshot is requested


def test_start_states_are_not_written_to_files(tmp_path: Path) -> None:
    episodes = begin_in_the_middle(0)
    write_episodes(tmp_path / "episodes.jsonl", episodes)
    first = json.loads((tmp_path / "episodes.jsonl").read_text().splitlines()[0])
    assert "start" not in first["turns"][0]
    read = list(read_episodes(tmp_path / "episodes.jsonl"))
    assert read == episodes
    assert all(turn.start is None for episode in read for turn in episode.turns)
    assert all(turn.start is not None for episode in episodes for turn in episode.turns)


@pytest.mark.parametrize("admissible", [None, []])
def test_a_state_without_admissible_actions_ends_its_own_episode(admissible: list[str] | None) -> None:
    class Silent(Corridor):
        def _extra(self, **more):
            return super()._extra(**more) | ({"admissible": admissible} if self.payload["length"] == 3 else {})

    policy = random_policy()
    agents = [RandomAgent(), *(
        make(policy, Transcript(), Sampling(1.0, 12), torch.Generator().manual_seed(0))
        for make in (CandidateAgent, MaskedAgent)
    )]  # fmt: skip
    for agent in agents:
        with EnvPool(lambda: Silent(8), 3) as pool:
            first, silent, last = rollout(agent, pool, [Job(corridor(2)), Job(corridor(3)), Job(corridor(2))])
        assert (silent.stop_reason, silent.turns) == (StopReason.ENV_ERROR, [])
        assert "needs info['admissible'], and test/Corridor-v0 gives none in this state" in silent.error
        assert not first.error
        assert not last.error


def test_the_random_agent_fills_slots_with_words_of_the_goal() -> None:
    class Asked(Corridor):
        def _extra(self, **more):
            return {**super()._extra(**more), "goal": "a red lamp", "admissible": ["ask[<a question>]"]}

    with EnvPool(lambda: Asked(8), 4) as pool:
        episodes = rollout(RandomAgent(), pool, [Job(corridor(2), i, i) for i in range(20)], max_turns=1)
    actions = [episode.turns[0].action for episode in episodes]
    assert all(action.startswith("ask[") and set(action[4:-1].split()) <= {"a", "red", "lamp"} for action in actions)
    assert len(set(actions)) > 5
