"""The record of a batch: correct steps for every method, complete files, prompts computed again."""

from __future__ import annotations

import gzip
from functools import cache
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import pytest
from hydra.utils import instantiate

import conf
from agents.episode import Episode, ParseStatus, Turn
from agents.record import Record, read_record, write_record
from algorithms.estimators.steps import explained
from algorithms.recorded import recorded_batch
from algorithms.signals.base import RolloutBatch
from algorithms.turn_table import Estimate, TurnTable
from envs.core import StopReason, Task
from tests.algorithms.by_hand import ByHand

NAMES = sorted(path.stem for path in (Path(conf.__path__[0]) / "algo").glob("*.yaml"))
BINARY = {"nft", "psr", "nsr", "w_reinforce"}  # returns must be 0 or 1


@cache
def estimator(name: str) -> Any:
    with hydra.initialize_config_module("conf", version_base="1.3"):
        return instantiate(hydra.compose("config", [f"algo={name}"]).algo.estimator)


def batch_of(table: TurnTable) -> RolloutBatch:
    """Episodes with the turns of a table."""
    first = [np.flatnonzero(table.episode == number)[0] for number in range(table.episode.max() + 1)]
    groups = table.group[first].tolist()
    episodes = [Episode(Task(f"task {g}", "toy", "train"), g, stop_reason=StopReason.SUCCESS) for g in groups]
    ends = np.cumsum(table.tokens)
    for row, end in enumerate(ends.tolist()):
        logprobs = table.token_signals["logprob"][end - table.tokens[row] : end].tolist()
        status = ParseStatus.OK if table.valid[row] else ParseStatus.ILLEGAL
        turn = Turn(
            "o", "a", float(table.reward[row]), str(table.state[row]), status, [1], [2] * len(logprobs), logprobs
        )
        episodes[table.episode[row]].turns.append(turn)
    return RolloutBatch(episodes, table, [])


def recorded(name: str, table: TurnTable, folder: Path) -> tuple[Record, np.ndarray]:
    with explained() as steps:
        estimate = estimator(name)(table)
    advantages = estimate.advantages if isinstance(estimate, Estimate) else estimate
    file = folder / "update-000001.jsonl.gz"
    write_record(file, recorded_batch(1, "train", batch_of(table), advantages, steps, {}))
    return read_record(file), advantages


def table_of(seed: int, *, binary: bool) -> TurnTable:
    """Three tasks with 1 to 4 attempts of 2 to 5 turns of 1 to 3 tokens, in few states, with every signal.

    Neighbouring attempts share their first turn.
    """
    rng = np.random.default_rng(seed)
    group = np.repeat([0, 1, 2], [1, 3, 4])
    episode = np.repeat(np.arange(8), rng.integers(2, 6, 8))
    group, n = group[episode], len(episode)
    opens = np.append(True, np.diff(episode) != 0)
    last = np.append(np.diff(episode) != 0, True)
    tree = group * 100 + episode // 2
    node = np.where(opens, tree, 1000 + np.arange(n))
    _, first, number = np.unique(node, return_index=True, return_inverse=True)
    played = first[number]
    tokens = rng.integers(1, 4, n)[played]
    starts, m = np.cumsum(tokens) - tokens, int(tokens.sum())
    own = np.concatenate([starts[row] + np.arange(tokens[row]) for row in played])
    places = rng.integers(0, 8, m)[own]
    scores = rng.integers(0, 2, 8) if binary else rng.integers(0, 5, 8) / 4
    state = np.empty(n, dtype=object)
    state[:] = rng.choice(["hall", "desk"], n)
    dense = np.zeros(n) if binary else np.where(rng.random(n) < 0.3, 0.25, 0.0)
    segments = np.where(rng.random(m) < 0.5, rng.normal(size=m), np.nan)
    table = TurnTable(
        group=group, episode=episode, turn=np.arange(n) - np.flatnonzero(opens)[np.cumsum(opens) - 1],
        reward=np.where(last, scores[episode], dense)[played] if not binary else np.where(last, scores[episode], 0.0),
        state=state[played], valid=(rng.random(n) < 0.8)[played], tokens=tokens,
        signals={
            "answer_logprob": np.where(rng.random(n) < 0.1, np.nan, -rng.exponential(size=n)),
            "demonstration": rng.random(n) < 0.3, "entropy": rng.exponential(size=n),
            "mc_value": np.where(rng.random(n) < 0.2, np.nan, rng.normal(size=n)),
            "next_value": np.where(last & (rng.random(n) < 0.5), rng.normal(size=n), 0.0),
            "node": node if not binary else np.arange(n), "prm": rng.normal(size=n), "tree": tree,
            "tag": rng.integers(0, 4, n), "tag_form": rng.random(n) < 0.7, "tag_reward": rng.random(n),
            "progress": rng.normal(size=n), "task_value": rng.random(3)[group], "tool_result": rng.random(n) < 0.4,
            "turn_reward": rng.normal(size=n), "value": rng.normal(size=n),
        },
        token_signals={
            "importance_weight": rng.uniform(0.5, 2.0, m)[own], "logprob": np.log(rng.uniform(0.2, 1.0, m))[own],
            "mc_value": segments, "prm": rng.normal(size=m), "square_sum": rng.uniform(0.9, 1.0, m)[own],
            "value": rng.normal(size=m), "residual_weight": rng.uniform(0.1, 1.0, m)[own],
            "prefix": 4 * group[np.repeat(np.arange(n), tokens)] + places // 2,
            "continuation": 8 * group[np.repeat(np.arange(n), tokens)] + places,
            "entropy": rng.exponential(size=m)[own], "planning": (rng.random(m) < 0.4).astype(np.float64)[own],
        },
    )  # fmt: skip
    if not binary:
        table.token_signals["token_reward"] = 0.01 * rng.exponential(size=m)[own]
    return table


@pytest.mark.parametrize("name", NAMES)
def test_the_steps_add_up_to_the_advantage(name: str, tmp_path: Path) -> None:
    for seed in range(2):
        table = table_of(seed, binary=name in BINARY)
        record, advantages = recorded(name, table, tmp_path)
        by_hand = ByHand(record)
        assert record.steps[-1]["name"] == "advantage"
        assert len({step["name"] for step in record.steps}) == len(record.steps)
        for step in record.steps:
            if step["formula"]:
                expected = by_hand.column(step["name"], step["of"])
                np.testing.assert_allclose(by_hand.computed(step), expected, rtol=1e-9, atol=1e-9, err_msg=str(step))
        np.testing.assert_array_equal(by_hand.column("advantage", record.steps[-1]["of"]), advantages)


def test_a_damaged_record_is_named_and_half_a_line_left_out(tmp_path: Path) -> None:
    record, _ = recorded("grpo", table_of(0, binary=False), tmp_path)
    file = tmp_path / "update-000001.jsonl.gz"
    content = file.read_bytes()
    file.write_bytes(content[:-20])
    with pytest.raises(ValueError, match=r"update-000001.jsonl.gz is damaged"):
        read_record(file)
    lines = gzip.decompress(content).splitlines(keepends=True)
    file.write_bytes(gzip.compress(lines[0].replace(b'"record": 1', b'"record": 2')))
    with pytest.raises(ValueError, match="a record of version 2, and this polyturn reads version 1"):
        read_record(file)
    plain = tmp_path / "episodes.jsonl"
    plain.write_bytes(b"".join(lines[1:])[:-20])
    cut = read_record(plain)
    assert cut.is_cut
    assert len(cut.episodes) == len(record.episodes) - 1
    plain.write_bytes(b"{}\n")
    with pytest.raises(ValueError, match=r"episodes.jsonl:1: not an episode"):
        read_record(plain)
