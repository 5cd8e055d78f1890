"""Estimators: speed on a million turns, compared with a plain loop, and with verl if it is installed.

    python -m benchmarks.estimators                                # GRPO and GiGPO, and GiGPO as a loop
    python -m benchmarks.estimators --verl .venv-verl/bin/python   # also verl's GRPO and GAE, with this interpreter

Groups have 8 attempts of 20 turns; 30 % of the turns are in a repeated state. The loop computes GiGPO like the authors'
code, group after group and row after row with torch scalars. The benchmark checks that it gives the same advantages,
and measures both on fewer turns.

All figures are CPU seconds on one core, the best of several runs, so other processes do not matter.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from algorithms.estimators.gae import token_gae
from algorithms.estimators.gigpo import gigpo
from algorithms.estimators.grpo import grpo
from algorithms.turn_table import TurnTable

GROUP_SIZE, TURNS = 8, 20
REPEATED = 0.3  # share of the turns in a repeated state
SEQUENCES, LENGTH = 4096, 2048  # of the comparison with verl

_VERL = f"""
import json, time
import numpy as np, torch
torch.set_num_threads(1)
from verl.trainer.ppo import core_algos
B, L = {SEQUENCES}, {LENGTH}
g = torch.Generator().manual_seed(0)
rewards = torch.zeros(B, L)
rewards[:, -1] = (torch.rand(B, generator=g) < 0.5).float()
values, mask = torch.randn(B, L, generator=g), torch.ones(B, L)
index = np.arange(B) // {GROUP_SIZE}
def best(run):
    seconds = []
    for _ in range(3):
        start = time.process_time()
        run()
        seconds.append(time.process_time() - start)
    return min(seconds)
print(json.dumps({{
    "verl_grpo_s": best(lambda: core_algos.compute_grpo_outcome_advantage(rewards, mask, index)),
    "verl_gae_s": best(lambda: core_algos.compute_gae_advantage_return(rewards, values, mask, 1.0, 0.95)),
}}))
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, and print one line of JSON. Raises `SystemExit(1)` if the loop gives other advantages."""
    parser = argparse.ArgumentParser(prog="benchmarks.estimators", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--turns", type=int, default=1_000_000, help="of the large table")
    parser.add_argument("--loop-turns", type=int, default=8_000, help="of the table that the loop is timed on")
    parser.add_argument("--verl", metavar="PYTHON", help="an interpreter that can import verl")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    small = random_columns(options.loop_turns)
    if not np.allclose(gigpo(TurnTable(**small)), loop_gigpo(TurnTable(**small)), atol=1e-4):
        raise SystemExit(1)
    figures: dict[str, Any] = {"turns": options.turns, "loop_turns": options.loop_turns}
    for name, estimator in [("grpo", grpo), ("gigpo", gigpo)]:
        for size in (options.turns // 10, options.turns):
            columns = random_columns(size)
            figures[f"{name}_{size}_s"] = best(lambda c, e=estimator: e(TurnTable(**c)), columns)
    figures["gigpo_small_s"] = best(lambda c: gigpo(TurnTable(**c)), small, repeats=10)
    figures["gigpo_loop_s"] = best(lambda c: loop_gigpo(TurnTable(**c)), small, repeats=1)
    figures["gigpo_loop_ratio"] = round(figures["gigpo_loop_s"] / figures["gigpo_small_s"])
    figures |= _compare_with_verl(options.verl) if options.verl else {"verl": "not given"}
    Console().print(_table(figures))
    print(json.dumps({name: round(value, 5) if isinstance(value, float) else value for name, value in figures.items()}))


def best(run: Callable[[Any], Any], argument: Any, repeats: int = 3) -> float:
    """The CPU seconds of the fastest run."""
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        run(argument)
        seconds.append(time.process_time() - start)
    return min(seconds)


def random_columns(n: int, seed: int = 0) -> dict[str, Any]:
    """Columns of a table of `n` turns. The table is created in the measured part, because it caches its results."""
    rng = np.random.default_rng(seed)
    row = np.arange(n)
    episode, turn = row // TURNS, row % TURNS
    repeated = rng.random(n) < REPEATED
    state = np.empty(n, dtype=object)
    state[:] = [f"you are in room {i}" for i in np.where(repeated, rng.integers(0, TURNS, n), TURNS + row).tolist()]
    return {
        "group": episode // GROUP_SIZE,
        "episode": episode,
        "turn": turn,
        "reward": np.where(turn == TURNS - 1, 10.0 * (rng.random(n) < 0.5), 0.0),
        "state": state,
        "valid": rng.random(n) < 0.9,
    }


# -- the compared implementations -------------------------------------------------------------------------------------
def loop_gigpo(table: TurnTable, gamma: float = 0.95, penalty: float = 0.1) -> NDArray[np.float64]:
    """GiGPO in mode "mean_norm", computed in the order of the authors' code."""
    names = np.array([f"episode {number}" for number in table.episode], dtype=object)
    groups = np.array([f"group {number}" for number in table.group], dtype=object)
    returns_of, sums = {}, {}
    for name in np.unique(names):
        rewards = table.reward[names == name]
        returns, running = np.zeros_like(rewards), 0.0
        for t in reversed(range(len(rewards))):
            running = rewards[t] + gamma * running
            returns[t] = running
        returns_of[name], sums[name] = returns, rewards.sum()
    steps = np.zeros(len(table))
    for i, name in enumerate(names):  # back into the order of the batch
        rows = np.where(names == name)[0]
        steps[i] = returns_of[name][np.where(rows == i)[0][0]]
    invalid = penalty * ~table.valid
    scores = torch.tensor(np.array([sums[name] for name in names]) - invalid)
    steps = torch.tensor(steps - invalid)
    anchors: dict[Any, list[int]] = defaultdict(list)
    for group in np.unique(groups):
        for i in np.where(groups == group)[0]:
            anchors[group, table.state[i]].append(int(i))
    anchor_of = np.empty(len(table), dtype=object)
    for anchor, rows in anchors.items():
        for i in rows:
            anchor_of[i] = anchor
    return (_less_mean(scores, groups, keep_single=True) + _less_mean(steps, anchor_of, keep_single=False)).numpy()


def _less_mean(values: torch.Tensor, keys: NDArray[Any], keep_single: bool) -> torch.Tensor:
    members: dict[Any, list[torch.Tensor]] = defaultdict(list)
    for i, key in enumerate(keys):
        members[key].append(values[i])
    means = {}
    for key, own in members.items():
        means[key] = torch.zeros(()) if len(own) == 1 and keep_single else torch.mean(torch.tensor(own))
    result = values.clone()
    for i, key in enumerate(keys):
        result[i] = values[i] - means[key]
    return result


def _compare_with_verl(python: str) -> dict[str, Any]:
    """GRPO and GAE on whole sequences, by verl and by polyturn, with one advantage per token."""
    done = subprocess.run([python, "-c", _VERL], capture_output=True, text=True, timeout=600, check=False)
    if done.returncode:
        return {"verl": f"failed: {done.stderr.strip().splitlines()[-1]}"}
    rng = np.random.default_rng(0)
    state = np.full(SEQUENCES, "start", dtype=object)
    columns = {
        "group": np.arange(SEQUENCES) // GROUP_SIZE,
        "episode": np.arange(SEQUENCES),
        "turn": np.zeros(SEQUENCES, dtype=np.int64),
        "reward": (rng.random(SEQUENCES) < 0.5).astype(np.float64),
        "state": state,
        "valid": np.ones(SEQUENCES, dtype=np.bool_),
        "tokens": np.full(SEQUENCES, LENGTH),
        "token_signals": {"value": rng.normal(size=SEQUENCES * LENGTH)},
    }

    def grpo_of_tokens(columns: Any) -> NDArray[np.float64]:
        table = TurnTable(**columns)
        return grpo(table)[table.token_rows]

    return {
        **json.loads(done.stdout.splitlines()[-1]),
        "our_grpo_s": best(grpo_of_tokens, columns),
        "our_gae_s": best(lambda c: token_gae(TurnTable(**c), gamma=1.0, lam=0.95), columns),
    }


def _table(figures: dict[str, Any]) -> Table:
    table = Table("", "s of CPU", title="Estimators")
    table.columns[1].justify = "right"
    for name in ("grpo", "gigpo"):
        for size in (figures["turns"] // 10, figures["turns"]):
            table.add_row(f"{name}, {size:,} turns", f"{figures[f'{name}_{size}_s']:.3f}")
    table.add_row(f"gigpo, {figures['loop_turns']:,} turns", f"{figures['gigpo_small_s']:.5f}")
    loop, ratio = figures["gigpo_loop_s"], figures["gigpo_loop_ratio"]
    table.add_row(f"… as a loop ({ratio}×)", f"{loop:.3f}")
    if "verl" in figures:
        table.add_row(f"verl: {figures['verl']}", "")
        return table
    for name in ("grpo", "gae"):
        table.add_row(f"{name}, {SEQUENCES} × {LENGTH} tokens, verl", f"{figures[f'verl_{name}_s']:.3f}")
        table.add_row("… polyturn", f"{figures[f'our_{name}_s']:.3f}")
    return table


if __name__ == "__main__":
    main()
