"""Recordings of RAGEN: maps and slips of the frozen lake, bandits, grades of Countdown, and its turn protocol."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agents.agent import Decision, View
from agents.episode import ParseStatus
from agents.quoting import plain
from agents.ragen import Ragen, actions_left, played, split_actions
from agents.rollout import Job, rollout
from envs.core import StopReason, Task, TextEnv
from envs.pool import EnvPool
from envs.ragen_games import bandit, countdown, frozen_lake
from envs.ragen_games.frozen_lake import VIEWS, FrozenLakeEnv, Lake, make_map
from envs.sokoban.env import ENV_ID as sokoban_id  # noqa: N811
from envs.sokoban.env import SokobanEnv
from envs.sokoban.generate import RoomSize, make_room
from tests.env_replay.kinds import Kind
from tests.recordings import Recorder

LAKE_SIZE, LAKE_FROZEN = 4, 0.9  # RAGEN's, where a recording names none


def _games(data: dict[str, Any], stock: Path, recorder: Recorder) -> None:
    del stock
    for episode in data["frozen_lake"]:
        recorder.cases += 1
        _lake(f"frozen_lake {episode['config']}, seed {episode['seed']}", episode, recorder)
    for episode in data["bandit"]:
        recorder.cases += 1
        _bandit(f"bandit {episode['split']}, seed {episode['seed']}", episode, recorder)
    for case in data["countdown"]["answers"]:
        recorder.cases += 1
        reward = countdown.grade(case["answer"], case["target"], case["nums"])
        recorder.check(f"countdown {case['answer']!r}", reward, case["reward"])
    for numbers, target, has_solution in data["countdown"]["has_solution"]:
        recorder.cases += 1
        recorder.check(f"{target} of {numbers}", countdown.solve(target, numbers) is not None, has_solution)


def _lake(where: str, episode: dict[str, Any], recorder: Recorder) -> None:
    config, seed = dict(episode["config"]), episode["seed"]
    rows = make_map(seed, config.pop("size", LAKE_SIZE), config.pop("p", LAKE_FROZEN))
    recorder.check(f"{where}, map", rows, episode["map"])
    rules = (config.pop("is_slippery", True), config.pop("success_rate", 1 / 3))
    recorder.check(f"{where}, unknown settings", config, {})
    task = Task("a", frozen_lake.ENV_ID, seed=seed, payload={"map": rows})
    env = FrozenLakeEnv(len(episode["steps"]) + 1, "grid", *rules)
    shown = env.reset(options={"task": task})[0]
    recorder.check(f"{where}, reset", shown, episode["reset"])
    before, done, reward, success = shown, False, 0.0, False
    for number, step in enumerate(episode["steps"], start=1):
        if not done:
            shown, _, done, _, info = env.step(step["action"])
            reward, success = info["score"], info["success"]
        else:  # the reference goes on: nothing moves, and nothing is given
            reward = 0.0
        ours = {"observation": shown, "reward": reward, "done": done, "success": success, "effective": shown != before}
        recorder.check_fields(f"{where}, step {number}", ours, {k: v for k, v in step.items() if k != "action"})
        before = shown
    lake = Lake(tuple(rows))
    end = lake.grids.index(shown)
    for name, player in (("coord", lake.start), ("coord_end", end)):
        if episode.get(name) is not None:
            recorder.check(f"{where}, {name}", VIEWS["coord"](lake, player), episode[name])


def _bandit(where: str, episode: dict[str, Any], recorder: Recorder) -> None:
    env = bandit.BanditEnv()
    task = Task("a", bandit.ENV_ID, seed=episode["seed"], payload={"names": episode["split"]})
    shown, info = env.reset(options={"task": task})
    recorder.check(f"{where}, reset", shown, episode["reset"])
    recorder.check(f"{where}, arms", info["admissible"], episode["arms"])
    observation, reward, done, _, info = env.step(episode["action"])
    ours = (observation, reward, done, info["success"])
    recorder.check(f"{where}, step", ours, tuple(episode[k] for k in ("observation", "reward", "done", "success")))


# -- the turn protocol ------------------------------------------------------------------------------------------------
COORDINATES = {"observation": "grid_coord"}
SETTINGS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {  # by tag: system prompt, its settings, the tasks'
    "SimpleSokoban": ("sokoban", {}, {"size": RoomSize(6, 6, 1, 300)}),
    "LargerSokoban": ("sokoban", {}, {"size": RoomSize(8, 8, 2, 10)}),
    "CoordSokoban": ("sokoban_coord", {"words": 120}, {"size": RoomSize(6, 6, 1, 300), **COORDINATES}),
    "FrozenLake": ("frozen_lake", {}, {"success_rate": 0.8}),
    "CoordFrozenLake": ("frozen_lake_coord", {"words": 120}, {"success_rate": 0.8, **COORDINATES}),
    "Bandit": ("bandit", {"max_actions": 1}, {}),
}
MOST_BANDITS = 100  # RAGEN adds to a seed how many were made before, which is found by the names that are shown
PENALTY = -0.1  # of an invalid answer
STATES = re.compile(r"State:\n(.*)\n(?:No valid action|You have \d+ actions left)", re.DOTALL)


def _turns(data: dict[str, Any], stock: Path, recorder: Recorder) -> None:
    del stock
    for run in data["runs"]:
        for place, messages in enumerate(run["messages_at_end"]):
            recorder.cases += 1
            turns = [turn for turn in run["turns"] if turn["env"] == place]
            where = f"{run['tag']}, seed {run['seed']}, environment {place}"
            _conversation(where, run["tag"], run["seed"] + place, turns, messages, recorder)


def _conversation(
    where: str, tag: str, seed: int, recorded: list[dict[str, Any]], messages: list[Any], recorder: Recorder
) -> None:
    """Play the recorded answers with the agent in a rollout, and compare turns and conversation."""
    system, prompting, playing = SETTINGS[tag]
    first = STATES.search(messages[1]["content"])
    env, task = _make(tag, seed, dict(playing), first[1] if first else "")
    prompter = Ragen(system, **prompting)
    agent = Answers(prompter, [turn["raw"] for turn in recorded])
    with EnvPool(lambda: env, 1) as pool:
        [episode] = rollout(agent, pool, [Job(task, seed=seed)])
    recorder.check(f"{where}, turns", len(episode.turns), len(recorded))
    penalty, used = 0.0, 0
    for number, (turn, expected, after) in enumerate(zip(episode.turns, recorded, agent.states[1:], strict=False), 1):
        penalty += PENALTY * (turn.status is not ParseStatus.OK)
        played = split_actions(turn.action)
        used += len(played)
        shown, actions = prompter.split(expected["raw"])
        over = number == len(episode.turns) and episode.stop_reason in (StopReason.SUCCESS, StopReason.FAILURE)
        ours = {
            "parsed": shown,
            "actions": actions,
            "executed": [agent.names.index(action.lower()) + 1 for action in played],
            "reward": turn.reward,
            "penalty_total": penalty or 0,
            "num_actions": used,
            "actions_left": prompter.max_actions - used,
            "terminated": over,
            "state": after,
        }
        # Their flag of truncation also means the end of a solved episode, and is set when the actions are used up.
        given = ("turn", "env", "raw", "truncated")
        recorder.check_fields(f"{where}, turn {number}", ours, {k: v for k, v in expected.items() if k not in given})
    ours_said = prompter.messages(episode.turns, agent.answers[: len(episode.turns)], episode.final_observation)
    plain_said = [{"role": message["role"], "content": plain(message["content"])} for message in ours_said]
    recorder.check(f"{where}, messages", len(plain_said), len(messages))
    for number, (said, expected) in enumerate(zip(plain_said, messages, strict=False)):
        recorder.check(f"{where}, message {number}", said, expected)


def _make(tag: str, seed: int, playing: dict[str, Any], first: str) -> tuple[TextEnv, Task]:
    """The environment of a tag, and its task; a room that comes from a retry is the recorded one."""
    if "Sokoban" in tag:
        room, attempts = make_room(seed, playing.pop("size"))
        if attempts > 1:
            room = first.rpartition("Grid Map: \n")[2]
        return SokobanEnv(100, **playing), Task("a", sokoban_id, payload={"room": room})
    if "Lake" in tag:
        payload: dict[str, Any] = {"map": make_map(seed, LAKE_SIZE, LAKE_FROZEN)}
        return FrozenLakeEnv(100, **playing), Task("a", frozen_lake.ENV_ID, seed=seed, payload=payload)
    seeds = range(seed, seed + MOST_BANDITS)
    seed = next((number for number in seeds if bandit.prompt("train", number) == first.rstrip("\n") + "\n"), seed)
    return bandit.BanditEnv(100), Task("a", bandit.ENV_ID, seed=seed, payload={"names": "train"})


class Answers:
    """An agent that gives recorded answers through the prompter of RAGEN."""

    def __init__(self, prompter: Ragen, answers: list[str]) -> None:
        self.prompter, self.answers = prompter, answers
        self.states: list[str] = []  # before each turn and at the end
        self.names: list[str] = []

    def act(self, views: Sequence[View]) -> list[Decision]:
        [view] = views
        self.states.append(view.observation)
        self.names = [name.lower() for name in view.info.get("actions") or view.info["admissible"]]
        left = actions_left(self.prompter, view.episode.turns)
        if not left or len(view.episode.turns) >= len(self.answers):
            return [Decision("", None, stop_reason=StopReason.TURN_LIMIT)]
        action, status = self.prompter.read(self.answers[len(view.episode.turns)], True, view.info)
        return [played(Decision(action, status), left)]

    def finish(self, key: int) -> None:
        """Does nothing."""


KINDS = [
    Kind("ragen_games/games", _games, "RAGEN", ("frozen_lake", "bandit", "countdown")),
    Kind("ragen_games/turns", _turns, "EnvStateManager", ("runs",)),
]
