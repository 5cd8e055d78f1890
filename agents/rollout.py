"""Play episodes: many at once, each from its first observation to an ending that has a name.

What holds of every rollout (the tests go through this list):

 1. Each job is played exactly once, and the episodes come back in the order of the jobs.
 2. An episode ends exactly once, with a `StopReason`; no turn is played or generated after it.
 3. A turn's observation is what the agent saw before it acted; its reward is what its own action brought.
 4. The ids of a turn are those that were sampled. Nothing is encoded again.
 5. An environment that raises or hangs ends its own episode (`env_error`, `step_timeout`) and no other.
 6. The same jobs, agent and generator state give the same episodes, however many workers step the environments.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from agents.agent import Agent, View
from agents.episode import Episode, Turn
from envs.core import TURN_KEYS, StopReason, Task
from envs.pool import EnvPool, Outcome


@dataclass(frozen=True)
class Job:
    """One episode to play: attempt at `task` in comparison group `group`, with the environment's `seed`."""

    task: Task
    group: int = 0
    seed: int = 0


def rollout(
    agent: Agent,
    pool: EnvPool,
    jobs: Sequence[Job],
    *,
    max_turns: int | None = None,
    episode_timeout: float | None = None,
    policy_version: int = 0,
    on_episode: Callable[[Episode], None] | None = None,
) -> list[Episode]:
    """Play all jobs, as many at a time as the pool has slots; a slot that falls free takes the next job.

    `max_turns` may end episodes earlier than the environment does (`turn_limit`), `episode_timeout` (seconds) ends
    those that take too long (`episode_timeout`). `on_episode` is called with each episode as it ends.
    """
    seconds = float("inf") if episode_timeout is None else episode_timeout
    stage = _Stage(agent, pool, jobs, max_turns, seconds, policy_version, on_episode)
    stage.fill()
    while stage.running:
        stage.play_turn()
        stage.fill()
    return stage.episodes


@dataclass
class _Running:
    view: View
    deadline: float  # on the monotonic clock


class _Stage:
    """The episodes of one rollout: those that wait, those that run (by slot of the pool), those that have ended."""

    def __init__(
        self,
        agent: Agent,
        pool: EnvPool,
        jobs: Sequence[Job],
        max_turns: int | None,
        episode_timeout: float,
        policy_version: int,
        on_episode: Callable[[Episode], None] | None,
    ) -> None:
        self.agent, self.pool, self.jobs = agent, pool, jobs
        self.max_turns, self.episode_timeout, self.on_episode = max_turns, episode_timeout, on_episode
        self.episodes = [Episode(job.task, job.group, policy_version=policy_version, seed=job.seed) for job in jobs]
        self.waiting = iter(range(len(jobs)))
        self.running: dict[int, _Running] = {}

    def fill(self) -> None:
        """Give every free slot a job; again, where a reset failed and its slot fell free at once."""
        while starting := dict(zip((s for s in range(self.pool.size) if s not in self.running), self.waiting)):  # noqa: B905
            deadline = time.monotonic() + self.episode_timeout
            for slot, job in starting.items():
                self.running[slot] = _Running(View(job, self.episodes[job], "", {}), deadline)
            tasks = {slot: self.jobs[job].task for slot, job in starting.items()}
            seeds = {slot: self.jobs[job].seed for slot, job in starting.items()}
            for slot, outcome in self.pool.reset(tasks, seeds).items():
                self._see(slot, outcome)

    def play_turn(self) -> None:
        """Ask the agent for an action in every running episode, and play them."""
        views = {slot: playing.view for slot, playing in self.running.items()}
        actions: dict[int, str] = {}
        for (slot, view), decision in zip(views.items(), self.agent.act(list(views.values())), strict=True):
            if decision.status is None:
                self._end(slot, StopReason.CONTEXT_LIMIT)
                continue
            actions[slot] = decision.action
            view.episode.turns.append(
                Turn(
                    observation=view.observation,
                    action=decision.action,
                    reward=0.0,  # until the environment has answered
                    state_key=view.info["state_key"],
                    status=decision.status,
                    prompt_ids=decision.prompt_ids,
                    completion_ids=decision.completion_ids,
                    logprobs=decision.logprobs,
                )
            )
        for slot, outcome in self.pool.step(actions).items():
            turn = views[slot].episode.turns[-1]
            turn.reward = float(outcome.reward)
            for key, kind in TURN_KEYS.items():
                if key in outcome.info:
                    setattr(turn, key, kind(outcome.info[key]))
            self._see(slot, outcome)

    def _see(self, slot: int, outcome: Outcome) -> None:
        """Take in what the environment answered, and end the episode where it did."""
        if outcome.error is not None:
            self._end(slot, outcome.error.reason, outcome.error.text)
            return
        view, info = self.running[slot].view, outcome.info
        view.observation, view.info = outcome.observation, info
        episode = view.episode
        episode.goal, episode.score, episode.success = info["goal"], float(info["score"]), bool(info["success"])
        episode.answers = info["answers"]
        if outcome.terminated or outcome.truncated:
            self._end(slot, StopReason(info["stop_reason"]))
        elif self.max_turns is not None and len(episode.turns) >= self.max_turns:
            self._end(slot, StopReason.TURN_LIMIT)
        elif time.monotonic() > self.running[slot].deadline:
            self._end(slot, StopReason.EPISODE_TIMEOUT)

    def _end(self, slot: int, reason: StopReason, error: str = "") -> None:
        view = self.running.pop(slot).view
        episode = view.episode
        episode.stop_reason, episode.error, episode.final_observation = reason, error, view.observation
        self.agent.finish(view.key)
        if self.on_episode:
            self.on_episode(episode)
