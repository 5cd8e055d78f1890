"""`torchrun -m scripts.train`: one run folder, the same curve with any number of ranks, restarts, named errors."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from algorithms.checkpoint import checkpoints, load_state
from tests.algorithms.test_parallel import torchrun
from tests.kills.__main__ import TINY

ROOT = Path(__file__).parents[2]
RUN = [
    *TINY, "trainer.final_learning_rate=1e-3", "trainer.group_size=4", "trainer.checkpoint_every=1",
    "trainer.eval_every=0", "pool.size=8",
]  # fmt: skip


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def start(cache: Path, *overrides: str, ranks: int = 2, options: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    """A training run that has begun; `options` are those of torchrun."""
    command = torchrun("scripts.train", *overrides, ranks=ranks)
    command[3:3] = options
    environment = {**os.environ, "POLYTURN_CACHE": str(cache), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=environment, cwd=cache, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def finish(process: subprocess.Popen[str], code: int | None = 0) -> str:
    """Returns the output."""
    out, _ = process.communicate(timeout=240)
    assert code is None or process.returncode == code, out
    return out


def lines(run: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith(("time/", "perf/"))} for row in rows]


def weights(run: Path) -> Mapping[str, torch.Tensor]:
    """The newest weights, as plain transformers loads them."""
    state: Mapping[str, torch.Tensor] = AutoModelForCausalLM.from_pretrained(checkpoints(run)[-1]).state_dict()
    return state


def ranks_of(run: Path) -> dict[int, int]:
    """The process of each rank that works on a run."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command, variables = ((folder / name).read_bytes() for name in ("cmdline", "environ"))
        except OSError:
            continue
        rank = [entry[5:] for entry in variables.split(b"\0") if entry.startswith(b"RANK=")]
        if rank and str(run).encode() in command and b"scripts.train" in command and b"--standalone" not in command:
            found[int(rank[0])] = int(folder.name)
    return found


def wait_for_lines(run: Path, count: int) -> None:
    deadline = time.monotonic() + 120
    while not (run / "metrics.jsonl").exists() or len((run / "metrics.jsonl").read_bytes().splitlines()) < count:
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.fixture(scope="module")
def one(cache: Path) -> Path:
    """A run of five updates by one rank."""
    folder = cache / "one"
    finish(start(cache, *RUN, "trainer.updates=5", "parallel=replicas", f"hydra.run.dir={folder}", ranks=1))
    return folder


@pytest.fixture(scope="module")
def killed(cache: Path) -> Path:
    """A run of three updates by two ranks, of which one was killed and started again. A thread writes checkpoints."""
    folder = cache / "killed"
    process = start(
        cache, *RUN, "trainer.checkpoint_async=true", "parallel=replicas", f"hydra.run.dir={folder}",
        options=("--max-restarts", "2"),
    )  # fmt: skip
    wait_for_lines(folder, 2)
    os.kill(ranks_of(folder)[time.time_ns() % 2], signal.SIGKILL)
    finish(process)
    return folder


def test_a_killed_rank_is_started_again_and_the_curve_is_that_of_one_rank(cache: Path, one: Path, killed: Path) -> None:
    own = lines(killed)
    assert own[:4] == lines(one)[:4]  # the first evaluation, and every update once
    assert [row["update"] for row in own] == [0, 1, 2, 3, 3]
    for row in map(json.loads, (killed / "metrics.jsonl").read_text().splitlines()):  # evaluations count for themselves
        assert row["time/ranks_s"] <= sum(v for k, v in row.items() if k.startswith("time/") and k != "time/ranks_s")
    assert {path.name for path in killed.iterdir()} == {path.name for path in one.iterdir()}
    assert not list((cache / "torchrun").iterdir())


def test_a_run_is_resumed_by_any_number_of_ranks(cache: Path, one: Path, killed: Path) -> None:
    folder = cache / "resumed"
    shutil.copytree(killed, folder)
    finish(start(cache, f"resume={folder}", "trainer.updates=4", "parallel=shards", ranks=2))
    assert "changed" in finish(start(cache, f"resume={folder}", "trainer.updates=5", "parallel=replicas", ranks=1))
    expected = weights(one)
    for name, tensor in weights(folder).items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-6)
    states = [load_state(checkpoints(run)[-1]) for run in (folder, one)]
    assert states[0]["optimizer"]["state"].keys() == states[1]["optimizer"]["state"].keys() <= expected.keys()
    updates, expected_updates = ([row for row in lines(run) if "train/loss" in row] for run in (folder, one))
    assert [row["update"] for row in updates] == [1, 2, 3, 4, 5]
    for row, of_one in zip(updates, expected_updates, strict=True):
        assert row == pytest.approx(of_one, rel=1e-5, abs=1e-6)


FAULT = [*RUN, "--config-dir", str(Path(__file__).parent / "conf"), "algo=rank_fault"]


@pytest.mark.parametrize(
    ("overrides", "messages"),
    [
        (["parallel=replicas"], ["the signal is out of order", "the error is that of rank 1", "(rank 0): "]),
        (
            ["parallel=shards", "algo.signals.fault.kind=hangs", "parallel.timeout=10"],
            ["for rank 1, which is busy"],
        ),
        (
            [
                "parallel=shards",
                "algo.signals.fault.kind='fills the disk'",
                "algo.signals.fault.rank=0",
                "trainer.checkpoint_async=true",
            ],
            ["error (rank 0): the disk is full: ", "could not be written", "(rank 1): "],
        ),
        (
            ["parallel=replicas", "eval.selection_tasks='${oc.decode:${oc.env:LOCAL_RANK}}'"],
            ["(rank 1): all ranks must have the same", "training"],
        ),
    ],
    ids=["an exception", "a hang", "a full disk", "other settings"],
)
def test_a_fault_of_a_rank_ends_the_run_by_name(cache: Path, overrides: list[str], messages: list[str]) -> None:
    folder = cache / f"fault-{time.time_ns()}"
    begun = time.monotonic()
    out = finish(start(cache, *FAULT, *overrides, f"hydra.run.dir={folder}"), code=1)
    for message in messages:
        assert message in out
    assert time.monotonic() - begun < 120
    assert not [path for path in folder.rglob("*") if ".partial" in path.name]
    assert {path.name for path in checkpoints(folder)} <= {"update-000000"}  # the initial policy


def test_a_signal_to_torchrun_ends_the_run_after_the_update(cache: Path) -> None:
    folder = cache / "stopped"
    process = start(cache, *RUN, "trainer.updates=9999", "parallel=replicas", f"hydra.run.dir={folder}")
    wait_for_lines(folder, 2)
    process.send_signal(signal.SIGTERM)
    out = finish(process, code=None)
    assert "finishing this update" in out
    updates = [int(row["update"]) for row in lines(folder)]
    assert int(checkpoints(folder)[-1].name[-6:]) == updates[-1] == len(updates) - 1
