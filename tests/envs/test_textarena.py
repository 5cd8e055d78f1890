"""TextArena's one-player games: by seed, with the package's texts and results. Recordings are in test_env_replay."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from envs.conformance import Subject, TaskSetConformance
from envs.core import Info, Task, UnknownNameError
from envs.partners import Lines
from envs.textarena.env import TextArenaEnv
from envs.textarena.game import registry
from envs.textarena.moves import RandomMoves, listed_moves
from envs.textarena.tasks import GAMES, TWO_PLAYERS, TextArenaTasks, folder_of, games
from tests.engines import needs_package

pytestmark = needs_package("textarena", "textarena")

ACTIONS = (  # of one game or another
    "[up]", "[down]", "[left]", "[right]", "[hit]", "[stand]", "[accept]", "[continue]", "[red]", "[blue]", "[7]",
    "[1]", "[0 1]", "[2 3]", "[4 1]", "[6 13]", "[A C]", "[A B]", "[B C]", "[A 5]", "[S 9]", "[X+]", "[A-]", "[h 0 0]",
    "[v 1 1]", "[0 1 +]", "[0 1 *]", "[1 2 3 4]", "[5 6 1 2]", "[1 1 5]",
)  # fmt: skip


class TestConformance(TaskSetConformance):
    def make_task_set(self) -> TextArenaTasks:
        return TextArenaTasks("2048-v0", train_tasks=2, valid_tasks=2, max_turns=6)


class TestConformanceOfAGameWithoutActions(TaskSetConformance):
    def make_task_set(self) -> TextArenaTasks:
        return TextArenaTasks("Minesweeper-v0", train_tasks=2, valid_tasks=2, max_turns=2)

    def subject(self) -> Subject:
        tasks = self.make_task_set()
        return Subject(tasks.make, [tasks.task("valid", "seed-1000001")])


def start(game: str, seed: int, max_turns: int = 100) -> tuple[TextArenaEnv, str, Info]:
    env = TextArenaTasks(game, max_turns).make()
    text, info = env.reset(options={"task": Task("one", env="a", payload={"game": game, "seed": seed})})
    return env, text, info


def play(game: str, seed: int, actions: list[str]) -> list[Any]:
    env, text, info = start(game, seed)
    seen: list[Any] = [(text, info)]
    for action in actions:
        if not info["stop_reason"]:
            *got, info = env.step(action)
            seen.append((*got, info))
    return seen


@pytest.mark.parametrize("folder", GAMES)
def test_every_game_can_be_played_and_equal_seeds_are_equal_games(folder: str) -> None:
    from textarena.envs.registration import ENV_REGISTRY

    name = min((name for name in games() if folder_of(ENV_REGISTRY[name]) == folder), key=len)
    rng, ended = random.Random(folder), 0
    for seed in range(2):
        actions = rng.choices(ACTIONS, k=30)
        seen = play(name, seed, actions)
        assert seen[0][0].startswith("[GAME] ")
        assert "[Player] " not in seen[1][0]
        assert seen == play(name, seed, actions)
        assert all(math.isfinite(reward) for _, reward, *_ in seen[1:])
        ended += bool(seen[-1][-1]["stop_reason"])
    assert ended or folder in ("Bandit", "LightsOut", "Blackjack", "Countdown")


def test_the_way_to_the_goal_wins() -> None:
    *_, (text, reward, terminated, _, info) = play("FrozenLake-v0", 42, ["[down]", "s", "[s]", *["[right]"] * 3])
    assert (reward, terminated, info["success"], info["stop_reason"]) == (1.0, True, True, "success")
    assert text.endswith("[GAME] Congratulations! You reached the goal!")


def test_an_observation_has_only_the_new_messages() -> None:
    (first, info), (second, *_), *_ = play("Mastermind-v0", 42, ["[5 6 1 2]", "[1 2 3 4]"])
    assert first == f"[GAME] {info['goal']}"
    assert second == "[GAME] Submitted [5 6 1 2]. Feedback: 0 black peg(s), 3 white peg(s)."
    (board, _), (other, *_), *_ = play("Sokoban-v0-train", 42, ["[down]"])
    assert board[:40] == other[:40] != ""
    assert board != other


def test_an_invalid_move_has_a_message_and_a_second_one_loses() -> None:
    _, told, lost = play("Mastermind-v0", 42, ["[5 6]", "what?"])
    assert told[0].startswith("[GAME] You attempted an invalid move. Reason: The guess should contain exactly 4")
    assert told[1:4] == (0.0, False, False)
    assert told[-1]["state_key"] != lost[-1]["state_key"]
    assert lost[0].startswith("[GAME] Invalid Move: You did not respond with a space-separated list")
    assert (lost[1], lost[2], lost[-1]["stop_reason"]) == (0.0, True, "failure")


def test_a_game_that_mixes_up_reward_and_reason_is_read_right() -> None:
    *_, lost = play("Slitherlink-v0", 42, ["what?", "what?"])
    assert lost[1] == 0.25
    assert lost[0].endswith("[GAME] Invalid Move: Bad action format. Use [h row col] or [v row col].")


def test_the_fifteen_puzzle_can_be_solved() -> None:
    env, _, _ = start("FifteenPuzzle-v0", 42)
    board = env._game._env.board
    numbers = [*range(1, 15), None, 15]
    board[:] = [numbers[row * 4 : row * 4 + 4] for row in range(4)]
    _, reward, terminated, _, info = env.step("[left]")
    assert (reward, terminated, info["stop_reason"]) == (1.0, True, "success")


def test_the_page_shows_an_episode() -> None:
    page = Path("docs/environments/textarena.md").read_text(encoding="utf-8")
    block = next(block for block in page.split("\n\n") if "    > [" in block)
    lines = [line.removeprefix("    ") for line in block.splitlines()]
    actions = [line.removeprefix("> ") for line in lines if line.startswith("> ")]
    (first, _), *rest = play("Mastermind-v0", 1_000_000, actions)
    shown = [line for text, *_ in rest for line in text.splitlines()]
    assert lines[0] == first.splitlines()[0]
    assert [line for line in lines if line.startswith("[GAME]")][1:] == shown
    assert rest[-1][-1]["success"]


def test_the_turn_limit_is_ours_or_that_of_the_game() -> None:
    env, _, _ = start("GuessTheNumber-v0", 7, max_turns=2)
    assert env.step("[2]")[4]["stop_reason"] is None
    assert env.step("[3]")[4]["stop_reason"] == "turn_limit"
    *_, (text, reward, *_, info) = play("LightsOut-v0", 42, ["[0 0]"] * 20)
    assert info["stop_reason"] == "failure"
    assert 0 <= reward < 1
    assert "You used all 20 moves without solving the puzzle." in text


def test_different_seeds_give_different_games() -> None:
    tasks = TextArenaTasks("Sudoku-v0")
    env = tasks.make()
    texts = {
        env.reset(options={"task": tasks.task(split, tasks.manifest(split).ids[number])})[0]
        for split in ("train", "valid")
        for number in (0, 1)
    }
    assert len(texts) == 4
    assert tasks.manifest("train") != TextArenaTasks("Sudoku-v0-easy").manifest("train")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("Wordle-v0", "corpus of NLTK"),
        ("TwentyQuestions-v0", "needs a key"),
        ("UltimateTexasHoldem-v0", "SyntaxError"),
        ("BabyAiText-v0", "env=babyai"),
        ("Set-v0", "counts points"),
        ("SecretMafia-v0", "more than two players"),
        ("Mastermind-v0-raw", "does not show it as text"),
        ("LightsOut-v0-train", "does not show it as text"),
    ],
)
def test_a_game_that_cannot_be_played_is_refused_with_the_reason(name: str, reason: str) -> None:
    with pytest.raises(ValueError, match=f"env.game={name} cannot be played: .*{reason}"):
        TextArenaTasks(name)


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'Mastermind-v0'"):
        TextArenaTasks("Mastermnd-v0")
    with pytest.raises(ValueError, match="needs a Task with the payload of TextArenaTasks"):
        TextArenaEnv().reset(options={"task": Task("a", "b")})


def test_the_configuration_has_the_defaults() -> None:
    with initialize_config_dir(str(Path("conf").absolute()), version_base="1.3"):
        cfg = compose("env/textarena", ["env.game=2048-v0"]).env
    tasks, ours = instantiate(cfg), TextArenaTasks("2048-v0")
    assert tasks.manifest("valid") == ours.manifest("valid")
    assert tasks.max_turns == ours.max_turns


# -- games for two -----------------------------------------------------------------------------------------------------
class TestConformanceOfAGameForTwo(TaskSetConformance):
    def make_task_set(self) -> TextArenaTasks:
        return TextArenaTasks("TicTacToe-v0", train_tasks=2, valid_tasks=2, max_turns=6)


class Scripted:
    """An opponent who plays given moves, and remembers what it was shown."""

    name = "scripted"

    def __init__(self, *moves: str) -> None:
        self.moves = moves
        self.shown: list[tuple[str, ...]] = []

    def answer(self, instruction: str, said: Sequence[str]) -> str:
        assert "another player" in instruction
        self.shown.append(tuple(said))
        return self.moves[len(said) // 2]


def against(partner: Any, seed: int = 0, game: str = "TicTacToe-v0") -> tuple[TextArenaEnv, str, Info]:
    tasks = TextArenaTasks(game, partner=partner)
    env = tasks.make()
    text, info = env.reset(options={"task": tasks.task("train", f"seed-{seed:07d}")})
    return env, text, info


def test_the_first_player_sees_the_moves_of_the_second_and_wins() -> None:
    partner = Scripted("[0]", "[1]")
    env, text, info = against(partner)
    assert "You are Player 0" in text
    assert info["admissible"] == [f"[{cell}]" for cell in range(9)]
    text, reward, over, _, info = env.step("[4]")
    assert "[Player 1] [0]" in text
    assert "[Player 0] [4]" not in text
    assert (reward, over, info["admissible"][0], info["partner"]) == (0.0, False, "[1]", "scripted")
    env.step("[3]")
    text, reward, over, _, info = env.step("[5]")
    assert text.startswith("[GAME] Player 0 placed their symbol (O) in cell 5.")
    assert text.endswith("\n[GAME] Player 0 has won!")
    assert (reward, over, info["success"], info["score"]) == (1.0, True, True, 1.0)
    assert [len(said) for said in partner.shown] == [1, 3]
    assert "You are Player 1" in partner.shown[0][0]
    assert "[Player 1] [0]" not in partner.shown[1][2]
    assert "[Player 0] [3]" in partner.shown[1][2]


def test_the_second_player_loses_to_the_first() -> None:
    env, text, info = against(Scripted("[4]", "[3]", "[5]"), seed=1)
    assert "You are Player 1" in text
    assert "[Player 0] [4]" in text
    env.step("[0]")
    text, reward, over, _, info = env.step("[1]")
    assert text == "[Player 0] [5]\n[GAME] Player 0 has won!"
    assert (reward, over, info["success"], info["score"]) == (-1.0, True, False, 0.0)


@pytest.mark.parametrize(("own", "reward"), [(True, -1.0), (False, 1.0)])
def test_a_player_loses_by_two_invalid_moves_in_a_row(own: bool, reward: float) -> None:
    env, _, _ = against(Scripted("[8]", "[8]") if own else Scripted("[9]", "[nine]"))
    first = env.step("[0]")
    given = env.step("[77]") if own else first
    if own:
        assert not given[2]
        given = env.step("[77]")
    assert (given[1], given[2], given[4]["success"]) == (reward, True, not own)


def test_a_snapshot_of_a_game_for_two_does_not_ask_the_opponent_again() -> None:
    partner = Scripted("[0]", "[1]", "[2]")
    env, _, _ = against(partner)
    text, *_ = env.step("[4]")
    saved, asked = env.snapshot(), len(partner.shown)
    other = TextArenaTasks("TicTacToe-v0", partner=partner).make()
    other.restore(saved)
    assert (len(partner.shown), other.render()) == (asked, text)
    assert other.step("[8]")[0] == env.step("[8]")[0]


@pytest.mark.parametrize("folder", [name for name, moves in TWO_PLAYERS.items() if moves is not None])
def test_random_moves_play_every_game_that_lists_its_moves(folder: str) -> None:
    name = next(name for name in games() if folder_of(registry()[name]) == folder)
    ends = []
    for seed in (0, 1):
        env, _, info = against(None, seed, name)
        rng = random.Random(seed)
        while not info["stop_reason"]:
            *_, info = env.step(rng.choice(info["admissible"]))
        ends.append(info["stop_reason"])
    assert len(ends) == 2


@pytest.mark.parametrize("folder", [name for name, moves in TWO_PLAYERS.items() if moves is None])
def test_an_opponent_must_be_chosen_where_no_moves_are_listed(folder: str) -> None:
    name = next(name for name in games() if folder_of(registry()[name]) == folder)
    with pytest.raises(ValueError, match=r"choose the opponent with env/partner=endpoint, local or lines"):
        TextArenaTasks(name)
    env, text, info = against(Lines(["hello"]), 0, name)
    assert text
    assert info["partner"].startswith("lines")
    env.step("hello")


def test_moves_are_read_from_the_last_list() -> None:
    assert listed_moves("Available Moves: '[0]', '[1]'\nboard\nAvailable Moves: '[2, 3]', [a b], [2, 3]") == [
        "[2, 3]",
        "[a b]",
    ]
    assert listed_moves("Your possible actions: '[check]', '[bet X]'") == ["[check]"]
    assert listed_moves("Reply in the format '[<number>]'.") == []
    assert RandomMoves(["[a]"]).answer("", ["x"]) == "[a]"
    said = ["Available Moves: '[0]', '[1]', '[2]'"]
    assert RandomMoves().answer("", said) == RandomMoves().answer("", said)
    with pytest.raises(ValueError, match="lists no moves"):
        RandomMoves().answer("", ["hello"])


def test_a_game_for_one_has_no_partner() -> None:
    with pytest.raises(ValueError, match="Mastermind-v0 has one player, so it has no partner"):
        TextArenaTasks("Mastermind-v0", partner=Lines(["a"]))
