"""Leaderboards of evaluations made by hand: comparisons, refusals and conclusions."""

from __future__ import annotations

import numpy as np
import pytest

from agents.episode import Episode
from agents.evaluation import outcomes_by_task, summarise
from agents.leaderboard import Cell, leaderboard, paired_differences
from envs.core import StopReason, Task
from scripts.leaderboard import conclusions, markdown, page


def cell(
    agent: str,
    solved: list[float],
    *,
    env: str = "A-v0",
    split: str = "valid",
    manifest: str = "ab" * 32,
    attempts: int = 1,
) -> Cell:
    """An evaluation in which task n is solved in a share of its attempts."""
    episodes = []
    for n, share in enumerate(solved):
        for seed in range(attempts):
            success = seed < round(share * attempts)
            task = Task(f"task-{n:03d}", env, split, payload={"type": "odd" if n % 2 else "even"})
            reason = StopReason.SUCCESS if success else StopReason.FAILURE
            episodes.append(Episode(task, n, stop_reason=reason, score=float(success), success=success, seed=seed))
    return Cell(
        agent, env, split, f"{env} {split}", f"cells/{agent}-{env}", manifest, summarise(episodes),
        outcomes_by_task(episodes), 0, None, agent == "random",
    )  # fmt: skip


def test_different_agents_differ_significantly_and_equal_ones_do_not() -> None:
    cells = [
        cell("good", [1.0] * 18 + [0.0] * 2),
        cell("same", [1.0] * 17 + [0.0, 0.0, 1.0]),
        cell("random", [0.0] * 20),
    ]
    record = leaderboard(cells)
    (table,) = record["environments"]
    assert record["overall"] is None
    assert [(row["agent"], row["rank"]) for row in table["agents"]] == [("good", 1), ("same", 1), ("random", 3)]
    assert [(row["rank_low"], row["rank_high"]) for row in table["agents"]] == [(1, 2), (1, 2), (3, 3)]
    pairs = {(pair["a"], pair["b"]): pair for pair in table["pairs"]["success"]}
    assert pairs["good", "random"]["p"] == 2 / 2**18
    assert pairs["good", "random"]["p_holm"] == 6 / 2**18
    assert pairs["good", "random"]["test"] == "McNemar"
    assert not pairs["good", "same"]["told_apart"]
    lines = conclusions(table, "success")
    assert any(line.startswith("good is better than random: 90.0 points (") for line in lines)
    assert any(
        line.startswith("good and same cannot be told apart: 0.0 points (") and "20 tasks can show" in line
        for line in lines
    )


def test_several_attempts_are_one_task() -> None:
    """Three equal attempts are no more evidence than one."""
    once = leaderboard([cell("a", [1.0] * 12 + [0.0] * 8), cell("b", [0.0] * 20)])
    thrice = leaderboard([cell("a", [1.0] * 12 + [0.0] * 8, attempts=3), cell("b", [0.0] * 20, attempts=3)])
    first, second = (one["environments"][0]["pairs"]["success"][0] for one in (once, thrice))
    assert (first["low"], first["high"], first["p"]) == (second["low"], second["high"], second["p"])
    assert (first["test"], second["test"]) == ("McNemar", "sign permutation")
    assert thrice["environments"][0]["agents"][0]["pass_hat_k"]["3"]["mean"] == 0.6


def test_environments_have_equal_weight_and_so_have_their_splits() -> None:
    cells = [
        *(cell(agent, [high] * 4, split="x") for agent, high in (("a", 1.0), ("b", 0.0))),
        *(cell(agent, [0.0] * 40, split="y") for agent in "ab"),
        *(cell(agent, [1.0, 0.0] * 50, env="B-v0") for agent in "ab"),
        cell("only here", [1.0] * 4, split="x"),
    ]
    overall = leaderboard(cells)["overall"]
    assert overall["left_out"] == ["only here"]
    assert [(row["agent"], row["success"]["mean"]) for row in overall["agents"]] == [("a", 0.5), ("b", 0.25)]
    (pair,) = overall["pairs"]["success"]
    assert pair["difference"] == pytest.approx(0.25)
    assert (pair["better"], pair["worse"], pair["test"]) == (4, 0, "sign permutation")


def test_what_cannot_be_compared_is_refused_by_name() -> None:
    a = cell("a", [1.0] * 5)
    with pytest.raises(ValueError, match=r"cells/a-A-v0 and cells/b-A-v0 .* manifests, abababababab and cdcdcdcdcdcd"):
        leaderboard([a, cell("b", [1.0] * 5, manifest="cd" * 32)])
    with pytest.raises(ValueError, match="5 and 3 tasks of A-v0 valid, 3 of them the same; use one limit"):
        leaderboard([a, cell("b", [1.0] * 3)])
    with pytest.raises(ValueError, match="a was evaluated 2 times on A-v0 valid: cells/a-A-v0, cells/a-A-v0"):
        leaderboard([a, a])
    with pytest.raises(ValueError, match="no evaluations"):
        leaderboard([])


def test_differences_are_of_the_same_tasks() -> None:
    a, b = cell("a", [1.0, 0.0, 0.5], attempts=2), cell("b", [0.0, 0.0, 1.0], attempts=2)
    np.testing.assert_allclose(paired_differences(a, b, "success"), [1.0, 0.0, -0.5])


def test_names_cannot_change_the_page_or_the_tables() -> None:
    hostile = "<script>alert(1)</script> | x"
    record = {**leaderboard([cell(hostile, [1.0, 0.0]), cell("b", [0.0, 0.0])]), "left_out": ["<b>no</b>"]}
    html = page(record)
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    assert "&lt;b&gt;no" in html
    assert "\\| x" in markdown(record)
    assert "There is no floor" in html
