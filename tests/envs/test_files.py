"""Files and folders are complete or absent, whenever a process is killed and whatever other process writes them."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from envs import files
from envs.files import (
    files_named,
    locked,
    made_once,
    naming,
    read_json_lines,
    remove_whole,
    tidy,
    whole_file,
    whole_folder,
    write_whole,
)

SPAWN = multiprocessing.get_context("spawn")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def replace_folder(folder: Path, content: str) -> None:
    with whole_folder(folder) as partial:
        partial.mkdir()
        (partial / "a").write_text(content)
        (partial / "b").write_text(content)


def test_a_folder_is_made_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "games"

    def fail_half_way() -> None:
        with made_once(folder) as made:
            (made / "half").touch()
            (made / "absent").read_text()

    with pytest.raises(FileNotFoundError, match="absent"):
        fail_half_way()
    assert not list(folder.parent.iterdir())

    with made_once(folder) as made:
        (made / "game").write_text("first")
        assert not folder.exists()
        with made_once(folder) as faster:
            (faster / "game").write_text("faster")
    assert [path.name for path in folder.parent.iterdir()] == ["games"]
    assert (folder / "game").read_text() == "faster"


def test_a_folder_with_other_files_is_not_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    folder.mkdir()
    (folder / "notes").touch()
    with pytest.raises(OSError, match="not empty"), made_once(folder, "meta.json"):
        pass
    assert [path.name for path in folder.iterdir()] == ["notes"]


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "new" / "results.json"
    write_whole(target, "old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_whole(target, b"new")
    assert names(target.parent) == ["results.json"]
    assert target.read_text() == "old"


def test_files_are_synced_before_they_get_their_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[str] = []
    flush = files.flush

    def noted(path: Path) -> None:
        flushed.append("parent" if path == tmp_path else path.name)
        assert (tmp_path / "folder").exists() == (path == tmp_path)
        flush(path)

    monkeypatch.setattr(files, "flush", noted)
    with whole_folder(tmp_path / "folder") as partial:
        (partial / "inner").mkdir(parents=True)
        (partial / "inner" / "weights").write_text("1")
    assert set(flushed) > {"inner", "weights"}
    assert flushed[-1] == "parent"


# -- killed -----------------------------------------------------------------------------------------------------------
def killed_at(call: int, name: str, work: Callable[[Path], None], folder: Path) -> None:
    """In a process: do `work`, and die at call number `call` of `os.<name>`."""
    original, calls = getattr(os, name), 0

    def counted(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(os, name, counted)
    work(folder)


def write_new(folder: Path) -> None:
    replace_folder(folder, "new")


def write_file(folder: Path) -> None:
    write_whole(folder / "file", "new")


def run_and_kill(call: int, name: str, work: Callable[[Path], None], folder: Path) -> bool:
    """Whether the process was killed before it finished."""
    process = SPAWN.Process(target=killed_at, args=(call, name, work, folder))
    process.start()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


@pytest.mark.parametrize("name", ["rename", "fsync", "unlink", "rmdir"])
def test_a_folder_is_complete_wherever_its_writer_was_killed(tmp_path: Path, name: str) -> None:
    for call in range(1, 9):
        folder = tmp_path / f"{name}-{call}" / "update-000010"
        replace_folder(folder, "old")
        died = run_and_kill(call, name, write_new, folder)
        tidy(folder.parent)
        assert names(folder.parent) == ["update-000010"]
        assert names(folder) == ["a", "b"]
        assert {(folder / "a").read_text(), (folder / "b").read_text()} in ({"old"}, {"new"})
        if not died:
            break
    assert call > 1  # it was killed, and once it was not


@pytest.mark.parametrize("name", ["replace", "rename", "fsync"])
def test_the_next_write_clears_what_a_killed_one_left(tmp_path: Path, name: str) -> None:
    write_file(tmp_path)
    run_and_kill(1, name, write_file, tmp_path)
    write_whole(tmp_path / "another", "new")
    assert names(tmp_path) == ["another", "file"]


def test_files_of_a_running_process_are_kept_unless_all_are_cleared(tmp_path: Path) -> None:
    with whole_file(tmp_path / "slow") as partial:
        partial.write_text("half")
        write_whole(tmp_path / "fast", "")
        tidy(tmp_path)
        assert partial.exists()
    assert (tmp_path / "slow").read_text() == "half"
    left = tmp_path / f".slow.00000000-{os.getpid()}-00000000.partial"  # of another machine
    left.touch()
    tidy(tmp_path)
    assert left.exists()
    old = time.time() - 2 * files._ABANDONED_S
    os.utime(left, (old, old))
    tidy(tmp_path)
    assert names(tmp_path) == ["fast", "slow"]
    left.mkdir()
    tidy(tmp_path, everything=True)
    assert names(tmp_path) == ["fast", "slow"]


def test_files_with_other_names_are_kept(tmp_path: Path) -> None:
    for name in (".partial", ".notes.partial", "model.safetensors.old", ".a.12345678-1-1234567.old"):
        (tmp_path / name).touch()
    before = names(tmp_path)
    tidy(tmp_path, everything=True)
    assert names(tmp_path) == before


def test_a_removal_that_was_killed_is_finished(tmp_path: Path) -> None:
    replace_folder(tmp_path / "folder", "old")
    assert run_and_kill(1, "unlink", remove_whole, tmp_path / "folder")
    assert not (tmp_path / "folder").exists()
    tidy(tmp_path)
    assert names(tmp_path) == []


# -- two at once ------------------------------------------------------------------------------------------------------
def write_slowly(folder: Path, content: str) -> None:
    with whole_folder(folder) as partial:
        partial.mkdir()
        for number in range(5):
            (partial / str(number)).write_text(content)
            time.sleep(0.02)


def test_two_simultaneous_replacements_leave_one_complete_folder(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    both = [SPAWN.Process(target=write_slowly, args=(folder, content)) for content in "xy"]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    assert names(tmp_path) == ["folder"]
    assert {path.read_text() for path in folder.iterdir()} in ({"x"}, {"y"})
    assert len(names(folder)) == 5


def test_the_second_of_two_replacements_stays(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    with whole_folder(folder) as slow:
        slow.mkdir()
        replace_folder(folder, "first")
    assert names(folder) == []
    assert names(tmp_path) == ["folder"]


def test_a_lock_ends_with_its_process_and_waiting_is_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock, begun = tmp_path / "a.lock", SPAWN.Event()
    process = SPAWN.Process(target=hold, args=(lock, begun))
    process.start()
    assert begun.wait(60)
    monkeypatch.setattr(files, "LONGEST_WAIT", 0.05)
    calls: list[str] = []
    with (
        pytest.raises(TimeoutError, match=r"making the index.*remove .*a\.lock"),
        locked(lock, "the index", lambda: calls.append("waits")),
    ):
        pass
    assert calls == ["waits"]
    process.kill()
    process.join()
    with locked(lock, "the index", lambda: calls.append("waits")):
        pass
    assert calls == ["waits"]


def hold(lock: Path, begun) -> None:
    with locked(lock, "the index", lambda: None):
        begun.set()
        time.sleep(600)


def test_a_lock_is_not_needed_where_nothing_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What can only be read may hold all that is needed."""
    for number in (errno.EROFS, errno.EACCES, errno.ENOSPC):

        def refuse(*_: object, number: int = number, **__: object) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(files.FileLock, "acquire", refuse)
        begun = False
        with suppress(OSError), locked(tmp_path / ".lock", "it", lambda: None):
            begun = True
        assert begun == (number != errno.ENOSPC)


def test_an_error_of_the_disk_names_the_file(tmp_path: Path) -> None:
    for mine, named in ((OSError(errno.ENOSPC, "full"), "it.jsonl"), (OSError(errno.ENOENT, "none", "other"), "other")):
        with pytest.raises(OSError, match=named), naming(tmp_path / "it.jsonl"):
            raise mine


def test_json_lines_are_read_and_a_bad_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"update": 0}\n{"update": 1}\n{"upd')
    assert read_json_lines(path) == [{"update": 0}, {"update": 1}]
    for bad in (b'{"update": \n', b"3\n", b"\x00\xff\n", b"\n", b"[1, 2]\n"):
        path.write_bytes(b'{"update": 0}\n' + bad + b'{"update": 1}\n')
        with pytest.raises(ValueError, match=r"metrics\.jsonl:2 is damaged: expected a JSON object, got"):
            read_json_lines(path)


def test_complete_files_are_found_in_a_folder_that_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for run in ("b", "a/inner", ".c.partial", "gone"):
        (tmp_path / run).mkdir(parents=True)
        write_whole(tmp_path / run / "run.json", "{}")
    listed = os.scandir

    def vanishing(path: str) -> object:
        if str(path).endswith("gone"):
            remove_whole(tmp_path / "gone")
        return listed(path)

    monkeypatch.setattr(os, "scandir", vanishing)
    assert files_named(tmp_path, "run.json") == [tmp_path / "a/inner/run.json", tmp_path / "b/run.json"]
    assert not (tmp_path / "gone").exists()
    assert files_named(tmp_path / "gone", "run.json") == []
