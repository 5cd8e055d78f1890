"""An extension of vLLM's workers (`--worker-extension-cls`) that loads weights trained elsewhere.

Written for the interface of vLLM 0.32. vLLM mixes this class into its own worker class, in the worker's process.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor


class TrainedWeights:
    """Methods of a worker, called through `collective_rpc`."""

    model_runner: Any  # the worker's
    get_model: Any

    def load_trained(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Load `weights` under transformers' names. Cached prefixes are not cleared here."""
        from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

        self.model_runner.reload_weights(weights_iterator=weights)
        # If the head is tied to the embeddings, vLLM reloads only the embeddings. On a CPU the head has a packed copy,
        # which would silently keep the old weights.
        for module in self.get_model().modules():
            if isinstance(module, ParallelLMHead):
                module.quant_method.process_weights_after_loading(module)

    def load_trained_file(self, path: str) -> None:
        """`load_trained` for a safetensors file, since HTTP requests carry only text."""
        self.load_trained(_read(path))


def _read(path: str) -> Iterator[tuple[str, Tensor]]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - not a dict
            yield name, file.get_tensor(name)
