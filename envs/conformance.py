"""The contract of `envs.core` as checks, for polyturn's environments and for any other.

In a test file, write one of these:

    class TestMyEnv(TextEnvConformance):            class TestMyTasks(TaskSetConformance):
        def make_env(self): return MyEnv()              def make_task_set(self): return MyTasks()
        def tasks(self): return [Task("a", "My-v0")]

to get one test per rule. `check_text_env` and `check_task_set` are the same as functions. A broken rule raises
`ConformanceError` with its number and name.

Rules for environments. They are played with seeded random actions from `info["admissible"]` (or some English if there
is none), and once by the expert if there is one:

 1. observations_are_text: `reset` and `step` return strings in `observation_space`.
 2. info_is_complete: every one of `INFO_KEYS` is present, with its type.
 3. rewards_are_finite: every reward converts to a finite float.
 4. score_is_in_range: the score is in [0, 1].
 5. success_ends_the_episode: a success terminates, with the score 1 and the stop reason `success`.
 6. endings_have_reasons: terminated means `success` or `failure`, truncated means `turn_limit`; other turns have no
    reason, and no turn is both.
 7. turn_limit_is_exact: an episode that nothing else ends is truncated at turn `max_turns` (if it is known).
 8. no_step_outside_episodes: `step` before the first reset or after an end raises `EpisodeOverError`.
 9. replay_is_equal: the same task, seed and actions give the same transcript in another instance.
10. reset_starts_afresh: the transcript is also equal in an instance that was in the middle of another episode.
11. instances_are_independent: the transcript is also equal in instances that are stepped alternately.
12. global_randomness_is_left_alone: the transcript is also equal with other seeds in `random` and `numpy.random`, whose
    state does not change.
13. any_text_is_an_action: empty, huge (1 MB), Unicode and control characters never raise.
14. info_is_the_callers: later steps do not change a returned info, and changing it does not change later steps.
15. results_can_be_sent: observations and infos can be pickled, so workers can send them.
16. snapshots_restore: a restored episode continues identically, twice and in a new instance. `NotImplementedError` is
    accepted, and so is an environment without these methods.
17. close_may_be_repeated: `close` works twice, in the middle of an episode, and before any.

Rules for task sets:

18. splits_are_disjoint: there is at least one split, and no task id is in two of them.
19. ids_are_sorted_and_unique: … in every manifest, and no manifest is empty.
20. manifests_are_stable: a second instance has equal manifests.
21. tasks_are_data: `task` returns the named task, equal in a second instance and after pickling.
22. unknown_names_raise: a split or a task that does not exist raises `UnknownNameError`.
"""

from __future__ import annotations

import copy
import math
import pickle
import random
import string
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import gymnasium as gym
import numpy as np

from envs.core import INFO_KEYS, TURN_KEYS, EpisodeOverError, Expert, Info, StopReason, Task, TaskSet, UnknownNameError

Env: TypeAlias = gym.Env[str, str]

# Actions for environments that do not list theirs. No environment needs to understand them.
PLAIN_ACTIONS = ("look", "inventory", "go north", "open door", "yes", "1")
ODD_ACTIONS = {
    "empty": "",
    "blank": " \n\t ",
    "a million characters": "take mug " * 111_112,
    "Unicode": "取る 🧪 ẞ \u202e \u0301 \ufeff \U0010ffff",
    "control characters": "".join(chr(c) for c in range(32)) + "\x7f\x1b[31m",
    "all of ASCII's punctuation": string.punctuation,
}
TURNS = 12  # length of episodes in rules where the length does not matter
TASKS_PER_SPLIT = 2  # tasks of each split that `check_task_set` plays: the first and the last


class ConformanceError(AssertionError):
    """A rule of the contract is broken: its name, its number in the module's list, and what was found."""

    def __init__(self, rule: str, message: str) -> None:
        self.rule, self.found = rule, message
        self.number = 1 + [*ENV_RULES, *TASK_SET_RULES].index(rule)
        super().__init__(f"rule {self.number}, {rule}: {message}")


@dataclass(frozen=True)
class Subject:
    """The environments that the rules are checked on."""

    make: Callable[[], Env]
    tasks: Sequence[Task]
    max_turns: int | None = None  # None: rule 7 is not checked
    expert: Callable[[], Expert | None] = lambda: None


def check_text_env(
    make: Callable[[], Env],
    tasks: Sequence[Task],
    *,
    max_turns: int | None = None,
    expert: Callable[[], Expert | None] = lambda: None,
) -> None:
    """Check rules 1 to 17 on environments from `make`, playing each of `tasks`. Raises `ConformanceError`."""
    subject = Subject(make, tasks, max_turns, expert)
    for rule in ENV_RULES:
        check_env_rule(rule, subject)


def check_task_set(make: Callable[[], TaskSet]) -> None:
    """Check all rules on task sets from `make` and the environments they make. Raises `ConformanceError`."""
    for rule in TASK_SET_RULES:
        check_task_set_rule(rule, make)
    subject = subject_of(make())
    for rule in ENV_RULES:
        check_env_rule(rule, subject)


def check_env_rule(rule: str, subject: Subject) -> None:
    """Check one rule of `ENV_RULES`."""
    if not subject.tasks:
        raise ValueError("there is no task to check the environment with")
    _run(rule, ENV_RULES[rule], subject)


def check_task_set_rule(rule: str, make: Callable[[], TaskSet]) -> None:
    """Check one rule of `TASK_SET_RULES`."""
    _run(rule, TASK_SET_RULES[rule], make)


def subject_of(task_set: TaskSet) -> Subject:
    """The environments of a task set, with the first and the last task of every split."""
    tasks = []
    for split in task_set.splits:
        ids = task_set.manifest(split).ids
        tasks += [task_set.task(split, task_id) for task_id in sorted({ids[0], ids[-1]})]
    return Subject(task_set.make, tasks, task_set.max_turns, task_set.expert)


class TextEnvConformance:
    """A pytest class to inherit from: one test for each rule for environments."""

    def make_env(self) -> Env:
        """A new instance of the environment."""
        raise NotImplementedError

    def tasks(self) -> Sequence[Task]:
        """The tasks to play."""
        raise NotImplementedError

    def subject(self) -> Subject:
        """The subject of the checks; override it to add a turn limit or an expert."""
        return Subject(self.make_env, self.tasks())


class TaskSetConformance(TextEnvConformance):
    """A pytest class to inherit from: one test for each rule for task sets and for the environments they make."""

    def make_task_set(self) -> TaskSet:
        """A new instance of the task set."""
        raise NotImplementedError

    def subject(self) -> Subject:
        return subject_of(self.make_task_set())


# -- playing ----------------------------------------------------------------------------------------------------------
class _Event(NamedTuple):
    """The outcome of a reset (with action None) or of a step."""

    action: str | None
    observation: str
    reward: Any
    terminated: bool
    truncated: bool
    info: Info

    @property
    def over(self) -> bool:
        return self.terminated or self.truncated


def _start(env: Env, task: Task) -> _Event:
    observation, info = env.reset(seed=task.seed, options={"task": task})
    return _Event(None, observation, 0.0, False, False, info)


def _step(env: Env, action: str) -> _Event:
    return _Event(action, *env.step(action))


def _play(env: Env, task: Task, turns: int = TURNS, salt: int = 0) -> list[_Event]:
    """Random admissible actions. Infos are copied, so an aliased info breaks only its own rule."""
    rng = random.Random(f"{task.id} {salt}")
    events = [_copied(_start(env, task))]
    while not events[-1].over and len(events) <= turns:
        events.append(_copied(_step(env, rng.choice(events[-1].info.get("admissible") or PLAIN_ACTIONS))))
    return events


def _play_expert(env: Env, task: Task, turns: int, expert: Expert) -> list[_Event]:
    events = [_start(env, task)]
    expert.reset(events[-1].observation, events[-1].info)
    while not events[-1].over and len(events) <= turns:
        events.append(_step(env, expert.act()))
        expert.observe(events[-1].action or "", events[-1].observation, events[-1].info)
    return events


def _replay(env: Env, task: Task, events: Sequence[_Event]) -> list[_Event]:
    return [_copied(_start(env, task)), *_steps(env, events[1:])]


def _steps(env: Env, events: Sequence[_Event]) -> list[_Event]:
    """The same actions again, until the episode ends."""
    got: list[_Event] = []
    for event in events:
        got.append(_copied(_step(env, event.action or "")))
        if got[-1].over:
            break
    return got


def _copied(event: _Event) -> _Event:
    return event._replace(info=copy.deepcopy(event.info))


def _episodes(subject: Subject) -> Iterator[tuple[Env, list[_Event]]]:
    """Whole episodes, if they end: of every task with random actions, and of the first task by the expert."""
    turns = 1 + (subject.max_turns or 100)
    for task in subject.tasks:
        with closing(subject.make()) as env:
            yield env, _play(env, task, turns)
    if expert := subject.expert():
        with closing(subject.make()) as env:
            yield env, _play_expert(env, subject.tasks[0], turns, expert)


def _events(subject: Subject) -> Iterator[_Event]:
    for _, events in _episodes(subject):
        yield from events


# -- comparisons ------------------------------------------------------------------------------------------------------
class _BreachError(Exception):
    """A broken rule; `_run` adds the rule's name."""


def _demand(holds: bool, otherwise: str) -> None:
    if not holds:
        raise _BreachError(otherwise)


def _demand_raises(kind: type[Exception], call: Callable[[], Any], what: str) -> None:
    try:
        call()
    except kind:
        return
    raise _BreachError(f"{what} raised nothing, expected {kind.__name__}")


def _demand_equal(expected: Sequence[_Event], got: Sequence[_Event], where: str) -> None:
    for turn, (a, b) in enumerate(zip(expected, got, strict=False)):  # an earlier end shows up in its last event
        for name in ("observation", "reward", "terminated", "truncated"):
            old, new = getattr(a, name), getattr(b, name)
            _demand(old == new, f"{where}, {name} of turn {turn} is {new!r:.200}, not {old!r:.200} as before")
        for key in (*INFO_KEYS, *TURN_KEYS):
            old, new = a.info.get(key), b.info.get(key)
            _demand(old == new, f"{where}, info[{key!r}] of turn {turn} is {new!r:.200}, not {old!r:.200} as before")


def _run(rule: str, check: Callable[[Any], None], subject: Any) -> None:
    try:
        check(subject)
    except _BreachError as breach:
        raise ConformanceError(rule, str(breach)) from breach.__cause__
    except Exception as error:
        raise ConformanceError(rule, f"raised {error!r}") from error


# -- the rules for environments ---------------------------------------------------------------------------------------
def _observations_are_text(subject: Subject) -> None:
    for env, events in _episodes(subject):
        for event in events:
            text = event.observation
            _demand(isinstance(text, str), f"after {event.action!r} came {type(text).__name__}, expected str")
            _demand(env.observation_space.contains(text), f"{text!r:.200} is not in {env.observation_space}")


def _info_is_complete(subject: Subject) -> None:
    for event in _events(subject):
        missing = [key for key in INFO_KEYS if key not in event.info]
        _demand(not missing, f"info after {event.action!r} lacks {missing}")
        for key, (expected, fits) in _INFO_TYPES.items():
            value = event.info[key]
            _demand(fits(value), f"info[{key!r}] after {event.action!r} is {value!r:.200}, expected {expected}")


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_texts(value: Any) -> bool:
    return value is None or (isinstance(value, list) and all(isinstance(item, str) for item in value))


_INFO_TYPES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "goal": ("a str", _is_text),
    "admissible": ("a list of str, or None", _is_texts),
    "score": ("a float", lambda value: isinstance(value, (float, int)) and not isinstance(value, bool)),
    "success": ("a bool", lambda value: isinstance(value, bool)),
    "state_key": ("a str", _is_text),
    "answers": ("a list of str, or None", _is_texts),
    "stop_reason": ("a StopReason, or None", lambda value: value is None or isinstance(value, StopReason)),
}


def _rewards_are_finite(subject: Subject) -> None:
    for event in _events(subject):
        _demand(math.isfinite(float(event.reward)), f"the reward of {event.action!r} is {event.reward!r}")


def _score_is_in_range(subject: Subject) -> None:
    for event in _events(subject):
        score = event.info["score"]
        _demand(0.0 <= score <= 1.0, f"the score after {event.action!r} is {score!r}")


def _success_ends_the_episode(subject: Subject) -> None:
    for event in _events(subject):
        if event.info["success"]:
            state = f"score {event.info['score']}, terminated {event.terminated}, {event.info['stop_reason']!r}"
            good = event.info["score"] == 1.0 and event.terminated and event.info["stop_reason"] == StopReason.SUCCESS
            _demand(good, f"{event.action!r} is a success, but with {state}")


def _endings_have_reasons(subject: Subject) -> None:
    for event in _events(subject):
        _demand(not (event.terminated and event.truncated), f"{event.action!r} both terminated and truncated")
        expected = None
        if event.terminated:
            expected = StopReason.SUCCESS if event.info["success"] else StopReason.FAILURE
        elif event.truncated:
            expected = StopReason.TURN_LIMIT
        got = event.info["stop_reason"]
        _demand(got == expected, f"the stop reason after {event.action!r} is {got!r}, expected {expected!r}")


def _turn_limit_is_exact(subject: Subject) -> None:
    if subject.max_turns is None:
        return
    for task in subject.tasks:
        for salt in range(3):  # one of them may happen to end earlier
            with closing(subject.make()) as env:
                last = len(events := _play(env, task, subject.max_turns, salt)) - 1
            if not events[-1].terminated:
                truncated = f"truncated at turn {last}" if events[-1].truncated else f"still running at turn {last}"
                good = events[-1].truncated and last == subject.max_turns
                _demand(good, f"{truncated}, expected truncation at turn {subject.max_turns}")


def _no_step_outside_episodes(subject: Subject) -> None:
    with closing(subject.make()) as env:
        _demand_raises(EpisodeOverError, partial(env.step, "look"), "step before the first reset")
    for env, events in _episodes(subject):
        if events[-1].over:
            for what in ("step after the end", "a second step after the end"):
                _demand_raises(EpisodeOverError, partial(env.step, "look"), what)


def _replay_is_equal(subject: Subject) -> None:
    for task in subject.tasks:
        with closing(subject.make()) as env, closing(subject.make()) as other:
            events = _play(env, task)
            _demand_equal(events, _replay(other, task, events), "in another instance")


def _reset_starts_afresh(subject: Subject) -> None:
    for task in subject.tasks:
        with closing(subject.make()) as env, closing(subject.make()) as used:
            events = _play(env, task)
            _play(used, subject.tasks[0], turns=TURNS // 2, salt=1)
            _demand_equal(events, _replay(used, task, events), "in a used instance")


def _instances_are_independent(subject: Subject) -> None:
    first, last = subject.tasks[0], subject.tasks[-1]
    with closing(subject.make()) as a, closing(subject.make()) as b:
        plan_a, plan_b = _play(a, first), _play(b, last, salt=1)
    with closing(subject.make()) as a, closing(subject.make()) as b:
        events_a, events_b = [_copied(_start(a, first))], [_copied(_start(b, last))]
        for turn in range(1, max(len(plan_a), len(plan_b))):
            events_a += [] if events_a[-1].over else _steps(a, plan_a[turn : turn + 1])
            events_b += [] if events_b[-1].over else _steps(b, plan_b[turn : turn + 1])
    _demand_equal(plan_a, events_a, "beside another instance")
    _demand_equal(plan_b, events_b, "beside another instance")


def _global_randomness_is_left_alone(subject: Subject) -> None:
    task = subject.tasks[0]
    before = random.getstate(), np.random.get_state()  # noqa: NPY002 - the global generator is what this is about
    try:
        plan: list[_Event] = []
        for seed in (1, 2):
            random.seed(seed)
            np.random.seed(seed)  # noqa: NPY002
            state = pickle.dumps((random.getstate(), np.random.get_state()))  # noqa: NPY002
            with closing(subject.make()) as env:
                events = _replay(env, task, plan) if plan else _play(env, task)
            after = pickle.dumps((random.getstate(), np.random.get_state()))  # noqa: NPY002
            _demand(state == after, "the state of `random` or `numpy.random` has changed")
            plan = plan or events
        _demand_equal(plan, events, "with other global seeds")
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002


def _any_text_is_an_action(subject: Subject) -> None:
    with closing(subject.make()) as env:
        for name, action in ODD_ACTIONS.items():
            _start(env, subject.tasks[0])
            try:
                env.step(action)
            except Exception as error:
                raise _BreachError(f"an action of {name} raised {error!r:.200}") from error


def _info_is_the_callers(subject: Subject) -> None:
    task = subject.tasks[0]
    with closing(subject.make()) as env, closing(subject.make()) as other:
        plan = _play(env, task)
        kept = [_start(other, task)] + [_step(other, event.action or "") for event in plan[1:]]
        _demand_equal(plan, kept, "looked at when the episode was over")
    with closing(subject.make()) as env:
        events = []
        for event in plan:
            live = _start(env, task) if event.action is None else _step(env, event.action)
            events.append(_copied(live))
            for value in live.info.values():
                if isinstance(value, (list, dict, set)):
                    value.clear()
            live.info.clear()
    _demand_equal(plan, events, "after earlier infos were changed")


def _results_can_be_sent(subject: Subject) -> None:
    for event in _events(subject):
        try:
            pickle.loads(pickle.dumps(event))
        except Exception as error:
            raise _BreachError(f"what came after {event.action!r} cannot be pickled: {error!r}") from error


def _snapshots_restore(subject: Subject) -> None:
    for task in subject.tasks:
        with closing(subject.make()) as env, closing(subject.make()) as other:
            plan = _play(other, task)
            half = (len(plan) + 1) // 2
            _replay(env, task, plan[:half])
            if not hasattr(env, "snapshot"):
                return
            try:
                state = env.snapshot()
            except NotImplementedError:
                return
            _steps(env, plan[half:])
            for where in ("restored", "restored a second time"):
                env.restore(state)  # type: ignore[attr-defined]
                _demand_equal(plan[half:], _steps(env, plan[half:]), where)
        with closing(subject.make()) as fresh:
            fresh.restore(state)  # type: ignore[attr-defined]
            _demand_equal(plan[half:], _steps(fresh, plan[half:]), "restored in a new instance")


def _close_may_be_repeated(subject: Subject) -> None:
    unused, used = subject.make(), subject.make()
    _play(used, subject.tasks[0], turns=1)
    for env in (unused, unused, used, used):
        env.close()


# -- the rules for task sets ------------------------------------------------------------------------------------------
def _splits_are_disjoint(make: Callable[[], TaskSet]) -> None:
    task_set = make()
    _demand(len(task_set.splits) > 0, "there is no split")
    owner: dict[str, str] = {}
    for split in task_set.splits:
        for task_id in task_set.manifest(split).ids:
            other = owner.setdefault(task_id, split)
            _demand(other == split, f"the task {task_id!r} is in {other!r} and in {split!r}")


def _ids_are_sorted_and_unique(make: Callable[[], TaskSet]) -> None:
    task_set = make()
    for split in task_set.splits:
        ids = list(task_set.manifest(split).ids)
        _demand(len(ids) > 0, f"the split {split!r} is empty")
        _demand(ids == sorted(set(ids)), f"the ids of {split!r} are not sorted, or not unique")


def _manifests_are_stable(make: Callable[[], TaskSet]) -> None:
    first, second = make(), make()
    _demand(list(first.splits) == list(second.splits), "the splits differ between two instances")
    for split in first.splits:
        _demand(first.manifest(split) == second.manifest(split), f"the manifests of {split!r} differ")


def _tasks_are_data(make: Callable[[], TaskSet]) -> None:
    first, second = make(), make()
    for split in first.splits:
        for task_id in {first.manifest(split).ids[0], first.manifest(split).ids[-1]}:
            task = first.task(split, task_id)
            named = (task.id, task.split, task.env)
            wanted = (task_id, split, first.env_id)
            _demand(named == wanted, f"task({split!r}, {task_id!r}) gives {named}, expected {wanted}")
            _demand(task == second.task(split, task_id), f"the task {task_id!r} differs between two instances")
            _demand(task == pickle.loads(pickle.dumps(task)), f"the task {task_id!r} changes when it is pickled")


def _unknown_names_raise(make: Callable[[], TaskSet]) -> None:
    task_set = make()
    _demand_raises(UnknownNameError, partial(task_set.manifest, "no such split"), "an unknown split")
    split = task_set.splits[0]
    _demand_raises(UnknownNameError, partial(task_set.task, split, "no such task"), "an unknown task")


def _by_name(*checks: Callable[[Any], None]) -> dict[str, Callable[[Any], None]]:
    return {check.__name__.removeprefix("_"): check for check in checks}


ENV_RULES = _by_name(
    _observations_are_text,
    _info_is_complete,
    _rewards_are_finite,
    _score_is_in_range,
    _success_ends_the_episode,
    _endings_have_reasons,
    _turn_limit_is_exact,
    _no_step_outside_episodes,
    _replay_is_equal,
    _reset_starts_afresh,
    _instances_are_independent,
    _global_randomness_is_left_alone,
    _any_text_is_an_action,
    _info_is_the_callers,
    _results_can_be_sent,
    _snapshots_restore,
    _close_may_be_repeated,
)
TASK_SET_RULES = _by_name(
    _splits_are_disjoint,
    _ids_are_sorted_and_unique,
    _manifests_are_stable,
    _tasks_are_data,
    _unknown_names_raise,
)


def _add_tests() -> None:
    """Add one test method for each rule to the two pytest classes, in the order of the rules."""

    def env_test(rule: str) -> Callable[[TextEnvConformance], None]:
        return lambda self: check_env_rule(rule, self.subject())

    def task_set_test(rule: str) -> Callable[[TaskSetConformance], None]:
        return lambda self: check_task_set_rule(rule, self.make_task_set)

    for number, rule in enumerate(ENV_RULES, start=1):
        setattr(TextEnvConformance, f"test_{number:02}_{rule}", env_test(rule))
    for number, rule in enumerate(TASK_SET_RULES, start=1 + len(ENV_RULES)):
        setattr(TaskSetConformance, f"test_{number:02}_{rule}", task_set_test(rule))


_add_tests()
