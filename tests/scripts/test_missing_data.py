"""Data that is deleted during a run: one line names it, and the run can be resumed when it exists again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agents.episode import read_episodes
from algorithms import trainer
from envs.alfworld.generate import generate_game
from envs.core import StopReason
from envs.webshop.generate import embedded_catalogue
from scripts import evaluate
from tests.scripts.test_commands import Cli, cli, result_of  # noqa: F401

EVALUATION = (evaluate, "write_episodes")
ALFWORLD = ["env=alfworld", "split=valid_seen", "agent=expert", "pool.size=1"]
EMBEDDED = ["env.games=embedded", "env.embedded_valid_seen=4"]


def official_games(cli: Cli, count: int = 4, name: str = "valid_seen") -> Path:  # noqa: F811
    """The folder of a small official split, where the environment looks for it."""
    split = cli.folder / "data" / "alfworld" / "json_2.1.1" / name
    for seed in range(count):
        game = generate_game(seed)
        (split / game.id).mkdir(parents=True)
        (split / game.id / "game.tw-pddl").write_text(json.dumps(game.content))
    cli.monkeypatch.setenv("POLYTURN_DATA", str(cli.folder / "data"))
    return split


def after_first_episode(cli: Cli, then: Callable[[], Any], writer: Any = EVALUATION) -> None:  # noqa: F811
    """Call `then` once, when a function of a module has written the first episodes."""
    write = getattr(*writer)

    def write_and_then(*arguments: Any, **options: Any) -> None:
        write(*arguments, **options)
        cli.monkeypatch.setattr(*writer, write)
        then()

    cli.monkeypatch.setattr(*writer, write_and_then)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYTURN_CACHE", str(tmp_path / "cache"))


def check_stopped(run: Path, code: int, err: str) -> None:
    """Check one line on stderr, complete episodes, no results, and no incomplete files."""
    assert code == 2, err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert not (run / "evaluation.json").exists()
    assert not list(run.rglob("*.partial"))
    if (run / "episodes.jsonl").exists():
        assert (run / "episodes.jsonl").read_text().endswith("\n")


@pytest.mark.parametrize("workers", [0, 1])
def test_official_games_that_are_deleted_end_the_run_in_a_line(cli: Cli, workers: int) -> None:  # noqa: F811
    split = official_games(cli)
    assert cli("evaluate", *ALFWORLD, "hydra.run.dir=whole")[0] == 0
    after_first_episode(cli, lambda: split.parent.rename(cli.folder / "away"))
    code, out, err = cli("evaluate", *ALFWORLD, f"pool.workers={workers}", "hydra.run.dir=run")
    check_stopped(cli.folder / "run", code, err)
    assert str(split) in err
    assert "`python -m scripts.download alfworld` fetches the official games" in err
    assert "kept 1 episode; resume with: python -m scripts.evaluate resume=run" in out
    (cli.folder / "away").rename(split.parent)
    assert cli("evaluate", "resume=run")[0] == 0
    assert result_of(cli.folder / "run") == result_of(cli.folder / "whole")


def test_one_game_that_is_deleted_ends_its_episode_and_is_played_when_it_is_back(cli: Cli) -> None:  # noqa: F811
    split = official_games(cli)
    assert cli("evaluate", *ALFWORLD, "hydra.run.dir=whole")[0] == 0
    game = sorted(split.glob("*/*/game.tw-pddl"))[2]
    after_first_episode(cli, lambda: game.rename(cli.folder / "away"))
    code, out, err = cli("evaluate", *ALFWORLD, "hydra.run.dir=run")
    assert (code, err) == (0, "")
    assert f"errors ended 1 episode; the first was: envs.core.MissingDataError: the game {game} does not" in out
    errors = [e.stop_reason for e in read_episodes(cli.folder / "run" / "episodes.jsonl") if e.error]
    assert errors == [StopReason.ENV_ERROR]
    (cli.folder / "away").rename(game)
    code, out, _ = cli("evaluate", "resume=run")
    assert (code, "playing 1 episode again" in out) == (0, True)
    assert result_of(cli.folder / "run") == result_of(cli.folder / "whole")
    assert len(list(read_episodes(cli.folder / "run" / "episodes.jsonl"))) == 4


def test_most_games_deleted_are_an_error_in_a_line(cli: Cli) -> None:  # noqa: F811
    split = official_games(cli)
    games = sorted(split.glob("*/*/game.tw-pddl"))
    after_first_episode(cli, lambda: [game.unlink() for game in games[1:]])
    code, _, err = cli("evaluate", *ALFWORLD, "hydra.run.dir=run")
    assert code == 2, err
    assert err.count("\n") == 1
    assert "missing files, packages or services ended 3 of 4 episodes; " in err
    assert f"the first was: the game {games[1]} does not exist" in err


@pytest.mark.parametrize("workers", [0, 1])
def test_embedded_games_that_are_deleted_are_made_again(cli: Cli, workers: int) -> None:  # noqa: F811
    embedded = [*ALFWORLD, *EMBEDDED]
    assert cli("evaluate", *embedded, "hydra.run.dir=whole")[0] == 0
    after_first_episode(cli, lambda: shutil.rmtree(cli.folder / "cache"))
    code, _, err = cli("evaluate", *embedded, f"pool.workers={workers}", "hydra.run.dir=run")
    check_stopped(cli.folder / "run", code, err)
    assert "generated games are made again when a run starts or is resumed" in err
    assert cli("evaluate", "resume=run")[0] == 0
    assert result_of(cli.folder / "run") == result_of(cli.folder / "whole")


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("catalogue", ["full", "embedded"])
def test_a_catalogue_that_is_deleted_ends_the_run_in_a_line(cli: Cli, catalogue: str, workers: int) -> None:  # noqa: F811
    """Before the shop is opened, which the check of its actions does; a shop that is open does without its files."""
    if catalogue == "full":
        shutil.copytree(embedded_catalogue(60), cli.folder / "data" / "webshop")
        cli.monkeypatch.setenv("POLYTURN_DATA", str(cli.folder / "data"))
    arguments = ["env=webshop", f"env.catalogue={catalogue}", "env.embedded_products=60", "agent=random", "limit=3"]
    check = evaluate.check_tasks
    gone = cli.folder / ("data/webshop" if catalogue == "full" else "cache")

    def delete_and_check(*args: Any) -> None:
        gone.rename(cli.folder / "away")
        check(*args)

    with cli.monkeypatch.context() as patch:
        patch.setattr(evaluate, "check_tasks", delete_and_check)
        code, _, err = cli("evaluate", *arguments, f"pool.workers={workers}", "hydra.run.dir=run")
    check_stopped(cli.folder / "run", code, err)
    assert ("no full catalogue in" if catalogue == "full" else "no catalogue in") in err, err
    assert ("scripts.download webshop" if catalogue == "full" else "is made again when a run starts") in err
    if catalogue == "full":
        (cli.folder / "away").rename(gone)
    assert not (cli.folder / "run").exists()  # nothing was played
    code, _, err = cli("evaluate", *arguments, "hydra.run.dir=run")
    assert code == 0, err
    assert result_of(cli.folder / "run")["success"]["n"] == 3


TRAINING = [
    "env=alfworld", "eval.splits=[valid_seen]", "eval.selection_tasks=0", "policy.width=16", "policy.layers=1",
    "policy.warm_start.episodes=4", "policy.warm_start.steps=2", "policy.warm_start.max_turns=2", "trainer.updates=2",
    "trainer.groups=2", "trainer.group_size=2", "trainer.max_turns=2", "trainer.checkpoint_every=1",
    "trainer.eval_every=1", "trainer.record_every=1", "pool.size=1", "env.max_turns=2",
]  # fmt: skip


@pytest.mark.parametrize("deleted", ["most of valid_seen", "most of train", "train"])
def test_games_that_are_deleted_end_training_in_a_line(cli: Cli, deleted: str) -> None:  # noqa: F811
    train = official_games(cli, 4, "train")
    evaluated = official_games(cli, 3)
    gone = [train] if deleted == "train" else sorted((evaluated if "valid" in deleted else train).glob("*/*"))[1:]
    cli.monkeypatch.setattr("scripts.train.draw_pictures", lambda *_, **__: None)
    after_first_episode(cli, lambda: [path.rename(f"{path}.away") for path in gone], (trainer, "write_record"))
    code, _, err = cli("train", *TRAINING, "hydra.run.dir=run")
    *_, error = err.splitlines()
    assert code == 2, err
    assert "Traceback" not in err
    assert str(gone[0]) in error
    if deleted == "most of valid_seen":
        assert f"packages or services ended 2 of 3 episodes; the first was: the game {gone[0]}" in error
    assert not list((cli.folder / "run").rglob("*.partial"))
    for path in gone:
        Path(f"{path}.away").rename(path)
    code, _, err = cli("train", "resume=run")
    assert code == 0, err
    assert (cli.folder / "run" / "evaluation.json").exists()
