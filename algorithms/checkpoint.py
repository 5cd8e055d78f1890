"""Checkpoints: a Hugging Face folder with the weights, and next to them the state needed to resume the run.

    RUN/checkpoints/update-000010/model.safetensors, config.json, tokenizer.json, …   any tool loads these
                                  adapter_model.safetensors, adapter_config.json      if adapters are trained
                                  trainer.pt    optimiser, generators, task cursor, best score
                                  run.json      environment, tasks, configuration and versions of the run

A checkpoint is written under a temporary name, flushed to disk, and renamed. So a folder with its name is complete.
`CheckpointWriter` can write it while the training goes on.

Functions that read or write tensors import torch and transformers, which takes seconds. Listing checkpoints and reading
what run they belong to needs neither.
"""

from __future__ import annotations

import copy
import errno
import json
import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from envs.checksums import DamagedError, verify_if_noted, write_checksums
from envs.facts import Facts
from envs.files import remove_whole, tidy, whole_folder

logger = logging.getLogger(__name__)

PREFIX = "update-"
RUN = "run.json"
STATE = "trainer.pt"
FULL = os.strerror(errno.ENOSPC)


def save_checkpoint(
    folder: Path,
    model: Any,
    tokenizer: Any,
    state: dict[str, Any] | None = None,
    run: Facts | None = None,
    weights: dict[str, Any] | None = None,
) -> None:
    """Write a checkpoint folder, replacing one with the same name. After an error (a full disk) nothing is left behind.

    `weights` are the `weights_to_save` of a sharded model. Raises `NotFiniteError` for weights that are NaN or
    infinite, before anything is written.
    """
    import torch

    from agents.policies.pretrained import save_model
    from algorithms.finite import check_weights

    check_weights(model.named_parameters() if weights is None else weights.items(), state)
    with whole_folder(folder) as partial, _naming_a_full_disk(folder):
        save_model(partial, model, tokenizer, weights)
        if state is not None:
            with (partial / STATE).open("wb") as file:  # its errors are clearer than torch's own
                torch.save(state, file)
        if run is not None:
            (partial / RUN).write_text(json.dumps(run, indent=2) + "\n", encoding="utf-8")
        write_checksums(partial)


@contextmanager
def _naming_a_full_disk(folder: Path) -> Iterator[None]:
    """Raise the `OSError` of a full disk instead of the unclear errors of torch and safetensors."""
    try:
        yield
    except (RuntimeError, SafetensorError) as error:
        before = error.__context__  # torch fails a second time, because the first write failed
        if FULL in str(error) or (isinstance(before, OSError) and before.errno == errno.ENOSPC):
            raise OSError(errno.ENOSPC, FULL, str(folder)) from error
        raise


class CheckpointWriter:
    """Writes the checkpoints of a run: at once, or `in_background`, while the caller goes on.

    In the background a thread writes a copy of the weights and the state, so the files are those of a checkpoint that
    was written at once. It writes one checkpoint at a time. Its errors are raised by the next `save` or `wait`.
    """

    def __init__(self, in_background: bool = False) -> None:
        self._thread = ThreadPoolExecutor(1, "checkpoint") if in_background else None
        self._last: Future[None] | None = None
        self._tokenizer: Any = None  # a copy: two threads cannot use a fast tokenizer at the same time

    def save(
        self,
        folder: Path,
        model: Any,
        tokenizer: Any,
        state: dict[str, Any],
        run: Facts,
        weights: dict[str, Any] | None,
        then: Callable[[], None],
    ) -> None:
        """Write a checkpoint as `save_checkpoint` does, and call `then` when it is complete.

        Weights that are not finite raise `NotFiniteError` at once, also in the background.
        """

        def write(tokenizer: Any, state: dict[str, Any], weights: dict[str, Any] | None) -> None:
            save_checkpoint(folder, model, tokenizer, state, run, weights)
            then()

        if self._thread is None:
            write(tokenizer, state, weights)
            return
        from agents.policies.pretrained import weights_to_save
        from algorithms.finite import check_weights

        self.wait()  # before copying, so that there is only one copy
        check_weights(model.named_parameters() if weights is None else weights.items(), state)
        if self._tokenizer is None:
            self._tokenizer = copy.deepcopy(tokenizer)
        weights = weights_to_save(model) if weights is None else weights
        self._last = self._thread.submit(write, self._tokenizer, *_copy_to_cpu((state, weights)))

    def wait(self) -> None:
        """Wait until the last checkpoint is on the disk. Raises the error that prevented it."""
        if self._last is not None:
            wait([self._last])
            last, self._last = self._last, None
            last.result()

    @contextmanager
    def finishing(self) -> Iterator[None]:
        """When the block ends with an error, wait for the last checkpoint; an error of its own is then only logged."""
        try:
            yield
        except BaseException:
            try:
                self.wait()
            except Exception as error:
                logger.warning("the last checkpoint was not written: %s: %s", type(error).__name__, error)
            raise


def _copy_to_cpu(value: Any) -> Any:
    """A copy of plain data and tensors, which are then in the memory of the CPU. Shared tensors stay shared."""
    from algorithms.finite import tensors_in

    on_gpu = [tensor for _, tensor in tensors_in(value, "") if tensor.device.type != "cpu"]
    return copy.deepcopy(value, {id(tensor): tensor.detach().cpu() for tensor in on_gpu})


def load_weights(folder: Path, model: Any) -> None:
    """Load the weights of a checkpoint into an existing model; of a model with adapters, only the adapters.

    transformers reads the files, as it names and splits tensors differently on disk. Raises `ValueError` naming the
    tensors that are missing, extra, or of another shape (the model is then unchanged), and `DamagedError` for a folder
    that was changed or damaged.
    """
    from agents.policies.lora import read_adapters
    from agents.policies.sharded import assign, own_class
    from agents.policies.weights import check_tensors, has_adapters

    verify_if_noted(folder)
    if has_adapters(model):
        read_adapters(model, folder)
        return
    read, report = own_class(model).from_pretrained(
        folder,
        config=copy.deepcopy(model.config),
        dtype=model.dtype,
        local_files_only=True,
        ignore_mismatched_sizes=True,  # otherwise the error would not name the tensors
        output_loading_info=True,
    )
    reshaped = [name for name, *_ in report["mismatched_keys"]]
    check_tensors(folder, set(report["missing_keys"]) - set(reshaped), report["unexpected_keys"], reshaped)
    weights = model.state_dict()
    for name, tensor in read.state_dict().items():
        assign(weights[name], tensor)


def load_state(folder: Path, *needed: str) -> dict[str, Any]:
    """The trainer's state of a checkpoint. Only plain data and tensors are read, never code.

    Raises `DamagedError` for a folder that was changed or damaged, and for a state without the `needed` keys.
    """
    path = folder / STATE
    if not path.is_file():
        raise FileNotFoundError(f"cannot resume from {folder}: it has no trainer.pt")
    verify_if_noted(folder)
    import torch

    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # reading a damaged file may raise anything
        raise DamagedError(f"{path} is damaged: torch cannot read it ({type(error).__name__})") from error
    if not isinstance(state, dict):
        raise DamagedError(f"{path} is not the state of a training run: expected a dict, got a {type(state).__name__}")
    if missing := sorted(set(needed) - state.keys()):
        raise DamagedError(f"{path} is not the state of a training run: it has no {', '.join(missing)}")
    return state


def load_run(folder: Path) -> Facts:
    """The facts of a checkpoint's run, as given to `save_checkpoint`. Raises `FileNotFoundError` and `DamagedError`."""
    verify_if_noted(folder)
    path = folder / RUN
    if not path.is_file():
        raise FileNotFoundError(f"cannot resume from {folder}: it has no {RUN}, which describes the run")
    try:
        return dict(json.loads(path.read_bytes()))
    except ValueError as error:
        raise DamagedError(f"{path} is damaged: {error}") from error


def checkpoints(run: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first, including one whose replacement was interrupted."""
    tidy(run / "checkpoints")
    found = (run / "checkpoints").glob(f"{PREFIX}*")
    return sorted(path for path in found if path.is_dir() and path.name.removeprefix(PREFIX).isdecimal())


def checkpoint_folder(run: Path, update: int) -> Path:
    """The folder of the checkpoint after `update` updates."""
    return run / "checkpoints" / f"{PREFIX}{update:06d}"


def update_of(checkpoint: Path) -> int:
    """The number of updates before a checkpoint was saved."""
    return int(checkpoint.name.removeprefix(PREFIX))


def remove_after(update: int, folder: Path) -> None:
    """Remove the files of later updates; they are named like checkpoints."""
    for path in folder.glob(f"{PREFIX}*.*"):
        number = path.name.removeprefix(PREFIX).partition(".")[0]
        if number.isdecimal() and int(number) > update:
            path.unlink()


def keep_newest(folder: Path, pattern: str, keep: int | None) -> None:
    """Remove all but the last `keep` files of updates that match the pattern; None: keep all."""
    for path in sorted(folder.glob(pattern))[: -keep if keep else 0]:
        path.unlink(missing_ok=True)


def prune(run: Path, keep: set[Path]) -> None:
    """Remove all checkpoints except the newest and those in `keep`."""
    for folder in checkpoints(run)[:-1]:
        if folder not in keep:
            remove_whole(folder)
