"""A warm start is made once, also by runs that begin together."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from agents.prompts import Transcript
from algorithms import start
from algorithms.start import Tiny, tiny_policy
from algorithms.warm_start import WarmStart
from envs.pool import EnvPool
from tests.agents.toys import Corridors
from tests.algorithms.test_trainer import Quiet

CLONES = WarmStart(episodes=4, noise=0.0, steps=2, tokens_per_step=128, max_turns=4, matrix_lr=0.02, other_lr=0.01)
SMALL = Tiny(width=16, layers=1, heads=2, feed_forward=16, context=128, warm_start=CLONES)


class Phases(Quiet):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def phase(self, name: str, total: int | None = None) -> None:
        self.names.append(name)


def make(phases: Phases, config: Tiny = SMALL, seed: int = 0):
    with EnvPool(Corridors().make, 2) as pool:
        return tiny_policy(config, Corridors(), "train", Transcript(), pool, seed, phases)


def test_runs_of_other_seeds_start_alike_where_the_start_has_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POLYTURN_CACHE", str(tmp_path))
    (_, first), (_, second) = (make(Phases(), seed=seed) for seed in (0, 1))
    assert first != second
    assert {make(Phases(), replace(SMALL, seed=1), seed)[1] for seed in (0, 5)} == {second}


def test_two_at_once_clone_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYTURN_CACHE", str(tmp_path))
    told = Phases(), Phases()
    with ThreadPoolExecutor() as threads:
        (first, kept), (second, same) = threads.map(make, told)
    assert kept == same
    assert [phases.names.count("clone them") for phases in told].count(1) == 1
    assert sum(phases.names.count("clone them") for phases in told) == 1
    weights = second.model.state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in first.model.state_dict().items())


def test_whoever_waits_too_long_is_told_for_what(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYTURN_CACHE", str(tmp_path))
    monkeypatch.setattr(start, "LONGEST_WAIT", 0.05)
    phases = Phases()
    _, folder = make(phases)
    with FileLock(folder.with_suffix(".lock")), pytest.raises(TimeoutError, match=r"remove .*\.lock"):
        make(phases)
    assert phases.names[-1] == "wait for another run that makes this warm start"
