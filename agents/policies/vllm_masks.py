"""Masks and truncation inside vLLM: the logits processor by which `rollout=vllm` samples only what is allowed.

A request names its `EngineWriting` by a number (`extra_args`), which is looked up in this process: vLLM computes here
too. Rests on the interface of vLLM 0.32's first model runner.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

from agents.policies.vllm import MASK, WRITING


class MaskProcessor(AdapterLogitsProcessor):  # type: ignore[misc]
    """Leaves each request that has a writing what is allowed; the other requests stay as they are."""

    def is_argmax_invariant(self) -> bool:
        """It changes what greedy sampling takes."""
        return False

    def new_req_logits_processor(self, params: Any) -> Callable[[list[int], Tensor], Tensor] | None:
        """What masks the logits [V] after the ids of a completion so far. Raises `ValueError` in another process."""
        number = (params.extra_args or {}).get(MASK)
        if number is None:
            return None
        if number not in WRITING:
            raise ValueError(
                "what is allowed is known in one process alone: leave tensor_parallel_size at 1, or use rollout=local"
            )
        return WRITING[number].allowed
