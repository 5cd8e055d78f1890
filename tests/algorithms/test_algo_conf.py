from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

import conf
from algorithms.estimators.gigpo import gigpo
from algorithms.estimators.grpo import grpo
from algorithms.losses import AGGREGATIONS, aggregate, clip_loss
from algorithms.turn_table import Estimate
from tests.golden.compare import load
from tests.golden.tables import single_turns, table_of_rows

FOLDER = Path(conf.__path__[0]) / "algo"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
# The methods that are a setting of another one's estimator, and what they set.
OWN_SETTINGS = {
    "dr_grpo": {"normalize_by_std", "statistics", "invalid_penalty"},
    "topr": {"normalize_by_std", "statistics", "invalid_penalty"},
    "nft": {"normalize_by_std", "statistics", "invalid_penalty"},
}
OLD, NEW = torch.tensor([[-1.0, -1.0, -3.0, -1.0]]), torch.tensor([[-0.1, -1.1, -0.1, -3.0]])
MASK = torch.ones(1, 4, dtype=torch.bool)


@pytest.mark.parametrize(("name", "estimator"), [("grpo", grpo), ("gigpo", gigpo)])
def test_a_config_file_says_the_defaults_of_its_functions(name: str, estimator: Any) -> None:
    algo = instantiate(OmegaConf.load(FOLDER / f"{name}.yaml"))
    for case in load("gigpo")[0]:
        table = table_of_rows(case["inputs"]["rows"])
        np.testing.assert_array_equal(algo.estimator(table), estimator(table))
    advantages = torch.tensor([[1.0, -1.0, -1.0, -1.0]])
    loss, _ = algo.loss(NEW, OLD, advantages, MASK)
    torch.testing.assert_close(loss, clip_loss(NEW, OLD, advantages, MASK)[0])
    assert aggregate(loss, MASK, algo.aggregation, algo.loss_divisor) == aggregate(loss, MASK)


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_of_an_estimator_stands_in_its_file_with_its_default(name: str) -> None:
    estimator = instantiate(OmegaConf.load(FOLDER / f"{name}.yaml")).estimator
    parameters = inspect.signature(estimator.func).parameters
    defaults = {key: p.default for key, p in parameters.items() if p.kind is p.KEYWORD_ONLY}
    # An epsilon is left alone, and the similarity of states is an option of its own.
    assert set(estimator.keywords) == set(defaults) - {"epsilon", "similarity"}
    for key in set(estimator.keywords) - OWN_SETTINGS.get(name, set()):
        assert estimator.keywords[key] == defaults[key], key


@pytest.mark.parametrize("name", NAMES)
def test_every_file_makes_advantages_and_a_loss(name: str) -> None:
    algo = instantiate(OmegaConf.load(FOLDER / f"{name}.yaml"))
    ones = np.ones(2)
    table = single_turns(
        [0, 0],
        [1.0, 0.0],
        tokens=np.array([2, 2]),
        signals={
            "answer_logprob": -ones, "entropy": ones, "mc_value": ones, "node": np.arange(2), "prm": ones,
            "tool_result": ones > 0, "tree": np.zeros(2), "turn_reward": ones, "value": ones,
        },
        token_signals={"mc_value": np.ones(4), "prm": np.ones(4), "value": np.ones(4)},
    )  # fmt: skip
    answer = algo.estimator(table)
    advantages = answer.advantages if isinstance(answer, Estimate) else answer
    by_token = advantages if len(advantages) == 4 else advantages[table.token_rows]
    loss, _ = algo.loss(NEW, OLD, torch.tensor(by_token[None]), MASK)
    assert algo.aggregation in AGGREGATIONS
    assert aggregate(loss, MASK, algo.aggregation, algo.loss_divisor).isfinite()
    assert isinstance(algo.dynamic_sampling, bool)
    assert algo.kl_coef >= 0
