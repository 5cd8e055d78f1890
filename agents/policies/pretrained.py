"""Load a causal language model of transformers; `agents.policies.names` says how models are named."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from agents.policies.local import LocalPolicy
from agents.policies.lora import Lora, adapter_weights, add_adapters, add_adapters_of, read_adapters, save_adapters
from agents.policies.models import find_device, one_line
from agents.policies.names import ModelError, check_quantization, find_parts
from agents.policies.sharded import whole_state
from agents.policies.weights import check_tensors, has_adapters, train_in_float32
from envs.checksums import DamagedError, found_whole, verify_if_noted, write_checksums
from envs.core import UnknownNameError, cache_root
from envs.files import made_once
from envs.files import whole_folder as whole_folder

logger = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
AUTO = "auto"  # the dtype of the weights on disk
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")
_NUMBER = re.compile(r"\.\d+\.")


@dataclass(frozen=True)
class Pretrained:
    """How models are loaded.

    `dtype` is the dtype of weights that are not trained, "auto" for that of the file. `attention` is one of
    transformers' implementations. `quantization` is None or "4bit" (NF4 through bitsandbytes, for frozen weights: it
    needs `lora` to be trained). `lora` adds new adapters if the folder has none. `context` is the most ids of prompt
    and completion together, if the model can read more or does not say how many.
    """

    dtype: str = AUTO
    attention: str = "sdpa"
    quantization: str | None = None
    lora: Lora | None = None
    context: int | None = None

    def __post_init__(self) -> None:
        if self.dtype not in (AUTO, *DTYPES):
            raise UnknownNameError("dtype", self.dtype, (AUTO, *DTYPES))
        if self.quantization not in (None, "4bit"):
            raise UnknownNameError("quantization", self.quantization, ("4bit",))
        if self.context is not None and self.context < 2:
            raise ValueError(f"policy.context must be at least 2, got {self.context}")

    def load(self, name: str | Path, device: torch.device | None = None, *, trained: bool = False) -> LocalPolicy:
        """The model called `name` (see `agents.policies.names`) as a policy on `device`, by default the best available.

        With `trained` the weights get their `training_dtypes`. Raises `ModelError` with what was found instead, and
        `ValueError` for a model whose keys and values cannot be cached between turns (`LocalPolicy.check`).
        """
        base, *folders = found = sources(name)
        for source in found:
            _check(source)
        adapters = Path(folders[0]) if folders else None
        device = device or find_device()
        dtype = self._dtype(trained and not (adapters or self.lora or self.quantization))
        model, tokenizer = self._read(base, device, dtype, adapters)
        if adapters:
            with _named(f"the adapters in {adapters}"):
                add_adapters_of(model, adapters)
        elif self.lora is not None:
            add_adapters(model, self.lora, str(name))
        if trained:
            train_in_float32(model)
        if adapters:
            with _named(f"the adapters in {adapters}"):
                read_adapters(model, adapters)
        policy = LocalPolicy(model.eval(), tokenizer, base, self.context)
        policy.check()
        return policy

    def _dtype(self, whole: bool) -> torch.dtype | str:
        """The dtype to load in; `whole` means that all weights will be trained."""
        if not whole:
            return DTYPES.get(self.dtype, AUTO)
        if self.dtype not in (AUTO, "float32"):
            logger.warning(
                "policy.dtype=%s is ignored: trained weights are float32 (trainer.precision=bfloat16 computes in "
                "bfloat16; policy=lora keeps frozen weights in policy.dtype)",
                self.dtype,
            )
        return torch.float32

    def _read(
        self, source: Path | str, device: torch.device, dtype: torch.dtype | str, adapters: Path | None
    ) -> tuple[Any, Any]:
        """The model of `source`, and the tokenizer of its adapters if they have one."""
        options: dict[str, Any] = {
            "dtype": dtype,
            "attn_implementation": self.attention,
            "local_files_only": isinstance(source, Path),
        }
        if self.quantization:
            options |= {"quantization_config": _four_bits(), "device_map": {"": device}}
        brings = adapters is not None and any((adapters / name).is_file() for name in TOKENIZER_FILES)
        words = adapters if adapters is not None and brings else source
        with _named(words):
            tokenizer = AutoTokenizer.from_pretrained(words, local_files_only=isinstance(words, Path))
        with _named(source):
            model, report = AutoModelForCausalLM.from_pretrained(
                source,
                ignore_mismatched_sizes=True,  # otherwise the error would not name the tensors
                output_loading_info=True,
                **options,
            )
            _check_whole(source, model, report)
        return (model if self.quantization else model.to(device)), tokenizer


@contextmanager
def _named(what: Path | str) -> Iterator[None]:
    """Turn any error from reading a damaged file into a `ModelError` of one line."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        hint = "policy.attention=eager may help: " if "attn_implementation" in str(error) else ""
        raise ModelError(f"{what} cannot be loaded: {hint}{one_line(error)}") from error


def _check_whole(source: Path | str, model: Any, report: dict[str, Any]) -> None:
    """Raise `ValueError` if the files belong to another model: transformers would fill missing weights at random.

    Extra tensors, such as a value head, are allowed and logged. Extra layers are not.
    """
    reshaped = {name for name, *_ in report["mismatched_keys"]}
    unexpected = set(report["unexpected_keys"])
    known = {_NUMBER.sub(".#.", name) for name in model.state_dict()}
    layers = {name for name in unexpected if _NUMBER.sub(".#.", name) in known}
    check_tensors(source, set(report["missing_keys"]) - reshaped, layers, reshaped)
    if unexpected:
        logger.warning(
            "%s holds %d tensors that %s does not have; they are ignored: %s",
            source, len(unexpected), type(model).__name__, ", ".join(sorted(unexpected)[:3]),
        )  # fmt: skip


def sources(name: str | Path) -> list[Path | str]:
    """The parts of the model called `name` (`find_parts`); a GGUF file is unpacked into a cache folder."""
    return [_unpacked(part) if isinstance(part, Path) and part.is_file() else part for part in find_parts(name)]


def _check(source: Path | str) -> None:
    """Raises `ModelError` if a folder written by polyturn was changed or damaged. Others have no checksums."""
    if isinstance(source, Path):
        try:
            verify_if_noted(source)
        except DamagedError as error:
            raise ModelError(str(error)) from error


def _unpacked(file: Path) -> Path:
    """A folder with the contents of a GGUF file, its weights in bfloat16. Made once per name, size and time."""
    state = file.stat()
    key = hashlib.sha256(f"{file.resolve()} {state.st_size} {state.st_mtime_ns}".encode()).hexdigest()[:12]
    folder = cache_root() / "models" / f"{file.stem}-{key}"
    if found_whole(folder, f"what {file.name} holds"):
        return folder
    if find_spec("gguf") is None:
        raise ModelError(f"{file} needs the package gguf; pip install 'polyturn[hf]'")
    logger.warning("unpacking %s into %s (needed once)", file.name, folder)
    with _named(file):
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.bfloat16)
    # Remove the file's quantisation settings: otherwise they would be written, and applied when the folder is loaded.
    model.hf_quantizer, model.is_quantized = None, False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    with made_once(folder, "config.json") as partial:
        save_model(partial, model, tokenizer)
        write_checksums(partial)
    return folder


def weights_to_save(model: Any) -> dict[str, torch.Tensor]:
    """The whole weights that `save_model` writes. All ranks must ask for those of a sharded model."""
    return adapter_weights(model) if has_adapters(model) else whole_state(model)


def save_model(folder: Path, model: Any, tokenizer: Any, weights: dict[str, torch.Tensor] | None = None) -> None:
    """Write model and tokenizer as a Hugging Face folder; of a model with adapters, only the adapters.

    `weights` are the `weights_to_save` of a sharded model.
    """
    if has_adapters(model):
        save_adapters(folder, model, weights or adapter_weights(model))
    else:
        model.save_pretrained(folder, state_dict=weights)
    tokenizer.save_pretrained(folder)


def _four_bits() -> Any:
    from transformers import BitsAndBytesConfig

    check_quantization("4bit")
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
