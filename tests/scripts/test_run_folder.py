"""Each run has its own folder, each folder one process, and the command of a run is always stored there."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import hydra
import pytest
from omegaconf import DictConfig, read_write

from agents.episode import read_episodes
from scripts.run_folder import COMMAND, NewFolder, locked, new_folder, quoted
from tests.scripts.test_commands import CORRIDOR, Cli, cli, result_of  # noqa: F401

NAMES = ("plain", "it's a=b,c", "back\\slash", "r[bold]x[/]", "ends'", "'both'", "at the end\\", "a: {b}")


def composed(*overrides: str, name: str = "evaluate") -> DictConfig:
    with hydra.initialize_config_module("conf", version_base="1.3"):
        return hydra.compose(name, list(overrides), return_hydra_config=True)


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*") if path.is_file()
    }  # fmt: skip


# -- one folder for each run ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["config", "evaluate"])
@pytest.mark.parametrize("kind", ["run", "sweep"])
def test_runs_that_begin_within_a_second_get_different_folders(tmp_path: Path, monkeypatch, name, kind) -> None:
    monkeypatch.chdir(tmp_path)
    found = []
    for _ in range(3):
        config = composed(name=name)
        with read_write(config.hydra):
            config.hydra[kind].dir = "outputs/12-00-00"
        {"run": NewFolder().on_run_start, "sweep": NewFolder().on_multirun_start}[kind](config)
        found.append(config.hydra[kind].dir)
        assert Path(found[-1]).is_dir()
    assert found == ["outputs/12-00-00", "outputs/12-00-00-2", "outputs/12-00-00-3"]


def test_a_folder_that_the_user_sets_keeps_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine").mkdir()
    config = composed("hydra.run.dir=mine", "hydra.sweep.dir=mine")
    NewFolder().on_run_start(config)
    NewFolder().on_multirun_start(config)
    assert (config.hydra.run.dir, config.hydra.sweep.dir) == ("mine", "mine")


def test_all_jobs_of_a_sweep_are_in_its_folder(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setattr("scripts.run_folder.new_folder", lambda _: new_folder(cli.folder / "it's mine"))
    (cli.folder / "it's mine").mkdir()
    assert cli("evaluate", *CORRIDOR, "-m", "agent=expert", "seeds=[0],[1]", "limit=1")[0] == 0
    assert [path.name for path in cli.folder.iterdir()] != ["it's mine"]
    assert [set(result_of(cli.folder / "it's mine-2" / job)["by_seed"]) for job in "01"] == [{"0"}, {"1"}]


def test_a_path_is_quoted_for_an_override() -> None:
    for path in (*NAMES, "${seed}"):
        assert composed(f"hydra.run.dir={quoted(Path(path))}").hydra.run.dir == path


def test_a_run_is_resumed_by_the_printed_command(cli: Cli) -> None:  # noqa: F811
    """Whatever its folder is called."""
    for name in NAMES:
        run = cli.folder / name
        code, out, err = cli("evaluate", *CORRIDOR, "agent=random", "limit=2", f"hydra.run.dir={quoted(Path(name))}")
        assert (code, err) == (0, ""), err
        assert f"in {shlex.quote(name)}: " in out
        shutil.move(run / "evaluation.md", cli.folder / "before.md")
        code, _, err = cli("evaluate", *shlex.split(f"resume={shlex.quote(name)}"))
        assert (code, err) == (0, ""), err
        assert (run / "evaluation.md").read_bytes() == (cli.folder / "before.md").read_bytes()


# -- one process for each folder --------------------------------------------------------------------------------------
def test_a_folder_in_use_is_refused_and_not_changed(cli: Cli) -> None:  # noqa: F811
    run = cli.evaluate("agent=random")
    before = contents(run)
    with locked(run):
        for arguments in (["agent=random", f"hydra.run.dir={run}"], [f"resume={run}", "seeds=[0,1]"]):
            code, _, err = cli("evaluate", *(CORRIDOR if arguments[0] == "agent=random" else []), *arguments)
            assert (code, err.count("\n")) == (2, 1)
            assert f"another process is running in {run}: wait until it has ended" in err
    assert contents(run) == before
    assert cli("evaluate", f"resume={run}", "seeds=[0,1]")[0] == 0


def test_training_is_refused_where_another_process_is(cli: Cli) -> None:  # noqa: F811
    run = cli.folder / "run"
    run.mkdir()
    with locked(run):
        code, _, err = cli("train", f"hydra.run.dir={run}")
    assert (code, f"another process is running in {run}" in err) == (2, True)
    assert [path.name for path in run.iterdir()] == [".lock"]


def test_a_new_run_removes_incomplete_files_of_killed_runs(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "checkpoints"):
        (folder / ".x.00000000-1-00000000.partial").mkdir(parents=True)
    with locked(tmp_path):
        assert sorted(path.name for path in tmp_path.rglob("*")) == [".lock", "checkpoints"]


def test_training_does_not_touch_the_files_of_something_else(cli: Cli) -> None:  # noqa: F811
    (cli.folder / "mine").mkdir()
    (cli.folder / "mine" / "metrics.jsonl").write_text("{}")
    code, _, err = cli("train", "env=key_corridor", "hydra.run.dir=mine")
    assert (code, "mine contains files that are not of a training run" in err) == (2, True), err
    assert (cli.folder / "mine" / "metrics.jsonl").read_text() == "{}"


# -- what a run is ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("damage", ["emptied", "missing", "cut", "no folder"])
def test_hydras_files_do_not_define_a_run(cli: Cli, damage: str) -> None:  # noqa: F811
    run = cli.evaluate("agent=random", "seeds=[0,1]", "limit=3")
    expected = result_of(run)
    for name in ("evaluation.json", "episodes.jsonl"):
        (run / name).unlink()
    overrides = run / ".hydra" / "overrides.yaml"
    assert "seeds=[0,1]" in overrides.read_text()
    match damage:
        case "emptied":
            overrides.write_text("")
        case "missing":
            overrides.unlink()
        case "cut":
            overrides.write_text(overrides.read_text()[:15])
        case "no folder":
            for path in [*(run / ".hydra").iterdir()]:
                path.unlink()
            (run / ".hydra").rmdir()
    assert cli("evaluate", f"resume={run}")[0] == 0
    assert result_of(run) == expected
    assert "seeds=[0,1]" in overrides.read_text()


def test_changed_settings_are_stored_for_the_next_start(cli: Cli) -> None:  # noqa: F811
    run = cli.evaluate("agent=random")
    assert cli("evaluate", f"resume={run}", "seeds=[0,2]")[0] == 0
    (run / "evaluation.json").unlink()
    assert cli("evaluate", f"resume={run}")[0] == 0
    assert set(result_of(run)["by_seed"]) == {"0", "2"}
    assert "seeds=[0,2]" in (run / ".hydra" / "overrides.yaml").read_text()


def test_a_refused_setting_is_not_stored(cli: Cli) -> None:  # noqa: F811
    run = cli.evaluate("agent=random")
    before = contents(run)
    for change in ("agent=expert", "seeds=3", "agnt=random"):
        assert cli("evaluate", f"resume={run}", change)[0] == 2
    assert contents(run) == before


def test_a_complete_evaluation_is_not_changed(cli: Cli) -> None:  # noqa: F811
    run = cli.evaluate("agent=random")
    before = contents(run)
    code, out, _ = cli("evaluate", f"resume={run}")
    assert (code, "the evaluation was complete already; nothing was changed" in out) == (0, True)
    assert contents(run) == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, f"expected the folder of a run, with {COMMAND} in it"),
        ("", f"{COMMAND} is damaged"),
        ('{"name": "evaluate"}', f"{COMMAND} is damaged"),
        ('{"name": "evaluate", "overrides": [3], "config_dirs": []}', f"{COMMAND} is damaged"),
        ('{"name": "evaluate", "overrides": [], "config_dirs": null}', f"{COMMAND} is damaged"),
        (json.dumps({"name": "train", "overrides": [], "config_dirs": []}), "is a run of scripts.train"),
    ],
)
def test_an_invalid_command_record_is_an_error(cli: Cli, content, message: str) -> None:  # noqa: F811
    run = cli.evaluate("agent=random")
    before = result_of(run)
    (run / COMMAND).unlink() if content is None else (run / COMMAND).write_text(content)
    code, _, err = cli("evaluate", f"resume={run}")
    assert (code, message in err, err.count("\n")) == (2, True, 1)
    assert result_of(run) == before


def test_a_run_is_resumed_with_the_folders_its_configuration_came_from(cli: Cli) -> None:  # noqa: F811
    run = cli.folder / "run"
    conf = Path(CORRIDOR[1])
    search = f"hydra.searchpath=['file://{conf}']"
    assert cli("evaluate", search, *CORRIDOR[2:], "agent=random", f"hydra.run.dir={run}")[0] == 0
    (run / "episodes.jsonl").unlink()
    assert cli("evaluate", f"resume={run}")[0] == 0
    assert len(list(read_episodes(run / "episodes.jsonl"))) == 6
