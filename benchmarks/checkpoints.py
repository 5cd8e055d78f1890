"""How long a checkpoint stops the training, written at once and in the background.

    python -m benchmarks.checkpoints --parameters 0.1B

The model has random weights, and an update has filled the moments of Adam. Checkpoints of both kinds are written in
turns, and updates are timed alone and while a checkpoint is written. Prints one JSON, of medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
from transformers.utils.logging import disable_progress_bar

from agents.policies.tiny import build_tokenizer
from algorithms.checkpoint import CheckpointWriter
from algorithms.learner import Learner
from benchmarks.ranks import GIGA, SHAPES, batch, build
from benchmarks.rollouts import learner_config


def measure(name: str, repeats: int, folder: Path) -> dict[str, float]:
    """The median seconds of each part."""
    learner = Learner(build(name), learner_config(micro_batch_tokens=256, minibatches=1))
    tokenizer = build_tokenizer(["Open the door."])
    samples, table = batch(4, 128)
    seconds: dict[str, list[float]] = defaultdict(list)

    def update(what: str) -> None:
        start = time.perf_counter()
        learner.update(samples, table, np.linspace(-1, 1, 4), np.random.default_rng(0), 1e-6)
        seconds[what].append(time.perf_counter() - start)

    def save(writer: CheckpointWriter, kind: str) -> None:
        start = time.perf_counter()
        state = {"optimizer": learner.optimizer_state()}
        writer.save(folder / kind, learner.model, tokenizer, state, {}, None, lambda: None)
        seconds[f"{kind}_stops_s"].append(time.perf_counter() - start)

    at_once, background = CheckpointWriter(), CheckpointWriter(in_background=True)
    update("first_update_s")
    for _ in range(repeats):
        update("update_s")
        save(at_once, "at_once")
        save(background, "background")
        update("update_while_writing_s")
        background.wait()
    size = sum(path.stat().st_size for path in (folder / "at_once").iterdir())
    return {"gb": size / GIGA, **{what: statistics.median(values) for what, values in seconds.items()}}


def main(arguments: list[str]) -> None:
    """Measure in a temporary folder below `--folder`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", choices=SHAPES, default="0.05B")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path(), help="on the disk to measure")
    args = parser.parse_args(arguments)
    disable_progress_bar()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        figures = measure(args.parameters, args.repeats, Path(folder))
    print(json.dumps({"model": args.parameters, **figures}))


if __name__ == "__main__":
    main(sys.argv[1:])
