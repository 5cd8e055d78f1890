"""Checkpoints that a thread writes: equal files, a copy of the state, and errors that are raised later."""

import errno
import json
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from agents.policies.local import LocalPolicy
from algorithms import checkpoint as checkpoint_module
from algorithms.checkpoint import CheckpointWriter, checkpoints, save_checkpoint
from algorithms.finite import NotFiniteError
from algorithms.replay import Replay
from algorithms.signals.critic import Critic
from algorithms.signals.implicit_prm import ImplicitPRM
from algorithms.turn_table import Estimate, TurnTable
from envs.checksums import SUMS
from envs.pool import EnvPool
from tests.agents.corridors import Corridors
from tests.agents.toys import random_policy
from tests.algorithms.test_resume import noise
from tests.algorithms.test_trainer import make_trainer, without_times
from tests.families import tiny_model

FACTS = {"environment": {}}


def contents(folder: Path) -> dict[str, Any]:
    """Every file of a checkpoint; checksums without the times of the files."""
    return {
        path.name: {name: row[:2] for name, row in json.loads(path.read_bytes()).items()}
        if path.name == SUMS
        else path.read_bytes()
        for path in folder.iterdir()
    }


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Checkpoints are written when this is set."""
    gate = threading.Event()
    save = save_checkpoint
    monkeypatch.setattr(checkpoint_module, "save_checkpoint", lambda *a: (gate.wait(60), save(*a))[1])
    yield gate
    gate.set()


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(folder: Path, *_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(folder))

    monkeypatch.setattr(checkpoint_module, "save_checkpoint", refuse)


@pytest.fixture(scope="module")
def pool() -> Iterator[EnvPool]:
    with EnvPool(Corridors().make, 16) as made:
        yield made


def save(writer: CheckpointWriter, folder: Path, policy: LocalPolicy, state: dict[str, Any]) -> None:
    writer.save(folder, policy.model, policy.tokenizer, state, FACTS, None, lambda: None)


def trained(model: Any, optimizer: torch.optim.Optimizer) -> None:
    """Change the weights and the moments in place."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.ones_like(parameter)
    optimizer.step()


@pytest.mark.parametrize("kind", ["tied", "untied", "adapters"])
def test_the_files_are_those_of_the_moment_of_the_call(tmp_path: Path, gate: threading.Event, kind: str) -> None:
    """Training goes on before the thread writes, and changes weights and moments."""
    model = tiny_model("llama", tie_word_embeddings=kind == "tied")
    if kind == "adapters":
        pytest.importorskip("peft")
        from agents.policies.lora import Lora, add_adapters

        add_adapters(model, Lora(rank=4), "model")
    policy = LocalPolicy(model, random_policy().tokenizer)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    trained(model, optimizer)
    head = torch.nn.Linear(2, 1)  # its state is an OrderedDict with metadata, as that of a critic
    state = {"optimizer": optimizer.state_dict(), "head": head.state_dict(), "sampling_rng": torch.get_rng_state()}
    writer = CheckpointWriter(in_background=True)
    save_checkpoint(tmp_path / "at_once", model, policy.tokenizer, state, FACTS)
    save(writer, tmp_path / "later", policy, state)
    trained(model, optimizer)
    torch.nn.init.zeros_(head.weight)
    gate.set()
    writer.wait()
    save_checkpoint(tmp_path / "after", model, policy.tokenizer, state, FACTS)
    at_once, later, after = (contents(tmp_path / name) for name in ("at_once", "later", "after"))
    assert at_once == later
    differing = {name for name in after if after[name] != at_once[name]}
    weights = "adapter_model.safetensors" if kind == "adapters" else "model.safetensors"
    assert differing == {weights, "trainer.pt", SUMS}


def test_one_checkpoint_is_written_at_a_time(tmp_path: Path, gate: threading.Event) -> None:
    policy, writer = random_policy(), CheckpointWriter(in_background=True)
    save(writer, tmp_path / "first", policy, {"update": 1})
    second = threading.Thread(target=save, args=(writer, tmp_path / "second", policy, {"update": 2}))
    second.start()
    second.join(0.2)
    assert second.is_alive()  # it waits for the first
    assert not (tmp_path / "first").exists()
    gate.set()
    second.join(60)
    assert (tmp_path / "first").exists()
    writer.wait()
    assert (tmp_path / "second").exists()


def test_weights_that_are_not_finite_are_refused_at_once(tmp_path: Path) -> None:
    policy, writer = random_policy(), CheckpointWriter(in_background=True)
    with pytest.raises(NotFiniteError, match=r"state\.moment is not finite, so it is not saved"):
        save(writer, tmp_path / "first", policy, {"moment": torch.tensor([torch.nan])})
    writer.wait()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("full_disk")
def test_an_error_is_raised_once_by_the_next_call(tmp_path: Path) -> None:
    policy, writer = random_policy(), CheckpointWriter(in_background=True)
    for _ in range(2):
        save(writer, tmp_path / "first", policy, {"update": 1})
        with pytest.raises(OSError, match=r"No space left on device.*first"):
            save(writer, tmp_path / "second", policy, {"update": 2})
    save(writer, tmp_path / "first", policy, {"update": 1})
    with pytest.raises(OSError, match=r"No space left on device.*first"):
        writer.wait()
    writer.wait()


@pytest.mark.usefixtures("full_disk")
def test_an_error_at_the_end_of_a_run_is_raised_and_after_another_error_logged(
    tmp_path: Path, pool: EnvPool, caplog: pytest.LogCaptureFixture
) -> None:
    def make(name: str, updates: int) -> Any:
        return make_trainer(tmp_path / name, pool, random_policy(), updates, noise, checkpoint_async=True)

    with pytest.raises(OSError, match=r"No space left on device.*update-000000"):
        make("full", 0).train()
    trainer = make("stopped", 1)
    trainer._is_stopping = partial(divmod, 1, 0)
    with pytest.raises(ZeroDivisionError):
        trainer.train()
    assert "the last checkpoint was not written: OSError: [Errno 28] No space left on device" in caplog.text


def test_a_run_writes_the_same_files_in_the_background_and_resumes(tmp_path: Path, pool: EnvPool) -> None:
    """With the states of a critic, a process reward model and a replay buffer; the second half is resumed."""

    def returns(table: TurnTable) -> Estimate:
        return Estimate(noise(table), noise(table))

    def make(name: str, updates: int, in_background: bool) -> Any:
        signals = {"critic": Critic, "implicit_prm": ImplicitPRM}
        return make_trainer(
            tmp_path / name, pool, random_policy(), updates, returns, signals, replay=Replay(), groups=2, group_size=2,
            checkpoint_every=1, checkpoint_async=in_background, learning_rate=1e-3, final_learning_rate=1e-3,
        )  # fmt: skip

    make("at_once", 2, in_background=False).train()
    make("background", 1, in_background=True).train()
    resumed = make("background", 2, in_background=True)
    resumed.resume()
    resumed.train()
    runs = [checkpoints(tmp_path / name) for name in ("at_once", "background")]
    assert [[folder.name for folder in run] for run in runs] == [["update-000000", "update-000002"]] * 2
    for at_once, background in zip(*runs, strict=True):
        assert contents(at_once) == contents(background)
    lines = [without_times(tmp_path / name / "metrics.jsonl") for name in ("at_once", "background")]
    assert [line for line in lines[1] if "train/loss" in line] == [line for line in lines[0] if "train/loss" in line]
