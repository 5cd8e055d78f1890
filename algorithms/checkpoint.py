"""Checkpoints: a Hugging Face folder with the weights, and beside it the state that a run needs to go on.

    RUN/checkpoints/update-000010/model.safetensors, config.json, tokenizer.json, …   any tool loads these
                                  adapter_model.safetensors, adapter_config.json      where adapters are trained
                                  trainer.pt    optimiser, generators, task cursor, best score
                                  run.json      what the run is: environment, tasks, configuration, versions

A checkpoint appears under its name only when it is whole: it is written beside it, flushed to the disk, and renamed.

Functions that read or write tensors import torch and transformers, which takes seconds: which checkpoints there are,
and what run they are of, is known without.
"""

from __future__ import annotations

import copy
import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from envs.checksums import DamagedError, verify_if_noted, write_checksums
from envs.facts import Facts
from envs.files import remove_whole, tidy, whole_folder

PREFIX = "update-"
RUN = "run.json"
STATE = "trainer.pt"
FULL = os.strerror(errno.ENOSPC)


def save_checkpoint(
    folder: Path, model: Any, tokenizer: Any, state: dict[str, Any] | None = None, run: Facts | None = None
) -> None:
    """Write a checkpoint folder, replacing one of that name. An error (a full disk, say) leaves nothing behind.

    Raises `NotFiniteError` for weights that are NaN or infinite, before anything is written.
    """
    import torch

    from agents.policies.pretrained import save_model
    from algorithms.finite import check_weights

    check_weights(model, state)
    with whole_folder(folder) as partial, _naming_a_full_disk(folder):
        save_model(partial, model, tokenizer)
        if state is not None:
            with (partial / STATE).open("wb") as file:  # whose errors, unlike torch's own, say what is wrong
                torch.save(state, file)
        if run is not None:
            (partial / RUN).write_text(json.dumps(run, indent=2) + "\n", encoding="utf-8")
        write_checksums(partial)


@contextmanager
def _naming_a_full_disk(folder: Path) -> Iterator[None]:
    """Raise the `OSError` of a full disk where torch and safetensors say it in words of their own."""
    try:
        yield
    except (RuntimeError, SafetensorError) as error:
        before = error.__context__  # torch stumbles once more, over what it could not write
        if FULL in str(error) or (isinstance(before, OSError) and before.errno == errno.ENOSPC):
            raise OSError(errno.ENOSPC, FULL, str(folder)) from error
        raise


def load_weights(folder: Path, model: Any) -> None:
    """Put the weights of a checkpoint into a model that is already there; of one with adapters, theirs alone.

    They are read as transformers reads them, whose files name and cut tensors otherwise than its models do. Raises
    `ValueError` naming the tensors that are missing, too many, or of another shape; the model is then as it was;
    `DamagedError` for a folder that is not as it was written.
    """
    import torch

    from agents.policies.lora import read_adapters
    from agents.policies.weights import check_tensors, has_adapters

    verify_if_noted(folder)
    if has_adapters(model):
        read_adapters(model, folder)
        return
    read, report = type(model).from_pretrained(
        folder,
        config=copy.deepcopy(model.config),
        dtype=model.dtype,
        local_files_only=True,
        ignore_mismatched_sizes=True,  # or the error would not say which
        output_loading_info=True,
    )
    reshaped = [name for name, *_ in report["mismatched_keys"]]
    check_tensors(folder, set(report["missing_keys"]) - set(reshaped), report["unexpected_keys"], reshaped)
    weights = model.state_dict()
    with torch.no_grad():
        for name, tensor in read.state_dict().items():
            weights[name].copy_(tensor)


def load_state(folder: Path, *needed: str) -> dict[str, Any]:
    """The trainer's state of a checkpoint. Only plain data and tensors are read, never code.

    Raises `DamagedError` for a folder that is not as it was written, and for a state without what is `needed`.
    """
    path = folder / STATE
    if not path.is_file():
        raise FileNotFoundError(f"{folder} cannot be resumed from: it has no trainer.pt")
    verify_if_noted(folder)
    import torch

    try:
        state: dict[str, Any] = torch.load(path, weights_only=True)
    except Exception as error:  # of a broken file, whatever its reader stumbles over
        raise DamagedError(f"{path} is damaged: torch cannot read it ({type(error).__name__})") from error
    if not isinstance(state, dict):
        raise DamagedError(f"{path} is no state of a training run: expected a dict, got a {type(state).__name__}")
    if missing := sorted(set(needed) - state.keys()):
        raise DamagedError(f"{path} is no state of a training run: it has no {', '.join(missing)}")
    return state


def load_run(folder: Path) -> Facts:
    """What the run of a checkpoint is, as `save_checkpoint` got it. Raises `FileNotFoundError` and `DamagedError`."""
    verify_if_noted(folder)
    path = folder / RUN
    if not path.is_file():
        raise FileNotFoundError(f"{folder} cannot be resumed from: it has no {RUN}, which says what was trained")
    try:
        return dict(json.loads(path.read_bytes()))
    except ValueError as error:
        raise DamagedError(f"{path} is damaged: {error}") from error


def checkpoints(run: Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first; one that was just being replaced when its process died, too."""
    tidy(run / "checkpoints")
    found = (run / "checkpoints").glob(f"{PREFIX}*")
    return sorted(path for path in found if path.is_dir() and path.name.removeprefix(PREFIX).isdecimal())


def checkpoint_folder(run: Path, update: int) -> Path:
    """Where the checkpoint after `update` updates goes."""
    return run / "checkpoints" / f"{PREFIX}{update:06d}"


def update_of(checkpoint: Path) -> int:
    """After how many updates a checkpoint was saved."""
    return int(checkpoint.name.removeprefix(PREFIX))


def remove_after(update: int, folder: Path, suffix: str) -> None:
    """Remove the files of later updates, which are called as checkpoints are."""
    for path in folder.glob(f"{PREFIX}*{suffix}"):
        number = path.name.removeprefix(PREFIX).removesuffix(suffix)
        if number.isdecimal() and int(number) > update:
            path.unlink()


def prune(run: Path, keep: set[Path]) -> None:
    """Remove all checkpoints but the newest and those in `keep`."""
    for folder in checkpoints(run)[:-1]:
        if folder not in keep:
            remove_whole(folder)
