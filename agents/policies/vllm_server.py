"""Sample with a running `vllm serve`, on this or another machine, while the weights are trained: `rollout=vllm_server`.

Ids are exchanged through /v1/completions. Weights are passed through a file in a folder that the server can read or,
between GPUs, over NCCL with vLLM's own weight transfer; both need the server's development mode. Start the server as
docs/agents.md says. A probe after each `sync` finds most wrong settings.

Written for the interface of vLLM 0.32. The transfer over NCCL follows its documentation and was not run.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai
import torch
from safetensors.torch import save_file
from torch import Tensor

from agents.endpoint import EndpointError, endpoint_errors
from agents.policies.local import LocalPolicy
from agents.policies.lora import merged_weights
from agents.policies.vllm import Answer, Engine, SyncError, default_tolerance, import_vllm, sampled_dtype
from envs.files import partial_path

# The server takes missing settings from the model's generation_config.json, which would change the distribution.
NEUTRAL_SAMPLING = {
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}


class VllmServerPolicy(Engine):
    """A policy that samples with vLLM at `base_url` (`http://HOST:PORT/v1`), all completions of a batch at once."""

    def __init__(
        self,
        trained: LocalPolicy,
        *,
        base_url: str,
        api_key: str = "none",
        folder: str | None = None,
        dtype: str | None = None,
        concurrency: int = 256,
        timeout: float = 600.0,
        max_retries: int = 2,
        tolerance: float | None = None,
    ) -> None:
        """Look up the served model. Raises `EndpointError` if there is none.

        Weights are passed through `folder`, or over NCCL if it is None. `dtype` must be the dtype that the server was
        started with; None means that of the weights. `timeout` in seconds is for one try of one request.
        """
        self.url = base_url.rstrip("/").removesuffix("/v1")
        self.timeout = timeout
        self.folder = None if folder is None else Path(folder).expanduser().resolve()
        self._client = openai.OpenAI(
            base_url=f"{self.url}/v1", api_key=api_key, timeout=timeout, max_retries=max_retries
        )
        with endpoint_errors(f"vllm serve at {self.url}"):
            card: Any = self._client.models.list().data[0]
            self.model, context = card.id, min(trained.context_length, card.max_model_len)
        super().__init__(trained, context, tolerance or default_tolerance(trained, sampled_dtype(trained, dtype)))
        self._threads = ThreadPoolExecutor(concurrency)
        self._transfer: Any = None

    def _ask(self, prompts: list[list[int]], settings: list[dict[str, Any]]) -> list[Answer]:
        return list(self._threads.map(self._complete, prompts, settings))

    def _complete(self, prompt: list[int], settings: dict[str, Any]) -> Answer:
        extra = {**NEUTRAL_SAMPLING, **settings, "logprobs": 0, "return_token_ids": True}
        with endpoint_errors(f"vllm serve at {self.url}"):
            reply = self._client.completions.create(model=self.model, prompt=prompt, extra_body=extra)
            choice: Any = reply.choices[0]
            given = choice.prompt_logprobs or [None]
            return Answer(
                list(choice.token_ids),
                list(choice.logprobs.token_logprobs),
                choice.finish_reason == "stop",
                [step[str(i)]["logprob"] for i, step in zip(prompt[1:], given[1:], strict=False)],
            )

    def _load(self) -> None:
        if self.folder is None:
            self._send()
        else:
            self._write(self.folder)
        if self._post("reset_prefix_cache") != {"success": True}:
            raise SyncError(f"{self.url} still caches prefixes computed with old weights: requests are still running")

    def _write(self, folder: Path) -> None:
        """Pass the weights through a file that the server reads."""
        path = folder / "model.safetensors"
        weights = {name: tensor.cpu().contiguous() for name, tensor in merged_weights(self.trained.model)}
        with partial_path(path) as partial:  # the server reads it at once, so it need not be flushed to disk
            save_file(weights, partial)
            partial.replace(path)
        self._post("collective_rpc", {"method": "load_trained_file", "args": [str(path)]})

    def _send(self) -> None:
        """Pass the weights from this GPU to the server's; the first call connects them."""
        if not torch.cuda.is_available():
            raise SyncError(
                "NCCL needs GPUs on both sides; set a folder that the server can read instead: rollout.folder=…"
            )
        import_vllm()
        import requests
        from vllm.distributed.weight_transfer.clients import HTTPVLLMWeightSyncClient
        from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo
        from vllm.utils.network_utils import get_open_port

        try:
            if self._transfer is None:
                world = requests.get(f"{self.url}/get_world_size", timeout=self.timeout).json()["world_size"]
                self._transfer = WeightTransferTrainerFactory.trainer_init(
                    NCCLTrainerInitInfo(
                        master_address=self._own_address(), master_port=get_open_port(), world_size=world + 1, rank=0
                    ),
                    client=HTTPVLLMWeightSyncClient(self.url, self.timeout),
                    source=_source(self.trained.model),
                )
            self._transfer.send_weights()
        except requests.RequestException as error:
            raise EndpointError(f"vllm serve at {self.url}: {error}") from error

    def _own_address(self) -> str:
        """The address of this machine as the server sees it."""
        parts = urlsplit(self.url)
        with socket.create_connection((parts.hostname, parts.port or 80)) as connection:
            return str(connection.getsockname()[0])

    def _post(self, path: str, body: dict[str, Any] | None = None) -> Any:
        with endpoint_errors(f"{self.url}/{path} (which needs VLLM_SERVER_DEV_MODE=1)"):
            return self._client.post(f"{self.url}/{path}", body=body, cast_to=object)


def _source(model: Any) -> Any:
    """The trained weights as vLLM's transfer expects them: their metadata, and an iterator that can be restarted."""
    from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource

    class Source(WeightSource):  # type: ignore[misc]
        def metadata(self) -> list[Any]:
            return [ParamMeta(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in self]

        def __iter__(self) -> Iterator[tuple[str, Tensor]]:
            return ((name, tensor.cuda()) for name, tensor in merged_weights(model))

    return Source()
