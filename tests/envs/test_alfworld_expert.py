"""The expert reads its text, solves the games, and continues after actions of others."""

import json
import os
import random
import re
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.alfworld.env import ALFWorldEnv
from envs.alfworld.expert import Expert, Goal, Memory, count_prior, load_prior
from envs.alfworld.game import GAME_FILE, Game, load_game, load_games
from envs.alfworld.generate import HELD_OUT_FLOOR_PLANS, TASK_TYPES, generate_game

DATA = os.environ.get("POLYTURN_DATA")
OFFICIAL = Path(DATA or "", "alfworld", "json_2.1.1")
NEEDS_DATA = pytest.mark.skipif(
    not (DATA and (OFFICIAL / "valid_seen").is_dir()), reason="needs official games in POLYTURN_DATA"
)


class Blindfold(dict[str, object]):
    """An info that raises when it is read."""

    def _peek(self, *_: object) -> NoReturn:
        raise AssertionError("the expert looked into info")

    __getitem__ = __contains__ = __iter__ = get = items = keys = values = _peek


class Player:
    """An expert in an environment in which other agents may act too."""

    def __init__(self, path: str | Path, turns: int = 50, others: int = 0) -> None:
        self.env = ALFWorldEnv(max_turns=turns + others)
        self.expert = Expert()
        observation, self.info = self.env.reset(options={"task": path})
        self.expert.reset(observation, Blindfold())
        self.game = load_game(path)
        self.over = False
        self.refused: list[str] = []
        self.turns = 0

    def play(self, action: str) -> str:
        observation, _, terminated, truncated, self.info = self.env.step(action)
        self.expert.observe(action, observation, Blindfold())
        self.over = terminated or truncated
        self.turns += 1
        return observation

    def finish(self, turns: int = 50) -> None:
        """Let the expert play to the end, and check that it never repeats a refused action."""
        for _ in range(turns):
            if self.over:
                return
            action = self.expert.act()
            assert self.expert.act() == action  # asking changes nothing
            if self.play(action) == "Nothing happens.":
                assert self.expert.act() != action
                self.refused.append(action)

    @property
    def success(self) -> bool:
        return bool(self.info["success"])

    def is_lost(self) -> bool:
        """Whether the agent holds a thing that no receptacle takes, such as a roll of paper towels."""
        commands = self.info["admissible"]
        held = [c.split(" ", 1)[1] for c in commands if c.startswith("examine ") and c[8:] in self.game.objects]
        return bool(held) and not any(mask >> self.game.objects.index(held[0]) & 1 for mask in self.game.accepts)


def official(split: str) -> list[Path]:
    return sorted((OFFICIAL / split).glob(f"*/*/{GAME_FILE}"))


def solve(paths: list[Path]) -> tuple[float, float]:
    """Success rate and mean number of turns, failures included."""
    players = [Player(path) for path in paths]
    for player in players:
        player.finish()
    return sum(p.success for p in players) / len(players), sum(p.turns for p in players) / len(players)


def write_games(folder: Path, seeds: range, **choice: object) -> list[Path]:
    paths = []
    for seed in seeds:
        path = folder / str(seed) / GAME_FILE
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(generate_game(seed, **choice).content))  # type: ignore[arg-type]
        paths.append(path)
    return paths


# -- official games ---------------------------------------------------------------------------------------------------
@NEEDS_DATA
@pytest.mark.parametrize(("split", "turns"), [("valid_seen", 7.5), ("valid_unseen", 8.6)])
def test_solves_every_official_validation_game(split: str, turns: float) -> None:
    rate, mean = solve(official(split))
    assert rate == 1.0
    assert mean <= turns


@pytest.fixture(scope="module")
def train() -> Iterator[list[Path]]:
    """The official training games, unpacked from an archive beside `json_2.1.1` where that is how they are kept."""
    archive = OFFICIAL.parent / "train.tar.xz"
    if games := official("train"):
        yield games
    elif archive.is_file():
        with tempfile.TemporaryDirectory() as folder, tarfile.open(archive) as tar:
            wanted = re.compile(rf"(.*/)?train/[^/]+/[^/]+/{re.escape(GAME_FILE)}")
            tar.extractall(folder, (m for m in tar if wanted.fullmatch(m.name)), filter="data")
            yield sorted(Path(folder).glob(f"**/{GAME_FILE}"))
    else:
        pytest.skip("needs official training games in POLYTURN_DATA")


@NEEDS_DATA
def test_the_prior_that_ships_is_the_count_over_the_training_games(train: list[Path], tmp_path: Path) -> None:
    assert len(train) == 3553
    assert count_prior(load_games(train, cache_dir=tmp_path)) == load_prior()


@NEEDS_DATA
def test_solves_the_official_training_games(train: list[Path]) -> None:
    rate, mean = solve(train[::5])
    assert rate >= 0.998
    assert mean <= 8.4


@NEEDS_DATA
@pytest.mark.parametrize("others", [1, 5, 20, 50])
def test_continues_after_actions_of_others(others: int) -> None:
    """After random moves, some of them nonsense, every game is solved that can still be solved."""
    rng = random.Random(others)
    lost = 0
    for path in official("valid_unseen") + official("valid_seen")[::2]:
        player = Player(path, others=others)
        while player.turns < others and not player.over:
            player.play(
                rng.choice([*player.info["admissible"], "take apple 1 from fridge 1", "go to cabinet 1", "dance"])
            )
        player.finish()
        lost += player.is_lost()
        assert player.success or player.is_lost(), path
    assert lost < 10


@NEEDS_DATA
def test_labels_every_state_of_an_episode_that_others_play() -> None:
    """Half of all actions are random: the expert's advice is still good enough to win."""
    rng = random.Random(0)
    won = 0
    paths = official("valid_seen")
    for path in paths:
        player = Player(path, turns=100)
        while not player.over:
            player.play(player.expert.act() if rng.random() < 0.5 else rng.choice(player.info["admissible"]))
        won += player.success
    assert won >= 0.9 * len(paths)


# -- generated games --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("task_type", TASK_TYPES)
def test_solves_generated_games(task_type: str, tmp_path: Path) -> None:
    pytest.importorskip("alfworld", reason="needs polyturn[alfworld]")
    rate, _ = solve(write_games(tmp_path, range(40), task_type=task_type, floor_plans=HELD_OUT_FLOOR_PLANS))
    assert rate >= 0.95


@settings(max_examples=60)
@given(seed=st.integers(0, 10_000), others=st.integers(0, 60), salt=st.integers())
def test_the_expert_never_repeats_a_refused_action(
    tmp_path_factory: pytest.TempPathFactory, seed: int, others: int, salt: int
) -> None:
    """From any history the expert goes on for as long as it is asked, without repeating a refused action."""
    pytest.importorskip("alfworld", reason="needs polyturn[alfworld]")
    player = Player(write_games(tmp_path_factory.mktemp("game"), range(seed, seed + 1))[0], turns=150, others=others)
    rng = random.Random(salt)
    while player.turns < others and not player.over:
        player.play(rng.choice(player.info["admissible"]))
    player.finish(turns=150)
    assert player.success or player.is_lost()


# -- text by hand -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("task", "goal"),
    [
        ("put a mug in desk.", Goal("mug", "desk")),
        ("put some soapbar on toilet.", Goal("soapbar", "toilet")),
        ("put a clean plate in shelf.", Goal("plate", "shelf", treatment="clean")),
        ("clean some plate and put it in shelf.", Goal("plate", "shelf", treatment="clean")),
        ("put a hot egg in garbagecan.", Goal("egg", "garbagecan", treatment="heat")),
        ("heat some egg and put it in garbagecan.", Goal("egg", "garbagecan", treatment="heat")),
        ("put a cool pan in stoveburner.", Goal("pan", "stoveburner", treatment="cool")),
        ("cool some pan and put it in stoveburner.", Goal("pan", "stoveburner", treatment="cool")),
        ("put two cd in drawer.", Goal("cd", "drawer", count=2)),
        ("find two cd and put them in drawer.", Goal("cd", "drawer", count=2)),
        ("look at bowl under the desklamp.", Goal("bowl", lamp="desklamp")),
        ("examine the bowl with the floorlamp.", Goal("bowl", lamp="floorlamp")),
    ],
)
def test_reads_every_kind_of_task(task: str, goal: Goal) -> None:
    assert Goal.parse(introduce("a desk 1", task)) == goal


@pytest.mark.parametrize("text", ["Your task is to: dust the shelves.", "Hello.", ""])
def test_an_unknown_task_text_is_named(text: str) -> None:
    with pytest.raises(ValueError, match=r"does not understand the task.*put a clean mug in shelf"):
        Expert().reset(text, {})


def test_a_missing_introduction_raises() -> None:
    with pytest.raises(ValueError, match="no list of receptacles"):
        Expert().reset("Your task is to: put a mug in desk.", {})


def introduce(receptacles: str, task: str) -> str:
    return (
        "-= Welcome to TextWorld, ALFRED! =-\n\nYou are in the middle of a room. Looking quickly around you, you see "
        f"{receptacles}.\n\nYour task is to: {task}"
    )


def after(receptacles: str, task: str, *turns: tuple[str, str]) -> str:
    """The expert's action after these turns."""
    expert = Expert()
    expert.reset(introduce(receptacles, task), {})
    for action, observation in turns:
        expert.observe(action, observation, {})
    return expert.act()


AT_DESK = ("go to desk 1", "You arrive at desk 1. On the desk 1, you see a mug 1, and a pen 1.")
AT_DRAWER = ("go to drawer 1", "You arrive at drawer 1. The drawer 1 is closed.")
TAKE_MUG = ("take mug 1 from desk 1", "You pick up the mug 1 from the desk 1.")
TAKE_PEN = ("take pen 1 from desk 1", "You pick up the pen 1 from the desk 1.")
REFUSED = "Nothing happens."
ROOM = "a desk 1, a drawer 1, a shelf 1, a sinkbasin 1, a microwave 1, and a fridge 1"


def test_searches_the_likeliest_receptacle_for_its_steps_first() -> None:
    assert after("a drawer 1, a countertop 1, and a toilet 1", "put a toiletpaper in drawer.") == "go to toilet 1"
    assert after("a drawer 1, a countertop 1, and a toilet 1", "put a spatula in drawer.") == "go to countertop 1"


def test_takes_treats_and_places() -> None:
    task = "put a clean mug in shelf."
    assert after(ROOM, task, AT_DESK) == "take mug 1 from desk 1"
    assert after(ROOM, task, AT_DESK, TAKE_MUG) == "go to sinkbasin 1"
    sink = ("go to sinkbasin 1", "You arrive at sinkbasin 1. On the sinkbasin 1, you see nothing.")
    assert after(ROOM, task, AT_DESK, TAKE_MUG, sink) == "clean mug 1 with sinkbasin 1"
    clean = ("clean mug 1 with sinkbasin 1", "You clean the mug 1 using the sinkbasin 1.")
    assert after(ROOM, task, AT_DESK, TAKE_MUG, sink, clean) == "go to shelf 1"


def test_heats_again_what_was_cooled_since() -> None:
    microwave = ("go to microwave 1", "You arrive at microwave 1. The microwave 1 is closed.")
    heat = ("heat mug 1 with microwave 1", "You heat the mug 1 using the microwave 1.")
    fridge = ("go to fridge 1", "You arrive at fridge 1. The fridge 1 is closed.")
    cool = ("cool mug 1 with fridge 1", "You cool the mug 1 using the fridge 1.")
    history = [AT_DESK, TAKE_MUG, microwave, heat]
    assert after(ROOM, "put a hot mug in shelf.", *history) == "go to shelf 1"
    assert after(ROOM, "put a hot mug in shelf.", *history, fridge, cool) == "go to microwave 1"


def test_opens_what_is_closed_before_it_puts_things_there() -> None:
    assert after(ROOM, "put a pen in drawer.", AT_DESK, TAKE_PEN, AT_DRAWER) == "open drawer 1"
    opened = ("open drawer 1", "You open the drawer 1. The drawer 1 is open. In it, you see nothing.")
    assert after(ROOM, "put a pen in drawer.", AT_DESK, TAKE_PEN, AT_DRAWER, opened) == "move pen 1 to drawer 1"


def test_a_receptacle_without_a_go_to_command_is_within_reach() -> None:
    refused = ("go to drawer 1", REFUSED)
    history = [AT_DESK, TAKE_PEN, refused]
    assert after(ROOM, "put a pen in drawer.", *history) == "open drawer 1"
    # It stays known which receptacles share a place.
    away = ("go to shelf 1", "You arrive at shelf 1. On the shelf 1, you see nothing.")
    back = ("go to desk 1", "You arrive at desk 1. On the desk 1, you see a mug 1.")
    assert after(ROOM, "put a pen in drawer.", *history, away) == "go to drawer 1"
    assert after(ROOM, "put a pen in drawer.", *history, away, back) == "open drawer 1"


def test_examines_what_was_open_already() -> None:
    history = [AT_DRAWER, ("close drawer 1", REFUSED), ("go to shelf 1", REFUSED), ("open shelf 1", REFUSED)]
    memory = Memory(introduce(ROOM, "put a pen in desk."))
    for action, observation in history:
        memory.observe(action, observation)
    assert memory.here == {"drawer 1", "shelf 1"}
    assert memory.open == {"drawer 1": False, "shelf 1": True}


def test_puts_away_what_it_does_not_need() -> None:
    assert after(ROOM, "put a mug in shelf.", AT_DESK, TAKE_PEN) == "move pen 1 to desk 1"
    # At a closed receptacle it goes on, and puts the pen down where it takes the mug.
    assert after(ROOM, "put a mug in shelf.", AT_DESK, TAKE_PEN, AT_DRAWER) == "go to desk 1"


def test_fetches_an_object_that_was_moved() -> None:
    moved = [
        ("go to shelf 1", "You arrive at shelf 1. On the shelf 1, you see nothing."),
        ("move mug 1 to shelf 1", "You move the mug 1 to the shelf 1."),
    ]
    assert after(ROOM, "put a mug in desk.", AT_DESK, TAKE_MUG, *moved) == "take mug 1 from shelf 1"
    assert after(ROOM, "put a mug in desk.", AT_DESK, TAKE_MUG, *moved, AT_DRAWER) == "go to shelf 1"


def test_the_second_object_goes_where_the_first_one_is() -> None:
    room = "a desk 1, a drawer 3, a drawer 2, and a drawer 1"
    history = [
        ("go to drawer 2", "You arrive at drawer 2. The drawer 2 is closed."),
        ("open drawer 2", "You open the drawer 2. The drawer 2 is open. In it, you see a pen 3."),
        ("go to desk 1", "You arrive at desk 1. On the desk 1, you see a mug 1, and a pen 1."),
    ]
    assert after(room, "put two pen in drawer.", *history) == "take pen 1 from desk 1"
    taken = ("take pen 1 from desk 1", "You pick up the pen 1 from the desk 1.")
    assert after(room, "put two pen in drawer.", *history, taken) == "go to drawer 2"


def test_uses_a_lamp_that_it_has_seen() -> None:
    room = "a desk 1, a dresser 1, and a bed 1"
    desk = ("go to desk 1", "You arrive at desk 1. On the desk 1, you see a cd 1.")
    dresser = ("go to dresser 1", "You arrive at dresser 1. On the dresser 1, you see a desklamp 1.")
    taken = ("take cd 1 from desk 1", "You pick up the cd 1 from the desk 1.")
    task = "look at cd under the desklamp."
    assert after(room, task, dresser, desk, taken) == "go to dresser 1"
    assert after(room, task, desk, taken, dresser) == "use desklamp 1"


def test_the_expert_does_not_try_to_take_fixed_objects() -> None:
    refused = ("take mug 1 from desk 1", REFUSED)
    assert after(ROOM, "put a mug in shelf.", AT_DESK, refused) != "take mug 1 from desk 1"
    # A refusal says nothing where something else was missing: here the player was not there.
    history = [AT_DESK, AT_DRAWER, refused]
    assert after(ROOM, "put a mug in shelf.", *history) == "go to desk 1"


def test_counts_types_once_for_each_receptacle() -> None:
    game = Game(
        path="",
        task="",
        objects=("mug 2", "mug 1", "pen 1"),
        receptacles=("desk 2", "desk 1", "drawer 1"),
        contents=(0b011, 0b100, 0b100),
        accepts=(0b111, 0b111, 0b100),
        openable=0b100,
    )
    assert count_prior([game, game]) == {
        "desk": {"count": 4, "openable": 0, "objects": {"mug": 2, "pen": 2}, "accepts": ["mug", "pen"]},
        "drawer": {"count": 2, "openable": 2, "objects": {"pen": 2}, "accepts": ["pen"]},
    }
