"""Sweeps of evaluations: cells, going on, widening, failures, kills, and the files of the leaderboard."""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from agents.episode import read_episodes
from envs.services import ServiceError
from scripts import sweep
from scripts.leaderboard import NAMES
from tests.agents.corridors import Corridor
from tests.kills.__main__ import Runs
from tests.scripts.test_commands import CORRIDOR, Cli, a_policy

CONF = CORRIDOR[:2]


@pytest.fixture
def cli(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    monkeypatch.setattr("scripts.evaluate.chart", lambda *_: b"")  # most of the work of a small evaluation
    return Cli(tmp_path, capsys, monkeypatch)


def swept(cli: Cli, *arguments: str, folder: str = "sweep") -> tuple[str, dict]:
    """What a sweep that must succeed prints, and its leaderboard."""
    code, out, err = cli("sweep", *CONF, *arguments, f"sweep.dir={folder}")
    assert (code, err) == (0, ""), out
    return out, json.loads((cli.folder / folder / "leaderboard.json").read_text())


def episodes_of(folder: Path) -> dict[str, list[str]]:
    """The lines of the episodes of each cell."""
    return {path.parent.name: path.read_text().splitlines() for path in folder.glob("cells/*/episodes.jsonl")}


def files_of(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in NAMES]


# -- cells ------------------------------------------------------------------------------------------------------------
def test_a_sweep_writes_cells_and_a_leaderboard(cli: Cli) -> None:
    out, record = swept(
        cli, "agents=[random,expert]", "envs=[corridor]", "splits=[train,valid]", "limit=3", "seeds=[0,1]"
    )
    tables = {table["split"]: table for table in record["environments"]}
    assert set(tables) == {"train", "valid"}
    first, last = tables["valid"]["agents"]
    assert (first["agent"], first["rank"], first["success"]["rate"], first["attempts"]) == ("expert", 1, 1.0, 2)
    assert (last["agent"], record["floors"]) == ("random", ["random"])
    (pair,) = tables["valid"]["pairs"]["success"]
    assert (pair["a"], pair["b"]) == ("expert", "random")
    assert record["overall"]["splits"] == 2
    text = (cli.folder / "sweep" / "leaderboard.md").read_text()
    assert text in out
    assert "random (floor)" in text
    page = (cli.folder / "sweep" / "leaderboard.html").read_text()
    assert "random (floor)" in page
    assert "http" not in page.replace("http-equiv", "")
    cells = sorted((cli.folder / "sweep" / "cells").iterdir())
    assert len(cells) == 4
    for cell in cells:  # each is a folder of scripts.evaluate
        assert len(list(read_episodes(cell / "episodes.jsonl"))) == 6
        assert "episodes" in (cell / "log.txt").read_text()
    assert cli("view", str(cells[0]))[0] == 0
    code, out, _ = cli("evaluate", f"resume={cells[0]}")
    assert (code, "nothing was changed" in out) == (0, True)


def test_the_same_command_plays_nothing_and_a_wider_one_what_is_missing(cli: Cli) -> None:
    folder = cli.folder / "sweep"
    swept(cli, "agents=[random]", "envs=[corridor]", "limit=2")
    before, files = episodes_of(folder), files_of(folder)
    out, _ = swept(cli, "agents=[random]", "envs=[corridor]", "limit=2")
    assert "1 complete already" in out
    assert (episodes_of(folder), files_of(folder)) == (before, files)
    _, record = swept(cli, "agents=[random,expert]", "envs=[corridor]", "limit=4", "seeds=[0,1]")
    ((name, lines),) = before.items()
    after = episodes_of(folder)
    assert after[name][:2] == lines
    assert {len(lines) for lines in after.values()} == {8}
    assert {row["agent"] for row in record["environments"][0]["agents"]} == {"random", "expert"}


def test_agents_and_environments_may_have_overrides_and_models(cli: Cli) -> None:
    model = a_policy(cli.folder / "policy")
    greedy = '[transcript,"agent.sampling.temperature=0"]'
    envs = '[corridor,[key_corridor,"env.rooms=4","env.valid_tasks=3","split=valid"]]'
    _, record = swept(
        cli, f"agents=[random,{greedy},transcript]", f"envs={envs}", f"models=[{model}]", "limit=2", "max_turns=2"
    )
    assert [table["label"] for table in record["environments"]] == ["KeyCorridor-v0 valid", "test/Corridor-v0 valid"]
    names = {row["agent"] for row in record["environments"][1]["agents"]}
    assert names == {"random", "transcript update-000000 temperature=0", "transcript update-000000 temperature=1"}
    sampled = {row["agent"]: row["tokens"] for row in record["environments"][0]["agents"]}
    assert sampled["transcript update-000000 temperature=0"] > sampled["random"] == 0


def test_a_cell_that_fails_is_named_and_the_others_go_on(cli: Cli) -> None:
    lamps = '[gym,"env.id=examples.light_switches:LightSwitches-v0","env.valid_tasks=2"]'
    code, out, err = cli("sweep", *CONF, "agents=[expert,random]", f"envs=[{lamps},corridor]", "limit=2", "sweep.dir=s")
    assert code == 2
    assert "1 of 4 cells failed (LightSwitches-v0 valid expert); the same command tries them again: " in err
    assert "LightSwitches-v0 has no scripted expert" in out
    record = json.loads((cli.folder / "s" / "leaderboard.json").read_text())
    assert [len(table["agents"]) for table in record["environments"]] == [1, 2]
    assert record["overall"]["left_out"] == ["expert"]
    assert "LightSwitches-v0 has no scripted expert" in record["left_out"][0]


def test_episodes_that_lost_a_service_are_played_again(cli: Cli) -> None:
    """Until then the cell has failed, and is not on the leaderboard; also where the folder is only read."""
    corridor = ["agents=[expert,random]", "envs=[corridor]", "limit=3", "pool.size=1"]
    swept(cli, *corridor, folder="whole")
    act, lost = Corridor._act, iter([True])

    def lose(*arguments: Any) -> Any:
        if next(lost, False):
            raise ServiceError("http://127.0.0.1:1 did not answer")
        return act(*arguments)

    cli.monkeypatch.setattr(Corridor, "_act", lose)
    code, _, err = cli("sweep", *CONF, *corridor, "sweep.dir=sweep")
    assert (code, "1 of 2 cells failed (Corridor-v0 valid expert)" in err) == (2, True), err
    code, out, _ = cli("sweep", "sweep.dir=sweep")
    assert (code, "1 of its episodes lacked a file, a package or a service" in out) == (0, True), out
    out, _ = swept(cli, *corridor)
    assert "1 complete already" in out
    assert files_of(cli.folder / "sweep") == files_of(cli.folder / "whole")


def test_an_environment_that_cannot_be_made_is_named(cli: Cli) -> None:
    absent = '[gym,"env.id=examples.absent:Absent-v0"]'
    code, out, err = cli("sweep", *CONF, "agents=[random]", f"envs=[{absent},corridor]", "limit=1", "sweep.dir=s")
    assert (code, "1 of 2 cells failed (gym random)" in err) == (2, True), err
    assert "absent" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["agents=[random]"], "a sweep needs both agents=[…] and envs=[…]"),
        (["agents=[randm]", "envs=[corridor]"], "randm"),
        (["agents=[random]", "envs=[corridor]", "splits=[valide]"], "valide"),
        (["agents=[[random,expert]]", "envs=[corridor]"], "'expert' is not an override"),
        (['agents=[[random,"agent.tempo=1"]]', "envs=[corridor]"], "unknown key of agent 'tempo'; known: "),
        (["agents=[transcript]", "envs=[corridor]"], "agent=transcript needs a model: models=[FOLDER,…]"),
        (['agents=[random,[random,"pool.size=1"]]', "envs=[corridor]"], "in this sweep twice"),
        (["agents=[random]", "envs=[corridor]", "-m"], "scripts.sweep starts its own runs"),
        ([], "so there is no leaderboard; to play some: agents=[expert,random] envs=[alfworld]"),
    ],
)
def test_a_wrong_sweep_is_refused_before_anything_is_played(cli: Cli, arguments: list[str], message: str) -> None:
    code, _, err = cli("sweep", *CONF, *arguments, "sweep.dir=s")
    assert (code, message in err) == (2, True), err
    assert not list(cli.folder.glob("**/episodes.jsonl"))


# -- folders that are joined ------------------------------------------------------------------------------------------
def test_a_leaderboard_of_the_folders_of_a_multirun(cli: Cli) -> None:
    assert cli("evaluate", *CORRIDOR, "-m", "agent=random,expert", "limit=2", "hydra.sweep.dir=sweep")[0] == 0
    (cli.folder / "sweep" / "broken").mkdir()
    (cli.folder / "sweep" / "broken" / "run.json").write_text("{}")
    _, record = swept(cli)
    assert [row["folder"] for row in record["environments"][0]["agents"]] == ["1", "0"]
    assert record["left_out"] == ["broken: it is not complete"]


def test_cells_with_other_tasks_are_refused_by_name(cli: Cli) -> None:
    corridor = ["env=key_corridor", "env.rooms=4", "agent=random"]
    for count in (2, 3):
        assert cli("evaluate", *corridor, f"env.valid_tasks={count}", f"hydra.run.dir=sweep/{count}")[0] == 0
    code, _, err = cli("sweep", "sweep.dir=sweep")
    assert code == 2
    assert "cells of polyturn/KeyCorridor-v0 valid have different manifests" in err
    assert " in 2; " in err
    assert cli("evaluate", *corridor, "agent=expert", "env.valid_tasks=3", "limit=2", "hydra.run.dir=two/e")[0] == 0
    assert cli("evaluate", *corridor, "env.valid_tasks=3", "hydra.run.dir=two/r")[0] == 0
    code, _, err = cli("sweep", "sweep.dir=two")
    assert (code, "e and r cannot be compared: they have 2 and 3 tasks" in err) == (2, True), err


# -- kills ------------------------------------------------------------------------------------------------------------
def test_a_sweep_that_was_killed_ends_as_one_that_was_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With -9, at several moments. No episode that has ended is played again."""
    monkeypatch.setattr("scripts.evaluate.chart", lambda *_: b"")
    model = a_policy(tmp_path / "policy")
    arguments = [
        f"--config-dir={CONF[1]}", 'agents=[random,expert,[transcript,"agent.sampling.temperature=0"]]',
        f"models=[{model}]", 'envs=[corridor,[key_corridor,"env.valid_tasks=8","env.rooms=4"]]',
        "splits=[valid]", "seeds=[0,1]", "limit=5", "max_turns=4",
    ]  # fmt: skip
    runs, log = Runs(tmp_path / "cache"), tmp_path / "log"
    runs.finish(sweep.main, [*arguments, f"sweep.dir={tmp_path / 'whole'}"], log)
    killed, kept = tmp_path / "killed", 0
    for least in (3, 31):  # of 60 episodes
        pid = runs.start(sweep.main, [*arguments, f"sweep.dir={killed}"], log)
        deadline = time.monotonic() + 120
        while sum(map(len, episodes_of(killed).values())) < max(least, kept + 1) and time.monotonic() < deadline:
            time.sleep(0.001)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        before = episodes_of(killed)
        kept = sum(map(len, before.values()))
        assert not (killed / NAMES[0]).exists()
    runs.finish(sweep.main, [*arguments, f"sweep.dir={killed}"], log)
    assert files_of(killed) == files_of(tmp_path / "whole")
    for name, lines in episodes_of(killed).items():
        played = Counter((row["task"]["id"], row["seed"]) for row in map(json.loads, lines))
        assert (len(played), set(played.values())) == (10, {1}), name
        whole = [line for line in before.get(name, []) if line.endswith("}")]
        assert lines[: len(whole)] == whole  # the last may have been cut
