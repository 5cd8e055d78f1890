"""The tasks of BFCL multi-turn as a set of `ToolTasks`: `env=tools env.questions=bfcl`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

from envs.tools.bfcl import MOST_STEPS, SETS, data_folder, data_hash, read_tasks
from envs.tools.tasks import QuestionSet, Sizes


class BfclSet(QuestionSet):
    """Four splits of 200 conversations. There is no expert: the ground truth is hidden knowledge."""

    format = "tags"
    max_turns = 8 * (MOST_STEPS + 1)  # the longest conversations have eight user turns; a message ends each
    output = 100_000  # more than the longest result of a ground truth
    eval_splits = SETS
    official_counts = dict.fromkeys(SETS, 200)

    def __init__(self, sizes: Sizes) -> None:  # noqa: ARG002 - nothing is generated
        """Raises `NoDataError` where the package is not installed."""
        data_folder()

    @property
    def splits(self) -> Sequence[str]:
        return SETS

    def payloads(self, split: str) -> Mapping[str, Mapping[str, Any]]:
        return {name: {"scenario": "bfcl", "type": split, "set": split, "id": name} for name in read_tasks(split)}

    def describe(self) -> str:
        return f"BFCL multi-turn of bfcl-eval {metadata.version('bfcl-eval')}, {', '.join(SETS)}"

    def facts(self) -> dict[str, Any]:
        return {"bfcl_eval": metadata.version("bfcl-eval"), "bfcl_data": data_hash()}
