"""What vLLM's workers are taught (`--worker-extension-cls`): to take the weights that are trained elsewhere.

Rests on the interface of vLLM 0.32. vLLM mixes the class into its own worker, in whatever process that runs.
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
        """Take `weights`, named as transformers names them. Prefixes that were cached are not forgotten here."""
        from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

        self.model_runner.reload_weights(weights_iterator=weights)
        # Where it is tied to the embeddings, vLLM reloads those alone; on a CPU the head has a packed copy of its own,
        # which would silently stay as it was.
        for module in self.get_model().modules():
            if isinstance(module, ParallelLMHead):
                module.quant_method.process_weights_after_loading(module)

    def load_trained_file(self, path: str) -> None:
        """`load_trained` of a safetensors file; HTTP carries texts only."""
        self.load_trained(_read(path))


def _read(path: str) -> Iterator[tuple[str, Tensor]]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - not a dict
            yield name, file.get_tensor(name)
