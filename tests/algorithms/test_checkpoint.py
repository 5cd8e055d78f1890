"""Damaged checkpoints are an error that names them, in every command."""

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from agents.policies.pretrained import Pretrained
from algorithms.checkpoint import load_run, load_state, load_weights, save_checkpoint
from envs.checksums import SUMS, DamagedError
from tests.agents.toys import random_policy
from tests.damage import each_damage

POLICY = random_policy()
READERS: list[Callable[[Path], Any]] = [
    Pretrained().load,
    load_state,
    load_run,
    lambda folder: load_weights(folder, POLICY.model),
]


@pytest.mark.parametrize("reader", READERS)
def test_a_damaged_checkpoint_is_named(tmp_path: Path, reader: Callable[[Path], Any]) -> None:
    """Every file of it, in every way; of one that has lost its checksums, nothing is known."""
    folder = tmp_path / "update-000001"
    save_checkpoint(folder, POLICY.model, POLICY.tokenizer, {"update": 1}, {"environment": {}})
    reader(folder)
    for done, path in each_damage(folder, tmp_path / "spare"):
        if done == f"delete {SUMS}":
            continue
        with pytest.raises((ValueError, OSError), match="update-000001") as raised:
            reader(folder)
        assert path.name in str(raised.value) or not path.exists(), done


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json", "config.json", "trainer.pt", "run.json"])
def test_files_without_checksums_that_are_cut_are_named(tmp_path: Path, file: str) -> None:
    """As of a model from elsewhere."""
    folder = tmp_path / "somebodys"
    save_checkpoint(folder, POLICY.model, POLICY.tokenizer, {"update": 1}, {"environment": {}})
    (folder / SUMS).unlink()
    content = (folder / file).read_bytes()
    (folder / file).write_bytes(content[: len(content) // 2])
    reader = {"trainer.pt": load_state, "run.json": load_run}.get(file, Pretrained().load)
    with pytest.raises((ValueError, OSError), match="somebodys"):
        reader(folder)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ([1, 2], "expected a dict, got a list"),
        ({"model": 3}, "it has no best, optimizer"),
        ({"best": None, "optimizer": {}}, ""),
    ],
)
def test_a_file_without_a_training_state_is_named(tmp_path: Path, state: Any, message: str) -> None:
    torch.save(state, tmp_path / "trainer.pt")
    if not message:
        assert load_state(tmp_path, "best", "optimizer") == state
        return
    with pytest.raises(DamagedError, match=message) as raised:
        load_state(tmp_path, "best", "optimizer")
    assert str(raised.value).startswith(f"{tmp_path / 'trainer.pt'} is not the state of a training run")


@pytest.mark.parametrize("file", ["trainer.pt", "model.safetensors"])
def test_a_full_disk_raises_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str) -> None:
    """torch and safetensors have words of their own for it. Nothing is left behind."""
    save = torch.save

    def save_to_full_disk(state: Any, _: Any) -> None:
        with open("/dev/full", "wb") as file:
            save(state, file)

    def refuse(*_: Any, **__: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    if file == "trainer.pt":
        monkeypatch.setattr(torch, "save", save_to_full_disk)
    else:
        monkeypatch.setattr(type(POLICY.model), "save_pretrained", refuse)
    with pytest.raises(OSError, match="No space left") as raised:
        save_checkpoint(tmp_path / "update-000001", POLICY.model, POLICY.tokenizer, {"update": torch.zeros(1 << 20)})
    assert raised.value.errno == errno.ENOSPC
    assert raised.value.filename == str(tmp_path / "update-000001")
    assert list(tmp_path.iterdir()) == []
