"""Recordings of Sokoban: rooms by seed, episodes of RAGEN and verl-agent, and levels of Boxoban.

Rooms that the references got from a retry depend on Python's salted hash; they are played from their recorded start.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from agents.episode import ParseStatus, Turn
from agents.prompts import SokobanTemplate
from envs.core import Task
from envs.sokoban.board import COST, MOVES, Board
from envs.sokoban.boxoban import FOLDER, read_levels, to_room
from envs.sokoban.env import ENV_ID, STILL, SokobanEnv
from envs.sokoban.generate import RoomSize, make_room
from envs.sokoban.views import VIEWS
from tests.env_replay.kinds import Kind
from tests.recordings import Recorder

DIGITS = "#_O√XP"  # 0 to 5 of RAGEN's `room_state`
GIVEN = ("action", "raw", "action_int", "valid", "prompts")  # of a step of verl-agent, and compared elsewhere
VERL_AGENT_SIZE = RoomSize(depth=30)


def _rooms(data: dict[str, Any], stock: Path, recorder: Recorder) -> None:
    for name, config in data["configs"].items():
        size = _size(config["config"])
        for row in config["rooms"]:
            recorder.cases += 1
            where = f"{name}, seed {row['seed']}"
            room, attempts = make_room(row["seed"], size)
            recorder.check(f"{where}, first attempt", attempts == 1, row["attempts"] == 1)
            if attempts == row["attempts"] == 1:
                bare = room.replace("S", "O").replace("P", "_").replace("X", "_")
                state = room.replace("S", "P")
                recorder.check(f"{where}, fixed", bare.split("\n"), [_drawn(line) for line in row["fixed"]])
                recorder.check(f"{where}, state", state.split("\n"), [_drawn(line) for line in row["state"]])


def _drawn(digits: str) -> str:
    return "".join(DIGITS[int(digit)] for digit in digits)


def _size(config: dict[str, Any]) -> RoomSize:
    rows, columns = config["dim_room"]
    return RoomSize(rows, columns, config["num_boxes"], config["search_depth"])


def _named_size(name: str) -> RoomSize:
    """Of "8x8_2_d10"; without a depth it is 300."""
    found = re.fullmatch(r"(\d+)x(\d+)_(\d+)(?:_d(\d+))?", name)
    if not found:
        raise ValueError(f"a size is written as 8x8_2_d10, got {name!r}")
    rows, columns, boxes, depth = (int(number or 300) for number in found.groups())
    return RoomSize(rows, columns, boxes, depth)


def _ragen(data: dict[str, Any], stock: Path, recorder: Recorder) -> None:
    for episode in data["episodes"]:
        recorder.cases += 1
        where = f"{episode['config']}, seed {episode['seed']}, {episode['policy']}"
        room, attempts = make_room(episode["seed"], _named_size(episode["config"]))
        if attempts == 1:
            recorder.check(f"{where}, room", room, episode["reset"])
        board = _play(where, episode["reset"], episode["max_steps"], episode["steps"], recorder)
        for shown, start in (("coord", Board(episode["reset"])), ("coord_end", board)):
            for field, view in ((shown, "coord"), (shown.replace("coord", "grid_coord"), "grid_coord")):
                if episode.get(field) is not None:
                    recorder.check(f"{where}, {field}", VIEWS[view](start), episode[field])


def _boxoban(data: dict[str, Any], stock: Path, recorder: Recorder) -> None:
    for episode in data["episodes"]:
        recorder.cases += 1
        where = f"{episode['file']}, level {episode['level']}, {episode['policy']}"
        recorder.check(f"{where}, room", to_room("\n".join(episode["map"])), episode["reset"])
        level = read_levels(stock / FOLDER / episode["file"])[episode["level"]]
        recorder.check(f"{where}, level", level.split("\n"), episode["map"])
        _play(where, episode["reset"], episode["max_steps"], episode["steps"], recorder)


def _play(where: str, room: str, max_steps: int, steps: Iterable[dict[str, Any]], recorder: Recorder) -> Board:
    """Play recorded moves, in an environment up to its end and then on its board. Returns the board."""
    env = SokobanEnv(max_steps)
    env.reset(options={"task": Task("", ENV_ID, payload={"room": room})})
    board, over = Board(room), False
    for number, step in enumerate(steps, start=1):
        reward, moved = board.move(MOVES.index(step["action"].lower()))
        ours = {
            "observation": board.text,
            "reward": reward,
            "done": board.solved or number == max_steps,
            "success": board.solved,
        }
        if "effective" in step:
            ours["effective"] = moved
        recorder.check_fields(f"{where}, step {number}", ours, {k: v for k, v in step.items() if k != "action"})
        if not over:
            observation, given, terminated, truncated, info = env.step(step["action"])
            over = terminated or truncated
            got = (observation, given, over, info["success"])
            expected = tuple(step[field] for field in ("observation", "reward", "done", "success"))
            recorder.check(f"{where}, step {number} of the environment", got, expected)
    return board


# -- verl-agent -------------------------------------------------------------------------------------------------------
def _verl_agent(data: dict[str, Any], stock: Path, recorder: Recorder) -> None:
    for case in data["projection"]:
        recorder.cases += 1
        recorder.check(f"projection of {case['raw']!r}", _project(case["raw"]), (case["action"], case["valid"]))
    for number, run in enumerate(data["runs"]):
        _verl_agent_run(f"run {number}", run, recorder)
    for episode in data["episodes"]:
        recorder.cases += 1
        where = f"verl-agent, seed {episode['seed']}"
        player = _VerlAgent(where, episode["seed"], VERL_AGENT_SIZE, episode["reset"], recorder)
        for count, step in enumerate(episode["steps"], start=1):
            player.step(f"{where}, step {count}", step["action"], step, recorder)
        rows = [" ".join(row) for row in player.board.text.split("\n")]
        recorder.check(f"{where}, list", rows, episode["list"])


def _verl_agent_run(name: str, run: dict[str, Any], recorder: Recorder) -> None:
    template, size = SokobanTemplate(run["history_length"]), _size(run["env_kwargs"])
    for place, seed in enumerate(run["seeds"]):
        recorder.cases += 1
        where = f"{name}, seed {seed}"
        player = _VerlAgent(where, seed, size, run["anchors0"][place], recorder, run["env_kwargs"]["max_steps"])
        turns: list[Turn] = []
        recorder.check(f"{where}, prompt", template.render(turns, player.shown, {"goal": "", "admissible": None}),
                       run["prompts0"][place])  # fmt: skip
        for count, row in enumerate(run["steps"], start=1):
            step = {field: values[place] for field, values in row.items() if values is not None}
            action, valid = _project(step["raw"])
            recorder.check(f"{where}, step {count}, projection", (action, valid), (step["action_int"], step["valid"]))
            turns.append(Turn(player.shown, _name(action), 0.0, ""))
            player.step(f"{where}, step {count}", action, step, recorder)
            if "prompts" in step:
                prompt = template.render(turns, player.shown, {"goal": "", "admissible": None})
                recorder.check(f"{where}, step {count}, prompt", prompt, step["prompts"])


class _VerlAgent:
    """verl-agent's environment, which goes on after its end and does not count turns without a move."""

    def __init__(self, where: str, seed: int, size: RoomSize, start: str, recorder: Recorder, limit: int = 15) -> None:
        room, attempts = make_room(seed, size)
        if attempts > 1:
            room = re.sub("[ \t]", "", start)
        self.board, self.limit, self.steps = Board(room), limit, 0
        recorder.check(f"{where}, room", self.shown, start)

    @property
    def shown(self) -> str:
        return VIEWS["verl_agent"](self.board)

    def step(self, where: str, action: int, step: dict[str, Any], recorder: Recorder) -> None:
        reward, moved, done, won = COST, False, False, False
        if action:
            self.steps += 1
            reward, moved = self.board.move(action - 1)
            won = self.board.solved
            done = won or self.steps == self.limit
        ours = {"observation": self.shown, "reward": reward, "done": done, "won": won}
        if "action_is_effective" in step:
            ours["action_is_effective"] = moved
        recorder.check_fields(where, ours, {field: value for field, value in step.items() if field not in GIVEN})


def _project(raw: str) -> tuple[int, int]:
    action, status = SokobanTemplate().read(raw, True, {})
    return (STILL, *MOVES).index(action), int(status is ParseStatus.OK)


def _name(action: int) -> str:
    return (STILL, *MOVES)[action]


KINDS = [
    Kind("sokoban/rooms", _rooms, "sokoban", ("configs",)),
    Kind("sokoban/verl_agent", _verl_agent, "verl-agent", ("runs", "projection", "episodes")),
    Kind("sokoban/boxoban_episodes", _boxoban, "boxoban", ("episodes",)),
    Kind("sokoban/ragen_episodes", _ragen, "ragen/env/sokoban", ("episodes",)),
]
