"""The coverage of confidence intervals, in simulations: `python -m benchmarks.coverage [--repeats 2000]`.

Two agents play tasks of different difficulty, one or several attempts at each. The logit of success is the agent's
ability minus the difficulty of the task, normal with a spread that makes attempts at one task resemble each other, plus
an effect of agent and task together. The true value is that of all tasks. Prints a table of coverage: the expanded
percentile interval that polyturn uses, BCa for comparison (Efron, Journal of the American Statistical Association
1987), and Wilson's interval at the effective number of trials for the share and the score of one agent. A rank is held
at least as often as 95 %: it is a whole number.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from agents.statistics import (
    Floats,
    bootstrap_interval,
    detectable_difference,
    effective_trials,
    mcnemar,
    pass_at_k,
    pass_hat_k,
    rank_interval,
    share_interval,
    sign_permutation,
    stratified_bootstrap,
    stratified_interval,
    wilson,
)

TASKS = (20, 100, 500)
ATTEMPTS = (1, 3)
RESAMPLES = 2000  # of a bootstrap: fewer than in use, which is slightly less exact
POPULATION = 200_000  # tasks whose mean is the true value
KINDS = ("difference", "one agent", "score", "pass^k", "pass@k", "over environments", "rank")
SURE = 4.0  # how close scores are to the chance of success: a Beta distribution with this many trials


@dataclass(frozen=True)
class World:
    """Agents and the tasks that they play."""

    abilities: tuple[float, float]
    task_spread: float = 1.5
    together_spread: float = 1.0  # of agent and task

    def chances(self, tasks: int, rng: np.random.Generator) -> Floats:
        """[2, tasks] the probability of success of each agent at each task."""
        difficulty = rng.normal(0, self.task_spread, tasks)
        together = rng.normal(0, self.together_spread, (2, tasks))
        return np.asarray(1 / (1 + np.exp(-(np.array(self.abilities)[:, None] - difficulty + together))))


WORLDS = {"even": World((0.5, 0.0)), "easy and hard": World((2.0, -1.0)), "equal": World((0.0, 0.0))}


def bca_interval(values: Floats, resamples: int = RESAMPLES, seed: int = 0) -> tuple[float, float]:
    """The bias-corrected and accelerated interval of the mean of `values` [T]."""
    distinct, counts = np.unique(values, return_counts=True)
    rng = np.random.default_rng(seed)
    means = rng.multinomial(len(values), counts / len(values), resamples) @ distinct / len(values)
    normal, mean = NormalDist(), values.mean()
    below = ((means < mean - 1e-12).mean() + (means <= mean + 1e-12).mean()) / 2
    shift = normal.inv_cdf(min(max(below, 1 / resamples), 1 - 1 / resamples))
    centred = mean - values  # of the means without one task, up to a factor
    curve = (centred**3).sum() / (6 * (centred**2).sum() ** 1.5)
    reached = (shift + normal.inv_cdf(tail) for tail in (0.025, 0.975))
    tails = [normal.cdf(shift + z / (1 - curve * z)) for z in reached]
    low, high = np.quantile(means, tails)
    return float(low), float(high)


def coverage(
    world: World, tasks: int, attempts: int, kind: str, repeats: int, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, float]:
    """The share of simulated evaluations whose interval contains the true value, by the name of the interval."""
    rng = np.random.default_rng(seed)
    truth = _truth(world, kind, attempts, rng)
    held: dict[str, int] = {}
    for repeat in range(repeats):
        for name, (low, high) in _intervals(world, tasks, attempts, kind, resamples, rng, repeat):
            held[name] = held.get(name, 0) + (low - 1e-9 <= truth <= high + 1e-9)
    return {name: count / repeats for name, count in held.items()}


def _truth(world: World, kind: str, attempts: int, rng: np.random.Generator) -> float:
    first, second = world.chances(POPULATION, rng)
    match kind:
        case "difference" | "over environments":
            return float((first - second).mean())
        case "pass^k":
            return float((first**attempts).mean())
        case "pass@k":
            return float((1 - (1 - first) ** (attempts - 1)).mean())
        case "rank":
            return 1.0 if first.mean() > second.mean() else 2.0
        case _:
            return float(first.mean())


def _intervals(
    world: World, tasks: int, attempts: int, kind: str, resamples: int, rng: np.random.Generator, seed: int
) -> Iterator[tuple[str, tuple[float, float]]]:
    chances = world.chances(tasks, rng)
    solved = rng.binomial(attempts, chances)
    match kind:
        case "difference":
            values = (solved[0] - solved[1]) / attempts
        case "pass^k":
            values = np.array([pass_hat_k(attempts, int(c), attempts) for c in solved[0]])
        case "pass@k":
            values = np.array([pass_at_k(attempts, int(c), attempts - 1) for c in solved[0]])
        case "score":
            scores = rng.beta(SURE * chances[0], SURE * (1 - chances[0]), (attempts, tasks)).sum(0)
            yield "wilson", share_interval([(float(score), attempts) for score in scores]) or (0.0, 1.0)
            return
        case "rank":
            means = stratified_bootstrap([solved / attempts], [1.0], resamples, seed)
            yield "expanded", rank_interval(means)[0]
            return
        case "one agent":
            counts = [(int(c), attempts) for c in solved[0]]
            yield "wilson", wilson(float(solved[0].mean()) / attempts, effective_trials(counts))
            values = solved[0] / attempts
        case _:
            groups = [values / attempts for values in np.array_split(solved[0] - solved[1], 2)]
            interval = stratified_interval(groups, [0.5, 0.5], resamples, seed)
            yield "expanded", _ends(interval.mean, interval.low, interval.high)
            return
    interval = bootstrap_interval(values, resamples, seed)
    yield "expanded", _ends(interval.mean, interval.low, interval.high)
    yield "BCa", bca_interval(values, resamples, seed) if interval.low is not None else (interval.mean, interval.mean)


def _ends(mean: float, low: float | None, high: float | None) -> tuple[float, float]:
    return (mean, mean) if low is None or high is None else (low, high)


def errors_and_power(
    tasks: int, attempts: int, repeats: int, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, float]:
    """The share of tests at 5 % that find a difference: without one, and with one of the detectable size."""
    rng = np.random.default_rng(seed)
    sizes: list[float] = []
    found = {"no difference": 0, "detectable difference": 0}
    for _ in range(repeats):
        found["no difference"] += _p(WORLDS["equal"], tasks, attempts, rng, sizes, resamples) < 0.05
    world = _world_with(float(np.mean(sizes)), rng)
    for _ in range(repeats):
        found["detectable difference"] += _p(world, tasks, attempts, rng, [], resamples) < 0.05
    return {name: count / repeats for name, count in found.items()}


def _p(world: World, tasks: int, attempts: int, rng: np.random.Generator, sizes: list[float], resamples: int) -> float:
    first, second = rng.binomial(attempts, world.chances(tasks, rng))
    difference = (first - second) / attempts
    if (size := detectable_difference([difference])) is not None:
        sizes.append(size)
    if attempts == 1:
        return mcnemar(int((first > second).sum()), int((second > first).sum()))
    return sign_permutation(difference, resamples)


def _world_with(difference: float, rng: np.random.Generator) -> World:
    """Two agents with this true difference."""
    low, high = 0.0, 12.0
    while high - low > 1e-3:
        ability = (low + high) / 2
        first, second = World((ability / 2, -ability / 2)).chances(POPULATION, rng)
        low, high = (ability, high) if (first - second).mean() < difference else (low, ability)
    return World((low / 2, -low / 2))


def main(argv: list[str] | None = None) -> None:
    """Print the table of coverage, that of the tests, and a line of JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.coverage", description=__doc__)
    parser.add_argument("--repeats", type=int, default=2000, metavar="N", help="simulated evaluations of each kind")
    repeats = parser.parse_args(argv).repeats
    rows = []
    print("| interval of | world | attempts | tasks | expanded percentile | BCa | Wilson |")
    print("|---|---|---:|---:|---:|---:|---:|")
    for kind in KINDS:
        for name, world in WORLDS.items():
            for attempts in ATTEMPTS:
                for tasks in TASKS:
                    if (kind.startswith("pass") and attempts == 1) or (kind != "difference" and name == "equal"):
                        continue
                    held = coverage(world, tasks, attempts, kind, repeats)
                    rows.append({"kind": kind, "world": name, "attempts": attempts, "tasks": tasks, **held})
                    cells = [f"{held[which]:.1%}" if which in held else "" for which in ("expanded", "BCa", "wilson")]
                    print(f"| {kind} | {name} | {attempts} | {tasks} | {' | '.join(cells)} |", flush=True)
    print("\n| test | attempts | tasks | found where there is no difference | found where it is detectable |")
    print("|---|---:|---:|---:|---:|")
    for attempts in ATTEMPTS:
        for tasks in TASKS:
            found = errors_and_power(tasks, attempts, repeats)
            rows.append({"kind": "test", "attempts": attempts, "tasks": tasks, **found})
            test = "McNemar" if attempts == 1 else "sign permutation"
            print(f"| {test} | {attempts} | {tasks} | {' | '.join(f'{share:.1%}' for share in found.values())} |")
    spread = 1.96 * math.sqrt(0.95 * 0.05 / repeats)
    print(f"\n{repeats:,} repeats: a coverage of 95 % is measured to ± {spread:.1%}")
    print(json.dumps({"benchmark": "coverage", "repeats": repeats, "rows": rows}))


if __name__ == "__main__":
    main()
