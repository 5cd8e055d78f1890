"""Every rule of the contract passes a good environment, and catches one that breaks it."""

import random
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, SupportsFloat

import gymnasium as gym
import numpy as np
import pytest

from envs import conformance
from envs.conformance import (
    ENV_RULES,
    TASK_SET_RULES,
    ConformanceError,
    Subject,
    TaskSetConformance,
    TextEnvConformance,
    check_env_rule,
    check_task_set,
    check_task_set_rule,
    check_text_env,
)
from envs.core import EpisodeOverError, Info, Manifest, StopReason, Task, TextEnv, UnknownNameError, hash_tasks

SIZE, TURNS = 6, 5
Stepped = tuple[str, SupportsFloat, bool, bool, Info]


class Treasure(TextEnv):
    """Guess in which of six holes the treasure lies. The good one."""

    def __init__(self) -> None:
        super().__init__(TURNS)
        self.tried: list[int] = []
        self.hidden = -1

    def _begin(self, task: Task, seed: int | None) -> tuple[str, Info]:
        self.tried = []
        self.hidden = int(self.np_random.integers(SIZE))
        return f"A meadow, {task.id}.", self._extra(task.id)

    def _act(self, action: str) -> tuple[str, float, bool, Info]:
        hole = int(action[-1]) if action in self._holes() else -1
        if hole >= 0:
            self.tried.append(hole)
        found = hole == self.hidden
        weather = ["It rains.", "It is dry.", "It snows."][self.np_random.integers(3)]
        extra = self._extra("", success=found, score=float(found), state_key=str(sorted(self.tried)))
        return f"{weather} {action!r:.40} tried, {len(self.tried)} in all.", float(found), found, extra

    def _extra(self, goal: str, **more: Any) -> Info:
        return {"goal": goal, "admissible": self._holes()} | more

    def _holes(self) -> list[str]:
        return [f"dig {n}" for n in range(SIZE) if n not in self.tried]

    def _save(self) -> Any:
        return list(self.tried), self.hidden, self.np_random.bit_generator.state

    def _load(self, saved: Any) -> None:
        tried, self.hidden, self.np_random.bit_generator.state = saved
        self.tried = list(tried)


class Digger:
    """Digs one hole after another."""

    def reset(self, observation: str, info: Info) -> None:
        self.holes = info["admissible"]

    def act(self) -> str:
        return str(self.holes[0])

    def observe(self, action: str, observation: str, info: Info) -> None:
        self.holes = info["admissible"]


TASKS = [Task(f"task {n}", "Treasure-v0", "all", seed=n) for n in range(4)]


# -- broken environments: (rule, class) -------------------------------------------------------------------------------
class ReturnsNumbers(Treasure):
    def step(self, action: str) -> Stepped:
        return (7, *super().step(action)[1:])  # type: ignore[return-value]


class SpeaksBeyondItsSpace(Treasure):
    def __init__(self) -> None:
        super().__init__()
        self.observation_space = gym.spaces.Text(max_length=8)


class WithInfo(Treasure):
    """Adds entries to the info of every step."""

    more: ClassVar[Info]

    def __init_subclass__(cls, more: Info) -> None:
        cls.more = more

    def _extra(self, goal: str, **more: Any) -> Info:
        return super()._extra(goal, **more) | self.more


class ForgetsTheGoal(Treasure):
    def _info(self, observation: str, extra: Info, stop: StopReason | None) -> Info:
        info = super()._info(observation, extra, stop)
        del info["goal"]
        return info


class HasNumbersForActions(WithInfo, more={"admissible": [1, 2]}):
    pass


class SucceedsWithANumber(WithInfo, more={"success": 1}):
    pass


class ScoresWithText(WithInfo, more={"score": "0"}):
    pass


class NamesAnUnknownReason(Treasure):
    def _info(self, observation: str, extra: Info, stop: StopReason | None) -> Info:
        return super()._info(observation, extra, stop) | {"stop_reason": "because"}


class PaysInfinity(Treasure):
    def _act(self, action: str) -> tuple[str, float, bool, Info]:
        observation, _, found, extra = super()._act(action)
        return observation, float("inf"), found, extra


class PaysNothingAtAll(Treasure):
    def step(self, action: str) -> Stepped:
        observation, _, *rest = super().step(action)
        return (observation, None, *rest)  # type: ignore[return-value]


class ScoresInPercent(WithInfo, more={"score": 50.0}):
    pass


class ScoresNan(WithInfo, more={"score": float("nan")}):
    pass


class SucceedsWithoutScore(Treasure):
    def _extra(self, goal: str, **more: Any) -> Info:
        return super()._extra(goal, **more | {"score": 0.0})


class GoesOnAfterSuccess(WithInfo, more={"success": True, "score": 1.0}):
    pass


class EndsWithoutReason(Treasure):
    def _info(self, observation: str, extra: Info, stop: StopReason | None) -> Info:
        return super()._info(observation, extra, None)


class EndsBothWays(Treasure):
    def step(self, action: str) -> Stepped:
        observation, reward, over, truncated, info = super().step(action)
        return observation, reward, over, over or truncated, info


class CallsAFailureSuccess(Treasure):
    def _info(self, observation: str, extra: Info, stop: StopReason | None) -> Info:
        return super()._info(observation, extra, stop) | {"success": False}


class StopsEarly(Treasure):
    def __init__(self) -> None:
        super().__init__()
        self.max_turns -= 1


class StopsLate(Treasure):
    def __init__(self) -> None:
        super().__init__()
        self.max_turns += 1


class StepsAfterTheEnd(Treasure):
    def step(self, action: str) -> Stepped:
        if self._over and self.hidden >= 0:
            return "It is over.", 0.0, True, False, self._info("", {}, None)
        return super().step(action)


class StepsBeforeReset(Treasure):
    def step(self, action: str) -> Stepped:
        if self.hidden < 0:
            return "Not yet.", 0.0, False, False, self._info("", {}, None)
        return super().step(action)


class RaisesItsOwnAfterTheEnd(Treasure):
    def step(self, action: str) -> Stepped:
        try:
            return super().step(action)
        except EpisodeOverError as error:
            raise ValueError("over") from error


class DrawsFromEntropy(Treasure):
    def _act(self, action: str) -> tuple[str, float, bool, Info]:
        observation, reward, found, extra = super()._act(action)
        return f"{observation} {random.SystemRandom().random()}", reward, found, extra


class RemembersTheLastEpisode(Treasure):
    def _begin(self, task: Task, seed: int | None) -> tuple[str, Info]:
        before = list(self.tried)
        observation, extra = super()._begin(task, seed)
        return f"{observation} Before: {before}", extra


class SharesItsState(Treasure):
    shared: ClassVar[list[int]] = []

    def _begin(self, task: Task, seed: int | None) -> tuple[str, Info]:
        self.shared.clear()
        return super()._begin(task, seed)

    def _act(self, action: str) -> tuple[str, float, bool, Info]:
        self.shared.append(0)
        observation, reward, found, extra = super()._act(action)
        return f"{observation} Turn {len(self.shared)}", reward, found, extra


class DrawsFromRandom(Treasure):
    def _act(self, action: str) -> tuple[str, float, bool, Info]:
        random.random()
        return super()._act(action)


class SeedsNumpy(Treasure):
    def _begin(self, task: Task, seed: int | None) -> tuple[str, Info]:
        np.random.seed(seed)  # noqa: NPY002
        return super()._begin(task, seed)


class ListensToRandom(Treasure):
    def _act(self, action: str) -> tuple[str, float, bool, Info]:
        observation, reward, found, extra = super()._act(action)
        return f"{observation} {hash(random.getstate())}", reward, found, extra


class WantsWords(Treasure):
    def _act(self, action: str) -> tuple[str, float, bool, Info]:
        action.split()[0]
        return super()._act(action)


class WantsAscii(Treasure):
    def _act(self, action: str) -> tuple[str, float, bool, Info]:
        action.encode("ascii")
        return super()._act(action)


class WantsShortActions(Treasure):
    def _act(self, action: str) -> tuple[str, float, bool, Info]:
        if len(action) > 10_000:
            raise ValueError("too long")
        return super()._act(action)


class WantsPrintableActions(Treasure):
    def _act(self, action: str) -> tuple[str, float, bool, Info]:
        if "\0" in action:
            raise ValueError("null byte")
        return super()._act(action)


class KeepsOneInfo(Treasure):
    def __init__(self) -> None:
        super().__init__()
        self.info: Info = {}

    def _info(self, observation: str, extra: Info, stop: StopReason | None) -> Info:
        self.info |= super()._info(observation, extra, stop)
        return self.info


class KeepsOneList(Treasure):
    def __init__(self) -> None:
        super().__init__()
        self.holes: list[str] = []

    def _holes(self) -> list[str]:
        self.holes[:] = super()._holes()
        return self.holes


class ReadsItsInfoBack(Treasure):
    def _begin(self, task: Task, seed: int | None) -> tuple[str, Info]:
        self.names = [f"dig {n}" for n in range(SIZE)]
        return super()._begin(task, seed)

    def _holes(self) -> list[str]:
        return getattr(self, "names", [])


class SaysWithALambda(WithInfo, more={"extra": lambda: None}):
    pass


class SavesTheList(Treasure):
    def _save(self) -> Any:
        return self.tried, self.hidden, self.np_random.bit_generator.state

    def _load(self, saved: Any) -> None:
        self.tried, self.hidden, self.np_random.bit_generator.state = saved


class ForgetsItsGenerator(Treasure):
    def _save(self) -> Any:
        return list(self.tried), self.hidden

    def _load(self, saved: Any) -> None:
        self.tried, self.hidden = list(saved[0]), saved[1]


class RestoresItselfOnly(Treasure):
    def _save(self) -> Any:
        self.saved = super()._save()

    def _load(self, saved: Any) -> None:
        super()._load(self.saved)


class StumblesOnSaving(Treasure):
    def _save(self) -> Any:
        return self.holes  # type: ignore[attr-defined]


class CannotRestore(Treasure):
    def _load(self, saved: Any) -> None:
        raise NotImplementedError


class ClosesOnce(Treasure):
    closed = False

    def close(self) -> None:
        if self.closed:
            raise ValueError("already closed")
        self.closed = True


class ClosesOnlyAfterReset(Treasure):
    def close(self) -> None:
        if self.hidden < 0:
            raise ValueError("nothing to close")


BROKEN = [
    ("observations_are_text", ReturnsNumbers),
    ("observations_are_text", SpeaksBeyondItsSpace),
    ("info_is_complete", ForgetsTheGoal),
    ("info_is_complete", HasNumbersForActions),
    ("info_is_complete", SucceedsWithANumber),
    ("info_is_complete", ScoresWithText),
    ("info_is_complete", NamesAnUnknownReason),
    ("rewards_are_finite", PaysInfinity),
    ("rewards_are_finite", PaysNothingAtAll),
    ("score_is_in_range", ScoresInPercent),
    ("score_is_in_range", ScoresNan),
    ("success_ends_the_episode", SucceedsWithoutScore),
    ("success_ends_the_episode", GoesOnAfterSuccess),
    ("endings_have_reasons", EndsWithoutReason),
    ("endings_have_reasons", EndsBothWays),
    ("endings_have_reasons", CallsAFailureSuccess),
    ("turn_limit_is_exact", StopsEarly),
    ("turn_limit_is_exact", StopsLate),
    ("no_step_outside_episodes", StepsAfterTheEnd),
    ("no_step_outside_episodes", StepsBeforeReset),
    ("no_step_outside_episodes", RaisesItsOwnAfterTheEnd),
    ("replay_is_equal", DrawsFromEntropy),
    ("reset_starts_afresh", RemembersTheLastEpisode),
    ("instances_are_independent", SharesItsState),
    ("global_randomness_is_left_alone", DrawsFromRandom),
    ("global_randomness_is_left_alone", SeedsNumpy),
    ("global_randomness_is_left_alone", ListensToRandom),
    ("any_text_is_an_action", WantsWords),
    ("any_text_is_an_action", WantsAscii),
    ("any_text_is_an_action", WantsShortActions),
    ("any_text_is_an_action", WantsPrintableActions),
    ("info_is_the_callers", KeepsOneInfo),
    ("info_is_the_callers", KeepsOneList),
    ("info_is_the_callers", ReadsItsInfoBack),
    ("results_can_be_sent", SaysWithALambda),
    ("snapshots_restore", SavesTheList),
    ("snapshots_restore", ForgetsItsGenerator),
    ("snapshots_restore", RestoresItselfOnly),
    ("snapshots_restore", StumblesOnSaving),
    ("snapshots_restore", CannotRestore),
    ("close_may_be_repeated", ClosesOnce),
    ("close_may_be_repeated", ClosesOnlyAfterReset),
]


@pytest.mark.parametrize(("rule", "env"), BROKEN, ids=[f"{rule}-{env.__name__}" for rule, env in BROKEN])
def test_a_broken_environment_is_caught_by_the_rule_it_breaks(rule: str, env: type[Treasure]) -> None:
    with pytest.raises(ConformanceError, match=f"rule {1 + list(ENV_RULES).index(rule)}, {rule}: "):
        check_env_rule(rule, Subject(env, TASKS, TURNS, Digger))


def test_a_broken_environment_fails_the_whole_check() -> None:
    for _, env in BROKEN:
        with pytest.raises(ConformanceError):
            check_text_env(env, TASKS, max_turns=TURNS, expert=Digger)


class Unsaved(Treasure):
    def _save(self) -> Any:
        raise NotImplementedError


def test_snapshots_are_optional() -> None:
    check_env_rule("snapshots_restore", Subject(Unsaved, TASKS))
    check_env_rule("snapshots_restore", Subject(lambda: gym.Wrapper(Treasure()), TASKS))  # has no such method


def test_what_an_environment_raises_is_kept_as_the_cause() -> None:
    with pytest.raises(ConformanceError, match=r"rule 13, .* an action of a million characters raised") as caught:
        check_env_rule("any_text_is_an_action", Subject(WantsShortActions, TASKS))
    assert isinstance(caught.value.__cause__, ValueError)


def test_nothing_is_checked_without_a_task() -> None:
    with pytest.raises(ValueError, match="no task"):
        check_text_env(Treasure, [])


# -- task sets --------------------------------------------------------------------------------------------------------
class TreasureTasks:
    """The good one."""

    env_id = "Treasure-v0"
    splits: Sequence[str] = ("train", "test")
    max_turns = TURNS
    make = staticmethod(Treasure)
    expert = staticmethod(Digger)

    def manifest(self, split: str) -> Manifest:
        if split not in self.splits:
            raise UnknownNameError("split", split, self.splits)
        ids = self.ids(split)
        return Manifest(self.env_id, split, tuple(ids), hash_tasks((task_id, b"") for task_id in ids))

    def ids(self, split: str) -> list[str]:
        return [f"{split} {n}" for n in range(3)]

    def task(self, split: str, task_id: str) -> Task:
        if task_id not in self.manifest(split).ids:
            raise UnknownNameError("task", task_id, self.manifest(split).ids)
        return Task(task_id, self.env_id, split, seed=int(task_id[-1]))

    def describe(self) -> str:
        return "three treasures"


class OneIsInBoth(TreasureTasks):
    def ids(self, split: str) -> list[str]:
        return ["a task 0", *super().ids(split)]


class HasNoSplit(TreasureTasks):
    splits = ()


class IsEmpty(TreasureTasks):
    def ids(self, split: str) -> list[str]:
        return []


class IsUnsorted(TreasureTasks):
    def ids(self, split: str) -> list[str]:
        return super().ids(split)[::-1]


class DrawsItsTasks(TreasureTasks):
    def __init__(self) -> None:
        self.salt = random.SystemRandom().random()

    def ids(self, split: str) -> list[str]:
        return sorted(f"{split} {self.salt} {n}" for n in range(3))


class DrawsItsSplits(TreasureTasks):
    def __init__(self) -> None:
        self.splits = (f"train{random.SystemRandom().random()}",)


class GivesAnotherTask(TreasureTasks):
    def task(self, split: str, task_id: str) -> Task:
        return super().task(split, self.ids(split)[0])


class DrawsItsSeeds(TreasureTasks):
    def task(self, split: str, task_id: str) -> Task:
        return replace(super().task(split, task_id), seed=random.SystemRandom().getrandbits(40))


class HasLiveTasks(TreasureTasks):
    thing = object()

    def task(self, split: str, task_id: str) -> Task:
        return replace(super().task(split, task_id), payload={"thing": self.thing})


class RaisesKeyErrors(TreasureTasks):
    def task(self, split: str, task_id: str) -> Task:
        return {known: super(RaisesKeyErrors, self).task(split, known) for known in self.ids(split)}[task_id]


class TakesAnySplit(TreasureTasks):
    def manifest(self, split: str) -> Manifest:
        return super().manifest(split if split in self.splits else "train")


BROKEN_SETS = [
    ("splits_are_disjoint", OneIsInBoth),
    ("splits_are_disjoint", HasNoSplit),
    ("ids_are_sorted_and_unique", IsEmpty),
    ("ids_are_sorted_and_unique", IsUnsorted),
    ("manifests_are_stable", DrawsItsTasks),
    ("manifests_are_stable", DrawsItsSplits),
    ("tasks_are_data", GivesAnotherTask),
    ("tasks_are_data", DrawsItsSeeds),
    ("tasks_are_data", HasLiveTasks),
    ("unknown_names_raise", RaisesKeyErrors),
    ("unknown_names_raise", TakesAnySplit),
]


@pytest.mark.parametrize(
    ("rule", "tasks"), BROKEN_SETS, ids=[f"{rule}-{tasks.__name__}" for rule, tasks in BROKEN_SETS]
)
def test_a_broken_task_set_is_caught_by_the_rule_it_breaks(rule: str, tasks: type[TreasureTasks]) -> None:
    number = 1 + len(ENV_RULES) + list(TASK_SET_RULES).index(rule)
    with pytest.raises(ConformanceError, match=f"rule {number}, {rule}: "):
        check_task_set_rule(rule, tasks)
    with pytest.raises(ConformanceError):
        check_task_set(tasks)


def test_a_task_set_with_a_broken_environment_is_caught() -> None:
    class Tasks(TreasureTasks):
        make = staticmethod(ClosesOnce)

    with pytest.raises(ConformanceError, match="close_may_be_repeated"):
        check_task_set(Tasks)


def test_every_rule_is_listed_and_has_something_that_breaks_it() -> None:
    listed = re.findall(r"^ ?(\d+)\. (\w+): ", conformance.__doc__ or "", flags=re.MULTILINE)
    assert listed == [(str(n), rule) for n, rule in enumerate([*ENV_RULES, *TASK_SET_RULES], start=1)]
    assert {rule for rule, _ in BROKEN} == set(ENV_RULES)
    assert {rule for rule, _ in BROKEN_SETS} == set(TASK_SET_RULES)


# -- the good ones, as their authors would test them ------------------------------------------------------------------
class TestTreasure(TextEnvConformance):
    def make_env(self) -> Treasure:
        return Treasure()

    def tasks(self) -> Sequence[Task]:
        return TASKS


class TestTreasureTasks(TaskSetConformance):
    def make_task_set(self) -> TreasureTasks:
        return TreasureTasks()


def test_the_mixins_test_every_rule() -> None:
    def rules(kind: type) -> list[str]:
        return [name.split("_", 2)[2] for name in sorted(dir(kind)) if name.startswith("test_")]

    assert rules(TextEnvConformance) == list(ENV_RULES)
    assert rules(TaskSetConformance) == [*ENV_RULES, *TASK_SET_RULES]
    broken = type("Broken", (TestTreasure,), {"make_env": lambda self: ClosesOnce()})()
    with pytest.raises(ConformanceError):
        broken.test_17_close_may_be_repeated()


def test_the_functions_pass_the_good_ones() -> None:
    check_text_env(Treasure, TASKS, max_turns=TURNS, expert=Digger)
    check_task_set(partial(TreasureTasks))
