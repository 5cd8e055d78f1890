"""Two processes compute the same update as one, and the passes are distributed evenly."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock

from algorithms.launch import Launch
from algorithms.parallel import ONE_PROCESS, Parallel, Replicas, Shards
from tests.algorithms.rank_cases import CASES, in_bfloat16

KINDS = ("replicas", "shards", "one shard", "offload")
BITWISE = ("plain", "checkpointing", "reference", "entropy", "untied embeddings", "masks", "correction", "critic")


def torchrun(*arguments: str, ranks: int = 2) -> list[str]:
    """The command that starts a module in several processes."""
    return [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "-m", *arguments
    ]  # fmt: skip


@pytest.fixture(scope="module")
def by_two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The results of all cases by two ranks, of all kinds. Processes of pytest share them."""
    file = tmp_path_factory.getbasetemp().parent / f"ranks-{os.environ.get('PYTEST_XDIST_TESTRUNUID', os.getpid())}.pt"
    with FileLock(file.with_suffix(".lock")):
        if not file.exists():
            command = torchrun("tests.algorithms.rank_cases", str(file))
            done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
            assert done.returncode == 0, done.stderr[-4000:]
    return dict(torch.load(file, weights_only=True))


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """The leaves of nested dicts and lists, by their paths."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if pairs is None:
        return {name: value}
    return {key: leaf for inner, of in pairs for key, leaf in flat(of, f"{name}/{inner}").items()}


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_learn_what_one_process_learns(by_two: dict[str, Any], case: str) -> None:
    one = flat(CASES[case](ONE_PROCESS))
    for kind in [kind for kind in KINDS if case in by_two[kind]]:
        two = flat(by_two[kind][case])
        assert two.keys() == one.keys()
        exactly = case in BITWISE and kind == "shards"
        for name, expected in one.items():
            tolerance = {"rtol": 0.0, "atol": 0.0 if exactly and "metrics" not in name else 1e-6}
            if name.startswith("/record"):  # log-probabilities, not weights
                tolerance["atol"] = 1e-5
            if isinstance(expected, torch.Tensor):
                torch.testing.assert_close(two[name], expected, **tolerance, equal_nan=True, msg=f"{kind} {name}")
            elif isinstance(expected, float):
                assert two[name] == pytest.approx(expected, rel=1e-5, abs=1e-6), (kind, name)
            else:
                assert two[name] == expected, (kind, name)


def test_two_ranks_compute_in_bfloat16_and_keep_float32(by_two: dict[str, Any]) -> None:
    """Shards gather all weights in bfloat16, one process rounds those of matrix products: results differ."""
    one, replicas, shards = in_bfloat16(ONE_PROCESS), by_two["replicas"]["bfloat16"], by_two["shards"]["bfloat16"]
    for name, expected in one["weights"].items():
        assert torch.equal(replicas["weights"][name], expected)
        assert shards["weights"][name].dtype == torch.float32
        difference = (shards["weights"][name] - expected).abs()
        assert float(difference.mean()) < 1e-3  # six steps of 2e-3 moved the weights
    for state in shards["optimizer"]["state"].values():
        assert state["exp_avg"].dtype == torch.float32
    for name in ("0/train/loss", "0/train/grad_norm"):
        assert shards["metrics"][name] == pytest.approx(one["metrics"][name], rel=1e-2)


def of_rank(kind: type[Replicas | Shards], rank: int, ranks: int, monkeypatch: pytest.MonkeyPatch) -> Parallel:
    for name, value in {"RANK": rank, "WORLD_SIZE": ranks, "LOCAL_RANK": rank, "MASTER_PORT": 1}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    return kind(chunks=8, timeout=60.0)


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
@pytest.mark.parametrize("count", [0, 1, 2, 5, 17])
@pytest.mark.parametrize("kind", [Replicas, Shards])
def test_each_pass_is_made_once_and_the_ranks_have_equal_work(
    kind: type[Replicas | Shards], count: int, ranks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    costs = np.random.default_rng(0).integers(1, 100, count).tolist()
    own = [list(of_rank(kind, rank, ranks, monkeypatch).passes(list(range(count)), costs)) for rank in range(ranks)]
    assert sorted(part for passes in own for part, weight in passes if weight) == list(range(count))
    work = [sum(costs[part] for part, weight in passes if weight) for passes in own]
    assert max(work) - min(work) <= max(costs, default=0)
    lengths = {len(passes) for passes in own}
    if kind is Shards:  # every pass is a collective: a rank with one less would let the others wait
        assert lengths == {-(-count // ranks)}
    else:
        assert all(weight for passes in own for _, weight in passes)


def test_one_process_makes_all_passes_in_their_order() -> None:
    assert list(ONE_PROCESS.passes(["a", "b"], [1.0, 2.0])) == [("a", 1.0), ("b", 1.0)]
    assert ONE_PROCESS.first(lambda: 3) == 3
    assert not ONE_PROCESS.any(False)


def test_the_rank_is_read_from_the_variables_of_torchrun() -> None:
    assert Launch.of_environment({"RANK": "0"}) is None
    variables = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "1"}
    assert Launch.of_environment(variables) == Launch(3, 8, 1, 0)
    assert Launch.of_environment(variables | {"TORCHELASTIC_RESTART_COUNT": "2"}) == Launch(3, 8, 1, 2)


@pytest.mark.parametrize(
    ("kind", "settings", "ranks", "batch", "message"),
    [
        (Replicas, {}, None, (2, 4), "needs torchrun"),
        (Replicas, {}, 9, (2, 4), "9 ranks are more than the 8 episodes of a batch"),
        (Replicas, {"chunks": 2}, 4, (2, 4), "parallel.chunks=4, or a multiple"),
        (Replicas, {"chunks": 0}, 2, (2, 4), "parallel.chunks must be at least 1"),
        (Replicas, {"timeout": 0.0}, 2, (2, 4), "parallel.timeout must be more than 0"),
        (Shards, {"size": 3}, 4, (2, 4), "parallel.size=3 ranks share the weights, which does not divide the 4 ranks"),
        (Parallel, None, 2, (2, 4), "parallel=none would make each of them a run of its own"),
    ],
)
def test_batches_that_cannot_be_distributed_are_refused(
    kind: Any, settings: dict[str, Any] | None, ranks: int | None, batch: tuple[int, int], message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if ranks is not None:
        of_rank(Replicas, 0, ranks, monkeypatch)
    with pytest.raises(ValueError, match=message):
        (kind() if settings is None else kind(**{"chunks": 8, "timeout": 60.0, **settings})).check(*batch)
