"""Any Gymnasium environment of strings becomes a task set; errors name what is wrong with other ones."""

import json
import linecache
import pickle
import random
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from envs.conformance import TaskSetConformance, check_env_rule, subject_of
from envs.core import INFO_KEYS, TURN_KEYS, EpisodeOverError, NoDataError, StopReason, Task, UnknownNameError
from envs.gym_tasks import DEFAULT_MAX_TURNS, GymTasks, TextAdapter
from envs.pool import EnvPool

ROOT = Path(__file__).parents[2]
EXAMPLE = "examples.light_switches:LightSwitches-v0"
ID = "tests.envs.test_gym_tasks:Script-v0"


class Script(gym.Env[Any, Any]):
    """Gives what its script says, one (observation, reward, terminated, truncated, info) after another."""

    action_space: gym.Space[Any] = gym.spaces.Text(5)
    observation_space = gym.spaces.Text(5)

    def __init__(self, script: list[Any] | None = None, first: Any = "Hello.", says: dict[str, Any] | None = None):
        self.script, self.first, self.says = script or [], first, says or {}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.turn = 0
        self.seeds = [*getattr(self, "seeds", []), seed]
        return self.first, dict(self.says)

    def step(self, action: str) -> Any:
        self.turn += 1
        return self.script[self.turn - 1] if self.turn <= len(self.script) else ("And so on.", 0, False, False, {})

    def snapshot(self) -> Any:
        return self.turn

    def restore(self, state: Any) -> None:
        self.turn = state


class Dice(Script):
    action_space = gym.spaces.Discrete(6)


gym.register("Script-v0", f"{__name__}:Script")
gym.register("Short-v0", f"{__name__}:Script", max_episode_steps=3, kwargs={"first": "Hi."})
gym.register("Dice-v0", f"{__name__}:Dice")


def played(script: list[Any], **kwargs: Any) -> tuple[TextAdapter, list[Any]]:
    """An adapter around a script, and the results of all its steps."""
    env = TextAdapter(Script(script, **kwargs), max_turns=10)
    env.reset()
    return env, [env.step("x") for _ in script]


# -- what it makes of an environment ----------------------------------------------------------------------------------
def test_missing_info_is_filled_from_the_observation() -> None:
    env = TextAdapter(Script([("One.", 0, False, False, {"junk": object()})]), max_turns=10)
    observation, info = env.reset()
    assert observation == "Hello."
    assert info == dict.fromkeys(INFO_KEYS) | {
        "goal": "Hello.",
        "score": 0.0,
        "success": False,
        "state_key": "Hello.",
    }
    assert env.step("x")[4] == info | {"state_key": "One."}


def test_turn_rewards_of_rules_are_passed_on() -> None:
    info = {"turn_reward": 0.5, "tool_result": True}
    _, steps = played([("One.", 0, False, False, info), ("Two.", 0, False, False, {})])
    assert {key: steps[0][4].get(key) for key in TURN_KEYS} == info
    assert not set(TURN_KEYS) & set(steps[1][4])


def test_info_of_the_environment_is_passed_on() -> None:
    says = {"goal": "Win.", "admissible": ("a", "b"), "state_key": "s", "answers": ["yes"], "score": 0.25}
    env = TextAdapter(Script([("One.", 0, False, False, {"score": 7, "admissible": ["c"]})], says=says), max_turns=10)
    assert env.reset()[1] == says | {"admissible": ["a", "b"], "success": False, "stop_reason": None}
    info = env.step("x")[4]
    assert (info["goal"], info["score"], info["admissible"]) == ("Win.", 1.0, ["c"])


@pytest.mark.parametrize(
    ("reward", "terminated", "truncated", "info", "expected"),
    [
        (1, True, False, {}, (True, False, True, 1.0, StopReason.SUCCESS)),
        (0, True, False, {}, (True, False, False, 0.0, StopReason.FAILURE)),
        (1, False, False, {}, (False, False, False, 0.0, None)),
        (1, False, True, {}, (False, True, False, 0.0, StopReason.TURN_LIMIT)),
        (1, True, True, {}, (True, False, True, 1.0, StopReason.SUCCESS)),
        (1, True, False, {"success": False, "score": 0.5}, (True, False, False, 0.5, StopReason.FAILURE)),
        (0, True, False, {"success": True, "score": 0.5}, (True, False, True, 1.0, StopReason.SUCCESS)),
        (0, False, False, {"success": True}, (True, False, True, 1.0, StopReason.SUCCESS)),
    ],
)
def test_terminations_and_truncations(
    reward: float, terminated: bool, truncated: bool, info: dict[str, Any], expected: Any
) -> None:
    env, [(_, got_reward, *flags, got)] = played([("Then.", reward, terminated, truncated, info)])
    assert (*flags, got["success"], got["score"], got["stop_reason"]) == expected
    assert got_reward == reward
    if expected[-1]:
        with pytest.raises(EpisodeOverError):
            env.step("x")


def test_numpy_values_end_an_episode_as_pythons_do() -> None:
    info = {"success": np.bool_(False), "score": np.float32(0.5), "state_key": (np.int64(1), 2), "answers": "Paris"}
    env, [(text, reward, *flags, got)] = played([(b"Then.", np.array([1]), np.True_, np.False_, info)])
    assert (text, reward, *flags) == ("Then.", 1.0, True, False)
    assert got["stop_reason"] is StopReason.FAILURE
    assert (got["success"], got["score"], got["state_key"], got["answers"]) == (False, 0.5, "data:[1, 2]", ["Paris"])
    assert json.loads(json.dumps([reward, flags, got])) == [reward, flags, got]
    assert env.reset()[1]["success"] is False


def test_the_turn_limit_is_the_ids_unless_it_is_set() -> None:
    for tasks, turns in (
        (GymTasks("Short-v0"), 3),
        (GymTasks("Short-v0", max_turns=5), 5),
        (GymTasks(ID), DEFAULT_MAX_TURNS),
    ):
        env = tasks.make()
        env.reset()
        steps = [env.step("x") for _ in range(turns)]
        assert [step[3] for step in steps] == [False] * (turns - 1) + [True]
        assert steps[-1][4]["stop_reason"] is StopReason.TURN_LIMIT
    assert "at most 3 turns (its max_episode_steps)" in GymTasks("Short-v0").describe()
    assert "at most 5 turns (as was asked)" in GymTasks("Short-v0", max_turns=5).describe()
    assert "at most 50 turns (by default" in GymTasks(ID).describe()


def test_the_seed_of_the_task_is_the_seed_of_the_episode() -> None:
    tasks = GymTasks(ID)
    env = tasks.make()
    env.reset(seed=99, options={"task": tasks.task("valid", "seed-1000007")})
    env.reset(seed=99)
    assert env.unwrapped.seeds == [1_000_007, 99]  # type: ignore[attr-defined]


def test_snapshots_are_the_environments_own() -> None:
    env, _ = played([("One.", 0, False, False, {})])
    state = env.snapshot()
    following = [env.step("x") for _ in range(9)]
    assert following[-1][3]
    env.restore(state)
    assert [env.step("x") for _ in range(9)] == following
    with pytest.raises(NotImplementedError, match=r"LightSwitches.* has no snapshot\(\)"):
        GymTasks(EXAMPLE).make().snapshot()  # type: ignore[attr-defined]


# -- what it says when something is wrong -----------------------------------------------------------------------------
def test_observations_that_are_no_text_are_refused() -> None:
    with pytest.raises(TypeError, match="the observation of reset is of type dict, expected str"):
        TextAdapter(Script(first={}), max_turns=5).reset()
    with pytest.raises(TypeError, match="the observation of step is of type int, expected str"):
        played([(3, 0, False, False, {})])


def test_actions_that_are_no_text_are_refused() -> None:
    with pytest.raises(NoDataError, match=r"Dice.*text actions, got the action space Discrete\(6\)"):
        GymTasks("Dice-v0").make()
    env, _ = played([])
    with pytest.raises(TypeError, match="an action must be a string, got int"):
        env.step(1)  # type: ignore[arg-type]
    with pytest.raises(UnknownNameError, match="did you mean 'task'"):
        env.reset(options={"tasks": []})


def test_an_unknown_id_is_named_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="unknown environment 'Scripts-v0'; did you mean 'Script-v0'"):
        GymTasks("Scripts-v0")
    with pytest.raises(UnknownNameError, match="did you mean 'LightSwitches-v0'"):
        GymTasks("examples.light_switches:LightSwitches-v1")
    with pytest.raises(
        ModuleNotFoundError, match=r"'examples\.light_switchs', which should .* was not found; looked in"
    ):
        GymTasks("examples.light_switchs:LightSwitches-v0")


def test_a_missing_module_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "misses_something.py").write_text("import nowhere_to_be_found\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match=r"^No module named 'nowhere_to_be_found'$"):
        GymTasks("misses_something:Any-v0")


@pytest.mark.parametrize(
    "sizes", [{"train_tasks": 0}, {"valid_tasks": 0}, {"train_tasks": 1_000_001}, {"max_turns": 0}]
)
def test_impossible_sizes_are_refused(sizes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(sizes))):
        GymTasks(ID, **sizes)  # type: ignore[arg-type]


# -- tasks ------------------------------------------------------------------------------------------------------------
def test_tasks_are_seeds() -> None:
    tasks = GymTasks(ID, train_tasks=12, valid_tasks=3)
    assert tasks.splits[0] == "train"
    assert [int(task_id[5:]) for task_id in tasks.manifest("train").ids] == list(range(12))
    assert tasks.manifest("valid").ids == ("seed-1000000", "seed-1000001", "seed-1000002")
    assert tasks.task("train", "seed-0000011") == Task("seed-0000011", "Script-v0", "train", seed=11)
    for wrong in ("seed-0000012", "seed-11", "11", "seed-1000000", "seed--000001"):
        with pytest.raises(UnknownNameError, match="known: seed-0000000, seed-0000011"):
            tasks.task("train", wrong)
    assert tasks.expert() is None


def test_the_hash_depends_on_the_settings_of_the_tasks() -> None:
    hashes = [
        GymTasks(*args, **kwargs).manifest("train").content_hash  # type: ignore[arg-type]
        for args, kwargs in [
            ((ID,), {}),
            (("Short-v0",), {}),
            ((ID,), {"kwargs": {"first": "Hey."}}),
            (("Short-v0",), {"kwargs": {"first": "Hey."}}),
            ((ID,), {"train_tasks": 10}),
        ]
    ]
    assert len(set(hashes)) == 5
    assert hashes[0] == GymTasks("Script-v0", max_turns=3).manifest("train").content_hash


def test_the_hash_changes_with_the_environments_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    hashes = []
    for turns in (8, 9, 8):
        source = (ROOT / "examples" / "light_switches.py").read_text().replace("LightSwitches-v0", "Moving-v0")
        (tmp_path / "moving.py").write_text(source.replace("max_length=80", f"max_length=8{turns}"))
        for known in ("moving", "Moving-v0"):
            sys.modules.pop(known, None)
            gym.registry.pop(known, None)
        linecache.clearcache()
        hashes.append(GymTasks("moving:Moving-v0").manifest("train").content_hash)
    assert hashes[0] == hashes[2] != hashes[1]


def test_kwargs_reach_the_environment() -> None:
    tasks = GymTasks("Short-v0", kwargs={"says": {"goal": "g"}})
    observation, info = tasks.make().reset()
    assert (observation, info["goal"]) == ("Hi.", "g")
    assert "{'says': {'goal': 'g'}}" in tasks.describe()


def test_the_hydra_file_creates_the_task_set() -> None:
    config = OmegaConf.load(ROOT / "conf" / "env" / "gym.yaml")
    config.id = ID
    config.kwargs = {"script": [["One.", 0, False, False, {}]]}
    tasks = instantiate(config)
    assert tasks.env_id == "Script-v0"
    env = tasks.make()
    assert type(env.unwrapped.script) is list
    config.kwargs = {}
    assert instantiate(config).manifest("train") == GymTasks(ID).manifest("train")


# -- the example ------------------------------------------------------------------------------------------------------
class TestLightSwitches(TaskSetConformance):
    def make_task_set(self) -> GymTasks:
        return GymTasks(EXAMPLE)


def test_an_adapted_environment_with_snapshots_conforms() -> None:
    check_env_rule("snapshots_restore", subject_of(GymTasks(ID)))


def test_the_example_is_plain_gymnasium_and_short() -> None:
    source = (ROOT / "examples" / "light_switches.py").read_text()
    assert len(source.splitlines()) <= 30
    imports = [line for line in source.splitlines() if line.lstrip().startswith(("import ", "from "))]
    assert imports == ["import gymnasium as gym"]


@pytest.mark.parametrize("workers", [0, 1])
def test_the_example_is_solved_by_looking(workers: int) -> None:
    tasks = GymTasks(EXAMPLE)
    with EnvPool(pickle.loads(pickle.dumps(tasks)).make, size=20, workers=workers) as pool:
        ids = tasks.manifest("valid").ids[:20]
        outcomes = pool.reset({slot: tasks.task("valid", task_id) for slot, task_id in enumerate(ids)})
        turns = 0
        while running := {slot: outcome for slot, outcome in outcomes.items() if not outcome.over}:
            turns += len(running)
            dark = {slot: outcome.observation.endswith("off.") for slot, outcome in running.items()}
            outcomes |= pool.step({slot: "flip the switch" if dark[slot] else "walk on" for slot in running})
        assert all(outcome.info["success"] for outcome in outcomes.values())
        assert 20 * 5 <= turns <= 20 * 7, "three switches, and two to four lamps to walk on"


def test_the_example_is_rarely_solved_by_chance() -> None:
    env = GymTasks(EXAMPLE).make()
    rng = random.Random(0)
    solved = 0
    for seed in range(200):
        info, over = env.reset(seed=seed)[1], False
        while not over:
            _, _, terminated, truncated, info = env.step(rng.choice(info["admissible"]))
            over = terminated or truncated
        solved += info["success"]
    assert 0 < solved < 30
