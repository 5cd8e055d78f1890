"""Checkpoints that are damaged are an error that names them, whoever reads them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agents.policies.pretrained import Pretrained
from algorithms.checkpoint import load_run, load_state, load_weights, save_checkpoint
from envs.checksums import SUMS
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
