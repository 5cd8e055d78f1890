"""ALFWorld's splits: which games count, how they are described, and embedded games that are the same everywhere."""

import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import hydra
import pytest

from envs.alfworld import tasks
from envs.alfworld.download import KNOWN_CONTENT
from envs.alfworld.expert import Expert
from envs.alfworld.game import GAME_FILE, TASK_TYPES, GameFileError, load_game
from envs.alfworld.generate import HELD_OUT_FLOOR_PLANS, generate_game
from envs.alfworld.tasks import OFFICIAL_COUNTS, ALFWorldTasks, GamesNotFoundError, read_manifest
from envs.conformance import TaskSetConformance
from envs.core import TaskSet, UnknownNameError

ROOT = Path(__file__).parents[2]
DATA = os.environ.get("POLYTURN_DATA")
NEEDS_DATA = pytest.mark.skipif(
    not (DATA and Path(DATA, "alfworld", "json_2.1.1", "valid_seen").is_dir()),
    reason="needs official games in POLYTURN_DATA",
)
pytest.importorskip("alfworld", reason="needs polyturn[alfworld]")


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the embedded games of these tests are made once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYTURN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("POLYTURN_DATA", str(tmp_path / "data"))


def small(**arguments: Any) -> ALFWorldTasks:
    return ALFWorldTasks(**{"embedded_train": 4, "embedded_valid_seen": 3, "embedded_valid_unseen": 3} | arguments)


def put_official(split: str, seeds: range, data: Path, task_id: str = "", **changes: object) -> Path:
    """Games where official ones are expected. Returns the folder of the split."""
    folder = data / "alfworld" / "json_2.1.1" / split
    for seed in seeds:
        game = generate_game(seed)
        path = folder / (task_id or game.id) / GAME_FILE
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(game.content | changes))
    return folder


class TestConformance(TaskSetConformance):
    """Every rule for task sets and environments."""

    @pytest.fixture(autouse=True)
    def _cache(self, shared_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("POLYTURN_CACHE", str(shared_cache))

    def make_task_set(self) -> TaskSet:
        return small(games="embedded")


def test_the_configuration_creates_the_task_set() -> None:
    with hydra.initialize_config_module("conf", version_base="1.3"):
        made = hydra.utils.instantiate(hydra.compose("env/alfworld").env)
    assert isinstance(made, ALFWorldTasks)
    assert vars(made) == vars(ALFWorldTasks())  # the file's values are the defaults
    assert isinstance(made.expert(), Expert)


# -- which games ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("split", OFFICIAL_COUNTS)
def test_auto_takes_official_games_where_there_are_any(tmp_path: Path, split: str) -> None:
    """Also where those of train are not: "valid_seen" is never other games because another split is missing."""
    before = small()
    assert tuple(before.splits) == ("train", "valid_seen", "valid_unseen")
    assert re.search(r"generated.*no official ones in .*python -m scripts\.download alfworld", before.describe())
    put_official(split, range(2), tmp_path / "data")
    after = small()
    assert len(after.manifest(split).ids) == 2
    if split != "train":
        with pytest.raises(GamesNotFoundError, match=r"'train'.*env\.games=embedded uses generated ones"):
            after.manifest("train")
    assert tuple(after.splits) == tuple(OFFICIAL_COUNTS)
    assert re.search(r"official games in .*json_2\.1\.1.*env\.games=embedded", after.describe())
    assert "official" not in small(games="embedded").describe()
    assert "embedded" not in small(games="official").describe()


def test_a_data_folder_can_be_named(tmp_path: Path) -> None:
    put_official("train", range(2), tmp_path / "elsewhere")
    assert len(small(data=tmp_path / "elsewhere").manifest("train").ids) == 2


def test_an_incomplete_split_is_described_as_such(tmp_path: Path) -> None:
    put_official("train", range(3), tmp_path / "data")
    assert "3 of the official 3553 tasks (incomplete)" in small().manifest("train").describe()


def test_counts_what_the_alfworld_package_counts(tmp_path: Path) -> None:
    data = tmp_path / "data"
    folder = put_official("train", range(2), data)
    ids = small().manifest("train").ids
    put_official("train", range(2, 3), data, "pick_and_place_with_movable_recep-Mug-Box-Desk-301/trial_1")
    put_official("train", range(3, 4), data, "pick_and_place_simple-AppleSliced-None-Desk-301/trial_1")
    put_official("train", range(4, 5), data, "dust_the_shelf-Mug-None-Desk-301/trial_1")
    put_official("train", range(5, 6), data, solvable=False)
    (folder / "empty" / "trial_1").mkdir(parents=True)
    assert small().manifest("train").ids == ids


def test_ids_are_in_the_order_of_their_letters(tmp_path: Path) -> None:
    """Folders sort otherwise than names in which a folder and a file are parted by a slash."""
    names = ["pick_and_place_simple-Mug-None-Desk-1/trial_1", "pick_and_place_simple-Mug-None-Desk-1-2/trial_1"]
    for seed, name in enumerate(names):
        put_official("train", range(seed, seed + 1), tmp_path / "data", name)
    assert small().manifest("train").ids == tuple(sorted(names))


def test_a_missing_split_is_named_with_the_searched_folder(tmp_path: Path) -> None:
    put_official("train", range(1), tmp_path / "data")
    where = re.escape(str(tmp_path / "data" / "alfworld" / "json_2.1.1" / "valid_seen"))
    with pytest.raises(GamesNotFoundError, match=rf"'valid_seen' in {where}.*python -m scripts\.download alfworld"):
        small().manifest("valid_seen")
    (tmp_path / "empty").mkdir()
    with pytest.raises(GamesNotFoundError, match="no games"):
        small(games="official", data=tmp_path / "empty").task("train", "a/b")


@pytest.mark.parametrize("content", ["{", "[]", ""])
def test_a_file_that_is_no_game_is_named(tmp_path: Path, content: str) -> None:
    folder = put_official("train", range(2), tmp_path / "data")
    broken = next(folder.glob(f"*/*/{GAME_FILE}"))
    broken.write_text(content)
    with pytest.raises(GameFileError, match=re.escape(str(broken))):
        small().manifest("train")


def test_unknown_names_raise() -> None:
    made = small()
    with pytest.raises(UnknownNameError, match="did you mean 'valid_seen'"):
        made.manifest("valid_sen")
    with pytest.raises(UnknownNameError, match="generated"):
        made.manifest("valid_train")  # which only the official games have
    with pytest.raises(UnknownNameError, match=r"unknown task of polyturn/ALFWorld-v0 train 'mug'"):
        made.task("train", "mug")
    with pytest.raises(UnknownNameError, match="did you mean 'official'"):
        ALFWorldTasks(games="offical")
    with pytest.raises(UnknownNameError, match="did you mean 'textworld'"):
        ALFWorldTasks(engine="text_world")
    with pytest.raises(ValueError, match="max_turns"):
        ALFWorldTasks(max_turns=0)
    with pytest.raises(ValueError, match="sizes"):
        ALFWorldTasks(embedded_train=0)


def test_environments_play_the_tasks_and_share_the_games() -> None:
    made = small(max_turns=3)
    task = made.task("train", made.manifest("train").ids[0])
    assert task.payload["type"] in TASK_TYPES
    env = pickle.loads(pickle.dumps(made.make))()  # as a worker gets it
    _, info = env.reset(options={"task": task})
    assert info["type"] == task.payload["type"]
    assert [env.step("look")[3] for _ in range(3)] == [False, False, True]
    assert load_game(task.payload["path"]) is load_game(task.payload["path"])


# -- manifests are kept, and never stale ------------------------------------------------------------------------------
def test_a_manifest_is_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "_RACY_NS", 0)
    folder = put_official("train", range(2), tmp_path / "data")
    manifest = read_manifest(folder, "train")
    (cache,) = (tmp_path / "cache" / "alfworld").iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(tasks, "hash_tasks", lambda _: pytest.fail("hashed again"))
        assert read_manifest(folder, "train") == manifest
    cache.write_text("{")
    assert read_manifest(folder, "train") == manifest


def test_a_changed_game_changes_the_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one of equal size, whose time of change was set back."""
    monkeypatch.setattr(tasks, "_RACY_NS", 0)
    folder = put_official("train", range(2), tmp_path / "data")
    before = read_manifest(folder, "train")
    path = next(folder.glob(f"*/*/{GAME_FILE}"))
    status, content = path.stat(), path.read_text()
    path.write_text(content.replace("agent1", "agent2"))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    after = read_manifest(folder, "train")
    assert (after.ids, path.stat().st_size) == (before.ids, status.st_size)
    assert after.content_hash != before.content_hash
    path.unlink()
    assert len(read_manifest(folder, "train").ids) == 1


def test_a_file_that_was_just_changed_is_hashed_again(tmp_path: Path) -> None:
    """Two changes within one tick of the file system's clock look like one."""
    folder = put_official("train", range(2), tmp_path / "data")
    read_manifest(folder, "train")
    assert not (tmp_path / "cache" / "alfworld").exists()


# -- embedded games ---------------------------------------------------------------------------------------------------
def test_embedded_games_are_the_same_everywhere() -> None:
    """A change here means another GENERATOR_VERSION: results on embedded games would not compare."""
    made = ALFWorldTasks(embedded_train=50)
    assert {split: made.manifest(split).content_hash for split in made.splits} == {
        "train": "dee93de51a93631d1fc114d2329118f8bd9691de9618efc538a3aa251a1804df",
        "valid_seen": "95e8897b3a6e2646cd9f66925a27f0083c815517d21a4c56af32aa43626c8aad",
        "valid_unseen": "6c0e86b6312d208848fbde277ea23a2b82e47d77a5546640bf59d8fafe179bda",
    }
    assert [len(made.manifest(split).ids) for split in made.splits] == [50, 140, 134]


def test_unseen_rooms_are_not_in_training(shared_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYTURN_CACHE", str(shared_cache))
    made = ALFWorldTasks(embedded_train=100)
    plans = {s: {int(i.partition("/")[0].rpartition("-")[2]) for i in made.manifest(s).ids} for s in made.splits}
    assert plans["valid_unseen"] <= set(HELD_OUT_FLOOR_PLANS)
    assert not (plans["train"] | plans["valid_seen"]) & set(HELD_OUT_FLOOR_PLANS)


def test_embedded_games_are_made_once(tmp_path: Path) -> None:
    def times() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob(GAME_FILE)}

    small().manifest("train")
    made = times()
    assert len(made) == 4
    small().manifest("train")
    assert times() == made


def test_making_embedded_games_can_be_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(seed: int, **_: object) -> object:
        if seed == 2:
            raise KeyboardInterrupt
        return generate_game(seed)

    with monkeypatch.context() as patch:
        patch.setattr(tasks, "generate_game", interrupted)
        with pytest.raises(KeyboardInterrupt):
            small().manifest("train")
    assert not list((tmp_path / "cache").rglob(GAME_FILE))
    assert len(small().manifest("train").ids) == 4


def test_two_processes_may_make_the_same_games(tmp_path: Path) -> None:
    code = (
        "from envs.alfworld.tasks import ALFWorldTasks; "
        "print(ALFWorldTasks(embedded_train=30).manifest('train').content_hash)"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=ROOT, text=True) for _ in range(2)
    ]
    hashes = {process.communicate(timeout=120)[0] for process in processes}
    assert [process.returncode for process in processes] == [0, 0]
    assert len(hashes) == 1
    assert [path.name for path in (tmp_path / "cache" / "alfworld").glob("embedded-*/*")] == ["train-30"]


# -- official games ---------------------------------------------------------------------------------------------------
@NEEDS_DATA
@pytest.mark.parametrize("split", OFFICIAL_COUNTS)
def test_official_splits_are_what_was_published(split: str) -> None:
    made = ALFWorldTasks(games="official", data=DATA)
    try:
        manifest = made.manifest(split)
    except GamesNotFoundError:
        pytest.skip(f"no {split} in POLYTURN_DATA")
    if len(manifest.ids) < OFFICIAL_COUNTS[split]:
        assert f"{len(manifest.ids)} of the official {OFFICIAL_COUNTS[split]}" in manifest.describe()
    else:
        assert len(manifest.ids) == OFFICIAL_COUNTS[split]
        assert manifest.content_hash == KNOWN_CONTENT.get(split, manifest.content_hash)
    for task_id in manifest.ids[:: len(manifest.ids) // 10]:
        task = made.task(split, task_id)
        assert load_game(task.payload["path"]).type == task.payload["type"]
