from __future__ import annotations

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
from algorithms.losses import aggregate, clip_loss
from tests.golden.compare import load
from tests.golden.tables import table_of_rows

FOLDER = Path(conf.__path__[0]) / "algo"


@pytest.mark.parametrize(("name", "estimator"), [("grpo", grpo), ("gigpo", gigpo)])
def test_a_config_file_says_the_defaults_of_its_functions(name: str, estimator: Any) -> None:
    algo = instantiate(OmegaConf.load(FOLDER / f"{name}.yaml"))
    for case in load("gigpo")[0]:
        table = table_of_rows(case["inputs"]["rows"])
        np.testing.assert_array_equal(algo.estimator(table), estimator(table))
    old, new = torch.tensor([[-1.0, -1.0, -3.0, -1.0]]), torch.tensor([[-0.1, -1.1, -0.1, -3.0]])
    advantages, mask = torch.tensor([[1.0, -1.0, -1.0, -1.0]]), torch.ones(1, 4, dtype=torch.bool)
    loss, _ = algo.loss(new, old, advantages, mask)
    torch.testing.assert_close(loss, clip_loss(new, old, advantages, mask)[0])
    assert aggregate(loss, mask, algo.aggregation, algo.loss_divisor) == aggregate(loss, mask)
