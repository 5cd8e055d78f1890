"""Play many episodes at once, each from its first observation to a named ending.

An episode may also start in the middle of another one: `rollout(…, keep_starts=True)` keeps the state before each turn,
and `Job(task, start=episode.turns[3].start)` continues from there, after the same three turns.

The rules of every rollout (the tests check this list):

 1. Each job is played exactly once, and the episodes come back in the order of the jobs.
 2. An episode ends exactly once, with a `StopReason`; no turn is played or generated after it.
 3. A turn's observation is what the agent saw before it acted; its reward is the sum of the rewards of its own actions,
    which is one, unless the agent's decision says otherwise.
  4. The ids of a turn are the sampled ids. Nothing is encoded again.
  5. An environment that raises or hangs ends its own episode (`env_error`, `step_timeout`) and no other. If it ends the
     process that other environments share, these continue where they were (`envs.pool`). An episode that cannot
     continue is restarted, at most `MOST_TRIES` times in all.
  6. The same jobs, agent and generator state give the same episodes, whatever the number of workers.
  7. An episode that starts in the middle of another one has the turns before that point (the same objects), and the
     environment is in the state of that point. Turn limits count these turns; `episode_timeout` starts at zero.
  8. `episode_timeout` counts the seconds of the episode's own environment. The time of the policy and of other
     environments does not count.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain

from agents.agent import Agent, View
from agents.episode import Episode, Start, Turn
from envs.checks import clean_text
from envs.core import MissingDataError, NoDataError, StopReason, Task
from envs.pool import EnvFailure, EnvPool, Outcome
from envs.pool_env import error_line, place_of
from envs.services import ServiceError

MOST_TRIES = 3  # of an episode whose environment was lost when another one ended their process

_LACKING = tuple(f"{kind.__module__}.{kind.__qualname__}: " for kind in (MissingDataError, ServiceError))
_NOT_IMPORTED = ("ImportError: ", "ModuleNotFoundError: ")


@dataclass(frozen=True)
class Job:
    """One episode to play: an attempt at `task` in comparison group `group`, with the environment's `seed`.

    With a `start` it begins there. This works for agents that identify an episode by its turns, as policies do. Agents
    that remember an episode by its key (endpoints, experts) have not seen its beginning.
    """

    task: Task
    group: int = 0
    seed: int = 0
    start: Start | None = None


def rollout(
    agent: Agent,
    pool: EnvPool,
    jobs: Sequence[Job],
    *,
    max_turns: int | None = None,
    episode_timeout: float | None = None,
    policy_version: int = 0,
    keep_starts: bool = False,
    on_episode: Callable[[Episode], None] | None = None,
) -> list[Episode]:
    """Play all jobs, as many at a time as the pool has slots; a free slot takes the next job.

    `max_turns` may end episodes earlier than the environment does (`turn_limit`). `episode_timeout` ends episodes whose
    environment takes more seconds in all (`episode_timeout`). `keep_starts` stores in each turn the state before it. It
    needs an environment with snapshots, otherwise episodes end with `env_error`. `on_episode` is called with each
    episode when it ends.
    """
    seconds = float("inf") if episode_timeout is None else episode_timeout
    stage = _Stage(agent, pool, jobs, max_turns, seconds, policy_version, keep_starts, on_episode)
    stage.fill()
    while stage.running:
        stage.play_turn()
        stage.fill()
    return stage.episodes


def lacks_data(episode: Episode) -> bool:
    """Whether the episode ended because a file or a package is missing, or a service did not answer.

    The error of a missing package says how to install it.
    """
    line = error_line(episode.error)
    return line.startswith(_LACKING) or (line.startswith(_NOT_IMPORTED) and "pip install" in line)


class BrokenEnvironmentError(RuntimeError):
    """The environment raised in most episodes, so their results say nothing about the agent."""


def check_environment(episodes: Sequence[Episode]) -> None:
    """Raises `BrokenEnvironmentError` with the first error if errors ended more than half of the episodes.

    Raises `NoDataError` instead if more than half of them lacked data, see `lacks_data`.
    """
    check_data(episodes)
    errors = [episode.error for episode in episodes if episode.stop_reason is StopReason.ENV_ERROR]
    if 2 * len(errors) > len(episodes):
        raise BrokenEnvironmentError(
            f"errors of the environment ended {len(errors)} of {len(episodes)} episodes; the first was: "
            f"{error_line(errors[0])}{place_of(errors[0])}; python -m scripts.check examines an environment"
        )


def check_data(episodes: Sequence[Episode]) -> None:
    """Raises `NoDataError` with the first reason if more than half of the episodes lacked data, see `lacks_data`."""
    missing = [episode for episode in episodes if lacks_data(episode)]
    if 2 * len(missing) > len(episodes):
        first = error_line(missing[0].error).partition(": ")[2]
        raise NoDataError(
            f"missing files, packages or services ended {len(missing)} of {len(episodes)} episodes; "
            f"the first was: {first}"
        )


def _added(before: float | None, more: float | None) -> float | None:
    return more if before is None else before if more is None else before + more


@dataclass
class _Running:
    view: View
    seconds: float = 0.0  # spent in the environment


class _Stage:
    """The episodes of one rollout: waiting, running (by slot of the pool), and ended."""

    def __init__(
        self,
        agent: Agent,
        pool: EnvPool,
        jobs: Sequence[Job],
        max_turns: int | None,
        episode_timeout: float,
        policy_version: int,
        keep_starts: bool,
        on_episode: Callable[[Episode], None] | None,
    ) -> None:
        self.agent, self.pool, self.jobs = agent, pool, jobs
        self.max_turns, self.episode_timeout = max_turns, episode_timeout
        self.keep_starts, self.on_episode = keep_starts, on_episode
        self.policy_version = policy_version
        self.episodes = [self._episode(job) for job in jobs]
        self.waiting: Iterator[int] = iter(range(len(jobs)))
        self.tries: Counter[int] = Counter()  # of each job
        self.running: dict[int, _Running] = {}

    def _episode(self, job: Job) -> Episode:
        turns = list(job.start.turns) if job.start else []
        return Episode(job.task, job.group, turns, policy_version=self.policy_version, seed=job.seed)

    def fill(self) -> None:
        """Give every free slot a job. Repeat if a job failed at once, which frees its slot."""
        while starting := dict(zip((s for s in range(self.pool.size) if s not in self.running), self.waiting)):  # noqa: B905
            for slot, job in starting.items():
                self.tries[job] += 1
                self.running[slot] = _Running(View(job, self.episodes[job], "", {}))
            for slot, outcome in self._start({slot: self.jobs[job] for slot, job in starting.items()}).items():
                self._see(slot, outcome)

    def _start(self, jobs: dict[int, Job]) -> dict[int, Outcome]:
        """Reset the slots of jobs that start at the beginning, and restore the others."""
        starts = {slot: job.start for slot, job in jobs.items() if job.start is not None}
        fresh = {slot: job for slot, job in jobs.items() if slot not in starts}
        tasks = {slot: job.task for slot, job in fresh.items()}
        outcomes = self.pool.reset(tasks, {slot: job.seed for slot, job in fresh.items()})
        for slot, outcome in self.pool.restore({slot: start.snapshot for slot, start in starts.items()}).items():
            outcomes[slot] = replace(outcome, observation=starts[slot].observation, info=starts[slot].info)
        return outcomes

    def play_turn(self) -> None:
        """Ask the agent for an action in every running episode, and play them."""
        starts = self._take_starts() if self.keep_starts else {}
        views = {slot: playing.view for slot, playing in self.running.items()}
        actions: dict[int, tuple[str, ...]] = {}
        for (slot, view), decision in zip(views.items(), self.agent.act(list(views.values())), strict=True):
            if decision.status is None:
                self._end(slot, decision.stop_reason, decision.error)
                continue
            action = clean_text(decision.action)
            actions[slot] = (action,) if decision.actions is None else tuple(map(clean_text, decision.actions))
            view.episode.turns.append(
                Turn(
                    observation=view.observation,
                    action=action,
                    reward=0.0,  # set when the environment has answered
                    state_key=view.info["state_key"],
                    status=decision.status,
                    prompt_ids=decision.prompt_ids,
                    completion_ids=decision.completion_ids,
                    logprobs=decision.logprobs,
                    choice=decision.choice,
                    nodes=decision.nodes,
                    start=starts.get(slot),
                )
            )
        self._play(actions)

    def _play(self, actions: dict[int, tuple[str, ...]]) -> None:
        """Play the actions of each slot's turn, one after the other until its episode ends."""
        for place in range(max(map(len, actions.values()), default=0)):
            now = {slot: turn[place] for slot, turn in actions.items() if place < len(turn) and slot in self.running}
            for slot, outcome in self.pool.step(now).items():
                turn = self.running[slot].view.episode.turns[-1]
                turn.reward += outcome.reward
                turn.turn_reward = _added(turn.turn_reward, outcome.info.get("turn_reward"))
                turn.tool_result = outcome.info.get("tool_result")
                self._see(slot, outcome, more=place + 1 < len(actions[slot]))
        for slot in [slot for slot, turn in actions.items() if not turn]:
            self._check_limits(slot)

    def _take_starts(self) -> dict[int, Start]:
        """The current states of the running episodes; an episode ends if its environment cannot give one."""
        starts = {}
        for slot, outcome in self.pool.snapshot(list(self.running)).items():
            if outcome.error is not None:
                self._fail(slot, outcome.error)
                continue
            self.running[slot].seconds += outcome.seconds
            view = self.running[slot].view
            starts[slot] = Start(tuple(view.episode.turns), view.observation, view.info, outcome.snapshot)
        return starts

    def _see(self, slot: int, outcome: Outcome, more: bool = False) -> None:
        """Store what the environment returned, and end the episode if it is over.

        With `more`, other actions of the turn follow, and limits wait for the last one.
        """
        if outcome.error is not None:
            self._fail(slot, outcome.error)
            return
        self.running[slot].seconds += outcome.seconds
        view, info = self.running[slot].view, outcome.info
        view.observation, view.info = outcome.observation, info
        episode = view.episode
        episode.goal, episode.score, episode.success = info["goal"], info["score"], info["success"]
        episode.answers = info["answers"]
        if outcome.terminated or outcome.truncated:
            self._end(slot, StopReason(info["stop_reason"]))
        elif not more:
            self._check_limits(slot)

    def _check_limits(self, slot: int) -> None:
        playing = self.running[slot]
        if self.max_turns is not None and len(playing.view.episode.turns) >= self.max_turns:
            self._end(slot, StopReason.TURN_LIMIT)
        elif playing.seconds > self.episode_timeout:
            self._end(slot, StopReason.EPISODE_TIMEOUT)

    def _fail(self, slot: int, error: EnvFailure) -> None:
        """End the episode with the error, or restart it if another environment caused the error."""
        key = self.running[slot].view.key
        if not error.lost or self.tries[key] >= MOST_TRIES:
            self._end(slot, error.reason, error.text)
            return
        del self.running[slot]
        self.agent.finish(key)
        self.episodes[key] = self._episode(self.jobs[key])
        self.waiting = chain([key], self.waiting)

    def _end(self, slot: int, reason: StopReason, error: str = "") -> None:
        view = self.running.pop(slot).view
        episode = view.episode
        episode.stop_reason, episode.error, episode.final_observation = reason, error, view.observation
        episode.final_info = view.info
        self.agent.finish(view.key)
        if self.on_episode:
            self.on_episode(episode)
