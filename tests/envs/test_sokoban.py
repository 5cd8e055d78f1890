"""Rules, rewards, dead ends, the solver, generated rooms and Boxoban's levels."""

from __future__ import annotations

import io
import random
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf
from rich.console import Console

from envs.conformance import TaskSetConformance
from envs.core import BRIEF, NoDataError, StopReason, Task, UnknownNameError
from envs.fetch import DownloadError
from envs.sokoban.board import MOVES, Board
from envs.sokoban.dead_ends import is_dead_end
from envs.sokoban.download import ARCHIVE, install
from envs.sokoban.env import ENV_ID, STILL, SokobanEnv, Solver
from envs.sokoban.generate import RoomSize, make_room
from envs.sokoban.solver import solve
from envs.sokoban.tasks import SokobanTasks
from tests.file_server import FileServer

ROOM = """\
######
#____#
##O_P#
###X_#
###__#
######"""
LEVEL = """\
##########
###    . #
## .   $.#
##    .$ #
#####    #
####   ###
##### $###
#####$ ###
#####@####
##########"""


def play(env: SokobanEnv, room: str, *actions: str) -> list[tuple[str, float, bool]]:
    env.reset(options={"task": Task("a", ENV_ID, payload={"room": room})})
    return [env.step(action)[:3] for action in actions]


def solves(room: str, moves: list[str]) -> bool:
    board = Board(room)
    for move in moves:
        board.move(MOVES.index(move))
    return board.solved


class TestGenerated(TaskSetConformance):
    def make_task_set(self) -> SokobanTasks:
        return SokobanTasks(train_tasks=20, valid_tasks=5)


class TestDeadEnds(TaskSetConformance):
    def make_task_set(self) -> SokobanTasks:
        return SokobanTasks(dead_ends="end", observation="verl_agent", boxes=2, train_tasks=3, valid_tasks=2)


@pytest.fixture(scope="module")
def levels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with a few levels in two splits."""
    folder = tmp_path_factory.mktemp("data")
    for place, count in (("unfiltered/test", 3), ("hard", 2)):
        (folder / "boxoban" / place).mkdir(parents=True)
        text = "".join(f"; {n}\n{LEVEL}\n\n" for n in range(count))
        (folder / "boxoban" / place / "000.txt").write_text(text)
    return folder


class TestBoxoban(TaskSetConformance):
    @pytest.fixture(autouse=True)
    def _folder(self, levels: Path) -> None:
        self.folder = levels

    def make_task_set(self) -> SokobanTasks:
        return SokobanTasks(levels="boxoban", data=self.folder)


# -- the environment --------------------------------------------------------------------------------------------------
def test_moves_and_rewards_are_those_of_the_reference() -> None:
    steps = play(SokobanEnv(), ROOM, "down", "down", "left", "Up", " LEFT ", "jump", "right", "up", "left")
    pushed_up = ROOM.replace("##O_P#", "##OX_#").replace("###X_#", "###P_#")
    assert [text == pushed_up for text, _, _ in steps[3:6]] == [True] * 3, "a wall, and no move at all, change nothing"
    assert [reward for _, reward, _ in steps] == [-0.1] * 8 + [10.9]
    assert [over for *_, over in steps] == [False] * 8 + [True]
    two = "#######\n#PX_O_#\n#_OX__#\n#######"
    assert [reward for _, reward, _ in play(SokobanEnv(), two, *["right"] * 3)] == [-0.1, 0.9, -1.1]


def test_the_last_box_ends_the_episode() -> None:
    env = SokobanEnv()
    env.reset(options={"task": Task("a", ENV_ID, payload={"room": "#####\n#PXO#\n#####"})})
    observation, reward, terminated, truncated, info = env.step("right")
    assert (observation, reward, terminated, truncated) == ("#####\n#_P√#\n#####", 10.9, True, False)
    assert (info["success"], info["score"], info["stop_reason"]) == (True, 1.0, StopReason.SUCCESS)


def test_admissible_are_the_moves_that_change_something() -> None:
    env = SokobanEnv()
    _, info = env.reset(options={"task": Task("a", ENV_ID, payload={"room": ROOM})})
    assert info["admissible"] == ["up", "down", "left"]
    assert info["state_key"] == ROOM
    walled = "#####\n#P#X#\n###O#\n#####"
    assert env.reset(options={"task": Task("a", ENV_ID, payload={"room": walled})})[1]["admissible"] == list(MOVES)


def test_the_brief_form_shows_the_room_once_and_then_what_moves() -> None:
    env = SokobanEnv()
    _, info = env.reset(options={"task": Task("a", ENV_ID, payload={"room": "######\n#P_XO#\n######"})})
    assert info[BRIEF] == "player 11 box 13 floor 11 floor 12 floor 13 target 14"
    assert env.step("right")[4][BRIEF] == "player 12 box 13"
    large = Board("\n".join(["#" * 12, "#P_XO" + "_" * 6 + "#", "#" * 12]))
    assert env.reset(options={"task": Task("a", ENV_ID, payload={"room": large.text})})[1][BRIEF].startswith(
        "player 101 box 103"
    )


@pytest.mark.parametrize(
    ("room", "message"),
    [
        ("", "walls"),
        ("####\n#P?#\n####", "got '?'"),
        ("#####\n#PXO#\n####", "one length"),
        ("#####\n_PXO#\n#####", "walls"),
        ("#####\n#PX_#\n#####", "1 boxes and 0 targets"),
        ("######\n#PXOP#\n######", "2 players"),
        ("####\n#P_#\n####", "0 boxes"),
        ("#" * 10_001, "10,000 cells"),
    ],
)
def test_a_text_that_is_no_room_is_an_error(room: str, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        Board(room)


def test_an_invalid_task_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="room as text"):
        SokobanEnv().reset(options={"task": Task("a", ENV_ID)})
    with pytest.raises(UnknownNameError, match="grid_coord"):
        SokobanEnv(observation="grid_cord")
    with pytest.raises(UnknownNameError, match="turn_reward"):
        SokobanTasks(dead_ends="reward")
    with pytest.raises(ValueError, match="at least 4 rows"):
        SokobanTasks(rows=3)
    monkeypatch.setattr("envs.sokoban.tasks.make_room", lambda *_: (ROOM, 1))
    with pytest.raises(ValueError, match="no more rooms"):
        SokobanTasks().manifest("valid")


# -- dead ends --------------------------------------------------------------------------------------------------------
def test_a_move_into_a_dead_end_is_noted_or_ends_the_episode() -> None:
    room = "#######\n#__X__#\n#__P_O#\n#_____#\n#######"
    free = "#######\n#_____#\n#__X__#\n#__P_O#\n#######"
    assert is_dead_end(Board(room))
    assert not is_dead_end(Board(free))
    for kind, ended in (("turn_reward", False), ("end", True)):
        env = SokobanEnv(dead_ends=kind)
        env.reset(options={"task": Task("a", ENV_ID, payload={"room": free})})
        _, reward, terminated, _, info = env.step("up")
        assert (reward, terminated, info["turn_reward"]) == (-0.1, ended, -1.0)
        if not ended:
            assert env.step("down")[4]["turn_reward"] == 0.0, "one that was there before"
        else:
            assert info["stop_reason"] is StopReason.FAILURE
    env = SokobanEnv()
    assert "turn_reward" not in play_info(env, free, "up")


def play_info(env: SokobanEnv, room: str, action: str) -> dict[str, Any]:
    env.reset(options={"task": Task("a", ENV_ID, payload={"room": room})})
    return env.step(action)[4]


def test_no_position_that_can_be_solved_is_called_a_dead_end() -> None:
    rng, called, dead = random.Random(0), 0, 0
    for seed in range(60):
        room, _ = make_room(seed, RoomSize(boxes=2))
        board = Board(room)
        for _ in range(12):
            board.move(rng.randrange(4))
            unsolvable = not board.solved and solve(board.text) is None
            dead += unsolvable
            if is_dead_end(board):
                called += 1
                assert unsolvable, board.text
    assert called > 0.8 * dead


# -- the solver -------------------------------------------------------------------------------------------------------
def test_the_solver_finds_shortest_solutions_of_small_rooms_and_the_same_from_each_position() -> None:
    for seed in range(40):
        room, _ = make_room(seed, RoomSize())
        moves = solve(room)
        assert moves is not None
        assert solves(room, moves)
        board = Board(room)
        board.move(MOVES.index(moves[0]))
        assert solve(board.text) == moves[1:]


def test_the_solver_solves_a_level_of_boxoban_and_knows_what_cannot_be_solved() -> None:
    room = LEVEL.translate(str.maketrans(" $@.", "_XPO"))
    moves = solve(room)
    assert moves is not None
    assert solves(room, moves)
    assert solve(room, most_expanded=3) is None
    assert solve("#####\n#XPO#\n#####") is None
    assert solve("#####\n#P√_#\n#####") == []


def test_the_expert_goes_on_after_other_actions_and_stands_still_in_dead_ends() -> None:
    env, expert = SokobanEnv(max_turns=30), Solver()
    expert.reset(*env.reset(options={"task": Task("a", ENV_ID, payload={"room": ROOM})}))
    for action in ("up", "jump", "down", "up"):
        observation, *_, info = env.step(action)
        expert.observe(action, observation, info)
    over = False
    while not over:
        action = expert.act()
        assert expert.act() == action
        observation, _, over, _, info = env.step(action)
        expert.observe(action, observation, info)
    assert info["success"]
    expert.reset(*env.reset(options={"task": Task("a", ENV_ID, payload={"room": "#####\n#XPO#\n#####"})}))
    assert expert.act() == STILL


# -- tasks ------------------------------------------------------------------------------------------------------------
def test_a_room_of_valid_is_not_in_train_and_none_is_twice() -> None:
    tasks = SokobanTasks(train_tasks=300, valid_tasks=60)
    rooms = {split: [tasks.task(split, i).payload["room"] for i in tasks.manifest(split).ids] for split in tasks.splits}
    assert len(set(rooms["valid"])) == 60
    assert not set(rooms["valid"]) & set(rooms["train"])
    assert tasks.manifest("valid").ids != tuple(f"seed-{seed:07d}" for seed in range(1_000_000, 1_000_060))


def test_a_retry_gives_the_same_room_everywhere() -> None:
    room, attempts = make_room(24, RoomSize(8, 8, 2, 10))
    assert attempts == 2
    assert room.split("\n") == [
        "########", "#####_O#", "####___#", "####_O_#", "####_XX#", "####_P_#", "#####__#", "########",
    ]  # fmt: skip


def test_impossible_sizes_are_an_error() -> None:
    with pytest.raises(ValueError, match="gave no room"):
        make_room(0, RoomSize(4, 4, 3))


def test_defaults_are_those_of_the_configuration_and_gymnasium_makes_it() -> None:
    tasks = instantiate(OmegaConf.load("conf/env/sokoban.yaml"), train_tasks=3, valid_tasks=2)
    ours = SokobanTasks(train_tasks=3, valid_tasks=2)
    assert tasks.manifest("valid") == ours.manifest("valid")
    assert tasks.describe() == ours.describe()
    env = gym.make(ENV_ID)
    assert env.reset(seed=3)[0] == env.reset(seed=3)[0]


def test_levels_keep_their_published_order_and_incomplete_splits_say_so(levels: Path) -> None:
    tasks = SokobanTasks(levels="boxoban", data=levels)
    assert tasks.splits == ("unfiltered_test", "hard")
    assert tasks.eval_splits == ["unfiltered_test"]
    assert tasks.manifest("hard").ids == ("hard/000-0000", "hard/000-0001")
    assert "2 of the official 3332 tasks" in tasks.manifest("hard").describe()
    assert tasks.task("hard", "hard/000-0001").payload["room"].startswith("##########\n###____O_#")
    assert tasks.max_turns == 120
    for wrong in ("hard/000-0002", "hard/000-1", "hard/001-0000", "000-0000"):
        with pytest.raises(UnknownNameError, match="hard/000-0000"):
            tasks.task("hard", wrong)
    with pytest.raises(NoDataError, match=r"scripts\.download boxoban"):
        SokobanTasks(levels="boxoban", data=levels / "nothing")


# -- the download -----------------------------------------------------------------------------------------------------
def archived(*names: str, level: str = LEVEL) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as packed:
        for name in names:
            packed.writestr(name, f"; 0\n{level}\n")
    return file.getvalue()


@pytest.fixture
def server() -> Iterator[FileServer]:
    with FileServer().running() as running:
        yield running


def said() -> Console:
    return Console(file=io.StringIO(), width=200)


def test_levels_are_unpacked_from_the_archive(server: FileServer, tmp_path: Path) -> None:
    inside = "boxoban-levels-master"
    server.contents = {ARCHIVE: archived(f"{inside}/hard/000.txt", f"{inside}/medium/train/001.txt", f"{inside}/x.txt")}
    console = said()
    install(tmp_path, address=f"{server.address}/{ARCHIVE}", console=console)
    install(tmp_path, address=f"{server.address}/{ARCHIVE}", console=console)
    kept = {path.relative_to(tmp_path / "boxoban").as_posix() for path in tmp_path.glob("boxoban/**/*.*")}
    assert {name for name in kept if name.endswith((".txt", ".zip"))} == {"hard/000.txt", "medium/train/001.txt"}
    assert SokobanTasks(levels="boxoban", data=tmp_path).splits == ("medium_train", "hard")
    assert isinstance(console.file, io.StringIO)
    assert "1 of the official 450000 tasks" in console.file.getvalue()


@pytest.mark.parametrize("place", ["", "boxoban"])
def test_levels_are_copied_from_a_mirror(place: str, tmp_path: Path) -> None:
    folder = tmp_path / "mirror" / place / "unfiltered" / "test"
    folder.mkdir(parents=True)
    (folder / "000.txt").write_text(f"; 0\n{LEVEL}\n")
    install(tmp_path / "data", tmp_path / "mirror", console=said())
    assert SokobanTasks(levels="boxoban", data=tmp_path / "data").splits == ("unfiltered_test",)


def test_an_invalid_level_is_refused(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "mirror").mkdir()
    for content in (archived("hard/000.txt", level=LEVEL.replace("@", "?")), archived("hard/000.txt", level=""), b"x"):
        (tmp_path / "mirror" / ARCHIVE).write_bytes(content)
        with pytest.raises(DownloadError):
            install(tmp_path / "data", tmp_path / "mirror", console=said())
    with pytest.raises(DownloadError, match=f"no {ARCHIVE}"):
        install(tmp_path / "data", tmp_path / "data", console=said())
    assert not list((tmp_path / "data").glob("**/*.txt"))
