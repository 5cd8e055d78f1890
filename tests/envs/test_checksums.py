"""Damaged files on the disk are made again with a warning, or are an error that names the file."""

from __future__ import annotations

import gc
import hashlib
import logging
import os
from pathlib import Path
from typing import Any

import pytest

from envs import checksums
from envs.alfworld import game, tasks
from envs.alfworld.tasks import ALFWorldTasks, read_manifest
from envs.checksums import SUMS, DamagedError, damaged_files, verify, write_checksums
from envs.core import TaskSet
from envs.webshop import env as webshop_env
from envs.webshop.catalogue import load_catalogue
from envs.webshop.tasks import WebShopTasks
from tests.damage import KINDS, each_damage, flip
from tests.envs.test_alfworld_tasks import put_official
from tests.envs.test_webshop_catalogue import write_catalogue


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("POLYTURN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("POLYTURN_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(tasks, "_RACY_NS", 0)  # so that manifests are kept at once
    return tmp_path / "cache"


# -- the checksums themselves -----------------------------------------------------------------------------------------
def test_damage_to_any_file_is_detected_and_named(tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    (folder / "below").mkdir(parents=True)
    for name, content in {"a.bin": bytes(range(256)), "b.json": b"{}", "below/c": b"c" * 5000}.items():
        (folder / name).write_bytes(content)
    write_checksums(folder)
    verify(folder)
    seen = 0
    for done, path in each_damage(folder, tmp_path / "spare"):
        with pytest.raises(DamagedError, match=path.name):
            verify(folder)
        if path.name != SUMS and path.exists():
            assert damaged_files(folder) == [path], done
        seen += 1
    assert seen == 4 * len(KINDS)


def test_a_large_file_is_read_again_only_where_its_times_have_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checksums, "ALWAYS_READ", 10)
    path = tmp_path / "large"
    path.write_bytes(b"x" * 1000)
    write_checksums(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(checksums, "checksum", lambda _: pytest.fail("read"))
        verify(tmp_path)
    os.utime(path, ns=(1, 1))  # a copy
    verify(tmp_path)
    times = path.stat()
    flip(path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # the time of its state cannot be set
    with pytest.raises(DamagedError, match="large is damaged: its content"):
        verify(tmp_path)


# -- what is made here ------------------------------------------------------------------------------------------------
def play(task_set: TaskSet, count: int = 2) -> list[Any]:
    """The actions of the expert, with their observations and rewards."""
    env, seen = task_set.make(), []
    for split in task_set.splits[:2]:
        for task_id in task_set.manifest(split).ids[:count]:
            observation, info = env.reset(seed=0, options={"task": task_set.task(split, task_id)})
            expert: Any = task_set.expert()
            expert.reset(observation, info)
            over = False
            while not over:
                action = expert.act()
                observation, reward, terminated, truncated, info = env.step(action)
                expert.observe(action, observation, info)
                seen.append((task_id, action, observation, reward))
                over = terminated or truncated
    return [seen, [task_set.manifest(split).content_hash for split in task_set.splits]]


def shop() -> list[Any]:
    webshop_env.open_shop.cache_clear()  # as a new process
    gc.collect()  # the shop before this one, with its mapped files
    return play(WebShopTasks(catalogue="embedded", embedded_products=60))


def household() -> list[Any]:
    game._read_games.clear()
    return play(ALFWorldTasks(games="embedded", embedded_train=2, embedded_valid_seen=2, embedded_valid_unseen=1))


@pytest.mark.parametrize("way", [shop, household])
def test_a_damaged_cache_is_made_again_with_a_warning(
    cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, way: Any
) -> None:
    """Every file of it, in every way."""
    expected = way()
    seen = 0
    for done, _ in each_damage(cache, tmp_path / "spare"):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert way() == expected, done
        output = "damaged" in caplog.text and "again" in caplog.text
        # A whole file that is missing may never have been made.
        assert output or done.startswith("delete"), done
        seen += 1
    assert seen > 20


def test_a_remembered_hash_that_is_damaged_is_found_again(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("envs.checksums.ALWAYS_HASHED", 10)
    folder = write_catalogue(tmp_path)
    found = load_catalogue(folder).content_hash
    for done, _ in each_damage(cache / "hashes", tmp_path / "spare"):
        assert load_catalogue(folder).content_hash == found, done


# -- what was downloaded ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", KINDS)
def test_downloaded_files_that_are_damaged_are_named(cache: Path, tmp_path: Path, kind: Any) -> None:
    folder = put_official("train", range(2), tmp_path / "data")
    write_checksums(folder.parent)
    read_manifest(folder, "train")
    path = next(folder.glob("*/*/*"))
    kind(path)
    with pytest.raises(ValueError, match=path.parent.name):
        read_manifest(folder, "train")


def test_a_changed_catalogue_is_named(cache: Path, tmp_path: Path) -> None:
    folder = tmp_path / "shop"
    folder.mkdir()
    write_catalogue(folder)
    files = sorted(folder.iterdir())
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in files]
    (folder / "SHA256SUMS").write_text("".join(lines))
    load_catalogue(folder)
    for done, path in each_damage(folder, tmp_path / "spare"):
        if path.name == "SHA256SUMS" or done.startswith("delete"):
            continue
        with pytest.raises(DamagedError, match=rf"{path.name} is damaged: .*delete it, and"):
            load_catalogue(folder)
